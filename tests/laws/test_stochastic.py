"""Reverse SDEs: their steps in closed form, at the ends of time, with a base; what they refuse."""

import math

import numpy as np
import pytest
import torch
from helpers import (
    BASES,
    MEAN,
    PAIRS,
    SCHEDULES,
    VARIANCE,
    Fixed,
    check_refusal,
    exact_mixture,
    exact_normal,
    level,
    mean_of,
    moments,
    numbers,
    root_of,
    run_on_flow,
)

import ornstein as orn
from ornstein import exact
from ornstein.noise import Noise
from ornstein.samplers import Ancestral, sample
from ornstein.samplers.runge_kutta import Euler, Heun
from ornstein.samplers.stochastic import EulerMaruyama, StochasticHeun

BROAD = np.array([0.15, 0.3])  # variances of the mixture in these tests
BOTH = {"em": EulerMaruyama, "heun": StochasticHeun}
NAMES = ["linear", "ve", "subvp", "flow", "edm", "cosine"]


def test_euler_maruyama_is_the_printed_step():
    """Paper 000 eq. 139, with beta(t) dt for beta: (1 + beta / 2) x + beta score + sqrt(beta) z."""
    process = orn.Gaussian(orn.LinearVP())
    x, z = numbers(5, 1, seed=1), numbers(5, 1, seed=2)
    t, s = 0.6, 0.59
    beta = (0.1 + 19.9 * t) * (t - s)
    alpha, sigma = level(process.schedule, t)
    score = -(x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)
    got = EulerMaruyama().step(exact_normal(process), x, t, s, None, Fixed(z))[0]
    assert torch.allclose(got, (1 + beta / 2) * x + beta * score + math.sqrt(beta) * z, rtol=1e-12)
    got = EulerMaruyama(2.0).step(exact_normal(process), x, t, s, None, Fixed(z))[0]
    assert torch.allclose(got, (1 + beta / 2) * x + 2.5 * beta * score + 2 * math.sqrt(beta) * z, rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "noise", "error"), [(18, 0, 0.1405), (18, 1, 0.1561), (18, 2, 0.9766), (35, 1, 0.0705), (40, 2, 0.07524)]
)
def test_euler_maruyama_in_sigma(steps, noise, error):
    """Paper 000, the claim after eq. 172, |std - 1| at sigma = t, data N(0, 1) and g^2 = 2 noise^2 t, by its own recursion."""
    process = orn.Gaussian(orn.FromAlphaSigma(torch.ones_like, lambda t: 80 * t))
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    times = [*((high + k / (steps - 1) * (low - high)) ** 7 / 80 for k in range(steps)), 0.0]
    _, variance = moments(EulerMaruyama(float(noise)), exact_normal(process, 1.0, 0.0), times, 0.0, 1 + 80.0**2)
    assert abs(math.sqrt(variance) - 1) == pytest.approx(error, rel=1e-3)


def test_same_marginals_from_the_same_start_only():
    """Paper 004, eq. 26 and 27: from N(0, 1) in place of p_1 the SDE ends at 3.555, the ODE at 2.845; from p_1 both at 4."""
    process = orn.Gaussian(orn.LinearVP(2.0, 2.0))
    times, denoiser = np.linspace(1, 0, 201).tolist(), exact_normal(process, 4.0, 0.0)
    kept = math.exp(-2)
    v_1 = 4 * kept + 1 - kept
    closed = {1.0: 4 - 16 * kept / v_1 + 16 * kept / v_1**2, 0.0: 4 / v_1}
    for noise, printed in ((1.0, 3.555), (0.0, 2.845)):
        for recipe, accuracy in ((EulerMaruyama, 2e-2), (StochasticHeun, 5e-3)):
            assert moments(recipe(noise), denoiser, times, 0.0, v_1)[1] == pytest.approx(4, rel=accuracy)
            ended = moments(recipe(noise), denoiser, times, 0.0, 1.0)[1]
            assert ended == pytest.approx(closed[noise], rel=accuracy)
        assert closed[noise] == pytest.approx(printed, abs=5e-4)


@pytest.mark.parametrize("name", NAMES)
def test_without_noise(name):
    """The ODE: Euler in t, and the mean of Heun's rule in eps and the trapezium rule for x_0 in alpha / sigma, saturated."""
    process, (t, s) = orn.Gaussian(SCHEDULES[name]), (0.7, 0.6)
    denoiser, x = exact_mixture(process, BROAD), numbers(6, 1, seed=5)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(process.schedule, t), level(process.schedule, s)
    found = EulerMaruyama(0.0).step(denoiser, x, t, s, None, None)[0]
    assert torch.allclose(found, x + (s - t) * denoiser(x, t).velocity, rtol=1e-9)
    start = denoiser(x, t)
    euler = Euler().step(denoiser, x, t, s, None, None)[0]
    there = denoiser(euler, s)
    rule = sigma_s / sigma_t * x + sigma_s * (alpha_s / sigma_s - alpha_t / sigma_t) * (start.x0 + there.x0) / 2
    heun = Heun().step(denoiser, x, t, s, None, None)[0]
    found = StochasticHeun(0.0).step(denoiser, x, t, s, None, None)[0]
    ratio = sigma_t * alpha_s / (alpha_t * sigma_s)
    full = (ratio - 1 / ratio) / 4
    assert torch.allclose(found - euler, ((heun + rule) / 2 - euler) / math.sqrt(1 + full**2 / 4), rtol=1e-7)
    assert not StochasticHeun(0.0).stochastic
    assert not EulerMaruyama(0.0).stochastic


def test_steps_at_the_ends():
    """To sigma = 0 the estimate of x_0; from alpha = 0, where x says nothing, alpha x_0 + sigma z, at noise 1 the posterior."""
    process = orn.Gaussian(orn.RectifiedFlow())
    x, z = numbers(4, 1, seed=6), numbers(4, 1, seed=7)
    assert torch.allclose(
        StochasticHeun().step(exact_normal(process), x, 0.2, 0.0, None, None)[0], exact_normal(process)(x, 0.2).x0
    )
    found = StochasticHeun(0.7).step(exact_normal(process), x, 1.0, 0.6, None, Fixed(z))[0]
    assert torch.allclose(found, 0.4 * MEAN + 0.6 * z)
    one, two = (
        sampler.step(exact_normal(process), x, 1.0, 0.6, None, Fixed(z))[0]
        for sampler in (StochasticHeun(), Ancestral())
    )
    assert torch.allclose(one, two)


@pytest.mark.parametrize("brownian", [False, True])
@pytest.mark.parametrize("base", ["diagonal", "full"])
@pytest.mark.parametrize("recipe", BOTH)
def test_a_base_is_the_standard_process_whitened(recipe, base, brownian):
    """PriorGrad: x = mu + L y, with the noise L z."""
    prior = BASES[base]
    root, mu = root_of(prior.matrix()), mean_of(base)
    plain, based = orn.Gaussian(orn.LinearVP()), orn.Gaussian(orn.LinearVP(), prior)
    mean, covariance = torch.tensor([1.0, 0.2, -0.4]).double(), torch.diag(torch.tensor([0.5, 0.3, 1.2]).double())
    one = exact.Normal(plain, mean, covariance)
    two = exact.Normal(based, mu + root @ mean, root @ covariance @ root.T)
    y, sampler = numbers(4, 3, seed=3), BOTH[recipe](0.8, brownian)
    for t, s in PAIRS:
        a = sampler.step(one, y, t, s, None, Noise(2, 4))[0]
        b = sampler.step(two, mu + y @ root.T, t, s, None, Noise(2, 4))[0]
        assert torch.allclose(b, mu + a @ root.T, rtol=1e-9, atol=1e-9)


def test_calls_types_and_rows():
    process = orn.Gaussian(orn.CosineVP())
    for recipe, stages in ((EulerMaruyama(), 1), (StochasticHeun(), 2), (StochasticHeun(brownian=True), 2)):
        assert recipe.stages == stages
        assert recipe.stochastic
        found = sample(exact_normal(process), recipe, n=3, steps=5, seed=1)
        assert found.calls == 5 * stages - (stages - 1)
        assert found.x.dtype == torch.float32
        assert torch.isfinite(found.x).all()
        part = sample(exact_normal(process), recipe, n=1, first=2, steps=5, seed=1)
        assert torch.allclose(part.x, found.x[2:], atol=1e-5)
    assert EulerMaruyama.order == 1
    assert StochasticHeun.order == 2


# --- bad input


@pytest.mark.parametrize(
    ("call", "got", "remedy"),
    [
        (lambda: EulerMaruyama(-1.0), "noise=-1.0", "1 is the reverse SDE"),
        (lambda: StochasticHeun(math.nan), "noise=nan", "expected 0"),
        (lambda: StochasticHeun(math.inf), "noise=inf", "expected 0"),
        (
            lambda: run_on_flow(EulerMaruyama(), times=(1.0, 0.5)),
            "t = 1, where g of RectifiedFlow is infinite",
            "StochasticHeun",
        ),
        (lambda: run_on_flow(EulerMaruyama(0.0), times=(0.0, 0.5)), "t = 0, where sigma is 0", "StochasticHeun"),
        (lambda: run_on_flow(StochasticHeun(), times=(0.1, 0.5)), "rising grid", "deterministic"),
    ],
)
def test_bad_input(call, got, remedy):
    check_refusal(call, got, remedy)


def test_a_flow_may_be_stepped_short_of_its_end():
    assert torch.isfinite(run_on_flow(EulerMaruyama(), times=(0.99, 0.5, 0.0)).x).all()
    up = run_on_flow(StochasticHeun(0.0), times=(0.1, 0.3, 0.6))
    assert torch.isfinite(up.x).all()
    assert up.calls == 4
