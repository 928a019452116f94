"""Langevin steps: stationary laws by linear recursion, Metropolis ratios, the underdamped splitting, what is refused."""

import math

import numpy as np
import pytest
import torch
from helpers import (
    BASES,
    MEANS,
    NO_DENSITY,
    SCHEDULES,
    VARIANCES,
    WEIGHTS,
    Fixed,
    affine_law,
    check_refusal,
    exact_mixture,
    exact_normal,
    level,
    mean_of,
    normal_marginal,
    numbers,
    one_step,
    root_of,
)
from scipy.linalg import solve_discrete_lyapunov
from scipy.stats import norm

import ornstein as orn
from ornstein import exact
from ornstein.noise import Noise
from ornstein.samplers.langevin import Langevin, UnderdampedLangevin

WHITE = orn.Gaussian(orn.CosineVP())  # at t = 1 p_t is N(0, 1) whatever the data


# --- unadjusted


@pytest.mark.parametrize("eps", [0.02, 1.0, 3.0])
def test_stationary_variance(eps):
    """Paper 000 eq. 77: 1 / (1 - eps / 4) on N(0, 1), which for eps = 1 is the 1.3333 of paper 001 eq. 40 at delta = .5."""
    a, variance, c = affine_law(Langevin(eps), exact_normal(WHITE), 1.0, 1.0, 1)
    assert (a, variance, c) == pytest.approx((1 - eps / 2, eps, 0), abs=1e-12)
    assert variance / (1 - a**2) == pytest.approx(1 / (1 - eps / 4), rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "ve", "subvp", "flow"])
def test_the_step_is_in_units_of_the_noise(name):
    """At every level eps means eps sigma^2: the stationary variance is v / (1 - eps sigma^2 / (4 v)); its mean is exact."""
    process = orn.Gaussian(SCHEDULES[name])
    for t in (0.1, 0.5, 0.9):
        mean, v = normal_marginal(process, t)
        eps = 0.3 * level(process.schedule, t)[1] ** 2
        a, variance, c = affine_law(Langevin(0.3), exact_normal(process), t, t, 1)
        assert variance / (1 - a**2) == pytest.approx(v / (1 - eps / (4 * v)), rel=1e-9)
        assert c / (1 - a) == pytest.approx(mean, rel=1e-9)
        twice = affine_law(Langevin(0.3, steps=2), exact_normal(process), t, t, 2)
        assert twice == pytest.approx((a * a, variance * (1 + a * a), c * (1 + a)), rel=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_the_step_with_a_base(base):
    """x + (eps / 2) Sigma score + sqrt(eps) L z, with the score of the density by autograd."""
    process, t = orn.Gaussian(orn.LinearVP(), BASES[base]), 0.3
    covariance = torch.eye(3, dtype=torch.float64) if BASES[base] is None else BASES[base].matrix()
    denoiser = exact.Normal(process, torch.tensor([1.0, 0.2, -0.4]).double(), 0.3 * torch.eye(3).double())
    x, z = (numbers(5, 3, seed=1) + mean_of(base)).requires_grad_(), numbers(5, 3, seed=2)
    score = torch.autograd.grad(denoiser.log_density(x, t).sum(), x)[0]
    root = root_of(covariance)
    eps = 0.2 * level(process.schedule, t)[1] ** 2
    got = Langevin(0.2).step(denoiser, x.detach(), t, t, None, Fixed(z))[0]
    assert torch.allclose(got, x + eps / 2 * score @ covariance + math.sqrt(eps) * z @ root.T, rtol=1e-9)
    # the signal-to-noise rule in the convention of Song et al. 2021: x + e grad + sqrt(2 e) z, per example
    whitened = score @ root
    e = (2 * 3 * (0.16 / whitened.norm(dim=1)) ** 2)[:, None].clamp(max=level(process.schedule, t)[1] ** 2 / 2)
    got = Langevin(snr=0.16).step(denoiser, x.detach(), t, t, None, Fixed(z))[0]
    assert torch.allclose(got, x + e * score @ covariance + (2 * e).sqrt() * z @ root.T, rtol=1e-9)
    one, two = (sampler.step(denoiser, x.detach(), t, t, None, Fixed(z))[0] for sampler in (Langevin(), Langevin(0.1)))
    assert torch.equal(one, two)


def test_the_signal_to_noise_rule():
    """The drift is snr times the noise (by root mean square), whatever the units; near a mode the step is at most sigma^2."""
    t, x, z = 0.5, numbers(6, 40, seed=3), numbers(6, 40, seed=4)
    small, large = (orn.Gaussian(orn.GeometricVE(0.01 * c, 50.0 * c)) for c in (1, 7))
    one, two = (exact.Normal(p, torch.zeros(40).double(), (0.3 * c) ** 2) for p, c in ((small, 1), (large, 7)))
    drift = Langevin(snr=0.2).step(one, x, t, t, None, Fixed(0 * z))[0] - x
    kick = Langevin(snr=0.2).step(one, x, t, t, None, Fixed(torch.ones_like(z)))[0] - x - drift
    assert torch.allclose(drift.norm(dim=1) / kick.norm(dim=1), torch.tensor(0.2).double())
    a = Langevin(snr=0.2).step(one, x, t, t, None, Fixed(z))[0]
    assert torch.allclose(7 * a, Langevin(snr=0.2).step(two, 7 * x, t, t, None, Fixed(z))[0], rtol=1e-9)
    alone = Langevin(snr=0.2).step(one, x[2:3], t, t, None, Fixed(z[2:3]))[0]
    assert torch.allclose(alone, a[2:3], rtol=1e-12)
    still = Langevin(snr=0.2).step(one, 0 * x, t, t, None, Fixed(z))[0]
    assert torch.allclose(still, level(small.schedule, t)[1] * z)


# --- Metropolis-adjusted


def log_mixture(x, alpha, sigma, mean=0.0):
    """log p_t and the score of the one-dimensional mixture, by numpy."""
    variances, centres = alpha**2 * VARIANCES + sigma**2, mean + alpha * (MEANS - mean)
    share = WEIGHTS * norm.pdf(x[:, None], centres, np.sqrt(variances))
    return np.log(share.sum(1)), (share * (centres - x[:, None]) / variances).sum(1) / share.sum(1)


@pytest.mark.parametrize("sampler", [Langevin(4.5, adjust=True), Langevin(snr=0.3, adjust=True)], ids=["eps", "snr"])
def test_acceptance_is_that_of_metropolis_and_hastings(sampler):
    """min(1, p(x') q(x | x') / (p(x) q(x' | x))), by scipy's normal densities: accepted just below it, rejected just above."""
    process, t = orn.Gaussian(orn.LinearVP()), 0.25
    alpha, sigma = level(process.schedule, t)
    x, z = 1.2 * numbers(40, 1, seed=5), numbers(40, 1, seed=6)

    def size(score):
        return 4.5 * sigma**2 if sampler.eps else np.minimum(4 * 0.3**2 / score**2, sigma**2)

    here = x[:, 0].numpy()
    log_p, score = log_mixture(here, alpha, sigma)
    there = here + size(score) / 2 * score + np.sqrt(size(score)) * z[:, 0].numpy()
    log_p_there, score_there = log_mixture(there, alpha, sigma)
    way = norm.logpdf(there, here + size(score) / 2 * score, np.sqrt(size(score)))
    back = norm.logpdf(here, there + size(score_there) / 2 * score_there, np.sqrt(size(score_there)))
    accept = torch.from_numpy(np.exp(np.minimum(log_p_there + back - log_p - way, 0)))
    assert (accept < 0.9).sum() > 4
    for shift in (-1e-7, 1e-7):
        moved = sampler.step(exact_mixture(process), x, t, t, None, Fixed(z, u=accept + shift))[0][:, 0].numpy()
        expected = np.where((shift < 0) | (accept.numpy() == 1), there, here)
        u_is_possible = (accept.numpy() + shift < 1) | (shift < 0)
        assert np.allclose(moved[u_is_possible], expected[u_is_possible], rtol=1e-9)


@pytest.mark.parametrize("sampler", [Langevin(3.9, steps=8, adjust=True), Langevin(snr=0.3, steps=8, adjust=True)])
def test_the_adjusted_law_is_exact(sampler):
    """From 8192 draws of a mixture: its moments stay, pairs in time are exchangeable, many moves are rejected."""
    process, t, n = orn.Gaussian(orn.GeometricVE(0.3, 50.0)), 0.01, 8192
    sigma = level(process.schedule, t)[1]
    rng = np.random.default_rng(1)
    k = rng.choice(2, n, p=WEIGHTS)
    x = torch.from_numpy(MEANS[k] + np.sqrt(VARIANCES[k] + sigma**2) * rng.normal(size=n))[:, None]
    y = sampler.step(exact_mixture(process), x, t, t, None, Noise(2, n))[0]
    a, b = x[:, 0].numpy(), y[:, 0].numpy()
    functions = [lambda v: v, lambda v: v**2, lambda v: v**3, lambda v: v > 0, np.sin]
    for f in functions:
        assert abs((f(b) - 0.0).mean() - (f(a) - 0.0).mean()) < 4 * (f(b) - 0.0 - f(a)).std() / math.sqrt(n)
        for g in functions:
            flow = (f(a) - 0.0) * g(b) - (f(b) - 0.0) * g(a)  # detailed balance: no net flow
            assert abs(flow.mean()) < 4 * flow.std() / math.sqrt(n) + 1e-12
    once = Langevin(sampler.eps, sampler.snr, 1, True).step(exact_mixture(process), x, t, t, None, Noise(2, n))[0]
    assert 0.2 < float((once != x).double().mean()) < 0.96
    wrong = Langevin(sampler.eps, sampler.snr, 8).step(exact_mixture(process), x, t, t, None, Noise(2, n))[0]
    assert float(abs(wrong.var() / y.var() - 1)) > 0.05  # what the unadjusted step does


@pytest.mark.parametrize("base", ["diagonal", "full"])
@pytest.mark.parametrize(
    "sampler", [Langevin(1.5, steps=2, adjust=True), Langevin(snr=0.5, adjust=True)], ids=["eps", "snr"]
)
def test_the_adjusted_step_with_a_base(sampler, base):
    """The standard process in whitened coordinates, accepted and rejected alike."""
    prior, t = BASES[base], 0.3
    root = root_of(prior.matrix())
    covariance = torch.diag(torch.tensor([0.5, 0.3, 1.2]).double())
    one = exact.Normal(orn.Gaussian(orn.LinearVP()), torch.ones(3).double(), covariance)
    two = exact.Normal(
        orn.Gaussian(orn.LinearVP(), prior), prior.mean + root @ torch.ones(3).double(), root @ covariance @ root.T
    )
    y = 1.5 * numbers(64, 3, seed=7)
    a = sampler.step(one, y, t, t, None, Noise(2, 64))[0]
    b = sampler.step(two, prior.mean + y @ root.T, t, t, None, Noise(2, 64))[0]
    assert torch.allclose(b, prior.mean + a @ root.T, rtol=1e-8, atol=1e-8)
    assert 0 < int((a == y).all(1).sum()) < 64


@pytest.mark.parametrize("sampler", [Langevin(6.0, adjust=True), Langevin(snr=0.3, adjust=True)], ids=["eps", "snr"])
def test_two_adjusted_moves_are_one_after_the_other(sampler):
    """After a rejection the force and the density are those of the state that stayed."""
    denoiser, t = exact_mixture(orn.Gaussian(orn.LinearVP())), 0.25
    x, (z, w), u = numbers(60, 1, seed=5), numbers(2, 60, 1, seed=6), 0.9 * torch.ones(60)
    twice = Langevin(sampler.eps, sampler.snr, 2, True).step(denoiser, x, t, t, None, Fixed(z, w, u=u))[0]
    one = sampler.step(denoiser, x, t, t, None, Fixed(z, u=u))[0]
    assert torch.allclose(twice, sampler.step(denoiser, one, t, t, None, Fixed(w, u=u))[0], rtol=1e-12)
    assert 5 < int((one == x).sum()) < 55


def test_a_nan_is_seen():
    """A network's NaN is not taken for a rejection."""

    class Broken:
        process = WHITE

        def __call__(self, x_t, t, cond=None, keep=None):
            return self.process.estimate(x_t, t, x0=x_t * math.nan)

        def log_density(self, x_t, t):
            return x_t[:, 0] * 0

    found = Langevin(0.5, adjust=True).step(Broken(), numbers(3, 1), 0.5, 0.5, None, Noise(0, 3))[0]
    assert found.isnan().all()


# --- underdamped


@pytest.mark.parametrize("friction", [0.2, 1.0, 50.0])
@pytest.mark.parametrize("eps", [0.1, 2.0])
def test_underdamped_stationary_law(eps, friction):
    """BAOAB on N(m, v): the recursion's fixed point has Var x = v exactly and Var p = 1 - eps sigma^2 / (4 v), uncorrelated."""
    process, t = orn.Gaussian(orn.LinearVP()), 0.3
    sampler, denoiser = UnderdampedLangevin(eps, friction), exact_normal(process)
    x = torch.tensor([[0.0], [1.0], [0.0], [0.0]], dtype=torch.float64)
    p = torch.tensor([[0.0], [0.0], [1.0], [0.0]], dtype=torch.float64)
    z = torch.tensor([[0.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    out = torch.cat(sampler.step(denoiser, x, t, t, p, Fixed(z)), 1).numpy()
    matrix, kick = (out[1:3] - out[0]).T, out[3] - out[0]
    law = solve_discrete_lyapunov(matrix, np.outer(kick, kick))
    mean, v = normal_marginal(process, t)
    sigma = level(process.schedule, t)[1]
    assert law[0, 0] == pytest.approx(v, rel=1e-9)
    assert law[1, 1] == pytest.approx(1 - eps * sigma**2 / (4 * v), rel=1e-9)
    assert abs(law[0, 1]) < 1e-9
    assert np.linalg.solve(np.eye(2) - matrix, out[0]) == pytest.approx([mean, 0], abs=1e-9)


def test_underdamped_splitting():
    """One step by its five parts, with a base; the memory goes on; without one the momentum is drawn."""
    process, t = orn.Gaussian(orn.LinearVP(), BASES["full"]), 0.4
    denoiser = exact.Normal(process, torch.tensor([1.0, 0.2, -0.4]).double(), 0.3)
    covariance = BASES["full"].matrix()
    root, sigma = root_of(covariance), level(process.schedule, t)[1]
    x, z = numbers(4, 3, seed=1), [numbers(4, 3, seed=k) for k in range(2, 5)]
    h, friction = 0.6, 1.3

    def force(x):
        x = x.detach().requires_grad_()
        return sigma * torch.autograd.grad(denoiser.log_density(x, t).sum(), x)[0] @ covariance

    p, y = z[0] @ root.T, x
    for k in (1, 2):
        p = p + h / 2 * force(y)
        y = y + sigma * h / 2 * p
        p = math.exp(-friction * h) * p + math.sqrt(1 - math.exp(-2 * friction * h)) * z[k] @ root.T
        y = y + sigma * h / 2 * p
        p = p + h / 2 * force(y)
    for whole in (True, False):
        if whole:
            found = UnderdampedLangevin(h * h, friction, 2).step(denoiser, x, t, t, None, Fixed(*z))
        else:
            half = UnderdampedLangevin(h * h, friction)
            rng = Fixed(*z)
            found = half.step(denoiser, *half.step(denoiser, x, t, t, None, rng)[:1], t, t, None, Fixed(*z[:2]))
            first = half.step(denoiser, x, t, t, None, Fixed(*z[:2]))
            found = half.step(denoiser, first[0], t, t, first[1], Fixed(z[2]))
        assert torch.allclose(found[0], y, rtol=1e-9)
        assert torch.allclose(found[1], p, rtol=1e-9)


# --- bad input


@pytest.mark.parametrize(
    ("call", "got", "remedy"),
    [
        (lambda: Langevin(0.0), "eps=0.0", "units of sigma(t)^2"),
        (lambda: Langevin(math.nan), "eps=nan", "above 0"),
        (lambda: Langevin(4.0), "eps=4.0", "diverge"),
        (lambda: Langevin(-1.0, adjust=True), "eps=-1.0", "above 0"),
        (lambda: Langevin(0.1, 0.1), "eps=0.1 and snr=0.1", "one of them"),
        (lambda: Langevin(snr=0.0), "snr=0.0", "0.16"),
        (lambda: Langevin(snr=1.5), "snr=1.5", "below 1"),
        (lambda: Langevin(0.1, steps=0), "steps=0", "at least 1"),
        (lambda: Langevin(0.1, steps=1.5), "steps=1.5", "whole number"),
        (lambda: UnderdampedLangevin(5.0), "eps=5.0", "below 4"),
        (lambda: UnderdampedLangevin(friction=0.0), "friction=0.0", "positive"),
        (lambda: UnderdampedLangevin(steps=0), "steps=0", "at least 1"),
        (lambda: one_step(Langevin(), 0.5, 0.4), "from t = 0.5 to s = 0.4", "AnnealedLangevin"),
        (lambda: one_step(UnderdampedLangevin(), 0.5, 0.4), "from t = 0.5 to s = 0.4", "PredictorCorrector"),
        (lambda: one_step(Langevin(), 0.0, 0.0, exact_normal(WHITE)), "sigma = 0", "a level of noise"),
        (
            lambda: one_step(Langevin(adjust=True), denoiser=NO_DENSITY),
            "Denoiser, which has no log_density",
            "exact.Normal",
        ),
    ],
)
def test_bad_input(call, got, remedy):
    check_refusal(call, got, remedy)
