"""Weightings of the squared error: those of training for looks, and those that make it a bound of the log-likelihood.

    LikelihoodWeighting   lambda(t) = g^2 on the score, 1/2 per unit of log-SNR on eps   (Song, Durkan et al. 2021)
    ELBOWeighting         the weight of the step's KL, paper 001 eq. 40 corrected

Both are weights in nats, to be divided by the law of the times, so that any law gives an unbiased estimate of the same bound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.objectives.squared import TimeLaw, WeightingLaw
from ornstein.objectives.times import index_of, steps_of, without_density
from ornstein.processes.gaussian import READINGS, Gaussian
from ornstein.variational import floor, kl_weight


@dataclass(frozen=True)
class Weighting(WeightingLaw):
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
class EDMWeighting(WeightingLaw):
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
class MinSNR(WeightingLaw):
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
class LikelihoodWeighting(WeightingLaw):
    """The continuous-time bound: weight 1 / (2 p(log_snr)) on the error of eps, p the density of the time law in log-SNR.

    With t uniform that is g^2 / (2 sigma^2) on eps and g^2 / 2 on the score, the lambda = g^2 of Song, Durkan et al. 2021. With
    the weight the loss estimates (1 / 2D) integral E ||eps_hat - eps||^2 d log_snr over the range of the law, nats per component.
    """

    reading = "eps"

    def at(self, process: Gaussian, t: Tensor, times: TimeLaw) -> Tensor:
        """The weights at times t (b,) drawn by `times`. Raises `ConfigurationError` for a law without a density."""
        return 0.5 / times.density(process, t)

    def check(self, times: TimeLaw) -> None:
        """Raise `ConfigurationError` for the law of a chain."""
        if getattr(times, "steps", None) is not None:
            raise without_density(times)


@dataclass(frozen=True)
class ELBOWeighting(WeightingLaw):
    """The bound of the chain t = 1/T, 2/T .. 1 at a fixed variance: weight T w_i, with KL_i = w_i ||r_hat - r||^2 + constant.

    w_i is that of paper 001 eq. 40 corrected, b^2 / (2 s^2 alpha (1 - ab)) for eps; the first step's is that of the decoder
    N(x_0_hat, s_1^2). `fixed` in [0, 1] places the log-variance between beta-tilde (0) and beta (1), as in `VLB`; the loss is
    then that of `VLB`, nats per component, less what does not depend on the network, where sigma(0) = 0 and data have no bins.
    """

    reading: str = "eps"
    fixed: float = 0.0

    def __post_init__(self) -> None:
        if self.reading not in ("eps", "x0", "score", "v"):
            raise ConfigurationError(f"got reading '{self.reading}', expected one of eps, x0, score, v")
        if not 0 <= self.fixed <= 1:
            raise ConfigurationError(f"got fixed={self.fixed}, expected 0 (beta-tilde) to 1 (beta)")

    def at(self, process: Gaussian, t: Tensor, times: TimeLaw) -> Tensor:
        """The weights at times t = i/T (b,). Raises `ConfigurationError` for a law of continuous time."""
        steps = steps_of(times, least=2)
        index = index_of(t, steps)
        weights = torch.full_like(t, self._first(process, 1 / steps, 2 / steps), dtype=torch.float64)
        later = index > 1
        t, s = index[later] / steps, (index[later] - 1) / steps
        weights[later] = kl_weight(process, t, s, self.reading, self.fixed)
        if not torch.isfinite(weights).all():
            raise ConfigurationError(
                f"got {self!r} under {process.schedule!r}, at whose end x_t does not tell {self.reading} from x_0; "
                "expected reading 'x0' or 'v'"
            )
        return steps * weights

    def check(self, times: TimeLaw) -> None:
        """Raise `ConfigurationError` for a law of continuous time."""
        steps_of(times, least=2)

    def _first(self, process: Gaussian, t_1: float, t_2: float) -> float:
        """The weight of the decoder N(x_0_hat, s_1^2) on x_0, 1 / (2 s_1^2), times (d x_0 / d r)^2 at x_t."""
        sigma = float(process.level(t_1).sigma)
        std = sigma**self.fixed * floor(process, t_1, t_2) ** (1 - self.fixed)
        # The weights of two readings at one t differ by (d x_0 / d r)^2, whatever the other time.
        ours, of_x0 = (kl_weight(process, t_1, t_2, reading) for reading in (self.reading, "x0"))
        return float(ours / of_x0) / (2 * std**2)
