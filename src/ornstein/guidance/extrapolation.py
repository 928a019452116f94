"""Guidance by two estimates: away from the weaker one, through the stronger one and beyond."""

from dataclasses import replace

import torch
from torch import Tensor

from ornstein.conditions import Condition, mapped
from ornstein.denoisers import DenoiserLike, innermost
from ornstein.errors import ConfigurationError
from ornstein.guidance.base import Guidance
from ornstein.processes.gaussian import Estimate, spread
from ornstein.processes.normal import Number
from ornstein.schedules.base import Time


class ClassifierFreeGuidance(Guidance):
    """D(x_t, none) + scale (D(x_t, cond) - D(x_t, none)), by one call on a doubled batch (Ho and Salimans 2022).

    Args:
        denoiser: a conditional one that was trained with label dropout; a `Model` too.
        scale: 1 is the plain conditional model (one call), 0 the unconditional one; the paper's w is scale - 1.
        interval: levels (low, high) of sigma / alpha; outside of them the conditional model alone is called, once (Kynkaanniemi
            et al. 2024: guidance at high noise costs variety, at low noise it does nothing).
        rescale: 0 to 1, how far x_0 is brought back to the standard deviation of the conditional model's within each
            example (Lin et al. 2024, eq. 15-16); 0.7 in the paper.

    Raises `ConfigurationError` where the denoiser knows no condition, or never saw an example without one, and on a call
    without a condition.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        scale: float = 2.0,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser, scale, interval)
        self.rescale = _checked_rescale(rescale)
        if innermost(denoiser, "conditional") is False:
            raise ConfigurationError(
                "got an unconditional model, which cannot be guided by its own condition; expected one trained with "
                "--condition labels (a network with classes=k), or ClassifierGuidance"
            )
        if innermost(denoiser, "label_dropout") == 0:
            raise ConfigurationError(
                "got a model trained with label dropout 0, which never saw an example without its label; expected one "
                "trained with --label-dropout 0.1, or scale=1 without guidance"
            )

    @property
    def evaluations(self) -> int:
        """Network evaluations in a call, at most."""
        return super().evaluations * (1 if self.scale == 1 else 2)

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        """The guided estimate."""
        if cond is None:
            raise ConfigurationError("got guidance without a condition, expected cond=, one a sample")
        weight = self.weight(t)
        if isinstance(weight, float) and weight == 1:
            return self.denoiser(x_t, t, cond, keep)
        b = len(x_t)
        keep = x_t.new_ones(b, dtype=torch.bool) if keep is None else keep.bool()
        twice = t.repeat(2) if isinstance(t, Tensor) and t.ndim else t
        both = self.denoiser(
            torch.cat([x_t, x_t]),
            twice,
            mapped(cond, lambda value: torch.cat([value, value])),
            torch.cat([keep, torch.zeros_like(keep)]),
        )
        strong, weak = both.rows(slice(0, b)), both.rows(slice(b, 2 * b))
        return _extrapolated(strong, weak.value, weight, self.rescale)


class Autoguidance(Guidance):
    """D_weak(x_t, cond) + scale (D(x_t, cond) - D_weak(x_t, cond)) (Karras et al. 2024a): away from the errors of a weaker model.

    Args:
        denoiser: the model, conditional or not.
        guide: a weaker one of the same process: an earlier checkpoint, a smaller network. Its base may not differ; a model of
            another schedule comes in by `Retargeted`.
        scale, interval, rescale: as of `ClassifierFreeGuidance`; two calls within the interval.

    Raises `ConfigurationError` where the processes differ, or the model takes a condition and the guide none.
    """

    holds = ("denoiser", "guide")

    def __init__(
        self,
        denoiser: DenoiserLike,
        guide: DenoiserLike,
        scale: float = 2.0,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser, scale, interval)
        if guide.process != denoiser.process:
            raise ConfigurationError(
                f"got a guide of {guide.process}, expected that of the model, {denoiser.process}: "
                "Retargeted(guide, model.process) where the schedules differ"
            )
        if innermost(denoiser, "conditional") and innermost(guide, "conditional") is False:
            raise ConfigurationError(
                "got a guide without a condition for a conditional model, which it is asked with; expected one trained with it"
            )
        self.guide, self.rescale = guide, _checked_rescale(rescale)

    @property
    def evaluations(self) -> int:
        """Network evaluations in a call, at most."""
        return super().evaluations + (0 if self.scale == 1 else getattr(self.guide, "evaluations", 1))

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        """The guided estimate."""
        strong, weight = self.denoiser(x_t, t, cond, keep), self.weight(t)
        if isinstance(weight, float) and weight == 1:
            return strong
        weak = self.guide(x_t, t, cond, keep)
        return _extrapolated(strong, weak.like(strong.kind, strong.sigma_data).value, weight, self.rescale)


def _extrapolated(strong: Estimate, weak: Tensor, weight: Number, rescale: float) -> Estimate:
    """weak + weight (strong - weak) in the reading that `strong` holds; a learned variance is that of `strong`.

    Weights that sum to 1 make the same estimate of x_0 in every reading, for all are affine in it with x_t held.
    """
    guided = replace(strong, value=torch.lerp(weak, strong.value, spread(weight, weak)))
    if not rescale:
        return guided
    process = strong.process
    mu = process.centre(weak)
    x0 = guided.x0 - mu
    ratio = _std(strong.x0 - mu) / _std(x0)
    rescaled = process.estimate(strong.x_t, strong.t, x0=mu + (1 + rescale * (ratio - 1)) * x0)
    return replace(rescaled, fraction=strong.fraction)


def _std(x: Tensor) -> Tensor:
    """The standard deviation within each example, beside it (b, 1, ..., 1)."""
    return x.flatten(1).std(1, correction=0).reshape(-1, *(1,) * (x.ndim - 1))


def _checked_rescale(rescale: float) -> float:
    if not 0 <= rescale <= 1:
        raise ConfigurationError(f"got rescale={rescale}, expected 0 (off) to 1; 0.7 is common")
    return rescale
