"""A table of noise levels, as a schedule: the T-step chains of DDPM and improved-diffusion on the one line of time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.schedules.base import Schedule, Time, as_time


@dataclass(frozen=True, eq=False)
class TableSchedule(Schedule):
    """A variance-preserving schedule known at t = i/T, i = 1 .. T; between the nodes its log-SNR is a monotone C1 spline.

    alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr). At the nodes the values are the table's own. Below t = 1/T
    the level is that of t = 1/T, so sigma(0) > 0: samplers end with `x = estimate.x0`, the last step of the T-step chain.
    The spline is the piecewise cubic Hermite one of Fritsch and Carlson (SIAM J. Numer. Anal. 17, 1980).
    """

    betas: tuple[float, ...]
    t_min: float = field(init=False, repr=False)
    _log_snr: Tensor = field(init=False, repr=False)
    _slope: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) < 2:
            raise ConfigurationError(f"got betas of shape {tuple(betas.shape)}, expected one axis of at least 2 steps")
        if not ((betas > 0) & (betas < 1)).all():
            i = int((~((betas > 0) & (betas < 1))).nonzero()[0])
            raise ConfigurationError(f"got beta_{i + 1} = {betas[i]:g}, expected 0 < beta < 1 at every step")
        log_alpha2 = torch.log1p(-betas).cumsum(0)
        log_snr = log_alpha2 - torch.log(-torch.expm1(log_alpha2))
        for name, value in (("betas", tuple(betas.tolist())), ("t_min", 1 / len(betas)), ("_log_snr", log_snr)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_slope", _monotone_slopes(log_snr) * len(betas))

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Tensor) -> "TableSchedule":
        """The chain q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i I), i = 1 .. T (paper 001 eq. 2)."""
        return cls(tuple(torch.as_tensor(betas, dtype=torch.float64).reshape(-1).tolist()))

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> "TableSchedule":
        """DDPM's betas, linear from `beta_start` to `beta_end`, scaled by 1000 / steps so that the end level stays."""
        _check_steps(steps)
        scale = 1000 / steps
        if scale * max(beta_start, beta_end) >= 1:
            least = math.floor(1000 * max(beta_start, beta_end)) + 1
            raise ConfigurationError(
                f"linear betas scaled by 1000/{steps} reach {scale * max(beta_start, beta_end):g}, expected below 1: "
                f"use at least {least} steps, or TableSchedule.cosine({steps})"
            )
        return cls.from_betas(torch.linspace(scale * beta_start, scale * beta_end, steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> "TableSchedule":
        """The cosine betas 1 - abar_i / abar_{i-1}, clipped to `max_beta`; abar is recomputed from the clipped betas.

        abar_i = [cos(((i/T + s) / (1 + s)) pi/2)]^2 up to its value at 0 (paper 001 eq. 46-48, with the clip it lacks).
        """
        _check_steps(steps)
        angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + s) / (1 + s) * math.pi / 2
        abar = torch.cos(angle) ** 2
        return cls.from_betas((1 - abar[1:] / abar[:-1]).clamp(max=max_beta))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableSchedule) and self.betas == other.betas

    def __hash__(self) -> int:  # cheap: levels are looked up by schedule and time in every step
        return hash((len(self.betas), self.betas[0], self.betas[-1]))

    @property
    def steps(self) -> int:
        """T, the number of steps of the chain."""
        return len(self.betas)

    def log_snr(self, t: Time) -> Tensor:
        """log(alpha^2 / sigma^2): the spline through the table's nodes."""
        place = (as_time(t) * self.steps - 1).clamp(0, self.steps - 1)
        left = place.detach().floor().clamp(max=self.steps - 2).long()
        u, h = place - left, 1 / self.steps
        y_0, y_1, d_0, d_1 = self._log_snr[left], self._log_snr[left + 1], self._slope[left], self._slope[left + 1]
        rise = y_1 - y_0
        inner = u * (1 - u) * ((1 - u) * (h * d_0 - rise) - u * (h * d_1 - rise))
        return y_0 + u * rise + inner

    def log_alpha(self, t: Time) -> Tensor:
        return 0.5 * torch.nn.functional.logsigmoid(self.log_snr(t))

    def log_sigma(self, t: Time) -> Tensor:
        return 0.5 * torch.nn.functional.logsigmoid(-self.log_snr(t))


def _check_steps(steps: int) -> None:
    if steps < 2:
        raise ConfigurationError(f"got a table of {steps} steps, expected at least 2")


def _monotone_slopes(y: Tensor) -> Tensor:
    """Slopes per unit of index that keep the cubic Hermite spline monotone: harmonic means, one-sided at the ends."""
    rise = y[1:] - y[:-1]
    inner = torch.where(rise[1:] * rise[:-1] > 0, 2 * rise[1:] * rise[:-1] / (rise[1:] + rise[:-1]), 0.0)
    if len(rise) == 1:
        return rise.repeat(2)
    return torch.cat([_end_slope(rise[0], rise[1]), inner, _end_slope(rise[-1], rise[-2])])


def _end_slope(near: Tensor, far: Tensor) -> Tensor:
    value = (3 * near - far) / 2
    value = torch.where(value * near <= 0, 0.0, value)
    return torch.where((near * far < 0) & (value.abs() > 3 * near.abs()), 3 * near, value).reshape(1)
