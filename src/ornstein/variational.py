"""The terms of the variational bound of a chain 0 < t_1 < ... < t_T (paper 002 eq. 23, paper 001 end of 2.3 as corrected):

    log p(x_0) >=   - KL(q(x_T | x_0) || p(x_T))                                     prior, -L_T
                    - sum_{i=2}^T E KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i))    diffusion, -L_{i-1}
                    + E log p(x_0 | x_1)                                             reconstruction, -L_0

p(x_s | x_t) is q(x_s | x_t, x_0) with the estimate in place of x_0, and with a standard deviation between two bounds,

    log std = f log sqrt(beta) + (1 - f) log sqrt(beta~),   beta = Var(x_t | x_s),   beta~ = Var(x_s | x_t, x_0),

at f = `estimate.fraction` where the variance is learned (paper 001 eq. 44), else at a fixed f. beta is right for data
N(0, I), beta~ for a point. At the last step, to the data, beta~ is 0; the beta~ of the step before stands in for it.

Noise is of covariance Sigma, that of the base (I where there is none). Nats are float64, from x in any type.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.processes.gaussian import Estimate, Gaussian, spread
from ornstein.processes.normal import GaussianLaw
from ornstein.schedules.base import Level, Time, as_time

WEIGHED = ("x0", "eps", "score", "v")
_NARROWEST = -1e-300


@dataclass(frozen=True)
class Bins:
    """The intervals that quantised values stand for, in model units: level k owns [lowest + (k - 1/2) width, lowest +
    (k + 1/2) width], but the first and the last reach to infinity (Ho et al. 2020, eq. 13; paper 001, L_0).

    lowest, width: the value of level 0 and the step between levels; one number, or one for each entry of axis 1.
    """

    levels: int
    lowest: tuple[float, ...]
    width: tuple[float, ...]

    @property
    def resolution(self) -> float:
        """Half the width of a bin: at a noise level below it rounding knows what a network has to learn digit by digit."""
        return min(self.width) / 2

    @classmethod
    def of(cls, scaling: Any) -> "Bins | None":
        """The bins of data under a `Scaling`; None where that is None or has no levels."""
        if scaling is None or scaling.levels is None:
            return None
        lowest = tuple(-shift * scale for shift, scale in zip(scaling.shift, scaling.scale, strict=True))
        return cls(scaling.levels, lowest, scaling.scale)

    def log_prob(self, law: GaussianLaw, x: Tensor) -> Tensor:
        """log of the mass that `law` has on the bins of x (b, *d), in nats, (b,); values of x go to the nearest level.

        With z the distance of the bin's centre from the mean and h half its width, in standard deviations, an inner bin
        has Phi(h - |z|) - Phi(-h - |z|), in the tail where Phi is accurate.

        Under a base with correlations the components have the variances of its diagonal and are taken as independent: a decoder
        may be any law, so a bound stays one.
        """
        mean, std = in_float64(law.mean), in_float64(law.std) if isinstance(law.std, Tensor) else law.std
        if law.base is not None:
            std = std * law.base.variances(mean).sqrt()
        lowest, width = self._beside(mean, self.lowest), self._beside(mean, self.width)
        level = ((in_float64(x) - lowest) / width).round().clamp(0, self.levels - 1)
        z, h = (lowest + level * width - mean) / std, width / (2 * std)
        near, far = torch.special.log_ndtr(h - z.abs()), torch.special.log_ndtr(-h - z.abs())
        inner = near + torch.log(-torch.expm1((far - near).clamp(max=_NARROWEST)))
        outer = torch.special.log_ndtr(h + torch.where(level == 0, z, -z))
        at_an_end = (level == 0) | (level == self.levels - 1)
        return torch.where(at_an_end, outer, inner).flatten(1).sum(1)

    def within(self, x: Tensor, u: Tensor) -> Tensor:
        """The places u in (0, 1) of the bins whose middles are x, both (b, *d)."""
        return x + (u - 0.5) * self._beside(x, self.width)

    def _beside(self, x: Tensor, values: tuple[float, ...]) -> Tensor:
        return x.new_tensor(values).reshape(1, -1, *(1,) * (x.ndim - 2))


def resolution(process: Gaussian, bins: Bins | None) -> float:
    """The level sigma / alpha at which noise is half a bin wide, 0 without bins; under a base, by its root mean square std."""
    return 0.0 if bins is None else bins.resolution / (1.0 if process.base is None else process.base.scale)


def in_float64(x: Tensor) -> Tensor:
    """x in float64, where its device has that (MPS has not)."""
    return x if x.device.type == "mps" else x.double()


def chain(process: Gaussian, steps: int, sigma: float = 0.0) -> Tensor:
    """The times t_1 < ... < t_T = 1 of a chain of `steps` steps, float64, the data not among them.

    t_i = i / T where sigma(0) = 0; else t_1 is the schedule's first time. They are those of `grids.uniform`. With
    `sigma` they are equally spaced from the time of that level sigma / alpha, where it is above the first one's.
    """
    if steps < 1:
        raise ConfigurationError(f"got steps={steps}, expected at least 1")
    first = process.t_min
    if sigma > 0 and steps > 1:
        begin = float(process.schedule.time_at(-2 * math.log(sigma)))
        if begin > (1 / steps if process.is_data(first) else first):
            return torch.linspace(begin, 1, steps, dtype=torch.float64)
    on_data = process.is_data(first)
    return torch.linspace(1, first, steps + on_data, dtype=torch.float64)[:steps].flip(0)


def floor(process: Gaussian, t_1: float, t_2: float) -> float:
    """The std of q(x_{t_1} | x_{t_2}, x_0), sqrt(beta~_2), which stands in for beta~_1 = 0 (paper 001 eq. 44 mended)."""
    fresh = -math.expm1(float(process.level(t_2).log_snr) - float(process.level(t_1).log_snr))
    return float(process.level(t_1).sigma) * math.sqrt(fresh)


def marginal(process: Gaussian, x0: Tensor, t: Time) -> GaussianLaw:
    """q(x_t | x_0) = N(mu + alpha (x_0 - mu), sigma^2 Sigma), in float64 (paper 001 eq. 31)."""
    x0 = in_float64(x0)
    mu = process.centre(x0)
    alpha, sigma = (spread(c, x0) for c in process.level(t)[:2])
    return GaussianLaw(mu + alpha * (x0 - mu), sigma, process.base)


def reverse_law(estimate: Estimate, t: Time, s: Time, fixed: float = 1.0) -> GaussianLaw:
    """p(x_s | x_t), in float64, for s < t with sigma(s) > 0; times are floats or (b,).

    The std lies between the bounds at `estimate.fraction` where that is set, else at `fixed`: 0 is beta~, 1 is beta.
    """
    return estimate.process.posterior(_precise(estimate, fixed), t, s)


def transition_kl(estimate: Estimate, x0: Tensor, t: Time, s: Time, fixed: float = 1.0) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)), L_{t-1}, in nats, (b,) (paper 001 eq. 39; not the KL the other way round).

    x_t and the model's view of it are in the estimate; x0 (b, *d) is the truth. Differentiable in the estimate.
    """
    process, x_t = estimate.process, in_float64(estimate.x_t)
    truth = process.estimate(x_t, t, x0=in_float64(x0))
    return process.posterior(truth, t, s).kl(reverse_law(estimate, t, s, fixed))


def kl_rate(estimate: Estimate, x0: Tensor, t: Time) -> Tensor:
    """1/2 ||eps_hat - eps||^2 in the norm of Sigma^-1, (b,): what `transition_kl` comes to per unit of log-SNR as s -> t.

    No variance plays a part in it (Kingma et al. 2021, Variational Diffusion Models, eq. 17).
    """
    process = estimate.process
    truth = process.estimate(in_float64(estimate.x_t), t, x0=in_float64(x0))
    error = _precise(estimate).eps - truth.eps
    return 0.5 * _squared_norm(process, error)


def reconstruction(
    estimate: Estimate, x0: Tensor, t: Time, least: float, bins: Bins | None = None, fixed: float = 1.0
) -> Tensor:
    """log p(x_0 | x_t), -L_0, in nats, (b,): of the law N(x_0_hat, std^2 Sigma).

    std lies between `least` (see `floor`) and sigma(t), the beta of the step to the data, at the fraction of
    `reverse_law`. With `bins` it is the log-probability of the level, without them the log-density.
    """
    held = _precise(estimate, fixed)
    most = torch.as_tensor(spread(estimate.process.level(t).sigma, held.x_t), dtype=held.x_t.dtype)
    assert held.fraction is not None
    std = torch.exp(held.fraction * most.log() + (1 - held.fraction) * math.log(least))
    law = GaussianLaw(held.x0, std, estimate.process.base)
    return law.log_prob(in_float64(x0)) if bins is None else bins.log_prob(law, x0)


def prior_kl(process: Gaussian, x0: Tensor, t: Time = 1.0) -> Tensor:
    """KL(q(x_t | x_0) || N(mu, sigma^2 Sigma)) = alpha^2 / (2 sigma^2) ||x_0 - mu||^2 in Sigma^-1, L_T, in nats, (b,)."""
    x0 = in_float64(x0)
    centred = x0 if process.base is None else x0 - process.base.centre(x0)
    snr = torch.exp(as_time(process.level(t).log_snr)).to(x0)
    return 0.5 * snr * _squared_norm(process, centred)


def kl_weight(process: Gaussian, t: Time, s: Time, reading: str, fixed: float = 0.0) -> Tensor:
    """w with KL(q(x_s | x_t, x_0) || p(x_s | x_t)) = w ||r_hat - r||^2 + a constant, for r in x0, eps, score, v.

        x0: (SNR_s - SNR_t) / 2 * (sigma_s / sigma_t)^(2 fixed)      (paper 002 eq. 28, at fixed = 0)

    and for the others that of the error of x_0 they make; for eps b^2 / (2 s^2 a (1 - abar)) (paper 001 eq. 40 mended).
    The norm is that of Sigma^-1, of Sigma for the score; the constant is 0 at fixed = 0. Float64, of the shape of t; infinite
    for eps and score where alpha(t) = 0, which say nothing of x_0 there.
    """
    if reading not in WEIGHED:
        raise ConfigurationError(f"got reading '{reading}', expected one of {', '.join(WEIGHED)}")
    now, then = (Level(*map(as_time, process.level(time))) for time in (t, s))
    alpha, sigma = as_time(now.alpha), as_time(now.sigma)
    fall = -torch.exp(as_time(then.log_snr)) * torch.expm1(as_time(now.log_snr - then.log_snr))
    error_of_x0 = {
        "x0": torch.ones_like(sigma),
        "eps": sigma / alpha,
        "score": sigma**2 / alpha,
        "v": sigma / (alpha**2 + sigma**2),
    }[reading]
    return fall / 2 * (then.sigma / sigma) ** (2 * fixed) * error_of_x0**2


def _precise(estimate: Estimate, fixed: float = 1.0) -> Estimate:
    """The estimate in float64, with a fraction in any case: its own, or `fixed` as one number."""
    x_t, value = in_float64(estimate.x_t), in_float64(estimate.value)
    fraction = x_t.new_tensor(fixed) if estimate.fraction is None else in_float64(estimate.fraction)
    return replace(estimate, x_t=x_t, value=value, fraction=fraction)


def _squared_norm(process: Gaussian, x: Tensor) -> Tensor:
    """||x||^2 in the norm of Sigma^-1, (b,)."""
    white = x if process.base is None else process.base.whiten(x)
    return white.square().flatten(1).sum(1)
