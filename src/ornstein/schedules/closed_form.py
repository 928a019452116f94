"""The schedules with closed forms: values, derivatives and inverses. Tests hold each against autograd and quadrature."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.schedules.base import Schedule, Time, as_time


class _BetaIntegral(Schedule):
    """What LinearVP and SubVP share: B(t), the integral of beta, and its inverse. alpha = exp(-B / 2)."""

    beta_min: float
    beta_max: float

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ConfigurationError(
                f"got beta_min={self.beta_min}, beta_max={self.beta_max}, expected 0 < beta_min <= beta_max"
            )

    def _integral(self, t: Time) -> Tensor:
        t = as_time(t)
        return t * (self.beta_min + (self.beta_max - self.beta_min) / 2 * t)

    def _time_of_integral(self, integral: Tensor) -> Tensor:
        rise = self.beta_max - self.beta_min
        t = 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * rise * integral).sqrt())
        return torch.nan_to_num(t, nan=1.0, posinf=1.0).clamp(0, 1)

    def log_alpha(self, t: Time) -> Tensor:
        return -self._integral(t) / 2

    def _f(self, t: Time) -> Tensor:
        return -(self.beta_min + (self.beta_max - self.beta_min) * as_time(t)) / 2


@dataclass(frozen=True)
class LinearVP(_BetaIntegral):
    """Variance preserving, beta(t) = beta_min + t (beta_max - beta_min): DDPM in continuous time (paper 000 eq. 107).

    alpha = exp(-B/2), sigma^2 = 1 - exp(-B), B(t) = beta_min t + (beta_max - beta_min) t^2 / 2.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_sigma(self, t: Time) -> Tensor:
        return 0.5 * torch.log(-torch.expm1(-self._integral(t)))

    def time_at(self, log_snr: Time) -> Tensor:
        return self._time_of_integral(torch.nn.functional.softplus(-as_time(log_snr), threshold=700.0))

    def _g2(self, t: Time) -> Tensor:
        return -2 * self._f(t)


@dataclass(frozen=True)
class SubVP(_BetaIntegral):
    """Sub-variance preserving (Song et al. 2021): alpha = exp(-B/2), sigma = 1 - exp(-B), B as in `LinearVP`."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_sigma(self, t: Time) -> Tensor:
        return torch.log(-torch.expm1(-self._integral(t)))

    def time_at(self, log_snr: Time) -> Tensor:
        return self._time_of_integral(2 * torch.asinh(torch.exp(-as_time(log_snr) / 2) / 2))

    def _g2(self, t: Time) -> Tensor:
        return 2 * self._f(t) * torch.expm1(-2 * self._integral(t))


@dataclass(frozen=True)
class CosineVP(Schedule):
    """Variance preserving, alpha(t) = cos(u) / cos(u_0), u = (t + s) / (1 + s) pi / 2 (paper 001 eq. 46; u_0 = u at t = 0).

    sigma^2 = sin(u - u_0) sin(u + u_0) / cos(u_0)^2, which does not cancel near t = 0. alpha(1) = 0: zero terminal SNR.
    """

    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 <= self.s < math.inf:
            raise ConfigurationError(f"got s={self.s}, expected s >= 0")

    @cached_property
    def _rate(self) -> float:
        return math.pi / (2 * (1 + self.s))

    def log_alpha(self, t: Time) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        return torch.log(torch.sin((1 - t) * self._rate)) - math.log(math.cos(self.s * self._rate))

    def log_sigma(self, t: Time) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        squared = torch.sin(t * self._rate) * torch.sin((t + 2 * self.s) * self._rate)
        return 0.5 * torch.log(squared) - math.log(math.cos(self.s * self._rate))

    def time_at(self, log_snr: Time) -> Tensor:
        log_snr, u_0 = as_time(log_snr), self.s * self._rate
        alpha2, sigma2 = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
        sin_u = (math.sin(u_0) ** 2 + math.cos(u_0) ** 2 * sigma2).sqrt()
        u = torch.atan2(sin_u, math.cos(u_0) * alpha2.sqrt())
        return ((u - u_0) / self._rate).clamp(0, 1)

    def slopes(self, t: Time) -> tuple[Tensor, Tensor]:
        u, u_0 = (as_time(t) + self.s) * self._rate, self.s * self._rate
        alpha_slope = -self._rate * torch.sin(u) / math.cos(u_0)
        return alpha_slope, self._finite("sigma'", t, -self.alpha(t) * alpha_slope / self.sigma(t))

    def _f(self, t: Time) -> Tensor:
        return -self._rate / torch.tan((1 - as_time(t)) * self._rate)

    def _g2(self, t: Time) -> Tensor:
        return -2 * self._f(t)


@dataclass(frozen=True)
class GeometricVE(Schedule):
    """Variance exploding, alpha = 1, sigma(t) = sigma_min (sigma_max / sigma_min)^t (paper 004, NCSN)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    def log_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def log_sigma(self, t: Time) -> Tensor:
        return math.log(self.sigma_min) + as_time(t) * math.log(self.sigma_max / self.sigma_min)

    def time_at(self, log_snr: Time) -> Tensor:
        t = (-as_time(log_snr) / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)
        return t.clamp(0, 1)

    def _f(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def _g2(self, t: Time) -> Tensor:
        return 2 * math.log(self.sigma_max / self.sigma_min) * self.sigma(t) ** 2


@dataclass(frozen=True)
class EDM(Schedule):
    """Karras et al. 2022: alpha = 1, sigma(t)^(1/rho) linear in t from sigma_min to sigma_max."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        if not 0 < self.rho < math.inf:
            raise ConfigurationError(f"got rho={self.rho}, expected rho > 0")

    def _root(self, t: Time) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low + as_time(t) * (high - low)

    def log_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def log_sigma(self, t: Time) -> Tensor:
        return self.rho * torch.log(self._root(t))

    def time_at(self, log_snr: Time) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((torch.exp(-as_time(log_snr) / (2 * self.rho)) - low) / (high - low)).clamp(0, 1)

    def _f(self, t: Time) -> Tensor:
        return torch.zeros_like(as_time(t))

    def _g2(self, t: Time) -> Tensor:
        rise = self.sigma_max ** (1 / self.rho) - self.sigma_min ** (1 / self.rho)
        return 2 * self.rho * rise / self._root(t) * self.sigma(t) ** 2


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """alpha = 1 - t, sigma = t: straight lines from data to noise (rectified flow, flow matching). velocity = eps - x_0."""

    def log_alpha(self, t: Time) -> Tensor:
        return torch.log1p(-as_time(t))

    def log_sigma(self, t: Time) -> Tensor:
        return torch.log(as_time(t))

    def time_at(self, log_snr: Time) -> Tensor:
        return torch.sigmoid(-as_time(log_snr) / 2)

    def slopes(self, t: Time) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(as_time(t)), torch.ones_like(as_time(t))

    def _f(self, t: Time) -> Tensor:
        return -1 / (1 - as_time(t))

    def _g2(self, t: Time) -> Tensor:
        return 2 * as_time(t) / (1 - as_time(t))


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ConfigurationError(
            f"got sigma_min={sigma_min}, sigma_max={sigma_max}, expected 0 < sigma_min < sigma_max"
        )
