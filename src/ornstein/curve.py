"""The one curve from data to noise: the probability-flow ODE (paper 002 eq. 52) of every schedule in an angle.

With s = sigma / alpha and y = mu + (x_t - mu) / alpha, x_0 at level s, every schedule has dy/ds = eps. In

    tan(theta) = s / sigma_d,    z = (x_t - mu) / N = (y - mu) cos(theta) / sigma_d,    N^2 = alpha^2 sigma_d^2 + sigma^2

it becomes

    dz/dtheta = cos(theta) eps - sin(theta) (x_0 - mu) / sigma_d = -F,

F being the reading that EDM's networks predict, of size 1 at every noise level: theta runs from near 0 at the data to at most
pi/2 at the noise, and nothing is infinite on the way, neither where sigma = 0 nor where alpha = 0. The density of z obeys

    d log p(z) / dtheta = -div(dz/dtheta),

and with theta_0, theta_1 and N_1 those of the ends, x of D components

    log p(x) = log p_1(x_1) + D log(N_1 cos(theta_0) / sigma_d) + int_theta_0^theta_1 div(dz/dtheta) dtheta.

Under a base N(mu, L L^T) z is L^-1 of that: of size 1 in every direction, so that tolerances mean the same in all of them.
log p is as above: the two changes of units by L cancel.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.conditions import Condition, rows_of
from ornstein.denoisers import DenoiserLike, innermost
from ornstein.errors import ConfigurationError
from ornstein.processes.gaussian import Gaussian

NEAREST = 1e-4
"""Of sigma_d: the level taken for 0, below those that networks are trained at (EDM's least is 4e-3 of it)."""
WITHIN = 3.0
"""Times theta_0: the field changes with log(theta) there, so that a first step far beyond it would see nothing of it."""


@dataclass(frozen=True)
class Curve:
    """The curve of a denoiser under a condition, for a batch whose rows it has: process and cond are those of the batch.

    sigma: the level at which the data end is, 0 where it is taken for 0. first, last: the angles theta at the two ends.
    """

    denoiser: DenoiserLike
    process: Gaussian
    cond: Condition | None
    sigma_data: float
    sigma: float
    first: float
    last: float

    @classmethod
    def of(cls, denoiser: DenoiserLike, cond: Condition | None = None, sigma: float = 0.0) -> "Curve":
        """The curve from the schedule's first level, or `sigma` where that is higher (NEAREST for 0), to its last."""
        process, sigma_data = denoiser.process.given(cond), float(innermost(denoiser, "sigma_data") or 1)
        low, high = (_ratio(process, t) for t in (process.schedule.t_min, 1.0))
        low = max(low, sigma)
        first, last = (math.atan(s / sigma_data) for s in (max(low, NEAREST * sigma_data), high))
        return cls(denoiser, process, cond, sigma_data, low, first, last)

    def slope(self, theta: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """dz/dtheta at theta (r,) and z (r, *d), which are those of the numbers `rows` (r,) of the batch, by one call."""
        t = self._time(theta.clamp(self.first, self.last))
        process = self.process.rows(rows)
        alpha, sigma, _ = process.level(t, z)
        x = coloured(process, ((alpha * self.sigma_data) ** 2 + sigma**2) ** 0.5 * z)
        estimate = self.denoiser(x, t, rows_of(self.cond, rows))
        if z.requires_grad and not estimate.value.requires_grad:
            raise ConfigurationError(
                "got a denoiser whose estimate autograd cannot follow to its input, expected one without no_grad, detach "
                "or numpy: the divergence of its field is needed"
            )
        slope = -estimate.like("edm", self.sigma_data).value
        return slope if process.base is None else process.base.whiten(slope)

    def angle(self, t: float) -> float:
        """theta at time t, the first angle where it would be below that."""
        return max(math.atan(_ratio(self.process, t) / self.sigma_data), self.first)

    def time(self, theta: float) -> float:
        """t at the angle theta."""
        return float(self._time(torch.tensor(theta, dtype=torch.float64)))

    def at(self, x: Tensor, t: float) -> Tensor:
        """z of x_t (b, *d)."""
        return white(self.process, x) / self._norm(t)

    def to(self, z: Tensor, t: float) -> Tensor:
        """x_t of z."""
        return coloured(self.process, z * self._norm(t))

    def at_data(self, x: Tensor) -> Tensor:
        """z of x (b, *d) at the data end."""
        return white(self.process, x) * (math.cos(self.first) / self.sigma_data)

    def to_data(self, z: Tensor) -> Tensor:
        """x of z at the data end."""
        return coloured(self.process, z * (self.sigma_data / math.cos(self.first)))

    @property
    def first_step(self) -> float:
        """The most that a first step from the data may be."""
        return WITHIN * self.first

    @property
    def log_stretch(self) -> float:
        """log |dx_1 / dx| of the change of units alone, for one component: log(N_1 cos(theta_0) / sigma_d)."""
        return math.log(self._norm(1.0) * math.cos(self.first) / self.sigma_data)

    def _time(self, theta: Tensor) -> Tensor:
        return self.process.schedule.time_at(-2 * torch.log(self.sigma_data * torch.tan(theta)))

    def _norm(self, t: float) -> float:
        alpha, sigma, _ = self.process.level(t)
        return math.hypot(alpha * self.sigma_data, sigma)


def white(process: Gaussian, x: Tensor) -> Tensor:
    """L^-1 (x - mu)."""
    return x if process.base is None else process.base.whiten(x - process.base.centre(x))


def coloured(process: Gaussian, z: Tensor) -> Tensor:
    """mu + L z."""
    return z if process.base is None else process.base.centre(z) + process.base.colour(z)


def _ratio(process: Gaussian, t: float) -> float:
    """sigma / alpha."""
    log_snr = process.level(t).log_snr
    return math.inf if log_snr == -math.inf else math.exp(-log_snr / 2)
