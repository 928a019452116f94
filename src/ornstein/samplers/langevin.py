"""Langevin steps: at one noise level, towards and about p_t (paper 000 eq. 77, paper 001 eq. 40).

    x <- x + (eps / 2) Sigma score + sqrt(eps) L z,   z ~ N(0, I), Sigma = L L^T the covariance of the base (I without one)

The papers write it with 2 eps in place of eps too. Here eps is in units of sigma(t)^2, the least variance that p_t can
have: with e the noise reading, which is -sigma Sigma score, a step is x + sigma (sqrt(eps) L z - (eps / 2) e) at every
level and for every base, stable for 0 < eps < 4.

A step stays at its level: it is called with s = t, as the corrector of `PredictorCorrector`, along a grid of equal times
by `sample_steps`, or down a ladder by `AnnealedLangevin`. Its `order` is that in the number of grid points: 0, since what
the size of the step leaves of an error (a variance 1 / (1 - eps / 4) in place of 1) does not fall with a finer grid; an
`exact` step has none.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.processes.gaussian import Gaussian, spread
from ornstein.processes.normal import Number
from ornstein.samplers.base import Counted
from ornstein.samplers.stochastic import base_noise

DEFAULT_EPS = 0.1
LARGEST = 1.0

Density = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Langevin:
    """steps times: x + (eps / 2) Sigma score + sqrt(eps) L z, where eps is given or follows the signal-to-noise rule.

    eps: in units of sigma(t)^2; 0.1 where neither it nor snr is given.
    snr: the rule of Song et al. 2021 (algorithms 4 and 5): the drift has snr times the size of the noise,
        eps = 4 snr^2 d / ||L^T score||^2 for each example by itself, with d = E||z||^2 for the size d of a state, and at
        most sigma(t)^2. Their factor 1 - beta_i, which is 1 in the limit of a fine chain, is left out. Theirs is 0.16, which
        comes to eps = 0.1 at high noise. A step that depends on the state moves p_t in few dimensions, unless adjusted.
    adjust: accept or reject each move by the rule of Metropolis and Hastings, which leaves p_t exactly invariant, whatever
        eps. It needs a denoiser with `log_density(x_t, t)`, and one more call than steps, each with its log-density.

    Raises `ConfigurationError` where the denoiser has no log-density, sigma(t) is 0, or s is not t.
    """

    eps: float | None = None
    snr: float | None = None
    steps: int = 1
    adjust: bool = False

    order = 0
    stochastic = True
    corrects = True

    def __post_init__(self) -> None:
        if self.eps is not None and self.snr is not None:
            raise ConfigurationError(f"got eps={self.eps} and snr={self.snr}, expected one of them at most")
        if self.eps is not None:
            _check_eps(self.eps, math.inf if self.adjust else 4.0)
        if self.snr is not None and not 0 < self.snr < 1:
            raise ConfigurationError(
                f"got snr={self.snr}, expected above 0 and below 1: the drift of a step over its noise, 0.16 in common"
            )
        _check_steps(self.steps)

    @property
    def exact(self) -> bool:
        """Whether p_t is exactly invariant under a step."""
        return self.adjust

    @property
    def stages(self) -> int:
        """Evaluations in a step: of the denoiser and, where adjusted, of its log-density."""
        return 2 * (self.steps + 1) if self.adjust else self.steps

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """`steps` moves at time t = s; there is no memory."""
        process, sigma = denoiser.process, _sigma(self, denoiser, t, s)
        if self.adjust:
            return self._adjusted(denoiser, _log_density(self, denoiser), x, t, rng), None
        for _ in range(self.steps):
            e = denoiser(x, t).eps
            x = _moved(x, sigma, e, base_noise(process, x, rng), self._size(process, e))
        return x, None

    def _size(self, process: Gaussian, e: Tensor) -> Number:
        """eps / sigma^2: a number, or one per example beside the states (b, 1, ..., 1)."""
        if self.snr is None:
            return DEFAULT_EPS if self.eps is None else self.eps
        white = _white(process, e)  # -sigma L^T score
        size = (4 * self.snr**2 * white.shape[1]) / white.square().sum(1)
        return spread(size.clamp(max=LARGEST), e)

    def _adjusted(self, denoiser: DenoiserLike, log_density: Density, x: Tensor, t: float, rng: Noise) -> Tensor:
        """Moves, each accepted with probability min(1, p(x') q(x | x') / (p(x) q(x' | x))), else the state stays."""
        process, sigma = denoiser.process, float(denoiser.process.level(t).sigma)
        e, log_p = denoiser(x, t).eps, log_density(x, t)
        for _ in range(self.steps):
            size, noise = self._size(process, e), base_noise(process, x, rng)
            proposed = _moved(x, sigma, e, noise, size)
            e_there, log_p_there = denoiser(proposed, t).eps, log_density(proposed, t)
            size_there = self._size(process, e_there)
            # q by the numbers that make the move and that would undo it
            back = (size / 2 * e + size_there / 2 * e_there - size**0.5 * noise) / size_there**0.5
            squares = _white(process, noise).square() - _white(process, back).square()
            log_ratio = (log_p_there - log_p).to(x) + squares.sum(1) / 2
            if isinstance(size, Tensor):
                log_ratio = log_ratio + squares.shape[1] / 2 * torch.log(size / size_there).flatten()
            reject = torch.log(rng.uniform((len(x),), x.dtype)) >= log_ratio  # so that NaN is accepted, and seen
            log_p = torch.where(reject, log_p, log_p_there)
            reject = reject.reshape(-1, *(1,) * (x.ndim - 1))
            x, e = torch.where(reject, x, proposed), torch.where(reject, e, e_there)
        return x


@dataclass(frozen=True)
class UnderdampedLangevin:
    """Langevin dynamics with a momentum p ~ N(0, Sigma), which carries it on (paper 000 eq. 67 with its force and noise):

        dx = sigma p dtau,   dp = -e dtau - friction p dtau + sqrt(2 friction) L dw,   e = -sigma Sigma score

    by the splitting BAOAB (Leimkuhler and Matthews 2013) in steps of h = sqrt(eps) of tau: half a kick by the force, half a
    drift, the exact step of friction and noise, half a drift, half a kick. On a normal law the variance of x is exact.
    The memory is p, which a change of level or of x by a predictor leaves as it is: it is independent of x.

    eps: h^2, so that a step moves x by about sqrt(eps) sigma, as one of `Langevin` does; friction: in 1 / tau.

    Raises `ConfigurationError` where sigma(t) is 0 or s is not t.
    """

    eps: float = 0.1
    friction: float = 1.0
    steps: int = 1

    order = 0
    stochastic = True
    corrects = True
    exact = False

    def __post_init__(self) -> None:
        _check_eps(self.eps, 4.0)
        _check_steps(self.steps)
        if not 0 < self.friction < math.inf:
            raise ConfigurationError(f"got friction={self.friction}, expected a positive number; 1 is common")

    @property
    def stages(self) -> int:
        """Calls of the denoiser in a step."""
        return self.steps + 1

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: Tensor | None, rng: Noise
    ) -> tuple[Tensor, Tensor]:
        """`steps` steps of h at time t = s; the memory is the momentum p, of the shape of x."""
        process, sigma = denoiser.process, _sigma(self, denoiser, t, s)
        half, fall = math.sqrt(self.eps) / 2, 2 * self.friction * math.sqrt(self.eps)
        keep, fresh = math.exp(-fall / 2), math.sqrt(-math.expm1(-fall))
        p = base_noise(process, x, rng) if memory is None else memory
        e = denoiser(x, t).eps
        for _ in range(self.steps):
            p = p - half * e
            x = x + (sigma * half) * p
            p = keep * p + fresh * base_noise(process, x, rng)
            x = x + (sigma * half) * p
            e = denoiser(x, t).eps
            p = p - half * e
        return x, p


@dataclass(frozen=True)
class AnnealedLangevin:
    """`steps` Langevin steps at each noise level of a falling grid, each level starting from the state of the one before:

        alpha_i = eps sigma_i^2 / sigma_min^2,   x <- x + (alpha_i / 2) Sigma score + sqrt(alpha_i) L z

    (NCSN, Song and Ermon 2019, algorithm 1; paper 003 with the largest sigma first: the other way round the samples have the
    noise of the largest.) NCSN's schedules have alpha = 1; on others the next level starts from the same x / alpha, so that
    the samples depend on the levels sigma / alpha alone (from alpha = 0, from the same x / sigma). eps is the step at the
    level sigma_min; with sigma_min = 1 it is in units of sigma_i^2, as in `Langevin`; NCSN's are eps=2e-5, sigma_min=0.01.
    The first level is that of the prior, from which the start is drawn. A step to sigma = 0 is x = estimate.x0. With
    `adjust` the moves are accepted or rejected, see `Langevin`.

    Raises `ConfigurationError` on a grid that does not fall.
    """

    eps: float = 0.2
    sigma_min: float = 1.0
    steps: int = 100
    adjust: bool = False

    order = 0
    stochastic = True

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < math.inf or not 0 < self.eps / self.sigma_min**2 < (math.inf if self.adjust else 4):
            raise ConfigurationError(
                f"got eps={self.eps} at sigma_min={self.sigma_min}, expected sigma_min > 0 and 0 < eps < 4 sigma_min^2 (any "
                "eps > 0 where adjusted): larger steps diverge where the data are concentrated"
            )
        _check_steps(self.steps)

    def _corrector(self) -> Langevin:
        return Langevin(self.eps / self.sigma_min**2, steps=self.steps, adjust=self.adjust)

    @property
    def stages(self) -> int:
        """Evaluations at a level."""
        return self._corrector().stages

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """From time t to the steps at time s; there is no memory."""
        if not s < t:
            raise ConfigurationError(
                f"got noise levels that do not fall, from t = {t:g} to s = {s:g}; expected the largest sigma first, as in "
                "grids.log_snr(process, levels)"
            )
        process = denoiser.process
        (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = process.level(t), process.level(s)
        if sigma_s == 0:
            return denoiser(x, t).x0, None
        mu = process.centre(x)
        x = mu + (alpha_s / alpha_t if alpha_t else sigma_s / sigma_t) * (x - mu)
        return self._corrector().step(denoiser, x, s, s, None, rng)


def _moved(x: Tensor, sigma: float, e: Tensor, noise: Tensor, size: Number) -> Tensor:
    return x + sigma * (size**0.5 * noise - size / 2 * e)


def _white(process: Gaussian, x: Tensor) -> Tensor:
    """L^-1 x as rows (b, D)."""
    return (x if process.base is None else process.base.whiten(x)).flatten(1)


def _sigma(sampler: Any, denoiser: DenoiserLike, t: float, s: float) -> float:
    """sigma(t), where the sampler can make its step."""
    if t != s:
        raise ConfigurationError(
            f"got a step from t = {t:g} to s = {s:g} of {sampler}, which stays at one noise level (s = t); expected it as "
            "the corrector of PredictorCorrector(predictor, corrector), or AnnealedLangevin() for a falling grid"
        )
    sigma = float(denoiser.process.level(t).sigma)
    if sigma == 0:
        raise ConfigurationError(f"got a step of {sampler} at t = {t:g}, where sigma = 0; expected a level of noise")
    return sigma


def _log_density(sampler: Any, denoiser: DenoiserLike) -> Density:
    """The denoiser's `log_density(x_t, t)`, each evaluation of it counted as a call."""
    inner = denoiser.denoiser if isinstance(denoiser, Counted) else denoiser
    if not hasattr(inner, "log_density"):
        raise ConfigurationError(
            f"got {type(inner).__name__}, which has no log_density(x_t, t), for {sampler}; expected one of "
            "exact.Normal, exact.Mixture, exact.Empirical or a denoiser of your own that has it, or adjust=False"
        )
    known: Any = denoiser
    return known.log_density


def _check_eps(eps: float, limit: float) -> None:
    if not 0 < eps < limit:
        raise ConfigurationError(
            f"got eps={eps}, expected above 0 and below {limit:g}, in units of sigma(t)^2"
            + ("" if limit == math.inf else ": from there on the steps diverge where the data are concentrated")
        )


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise ConfigurationError(f"got steps={steps}, expected a whole number of at least 1")
