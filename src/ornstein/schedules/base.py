"""Schedules: laws of time `x_t = alpha(t) x_0 + sigma(t) eps`, with t = 0 at the data and t = 1 at the noise.

A schedule is known by `log_alpha` and `log_sigma`, computed in float64 so that nothing cancels near the ends; the rest
follows from them (paper 004 eq. 24):

    log_snr = 2 (log_alpha - log_sigma)                  falls strictly
    f       = d log_alpha / dt                           drift of dx = f x dt + g dw
    g^2     = -sigma^2 d log_snr / dt                    = 2 (sigma sigma' - f sigma^2)
    beta    = -2 f                                       = -d log alpha^2 / dt

Times are floats or tensors in [0, 1]; values are float64 tensors of the shape of t. A schedule with a closed form
overrides the autograd derivatives of the base class; tests hold the one against the other.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.errors import NumericalError

Time = float | Tensor


class Level(NamedTuple):
    """The noise level at a time: floats for a float time, else float64 tensors."""

    alpha: float | Tensor
    sigma: float | Tensor
    log_snr: float | Tensor


EDGE = 2.0**-24
"""How near to t = 0 and t = 1 times that are drawn may come."""


def as_time(t: Time) -> Tensor:
    """A time, or anything like it, as a float64 tensor."""
    return torch.as_tensor(t, dtype=torch.float64)


def bisected(function: Callable[[Tensor], Tensor], target: Tensor, low: float = 0.0) -> Tensor:
    """The times in [low, 1] at which a falling function has these values, elementwise, by bisection: the upper ends."""
    below, above = torch.full_like(target, low), torch.ones_like(target)
    for _ in range(60):
        middle = (below + above) / 2
        high = function(middle) > target
        below, above = torch.where(high, middle, below), torch.where(high, above, middle)
    return above


def slope(function: Callable[[Tensor], Tensor], t: Time) -> Tensor:
    """d function / dt by autograd, elementwise in t."""
    with torch.enable_grad():
        t = as_time(t).detach().clone().requires_grad_()
        value = function(t)
        if not value.requires_grad:
            return torch.zeros_like(t)
        return torch.autograd.grad(value.sum(), t)[0]


@lru_cache(maxsize=8192)
def float_level(schedule: "Schedule", t: float) -> Level:
    """The level at a float time, as floats: computed once per schedule and time."""
    log_alpha, log_sigma = float(schedule.log_alpha(t)), float(schedule.log_sigma(t))
    return Level(math.exp(log_alpha), math.exp(log_sigma), 2 * (log_alpha - log_sigma))


class Schedule:
    """Base of all schedules. A subclass gives `log_alpha(t)` and `log_sigma(t)`; it must be hashable and immutable."""

    t_min: float = 0.0
    """The first time of the schedule: 0, or 1/T for a table, whose level is constant below its first node."""

    def log_alpha(self, t: Time) -> Tensor:
        """log alpha(t); -inf where alpha(t) = 0."""
        raise NotImplementedError

    def log_sigma(self, t: Time) -> Tensor:
        """log sigma(t); -inf where sigma(t) = 0."""
        raise NotImplementedError

    def alpha(self, t: Time) -> Tensor:
        """alpha(t), the factor of the data."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        """sigma(t), the standard deviation of the noise."""
        return self.log_sigma(t).exp()

    def log_snr(self, t: Time) -> Tensor:
        """log(alpha^2 / sigma^2), which falls from (up to) +inf at the data to (down to) -inf at the noise."""
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    def time_at(self, log_snr: Time) -> Tensor:
        """The inverse of `log_snr`, clamped to [t_min, 1]: by bisection in float64 where a closed form is wanting."""
        target = as_time(log_snr)
        high = bisected(self.log_snr, target, self.t_min)
        high = torch.where(self.log_snr(torch.ones_like(target)) >= target, 1.0, high)
        return torch.where(self.log_snr(torch.full_like(target, self.t_min)) <= target, self.t_min, high)

    def cut(self, sigma_min: float, sigma_max: float) -> tuple[float, float]:
        """(largest, least) log-SNR where sigma / alpha is between these levels, cut to the schedule's own range."""
        most, least = self.log_snr(torch.tensor([self.t_min, 1.0], dtype=torch.float64)).tolist()
        return min(most, -2 * math.log(sigma_min)), max(least, -2 * math.log(sigma_max))

    def f(self, t: Time) -> Tensor:
        """The drift coefficient d log_alpha / dt, in 1 / time. Raises `NumericalError` where it is infinite."""
        return self._finite("f", t, self._f(t))

    def g(self, t: Time) -> Tensor:
        """The diffusion coefficient sqrt(-sigma^2 d log_snr / dt). Raises `NumericalError` where it is infinite."""
        return self._finite("g", t, self._g2(t).sqrt())

    def beta(self, t: Time) -> Tensor:
        """-2 f(t) = -d log alpha^2 / dt, the rate of a variance-preserving chain (T beta_i of DDPM's table)."""
        return self._finite("beta", t, -2 * self._f(t))

    def slopes(self, t: Time) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt). Raises `NumericalError` where one is infinite."""
        alpha, sigma, f = self.alpha(t), self.sigma(t), self._f(t)
        return self._finite("alpha'", t, alpha * f), self._finite("sigma'", t, self._g2(t) / (2 * sigma) + f * sigma)

    def _f(self, t: Time) -> Tensor:
        return slope(self.log_alpha, t)

    def _g2(self, t: Time) -> Tensor:
        return -(self.sigma(t) ** 2) * slope(self.log_snr, t)

    def _finite(self, name: str, t: Time, value: Tensor) -> Tensor:
        if not torch.isfinite(value).all():
            where = as_time(t)[~torch.isfinite(value)].reshape(-1)[0].item()
            raise NumericalError(
                f"{name} of {type(self).__name__} is infinite at t = {where:g}; stop short of that end"
            )
        return value
