"""Objectives: `(denoiser, x0, cond, keep, rng) -> Loss`, made of a time law, a weighting and a comparison.

The comparison is the mean squared error over the components of one reading r (paper 001 eq. 41, with the expectation over
t it lacks):

    loss_i = w(t_i) mean_d (r_hat(x_t, t) - r)^2,   t_i from the time law, x_t = process.noise(x_0, t)

With eps and w = 1 that is L_simple; with EDM's F and w = 1 it is EDM's loss, since its weight on x_0 times c_out^2 is 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.processes.gaussian import READINGS, Gaussian

EDGE = 2.0**-24


@dataclass(frozen=True)
class Loss:
    """Per-example losses (b,), the times they were taken at (b,), and named parts that sum to the loss."""

    per_example: Tensor
    t: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """The mean over the examples: what is minimised."""
        return self.per_example.mean()


class TimeLaw(Protocol):
    """A law of training times: maps independent uniform numbers in (0, 1) to times."""

    def __call__(self, process: Gaussian, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class UniformTime:
    """t uniform between the first time of the schedule and 1."""

    def __call__(self, process: Gaussian, u: Tensor) -> Tensor:
        """The times of uniform numbers u (b,)."""
        first = process.schedule.t_min
        return first + (1 - first) * u


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


@dataclass(frozen=True)
class Stratified:
    """Another law with its uniform numbers stratified over the batch: one in each of b equal intervals, which lowers the
    variance of the batch's mean and leaves its expectation."""

    law: TimeLaw = UniformTime()

    def __call__(self, process: Gaussian, u: Tensor) -> Tensor:
        """The times of uniform numbers u (b,)."""
        return self.law(process, (torch.arange(len(u), dtype=u.dtype, device=u.device) + u) / len(u))


@dataclass(frozen=True)
class Weighting:
    """A user's weighting: `function(log_snr)` times the squared error of `reading` (the denoiser's own where None)."""

    function: Callable[[Tensor], Tensor]
    reading: str | None = "x0"

    def __post_init__(self) -> None:
        if self.reading is not None and self.reading not in READINGS:
            raise ConfigurationError(f"got reading '{self.reading}', expected one of {', '.join(READINGS)}")

    def __call__(self, log_snr: Tensor) -> Tensor:
        """The weights at log-SNR values (b,)."""
        return self.function(log_snr)


@dataclass(frozen=True)
class Simple:
    """Weight 1 on one reading: on the denoiser's own where None. `Simple("eps")` is L_simple for any parametrisation."""

    reading: str | None = None

    def __call__(self, log_snr: Tensor) -> Tensor:
        """The weights at log-SNR values (b,)."""
        return torch.ones_like(log_snr)


@dataclass(frozen=True)
class EDMWeighting:
    """EDM's weight on the error of x_0: (s^2 + sigma_data^2) / (s sigma_data)^2 at s = sigma / alpha (paper 000 eq. 213)."""

    sigma_data: float = 0.5

    reading = "x0"

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ConfigurationError(f"got sigma_data={self.sigma_data}, expected a positive number")

    def __call__(self, log_snr: Tensor) -> Tensor:
        """The weights at log-SNR values (b,)."""
        return torch.exp(log_snr) + 1 / self.sigma_data**2


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the error of x_0 (Hang et al. 2023)."""

    gamma: float = 5.0

    reading = "x0"

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ConfigurationError(f"got gamma={self.gamma}, expected a positive number")

    def __call__(self, log_snr: Tensor) -> Tensor:
        """The weights at log-SNR values (b,)."""
        return torch.exp(log_snr).clamp(max=self.gamma)


@dataclass(frozen=True)
class Objective:
    """The weighted squared error of one reading; see the module.

    times: a time law. weighting: a `Simple`, `EDMWeighting`, `MinSNR` or `Weighting`.
    """

    times: TimeLaw = UniformTime()
    weighting: Simple | EDMWeighting | MinSNR | Weighting = Simple()

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Tensor | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) under the condition cond (b, ...), with draws from rng.

        Times are drawn for the whole batch of which rng holds a part: a batch in parts has the losses of the whole.
        Rows where `keep` (b,) is False are trained as unconditional.
        """
        process = denoiser.process.given(cond)
        t = self.times(process, rng.shared().clamp(EDGE, 1 - EDGE))[rng.rows]
        truth = process.noised(x0, t, rng)
        estimate = denoiser(truth.x_t, t, cond, keep)
        reading = self.weighting.reading or estimate.kind
        error = estimate.reading(reading) - replace(truth, sigma_data=estimate.sigma_data).reading(reading)
        loss = error.square().flatten(1).mean(1)
        if not isinstance(self.weighting, Simple):
            loss = loss * self.weighting(process.schedule.log_snr(t)).to(loss)
        return Loss(loss, t)
