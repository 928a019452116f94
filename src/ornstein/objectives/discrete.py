"""Objectives of categories: the continuous-time bound in two forms, its short form for masks, and D3PM's hybrid.

    RateVLB             (1 / D) int_0^1 E[ sum_{y != x} R_0 log(R_0 / R_hat) - R_0 + R_hat ] dt     (`ornstein.terms`)
    MaskedCrossEntropy  (1 / D) int_0^1 -alpha' / (1 - alpha) E[ -sum_{masked d} log p(x_0^d | x_t) ] dt
    CampbellELBO        (1 / D) int_0^1 E[ sum_{y != x} R_hat(x, y) - Z(x) + Z(x) log(R(x, x~) / R_hat(x~, x)) ] dt
    DiscreteHybrid      L_vb + lambda E[-log p(x_0 | x_t)], with L_vb of `VLB`

D is the number of sites; each is drawn at one t for an example, uniform on [0, 1] and stratified over the batch, and is in
nats per site. The first two are one under an absorbing kernel (Shi et al. 2024; Sahoo et al. 2024), and bounds of the code
length: what they leave out, the prior's term, depends on no weight. The third is the same bound by forward jumps x -> x~,
drawn with the rates R(x, .) / Z (Campbell et al. 2022, proposition 2, with the constants that it leaves out): two calls of
the network.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.objectives.bounds import bound_terms, drawn, summed
from ornstein.objectives.squared import EDGE, Loss, TimeLaw, UniformTime
from ornstein.objectives.times import Stratified, UniformSteps, steps_of
from ornstein.processes.categorical import Categorical, CategoricalEstimate
from ornstein.processes.kernels import inverse
from ornstein.processes.product import Product
from ornstein.schedules.base import Time, as_time
from ornstein.terms import CategoricalTerms


def uniform_times() -> TimeLaw:
    """The law of times of the integrals over t: uniform, stratified over the batch."""
    return Stratified(UniformTime())


def cross_entropy(estimate: CategoricalEstimate, x0: Tensor) -> Tensor:
    """-sum_d log p(x_0^d | x_t) / D, nats per site, (b,): of a mask kernel, that of the masked sites, since the others are
    known."""
    return -estimate.log_prob(x0) / x0[0].numel()


def reveal_rate(process: Categorical, t: Time) -> Tensor:
    """-alpha'(t) / (1 - alpha(t)), 1 / time: the rate at which a masked site is revealed; 1 / t for alpha = 1 - t."""
    assert process.schedule is not None
    log_alpha = process.schedule.log_alpha(t)
    return log_alpha.exp() * process.schedule.f(t) / torch.expm1(log_alpha)


@dataclass(frozen=True)
class _OverTime:
    """Base of the integrals over t, each example at one time of a uniform law."""

    times: TimeLaw = field(default_factory=uniform_times, kw_only=True)

    def __post_init__(self) -> None:
        check_even(self.times)

    def _noised(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None
    ) -> tuple[Tensor, CategoricalEstimate]:
        """The times (b,) of this part of the batch, and the estimates there."""
        process = denoiser.process
        check_categorical(process)
        if process.steps is not None:
            raise ConfigurationError(
                f"got {process.kernel!r}, known at the times of its {process.steps} steps alone, for an integral "
                "over time; expected VLB "
                f"or DiscreteHybrid with UniformSteps({process.steps})"
            )
        t = self.times(process, rng.shared().clamp(EDGE, 1 - EDGE))[rng.rows]
        return t, denoiser(process.noise(x0, t, rng), as_time(t), cond, keep)


@dataclass(frozen=True)
class MaskedCrossEntropy(_OverTime):
    """The bound of masked diffusion: -alpha' / (1 - alpha) times the cross-entropy of the masked sites; see the module.

    weighted: False leaves the factor out, as masked language models do: each masked site then counts alike. The optimum is the
    same, the bound is not.

    Raises `ConfigurationError` where the kernel is no absorbing one.
    """

    weighted: bool = True

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) under the condition cond (b, ...), with draws from rng, as of `Objective`."""
        t, estimate = self._noised(denoiser, x0, cond, rng, keep)
        if not estimate.process.kernel.absorbing:
            raise ConfigurationError(
                f"got {type(self).__name__} for {estimate.process.kernel!r}, expected an Absorbing kernel; for "
                "others RateVLB or VLB"
            )
        loss = cross_entropy(estimate, x0)
        return Loss(loss * reveal_rate(estimate.process, t).to(loss) if self.weighted else loss, t)


@dataclass(frozen=True)
class RateVLB(_OverTime):
    """The continuous-time bound of any kernel that has rates: the relative entropy of the reverse rates; see the module.

    Raises `ConfigurationError` for a kernel that is a table of matrices.
    """

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) under the condition cond (b, ...), with draws from rng, as of `Objective`."""
        t, estimate = self._noised(denoiser, x0, cond, rng, keep)
        return Loss(CategoricalTerms(precise=False).rate(estimate, x0, t) / x0[0].numel(), t)


@dataclass(frozen=True)
class CampbellELBO(_OverTime):
    """The continuous-time bound by forward jumps; see the module. Least where R_hat is the true reverse rate (check E21).

    At t = 1 it adds to E[-log p(x_1)] what `RateVLB` adds to KL(q(x_1 | x_0) || p(x_1)). Rates must be finite: under a
    schedule with alpha(1) = 0 its variance is not.
    """

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) under the condition cond (b, ...), with draws from rng, as of `Objective`.

        Its parts are `leave`, sum R_hat - Z, and `jump`.
        """
        t, estimate = self._noised(denoiser, x0, cond, rng, keep)
        process, x, b = estimate.process, estimate.x_t, len(x0)
        out = process.forward_rates(x, t, estimate.log_probs.dtype).clamp(min=0).reshape(b, -1)
        total = out.sum(1)
        place = inverse(out, rng.uniform((b,)))  # where all rates are 0 it counts for nothing
        site, state = place // process.states, place % process.states
        rows = torch.arange(b, device=x.device)
        jumped = x.flatten(1).clone()
        jumped[rows, site] = state
        back = process.rates(denoiser(jumped.view_as(x), t, cond, keep), t).reshape(b, -1, process.states)
        back_rate = back[rows, site, x.flatten(1)[rows, site]]
        moves = total > 0  # of an example that cannot move neither value nor gradient counts
        ratio = torch.where(moves, out[rows, place], 1.0) / torch.where(moves, back_rate, 1.0)
        jump = total * ratio.log()
        leave = process.rates(estimate, t).clamp(min=0).flatten(1).sum(1) - total
        d = x0[0].numel()
        return summed({"leave": leave / d, "jump": jump / d}, self.times, t)


@dataclass(frozen=True)
class DiscreteHybrid:
    """L_vb + weight E[-log p(x_0 | x_t)], at one step of a chain (D3PM, Austin et al. 2021, eq. 5): T L_{i-1} / D + weight CE
    / D.

    L_vb is the sum over the chain, and so T times a term; the cross-entropy is the mean over the steps, of the law that the
    denoiser reads (under "d3pm" the product with q(x_t | x_0); D3PM has it of the network's own softmax). times: as of `VLB`,
    with the T of a kernel that is a table of matrices.
    """

    weight: float = 0.01
    times: TimeLaw = field(default_factory=UniformSteps)

    def __post_init__(self) -> None:
        steps_of(self.times, least=2)
        if not self.weight > 0:
            raise ConfigurationError(f"got weight={self.weight}, expected a positive number; for the bound alone VLB")

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) under the condition cond (b, ...), with draws from rng, as of `Objective`.

        Its parts are `vlb` and `cross_entropy`. `Loss.t` is i/T.
        """
        check_categorical(denoiser.process)
        t, index, levels = drawn(self.times, denoiser.process, rng)
        at = levels[index - 1]
        estimate = denoiser(denoiser.process.noise(x0, at, rng), at, cond, keep)
        terms = bound_terms(estimate, x0, index, levels)
        return summed({"vlb": terms, "cross_entropy": self.weight * cross_entropy(estimate, x0)}, self.times, t)


def check_categorical(process: Any) -> None:
    """Raise `ConfigurationError` for a process of another kind."""
    if not isinstance(process, Categorical):
        remedy = "MixedObjective or VLB" if isinstance(process, Product) else "Objective or VLB"
        raise ConfigurationError(f"got {type(process).__name__}, expected a Categorical process; for this one {remedy}")


def check_even(times: TimeLaw) -> None:
    """Raise `ConfigurationError` for a law that is not uniform on [0, 1], under which the mean would be no integral over t."""
    inner = times.law if isinstance(times, Stratified) else times
    if not isinstance(inner, UniformTime):
        raise ConfigurationError(
            f"got times={times!r}, expected UniformTime() or Stratified(UniformTime()): the bound is an integral over t"
        )
