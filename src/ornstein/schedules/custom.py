"""Schedules of the user: from (alpha, sigma), or from the coefficients (f, g) of a linear stochastic equation."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.schedules.base import Schedule, Time, as_time, slope

Law = Callable[[Tensor], Tensor]
CHECKED = 1001


@dataclass(frozen=True)
class FromAlphaSigma(Schedule):
    """The schedule of any `alpha(t)` and `sigma(t)`, given as differentiable torch functions of a float64 tensor.

    f, g and beta follow by autograd (paper 004 eq. 24), the inverse by bisection. Raises `ConfigurationError` where
    alpha or sigma is negative or the signal-to-noise ratio does not fall.
    """

    alpha_law: Law
    sigma_law: Law

    def __post_init__(self) -> None:
        check_falling(self)

    def alpha(self, t: Time) -> Tensor:
        return _value(self.alpha_law, as_time(t))

    def sigma(self, t: Time) -> Tensor:
        return _value(self.sigma_law, as_time(t))

    def log_alpha(self, t: Time) -> Tensor:
        return torch.log(self.alpha(t))

    def log_sigma(self, t: Time) -> Tensor:
        return torch.log(self.sigma(t))

    def slopes(self, t: Time) -> tuple[Tensor, Tensor]:
        alpha_slope, sigma_slope = slope(self.alpha, t), slope(self.sigma, t)
        return self._finite("alpha'", t, alpha_slope), self._finite("sigma'", t, sigma_slope)

    def _g2(self, t: Time) -> Tensor:  # from the values, not their logarithms: it stays finite where sigma is 0
        return 2 * self.sigma(t) * (slope(self.sigma, t) - self._f(t) * self.sigma(t))


@dataclass(frozen=True)
class FromSDE(Schedule):
    """The schedule of dx = f(t) x dt + g(t) dw from x(0) = x_0, by quadrature (paper 004 eq. 25, paper 000 eq. 149 corrected):

        alpha = exp(F),  F(t) = int_0^t f,       sigma^2 = alpha^2 int_0^t g(r)^2 exp(-2 F(r)) dr.

    `f_law` and `g_law` are functions of a float64 tensor, finite and smooth on [0, 1]. Both integrals are summed by
    Gauss-Legendre rules of 12 points on 256 intervals, the last one ending at t itself.
    """

    f_law: Law
    g_law: Law
    intervals: int = 256
    _sums: tuple[Tensor, Tensor] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        edges = torch.linspace(0, 1, self.intervals + 1, dtype=torch.float64)
        drift = torch.cat([edges.new_zeros(1), _gauss(self._drift, edges[:-1], edges[1:]).cumsum(0)])
        object.__setattr__(self, "_sums", (drift, torch.zeros_like(drift)))
        noise = torch.cat([edges.new_zeros(1), _gauss(self._noise, edges[:-1], edges[1:]).cumsum(0)])
        object.__setattr__(self, "_sums", (drift, noise))
        check_falling(self)

    def log_alpha(self, t: Time) -> Tensor:
        return self._from_node(0, self._drift, as_time(t))

    def log_sigma(self, t: Time) -> Tensor:
        return 0.5 * torch.log(self._from_node(1, self._noise, as_time(t))) + self.log_alpha(t)

    def _from_node(self, which: int, integrand: Law, t: Tensor) -> Tensor:
        node = (t.detach() * self.intervals).floor().clamp(0, self.intervals - 1).long()
        return self._sums[which][node] + _gauss(integrand, node.double() / self.intervals, t)

    def _drift(self, t: Tensor) -> Tensor:
        return _value(self.f_law, t)

    def _noise(self, t: Tensor) -> Tensor:
        return _value(self.g_law, t) ** 2 * torch.exp(-2 * self.log_alpha(t))

    def _f(self, t: Time) -> Tensor:
        return self._drift(as_time(t))

    def _g2(self, t: Time) -> Tensor:
        return _value(self.g_law, as_time(t)) ** 2


NODES, WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(12))


def _value(law: Law, t: Tensor) -> Tensor:
    """A user's law at t, of its shape also where the law is constant."""
    return torch.as_tensor(law(t), dtype=torch.float64).expand(t.shape)


def _gauss(integrand: Law, left: Tensor, right: Tensor) -> Tensor:
    """int_left^right of the integrand, elementwise, by the 12-point Gauss-Legendre rule."""
    half = (right - left)[..., None] / 2
    return (integrand(left[..., None] + half * (1 + NODES)) * WEIGHTS).sum(-1) * half[..., 0]


def check_falling(schedule: Schedule) -> None:
    """Refuse a schedule whose signal-to-noise ratio does not fall strictly, on 1001 times between t_min and 1."""
    t = torch.linspace(schedule.t_min, 1, CHECKED, dtype=torch.float64)
    with torch.no_grad():
        log_snr = schedule.log_snr(t)
    bad = ~(log_snr[1:] < log_snr[:-1])
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ConfigurationError(
            f"the signal-to-noise ratio must fall: got log-SNR {log_snr[i]:.6g} at t = {t[i]:.4g} and "
            f"{log_snr[i + 1]:.6g} at t = {t[i + 1]:.4g}; expected alpha >= 0, sigma >= 0 and alpha/sigma strictly falling"
        )
