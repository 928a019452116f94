"""Samplers: measured orders of accuracy on exact laws, exact recursions of moments, and the loop's promises."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from helpers import SCHEDULES, affine_step, level, moments, numbers, order
from scipy.integrate import solve_ivp

import ornstein as orn
from ornstein import exact
from ornstein.noise import Noise
from ornstein.processes import Normal as Base
from ornstein.samplers import Ancestral, Euler, Heun, Multistep, sample, sample_steps

MEAN, VARIANCE = 0.6, 0.25
SAMPLERS = {
    "ancestral-0": Ancestral(0.0),
    "euler": Euler(),
    "heun": Heun(),
    "multistep-1": Multistep(1),
    "2M": Multistep(),
}
MEANS, VARIANCES, WEIGHTS = np.array([-0.9, 0.7]), np.array([0.15, 0.3]), np.array([0.4, 0.6])
STARTS = np.array([-1.3, 0.2, 0.9])


def normal(process, size=1):
    mean = torch.full((size,), MEAN, dtype=torch.float64)
    return exact.Normal(process, mean, VARIANCE)


def normal_flow(schedule, x, t: float, s: float):
    """The probability-flow ODE of N(m, v) data: the standardised state stays."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(schedule, t), level(schedule, s)
    stretch = math.sqrt((alpha_s**2 * VARIANCE + sigma_s**2) / (alpha_t**2 * VARIANCE + sigma_t**2))
    return alpha_s * MEAN + stretch * (x - alpha_t * MEAN)


@cache
def mixture_flow(name: str, t: float, times: tuple[float, ...]):
    """The ODE of a mixture in EDM's variables, dy/dr = (y - D(y; r)) / r with y = x / alpha, by scipy to 1e-12."""

    def slope(log_r, y):
        r2 = np.exp(2 * log_r)
        share = WEIGHTS * np.exp(-((y[:, None] - MEANS) ** 2) / 2 / (VARIANCES + r2)) / np.sqrt(VARIANCES + r2)
        share /= share.sum(1, keepdims=True)
        return y - (share * (MEANS + VARIANCES / (VARIANCES + r2) * (y[:, None] - MEANS))).sum(1)

    schedule = SCHEDULES[name]
    (alpha, sigma), levels = level(schedule, t), [level(schedule, s) for s in times]
    at = [math.log(s / a) for a, s in levels]
    begin = math.log(sigma / alpha)
    found = solve_ivp(slope, [begin, at[-1]], start(schedule, t) / alpha, "DOP853", at, rtol=1e-12, atol=1e-12)
    return [a * y for (a, _), y in zip(levels, found.y.T, strict=True)]


def start(schedule, t):
    alpha, sigma = level(schedule, t)
    return alpha * MEAN + math.sqrt(alpha**2 * VARIANCE + sigma**2) * STARTS


@pytest.mark.parametrize("data", ["normal", "mixture"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_order_of_accuracy(sampler, name, data):
    """The largest relative error at five times on the way (an error at one time may happen to pass through 0)."""
    process, t, s = orn.Gaussian(SCHEDULES[name]), 0.9, 0.1
    x, recipe = start(process.schedule, t), SAMPLERS[sampler]
    times = tuple(torch.linspace(t, s, 6, dtype=torch.float64)[1:].tolist())
    if data == "normal":
        denoiser = normal(process)
        truth = [normal_flow(process.schedule, x, t, r) for r in times]
    else:
        denoiser = exact.Mixture(process, *(torch.from_numpy(v) for v in (MEANS[:, None], VARIANCES, WEIGHTS)))
        truth = mixture_flow(name, t, times)
    errors = []
    for steps in (60, 120):
        grid = torch.linspace(t, s, steps + 1, dtype=torch.float64)
        found = sample(denoiser, recipe, start=torch.from_numpy(x)[:, None], grid=grid, trajectory=steps // 5)
        states = [state[:, 0].numpy() for _, state in found.trajectory[1:]]
        errors.append(max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(states, truth, strict=True)))
    assert order(errors) >= recipe.order - 0.25
    assert errors[-1] < 0.1


@pytest.mark.parametrize("name", ["cosine", "flow"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_order_with_both_ends_of_time(sampler, name):
    """From t = 1, where alpha may be 0, to t = 0, where sigma is: the steps of order 1 there do not spoil the order.

    The grid is uniform in the angle whose tangent is sigma / alpha; uniform in t, sigma ~ sqrt(t) would spoil it. From
    alpha = 0 the error of 2M falls as log(N)^2 / N^2, so that it needs more steps to show its order.
    """
    process, recipe = orn.Gaussian(SCHEDULES[name]), SAMPLERS[sampler]
    x = start(process.schedule, 1.0)
    truth, errors = normal_flow(process.schedule, x, 1.0, 0.0), []
    alpha, sigma = level(process.schedule, 1.0)
    for steps in (512, 1024) if sampler == "2M" else (64, 128):
        inner = torch.linspace(math.atan2(sigma, alpha), 0, steps + 1, dtype=torch.float64)[1:-1]
        times = process.schedule.time_at(-2 * torch.log(torch.tan(inner)))
        grid = torch.cat([torch.ones(1), times, torch.zeros(1)])
        got = sample(normal(process), recipe, start=torch.from_numpy(x)[:, None], grid=grid).x[:, 0].numpy()
        errors.append(float(np.abs(got - truth).max()))
    assert order(errors) >= recipe.order - 0.25


@pytest.mark.parametrize("name", ["linear", "flow"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "2M"])
def test_encoding_returns_to_the_noise(sampler, name):
    """An ascending grid goes from data to noise with the same samplers, and the same order."""
    process, recipe = orn.Gaussian(SCHEDULES[name]), SAMPLERS[sampler]
    x = start(process.schedule, 0.1)
    truth, errors = normal_flow(process.schedule, x, 0.1, 0.9), []
    for steps in (40, 80):
        grid = torch.linspace(0.1, 0.9, steps + 1, dtype=torch.float64)
        found = sample(normal(process), recipe, start=torch.from_numpy(x)[:, None], grid=grid)
        errors.append(float(np.abs(found.x[:, 0].numpy() - truth).max()))
        assert found.calls == steps * recipe.stages
    assert order(errors) >= recipe.order - 0.25


def test_encoding_from_the_data_itself():
    """From sigma = 0 the estimate must say what eps is: then every sampler takes the DDIM step first."""
    process = orn.Gaussian(orn.RectifiedFlow())

    class Straight:  # x_1 = 2 for every x_0: velocity 2 - x_0, known on the line x_t = x_0 + t velocity
        def __init__(self):
            self.process = process

        def __call__(self, x_t, t, cond=None, keep=None):
            return process.estimate(x_t, t, velocity=(2 - x_t) / (1 - t))

    x = numbers(3, 1, seed=1)
    for sampler in (Euler(), Heun(), Multistep()):
        found = sample(Straight(), sampler, start=x, grid=torch.tensor([0.0, 0.2, 0.6]).double())
        assert torch.allclose(found.x, x + 0.6 * (2 - x)), sampler


# --- stochastic samplers: moments carried exactly


def test_ddpm_variance_over_a_thousand_steps():
    """Paper 000 eq. 64 corrected: data variance .25 comes back as .2461; the printed root gives .0286."""
    process = orn.Gaussian(orn.TableSchedule.linear(1000))
    denoiser = exact.Normal(process, torch.zeros(1, dtype=torch.float64), 0.25)
    times = [i / 1000 for i in range(1000, 0, -1)]
    mean, variance = moments(Ancestral(), denoiser, times, 0.0, 1.0)
    last = float(denoiser(torch.ones(1, 1, dtype=torch.float64), 1 / 1000).x0)  # the step to x_0 draws no noise
    assert last**2 * variance == pytest.approx(0.2461, abs=5e-5)
    assert mean == 0

    betas = np.linspace(1e-4, 0.02, 1000)  # the same recursion from the betas alone
    abar, truth = np.cumprod(1 - betas), 1.0
    for i in range(999, -1, -1):
        eps = math.sqrt(1 - abar[i]) / (0.25 * abar[i] + 1 - abar[i])
        factor = (1 - betas[i] / math.sqrt(1 - abar[i]) * eps) / math.sqrt(1 - betas[i])
        tilde = betas[i] * (1 - abar[i - 1]) / (1 - abar[i]) if i else 0.0
        truth = factor**2 * truth + tilde
    assert last**2 * variance == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("name", ["linear", "ve", "subvp", "flow", "edm", "table-linear"])
def test_ancestral_weak_order(name, eta):
    process, t, s = orn.Gaussian(SCHEDULES[name]), 0.9, 0.1
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(process.schedule, t), level(process.schedule, s)
    truth = np.array([alpha_s * MEAN, alpha_s**2 * VARIANCE + sigma_s**2])
    errors = []
    for steps in (80, 160):
        times = np.linspace(t, s, steps + 1).tolist()
        begin = alpha_t * MEAN, alpha_t**2 * VARIANCE + sigma_t**2
        got = np.array(moments(Ancestral(eta), normal(process), times, *begin))
        errors.append(float(np.abs(got - truth).max()))
    assert order(errors) >= 0.75


@pytest.mark.parametrize("recipe", [Euler, Heun])
@pytest.mark.parametrize("name", ["edm", "linear", "flow"])
def test_churn_keeps_the_marginal_in_the_limit(name, recipe):
    process, t, s = orn.Gaussian(SCHEDULES[name]), 0.8, 0.2
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(process.schedule, t), level(process.schedule, s)
    truth = np.array([alpha_s * MEAN, alpha_s**2 * VARIANCE + sigma_s**2])
    errors = []
    for steps in (50, 100):
        sampler = recipe(churn=8 / steps)
        times = np.linspace(t, s, steps + 1).tolist()
        begin = alpha_t * MEAN, alpha_t**2 * VARIANCE + sigma_t**2
        got = np.array(moments(sampler, normal(process), times, *begin))
        errors.append(float(np.abs(got - truth).max()))
    assert order(errors) >= recipe.order - 0.25


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
    root = torch.linalg.cholesky(base.matrix())
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
    inner, made = normal(orn.Gaussian(SCHEDULES[name])), 0

    class Spy:
        process, shape = inner.process, inner.shape

        def __call__(self, *args):
            nonlocal made
            made += 1
            return inner(*args)

    for calls in (1, 2, 3, 6, 7):
        made = 0
        found = sample(Spy(), sampler, n=2, calls=calls)
        assert found.calls == made
        assert calls - sampler.stages < made <= calls
    made = 0
    assert sample(Spy(), sampler, n=2, steps=4).calls == made == 4 * sampler.stages - (sampler.stages - 1)
    assert sample(Spy(), sampler, n=2).calls == 25


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
    assert not any(recipe.stochastic for recipe in SAMPLERS.values())
