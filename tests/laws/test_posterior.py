"""Posterior and transition of the Gaussian process against conditioning by matrices, the betas and the tutorial."""

import math

import numpy as np
import pytest
import torch
from helpers import BASES, PAIRS, SCHEDULES, SIGMA, D, Fixed, level, mean_of, numbers

import ornstein as orn


def joint(process, base: str, x0: torch.Tensor, s: float, t: float):
    """Mean and covariance of (x_s, x_t) given x_0, from marginals and Cov(x_s, x_t) = (alpha_t / alpha_s) Var(x_s)."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = level(process.schedule, s), level(process.schedule, t)
    mu, cov = mean_of(base).numpy(), SIGMA[base].numpy()
    x0 = x0.numpy()
    mean = np.concatenate([mu + alpha_s * (x0 - mu), mu + alpha_t * (x0 - mu)], axis=1)
    across = alpha_t / alpha_s * sigma_s**2
    return mean, np.block([[sigma_s**2 * cov, across * cov], [across * cov, sigma_t**2 * cov]])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_gaussian_conditioning(name, base):
    process = orn.Gaussian(SCHEDULES[name], BASES[base])
    x0, x_t = numbers(4, D, seed=1), numbers(4, D, seed=2)
    for t, s in PAIRS:
        mean, cov = joint(process, base, x0, s, t)
        gain = cov[:D, D:] @ np.linalg.inv(cov[D:, D:])
        truth_mean = mean[:, :D] + (x_t.numpy() - mean[:, D:]) @ gain.T
        truth_cov = cov[:D, :D] - gain @ cov[D:, :D]
        estimate = process.estimate(x_t, t, x0=x0)
        law = process.posterior(estimate, t, s)
        assert np.allclose(law.mean, truth_mean, rtol=1e-9, atol=1e-9)
        assert np.allclose(float(law.std) ** 2 * SIGMA[base], truth_cov, rtol=1e-8, atol=1e-14)
        times = [torch.full((4,), v, dtype=torch.float64) for v in (t, s)]
        batch = process.posterior(process.estimate(x_t, times[0], x0=x0), *times)
        assert np.allclose(batch.mean, truth_mean, rtol=1e-9, atol=1e-9)
        assert np.allclose(batch.std.flatten(), float(law.std), rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_keeps_the_marginal_and_has_ddims_variance(name, eta):
    process = orn.Gaussian(SCHEDULES[name])
    x0 = torch.tensor([[0.8], [0.8], [-0.5]], dtype=torch.float64)
    x_t = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    for t, s in PAIRS:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = level(process.schedule, s), level(process.schedule, t)
        law = process.posterior(process.estimate(x_t, t, x0=x0), t, s, eta)
        fixed, moved, other = law.mean.flatten().tolist()
        on_x, on_x0 = moved - fixed, (fixed - other) / 1.3
        # integrating x_t ~ N(alpha_t x_0, sigma_t^2) out of it gives q(x_s | x_0): Chapman-Kolmogorov backwards
        assert on_x * alpha_t + on_x0 == pytest.approx(alpha_s, rel=1e-10)
        assert on_x**2 * sigma_t**2 + law.std**2 == pytest.approx(sigma_s**2, rel=1e-10)
        between = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2  # Var(x_t | x_s)
        assert law.std == pytest.approx(eta * sigma_s / sigma_t * math.sqrt(between), rel=1e-7, abs=1e-15)


@pytest.mark.parametrize("name", SCHEDULES)
def test_chapman_kolmogorov(name):
    process = orn.Gaussian(SCHEDULES[name])
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)

    def affine(s, t):
        law = process.transition(x, s, t)
        assert float(law.mean[0]) == 0
        return float(law.mean[1]), float(law.std) ** 2

    for s, r, t in [(0.05, 0.3, 0.9), (0.4, 0.41, 0.42), (0.2, 0.6, 0.97)]:
        (a_1, v_1), (a_2, v_2), (a, v) = affine(s, r), affine(r, t), affine(s, t)
        assert a == pytest.approx(a_1 * a_2, rel=1e-12)
        assert v == pytest.approx(a_2**2 * v_1 + v_2, rel=1e-9)
        (alpha_s, sigma_s), (alpha_t, sigma_t) = level(process.schedule, s), level(process.schedule, t)
        assert a * alpha_s == pytest.approx(alpha_t, rel=1e-12)
        assert a**2 * sigma_s**2 + v == pytest.approx(sigma_t**2, rel=1e-10)


def test_transition_of_a_table_is_its_beta():
    schedule = orn.TableSchedule.linear(1000)
    process = orn.Gaussian(schedule)
    for i in (2, 3, 500, 1000):
        law = process.transition(torch.ones(1, 1, dtype=torch.float64), (i - 1) / 1000, i / 1000)
        beta = 1e-4 + (0.02 - 1e-4) * (i - 1) / 999
        assert float(law.mean) == pytest.approx(math.sqrt(1 - beta), rel=1e-12)
        assert float(law.std) == pytest.approx(math.sqrt(beta), rel=1e-9)


def test_posterior_of_the_tutorial():
    """Paper 000 eq. 46 corrected, at t = 300 of DDPM's table: .006337 and .9930 for x_0 and x_t, variance .00603."""
    process = orn.Gaussian(orn.TableSchedule.linear(1000))
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    law = process.posterior(process.estimate(x, 0.3, x0=torch.zeros(2, 1).double()), 0.3, 0.299)
    assert float(law.mean[1]) == pytest.approx(0.9930, abs=5e-5)
    law_x0 = process.posterior(process.estimate(torch.zeros(2, 1).double(), 0.3, x0=x), 0.3, 0.299)
    assert float(law_x0.mean[1]) == pytest.approx(0.006337, abs=5e-7)
    assert float(law.std) ** 2 == pytest.approx(0.00603, abs=5e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("step", [2, 40, 1000])
def test_learned_variance_lies_between_the_bounds(step, fraction):
    """Paper 001 eq. 44: Sigma = exp(v log beta_t + (1 - v) log beta~_t), from the betas themselves."""
    process = orn.Gaussian(orn.TableSchedule.linear(1000))
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    beta, tilde = betas[step - 1], betas[step - 1] * (1 - abar[step - 2]) / (1 - abar[step - 1])
    x = numbers(2, 3, seed=1)
    estimate = orn.processes.Estimate(process, x, step / 1000, "eps", x, fraction=torch.full_like(x, fraction))
    law = process.posterior(estimate, step / 1000, (step - 1) / 1000)
    truth = math.exp(fraction * math.log(beta) + (1 - fraction) * math.log(tilde))
    assert np.allclose(law.std.numpy() ** 2, truth, rtol=1e-8)
    floor = 2 * math.sqrt(beta)  # at the last pair beta~ is 0; the floor takes its place
    law = process.posterior(estimate, step / 1000, (step - 1) / 1000, floor=floor)
    truth = math.exp(fraction * math.log(beta) + (1 - fraction) * math.log(floor**2))
    assert np.allclose(law.std.numpy() ** 2, truth, rtol=1e-8)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0, 1.2])
def test_learned_variance_draws_no_noise_on_the_data(fraction):
    """z = 0 at t = 1 (Ho et al.), whatever the network says: log beta~_1 = -inf must not become NaN (001 eq. 44)."""
    process, x = orn.Gaussian(orn.CosineVP()), numbers(2, 3, seed=1)
    estimate = orn.processes.Estimate(process, x, 0.2, "v", x, fraction=torch.full_like(x, fraction))
    law = process.posterior(estimate, 0.2, 0.0)
    assert torch.equal(law.sample(Fixed(numbers(2, 3, seed=2))), estimate.x0)
