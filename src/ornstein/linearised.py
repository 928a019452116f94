"""Grids made for one denoiser, from its trajectories, measured once at some hundred calls.

Some states of the prior are carried to the data on a fine grid. About such a trajectory y(t) = x_t / alpha the denoiser is, to
first order,

    eps(x, t) = eps(t) + J(t) (x / alpha - y(t)),   y(s) = y(t) + int eps dr,   r = sigma / alpha,

with the readings eps(t) known at the fine times. J, a matrix, is replaced by its mean over directions, which the sizes of the
readings tell: for the posterior mean, E |eps|^2 = d - mmse / r^2, and the Jacobian of eps is (I - Cov(x_0 | x_t) / r^2) / r, so

    J = E |eps|^2 / (d r).

With a base N(mu, Sigma) all this is said of the whitened readings, whose Sigma is I.

So a sampler can be run on this model in place of the denoiser (`Linearised`). Its state is then a sum of the fine readings, a
run takes as many numbers as there are fine times, and its error at the end is a quadratic form in the readings' inner
products. No call of the denoiser is needed to try a grid, and `optimal` tries a few hundred. What the curvature of the
trajectory costs, how steps make up for one another, and how far a sampler amplifies its own errors are all in it.
"""

import math
from bisect import bisect_left

import torch
from torch import Tensor

from ornstein.conditions import Condition, moved, rows_of
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.grids import focused, lands_on_data
from ornstein.noise import Noise
from ornstein.processes.gaussian import Estimate, Gaussian
from ornstein.samplers.base import Sampler, device_of, sample_steps, shape_of
from ornstein.samplers.exponential import weights
from ornstein.samplers.multistep import Multistep
from ornstein.samplers.recipes import usual
from ornstein.schedules.base import Time

CALLS = 160
POINTS = 64
AT_ONCE = 1 << 24
"""Readings that are held at once: 128 MiB in float64, and half of it twice while they are gathered."""
DOUBTS = (0.5, 1.0, 1.5)
"""A grid is judged by the root mean square error under these multiples of J, whose true size depends on the direction."""
FINE = Multistep(3, corrector=True)


def optimal(
    denoiser: DenoiserLike,
    steps: int,
    sampler: Sampler | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    cond: Condition | None = None,
    n: int = POINTS,
    seed: int = 1,
) -> Tensor:
    """The times at which a sampler of `steps` steps errs least on this denoiser: `Linearised(denoiser).grid(sampler, steps)`.

    160 calls on `n` states, and some seconds; for several grids, or to compare samplers by `error`, keep the `Linearised`. By
    default the sampler is that of `sample(calls=steps)`. `shape` may be left out where the denoiser knows it; `cond` is (n, ...).

    Raises `ConfigurationError` on a sampler that draws noise, and on more steps than fine times.
    """
    measured = Linearised(denoiser, shape=shape, cond=cond, n=n, seed=seed)
    return measured.grid(usual(steps) if sampler is None else sampler, steps)


class Linearised:
    """The first-order model of a denoiser about `n` of its own trajectories (see the module). It is a denoiser itself, of states
    (b, calls) that are coefficients of the fine readings, in float64, on the CPU.

    Args: as of `optimal`; calls: how many fine times.

    Raises `NumericalError` where the denoiser returns NaN or infinity.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        *,
        shape: tuple[int, ...] | None = None,
        cond: Condition | None = None,
        n: int = POINTS,
        seed: int = 1,
        calls: int = CALLS,
    ) -> None:
        shape, n = shape_of(denoiser, n, shape, cond=cond)
        if n < 1 or calls < 4:
            raise ConfigurationError(f"got n={n}, calls={calls}, expected at least 1 trajectory of at least 4 calls")
        self.process = Gaussian(denoiser.process.schedule)
        grid = focused(self.process, calls)
        self.times = grid[:calls]
        log_snr = self.process.schedule.log_snr(self.times)
        self._places, ratio = log_snr.tolist(), torch.exp(-log_snr / 2)
        parts, dims = [], math.prod(shape)
        size = max(1, AT_ONCE // (calls * dims))
        for begin in range(0, n, size):
            rows = range(begin, min(n, begin + size))
            part = rows_of(cond, slice(begin, begin + len(rows)))
            eps = _readings(denoiser, shape, part, Noise(seed, rows, device_of(denoiser)), grid)
            parts.append(eps @ eps.mT / dims)
        self._gram = torch.cat(parts)  # (n, calls, calls): the inner products of readings, per component
        if not torch.isfinite(self._gram).all():
            raise NumericalError("the denoiser returns NaN or infinity on its own trajectories, expected numbers")
        slope = self._gram.diagonal(dim1=1, dim2=2).mean(0) / ratio
        integral = _integrals(ratio)
        self._end = integral[-1]
        self._table = torch.cat([torch.eye(calls).double(), integral[:-1], slope[:, None]], 1)  # eps, y, J at the times

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        """The estimate for each of DOUBTS, which are the rows of x_t; between fine times the model is the cubic through four."""
        place = self.process.level(t).log_snr
        first = min(max(bisect_left(self._places, place) - 2, 0), len(self.times) - 4)
        near = self._places[first : first + 4]
        shares = [math.prod((place - p) / (q - p) for p in near if p != q) for q in near]
        row = torch.tensor(shares, dtype=torch.float64) @ self._table[first : first + 4]
        eps, y, slope = row.split([len(self.times)] * 2 + [1])
        slopes = slope * torch.tensor(DOUBTS, dtype=torch.float64)[:, None]
        return self.process.estimate(x_t, t, eps=eps + slopes * (x_t / self.process.level(t).alpha - y))

    def error(self, sampler: Sampler, grid: Tensor) -> float:
        """The model's error at the end of the grid, per component, in units of x_0: the geometric mean over trajectories.

        They begin where `times` do, so that is where every grid is taken to begin.
        """
        if sampler.stochastic or math.isinf(sampler.stages):
            raise ConfigurationError(
                f"got {sampler}, expected a sampler of the ODE, without noise, with a fixed number of calls a step: Heun(), "
                "Multistep()"
            )
        grid = torch.cat([self.times[:1], grid[1:]])
        start = torch.zeros(len(DOUBTS), len(self.times), dtype=torch.float64)
        *_, last = sample_steps(self, sampler, start, grid, Noise(0, len(DOUBTS)))
        off = (last.x - self._end).T
        squares = (off * (self._gram @ off)).sum(1).mean(1)
        return float(squares.clamp(min=torch.finfo(torch.float64).tiny).log().mean().div(2).exp())

    def grid(self, sampler: Sampler, steps: int) -> Tensor:
        """The times of `steps` steps for which `error` is least: the two ends stay, each time between them moves to a neighbour
        among the fine ones, from those of `focused` on, as long as that helps."""
        most = len(self.times)
        if not 1 <= steps <= most:
            raise ConfigurationError(f"got steps={steps}, expected 1 to {most}, the fine times that were measured")
        places = [round(k * (most - 1) / max(1, steps - 1)) for k in range(steps)]
        best, moved = self.error(sampler, self._at(places)), True
        while moved:
            moved = False
            for k in range(1, steps - 1):
                for place in (places[k] + 1, places[k] - 1):
                    if not places[k - 1] < place < places[k + 1]:
                        continue
                    tried = [*places[:k], place, *places[k + 1 :]]
                    error = self.error(sampler, self._at(tried))
                    if error < best:
                        places, best, moved = tried, error, True
        return self._at(places)

    def _at(self, places: list[int]) -> Tensor:
        times = self.times[places]
        return torch.cat([times, times.new_zeros(1)]) if lands_on_data(self.process) else times


def _readings(
    denoiser: DenoiserLike, shape: tuple[int, ...], cond: Condition | None, rng: Noise, grid: Tensor
) -> Tensor:
    """eps (b, calls, d) along the trajectories of states of the prior, in float64, on the CPU."""
    kept: list[Tensor] = []

    class Recorder:
        process = denoiser.process

        def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
            estimate = denoiser(x_t, t, cond, keep)
            eps = estimate.eps if estimate.process.base is None else estimate.process.base.whiten(estimate.eps)
            kept.append(eps.flatten(1).cpu())
            return estimate

    cond = moved(cond, rng.device)
    x = denoiser.process.given(cond).prior((rng.count, *shape), rng, float(grid[0]))
    for _ in sample_steps(Recorder(), FINE, x, grid, rng, cond):
        pass
    return torch.stack(kept, 1).double()


def _integrals(ratio: Tensor) -> Tensor:
    """The coefficients of int eps dr from the first time to each (calls, calls), and to r = 0 in one row more.

    Between two times it is that of the cubic in log-SNR through the four around them, beyond the last the line in r.
    """
    count, places, r = len(ratio), (-ratio.log()).tolist(), ratio.tolist()
    rows = torch.zeros(count + 1, count, dtype=torch.float64)
    for i in range(count):
        if i + 1 < count:
            near, h = [j for j in (i - 1, i, i + 1, i + 2) if 0 <= j < count], places[i + 1] - places[i]
            found, rise = weights([(places[j] - places[i]) / h for j in near], h), r[i + 1] - r[i]
        else:
            near, found, rise = [i, i - 1], weights([0.0, 1 - r[i - 1] / r[i]]), -r[i]
        rows[i + 1] = rows[i]
        for j, weight in zip(near, found, strict=True):
            rows[i + 1, j] += rise * weight
    return rows
