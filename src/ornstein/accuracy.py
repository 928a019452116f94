"""How exactly samplers do their work at a number of calls: what `ornstein bench` prints.

A sampler of the probability-flow ODE carries given states to given ends, and its error is the distance to them. A stochastic one
has no path to keep to; its law on normal data is carried exactly, and its error is that of the standard deviation.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ornstein import exact, grids
from ornstein.conditions import Condition
from ornstein.data.digits import images
from ornstein.denoisers import DenoiserLike
from ornstein.errors import NumericalError
from ornstein.linearised import Linearised
from ornstein.noise import Noise
from ornstein.processes.gaussian import Gaussian
from ornstein.samplers import (
    RK4,
    RK45,
    Ancestral,
    Euler,
    EulerMaruyama,
    Heun,
    Midpoint,
    Multistep,
    Sampler,
    Singlestep,
    StochasticHeun,
    sample,
    sample_steps,
    steps_within,
    usual,
)
from ornstein.samplers.recipes import landing
from ornstein.schedules import RectifiedFlow

Times = Callable[[Sampler, int], Tensor]
"""(sampler, steps) -> a grid."""
FINE = 200  # calls of the solution that a network is held against
EXACT = 1e-10  # tolerance of the one that exact denoisers are held against
MEAN, VARIANCE = 0.5, 0.25
SMOOTHING = 0.1


def target(name: str, process: Gaussian) -> exact.Normal | exact.Mixture:
    """An exact denoiser: "normal", N(MEAN, VARIANCE) in four dimensions; "mixture", eight N(m_k, 0.2^2 I) on a circle of radius
    1.5 in the plane; "digits", the 1797 embedded digits in [-1, 1], each the centre of N(0, SMOOTHING^2 I)."""
    if name == "normal":
        return exact.Normal(process, torch.full((4,), MEAN, dtype=torch.float64), VARIANCE)
    if name == "mixture":
        angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        return exact.Mixture(process, 1.5 * torch.stack([angles.cos(), angles.sin()], 1), 0.2**2)
    return exact.Empirical(process, images()[0].double() / 8 - 1, SMOOTHING)


@dataclass(frozen=True)
class Contender:
    """A sampler on a grid; `sampler` None is what `sample` takes for the number of calls."""

    name: str
    sampler: Sampler | None
    times: Times

    def at(self, calls: int) -> tuple[Sampler, Tensor] | None:
        """The sampler and its grid for at most `calls` calls; None where they are too few for two steps."""
        sampler = usual(calls) if self.sampler is None else self.sampler
        steps = steps_within(calls, sampler)
        return None if steps < 2 else (sampler, self.times(sampler, steps))


@dataclass(frozen=True)
class Score:
    """What a contender made of `asked` calls: the error, median and root mean square over examples of the root mean square
    over components, in model units; seconds a step of the whole batch, the denoiser's included."""

    name: str
    asked: int
    calls: int
    sampler: Sampler = field(repr=False)
    times: Tensor = field(repr=False)
    median: float
    rms: float
    seconds: float


def path_scores(
    denoiser: DenoiserLike,
    contenders: Iterable[Contender],
    calls: Sequence[int],
    begin: float,
    start: Tensor,
    truth: Tensor,
    cond: Condition | None = None,
) -> Iterator[Score]:
    """Scores of samplers of the ODE that carry `start` (n, *d), the states at time `begin`, towards `truth` at t = 0.

    Every grid is made to begin at that time, in place of its own first one and of those above. Where a sampler leaves the finite
    numbers there is no score. Raises `ConfigurationError` on a sampler that cannot make its steps.
    """
    for contender in contenders:
        for asked in calls:
            if (found := contender.at(asked)) is None:
                continue
            sampler, times = found
            times = torch.cat([times.new_tensor([begin]), times[1:][times[1:] < begin]])
            with suppress(NumericalError):
                drawn = sample(denoiser, sampler, start=start, grid=times, cond=cond)
                seconds = drawn.seconds / steps_of(denoiser.process, times)
                yield Score(contender.name, asked, drawn.calls, sampler, times, *distance(drawn.x, truth), seconds)


def law_scores(process: Gaussian, contenders: Iterable[Contender], calls: Sequence[int]) -> Iterator[Score]:
    """Scores of samplers that are linear in the state, noise included, on data N(MEAN, VARIANCE): |std - sqrt(VARIANCE)|."""
    for contender in contenders:
        for asked in calls:
            if (found := contender.at(asked)) is not None:
                law = law_of(process, *found)
                off = abs(math.sqrt(law.variance) - math.sqrt(VARIANCE))
                yield Score(
                    contender.name, asked, law.calls, *found, off, off, law.seconds / steps_of(process, found[1])
                )


def steps_of(process: Gaussian, times: Tensor) -> int:
    """How many steps a grid has, the landing included."""
    visited, lands = landing(process, times.tolist())
    return len(visited) - 1 + lands


class Law(NamedTuple):
    """Mean and variance of one component at the end of a run, its calls and its wall-clock time."""

    mean: float
    variance: float
    calls: int
    seconds: float


def law_of(process: Gaussian, sampler: Sampler, grid: Tensor) -> Law:
    """The law at the end of a run on data N(MEAN, VARIANCE).

    Every step is x <- a x + b z + c there, so the end is too, in all its draws: one row is run without noise from 0, one from 1,
    and one from 0 for each draw, which sees a 1 in that draw alone. The variance is the sum of the squares of what they add.
    """
    denoiser = exact.Normal(process, torch.tensor([MEAN], dtype=torch.float64), VARIANCE)
    counted = _Impulses(1)
    for _ in sample_steps(denoiser, sampler, torch.zeros(1, 1, dtype=torch.float64), grid, counted):  # type: ignore[arg-type]
        pass
    rows = 2 + counted.draws
    start = torch.zeros(rows, 1, dtype=torch.float64)
    start[1] = 1.0
    began = time.perf_counter()
    *_, last = sample_steps(denoiser, sampler, start, grid, _Impulses(rows))  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    rest, *moved = last.x.flatten().tolist()
    first, *draws = (value - rest for value in moved)
    begun = float(process.level(float(grid[0])).sigma)
    return Law(rest, (first * begun) ** 2 + sum(v * v for v in draws), last.calls, seconds)


class _Impulses:
    """Stands in for `Noise`: its k-th draw is 1 in row 2 + k alone."""

    def __init__(self, rows: int) -> None:
        self.rows, self.draws, self.device = rows, 0, torch.device("cpu")

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        drawn, row = torch.zeros(*shape, dtype=dtype), 2 + self.draws
        if row < self.rows:
            drawn[row] = 1.0
        self.draws += 1
        return drawn


def distance(x: Tensor, truth: Tensor) -> tuple[float, float]:
    """Median and root mean square over examples (n, *d) of the root mean square difference over components."""
    off = (x.cpu().double() - truth.cpu().double()).square().flatten(1).mean(1).sqrt()
    return float(off.median()), float(off.square().mean().sqrt())


def begun(process: Gaussian, shape: Sequence[int], seed: int, dtype: torch.dtype) -> tuple[float, Tensor]:
    """The first time of `grids.focused`, and draws of the prior there (n, *d)."""
    begin = float(grids.focused(process, 2)[0])
    return begin, process.prior(shape, Noise(seed, shape[0]), begin, dtype)


def solved(name: str, process: Gaussian, begin: float, start: Tensor) -> Tensor:
    """The end, at sigma = 0, of the paths of an exact target, to a tolerance of 1e-10.

    In y = x / alpha against sigma / alpha all schedules are one, so it is found under rectified flow, whose sigma(0) is 0.
    """
    flow = Gaussian(RectifiedFlow())
    alpha, _, log_snr = process.level(begin)
    first = float(flow.schedule.time_at(log_snr))
    ends = torch.tensor([first, 0.0], dtype=torch.float64)
    there = start / alpha * flow.level(first).alpha
    return sample(target(name, flow), RK45(EXACT, EXACT), start=there, grid=ends).x


def finely(denoiser: DenoiserLike, begin: float, start: Tensor, cond: Condition | None = None) -> tuple[Tensor, float]:
    """The end of a network's path by a fine solution of 200 calls, and how far half as many calls end from it (median)."""

    def at(calls: int) -> Tensor:
        grid = grids.focused(denoiser.process, calls)
        grid[0] = begin
        return sample(denoiser, usual(calls), start=start, grid=grid, cond=cond).x

    found = at(FINE)
    return found, distance(at(FINE // 2), found)[0]


def seen_order(scores: Sequence[Score]) -> float:
    """The order in the number of calls that two scores show, log(error ratio) / log(calls ratio); NaN where that is unknown."""
    if len(scores) < 2 or min(score.median for score in scores) <= 0 or scores[0].calls == scores[1].calls:
        return math.nan
    return math.log(scores[0].median / scores[1].median) / math.log(scores[1].calls / scores[0].calls)


def ode_contenders(process: Gaussian, measured: Linearised | None = None) -> list[Contender]:
    """The samplers of the ODE by the names users know; with `measured`, the usual one on grids made for the denoiser too."""
    focused, karras, even = (_law(process, law) for law in (grids.focused, grids.karras, grids.log_snr))
    made = [] if measured is None else [Contender("usual, optimal", None, measured.grid)]
    return [
        Contender("usual", None, focused),
        *made,
        Contender("Euler (DDIM), karras", Euler(), karras),
        Contender("Heun (EDM), karras", Heun(), karras),
        Contender("Midpoint, log_snr", Midpoint(), even),
        Contender("RK4, log_snr", RK4(), even),
        Contender("DPM-Solver++(2S), log_snr", Singlestep(2), even),
        Contender("DPM-Solver-3, log_snr", Singlestep(3, "eps"), even),
        Contender("DPM-Solver++(2M), karras", Multistep(2, "x0", exact=False), karras),
        Contender("DPM-Solver++ of order 3, karras", Multistep(3, "x0"), karras),
        Contender("UniPC of order 3, log_snr", Multistep(3, "x0", corrector=True), even),
        Contender("DEIS of order 3, karras", Multistep(3), karras),
        Contender("PLMS, uniform", Multistep(4, variable="t", exact=False), _law(process, grids.uniform)),
        Contender("LMS, karras", Multistep(4, variable="sigma"), karras),
        Contender("EAB of order 4, focused", Multistep(4), focused),
    ]


def sde_contenders(process: Gaussian) -> list[Contender]:
    """The stochastic samplers whose law on normal data can be carried exactly."""
    karras = _law(process, grids.karras)
    return [
        Contender("DDPM, karras", Ancestral(), karras),
        Contender("Euler-Maruyama, karras", EulerMaruyama(), karras),
        Contender("stochastic Heun, karras", StochasticHeun(), karras),
        Contender("SDE-DPM-Solver++(2M), karras", Multistep(2, "x0", exact=False, noise=1.0), karras),
        Contender("Heun with churn 0.2, karras", Heun(churn=0.2), karras),
    ]


def network_contenders(process: Gaussian, measured: Linearised) -> list[Contender]:
    """What is tried on a trained network: the usual family on the usual grid and on grids made for it, and others' defaults."""
    focused, karras = _law(process, grids.focused), _law(process, grids.karras)
    family = {
        "Multistep(2)": Multistep(2),
        "Multistep(3)": Multistep(3),
        "corrected Multistep(3)": Multistep(3, corrector=True),
    }
    return [
        *(Contender(f"{name}, {grid}", s, t) for name, s in family.items() for grid, t in _both(focused, measured)),
        Contender("DPM-Solver++(2M), karras", Multistep(2, "x0", exact=False), karras),
        Contender("DEIS of order 3, karras", Multistep(3), karras),
        Contender("Heun (EDM), karras", Heun(), karras),
    ]


def _both(focused: Times, measured: Linearised) -> list[tuple[str, Times]]:
    return [("focused", focused), ("optimal", measured.grid)]


def _law(process: Gaussian, law: Callable[[Gaussian, int], Tensor]) -> Times:
    return lambda sampler, steps: law(process, steps)
