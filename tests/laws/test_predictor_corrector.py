"""Predictor and corrector: marginals and orders by recursion, whose memory is kept, calls and rows, what is refused."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import (
    SCHEDULES,
    Spy,
    affine_law,
    carried_variance,
    check_refusal,
    exact_mixture,
    exact_normal,
    normal_marginal,
    numbers,
    one_step,
    order,
)

import ornstein as orn
from ornstein.noise import Noise
from ornstein.samplers import Ancestral, Euler, Heun, Multistep, sample, sample_steps
from ornstein.samplers.composed import PredictorCorrector
from ornstein.samplers.langevin import AnnealedLangevin, Langevin, UnderdampedLangevin
from ornstein.samplers.stochastic import EulerMaruyama, StochasticHeun


class Refresh:
    """An exact corrector on the normal: x -> m + r (x - m) + sqrt(1 - r^2) std z."""

    order, stochastic, stages, corrects, exact = 0, True, 0, True, True

    def __init__(self, keep=0.9):
        self.keep = keep

    def step(self, denoiser, x, t, s, memory, rng):
        mean, variance = normal_marginal(denoiser.process, t)
        z = rng.normal(x.shape, x.dtype)
        return mean + self.keep * (x - mean) + math.sqrt((1 - self.keep**2) * variance) * z, memory


@pytest.mark.parametrize("name", ["linear", "ve", "subvp", "flow"])
def test_predictor_and_corrector_keep_the_marginal(name):
    """Moments by recursion: the two maps one after the other; the corrector mends the predictor's variance up to eps / 4."""
    process, (t, s) = orn.Gaussian(SCHEDULES[name]), (0.9, 0.1)
    denoiser, times = exact_normal(process), np.linspace(0.9, 0.1, 21).tolist()
    both = PredictorCorrector(EulerMaruyama(), Langevin(0.01, steps=2))
    a, b, c = affine_law(both, denoiser, 0.5, 0.45, 3)
    p, q = (
        affine_law(EulerMaruyama(), denoiser, 0.5, 0.45, 1),
        affine_law(Langevin(0.01, steps=2), denoiser, 0.45, 0.45, 2),
    )
    assert (a, b, c) == pytest.approx((p[0] * q[0], q[0] ** 2 * p[1] + q[1], q[0] * p[2] + q[2]), rel=1e-9)
    v_t, v_s = normal_marginal(process, t)[1], normal_marginal(process, s)[1]
    errors = []
    for corrector, draws in ((None, 1), (Langevin(0.01, steps=2), 3), (Langevin(0.1, steps=6), 7)):
        sampler = EulerMaruyama() if corrector is None else PredictorCorrector(EulerMaruyama(), corrector)
        errors.append(abs(carried_variance(sampler, denoiser, pairwise(times), draws, v_t) / v_s - 1))
    assert errors[1] < errors[0]
    if name in ("linear", "ve"):
        assert errors[2] < 0.5 * errors[0] + 0.1 / 4


@pytest.mark.parametrize(
    ("predictor", "draws"), [(Euler(), 1), (Heun(), 1), (Multistep(), 1), (EulerMaruyama(), 2), (StochasticHeun(), 2)]
)
def test_order_under_an_exact_corrector(predictor, draws):
    """The predictor's own; a multistep one starts afresh each time."""
    process, sampler = orn.Gaussian(orn.LinearVP()), PredictorCorrector(predictor, Refresh(0.98))
    errors = []
    for steps in (40, 80):
        pairs = pairwise(np.linspace(0.9, 0.1, steps + 1).tolist())
        got = carried_variance(sampler, exact_normal(process), pairs, draws, normal_marginal(process, 0.9)[1])
        errors.append(abs(got / normal_marginal(process, 0.1)[1] - 1))
    assert order(errors) >= sampler.order - 0.25
    assert sampler.order == (1 if isinstance(predictor, Multistep) else predictor.order)


def test_the_predictors_memory_is_dropped_and_the_correctors_kept():
    """A slope across a corrector's move is none of time: kept, it would leave ten times the variance error at 80 steps."""
    process = orn.Gaussian(orn.LinearVP())
    grid, x = torch.linspace(0.9, 0.1, 21, dtype=torch.float64), numbers(5, 1, seed=8)
    ends = []
    for predictor in (Multistep(), Multistep(1)):
        *_, state = sample_steps(
            exact_mixture(process), PredictorCorrector(predictor, Langevin(0.1)), x, grid, Noise(1, range(5))
        )
        ends.append(state.x)
    assert torch.allclose(*ends, rtol=1e-9)

    seen = []

    class Remembers(Refresh):
        def step(self, denoiser, x, t, s, memory, rng):
            seen.append((t, s, memory))
            return x, s

    list(sample_steps(exact_mixture(process), PredictorCorrector(Euler(), Remembers()), x, grid[:4], Noise(1, 5)))
    times = grid.tolist()
    assert seen == [(times[1], times[1], None), (times[2], times[2], times[1]), (times[3], times[3], times[2])]


@pytest.mark.parametrize("name", ["cosine", "edm", "table-linear"])
@pytest.mark.parametrize(
    "sampler",
    [
        PredictorCorrector(Ancestral(), Langevin()),
        PredictorCorrector(Heun(), Langevin(0.1, steps=3)),
        PredictorCorrector(Multistep(), UnderdampedLangevin(steps=2)),
        PredictorCorrector(Euler(), Langevin(0.5, steps=2, adjust=True)),
        AnnealedLangevin(steps=4),
        AnnealedLangevin(steps=2, adjust=True),
    ],
    ids=str,
)
def test_calls_rows_and_types(sampler, name):
    inner = exact_normal(orn.Gaussian(SCHEDULES[name]))
    assert sampler.stochastic
    for calls in (1, 9, 30):
        spy = Spy(inner)
        found = sample(spy, sampler, n=2, calls=calls, seed=5)
        assert found.calls == spy.made
        assert calls - sampler.stages < spy.made <= calls
    whole = sample(inner, sampler, n=70, steps=4, seed=3)
    assert whole.calls == 3 * sampler.stages + 1
    assert whole.x.dtype == torch.float32
    assert torch.isfinite(whole.x).all()
    part = sample(inner, sampler, n=2, first=66, steps=4, seed=3)
    assert torch.allclose(part.x, whole.x[66:68], rtol=1e-4, atol=1e-5)


def test_a_chain_at_one_level():
    """Equal times by `sample_steps`: 400 chains of 60 steps have the stationary law, and no landing follows."""
    grid = torch.full((61,), 0.6, dtype=torch.float64)
    process = orn.Gaussian(orn.GeometricVE())
    mean, variance = normal_marginal(process, 0.6)
    for sampler in (Langevin(0.5, adjust=True), UnderdampedLangevin(0.5)):
        *_, last = sample_steps(exact_normal(process), sampler, torch.zeros(400, 1).double(), grid, Noise(3, 400))
        assert last.count == 60
        assert last.calls == 60 * sampler.stages
        assert float(last.x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / 400))
        assert float(last.x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / 400))


def test_orders_that_no_grid_mends_are_declared_so():
    """The variance error of an unadjusted corrector stays where the grid is refined: order 0."""
    process, sampler = orn.Gaussian(orn.LinearVP()), PredictorCorrector(StochasticHeun(), Langevin(0.5))
    errors = []
    for steps in (40, 80):
        pairs = pairwise(np.linspace(0.9, 0.1, steps + 1).tolist())
        got = carried_variance(sampler, exact_normal(process), pairs, 2, normal_marginal(process, 0.9)[1])
        errors.append(abs(got / normal_marginal(process, 0.1)[1] - 1))
    assert order(errors) < 0.1
    assert errors[-1] > 0.01
    assert sampler.order == Langevin.order == UnderdampedLangevin.order == AnnealedLangevin.order == 0


# --- bad input


@pytest.mark.parametrize(
    ("call", "got", "remedy"),
    [
        (lambda: PredictorCorrector(Heun(), Heun()), "corrector=Heun", "Langevin()"),
        (lambda: PredictorCorrector(Langevin(), Langevin()), "predictor=Langevin", "EulerMaruyama"),
        (lambda: one_step(PredictorCorrector(Heun(), Langevin()), 0.4, 0.5), "t = 0.4 to s = 0.5", "falling"),
    ],
)
def test_bad_input(call, got, remedy):
    check_refusal(call, got, remedy)
