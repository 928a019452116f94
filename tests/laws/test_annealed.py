"""Annealed Langevin: the printed variances down and up the levels, samples alike on every schedule, what is refused."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import (
    LADDER,
    MEAN,
    NO_DENSITY,
    SCHEDULES,
    VARIANCE,
    ZEROS,
    Fixed,
    affine_law,
    carried_variance,
    check_refusal,
    exact_mixture,
    exact_normal,
    level,
    numbers,
    one_step,
)

import ornstein as orn
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.samplers import sample
from ornstein.samplers.langevin import AnnealedLangevin, Langevin

LEVELS = np.linspace(1, 0, 12).tolist()  # sigma = 5 .. .05, geometric


def test_annealed_langevin():
    """Paper 003: data N(0, .25), 200 steps a level: .258 from the largest sigma down, and 26.6 the other way."""
    data = exact_normal(LADDER, mean=0.0)

    def visit(pairs, first):
        """200 steps a level: 10 by the sampler, the others by the same map of the variance."""
        variance = 1.0
        for t, s in pairs:
            variance = carried_variance(first, data, [(t, s)], 10, variance)
            a, b, _ = affine_law(Langevin(0.2, steps=10), data, s, s, 10)
            for _ in range(19):
                variance = a * a * variance + b
        return variance

    assert visit(pairwise(LEVELS), AnnealedLangevin(0.2, steps=10)) == pytest.approx(0.258, abs=5e-4)
    up = visit([(t, t) for t in reversed(LEVELS)], Langevin(0.2, steps=10))
    assert up == pytest.approx(26.6, abs=0.05)
    with pytest.raises(ConfigurationError, match=r"t = 0\.5 to s = 0\.6; expected the largest sigma first"):
        AnnealedLangevin().step(data, torch.zeros(1, 1).double(), 0.5, 0.6, None, Noise(0, 1))
    x, z = numbers(3, 1, seed=1), [numbers(3, 1, seed=k) for k in range(2, 6)]
    found = AnnealedLangevin(2e-5, 0.01, 4).step(data, x, 0.6, 0.5, None, Fixed(*z))[0]  # NCSN's numbers
    sigma, y = level(LADDER.schedule, 0.5)[1], x
    for k in range(4):
        alpha = 2e-5 * sigma**2 / 0.01**2
        y = y - alpha / 2 * y / (VARIANCE + sigma**2) + math.sqrt(alpha) * z[k]
    assert torch.allclose(found, y, rtol=1e-9)


def test_annealed_samples():
    """From the prior to the data, the same on every schedule of equal levels; one call more on the last, or on sigma = 0."""
    ends = []
    for name in ("flow", "cosine"):
        process = orn.Gaussian(SCHEDULES[name])
        grid = orn.grids.log_snr(process, 40, 0.02, 20.0)
        found = sample(exact_normal(process), AnnealedLangevin(0.3, steps=10), n=640, grid=grid, seed=1)
        assert found.calls == 39 * 10 + 1
        ends.append(found.x)
    x = ends[0].double()  # the estimate of x_0 on the level .02
    assert float(x.mean()) == pytest.approx(MEAN, abs=4 * math.sqrt(VARIANCE / 640) + 0.01)
    assert float(x.var()) == pytest.approx(VARIANCE, rel=4 * math.sqrt(2 / 640) + 0.05)
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-4)
    start, z = numbers(3, 1, seed=4), [numbers(3, 1, seed=k) for k in range(5, 8)]
    moved = []
    for name in ("ve", "flow", "cosine", "subvp"):
        process = orn.Gaussian(SCHEDULES[name])
        t, s = (float(process.schedule.time_at(-2 * math.log(r))) for r in (0.8, 0.5))
        alpha_t, alpha_s = level(process.schedule, t)[0], level(process.schedule, s)[0]
        x = AnnealedLangevin(0.3, steps=3).step(exact_mixture(process), alpha_t * start, t, s, None, Fixed(*z))[0]
        moved.append(x / alpha_s)
    assert all(torch.allclose(x, moved[0], rtol=1e-8) for x in moved)


# --- bad input


@pytest.mark.parametrize(
    ("call", "got", "remedy"),
    [
        (lambda: AnnealedLangevin(0.0), "eps=0.0", "0 < eps"),
        (lambda: AnnealedLangevin(1e-3, 0.01), "eps=0.001 at sigma_min=0.01", "4 sigma_min^2"),
        (lambda: AnnealedLangevin(sigma_min=-1.0), "sigma_min=-1.0", "sigma_min > 0"),
        (lambda: AnnealedLangevin(steps=0), "steps=0", "at least 1"),
        (lambda: one_step(AnnealedLangevin(), 0.5, 0.5), "do not fall", "largest sigma first"),
        (
            lambda: sample(NO_DENSITY, AnnealedLangevin(adjust=True), shape=(1,), steps=3),
            "Denoiser, which",
            "adjust=False",
        ),
        (
            lambda: sample(exact_normal(LADDER), AnnealedLangevin(), start=ZEROS, grid=torch.tensor([0.1, 0.5])),
            "rising",
            "expected",
        ),
    ],
)
def test_bad_input(call, got, remedy):
    check_refusal(call, got, remedy)
