"""Measured orders of accuracy on exact laws, deterministic by the flow and stochastic by exact moments."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from helpers import SCHEDULES, level, moments, numbers, order
from scipy.integrate import solve_ivp

import ornstein as orn
from ornstein import exact
from ornstein.noise import Noise
from ornstein.samplers import RK4, Ancestral, Euler, Heun, Midpoint, Multistep, Singlestep, sample
from ornstein.samplers.multistep import Memory, _place

MEAN, VARIANCE = 0.6, 0.25
SAMPLERS = {
    "ancestral-0": Ancestral(0.0),
    "euler": Euler(),
    "heun": Heun(),
    "multistep-1": Multistep(1),
    "midpoint": Midpoint(),
    "rk4": RK4(),
    "2M": Multistep(2, "x0", exact=False),
    "multistep-3-x0": Multistep(3, "x0"),
    "unipc-2": Multistep(2, "x0", corrector=True),
    "multistep-2": Multistep(2),
    "multistep-3": Multistep(3),
    "multistep-4": Multistep(4),
    "corrected-3": Multistep(3, corrector=True),
    "lms": Multistep(4, variable="sigma"),
    "plms": Multistep(4, variable="t", exact=False),
    "snr": Multistep(3, "x0", variable="sigma"),
    "2S": Singlestep(2),
    "3S": Singlestep(3),
    "dpm-2": Singlestep(2, "eps"),
    "dpm-3": Singlestep(3, "eps"),
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


def flow(name: str, data: str, t: float, s: float):
    """The state at s of the exact solution that is `start` at t."""
    if data == "normal":
        return normal_flow(SCHEDULES[name], start(SCHEDULES[name], t), t, s)
    return mixture_flow(name, t, (s,))[0]


def laws(process):
    mixture = exact.Mixture(process, *(torch.from_numpy(v) for v in (MEANS[:, None], VARIANCES, WEIGHTS)))
    return {"normal": normal(process), "mixture": mixture}


def known(recipe: Multistep, denoiser, times: list[float], states) -> Memory:
    """The memory of readings at exact states, newest first."""
    process, count = denoiser.process, recipe.readings - (not recipe.corrector)
    places = tuple(_place(recipe, t, process.level(t)) for t in times)
    values = (
        denoiser(torch.from_numpy(x)[:, None], t).reading(recipe.prediction) for t, x in zip(times, states, strict=True)
    )
    return Memory(places[:count], tuple(values)[:count])


def start(schedule, t):
    alpha, sigma = level(schedule, t)
    return alpha * MEAN + math.sqrt(alpha**2 * VARIANCE + sigma**2) * STARTS


EVERYWHERE, ISSUE = ("ancestral-0", "heun", "multistep-3"), ("linear", "ve", "subvp", "flow")
"""Samplers that share their arithmetic with the others see all schedules, the others the four kinds."""


@pytest.mark.parametrize("data", ["normal", "mixture"])
@pytest.mark.parametrize(
    ("sampler", "name"), [(s, n) for s in SAMPLERS for n in (SCHEDULES if s in EVERYWHERE else ISSUE)]
)
def test_order_of_accuracy(sampler, name, data):
    errors = errors_of(SAMPLERS[sampler], name, data, 0.8, 0.1)
    assert order(errors) >= SAMPLERS[sampler].order - 0.25
    assert errors[-1] < 0.1


@pytest.mark.parametrize("name", ISSUE)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_order_of_inversion(sampler, name):
    """An ascending grid goes from data to noise with every deterministic sampler, and its order."""
    errors = errors_of(SAMPLERS[sampler], name, "normal", 0.1, 0.8)
    assert order(errors) >= SAMPLERS[sampler].order - 0.25
    assert errors[-1] < 0.1


def errors_of(recipe, name: str, data: str, t: float, s: float) -> list[float]:
    """The largest relative error at five times on the way (an error at one time may happen to pass through 0), at N and 2N steps.

    Multistep methods are given the exact readings before the start, as their order is defined: by themselves they make first
    steps of lower order.
    """
    process = orn.Gaussian(SCHEDULES[name])
    x = start(process.schedule, t)
    times = tuple(torch.linspace(t, s, 6, dtype=torch.float64)[1:].tolist())
    denoiser, truth = laws(process)[data], [flow(name, data, t, r) for r in times]
    errors = []
    for steps in {1: (60, 120), 2: (60, 120), 3: (160, 320), 4: (320, 640)}[recipe.order]:
        grid = torch.linspace(t, s, steps + 1, dtype=torch.float64).tolist()
        memory, states, state = None, [], torch.from_numpy(x)[:, None]
        if isinstance(recipe, Multistep):
            before = [t + k * (t - s) / steps for k in (1, 2, 3)]
            memory = known(recipe, denoiser, before, [flow(name, data, t, r) for r in before])
        for i, (begin, end) in enumerate(itertools.pairwise(grid)):
            state, memory = recipe.step(denoiser, state, begin, end, memory, Noise(0, 3))
            if (i + 1) % (steps // 5) == 0:
                states.append(state[:, 0].numpy())
        errors.append(max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(states, truth, strict=True)))
    return errors


@pytest.mark.parametrize("name", ["cosine", "flow"])
@pytest.mark.parametrize(
    "sampler", ["ancestral-0", "euler", "heun", "midpoint", "rk4", "multistep-1", "2M", "multistep-3", "2S"]
)
def test_order_with_both_ends_of_time(sampler, name):
    """From t = 1, where alpha may be 0, to t = 0, where sigma is: the steps of order 1 there do not spoil the order.

    The grid is uniform in the angle whose tangent is sigma / alpha; uniform in t, sigma ~ sqrt(t) would spoil it. From
    alpha = 0 the error of the exponential methods falls as log(N)^2 / N^2, so that they need more steps to show it. Steps of
    order 1 leave order 2 at most.
    """
    process, recipe = orn.Gaussian(SCHEDULES[name]), SAMPLERS[sampler]
    x = start(process.schedule, 1.0)
    truth, errors = normal_flow(process.schedule, x, 1.0, 0.0), []
    alpha, sigma = level(process.schedule, 1.0)
    for steps in (512, 1024) if sampler in ("2M", "multistep-3", "2S") else (64, 128):
        inner = torch.linspace(math.atan2(sigma, alpha), 0, steps + 1, dtype=torch.float64)[1:-1]
        times = process.schedule.time_at(-2 * torch.log(torch.tan(inner)))
        grid = torch.cat([torch.ones(1), times, torch.zeros(1)])
        got = sample(normal(process), recipe, start=torch.from_numpy(x)[:, None], grid=grid).x[:, 0].numpy()
        errors.append(float(np.abs(got - truth).max()))
    assert order(errors) >= min(recipe.order, 2) - 0.25


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
