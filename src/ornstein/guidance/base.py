"""What every guidance has: a scale, and the noise levels at which it acts."""

import math

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike, Wrapper
from ornstein.errors import ConfigurationError
from ornstein.processes.normal import Number
from ornstein.schedules.base import Time, as_time


class Guidance(Wrapper):
    """A denoiser guided with a scale, within an interval of sigma / alpha outside of which nothing is guided."""

    plain = 1.0
    """The scale that guides nothing."""

    def __init__(self, denoiser: DenoiserLike, scale: float, interval: tuple[float, float] | None) -> None:
        super().__init__(denoiser)
        if not math.isfinite(scale):
            raise ConfigurationError(f"got scale={scale}, expected a finite number; {self.plain:g} guides nothing")
        if interval is not None and not 0 <= interval[0] < interval[1]:
            raise ConfigurationError(
                f"got interval={interval}, expected two levels 0 <= low < high of sigma / alpha, such as (0.2, 3.0)"
            )
        self.scale, self.interval = scale, interval

    def weight(self, t: Time) -> Number:
        """The scale at time t: a float, or float64 numbers (b,) for times (b,)."""
        if self.interval is None:
            return self.scale
        log_ratio = -as_time(self.process.level(t).log_snr) / 2
        low, high = (math.log(end) if end else -math.inf for end in self.interval)
        inside = (log_ratio >= low) & (log_ratio <= high)
        weights = torch.where(inside, self.scale, self.plain)
        return weights.double() if isinstance(t, Tensor) and t.ndim else float(weights)
