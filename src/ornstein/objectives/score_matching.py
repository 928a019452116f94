"""Score matching in its four forms, on noised data x_t. All have one minimiser, s = grad log p_t:

    explicit    1/2 ||s - grad log p_t||^2                    a data law of known score (paper 002 eq. 39, 51)
    denoising   1/2 ||s - grad log q(x_t | x_0)||^2           = 1/2 ||s + eps / sigma||^2 (Vincent 2011; paper 001 eq. 56)
    implicit    tr(ds/dx) + 1/2 ||s||^2                       no target (Hyvarinen 2005)
    sliced      v^T (ds/dx) v + 1/2 ||s||^2                   its trace by random v, E v v^T = I (Song et al. 2019)

each times sigma^power / D: power 2 makes noise levels comparable (NCSN's lambda = sigma^2, with which the denoising form is
1/2 ||sigma s + eps||^2). In expectation the forms differ by constants: DSM = ESM + C, C = E ||grad log q||^2 / 2 - E ||grad
log p_t||^2 / 2, so the denoising form of a perfect network is C and not 0 (`irreducible`); ISM = SSM = ESM - E ||grad log
p_t||^2 / 2, which is below 0.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ornstein.conditions import Condition
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.objectives.squared import EDGE, Loss, ObjectiveLike, TimeLaw, UniformTime
from ornstein.objectives.times import weight_of
from ornstein.processes.gaussian import Estimate, spread

TRACE_LIMIT = 256
"""The most components of which the exact trace is taken: it costs a backward pass a component."""


@dataclass(frozen=True)
class _Asked:
    """A denoiser at the states and times of `truth`, under a condition."""

    denoiser: DenoiserLike
    truth: Estimate
    cond: Condition | None
    keep: Tensor | None

    def score(self) -> Tensor:
        """Its score at x_t, (b, *d)."""
        return self.denoiser(self.truth.x_t, self.truth.t, self.cond, self.keep).score

    def differentiable(self) -> tuple[Tensor, Tensor]:
        """x_t and its score, joined by a graph. Raises `ConfigurationError` where the score has none."""
        x = self.truth.x_t.detach().requires_grad_()
        # Attention's fused kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            estimate = self.denoiser(x, self.truth.t, self.cond, self.keep)
            score = estimate.score
        if not estimate.value.requires_grad:
            raise ConfigurationError(
                "got a score that autograd cannot follow to x_t, expected a denoiser without no_grad, detach or numpy"
            )
        return x, score


class _ScoreMatching:
    """What the four share: the draws, the weight sigma^power / D, and the `Loss`."""

    times: TimeLaw
    power: float

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) under the condition cond (b, ...), with draws from rng, as of `Objective`."""
        process = denoiser.process.given(cond)
        t = self.times(process, rng.shared().clamp(EDGE, 1 - EDGE))[rng.rows]
        asked = _Asked(denoiser, process.noised(x0, t, rng), cond, keep)
        values = self._values(asked, rng)
        loss = values * spread(process.level(t).sigma ** self.power / x0[0].numel(), values)
        weight = weight_of(self.times, t)
        weight = None if weight is None else weight.to(loss)
        return Loss(loss if weight is None else loss * weight, t, weight=weight)

    def _values(self, asked: _Asked, rng: Noise) -> Tensor:
        """The unweighted values, (b,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExplicitScoreMatching(_ScoreMatching):
    """(sigma^power / 2D) ||s - grad log p_t||^2, the Fisher divergence to a data law of known score (paper 002 eq. 39).

    exact: an exact denoiser of the same process, whose score is the truth.
    """

    exact: DenoiserLike
    times: TimeLaw = field(default_factory=UniformTime)
    power: float = 2.0

    def _values(self, asked: _Asked, rng: Noise) -> Tensor:
        if self.exact.process != asked.denoiser.process:
            raise ConfigurationError(
                f"got an exact denoiser under {self.exact.process.schedule!r} for one under "
                f"{asked.denoiser.process.schedule!r}, expected one process"
            )
        with torch.no_grad():
            target = self.exact(asked.truth.x_t, asked.truth.t, asked.cond).score
        return half_square(asked.score() - target)


@dataclass(frozen=True)
class DenoisingScoreMatching(_ScoreMatching):
    """(sigma^power / 2D) ||s - grad log q(x_t | x_0)||^2 (Vincent 2011; paper 002 eq. 7).

    For power 2 it is (1 / 2D) ||sigma s + eps||^2, the loss of NCSN with lambda = sigma^2 (paper 003 eq. 3).
    """

    times: TimeLaw = field(default_factory=UniformTime)
    power: float = 2.0

    def _values(self, asked: _Asked, rng: Noise) -> Tensor:
        return half_square(asked.score() - asked.truth.score)


@dataclass(frozen=True)
class ImplicitScoreMatching(_ScoreMatching):
    """(sigma^power / D) (tr(ds/dx) + 1/2 ||s||^2), with the exact trace: D backward passes (Hyvarinen 2005).

    Raises `ConfigurationError` for more than 256 components.
    """

    times: TimeLaw = field(default_factory=UniformTime)
    power: float = 2.0

    def _values(self, asked: _Asked, rng: Noise) -> Tensor:
        shape = asked.truth.x_t.shape[1:]
        size = shape.numel()
        if size > TRACE_LIMIT:
            raise ConfigurationError(
                f"got {size} components, whose exact trace takes {size} backward passes a step; expected at most "
                f"{TRACE_LIMIT}: use SlicedScoreMatching(), which takes one"
            )
        x, score = asked.differentiable()
        basis = torch.eye(size, dtype=x.dtype, device=x.device).view(size, *shape)
        return sum((curvature(score, x, v) for v in basis), half_square(score))


@dataclass(frozen=True)
class SlicedScoreMatching(_ScoreMatching):
    """(sigma^power / D) (v^T (ds/dx) v + 1/2 ||s||^2), the mean over `projections` random signs v (Song et al. 2019).

    reduced: ||s||^2 as it is, which lowers the variance; else (v^T s)^2, whose expectation it is.
    """

    times: TimeLaw = field(default_factory=UniformTime)
    power: float = 2.0
    projections: int = 1
    reduced: bool = True

    def __post_init__(self) -> None:
        if self.projections < 1:
            raise ConfigurationError(f"got projections={self.projections}, expected at least 1")

    def _values(self, asked: _Asked, rng: Noise) -> Tensor:
        x, score = asked.differentiable()
        total = torch.zeros_like(score[:, :0].flatten(1).sum(1))
        for _ in range(self.projections):
            v = torch.where(rng.normal(x.shape, x.dtype) < 0, -1.0, 1.0).to(x)
            norm = half_square(score) if self.reduced else 0.5 * (v * score).flatten(1).sum(1) ** 2
            total = total + curvature(score, x, v) + norm
        return total / self.projections


def half_square(x: Tensor) -> Tensor:
    """||x||^2 / 2 of each example (b, *d): (b,)."""
    return 0.5 * x.square().flatten(1).sum(1)


def curvature(score: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """v^T (ds/dx) v of each example, (b,); itself differentiable where gradients are on."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        (product,) = torch.autograd.grad(
            (score * v).sum(), x, create_graph=differentiable, retain_graph=True, materialize_grads=True
        )
    return (product * v).flatten(1).sum(1)


@torch.no_grad()
def irreducible(objective: ObjectiveLike, exact: DenoiserLike, x0: Tensor, rng: Noise) -> Loss:
    """The loss of the exact denoiser of the law of x0 (n, *d): the floor, below which no network gets on average.

    It is 0 for the explicit form, C for the denoising one (paper 002 after eq. 56), the posterior variance of the reading for a
    squared error; the mean loss of a network less this is what is left to learn.
    """
    return objective(exact, x0, None, rng)
