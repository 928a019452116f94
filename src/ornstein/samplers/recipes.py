"""The sampler and the grid that the options of `sample` come to.

Where no sampler is named it is a rule in the number of calls: `Multistep(3)`, from 12 calls on with its corrector, on
`grids.focused`, chosen by the error at the end of the path on exact targets (benchmarks/solvers.py). With fewer calls the
corrector's longer memory does harm. A sampler that is named has Karras' grid.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ornstein import grids
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.processes.gaussian import Gaussian
from ornstein.processes.product import Product
from ornstein.samplers.ancestral import Ancestral
from ornstein.samplers.multistep import Multistep
from ornstein.samplers.parts import Parts

if TYPE_CHECKING:
    from ornstein.samplers.base import Sampler

MANY = 12
ROUNDING = 1e-6
CALLS = 25
"""Where neither steps nor calls nor a grid is given; of a constraint, the steps."""


def usual(calls: int, process: Any = None) -> "Sampler":
    """The sampler for this many calls, one a step: for numbers with `grids.focused`, for categories `Ancestral()` with equal
    steps."""
    if isinstance(process, Product):
        return Parts({name: usual(calls, part) for name, part in process.parts.items()})
    numbers = process is None or isinstance(process, Gaussian)
    return Multistep(3, corrector=calls >= MANY) if numbers else Ancestral()


def check_needs(sampler: "Sampler | None", process: Any) -> None:
    """Raise `ConfigurationError` where a sampler cannot work on the states of a process.

    A sampler `needs` the "score" of numbers, where it does not say otherwise, the "rates" of categories, or "any" of them.
    """
    if isinstance(process, Product) or isinstance(sampler, Parts):
        _check_parts(sampler, process)
        return
    needs = getattr(sampler, "needs", "score")
    numbers = isinstance(process, Gaussian)
    if sampler is not None and needs != "any" and numbers != (needs == "score"):
        what, remedy = (
            ("categories, whose rates it follows, for a process of numbers", "Multistep(), Heun() or Ancestral()")
            if numbers
            else (
                "numbers, which have a score, for a process of categories",
                "Ancestral(), TauLeaping() or CTMCEuler()",
            )
        )
        raise ConfigurationError(f"got {sampler}, a sampler of {what}; expected {remedy}")
    if needs == "rates" and process.steps is not None:
        process.kernel.rate(process.schedule, 0.5)  # which a table of matrices refuses


def _check_parts(sampler: "Sampler | None", process: Any) -> None:
    """Raise `ConfigurationError` where a sampler cannot work on a state of parts, or one for parts on another state."""
    if isinstance(sampler, Parts):
        names = sorted(process.parts) if isinstance(process, Product) else []
        if sorted(sampler.samplers) != names:
            raise ConfigurationError(
                f"got samplers for the parts {sorted(sampler.samplers)}, expected one for each of {names}, those of the process"
            )
        for name in names:
            check_needs(sampler.samplers[name], process.parts[name])
    elif sampler is not None and getattr(sampler, "needs", "score") != "any":
        raise ConfigurationError(
            f"got {sampler}, a sampler of one space, for a state of parts; expected Ancestral(), or one for each part: "
            "Parts({name: sampler})"
        )


def recipe(
    denoiser: DenoiserLike,
    sampler: "Sampler | None" = None,
    steps: int | None = None,
    calls: int | None = None,
    grid: Tensor | None = None,
    begin: float | None = None,
) -> "tuple[Sampler, Tensor]":
    """The sampler and the grid that these options of `sample` come to, from time `begin` where no grid is given.

    `calls` are network evaluations, of which a guided denoiser makes `evaluations` each time. Raises `ConfigurationError` where
    options do not fit.
    """
    process, each = denoiser.process, getattr(denoiser, "evaluations", 1)
    check_needs(sampler, process)
    if sum(v is not None for v in (steps, calls, grid)) > 1:
        raise ConfigurationError("got more than one of steps, calls and grid, expected at most one")
    if grid is not None:
        grid = _checked(grid, process.t_min)
        times, lands = landing(process, grid.tolist())
        sampler = usual(len(times) - 1 + lands, process) if sampler is None else sampler
        if sampler.stochastic and grid[0] < grid[-1]:
            raise ConfigurationError(
                f"got a rising grid for {sampler}, which draws noise; expected a deterministic sampler to encode with: "
                "Heun(), Multistep() or Ancestral(eta=0.0)"
            )
        return sampler, grid
    law: Callable[..., Tensor] = partial(grids.uniform, begin=1.0 if begin is None else begin)
    if isinstance(process, Gaussian):
        law = _law_from(process, grids.focused if sampler is None else grids.karras, begin)
    if calls is None and steps is None:
        endless = sampler is not None and math.isinf(sampler.stages)
        if getattr(sampler, "constrains", False) and not (endless and process.holds):
            steps = CALLS  # at each of which it acts, however many calls it makes for it
        elif endless and sampler is not None:
            return sampler, law(process, 2)[[0, -1]]  # its own steps fill the way
    if calls is not None and 1 <= calls < each:
        raise ConfigurationError(
            f"got {calls} calls for {type(denoiser).__name__}, which makes {each} each time; expected at least that"
        )
    calls = (CALLS if calls is None else calls) // each
    sampler = usual(calls if steps is None else steps, process) if sampler is None else sampler
    if steps is None and 1 < calls <= sampler.stages < math.inf:
        raise ConfigurationError(
            f"got {calls * each} calls for {sampler}, of which a step takes {sampler.stages * each} and the landing {each}; "
            f"expected at least calls={(int(sampler.stages) + 1) * each}, or steps="
        )
    return sampler, law(process, steps_within(calls, sampler) if steps is None else steps)


def _law_from(process: Gaussian, law: Callable[..., Tensor], begin: float | None) -> Callable[..., Tensor]:
    """The law of a grid, from time `begin` on, its own where None. Raises `ConfigurationError` at a time without noise."""
    if begin is None:
        return law
    ratio = math.exp(-float(process.level(begin).log_snr) / 2) if process.schedule.t_min < begin < 1 else 0.0
    if begin < 1 and not ratio > grids.SIGMA_MIN:
        least = float(process.schedule.time_at(-2 * math.log(2 * grids.SIGMA_MIN)))
        raise ConfigurationError(
            f"got {begin:g} for the time to begin at, expected one at which there is noise to take away: at least "
            f"{max(process.schedule.t_min, least):.3g}"
        )

    def shortened(process: Gaussian, steps: int) -> Tensor:
        times = law(process, steps) if begin == 1 else law(process, steps, sigma_max=ratio)
        times[0] = begin
        return times

    return shortened


def _checked(grid: Tensor, first: float) -> Tensor:
    """The grid in float64, with times that are the schedule's first one but for the rounding of float32 set to it."""
    if isinstance(grid, str):
        raise ConfigurationError(f"got the grid {grid!r}, expected times, such as grids.karras(process, steps)")
    grid = torch.as_tensor(grid, dtype=torch.float64)
    if grid.ndim != 1 or len(grid) < 1 or grid.min() < 0 or grid.max() > 1:
        span = f" from {float(grid.min()):g} to {float(grid.max()):g}" if grid.numel() else ""
        raise ConfigurationError(
            f"got a grid of shape {tuple(grid.shape)}{span}, expected one axis of times from 1 (noise) to 0 (data), such as that "
            "of grids.karras(process, steps)"
        )
    grid = torch.where((grid - first).abs() <= ROUNDING * first, first, grid)
    beyond = grid[(grid > 0) & (grid < first)]
    if len(beyond):
        raise ConfigurationError(
            f"got a time of {float(beyond[0]):g}, below the schedule's first one, {first:g}, where its level no longer changes; "
            f"expected times of at least {first:g}, or 0, the data"
        )
    rises = grid[1:] - grid[:-1]
    if not ((rises < 0).all() or (rises > 0).all()):
        raise ConfigurationError(
            "got a grid that is not strictly monotone, expected falling (or rising, to encode) times"
        )
    return grid


def steps_within(calls: int, sampler: "Sampler") -> int:
    """The most steps that make at most `calls` calls: the last step lands on the data by one call, others take `stages`."""
    if calls < 1:
        raise ConfigurationError(f"got calls={calls}, expected at least 1")
    if math.isinf(sampler.stages):
        raise ConfigurationError(
            f"got calls={calls} for {sampler}, which makes as many as its tolerances ask for; leave calls out (steps are then "
            "the intervals that it fills), or take a sampler of a fixed number of calls a step, such as Heun() or Multistep()"
        )
    return (calls - 1) // int(sampler.stages) + 1


def landing(process: Gaussian, times: list[float]) -> tuple[list[float], bool]:
    """The times to visit, and whether x = estimate.x0 follows the last: where a falling grid ends on noise at the data end.

    That end is the schedule's first time; below it (0 on a table) lies the data itself, so the last time visited is the
    one before. A single time is a single call.
    """
    first = process.t_min
    if len(times) > 1 and times[-2] >= first > times[-1]:
        return times[:-1], True
    falling = len(times) == 1 or times[0] > times[-1]
    at_end = len(times) == 1 or times[-1] == first
    return times, falling and at_end and not process.is_data(times[-1])
