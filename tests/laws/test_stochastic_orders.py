"""Orders of reverse SDEs: weak ones by exact moments and by quadrature, strong ones on Brownian paths."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from helpers import (
    MEAN,
    MEANS,
    SCHEDULES,
    VARIANCE,
    WEIGHTS,
    Fixed,
    affine_step,
    exact_mixture,
    exact_normal,
    level,
    moments,
    normal_marginal,
    numbers,
    order,
)
from scipy.interpolate import CubicSpline

import ornstein as orn
from ornstein.noise import Noise
from ornstein.samplers import sample_steps
from ornstein.samplers.stochastic import EulerMaruyama, StochasticHeun

BROAD = np.array([0.15, 0.3])  # variances of the mixture in these tests
BOTH = {"em": EulerMaruyama, "heun": StochasticHeun}
NAMES = ["linear", "ve", "subvp", "flow", "edm", "cosine"]


def reverse_moments(process, t: float, s: float, noise: float, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance at s from any at t: in y = x / alpha the distance from p_t shrinks by ((v + r_s^2) / (v + r_t^2))^p,

    p = (1 + noise^2) / 2, since dy = (1 + noise^2) r (y - m) / (v + r^2) dr + noise dw.
    """
    (mean_t, variance_t), (mean_s, variance_s) = normal_marginal(process, t), normal_marginal(process, s)
    alpha_t, alpha_s = level(process.schedule, t)[0], level(process.schedule, s)[0]
    ratio = (variance_s / alpha_s**2) / (variance_t / alpha_t**2)
    kept = alpha_s / alpha_t * ratio ** ((1 + noise**2) / 2)
    return mean_s + kept * (mean - mean_t), variance_s + kept**2 * (variance - variance_t)


def waves(process, t: float, variances: np.ndarray) -> tuple[np.ndarray, float, float]:
    """E cos(x_t / std_t) and E sin(x_t / std_t) of the mixture in closed form, with the mean and std of x_t."""
    alpha, sigma = level(process.schedule, t)
    mean, variances = alpha * WEIGHTS @ MEANS, alpha**2 * variances + sigma**2
    std = math.sqrt(WEIGHTS @ (variances + (alpha * MEANS) ** 2) - mean**2)
    damped = WEIGHTS * np.exp(-variances / std**2 / 2)
    return np.array([damped @ np.cos(alpha * MEANS / std), damped @ np.sin(alpha * MEANS / std)]), mean, std


def expected_waves(sampler, process, times: list[float], variances: np.ndarray) -> np.ndarray:
    """The same of the sampler's law, by quadrature backwards: u_k(x) = E u_{k+1}(step(x, z)), z by Gauss-Hermite."""
    denoiser = exact_mixture(process, variances)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    places = []
    for time in times:
        _, mean, std = waves(process, time, variances)
        places.append(np.linspace(mean - 8 * std, mean + 8 * std, 301))
    value = np.stack([np.cos(places[-1] / std), np.sin(places[-1] / std)], 1)
    for k in reversed(range(len(times) - 1)):
        x = torch.from_numpy(np.repeat(places[k], len(nodes)))[:, None]
        z = torch.from_numpy(np.tile(nodes, len(places[k])))[:, None]
        moved = sampler.step(denoiser, x, times[k], times[k + 1], None, Fixed(z))[0][:, 0].numpy()
        moved = moved.clip(places[k + 1][0], places[k + 1][-1])
        after = CubicSpline(places[k + 1], value)(moved).reshape(len(places[k]), len(nodes), 2)
        value = np.einsum("xzf,z->xf", after, weights / weights.sum())
    density = np.exp(denoiser.log_density(torch.from_numpy(places[0])[:, None], times[0]).numpy())
    return (density @ value) * (places[0][1] - places[0][0])


# --- weak order


@pytest.mark.parametrize(
    ("name", "noise"),
    [*((name, noise) for name in ("linear", "ve", "subvp", "flow") for noise in (0, 1)), ("linear", 0.5), ("ve", 1.5)],
)
@pytest.mark.parametrize("recipe", BOTH)
def test_weak_order_on_the_normal(recipe, name, noise):
    """Mean and variance carried exactly, from p_t and from another law, which more noise forgets sooner."""
    process, sampler, (t, s) = orn.Gaussian(SCHEDULES[name]), BOTH[recipe](float(noise)), (0.9, 0.1)
    denoiser = exact_normal(process)
    mean, variance = normal_marginal(process, t)
    starts = ((mean, variance), (mean + math.sqrt(variance), 0.4 * variance))
    truths = [reverse_moments(process, t, s, noise, *start) for start in starts]
    assert truths[0] == pytest.approx(normal_marginal(process, s), rel=1e-12)
    errors, std = [], math.sqrt(normal_marginal(process, s)[1])
    for steps in (60, 120) if sampler.order == 1 else (150, 300):
        laws = starts
        for now, then in itertools.pairwise(np.linspace(t, s, steps + 1).tolist()):
            a, b, c = affine_step(sampler, denoiser, now, then)
            laws = [(a * m + c, a * a * v + b * b) for m, v in laws]
        errors.append([max(abs(m - n) / std, abs(v - w) / std**2) for (m, v), (n, w) in zip(laws, truths, strict=True)])
    for pair in zip(*errors, strict=True):
        assert order(list(pair)) >= sampler.order - 0.25
        assert pair[-1] < 0.25


@pytest.mark.parametrize(("name", "noise"), [("linear", 0.5), ("linear", 1.0), ("ve", 1.0), ("flow", 1.5)])
@pytest.mark.parametrize("recipe", BOTH)
def test_weak_order_on_the_mixture(recipe, name, noise):
    process, sampler = orn.Gaussian(SCHEDULES[name]), BOTH[recipe](noise)
    t, s = 0.8, 0.3
    errors = []
    for steps in (16, 32):
        got = expected_waves(sampler, process, np.linspace(t, s, steps + 1).tolist(), BROAD)
        errors.append(float(np.abs(got - waves(process, s, BROAD)[0]).max()))
    assert order(errors) >= sampler.order - 0.25
    assert errors[-1] < (0.05 if sampler.order == 1 else 5e-3)


@pytest.mark.parametrize("noise", [0.5, 1.0])
@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_weak_order_with_both_ends_of_time(name, noise):
    """From alpha = 0 to sigma = 0, with a step of order 1 at each end; uniform in the angle of tangent sigma / alpha.

    Steps from alpha = 0 are long in log alpha however fine the grid, so that the error falls as log(N) / N^2.
    """
    process, errors = orn.Gaussian(SCHEDULES[name]), []
    for steps in (256, 512):
        inner = torch.linspace(math.pi / 2, 0, steps + 1, dtype=torch.float64)[1:-1]
        times = [1.0, *process.schedule.time_at(-2 * torch.log(torch.tan(inner))).tolist(), 0.0]
        mean, variance = moments(StochasticHeun(noise), exact_normal(process), times, *normal_marginal(process, 1.0))
        errors.append(max(abs(mean - MEAN), abs(variance - VARIANCE)) / math.log(steps))
    assert order(errors) >= 1.75
    assert errors[-1] < 1e-4


def test_a_few_steps_do_not_overflow():
    """Ten steps of EDM's grid, 80 to .002: the plain trapezium rule in eps would make the variance 20 times too large."""
    process = orn.Gaussian(orn.EDM())
    times = orn.grids.karras(process, 10).tolist()
    _, variance = moments(StochasticHeun(), exact_normal(process, mean=0.0), times, 0.0, 80.0**2 + VARIANCE)
    assert variance / VARIANCE == pytest.approx(1, abs=0.06)
    for times in ([1.0, 0.0], [1.0, 0.5, 0.0]):
        _, variance = moments(StochasticHeun(), exact_normal(process, mean=0.0), times, 0.0, 80.0**2 + VARIANCE)
        assert variance < VARIANCE


# --- strong order


class Remembered(Noise):
    """Noise that keeps the points of its Brownian paths, which the tests visit often."""

    def __init__(self, seed, indices):
        super().__init__(seed, indices)
        self._path = cache(self._path)


PATHS = Remembered(3, 64)


@pytest.mark.parametrize("name", ["linear", "ve", "subvp", "flow"])
@pytest.mark.parametrize("recipe", BOTH)
def test_strong_order_on_refined_brownian_paths(recipe, name):
    """Additive noise: strong order 1 for both. The same paths on grids of 16, 32, 64 steps against one of 256."""
    process, (t, s) = orn.Gaussian(SCHEDULES[name]), (0.75, 0.25)
    mean, variance = normal_marginal(process, t)
    x, ends = mean + math.sqrt(variance) * numbers(64, 1, seed=4), {}
    for steps in (16, 32, 64, 256):
        grid = torch.linspace(t, s, steps + 1, dtype=torch.float64)
        *_, ends[steps] = sample_steps(exact_mixture(process, BROAD), BOTH[recipe](brownian=True), x, grid, PATHS)
    errors = [float((ends[steps].x - ends[256].x).square().mean().sqrt()) for steps in (16, 32, 64)]
    assert order(errors) >= 0.75
    assert order(errors[:2]) >= 0.75
    assert errors[-1] < 0.2 * math.sqrt(normal_marginal(process, s)[1])


def test_brownian_draws_have_the_law_of_fresh_ones():
    process = orn.Gaussian(orn.LinearVP())
    for recipe in BOTH.values():
        x, rng = torch.zeros(512, 8, dtype=torch.float64), Noise(1, 512)
        fresh, path = (
            recipe(brownian=b).step(exact_normal(process, size=8), x, 0.5, 0.4375, None, rng)[0] for b in (0, 1)
        )
        assert torch.allclose(fresh.mean(), path.mean(), atol=5 * float(fresh.std()) * math.sqrt(2 / 4096))
        assert float(path.std() / fresh.std()) == pytest.approx(1, abs=5 / math.sqrt(4096))
        few = recipe(brownian=True).step(exact_normal(process, size=8), x[:2], 0.5, 0.4375, None, Noise(1, [5, 300]))[0]
        assert torch.allclose(few, path[[5, 300]])
