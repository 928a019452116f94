"""`log_likelihood`: log p(x) by the probability-flow ODE, carried along the curve of `ornstein.curve`.

    log p(x) = log p_1(x_1) + D log(N_1 cos(theta_0) / sigma_d) + int div(dz/dtheta) dtheta

The path z and the integral are one state of one Runge-Kutta integration, whose tolerances hold for both (the integral counted
per dimension). What the figure rests on is said in the record: the law taken at t = 1, the level at which the density is, the
probes of the trace. Quantised data have no density; `Dequantise` makes a lower bound of their log-probability.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.curve import Curve
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.integrate import Solver, State, integrate
from ornstein.likelihood.examples import Batch, Examples, usual_solver
from ornstein.likelihood.records import Likelihood, concatenated
from ornstein.likelihood.trace import Exact, Hutchinson, Trace, divergence
from ornstein.noise import Noise
from ornstein.variational import Bins, prior_kl, resolution

BATCH_SIZE = 64
SMALL = 32  # dimensions up to which the exact trace is the default


@dataclass(frozen=True)
class Dequantise:
    """Quantised data as continuous ones: x + u with u uniform on the bin of x, of width 1 in raw units.

    The mean over draws of log p(x + u) is, in expectation, at most log P(x) = log E p(x + u) (Theis et al. 2016). With
    `tighten` the draws are averaged before the logarithm, a bound that rises with their number (Burda et al. 2016); it
    needs the exact trace, for the noise of probes would be averaged in the same way, and raise it above log P(x).
    """

    draws: int = 1
    tighten: bool = False

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigurationError(f"got draws={self.draws}, expected at least 1")


@dataclass(frozen=True)
class _Recipe:
    """How a density is computed: trace, solver, law at t = 1, dequantisation, seed."""

    trace: Trace
    solver: Solver
    terminal: Callable[[Tensor], Tensor] | None
    dequantise: Dequantise | None
    seed: int


def log_likelihood(
    denoiser: DenoiserLike,
    x: Tensor,
    *,
    trace: Trace | None = None,
    solver: Solver | None = None,
    terminal: Callable[[Tensor], Tensor] | None = None,
    dequantise: Dequantise | None = None,
    sigma: float | None = None,
    cond: Condition | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Likelihood:
    """log p(x) of examples x (n, *d) in nats, by the probability-flow ODE (paper 002 eq. 52).

    Args:
        denoiser: a denoiser, and x in model units; or a loaded `Model`, and x raw data.
        trace: of the divergence; by default `Exact()` up to 32 dimensions and where draws are tightened, else
            `Hutchinson()`.
        solver: `RungeKutta(rtol, atol)` or `FixedSteps(n)`; by default tolerances of 1e-5 in float64, 1e-4 in float32, where
            tighter ones resolve the rounding of a network, at many calls.
        terminal: log-density of x_1 (b, *d) in nats, (b,); by default the prior's, log N(x_1; mu, sigma(1)^2 Sigma).
        dequantise: for quantised data, by default `Dequantise()`; the figure is then a bound of their log-probability.
        sigma: the level sigma / alpha of noise at which the density is taken, where above the schedule's first; by default
            half the width of a level for quantised data (a network that has learned the levels has peaks at them below
            that, and the noise within a level misses the peaks), else 0.
        cond: the condition, (n, ...).
        seed: probes and draws of example i are functions of (seed, i), whatever the batch size.
        batch_size: examples per network call (64).

    Raises `ConfigurationError` on options that do not fit, and where the schedule's first level is too far from the data;
    `DataError` on x that the denoiser does not know; `NumericalError` where the ODE cannot be solved.
    """
    began = time.perf_counter()
    examples = Examples.of(denoiser, x, cond)
    dequantise = _dequantisation(dequantise, examples)
    trace = _trace(trace, dequantise, examples.dims)
    bins = Bins.of(examples.scaling)
    if sigma is not None and not 0 <= sigma < math.inf:
        raise ConfigurationError(f"got sigma={sigma}, expected a noise level of 0 or more, in units of the model")
    level = resolution(denoiser.process, bins) if sigma is None else sigma
    recipe = _Recipe(trace, solver or usual_solver(examples), terminal, dequantise, seed)
    unit = 0.0 if examples.scaling is None else examples.scaling.log_det()
    values: list[Tensor] = []
    errors, calls, mismatch = [], [], []
    for batch in examples.batches(BATCH_SIZE if batch_size is None else batch_size):
        curve = Curve.of(denoiser, batch.cond, level)
        if not values:
            _check_range(curve, examples, asked=sigma)
        found, error, made = _of_batch(curve, batch, recipe, bins)
        values.append(found + unit)
        errors.append(error)
        calls.append(made)
        mismatch.append(prior_kl(curve.process, batch.x0))
    total = concatenated(values)
    if total.isnan().any():
        raise NumericalError(
            f"log p is not a number in {int(total.isnan().sum())} examples: terminal returns NaN there"
        )
    return Likelihood(
        values=total,
        probe_error=None if errors[0].isnan().all() else concatenated(errors),
        mismatch=concatenated(mismatch) if terminal is None else None,
        sigma=curve.sigma,
        dims=examples.dims,
        calls=float(concatenated(calls).mean()),
        seconds=time.perf_counter() - began,
        levels=examples.levels,
    )


def _of_batch(curve: Curve, batch: Batch, recipe: _Recipe, bins: Bins | None) -> tuple[Tensor, Tensor, Tensor]:
    """log p of a batch in nats of model units, the standard error over probes (NaN where there is one), the calls: (b,)."""
    rng = Noise(recipe.seed, batch.rows, batch.x0.device)
    probes = recipe.trace.draw(batch.x0, rng)  # the same for all draws, whose differences they then do not blur
    found, calls = [], torch.zeros(len(batch.x0), dtype=torch.long)
    for _ in range(1 if recipe.dequantise is None else recipe.dequantise.draws):
        x = batch.x0 if bins is None else bins.within(batch.x0, rng.uniform(batch.x0.shape, batch.x0.dtype))
        values, made = _log_density(curve, x, probes, recipe)
        found.append(values)
        calls += made
    nats = torch.stack(found, 1)  # (b, draws, K)
    each, error = nats.mean(2), nats.mean(1)
    error = error.std(1) / math.sqrt(error.shape[1]) if error.shape[1] > 1 else torch.full_like(each[:, 0], math.nan)
    if recipe.dequantise is not None and recipe.dequantise.tighten:
        return each.logsumexp(1) - math.log(each.shape[1]), error, calls
    return each.mean(1), error, calls


def _log_density(curve: Curve, x: Tensor, probes: Tensor, recipe: _Recipe) -> tuple[Tensor, Tensor]:
    """log p(x) in nats of model units for every probe (b, K), and the network calls (b,)."""
    dims = x[0].numel()

    def field(theta: Tensor, state: State, rows: Tensor) -> State:
        slope, products = divergence(lambda z: curve.slope(theta, z, rows), state[0], recipe.trace, probes[rows])
        return slope, products / dims

    start = torch.zeros(len(x), max(1, probes.shape[1]), dtype=torch.float64)
    found = integrate(field, (curve.at_data(x), start), curve.first, curve.last, recipe.solver, first=curve.first_step)
    z, change = found.state
    if recipe.terminal is None:
        last = curve.process.log_prior(curve.to(z.cpu().double(), 1.0))
    else:
        last = recipe.terminal(curve.to(z, 1.0)).detach().cpu().double()
        if last.shape != (len(x),):
            raise ConfigurationError(
                f"got a terminal that returns {tuple(last.shape)} for {len(x)} examples, expected a log-density for each, "
                f"({len(x)},)"
            )
    return last[:, None] + dims * (curve.log_stretch + change), found.calls


def _dequantisation(asked: Dequantise | None, examples: Examples) -> Dequantise | None:
    if examples.levels is None and asked is not None:
        raise ConfigurationError(
            f"got {asked} for continuous data, which have a density as they are; expected dequantise=None"
        )
    return Dequantise() if asked is None and examples.levels is not None else asked


def _trace(asked: Trace | None, dequantise: Dequantise | None, dims: int) -> Trace:
    tighten = dequantise is not None and dequantise.tighten
    if tighten and asked is not None and not isinstance(asked, Exact):
        raise ConfigurationError(
            f"got {asked} with tighten=True, which is no bound: the noise of probes raises the mean over draws; expected "
            f"trace=Exact(limit={dims}), or tighten=False"
        )
    if asked is not None:
        return asked
    if tighten and dims > Exact().limit:
        raise ConfigurationError(
            f"got tighten=True (importance) in {dims} dimensions, which needs the exact trace: {dims} passes back through the "
            f"network for every call; expected at most {Exact().limit}, trace=Exact(limit={dims}), or uniform dequantisation"
        )
    return Exact() if dims <= SMALL or tighten else Hutchinson()


def _check_range(curve: Curve, examples: Examples, asked: float | None) -> None:
    """Refuse a first level, of the schedule or the one asked for, that blurs what the density is asked of."""
    if examples.levels is not None:
        most, what = 2 * resolution(curve.denoiser.process, Bins.of(examples.scaling)), "the width of a level"
    else:
        own = examples.scaling is None or curve.process.base is not None
        spread = curve.sigma_data if own else examples.scaling.sigma_data
        most, what = spread / 10, "a tenth of the data's standard deviation"
    if curve.sigma > most and curve.sigma == asked:
        raise ConfigurationError(f"got sigma={asked:g}, expected at most {what}, {most:.3g} in model units")
    if curve.sigma > most:
        raise ConfigurationError(
            f"the noise does not reach down to the data: the first level of {type(curve.process.schedule).__name__}, sigma "
            f"/ alpha = {curve.sigma:.3g}, is above {what}, {most:.3g} in model units; expected a schedule whose sigma_min "
            f"is at most {most:.3g} (of a table, more steps)"
        )
