"""The reverse equations of noise lam: a family whose every member carries p_t to p_s (paper 000 eq. 105 and 172):

    dx = [f x - (1 + lam^2) / 2 g^2 score] dt + lam g dw,   dt < 0

lam = 0 is the probability-flow ODE, lam = 1 Anderson's equation. From another law at t they differ: more noise forgets
it sooner (paper 004, the claim on marginals). In y = x / alpha against r = sigma / alpha the equation reads

    dy = (1 + lam^2) eps dr + lam dw(r^2),

so that the noise is additive: its size does not depend on the state. With a base, noise has the covariance Sigma.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.noise import Noise
from ornstein.processes.gaussian import Estimate, Gaussian


def base_noise(process: Gaussian, x: Tensor, rng: Noise, span: tuple[float, float] | None = None) -> Tensor:
    """N(0, Sigma) numbers of the shape and type of x: fresh ones, or of a step from t to s where `span` = (t, s).

    Those of a step are (W(s) - W(t)) / sqrt|s - t|, of the Brownian path that belongs to each example: a finer grid sees the
    same path, so that the steps of two grids can be compared path by path.
    """
    if span is None:
        z = rng.normal(x.shape, x.dtype)
    else:
        t, s = span
        z = rng.brownian(t, s, x.shape, x.dtype) / math.sqrt(abs(s - t))
    return z if process.base is None else process.base.colour(z)


@dataclass(frozen=True)
class _Reverse:
    """noise: lam >= 0. brownian: draw from one Brownian path per example, the same on every grid (slower), instead of
    fresh numbers a step."""

    noise: float = 1.0
    brownian: bool = False

    order = 1
    stages = 1

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ConfigurationError(
                f"got noise={self.noise}, expected 0 (the probability-flow ODE) or above; 1 is the reverse SDE"
            )

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return self.noise > 0

    def _draw(self, process: Gaussian, x: Tensor, t: float, s: float, rng: Noise) -> Tensor:
        return base_noise(process, x, rng, (t, s) if self.brownian else None)


@dataclass(frozen=True)
class EulerMaruyama(_Reverse):
    """x_s = x_t + (s - t) [f x - (1 + lam^2) / 2 g^2 Sigma score] + lam g sqrt(t - s) z (paper 000 eq. 139 and text after 104).

    Of order 1, weakly and (the noise being additive) strongly; it is unstable on coarse grids, where `StochasticHeun` and
    `Ancestral` are not. See `_Reverse` for the options.

    Raises `ConfigurationError` on a step from a time where f or g is infinite (t = 1 where alpha(1) = 0) or sigma is 0.
    """

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """One step from time t to time s; there is no memory."""
        process = denoiser.process
        if process.level(t).sigma == 0:
            raise self._refused(t, "sigma is 0")
        estimate = denoiser(x, t)
        try:
            g, drift = float(process.schedule.g(t)), process.drift(estimate, t, self.noise)
        except NumericalError as error:
            raise self._refused(t, str(error)) from error
        moved = x + (s - t) * drift
        if self.noise:
            moved = moved + self.noise * g * math.sqrt(abs(s - t)) * self._draw(process, x, t, s, rng)
        return moved, None

    def _refused(self, t: float, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"got a step of EulerMaruyama from t = {t:g}, where {reason}; expected a grid that starts short of that time, "
            "such as grids.karras(process, steps), or a sampler without f and g: StochasticHeun() or Ancestral()"
        )


@dataclass(frozen=True)
class StochasticHeun(_Reverse):
    """With h = log(r_t / r_s), r = sigma / alpha: a step exact for x_0 that stays, and a correction for its change over it,

        x~  = alpha_s x_0 + sigma_s (exp(-lam^2 h) eps + sqrt(1 - exp(-2 lam^2 h)) z)
        x_s = x~ + alpha_s w (x_0(x~, s) - x_0),   w = u / sqrt(1 + u^2 / 4),   u = (1 + lam^2) / 2 sinh(h)

    Weak order 2, two calls a step; strong order 1. u is the mean of two trapezium rules, that of eps in r and that of x_0 in
    1 / r, whose errors nearly cancel; both have z in the predictor too. (The first alone is Heun's step, at lam = 0 that of
    `Heun`; with noise it overflows on coarse grids, as Euler-Maruyama does.) w agrees with u to order 3 and stays below 2
    however long the step. At lam = 1 the predictor is `Ancestral()`. A step that touches alpha = 0 or sigma = 0 is x~, of
    order 1. See `_Reverse` for the options.
    """

    order = 2
    stages = 2

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """One step from time t to time s; there is no memory."""
        process, estimate = denoiser.process, denoiser(x, t)
        alpha_s, sigma_s, log_snr_s = process.level(s)
        log_snr_t = process.level(t).log_snr
        predicted, wander = self._held(estimate, t, s)
        if self.noise and sigma_s > 0:
            predicted = predicted + wander * self._draw(process, x, t, s, rng)
        h = (log_snr_s - log_snr_t) / 2
        if not math.isfinite(h) or alpha_s == 0:
            return predicted, None
        weight = (1 + self.noise**2) / 2 * math.sinh(max(-50.0, min(h, 50.0)))
        weight = weight / math.hypot(1, weight / 2)
        return predicted + alpha_s * weight * (denoiser(predicted, s).x0 - estimate.x0), None

    def _held(self, estimate: Estimate, t: float, s: float) -> tuple[Tensor, float]:
        """The mean of x_s, and its std over Sigma, where x_0 keeps its value at t."""
        process = estimate.process
        alpha_s, sigma_s, log_snr_s = process.level(s)
        mean = alpha_s * estimate.x0
        if process.base is not None:
            mean = mean + (1 - alpha_s) * process.base.centre(mean)
        if sigma_s == 0:
            return mean, 0.0
        fall = self.noise**2 * (process.level(t).log_snr - log_snr_s) if self.noise else 0.0
        sigma_s = float(sigma_s)
        return mean + sigma_s * math.exp(fall / 2) * estimate.eps, sigma_s * math.sqrt(-math.expm1(fall))
