"""The only loop: a sampler's step repeated over a grid of times.

A sampler is a frozen recipe of one step, `step(denoiser, x, t, s, memory, rng) -> (x, memory)`, from time t to time s. It
declares facts that are checked where objects meet: `order` of accuracy, whether it is `stochastic`, how many times it
calls the denoiser in a full step (`stages`), and what it `needs` of the process ("score" where it does not say). `memory` is
None at first and then whatever the step returned. Where the noise of a schedule does not end at 0, the last call makes x =
estimate.x0, or what the sampler's own `land` makes of it.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ornstein.conditions import Condition, count_of, finite_rows, joined, moved, rows_of
from ornstein.denoisers import DenoiserLike, Wrapper, check_condition
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.noise import Noise
from ornstein.processes.gaussian import Estimate
from ornstein.samplers.recipes import landing, recipe
from ornstein.samplers.tally import Tally, counting
from ornstein.schedules.base import Time


class Sampler(Protocol):
    """A recipe of one step; see the module."""

    @property
    def order(self) -> int:
        """Order of accuracy, which the tests measure."""

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""

    @property
    def stages(self) -> float:
        """Calls of the denoiser in a full step; infinity where its tolerances decide."""

    def step(self, denoiser: DenoiserLike, x: Any, t: float, s: float, memory: Any, rng: Noise) -> tuple[Any, Any]: ...


class Counted:
    """A denoiser that counts its evaluations, holding the condition of the whole run; a call on some of its rows brings theirs.

    `calls`: evaluations per sample, of every network within; a doubled batch counts twice.
    """

    def __init__(self, denoiser: DenoiserLike, cond: Condition | None) -> None:
        self.tally = Tally() if isinstance(denoiser, Wrapper) else None
        self.denoiser: Any = denoiser if self.tally is None else counting(denoiser, self.tally)
        self.process, self.cond, self.calls = denoiser.process.given(cond), cond, 0

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        cond = self.cond if cond is None else cond
        if self.tally is None:
            self.calls += 1
            return self.denoiser(x_t, t, cond, keep)
        before = self.tally.rows
        estimate = self.denoiser(x_t, t, cond, keep)
        self.calls += math.ceil((self.tally.rows - before) / count_of(x_t))
        return estimate

    def log_density(self, x_t: Tensor, t: Time) -> Tensor:
        """log p_t(x_t) of a denoiser that knows it, counted as a call."""
        self.calls += 1
        return self.denoiser.log_density(x_t, t)


@dataclass(frozen=True)
class State:
    """A state of the loop: the number of steps made, the time reached, x (b, *d) or a dict of parts, the network calls so far."""

    count: int
    t: float
    x: Any
    calls: int


@dataclass(frozen=True)
class Samples:
    """What `sample` returns.

    x: (n, *d), or a dict of parts. calls: network evaluations per sample. seconds: wall-clock time. trajectory: (time, value)
    pairs, where asked.
    """

    x: Any
    calls: int
    seconds: float
    trajectory: list[tuple[float, Tensor]] | None = None


def sample_steps(
    denoiser: DenoiserLike, sampler: Sampler, x: Tensor, grid: Tensor, rng: Noise, cond: Condition | None = None
) -> Iterator[State]:
    """The loop as a generator: yields the state at grid[0], then after every step.

    Where the grid falls to the schedule's first time and sigma is above 0 there, a last state, the data, follows; so it does
    after the time before 0 on a table, and after a single time.
    """
    counted, memory = Counted(denoiser, cond), None
    times, lands = landing(counted.process, grid.tolist())
    yield State(0, times[0], x, 0)
    for count, (t, s) in enumerate(pairwise(times), start=1):
        with torch.no_grad():
            x, memory = sampler.step(counted, x, t, s, memory, rng)
        yield State(count, s, x, counted.calls)
    if lands:
        own = getattr(sampler, "land", None)
        with torch.no_grad():
            last = times[-1]
            x = counted.process.land(counted(x, last), rng) if own is None else own(counted, x, last, memory, rng)
        yield State(len(times), 0.0, x, counted.calls)


def sample(
    denoiser: DenoiserLike,
    sampler: Sampler | None = None,
    *,
    n: int | None = None,
    shape: Any = None,
    start: Any = None,
    steps: int | None = None,
    calls: int | None = None,
    grid: Tensor | None = None,
    cond: Condition | None = None,
    seed: int = 0,
    first: int = 0,
    batch_size: int | None = None,
    trajectory: int | Callable[[float, Tensor], Tensor] | None = None,
) -> Samples:
    """Draw samples, or carry given states along a grid.

    Args:
        denoiser: what to sample from, in model units; a loaded `Model` gives samples in raw units.
        sampler: the recipe of a step; by default that of `recipes.usual`: `Multistep(3)`, from 12 calls on with its corrector.
        n, shape: how many samples, of what shape d (a dict for a state of parts); it may be left out where the denoiser knows it.
        start: the states at grid[0] (n, *d), at t = 1 where no grid is given, in place of a draw of the prior.
        steps, calls: how many steps, or at most how many network evaluations per sample (at most one of them; 25 calls
            where none of them nor a grid is given, 25 steps under a constraint); a guided denoiser may make two each time.
            Calls for more than the landing, but less than a step, are refused.
        grid: the times to visit; by default `grids.karras(process, steps)`, `grids.focused` where no sampler is named. An
            ascending grid goes from data to noise.
        cond: the condition, a tensor (n, ...) or a dict of them.
        seed, first: these are samples first .. first + n - 1 of the seed; sample i depends on (seed, i) alone, whatever
            the batch size.
        batch_size: examples per network call (256).
        trajectory: k keeps every k-th state and the last; a function of (t, x) keeps its values instead.

    Raises `ConfigurationError` on options that do not fit, `NumericalError` on NaN or infinity: it names time and call, and its
    `last` is the `State` of the batch before that step.
    """
    began = time.perf_counter()
    sampler, grid = recipe(denoiser, sampler, steps, calls, grid, begin=None if start is None else 1.0)
    shape, n = shape_of(denoiser, n, shape, start, cond)
    check_condition(denoiser, cond)
    size = 256 if batch_size is None else batch_size
    if size < 1:
        raise ConfigurationError(f"got batch_size={batch_size}, expected at least 1")
    held = next(iter(start.values())) if isinstance(start, dict) else start
    device = device_of(denoiser) if held is None else held.device
    parts: list[Any] = []
    made, kept = 0, []
    for begin in range(0, n, size):
        rows = slice(begin, min(begin + size, n))
        part_cond = moved(rows_of(cond, rows), device)

        def run(rows: slice = rows, part_cond: Condition | None = part_cond) -> Iterator[State]:
            rng = Noise(seed, range(first + rows.start, first + rows.stop), device)
            process = denoiser.process.given(part_cond)
            if start is None:
                x = process.prior(batched(shape, rows.stop - rows.start), rng, float(grid[0]))
            else:
                x = rows_of(start, rows)
            return sample_steps(denoiser, sampler, x, grid, rng, part_cond)

        states, x, made = _follow(run(), trajectory)
        if not finite_rows(x).all():
            _name_the_step(run())
        parts.append(x)
        kept.append(states)
    if not parts:
        parts.append(rows_of(denoiser.process.prior(batched(shape, 1), Noise(seed, 1, device)), slice(0)))
    x = joined(parts)
    scaling = getattr(denoiser, "scaling", None)
    x = x if scaling is None else scaling.decode(x)
    path = None
    if trajectory is not None:
        path = [(times[0][0], joined([value for _, value in times])) for times in zip(*kept, strict=True)]
    return Samples(x, made, time.perf_counter() - began, path)


def _follow(
    states: Iterator[State], trajectory: int | Callable[[float, Tensor], Tensor] | None
) -> tuple[list[tuple[float, Tensor]], Tensor, int]:
    """Run the loop to its end; the states or values kept on the way, the last state, the calls."""
    kept: list[tuple[float, Tensor]] = []
    state = None
    try:
        for state in states:
            if callable(trajectory):
                kept.append((state.t, trajectory(state.t, state.x)))
            elif trajectory and state.count % trajectory == 0:
                kept.append((state.t, state.x))
    except NumericalError as error:
        error.last = state if error.last is None else error.last
        raise
    assert state is not None  # the loop yields its start
    if trajectory and not callable(trajectory) and state.count % trajectory:
        kept.append((state.t, state.x))
    return kept, state.x, state.calls


def _name_the_step(states: Iterator[State]) -> None:
    """Replay a run that left the finite numbers, to name the step. Raises `NumericalError`, with the state before that."""
    before = None
    for state in states:
        good = finite_rows(state.x)
        if not good.all():
            rows = int((~good).sum())
            since = "its start" if before is None else f"t = {before.t:.6g}"
            raise NumericalError(
                f"sampling left the finite numbers in step {state.count}, from {since} to {state.t:.6g} "
                f"(network call {state.calls}), in {rows} of {len(good)} samples; the network returns NaN or "
                "infinity there, or the grid is too coarse for this sampler",
                last=before,
            )
        before = state
    raise NumericalError(
        "sampling left the finite numbers, but not when it was run again with the same seed: the denoiser does not give the same "
        "answer twice (dropout in training mode, kernels that do not repeat)"
    )


def batched(shape: Any, n: int) -> Any:
    """The shape of n samples of one of shape d, or of each part of a state."""
    return {name: (n, *part) for name, part in shape.items()} if isinstance(shape, dict) else (n, *shape)


def shape_of(
    denoiser: DenoiserLike, n: int | None, shape: Any, start: Condition | None = None, cond: Condition | None = None
) -> tuple[Any, int]:
    """The shape of one sample and their number. Raises `ConfigurationError` where they are not known, or do not agree."""
    if start is not None:
        n = count_of(start) if n is None else n
        shape = {k: v.shape[1:] for k, v in start.items()} if isinstance(start, dict) else start.shape[1:]
    shape = getattr(denoiser, "shape", None) if shape is None else shape
    shape = tuple(shape) if shape is not None and not isinstance(shape, dict) else shape
    if shape is None:
        raise ConfigurationError("the shape of one sample is not known: pass shape=(...)")
    given = None if cond is None else count_of(cond)
    n = (1 if given is None else given) if n is None else n
    for name, count in (("start", None if start is None else count_of(start)), ("cond", given)):
        if count not in (None, n):
            raise ConfigurationError(f"got {count} rows of {name} for n={n} samples, expected {n}")
    if n < 0:
        raise ConfigurationError(f"got n={n}, expected 0 or more")
    return shape, n


def device_of(denoiser: DenoiserLike) -> torch.device:
    """Where a denoiser's parameters are; the CPU for one that has none."""
    parameters = getattr(denoiser, "parameters", None)
    first = None if parameters is None else next(iter(parameters()), None)
    return torch.device("cpu") if first is None else first.device
