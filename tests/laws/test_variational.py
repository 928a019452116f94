"""The terms of the variational bound against torch.distributions, matrices of conditioning, quadrature and the betas."""

import math

import numpy as np
import pytest
import torch
from helpers import BASES, PAIRS, SCHEDULES, SIGMA, D, level, mean_of, numbers
from scipy.integrate import quad
from torch.distributions import MultivariateNormal, kl_divergence

import ornstein as orn
from ornstein import grids, variational
from ornstein.errors import ConfigurationError
from ornstein.processes import Estimate

X0, X_T, GUESS = numbers(4, D, seed=1), numbers(4, D, seed=2), numbers(4, D, seed=3)


def bounds(schedule, t: float, s: float) -> tuple[float, float]:
    """(beta~, beta): Var(x_s | x_t, x_0) and Var(x_t | x_s), from Cov(x_s, x_t | x_0) = (alpha_t / alpha_s) sigma_s^2."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = level(schedule, s), level(schedule, t)
    across = alpha_t / alpha_s * sigma_s**2
    return sigma_s**2 - across**2 / sigma_t**2, sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2


def posterior_mean(schedule, base: str, x0: torch.Tensor, t: float, s: float) -> torch.Tensor:
    """E[x_s | x_t, x_0] by conditioning, at X_T."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = level(schedule, s), level(schedule, t)
    mu, gain = mean_of(base), alpha_t / alpha_s * sigma_s**2 / sigma_t**2
    return mu + alpha_s * (x0 - mu) + gain * (X_T - mu - alpha_t * (x0 - mu))


def normals(mean: torch.Tensor, std: torch.Tensor, base: str) -> MultivariateNormal:
    """N(mean, diag(std) Sigma diag(std))."""
    scale = torch.diag_embed(torch.as_tensor(std, dtype=torch.float64).expand_as(mean))
    return MultivariateNormal(mean, scale @ SIGMA[base] @ scale)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_transition_kl_is_that_of_the_two_normals(name, base):
    """The variance in the middle and at both its bounds, learned and fixed; float times and a mixed batch."""
    process = orn.Gaussian(SCHEDULES[name], BASES[base])
    learned = torch.rand(4, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t, s in PAIRS:
        small, large = bounds(process.schedule, t, s)
        q = normals(posterior_mean(process.schedule, base, X0, t, s), math.sqrt(small), base)
        mean = posterior_mean(process.schedule, base, GUESS, t, s)
        estimate = process.estimate(X_T, t, x0=GUESS)
        for fixed in (0.0, 0.3, 1.0):
            p = normals(mean, math.sqrt(small ** (1 - fixed) * large**fixed), base)
            got = variational.transition_kl(estimate, X0, t, s, fixed)
            assert np.allclose(got, kl_divergence(q, p), rtol=1e-7, atol=1e-9)
        p = normals(mean, (small ** (1 - learned) * large**learned).sqrt(), base)
        held = Estimate(process, X_T, t, "x0", GUESS, fraction=learned)
        got = variational.transition_kl(held, X0, t, s, fixed=0.9)
        assert np.allclose(got, kl_divergence(q, p), rtol=1e-7, atol=1e-9)
    both = [torch.tensor([pair[k] for pair in (*PAIRS, PAIRS[0])], dtype=torch.float64) for k in (0, 1)]
    got = variational.transition_kl(process.estimate(X_T, both[0], x0=GUESS), X0, *both)
    for i, (t, s) in enumerate((*PAIRS, PAIRS[0])):
        one = variational.transition_kl(process.estimate(X_T, t, x0=GUESS), X0, t, s)
        assert float(got[i]) == pytest.approx(float(one[i]), rel=1e-9)


def test_transition_kl_is_exact_for_float32_states():
    """The same numbers in both types: at the first steps of a long chain float32 means would differ by their rounding."""
    process = orn.Gaussian(orn.CosineVP())
    x0, v = X0.float(), (numbers(4, D, seed=5) * 1e-3).float()
    x_t = (x0 + 3e-4 * numbers(4, D, seed=6)).float()
    results = [
        variational.transition_kl(Estimate(process, x_t.to(d), 1 / 4000, "v", v.to(d)), x0.to(d), 1 / 4000, 1 / 8000)
        for d in (torch.float32, torch.float64)
    ]
    assert results[0].dtype == torch.float64
    assert torch.equal(*results)


def test_gradients_reach_the_estimate_and_its_fraction():
    process = orn.Gaussian(orn.LinearVP())
    value, fraction = (torch.full((4, D), v, dtype=torch.float64, requires_grad=True) for v in (0.2, 0.6))
    t, s = (torch.tensor(v, dtype=torch.float64) for v in ([0.9, 0.5, 0.3, 0.1], [0.8, 0.49, 0.1, 0.09]))

    def loss(value, fraction):
        estimate = Estimate(process, X_T, t, "eps", value, fraction=fraction)
        terms = variational.transition_kl(estimate, X0, t, s)
        return terms + variational.reconstruction(estimate, X0, t, 0.01) + variational.kl_rate(estimate, X0, t)

    assert torch.autograd.gradcheck(loss, (value, fraction), rtol=1e-4)


def normal_kl_by_quadrature(m: float, v: float, m_p: float, v_p: float) -> float:
    """int q log q / p for q = N(m, v), p = N(m_p, v_p)."""

    def integrand(x):
        q = -0.5 * (math.log(2 * math.pi * v) + (x - m) ** 2 / v)
        return math.exp(q) * (q + 0.5 * (math.log(2 * math.pi * v_p) + (x - m_p) ** 2 / v_p))

    reach = 12 * math.sqrt(v)
    return quad(integrand, m - reach, m + reach, epsabs=1e-13, epsrel=1e-11, limit=200)[0]


@pytest.mark.parametrize("fixed", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "ve", "flow", "table-cosine"])
def test_kl_weights_against_quadrature(name, fixed):
    """A reading wrong by delta makes an error in x_0, hence in the mean of p: KL = w delta^2 + its value at delta = 0."""
    schedule, delta, x_t, x0 = SCHEDULES[name], 0.37, 0.8, -0.4
    for t, s in [(0.8, 0.4), (0.52, 0.5)]:
        (alpha_s, sigma_s), (alpha, sigma) = level(schedule, s), level(schedule, t)
        small, large = bounds(schedule, t, s)
        eps = (x_t - alpha * x0) / sigma
        wrong = {
            "x0": x0 + delta,
            "eps": (x_t - sigma * (eps + delta)) / alpha,
            "score": (x_t + sigma**2 * (-eps / sigma + delta)) / alpha,
            "v": (alpha * x_t - sigma * (alpha * eps - sigma * x0 + delta)) / (alpha**2 + sigma**2),
        }
        gain = alpha / alpha_s * sigma_s**2 / sigma**2
        means = {kind: alpha_s * v + gain * (x_t - alpha * v) for kind, v in {**wrong, "truth": x0}.items()}
        v_p = small ** (1 - fixed) * large**fixed
        least = normal_kl_by_quadrature(means["truth"], small, means["truth"], v_p)
        for kind in wrong:
            kl = normal_kl_by_quadrature(means["truth"], small, means[kind], v_p)
            weight = variational.kl_weight(orn.Gaussian(schedule), t, s, kind, fixed)
            assert float(weight) * delta**2 == pytest.approx(kl - least, rel=1e-6, abs=1e-10)


def test_kl_weights_of_the_tutorial():
    """Paper 001 eq. 40 mended and paper 002 eq. 28, at DDPM's betas; finite in v where nothing of x_0 is left."""
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    i = np.array([2, 300, 1000])
    beta, now, then = betas[i - 1], abar[i - 1], abar[i - 2]
    t, s = torch.from_numpy(i / 1000), torch.from_numpy((i - 1) / 1000)
    process = orn.Gaussian(orn.TableSchedule.linear(1000))
    for fixed, variance in ((0.0, (1 - then) / (1 - now) * beta), (1.0, beta)):
        eps = beta**2 / (2 * variance * (1 - beta) * (1 - now))
        x0 = then * beta**2 / ((1 - now) ** 2 * 2 * variance)
        assert np.allclose(variational.kl_weight(process, t, s, "eps", fixed), eps, rtol=1e-7)
        assert np.allclose(variational.kl_weight(process, t, s, "x0", fixed), x0, rtol=1e-7)
    end = orn.Gaussian(orn.CosineVP())
    assert float(variational.kl_weight(end, 1.0, 0.5, "eps")) == math.inf
    snr = math.exp(float(end.schedule.log_snr(0.5)))
    assert float(variational.kl_weight(end, 1.0, 0.5, "v")) == pytest.approx(snr / 2)  # there v = -x_0
    with pytest.raises(ConfigurationError, match="expected one of x0, eps, score, v"):
        variational.kl_weight(end, 1.0, 0.5, "noise")


@pytest.mark.parametrize("base", BASES)
def test_kl_rate_is_the_limit_of_the_kl(base):
    """KL / (log SNR_s - log SNR_t) at a short step, extrapolated, whatever the variance of p."""
    process = orn.Gaussian(orn.LinearVP(), BASES[base])
    estimate = process.estimate(X_T, 0.5, x0=GUESS)
    rate = variational.kl_rate(estimate, X0, 0.5)
    for fixed in (0.0, 1.0):
        found = []
        for h in (2e-4, 1e-4):
            width = float(process.schedule.log_snr(0.5 - h) - process.schedule.log_snr(0.5))
            found.append(variational.transition_kl(estimate, X0, 0.5, 0.5 - h, fixed) / width)
        assert np.allclose(2 * found[1] - found[0], rate, rtol=1e-4)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_prior_kl(name, base):
    process = orn.Gaussian(SCHEDULES[name], BASES[base])
    for t in (1.0, 0.6):
        alpha, sigma = level(process.schedule, t)
        mu = mean_of(base)
        q, p = normals(mu + alpha * (X0 - mu), sigma, base), normals(mu.expand(4, D), sigma, base)
        assert np.allclose(variational.prior_kl(process, X0, t), kl_divergence(q, p), rtol=1e-9, atol=1e-12)
        law = variational.marginal(process, X0, t)
        assert np.allclose(law.log_prob(X_T), q.log_prob(X_T), rtol=1e-10)
    both = variational.prior_kl(process, X0, torch.tensor([0.6, 1.0, 0.6, 1.0], dtype=torch.float64))
    assert np.allclose(both[::2], variational.prior_kl(process, X0[::2], 0.6), rtol=1e-12)


@pytest.mark.parametrize("base", BASES)
def test_reconstruction_is_a_normal_density(base):
    """Its std between the floor and sigma(t), in log: at sigma(t) where fixed is 1."""
    process = orn.Gaussian(orn.TableSchedule.linear(1000), BASES[base])
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)
    floor = variational.floor(process, 1 / 1000, 2 / 1000)
    assert floor**2 == pytest.approx((1 - abar[0]) / (1 - abar[1]) * betas[1], rel=1e-9)
    fraction = torch.tensor([0.1, 0.9, 0.5], dtype=torch.float64).expand(4, D)
    for held, fixed in ((None, 0.0), (None, 0.3), (None, 1.0), (fraction, 0.3)):
        estimate = Estimate(process, X_T, 1 / 1000, "x0", X0 + 0.01 * GUESS, fraction=held)
        f = torch.tensor(fixed) if held is None else held
        std = floor ** (1 - f) * math.sqrt(betas[0]) ** f
        truth = normals(X0 + 0.01 * GUESS, std, base).log_prob(X0)
        got = variational.reconstruction(estimate, X0, 1 / 1000, floor, fixed=fixed)
        assert np.allclose(got, truth, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_chain_visits_the_uniform_grid(name):
    process = orn.Gaussian(SCHEDULES[name])
    for steps in (1, 2, 10):
        times, grid = variational.chain(process, steps), grids.uniform(process, steps)
        assert len(times) == steps
        assert torch.equal(times, grid[:steps].flip(0))
        assert float(process.level(float(times[0])).sigma) > 0
    with pytest.raises(ConfigurationError, match="steps=0"):
        variational.chain(process, 0)
