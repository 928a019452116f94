"""`elbo`: a lower bound of log p(x) in named parts, from the terms of `ornstein.variational`.

Two estimators of one bound, and its limit:

    denoising   -KL(q(x_T | x_0) || p(x_T)) - sum KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)) + log p(x_0 | x_1),
                each term at a draw of its own x_i (paper 002 eq. 23)
    path        -KL(q(x_T | x_{T-1}) || p(x_T)) + sum log p(x_i | x_{i+1}) / q(x_i | x_{i-1}) + log p(x_0 | x_1),
                all at one draw of the path x_1 .. x_T (paper 002 eq. 21 as corrected: a log-ratio, not a KL)
    T -> inf    the KLs become 1/2 int E||eps - eps_hat||^2 d log-SNR, in which the variance of p plays no part

The sums of the three have an expectation each; those of the first two are equal, and tend to the third. Processes of
categories have the same three: their terms are those of their own laws, and in the limit the integral is over t
(`ornstein.terms`).
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ornstein import grids
from ornstein.conditions import Condition, mapped
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.likelihood.examples import Examples
from ornstein.likelihood.records import Bound, Steps, concatenated, standard_error
from ornstein.noise import Noise, fold
from ornstein.processes.gaussian import Gaussian
from ornstein.samplers.base import Counted
from ornstein.schedules.base import Time, as_time
from ornstein.terms import Terms, terms_of
from ornstein.variational import Bins, chain, in_float64, resolution

FORMS = ("denoising", "path")
LIMIT_TERMS = 128


@dataclass(frozen=True)
class Found:
    """The terms of the bound of b examples in nats: the prior (b,), and the steps (., b) from the noisy end, of which the
    last is the reconstruction."""

    prior: Tensor
    steps: Tensor


@dataclass(frozen=True)
class _Chain:
    """The times t_1 < ... < t_T of the chain, and the terms of its bound.

    drawn: how many of the denoising terms are drawn, None for all. limit: whether they are of the integral over the clock
    between the first time and the last.
    """

    times: tuple[float, ...]
    terms: Terms
    drawn: int | None
    limit: bool = False

    def separate(self, denoiser: DenoiserLike, x0: Any, rng: Noise, u: Tensor) -> Found:
        """Each term at a draw of its own; u (b, drawn) says which are drawn."""
        process, found = denoiser.process, []
        for t, s, weight in self._visits(process, u):
            estimate = denoiser(process.noise(x0, t, rng), t)
            cost = self.terms.rate(estimate, x0, t) if s is None else self.terms.step(estimate, x0, t, s)
            found.append(-weight * cost)
        found.append(self._last(denoiser, process.noise(x0, self.times[0], rng), x0))
        return Found(-self.terms.end(process, x0, self.times[-1]), torch.stack(found))

    def _visits(self, process: Gaussian, u: Tensor) -> Iterator[tuple[Time, Time | None, float]]:
        """The steps (t, s, weight) from the noisy end, or drawn ones, one in each of equal parts; s is None in the limit."""
        times, count = torch.tensor(self.times, dtype=torch.float64), len(self.times) - 1
        if self.drawn is None:
            yield from ((self.times[i], self.times[i - 1], 1.0) for i in range(count, 0, -1))
            return
        low, high = self.terms.clock(process, self.times[0], self.times[-1]) if self.limit else (0.0, 0.0)
        for place in ((torch.arange(self.drawn) + u) / self.drawn).unbind(1):
            if self.limit:
                yield self.terms.time_at(process, low + (high - low) * place), None, (high - low) / self.drawn
            else:
                i = 1 + (place * count).long().clamp(max=count - 1)
                yield times[i], times[i - 1], count / self.drawn

    def path(self, denoiser: DenoiserLike, x0: Any, rng: Noise) -> Found:
        """Every step, at one path drawn upwards, x_1, x_2, .., x_T."""
        process, times = denoiser.process, self.times
        law = self.terms.marginal(process, x0, times[0])
        x = _like(law.sample(rng), x0)
        found = [self._last(denoiser, x, x0)]
        for s, t in pairwise(times):
            above = process.transition(_precise(x), s, t)
            x_t = _like(above.sample(rng), x0)
            back = self.terms.reverse(denoiser(x_t, t), t, s)
            found.append(back.log_prob(_precise(x)) - law.log_prob(_precise(x)))
            law, x = above, x_t
        return Found(-law.kl(self.terms.prior(process, x, times[-1])), torch.stack(found[::-1]))

    def _last(self, denoiser: DenoiserLike, x_1: Any, x0: Any) -> Tensor:
        """log p(x_0 | x_1), (b,)."""
        return self.terms.last(denoiser(x_1, self.times[0]), x0, self.times[0])


def _precise(x: Any) -> Any:
    """Numbers in float64; categories as they are."""
    return mapped(x, lambda part: in_float64(part) if part.is_floating_point() else part)


def _like(x: Any, x0: Any) -> Any:
    """A state in the types of x0."""
    return {k: v.to(x0[k].dtype) for k, v in x.items()} if isinstance(x0, dict) else x.to(x0.dtype)


def elbo(
    denoiser: DenoiserLike,
    x: Any,
    *,
    steps: float = 1000,
    grid: Tensor | None = None,
    terms: int | None = None,
    form: str = "denoising",
    fixed: float = 1.0,
    cond: Condition | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Bound:
    """A lower bound of log p(x) for each example, in nats: E_q log p(x_0, x_1 .. x_T) / q(x_1 .. x_T | x_0) by draws of q.

    Args:
        denoiser: in model units; or a loaded `Model`, whose raw data x is: of levels, whose log-probability is bounded by
            the discretised decoder, or continuous, whose log-density is.
        x: (n, *d), of categories integers, of a `Product` a dict of its parts.
        steps: T, the length of the chain, which for data of levels begins at half the width of a level (below that the chain
            would code what rounding knows); math.inf for the continuous-time limit, between sigma / alpha of 0.002 and 80
            or the schedule's own ends where they are narrower, decoded there with std sigma.
        grid: the falling times of the chain, in place of `steps`; the data at its end may be left out.
        terms: K of the T - 1 denoising terms, drawn for each example, for an unbiased estimate with K + 1 calls; all of
            them, and T calls, where None or where there are no more. In the limit the number of draws, 128 where None.
        form: "denoising" or "path"; see the module.
        fixed: where between beta~ (0) and beta (1) the variance of numbers lies, in log, where it is not learned.
        cond: the condition, (n, ...).
        seed: example i draws from (seed, i) alone, whatever the batch size.
        batch_size: examples per network call (256).

    Raises `ConfigurationError` on options that do not fit, `DataError` on x that the denoiser cannot have,
    `NumericalError` where a term is NaN or infinite.
    """
    began = time.perf_counter()
    examples = Examples.of(denoiser, x, cond)
    offset = examples.log_det()
    bins = Bins.of(examples.scaling) if isinstance(denoiser.process, Gaussian) else None
    setting = _chain(denoiser.process, steps, grid, terms, form, fixed, bins)
    found, tables, calls = [], [], 0
    for batch in examples.batches(batch_size):
        counted, rng = Counted(denoiser, batch.cond), Noise(seed, batch.rows, examples.device)
        places = Noise(fold(seed, 1), batch.rows).uniform((len(batch.rows), setting.drawn or 0))
        with torch.no_grad():
            path = form == "path"
            got = setting.path(counted, batch.x0, rng) if path else setting.separate(counted, batch.x0, rng, places)
        found.append((got.prior, got.steps[:-1].sum(0), got.steps[-1] + offset))
        _check_finite(found[-1], batch.rows)
        if setting.drawn is None:
            tables.append(got.steps.cpu())
        calls = counted.calls
    prior, diffusion, last = (concatenated(list(part)) for part in zip(*found, strict=True))
    seconds = time.perf_counter() - began
    summary = _summary(setting.times, tables, offset) if tables else None
    return Bound(examples.dims, float(calls), seconds, examples.levels, prior, diffusion, last, summary)


def _chain(
    process: Gaussian,
    steps: float,
    grid: Tensor | None,
    terms: int | None,
    form: str,
    fixed: float,
    bins: Bins | None,
) -> _Chain:
    """The chain of `elbo`'s options. Raises `ConfigurationError` where they do not fit."""
    if form not in FORMS:
        raise ConfigurationError(f"got form '{form}', expected one of {', '.join(FORMS)}")
    if not 0 <= fixed <= 1:
        raise ConfigurationError(f"got fixed={fixed}, expected 0 (beta~) to 1 (beta)")
    if terms is not None and terms < 1:
        raise ConfigurationError(f"got terms={terms}, expected at least 1, or None for all")
    if form == "path" and (terms is not None or steps == math.inf):
        raise ConfigurationError("got form='path' with drawn terms, expected terms=None and a finite number of steps")
    least_level = resolution(process, bins)
    if steps == math.inf:
        if grid is not None:
            raise ConfigurationError("got a grid and steps=math.inf, expected one of them")
        t_1, t_2 = process.t_min, 1.0
        if isinstance(process, Gaussian):
            ends = process.schedule.cut(max(grids.SIGMA_MIN, least_level), grids.SIGMA_MAX)
            t_1, t_2 = process.schedule.time_at(torch.tensor(ends, dtype=torch.float64)).tolist()
        return _Chain((t_1, t_2), terms_of(process, (t_1,), bins, fixed), terms or LIMIT_TERMS, limit=True)
    if grid is None and not (steps >= 1 and int(steps) == steps):
        raise ConfigurationError(f"got steps={steps}, expected a whole number of at least 1, or math.inf")
    times = tuple((chain(process, int(steps), least_level) if grid is None else _levels(process, grid)).tolist())
    drawn = terms if terms is not None and terms < len(times) - 1 else None  # all of them cost no more
    return _Chain(times, terms_of(process, times, bins, fixed), drawn)


def _levels(process: Gaussian, grid: Tensor) -> Tensor:
    """The times of a falling grid without the data at its end, rising."""
    times = as_time(grid)
    if times.ndim != 1 or len(times) < 1 or times.min() < 0 or times.max() > 1 or not (times.diff() < 0).all():
        raise ConfigurationError("got a grid that is not one axis of falling times in [0, 1]")
    last = float(times[-1])
    on_data = last < (1 - 1e-6) * process.t_min or process.is_data(last)
    times = times[:-1] if on_data else times
    if not len(times):
        raise ConfigurationError("got a grid of the data alone, expected times with noise before it")
    return times.flip(0)


def _check_finite(parts: tuple[Tensor, ...], rows: range) -> None:
    for name, part in zip(("prior", "diffusion", "reconstruction"), parts, strict=True):
        bad = (~torch.isfinite(part)).nonzero().flatten().tolist()
        if bad:
            raise NumericalError(
                f"the {name} part of the bound is NaN or infinite for {len(bad)} of {len(rows)} examples, the first of "
                f"which is {rows[bad[0]]}; the network returns NaN or infinity, or the example is far from its data"
            )


def _summary(times: tuple[float, ...], tables: list[Tensor], offset: float) -> Steps:
    """Means and standard errors over all examples, from tables (T, b) of the batches."""
    t = torch.tensor(times, dtype=torch.float64).flip(0)
    table = torch.cat([part.double().cpu() for part in tables], dim=1)
    table[-1] += offset
    return Steps(t, torch.cat([t[1:], t.new_zeros(1)]), table.mean(1), standard_error(table, 1))
