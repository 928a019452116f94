"""Exponential multistep: the readings of the last calls, averaged over the step. One call a step, whatever the order.

The names users know are this recipe with other options:

    DPM-Solver++(2M)        Multistep(2, "x0", exact=False)
    SDE-DPM-Solver++(2M)    Multistep(2, "x0", exact=False, noise=1.0)
    DPM-Solver++ of order 3 Multistep(3, "x0")
    UniPC of order 3        Multistep(3, "x0", corrector=True)
    DEIS in log rho, EAB    Multistep(3), Multistep(4)
    LMS                     Multistep(4, variable="sigma")
    PLMS                    Multistep(4, variable="t", exact=False)
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError, nearest
from ornstein.noise import Noise
from ornstein.samplers.exponential import Transfer, carried, transfer, weights
from ornstein.samplers.stochastic import base_noise
from ornstein.schedules.base import Level

PREDICTIONS = ("eps", "x0")
VARIABLES = ("log_snr", "sigma", "t")
DATA = Level(1.0, 0.0, math.inf)


class Memory(NamedTuple):
    """The last readings, newest first, and where they stand; for a corrector also where the last step began."""

    places: tuple[float, ...]
    values: tuple[Tensor, ...]
    begin: tuple[float, Level] | None = None


@dataclass(frozen=True)
class Multistep:
    """x_s = a x_t + c <D>: the exact solution of the probability-flow ODE for D, the polynomial through the last readings.

    readings: how many, 1 to 4; the first steps have fewer. prediction: what is interpolated, "eps" or "x0".
    variable: in what it is a polynomial: "log_snr"; "sigma", that is sigma / alpha for eps and alpha / sigma for x_0; "t".
    exact: whether the average over the step has its exponential weight (see `exponential`), or is the plain one.
    corrector: whether the state is corrected by the next reading, at no call (UniPC's corrector, Zhao et al. 2023).
    noise: lambda of the reverse SDE f - (1 + lambda^2) / 2 g^2 score, lambda g dw, for x_0; the ODE at 0:

        x_s = (sigma_s / sigma_t) e^(-lambda^2 h) x_t - alpha_s expm1(-(1 + lambda^2) h) <x_0>
              + sigma_s sqrt(-expm1(-2 lambda^2 h)) z

    `order` is `readings`, one more with the corrector; 2 at most for plain averages in "log_snr" and "t", 1 for noise. A step
    from alpha = 0 or sigma = 0 is of order 1; eps is linear in sigma / alpha on the step to sigma = 0, x_0 constant.
    """

    readings: int = 3
    prediction: str = "eps"
    variable: str = "log_snr"
    exact: bool = True
    corrector: bool = False
    noise: float = 0.0

    stages = 1

    def __post_init__(self) -> None:
        if self.readings not in (1, 2, 3, 4):
            raise ConfigurationError(f"got readings={self.readings!r}, expected 1 to 4: the order")
        for name, value, known in (
            ("prediction", self.prediction, PREDICTIONS),
            ("variable", self.variable, VARIABLES),
        ):
            if value not in known:
                raise ConfigurationError(f"got {name}={value!r}, expected {' or '.join(known)}{nearest(value, known)}")
        if not 0 <= self.noise < math.inf:
            raise ConfigurationError(
                f"got noise={self.noise}, expected 0 (the ODE), 1 (the reverse SDE) or any number above 0"
            )
        if self.noise and (self.prediction != "x0" or self.corrector):
            raise ConfigurationError(
                f"got noise={self.noise} for {self.prediction}, corrector={self.corrector}; expected 'x0' without a corrector"
            )

    @property
    def order(self) -> int:
        """Of accuracy; weak where noise is drawn."""
        if self.noise:
            return 1
        exact = self.exact if self.variable == "log_snr" else self.variable == "sigma"
        order = self.readings + self.corrector
        return order if exact else min(order, 2)

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return self.noise > 0

    def step(
        self,
        denoiser: DenoiserLike,
        x: Tensor,
        t: float,
        s: float,
        memory: Memory | None,
        rng: Noise,
        end: Level | None = None,
    ) -> tuple[Tensor, Memory | None]:
        """One step from time t to time s, or to the level `end`; the memory holds the last readings."""
        process, estimate = denoiser.process, denoiser(x, t)
        begin, end = process.level(t), end or process.level(s)
        if math.isinf(begin.log_snr):
            return process.posterior(estimate, t, s, eta=0.0).mean, None
        places: tuple[float, ...] = (_place(self, t, begin),)
        values: tuple[Tensor, ...] = (estimate.reading(self.prediction),)
        before = None
        if memory is not None and memory.places[:1] != places:
            places, values, before = places + memory.places, values + memory.values, memory.begin
        step, factors = _recipe(self, before, (t, begin), (s, end), places)
        moved = carried(process, x, step, factors, values, self.prediction)
        if step.std:
            moved.add_(base_noise(process, x, rng), alpha=step.std)
        if self.corrector:
            return moved, Memory(places[: self.readings], values[: self.readings], (t, begin))
        return moved, Memory(places[: self.readings - 1], values[: self.readings - 1])

    def land(self, denoiser: DenoiserLike, x: Tensor, t: float, memory: Memory | None, rng: Noise) -> Tensor:
        """The data (sigma = 0) from the schedule's first time t, where sigma is above 0."""
        return self.step(denoiser, x, t, 0.0, memory, rng, end=DATA)[0]


@lru_cache(maxsize=4096)
def _place(recipe: Multistep, t: float, level: Level) -> float:
    """Where a reading stands in the variable of the polynomial."""
    if recipe.variable == "t":
        return t
    l = float(level.log_snr) / 2  # noqa: E741
    if recipe.variable == "log_snr":
        return l
    return math.exp(-l if recipe.prediction == "eps" else l)


@lru_cache(maxsize=4096)
def _recipe(
    recipe: Multistep,
    before: tuple[float, Level] | None,
    begin: tuple[float, Level],
    end: tuple[float, Level],
    places: tuple[float, ...],
) -> tuple[Transfer, tuple[float, ...]]:
    """The step between two levels, and the factors of the readings at `places` in it.

    With a corrector, `before` is where the last step began: that step is made again with the newest reading among its own,
    and the difference, a sum of readings too, is carried on by this one.
    """
    step, found = _averaged(recipe, begin, end, places[: recipe.readings])
    factors = [step.c * weight for weight in found] + [0.0] * (len(places) - len(found))
    if before is not None:
        last, predicted = _averaged(recipe, before, begin, places[1:])
        corrected = _averaged(recipe, before, begin, places)[1]
        for j, (new, old) in enumerate(zip(corrected, (0.0, *predicted), strict=True)):
            factors[j] += step.a * last.c * (new - old)
    return step, tuple(factors)


def _averaged(
    recipe: Multistep, begin: tuple[float, Level], end: tuple[float, Level], places: tuple[float, ...]
) -> tuple[Transfer, list[float]]:
    """The step between two levels, and the weights of the readings at `places` in their average."""
    step = transfer(begin[1], end[1], recipe.prediction, recipe.noise)
    if math.isinf(step.h):
        nodes, z = _beyond(recipe, places, step.h), 0.0
    else:
        place = _place(recipe, *begin)
        span = _place(recipe, *end) - place
        nodes = [(other - place) / span for other in places]
        z = step.z if recipe.exact and recipe.variable == "log_snr" else 0.0
    found = weights(nodes, z)
    return step, found + [0.0] * (len(places) - len(found))


def _beyond(recipe: Multistep, places: tuple[float, ...], h: float) -> list[float]:
    """The nodes for a step to sigma = 0: eps is linear in sigma / alpha there (two readings). Else one reading."""
    if h < 0 or recipe.prediction == "x0" or recipe.variable == "t" or len(places) < 2:
        return [0.0]
    ratio = math.exp(places[0] - places[1]) if recipe.variable == "log_snr" else places[1] / places[0]
    return [0.0, 1 - ratio]
