"""The Gaussian process x_t = mu + alpha(t) (x_0 - mu) + sigma(t) eps, eps ~ N(0, Sigma): its noise, readings and laws.

The base N(mu, Sigma) is N(0, I) unless given (paper 001 eq. 49). All is linear in x_t - mu and one reading, so each
reading r = p (x_0 - mu) + q eps is known by its pair (p, q), and any two readings determine each other given x_t:

    x0: (1, 0)   eps: (0, 1)   v: (-sigma, alpha)   velocity: (alpha', sigma')
    edm: (sigma / (sigma_d N), -alpha sigma_d / N),   N^2 = sigma^2 + alpha^2 sigma_d^2     (paper 000 eq. 203-212)
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.noise import Noise
from ornstein.processes.conditional import ConditionalNormal
from ornstein.processes.normal import GaussianLaw, Normal, Number, expm1
from ornstein.processes.paths import Paths
from ornstein.schedules.base import Level, Schedule, Time, as_time, float_level

READINGS = ("x0", "eps", "v", "score", "velocity", "edm")


def spread(c: Number, x: Tensor) -> Number:
    """A coefficient beside x (b, *d): floats stay floats; (b,) becomes (b, 1, ..., 1) of the type of x."""
    if isinstance(c, float):
        return c
    return c.to(x, non_blocking=x.is_cuda).reshape(c.shape + (1,) * (x.ndim - c.ndim))


@dataclass(frozen=True)
class Estimate:
    """What is held of x_0 given x_t: one reading, from which the others are derived where they are asked for.

    `kind` names the reading held in `value`; `sigma_data` is the sigma_d of EDM's F; `fraction`, in [0, 1] and of the
    shape of x_t, places a learned variance between its bounds (paper 001 eq. 44). Readings have the shape of x_t (b, *d);
    with a base, eps has covariance Sigma and score = -Sigma^-1 eps / sigma.
    """

    process: "Gaussian"
    x_t: Tensor
    t: Time
    kind: str
    value: Tensor
    sigma_data: float = 1.0
    fraction: Tensor | None = None

    def reading(self, kind: str) -> Tensor:
        """The reading called `kind`: x0, eps, v, score, velocity or edm.

        Raises `NumericalError` where x_t does not determine it: eps from x0 at sigma = 0, x0 from eps at alpha = 0.
        """
        if kind == self.kind:
            return self.value
        base = self.process.base
        if kind == "score":
            eps = self.reading("eps")
            sigma = spread(self.process.level(self.t).sigma, eps)
            return (eps if base is None else base.precision(eps)) / -sigma
        on_x, on_value = self._weights(kind)
        if base is None:
            return on_x * self.x_t + on_value * self.value
        mu = base.centre(self.x_t)
        centred = on_x * (self.x_t - mu) + on_value * (self.value - mu if self.kind == "x0" else self.value)
        return centred + mu if kind == "x0" else centred

    def _weights(self, kind: str) -> tuple[Number, Number]:
        """The pair (a, b) of `reading(kind) = a (x_t - mu) + b value`, from solving the two linear equations."""
        alpha, sigma, _ = level = self.process.level(self.t)
        p, q = self._pair(self.kind, level)
        wanted_p, wanted_q = self._pair(kind, level)
        det = alpha * q - sigma * p
        if isinstance(det, float) and det == 0.0:
            raise NumericalError(
                f"{kind} is not determined by {self.kind} at t = {self.t:g}, where its factor in x_t is 0"
            )
        on_x, on_value = (wanted_p * q - wanted_q * p) / det, (wanted_q * alpha - wanted_p * sigma) / det
        return spread(on_x, self.x_t), spread(on_value, self.x_t)

    def _pair(self, kind: str, level: Level) -> tuple[Number, Number]:
        alpha, sigma, _ = level
        if kind == "x0":
            return 1.0, 0.0
        if kind == "eps":
            return 0.0, 1.0
        if kind == "v":
            return -sigma, alpha
        if kind == "velocity":
            slopes = self.process.schedule.slopes(self.t)
            return slopes if isinstance(self.t, Tensor) else (float(slopes[0]), float(slopes[1]))
        if kind == "edm":
            norm = (sigma**2 + (alpha * self.sigma_data) ** 2) ** 0.5
            return sigma / (self.sigma_data * norm), -alpha * self.sigma_data / norm
        raise ConfigurationError(f"got reading '{kind}', expected one of {', '.join(READINGS)}")

    def shifted(self, change: Tensor) -> "Estimate":
        """The estimate of x_0 + change (b, *d), at the same x_t: eps moves by -(alpha / sigma) change.
        Where sigma = 0, and x_t is x_0, it is this estimate."""
        alpha, sigma, _ = level = self.process.level(self.t)
        p, q = self._pair(self.kind, level)
        if isinstance(sigma, float) and sigma == 0:
            return self
        factor = p - q * alpha / sigma
        if isinstance(factor, Tensor):
            factor = torch.where(as_time(sigma) == 0, 0.0, factor)
        return replace(self, value=self.value + spread(factor, self.x_t) * change)

    def like(self, kind: str, sigma_data: float) -> "Estimate":
        """This estimate, holding the reading `kind`, with that sigma_data; over v, defined at every level, where they differ."""
        other = self.kind == "edm" and self.sigma_data != sigma_data
        held = replace(self, kind="v", value=self.v) if other else self
        held = replace(held, sigma_data=sigma_data)
        return replace(held, kind=kind, value=held.reading(kind))

    def rows(self, rows: Any) -> "Estimate":
        """The estimate of some rows of the batch (a slice, numbers or a mask)."""
        t = self.t[rows] if isinstance(self.t, Tensor) and self.t.ndim else self.t
        fraction = None if self.fraction is None else self.fraction[rows]
        process = self.process.rows(rows)
        return replace(self, process=process, x_t=self.x_t[rows], t=t, value=self.value[rows], fraction=fraction)

    @property
    def x0(self) -> Tensor:
        """The estimate of x_0: for a trained denoiser the posterior mean E[x_0 | x_t]."""
        return self.reading("x0")

    @property
    def eps(self) -> Tensor:
        """The noise, (x_t - mu - alpha (x_0 - mu)) / sigma."""
        return self.reading("eps")

    @property
    def score(self) -> Tensor:
        """-Sigma^-1 eps / sigma, which for the posterior mean is grad log p_t(x_t) (paper 000 eq. 95 corrected)."""
        return self.reading("score")

    @property
    def v(self) -> Tensor:
        """alpha eps - sigma (x_0 - mu) (Salimans and Ho 2022)."""
        return self.reading("v")

    @property
    def velocity(self) -> Tensor:
        """alpha' (x_0 - mu) + sigma' eps, the time derivative along the probability-flow ODE."""
        return self.reading("velocity")

    @property
    def edm(self) -> Tensor:
        """EDM's F: (x_0 - c_skip x) / c_out at x = x_t / alpha and noise sigma / alpha (paper 000 eq. 203-212)."""
        return self.reading("edm")


@dataclass(frozen=True)
class Gaussian(Paths):
    """The forward process of a schedule, x_t = mu + alpha (x_0 - mu) + sigma eps, with eps ~ N(0, Sigma).

    States are (b, *d) of any shape d; a time is a float or a tensor (b,); `rng` is a `Noise` over the b examples.
    """

    schedule: Schedule
    base: Normal | ConditionalNormal | None = None

    def level(self, t: Time, x: Tensor | None = None) -> Level:
        """(alpha, sigma, log_snr) at t: floats for a float time (computed once), else float64 tensors of the shape of t.

        With x (b, *d), tensors are of the type of x and the shape (b, 1, ..., 1) that stands beside it.
        """
        if isinstance(t, float | int):
            return float_level(self.schedule, float(t))
        if x is not None:
            t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
        log_alpha, log_sigma = self.schedule.log_alpha(t), self.schedule.log_sigma(t)
        alpha, sigma, log_snr = log_alpha.exp(), log_sigma.exp(), 2 * (log_alpha - log_sigma)
        if x is None:
            return Level(alpha, sigma, log_snr)
        return Level(*(v.to(x, non_blocking=x.is_cuda) for v in (alpha, sigma, log_snr)))

    def given(self, cond: Condition | None) -> "Gaussian":
        """The process under a condition, with its base's law for each row of it; itself where the base depends on none.

        Raises `ConfigurationError` where it does and cond is None.
        """
        base = None if self.base is None else self.base.given(cond)
        return self if base is self.base else replace(self, base=base)

    def rows(self, rows: Any) -> "Gaussian":
        """The process of some rows (a slice, numbers or a mask) of the batch whose condition it was given."""
        base = None if self.base is None else self.base.rows(rows)
        return self if base is self.base else replace(self, base=base)

    def centre(self, x: Tensor) -> Number:
        """mu beside x (b, *d): 0 without a base."""
        return 0.0 if self.base is None else self.base.centre(x)

    def noised(self, x0: Tensor, t: Time, rng: Noise) -> Estimate:
        """A draw of q(x_t | x_0) as the true `Estimate`: it holds x_t and v = alpha eps - sigma (x_0 - mu).

        v and x_t give back x_0 and eps without loss at every noise level.
        """
        alpha, sigma, _ = self.level(t, x0)
        eps = rng.normal(x0.shape, x0.dtype)
        if self.base is None:
            return Estimate(self, alpha * x0 + sigma * eps, t, "v", alpha * eps - sigma * x0)
        eps, mu = self.base.colour(eps), self.base.centre(x0)
        return Estimate(self, mu + alpha * (x0 - mu) + sigma * eps, t, "v", alpha * eps - sigma * (x0 - mu))

    def noise(self, x0: Tensor, t: Time, rng: Noise) -> Tensor:
        """A draw of q(x_t | x_0) = N(mu + alpha (x_0 - mu), sigma^2 Sigma) (paper 001 eq. 31)."""
        alpha, sigma, _ = self.level(t, x0)
        if self.base is None and isinstance(
            alpha, float
        ):  # without v, of which a constraint makes no use at every step
            return torch.add(sigma * rng.normal(x0.shape, x0.dtype), x0, alpha=alpha)
        return self.noised(x0, t, rng).x_t

    def estimate(
        self,
        x_t: Tensor,
        t: Time,
        *,
        x0: Tensor | None = None,
        eps: Tensor | None = None,
        v: Tensor | None = None,
        score: Tensor | None = None,
        velocity: Tensor | None = None,
        edm: Tensor | None = None,
        sigma_data: float = 1.0,
    ) -> Estimate:
        """The `Estimate` of one reading, given by its name: `estimate(x_t, t, x0=...)`, or eps=, v=, score= and so on.

        Raises `ConfigurationError` unless exactly one reading is given, of the shape of x_t.
        """
        readings = {"x0": x0, "eps": eps, "v": v, "score": score, "velocity": velocity, "edm": edm}
        given = [(kind, value) for kind, value in readings.items() if value is not None]
        if len(given) != 1:
            raise ConfigurationError(f"got {len(given)} readings, expected exactly one of {', '.join(READINGS)}")
        kind, value = given[0]
        if value.shape != x_t.shape:
            raise ConfigurationError(
                f"got {kind} of shape {tuple(value.shape)}, expected that of x_t {tuple(x_t.shape)}"
            )
        t = t if isinstance(t, float) else as_time(t)
        if kind == "score":
            kind = "eps"
            value = -spread(self.level(t).sigma, x_t) * (value if self.base is None else self.base.covary(value))
        return Estimate(self, x_t, t, kind, value, sigma_data)

    def posterior(
        self, estimate: Estimate, t: Time, s: Time, eta: float = 1.0, floor: float | None = None
    ) -> GaussianLaw:
        """The law of x_s given x_t and x_0 = estimate.x0, for s < t (Song et al. 2021, DDIM eq. 7; paper 001 eq. 35 at eta = 1):

            mean = mu + alpha_s (x_0 - mu) + sigma_s sqrt(1 - tau) eps,  std = sigma_s sqrt(tau),
            tau = eta^2 (1 - exp(log_snr_t - log_snr_s)).

        eta = 1 is q(x_s | x_t, x_0), eta = 0 the deterministic bridge (DDIM). Where eta = 1 and the estimate holds a
        `fraction`, the variance is exp(fraction log b + (1 - fraction) log max(std^2, floor^2)) with b = Var(x_t | x_s);
        without a floor the step to sigma_s = 0 draws no noise.
        """
        if not 0 <= eta <= 1:
            raise ConfigurationError(f"got eta={eta}, expected 0 (DDIM) to 1 (DDPM)")
        x_t = estimate.x_t
        alpha_s, sigma_s, log_snr_s = self.level(s)
        fresh = -expm1(self.level(t).log_snr - log_snr_s)
        tau = eta**2 * fresh if eta else 0.0
        mean = spread(alpha_s, x_t) * estimate.x0
        if self.base is not None:
            mean = mean + (1 - spread(alpha_s, x_t)) * self.base.centre(x_t)
        if not (isinstance(sigma_s, float) and sigma_s == 0):
            mean = mean + spread(sigma_s * (1 - tau) ** 0.5, x_t) * estimate.eps
        std = spread(sigma_s * tau**0.5, x_t)
        if estimate.fraction is not None and eta == 1 and (floor or not (isinstance(s, float) and sigma_s == 0)):
            least = torch.as_tensor(std, dtype=x_t.dtype).clamp(min=floor or 0.0)
            most = torch.as_tensor(spread(self.level(t).sigma * fresh**0.5, x_t), dtype=x_t.dtype)
            std = torch.exp(estimate.fraction * most.log() + (1 - estimate.fraction) * least.log())
        return GaussianLaw(mean, std, self.base)

    def transition(self, x_s: Tensor, s: Time, t: Time) -> GaussianLaw:
        """q(x_t | x_s) for s < t: mean mu + (alpha_t / alpha_s) (x_s - mu), variance sigma_t^2 (1 - exp(log_snr_t - log_snr_s)).

        The variance is sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, formed without cancellation (paper 001 eq. 2).
        """
        alpha_s, _, log_snr_s = self.level(s)
        alpha_t, sigma_t, log_snr_t = self.level(t)
        factor, std = spread(alpha_t / alpha_s, x_s), spread(sigma_t * (-expm1(log_snr_t - log_snr_s)) ** 0.5, x_s)
        mu = self.centre(x_s)
        return GaussianLaw(mu + factor * (x_s - mu), std, self.base)

    def drift(self, estimate: Estimate, t: Time, noise: float = 0.0) -> Tensor:
        """f (x_t - mu) - (1 + noise^2) / 2 g^2 Sigma score: the drift of the reverse equation with noise `noise * g` dw.

        noise = 0 is the probability-flow ODE, noise = 1 Anderson's reverse SDE (paper 000 eq. 105); time runs down, dt < 0.
        """
        f, g, sigma = self.schedule.f(t), self.schedule.g(t), torch.as_tensor(self.level(t).sigma, dtype=torch.float64)
        x_t = estimate.x_t - self.centre(estimate.x_t)
        return spread(f, x_t) * x_t + spread((1 + noise**2) / 2 * g**2 / sigma, x_t) * estimate.eps
