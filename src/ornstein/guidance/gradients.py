"""Guidance by a gradient: the score of the model plus that of what the condition says of x_t."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.guidance.base import Guidance
from ornstein.processes.gaussian import Estimate, Gaussian, spread
from ornstein.processes.normal import Number
from ornstein.schedules.base import Time, as_time

FAR = 1000.0
"""sigma / alpha beyond which nothing is told from noise."""

LogDensity = Callable[[Tensor, Time, Condition | None], Tensor]
LogLikelihood = Callable[[Tensor, Condition | None], Tensor]


class ClassifierGuidance(Guidance):
    """score + scale grad log p_t(cond | x_t), so eps - scale sigma Sigma grad (Dhariwal and Nichol 2021; paper 002 eq. 53-54).

    Args:
        denoiser: the model; it is called without the condition unless `conditional`.
        log_prob: log p_t(cond | x_t) in nats, (b,), of (x_t, t, cond), differentiable by autograd in x_t: the `log_prob` of a
            `Classifier`, or your own. It must be that of the noisy x_t: p(cond | x_0) at x_0 = x_t is wrong at every t > 0.
        scale: 1 is Bayes' rule, 0 the unguided model; the gradient counts this many times.
        interval: levels (low, high) of sigma / alpha outside of which nothing is guided.
        conditional: whether the denoiser sees the condition too; then scale = 1 counts it twice.

    One call of the denoiser; a pass of log_prob and back beside it is not counted. Raises `ConfigurationError` where log_prob
    does not return (b,) or autograd cannot follow it.
    """

    plain = 0.0

    def __init__(
        self,
        denoiser: DenoiserLike,
        log_prob: LogDensity,
        scale: float = 1.0,
        interval: tuple[float, float] | None = None,
        conditional: bool = False,
    ) -> None:
        super().__init__(denoiser, scale, interval)
        self.log_prob, self.shown = log_prob, conditional

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        """The guided estimate."""
        estimate = self.denoiser(x_t, t, cond if self.shown else None, keep)
        weight = self.weight(t)
        if isinstance(weight, float) and weight == 0:
            return estimate
        place = _place(estimate.process, x_t, t)
        with torch.enable_grad():
            gradient = _gradient(self.log_prob(place.x, place.t, cond), place.x, "log_prob", x_t.requires_grad)
        return estimate.shifted(place.change(gradient, weight))


class PosteriorSampling(Guidance):
    """score + scale grad_x_t log p(cond | x_0_hat(x_t)): the likelihood at the posterior mean (DPS, Chung et al. 2023, eq. 16).

    It stands for log p_t(cond | x_t) = log E[p(cond | x_0) | x_t], and is **approximate**: too sure of cond, for it leaves out
    the variance of x_0 given x_t. Exact at t = 0 alone, or where x_0 is known.

    Args:
        denoiser: the model, through which autograd goes; called without the condition unless `conditional`.
        log_likelihood: log p(cond | x_0) in nats, (b,), of (x_0, cond), x_0 in model units.
        scale, interval, conditional: as of `ClassifierGuidance`.

    One call of the denoiser, and a pass back through it, which is not counted. Beyond sigma / alpha = 1000 nothing is guided.
    """

    plain = 0.0

    def __init__(
        self,
        denoiser: DenoiserLike,
        log_likelihood: LogLikelihood,
        scale: float = 1.0,
        interval: tuple[float, float] | None = None,
        conditional: bool = False,
    ) -> None:
        super().__init__(denoiser, scale, interval)
        self.log_likelihood, self.shown = log_likelihood, conditional

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        """The guided estimate."""
        given, weight = cond if self.shown else None, self.weight(t)
        if isinstance(weight, float) and weight == 0:
            return self.denoiser(x_t, t, given, keep)
        follow = x_t.requires_grad
        with torch.enable_grad():
            x = x_t if follow else x_t.detach().requires_grad_()
            estimate = self.denoiser(x, t, given, keep)
            gradient = _gradient(self.log_likelihood(estimate.x0, cond), x, "log_likelihood", follow)
        if not follow:
            fraction = None if estimate.fraction is None else estimate.fraction.detach()
            estimate = replace(estimate, x_t=x_t, value=estimate.value.detach(), fraction=fraction)
        near = as_time(self.process.level(t).log_snr) >= -2 * math.log(FAR)
        if not near.any():  # where x_0_hat hardly depends on x_t
            return estimate
        weight = weight if near.all() else torch.where(near, weight, 0.0)
        return estimate.shifted(_Place(estimate.process, x_t, t).change(gradient, weight))


@dataclass(frozen=True)
class _Place:
    """Where the gradient of log p_t(c | x_t) is asked for: x (b, *d), followed by autograd, and t. x_0 is moved by

        w (sigma^2 / alpha) Sigma grad log p_t(c | x_t),

    which stays finite where alpha -> 0, but is 0 / 0 there: beyond sigma / alpha = FAR the level FAR stands for it, at the same
    eps.
    """

    process: Gaussian
    x: Tensor
    t: Time

    def change(self, gradient: Tensor, weight: Number) -> Tensor:
        """What x_0 moves by."""
        alpha, sigma, _ = self.process.level(self.t)
        moved = gradient if self.process.base is None else self.process.base.covary(gradient)
        return spread(weight * sigma**2 / alpha, moved) * moved


def _place(process: Gaussian, x_t: Tensor, t: Time) -> _Place:
    x, far = (x_t if x_t.requires_grad else x_t.detach()), -2 * math.log(FAR)
    beyond = as_time(process.level(t).log_snr) < far
    if beyond.any():
        nearest = process.schedule.time_at(as_time(far))
        near_t = torch.where(beyond, nearest, t) if isinstance(t, Tensor) else float(nearest)
        mu = process.centre(x)
        ratio = as_time(process.level(near_t).sigma) / as_time(process.level(t).sigma)
        x, t = mu + spread(ratio, x) * (x - mu), near_t
    return _Place(process, x if x.requires_grad else x.requires_grad_(), t)


def _gradient(values: Tensor, x: Tensor, name: str, follow: bool) -> Tensor:
    """grad of the sum of values (b,) at x, followed further by autograd where x itself is."""
    if values.shape != (len(x),):
        raise ConfigurationError(f"got {name} that returns {tuple(values.shape)}, expected a number each, ({len(x)},)")
    if not values.requires_grad:
        raise ConfigurationError(
            f"got {name} that autograd cannot follow to x, expected one without no_grad, detach or numpy"
        )
    return torch.autograd.grad(values.sum(), x, create_graph=follow)[0]
