"""Samplers: churn, bases, equal recipes, and the promises of the loop."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import SCHEDULES, Spy, affine_step, level, numbers, root_of

import ornstein as orn
from ornstein import exact
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.noise import Noise
from ornstein.processes import Normal as Base
from ornstein.samplers import Ancestral, Euler, Heun, Multistep, sample, sample_steps

MEAN, VARIANCE = 0.6, 0.25


def normal(process, size=1):
    mean = torch.full((size,), MEAN, dtype=torch.float64)
    return exact.Normal(process, mean, VARIANCE)


@pytest.mark.parametrize("noise", [1.0, 1.007])
def test_churn_is_algorithm_two_of_edm(noise):
    """t^ = (1 + gamma) t, x^ = x + S_noise sqrt(t^^2 - t^2) z, then an Euler step from t^ (Karras et al. 2022)."""
    process = orn.Gaussian(orn.EDM())
    denoiser = exact.Normal(process, torch.zeros(1, dtype=torch.float64), VARIANCE)
    gamma, (t, s) = 0.3, (0.6, 0.5)
    sigma, sigma_s = level(process.schedule, t)[1], level(process.schedule, s)[1]
    hat = (1 + gamma) * sigma
    step = 1 + (sigma_s - hat) * hat / (hat**2 + VARIANCE)  # dx/dsigma = (x - D) / sigma = sigma x / (sigma^2 + v)
    a, b, _ = affine_step(Euler(churn=gamma, churn_noise=noise), denoiser, t, s)
    assert a == pytest.approx(step, rel=1e-9)
    assert b == pytest.approx(step * noise * math.sqrt(hat**2 - sigma**2), rel=1e-9)
    a, b, _ = affine_step(Heun(churn=gamma, churn_noise=noise), denoiser, t, s)
    slopes = hat / (hat**2 + VARIANCE) + sigma_s / (sigma_s**2 + VARIANCE) * step
    assert a == pytest.approx(1 + (sigma_s - hat) / 2 * slopes, rel=1e-9)
    assert b == pytest.approx(a * noise * math.sqrt(hat**2 - sigma**2), rel=1e-9)


def test_churn_acts_in_its_range_only():
    process = orn.Gaussian(orn.EDM())
    denoiser, (t, s) = normal(process), (0.6, 0.5)
    sigma = level(process.schedule, t)[1]
    for sampler, churned in (
        (Euler(churn=0.2), True),
        (Euler(churn=0.2, churn_min=sigma * 1.01), False),
        (Euler(churn=0.2, churn_max=sigma * 0.99), False),
        (Euler(churn=0.2, churn_min=sigma * 0.99, churn_max=sigma * 1.01), True),
    ):
        assert (affine_step(sampler, denoiser, t, s)[1] != 0) == churned
    assert affine_step(Euler(churn=0.2), denoiser, 1.0, s)[1] == 0  # never beyond t = 1


def test_equal_recipes_are_equal():
    """Euler without churn, DDIM and DPM-Solver++ of order 1 are one method."""
    for name in SCHEDULES:
        process = orn.Gaussian(SCHEDULES[name])
        steps = [
            affine_step(sampler, normal(process), 0.7, 0.45) for sampler in (Euler(), Ancestral(0.0), Multistep(1))
        ]
        assert np.allclose(steps[0], steps[1], rtol=1e-12)
        assert np.allclose(steps[0], steps[2], rtol=1e-9)


def test_a_base_is_sampled_as_the_standard_process_in_whitened_coordinates():
    base = Base(torch.tensor([0.4, -2.0]).double(), torch.tensor([[1.5, 0.6], [0.6, 0.7]]).double())
    root = root_of(base.matrix())
    plain, based = orn.Gaussian(orn.LinearVP()), orn.Gaussian(orn.LinearVP(), base)
    mean, covariance = torch.tensor([1.0, 0.2]).double(), torch.tensor([[0.5, 0.1], [0.1, 0.3]]).double()
    one = exact.Normal(plain, mean, covariance)
    two = exact.Normal(based, base.mean + root @ mean, root @ covariance @ root.T)
    y = numbers(4, 2, seed=3)
    for sampler in (Ancestral(0.5), Heun(), Heun(churn=0.1), Multistep(), Euler()):
        a = sample(one, sampler, start=y, steps=6, seed=2).x
        b = sample(two, sampler, start=base.mean + y @ root.T, steps=6, seed=2).x
        assert torch.allclose(b, base.mean + a @ root.T, rtol=1e-6, atol=1e-7), sampler
    drawn = sample(two, Ancestral(), n=3, steps=4, seed=5).x, sample(one, Ancestral(), n=3, steps=4, seed=5).x
    assert torch.allclose(drawn[0], (base.mean + drawn[1].double() @ root.T).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cosine", "edm", "table-cosine"])
def test_samples_have_the_law_of_the_data(name):
    """End to end from the prior: the exact flow of a normal, so sample = affine map of the first draw."""
    process = orn.Gaussian(SCHEDULES[name])
    found = sample(normal(process, 2), Heun(), n=2000, steps=24, seed=1).x.double()
    assert found.dtype == torch.float64
    assert torch.allclose(found.mean(0), torch.full((2,), MEAN).double(), atol=5 * 0.5 / math.sqrt(2000))
    assert torch.allclose(found.var(0), torch.full((2,), VARIANCE).double(), rtol=5 * math.sqrt(2 / 2000) + 0.01)


# --- the loop


class Net(torch.nn.Module):
    """A small random network of one hidden layer, for states of any shape."""

    def __init__(self, size: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.one, self.two = torch.nn.Linear(size + 1, 16), torch.nn.Linear(16, size)

    def forward(self, x, time):
        seen = torch.cat([x.flatten(1), time[:, None] / 1000], dim=1)
        return self.two(torch.tanh(self.one(seen))).view_as(x)


def trained(schedule, shape, parametrization="v"):
    return orn.Denoiser(Net(math.prod(shape)), orn.Gaussian(schedule), parametrization).eval()


@pytest.mark.parametrize("sampler", [None, Ancestral(), Ancestral(0.0), Heun(churn=0.2), Euler()])
def test_samples_do_not_depend_on_the_batch_size(sampler):
    denoiser = trained(orn.CosineVP(), (2, 3))
    whole = sample(denoiser, sampler, n=100, shape=(2, 3), steps=5, seed=3).x
    for size in (1, 7, 64):
        n = 100 if size > 1 else 10
        part = sample(denoiser, sampler, n=n, shape=(2, 3), steps=5, seed=3, batch_size=size).x
        assert torch.allclose(part, whole[:n], rtol=1e-5, atol=1e-5)
    assert torch.equal(whole, sample(denoiser, sampler, n=100, shape=(2, 3), steps=5, seed=3).x)
    other = sample(denoiser, sampler, n=100, shape=(2, 3), steps=5, seed=4).x
    assert not torch.isclose(whole, other).all(1).any()


def test_conditions_are_split_with_the_batches():
    class Shift(torch.nn.Module):
        def forward(self, x, time, cond, keep):
            return x * 0 + cond.to(x)[:, None]

    denoiser = orn.Denoiser(Shift(), orn.Gaussian(orn.LinearVP()), "x0")
    labels = torch.arange(10)
    for size in (3, 10):
        found = sample(denoiser, cond=labels, shape=(2,), steps=3, batch_size=size)
        assert torch.allclose(found.x, labels[:, None].float().expand(10, 2), atol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "edm", "table-linear"])
@pytest.mark.parametrize("sampler", [Ancestral(), Euler(), Heun(), Heun(churn=0.1), Multistep()])
def test_calls_are_counted_and_never_exceed_the_wish(sampler, name):
    inner = normal(orn.Gaussian(SCHEDULES[name]))
    for calls in (1, 2, 3, 6, 7):
        spy = Spy(inner)
        if 1 < calls <= sampler.stages:  # more than the landing, less than a step and the landing
            with pytest.raises(ConfigurationError, match=f"expected at least calls={sampler.stages + 1}"):
                sample(spy, sampler, n=2, calls=calls)
            continue
        found = sample(spy, sampler, n=2, calls=calls)
        assert found.calls == spy.made
        assert calls - sampler.stages < spy.made <= calls
    spy = Spy(inner)
    assert sample(spy, sampler, n=2, steps=4).calls == spy.made == 4 * sampler.stages - (sampler.stages - 1)
    assert sample(spy, sampler, n=2).calls == 25


def test_the_last_step_is_the_estimate_of_x0_where_noise_remains():
    process = orn.Gaussian(orn.EDM())
    denoiser, grid = normal(process), torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    states = list(sample_steps(denoiser, Euler(), torch.ones(1, 1).double() * 70, grid, Noise(0, 1)))
    assert [(state.count, state.t, state.calls) for state in states] == [
        (0, 1.0, 0),
        (1, 0.5, 1),
        (2, 0.0, 2),
        (3, 0.0, 3),
    ]
    assert torch.equal(states[-1].x, denoiser(states[-2].x, 0.0).x0)
    single = list(sample_steps(denoiser, Euler(), torch.ones(1, 1).double(), grid[:1], Noise(0, 1)))
    assert torch.equal(single[-1].x, denoiser(torch.ones(1, 1).double(), 1.0).x0)  # one time is one call
    table = normal(orn.Gaussian(SCHEDULES["table-linear"]))
    chain = orn.grids.trailing(table.process, 4)  # 1, .75, .5, .25, 0: index 0 of a chain is the data
    states = list(sample_steps(table, Euler(), torch.ones(1, 1).double(), chain, Noise(0, 1)))
    assert [state.t for state in states] == [1, 0.75, 0.5, 0.25, 0]
    assert torch.equal(states[-1].x, table(states[-2].x, 0.25).x0)
    inner = list(sample_steps(denoiser, Euler(), torch.ones(1, 1).double(), grid[:2], Noise(0, 1)))
    assert len(inner) == 2  # a grid that stops short of the data stays noisy
    up = list(sample_steps(denoiser, Euler(), torch.ones(1, 1).double(), grid.flip(0), Noise(0, 1)))
    assert len(up) == 3  # and so does one that encodes


def test_trajectory():
    denoiser = trained(orn.CosineVP(), (2,))
    grid = orn.grids.karras(denoiser.process, 7)
    rng = Noise(3, 5)
    x = denoiser.process.prior((5, 2), rng, float(grid[0]))
    truth = [(state.t, state.x) for state in sample_steps(denoiser, Ancestral(), x, grid, rng)]
    for size in (2, 5):
        whole = sample(denoiser, Ancestral(), n=5, shape=(2,), steps=7, seed=3, trajectory=3, batch_size=size)
        expected = [truth[0], truth[3], truth[6], truth[7]]
        assert [t for t, _ in whole.trajectory] == [t for t, _ in expected]
        for (_, got), (_, state) in zip(whole.trajectory, expected, strict=True):
            assert torch.allclose(got, state, rtol=1e-5, atol=1e-6)
        assert torch.equal(whole.trajectory[-1][1], whole.x)
    values = sample(denoiser, n=5, shape=(2,), steps=4, trajectory=lambda t, x: x.norm(dim=1) * 0 + t).trajectory
    assert len(values) == 5
    assert all(torch.allclose(value, torch.full((5,), t)) for t, value in values)
    assert sample(denoiser, n=1, shape=(2,), steps=2).trajectory is None


def test_no_samples_and_given_states():
    denoiser = trained(orn.CosineVP(), (2,))
    assert sample(denoiser, n=0, shape=(2,), steps=2).x.shape == (0, 2)
    x = numbers(3, 2, seed=1, dtype=torch.float32)
    found = sample(denoiser, Euler(), start=x, grid=torch.tensor([0.5, 0.2]))
    truth = Euler().step(denoiser, x, 0.5, float(torch.tensor(0.2, dtype=torch.float32)), None, None)[0]
    assert torch.allclose(found.x, truth, atol=1e-6)
    assert not found.x.requires_grad
    assert sample(normal(orn.Gaussian(orn.EDM())), steps=1).x.shape == (1, 1)


def test_stages_and_flags():
    for recipe, stages in itertools.chain(((s, 1) for s in (Ancestral(), Euler(), Multistep())), [(Heun(), 2)]):
        assert recipe.stages == stages
    assert Ancestral(0.1).stochastic
    assert Heun(churn=0.1).stochastic
    assert not any(recipe.stochastic for recipe in (Ancestral(0.0), Euler(), Heun(), Multistep(), Multistep(1)))


def test_the_usual_sampler_is_a_rule_in_the_number_of_calls():
    """And given states begin at t = 1, whatever the highest level of the grid."""
    process = orn.Gaussian(orn.CosineVP())
    denoiser = normal(process, 2)
    for calls, corrector in ((5, False), (11, False), (12, True), (25, True)):
        grid = orn.grids.focused(process, calls)
        found = sample(denoiser, n=3, calls=calls, seed=1)
        assert torch.equal(found.x, sample(denoiser, Multistep(3, corrector=corrector), n=3, grid=grid, seed=1).x)
        assert found.calls == calls
    assert float(orn.grids.focused(process, 8)[0]) < 1
    start = numbers(3, 2)
    kept = sample(denoiser, start=start, calls=8, trajectory=1).trajectory
    assert kept[0][0] == 1.0
    assert torch.equal(kept[0][1], start)
    with pytest.raises(ConfigurationError, match="calls=0"):
        sample(denoiser, n=3, calls=0)


def test_the_usual_sampler_of_a_grid_goes_by_its_calls():
    """A grid of 12 times that lands on the data makes 11 calls, one that ends on noise 12."""
    for schedule, corrector in ((orn.CosineVP(), False), (orn.EDM(), True)):
        process = orn.Gaussian(schedule)
        grid = orn.grids.uniform(process, 11 if corrector is False else 12)
        assert len(grid) == 12
        found = sample(normal(process, 2), n=3, grid=grid)
        assert found.calls == (12 if corrector else 11)
        assert torch.equal(found.x, sample(normal(process, 2), Multistep(3, corrector=corrector), n=3, grid=grid).x)


def test_a_failure_that_does_not_come_again_is_an_error_too():
    class Once:
        process, calls = orn.Gaussian(orn.EDM()), 0

        def __call__(self, x_t, t, cond=None, keep=None):
            self.calls += 1
            return self.process.estimate(x_t, t, x0=x_t * (math.nan if self.calls == 3 else 0.5))

    with pytest.raises(NumericalError, match="not when it was run again"):
        sample(Once(), Euler(), n=2, shape=(2,), steps=5)


def test_a_grid_in_float32_ends_where_the_table_does():
    """1 / 100 in float32 lies below that of float64: the last level must be visited all the same, not passed over."""
    process = orn.Gaussian(orn.TableSchedule.linear(100))
    grid = orn.grids.uniform(process, 6)
    assert float(grid.float()[-1]) < process.schedule.t_min
    start, denoiser = numbers(3, 1), normal(process)
    found, truth = (sample(denoiser, Euler(), start=start, grid=g) for g in (grid.float(), grid))
    assert found.calls == truth.calls == 6
    assert torch.allclose(found.x, truth.x, atol=1e-5)
