"""Laws of training times. A law maps independent uniform numbers to times, so it is its own quantile function.

A continuous law has a density in log-SNR lambda, the variable that every schedule shares: for any such law p

    (1/2) integral E ||eps_hat - eps||^2 d lambda = E_{lambda ~ p} [ ||eps_hat - eps||^2 / (2 p(lambda)) ],

the continuous-time bound (`LikelihoodWeighting`). A law of the T steps of a chain has none; its t is i/T.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.objectives.squared import EDGE, TimeLaw, UniformTime
from ornstein.processes.gaussian import Gaussian


@dataclass(frozen=True)
class UniformSteps:
    """t = i / steps with i uniform on 1 .. steps: the times of a T-step chain."""

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigurationError(f"got steps={self.steps}, expected at least 1")

    def __call__(self, process: Gaussian, u: Tensor) -> Tensor:
        """The times of uniform numbers u (b,)."""
        return torch.ceil(u * self.steps).clamp(1, self.steps) / self.steps

    def density(self, process: Gaussian, t: Tensor) -> Tensor:
        """Raises `ConfigurationError`: the times are those of a chain."""
        raise without_density(self)


@dataclass(frozen=True)
class LogNormalSigma:
    """log(sigma / alpha) ~ N(mean, std^2), EDM's law; levels beyond the schedule's range are moved to its ends."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ConfigurationError(f"got std={self.std}, expected a positive number")

    def __call__(self, process: Gaussian, u: Tensor) -> Tensor:
        """The times of uniform numbers u (b,)."""
        log_sigma = self.mean + self.std * torch.special.ndtri(u)
        return process.schedule.time_at(-2 * log_sigma).clamp(EDGE, 1 - EDGE)

    def density(self, process: Gaussian, t: Tensor) -> Tensor:
        """The density of the log-SNR at t, N(-log_snr / 2; mean, std^2) / 2; infinite at the ends, where atoms are."""
        z = (-process.schedule.log_snr(t) / 2 - self.mean) / self.std
        inside = (t > max(EDGE, process.schedule.t_min)) & (t < 1 - EDGE)
        return torch.where(inside, torch.exp(-(z**2) / 2) / (2 * self.std * math.sqrt(2 * math.pi)), math.inf)


@dataclass(frozen=True)
class UniformLogSNR:
    """The log-SNR uniform, so that sigma / alpha is log-uniform, from sigma_min to sigma_max cut to the schedule's range."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigurationError(
                f"got sigma_min={self.sigma_min}, sigma_max={self.sigma_max}, expected 0 < sigma_min < sigma_max"
            )

    def __call__(self, process: Gaussian, u: Tensor) -> Tensor:
        """The times of uniform numbers u (b,)."""
        most, least = self._ends(process)
        return process.schedule.time_at(most + u * (least - most))

    def density(self, process: Gaussian, t: Tensor) -> Tensor:
        """The density of the log-SNR at t: 1 / (its range)."""
        most, least = self._ends(process)
        return torch.full_like(t, 1 / (most - least), dtype=torch.float64)

    def _ends(self, process: Gaussian) -> tuple[float, float]:
        """The largest and the least log-SNR."""
        schedule = process.schedule
        high, low = schedule.cut(self.sigma_min, self.sigma_max)
        if not low < high:
            most, least = schedule.log_snr(torch.tensor([schedule.t_min, 1.0], dtype=torch.float64)).tolist()
            raise ConfigurationError(
                f"got {self!r} for {schedule!r}, whose sigma / alpha runs from {math.exp(-most / 2):.3g} to "
                f"{math.exp(-least / 2):.3g}; expected a range that meets it"
            )
        return high, low


@dataclass(frozen=True)
class Stratified:
    """Another law with its uniform numbers stratified over the batch: one in each of b equal intervals, which lowers the
    variance of the batch's mean and leaves its expectation."""

    law: TimeLaw = field(default_factory=UniformTime)

    def __post_init__(self) -> None:
        if isinstance(self.law, Stratified) or hasattr(self.law, "weight"):
            raise ConfigurationError(
                f"got Stratified({self.law!r}), which is stratified already; expected it by itself"
            )

    def __call__(self, process: Gaussian, u: Tensor) -> Tensor:
        """The times of uniform numbers u (b,)."""
        return self.law(process, strata(u))

    def density(self, process: Gaussian, t: Tensor) -> Tensor:
        """The density of the law that is stratified: on average over the batch it is the same."""
        return self.law.density(process, t)

    @property
    def steps(self) -> int | None:
        """The steps of the chain of the law, None where it is of no chain."""
        return getattr(self.law, "steps", None)


def strata(u: Tensor) -> Tensor:
    """Uniform numbers u (b,) moved into b equal intervals of (0, 1), one into each."""
    return (torch.arange(len(u), dtype=u.dtype, device=u.device) + u) / len(u)


def without_density(law: TimeLaw) -> ConfigurationError:
    """The error of a chain's law that is asked for its density."""
    return ConfigurationError(
        f"got times={law!r}, the law of a chain, which has no density; expected a law of continuous time: "
        "UniformLogSNR(), UniformTime() or LogNormalSigma()"
    )


def steps_of(times: TimeLaw, least: int = 1) -> int:
    """T of a chain's law. Raises `ConfigurationError` for a law of continuous time, or below `least` steps."""
    steps = getattr(times, "steps", None)
    if steps is None:
        raise ConfigurationError(
            f"got times={times!r}, a law of continuous time; expected that of a chain: UniformSteps(1000) or Importance(1000)"
        )
    if steps < least:
        raise ConfigurationError(f"got a chain of {steps} steps, expected at least {least}")
    return steps


def index_of(t: Tensor, steps: int) -> Tensor:
    """The steps 1 .. T of times t = i/T."""
    return (t * steps).round().long().clamp(1, steps)


def weight_of(times: TimeLaw, t: Tensor) -> Tensor | None:
    """1 / (T p_i) at times t (b,) of a law that draws some steps more often than others; None for any other law."""
    return times.weight(t) if hasattr(times, "weight") else None
