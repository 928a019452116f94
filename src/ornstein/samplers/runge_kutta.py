"""Runge-Kutta steps of the probability-flow ODE in EDM's variables: y = x / alpha against sigma / alpha, where

    dy / d(sigma / alpha) = eps,

so a step is linear in (x, eps) for every schedule. Written without dividing by alpha, it holds at alpha = 0 too.
Before a step, churn adds noise and moves the time back (Karras et al. 2022, algorithm 2): a draw of `transition`.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise


@dataclass(frozen=True)
class _Churned:
    """churn: gamma, the relative rise of sigma / alpha before each step, in [0, sqrt(2) - 1] (EDM's S_churn / steps).

    It acts where churn_min <= sigma / alpha <= churn_max, and never beyond t = 1; the noise is scaled by churn_noise.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    order = 1
    stages = 1

    def __post_init__(self) -> None:
        if not 0 <= self.churn <= math.sqrt(2) - 1:
            raise ConfigurationError(
                f"got churn={self.churn}, expected 0 to sqrt(2) - 1: EDM's S_churn divided by steps"
            )
        if not 0 <= self.churn_min <= self.churn_max or not self.churn_noise > 0:
            raise ConfigurationError(
                f"got churn_min={self.churn_min}, churn_max={self.churn_max}, churn_noise={self.churn_noise}, "
                "expected 0 <= churn_min <= churn_max and churn_noise > 0"
            )

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return self.churn > 0

    def _excite(self, denoiser: DenoiserLike, x: Tensor, t: float, rng: Noise) -> tuple[Tensor, float]:
        process = denoiser.process
        if self.churn == 0 or not self.churn_min <= math.exp(-process.level(t).log_snr / 2) <= self.churn_max:
            return x, t
        noisier = float(process.schedule.time_at(process.level(t).log_snr - 2 * math.log1p(self.churn)))
        if not noisier > t:
            return x, t
        law = process.transition(x, t, noisier)
        return replace(law, std=law.std * self.churn_noise).sample(rng), noisier


@dataclass(frozen=True)
class Euler(_Churned):
    """y_s = y_t + (sigma_s / alpha_s - sigma_t / alpha_t) eps_t, that is x_s = alpha_s x_0 + sigma_s eps: order 1.

    Without churn this is DDIM, `Ancestral(eta=0)`. See `_Churned` for the options.
    """

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """One step from time t to time s; there is no memory."""
        x, t = self._excite(denoiser, x, t, rng)
        return denoiser.process.posterior(denoiser(x, t), t, s, eta=0.0).mean, None


@dataclass(frozen=True)
class Heun(_Churned):
    """The trapezium rule with an Euler predictor: order 2, two calls a step (Karras et al. 2022, algorithms 1 and 2).

        x_s = alpha_s x_0 + sigma_s eps_t + (sigma_s - sigma_t alpha_s / alpha_t) (eps_s - eps_t) / 2

    A step that touches sigma = 0 or alpha = 0 is the Euler step. See `_Churned` for the options.
    """

    order = 2
    stages = 2

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """One step from time t to time s; there is no memory."""
        x, t = self._excite(denoiser, x, t, rng)
        process, estimate = denoiser.process, denoiser(x, t)
        predicted = process.posterior(estimate, t, s, eta=0.0).mean
        alpha_t, sigma_t, _ = process.level(t)
        alpha_s, sigma_s, _ = process.level(s)
        if sigma_s == 0 or alpha_t == 0 or alpha_s == 0 or sigma_t == 0:
            return predicted, None
        half = (sigma_s - sigma_t * alpha_s / alpha_t) / 2
        return predicted + half * (denoiser(predicted, s).eps - estimate.eps), None


@dataclass(frozen=True)
class _Classical(_Churned):
    """Each stage, at one of `nodes` of the step in sigma / alpha, starts from the eps of the stage before alone; their eps, that
    at the start first, have `weights`."""

    nodes: ClassVar[tuple[float, ...]]
    weights: ClassVar[tuple[float, ...]]

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """One step from time t to time s; there is no memory."""
        x, t = self._excite(denoiser, x, t, rng)
        process, estimate = denoiser.process, denoiser(x, t)
        (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = process.level(t), process.level(s)
        if 0 in (alpha_t, sigma_t, alpha_s, sigma_s):
            return process.posterior(estimate, t, s, eta=0.0).mean, None
        ratio, rise, eps = sigma_t / alpha_t, sigma_s / alpha_s - sigma_t / alpha_t, estimate.eps
        mu = process.centre(x)
        y, total = (x - mu) / alpha_t, self.weights[0] * eps
        for node, weight in zip(self.nodes, self.weights[1:], strict=True):
            r = s if node == 1 else float(process.schedule.time_at(-2 * math.log(ratio + node * rise)))
            eps = denoiser(mu + process.level(r).alpha * (y + node * rise * eps), r).eps
            total = total.add(eps, alpha=weight)
        return mu + alpha_s * (y + rise * total), None


@dataclass(frozen=True)
class Midpoint(_Classical):
    """The midpoint rule: eps halfway in sigma / alpha carries the whole step: order 2, two calls a step.

    A step that touches sigma = 0 or alpha = 0 is the Euler step. See `_Churned` for the options.
    """

    order = stages = 2
    nodes, weights = (0.5,), (0.0, 1.0)


@dataclass(frozen=True)
class RK4(_Classical):
    """The classical method of Runge and Kutta in sigma / alpha: order 4, four calls a step.

    A step that touches sigma = 0 or alpha = 0 is the Euler step. See `_Churned` for the options.
    """

    order = stages = 4
    nodes, weights = (0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
