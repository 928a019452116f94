"""Constraints on the state: sampler -> sampler, so that each works with every sampler and any network, trained for nothing of it.

After a step from t to s the part that a linear filter phi keeps is replaced by that of the reference y, noised afresh to the
level of s (paper 001 algorithm 3, ILVR, with its slips mended; eq. 51):

    x' = step(x_t),   y_s ~ q(x_s | x_0 = y),   x_s = x' - phi(x') + phi(y_s)

For `Inpainting` phi keeps the known places, for `ILVR` the low frequencies. At sigma = 0 y_s is y itself, so that an idempotent
phi (`filters`) gives phi(x_0) = phi(y) exactly. In between the replacement does not condition: the free part never hears of what
x_s was replaced by but through the next step, and is biased towards the unconditional law. `resamplings` of a step (RePaint,
Lugmayr et al. 2022: back to t by q(x_t | x_s), and the step again, each time against the same y with fresh noise) mend much of
that.

A constraint moves the state off the path that a sampler's memory is of, so the memory is dropped: a multistep sampler makes its
first-order step each time.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.filters import BlockAverage, LowPass
from ornstein.noise import Noise
from ornstein.processes.gaussian import Gaussian
from ornstein.samplers.base import Sampler


@dataclass(frozen=True, eq=False)
class _Replacing:
    """What the two constraints share: the step, with x - phi(x) + phi(y) as their own."""

    sampler: Sampler

    order = 0
    stochastic = True
    constrains = True

    reference: Tensor = field(repr=False)
    resamplings: int = field(default=1, kw_only=True)
    start: float = field(default=1.0, kw_only=True)
    stop: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if getattr(self.sampler, "corrects", False):
            raise ConfigurationError(
                f"got sampler={self.sampler}, which stays at its noise level; expected one that goes from one time to "
                "another: Ancestral(), Multistep(), PredictorCorrector(...)"
            )
        if not isinstance(self.resamplings, int) or self.resamplings < 1:
            raise ConfigurationError(f"got resamplings={self.resamplings!r}, expected a whole number of at least 1")
        if not 0 <= self.stop <= self.start <= 1:
            raise ConfigurationError(
                f"got start={self.start}, stop={self.stop}, expected times 1 >= start >= stop >= 0 (1 is noise, 0 data)"
            )
        if not torch.isfinite(self.reference).all():
            raise ConfigurationError("got a reference with NaN or infinity, expected finite numbers in model units")

    @property
    def needs(self) -> str:
        """What the sampler within needs."""
        return getattr(self.sampler, "needs", "score")

    @property
    def stages(self) -> float:
        """Calls of the denoiser in a full step."""
        return self.sampler.stages * self.resamplings

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: Any, rng: Noise
    ) -> tuple[Tensor, Any]:
        """One step from time t to time s, constrained where s is in [stop, start]; the memory is then dropped."""
        if not s < t:
            raise ConfigurationError(f"got a step from t = {t:g} to s = {s:g}, expected a falling grid")
        if not self.stop <= s <= self.start:
            return self.sampler.step(denoiser, x, t, s, memory, rng)
        process = denoiser.process
        if process.holds:  # what is known is known from the start, at every level
            x = self._replaced(process, x, None, rng)
        moved = x
        for attempt in range(1 if process.is_data(s) else self.resamplings):
            x = process.transition(moved, s, t).sample(rng) if attempt else x
            moved = self._replaced(process, self.sampler.step(denoiser, x, t, s, None, rng)[0], s, rng)
        return moved, None

    def land(self, denoiser: DenoiserLike, x: Tensor, t: float, memory: Any, rng: Noise) -> Tensor:
        """The data from the schedule's first time t, where sigma is above 0, with the reference's part as it is."""
        own = getattr(self.sampler, "land", None)
        if own is None:
            x = denoiser.process.land(denoiser(x, t), rng)
        else:
            x = own(denoiser, x, t, None if self.stop <= t else memory, rng)
        return x if self.stop > 0 else self._replaced(denoiser.process, x, None, rng)

    def _replaced(self, process: Gaussian, x: Tensor, s: float | None, rng: Noise) -> Tensor:
        """x - phi(x) + phi(y_s), y_s ~ q(x_s | x_0 = y); y itself where s is None."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ILVR(_Replacing):
    """Samples whose low frequencies are those of a reference (Choi et al. 2021; paper 001 algorithm 3).

    sampler: what makes the steps. reference: images y in model units, (k, *d), of which sample i has number i mod k; they are
    instances that samples will resemble, not a class. filter: a factor n, for `BlockAverage(n)`, or one of `ornstein.filters`:
    the larger n, the freer the sample (n = 1 gives y back). start, stop: times between which the steps are constrained;
    stopping before the data, as ILVR's authors do, leaves the low frequencies free to adapt. resamplings: see the module.

    `order` is 0: with a finer grid the samples change, for more replacements are made. Few deterministic steps give blurred
    samples: the high frequencies of x' are those of the mean of x_0, and nothing new is drawn into them.

    Raises `ConfigurationError` where the factor does not divide the axes of space, or the reference has another shape than x.
    """

    filter: int | LowPass = 4

    needs = "score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.filter, int):
            object.__setattr__(self, "filter", BlockAverage(self.filter))
        self._phi.check(tuple(self.reference.shape[1:]))

    @classmethod
    def super_resolution(cls, sampler: Sampler, low: Tensor, factor: int, resamplings: int = 1) -> "ILVR":
        """Samples whose means of blocks of `factor` values along every axis of space are `low` (k, *d / factor)."""
        block, lead = BlockAverage(factor), max(1, min(2, low.ndim - 1))
        shape = (*low.shape[:lead], *(size * factor for size in low.shape[lead:]))
        return cls(sampler, block.up(low, shape), block, resamplings=resamplings)

    @property
    def _phi(self) -> LowPass:
        assert not isinstance(self.filter, int)
        return self.filter

    def _replaced(self, process: Gaussian, x: Tensor, s: float | None, rng: Noise) -> Tensor:
        y, phi = _of_rows(self.reference, x, rng, "reference"), self._phi
        if s is None or process.level(s).sigma == 0:
            low = phi.down(y - x)
        elif process.base is None:  # phi of white noise needs no more of it than phi keeps
            alpha, sigma, _ = process.level(s)
            low = phi.down(alpha * y - x)
            low += sigma * phi.std(x.shape) * rng.normal(low.shape, low.dtype)
        else:
            low = phi.down(process.noise(y, s, rng) - x)
        return x + phi.up(low, x.shape)


@dataclass(frozen=True, eq=False)
class Inpainting(_Replacing):
    """Samples that agree with a reference in its known places; the others are drawn (RePaint, Lugmayr et al. 2022).

    Under an absorbing kernel this conditions without error: known sites are unmasked ones at every level, and the denoiser reads
    them from the first call on. A prompt is held so.

    sampler: what makes the steps. reference: (k, *d) in model units, of which sample i has number i mod k; its values in missing
    places are not looked at, but must be finite. missing: truth values that broadcast to (k, *d), True where values are to be
    drawn. resamplings: how often each step is made; 1 is plain replacement, 10 is RePaint's, at 10 times the calls. start,
    stop: see `ILVR`.

    Raises `ConfigurationError` where shapes do not fit.
    """

    missing: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            known = torch.broadcast_to(~self.missing.bool(), self.reference.shape)
        except RuntimeError:
            raise ConfigurationError(
                f"got missing of shape {tuple(self.missing.shape)}, expected one that broadcasts to that of the reference, "
                f"{tuple(self.reference.shape)}"
            ) from None
        object.__setattr__(self, "missing", ~known)

    def _replaced(self, process: Gaussian, x: Tensor, s: float | None, rng: Noise) -> Tensor:
        y = _of_rows(self.reference, x, rng, "reference")
        if s is not None and not process.is_data(s) and not process.holds:
            y = process.noise(y, s, rng)
        return torch.where(_of_rows(self.missing, x, rng, "missing"), x, y)


def _of_rows(given: Tensor, x: Tensor, rng: Noise, name: str) -> Tensor:
    """The part of (k, *d) that belongs to the samples at hand: sample i has row i mod k."""
    if given.shape[1:] != x.shape[1:]:
        raise ConfigurationError(
            f"got {name} of shape {tuple(given.shape)}, expected (k, {', '.join(map(str, x.shape[1:]))}), as the samples"
        )
    if len(given) > 1:
        given = given[torch.as_tensor(rng.indices, device=given.device) % len(given)]
    return given.to(x.device, x.dtype if given.is_floating_point() else given.dtype).expand_as(x)
