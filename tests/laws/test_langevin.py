"""Langevin steps: stationary laws by linear recursion, Metropolis ratios, annealing, predictor and corrector."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import BASES, SCHEDULES, Fixed, level, mean_of, numbers, order, unit_noise
from scipy.linalg import solve_discrete_lyapunov
from scipy.stats import norm

import ornstein as orn
from ornstein import exact
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.samplers import Ancestral, Euler, Heun, Multistep, sample, sample_steps
from ornstein.samplers.composed import PredictorCorrector
from ornstein.samplers.langevin import AnnealedLangevin, Langevin, UnderdampedLangevin
from ornstein.samplers.stochastic import EulerMaruyama, StochasticHeun

MEAN, VARIANCE = 0.6, 0.25
MEANS, VARIANCES, WEIGHTS = np.array([-0.9, 0.7]), np.array([0.05, 0.2]), np.array([0.4, 0.6])
WHITE = orn.Gaussian(orn.CosineVP())  # at t = 1 p_t is N(0, 1) whatever the data


def normal(process, variance=VARIANCE, mean=MEAN):
    return exact.Normal(process, torch.full((1,), mean, dtype=torch.float64), variance)


def mixture(process):
    return exact.Mixture(process, *(torch.from_numpy(v) for v in (MEANS[:, None], VARIANCES, WEIGHTS)))


def marginal(process, t):
    alpha, sigma = level(process.schedule, t)
    return alpha * MEAN, alpha**2 * VARIANCE + sigma**2


def affine(sampler, denoiser, t, s, draws):
    """(a, b^2, c) of one step x -> a x + b z + c on a scalar, from its value at two x and under each unit draw."""
    zeros = [torch.zeros(2, 1, dtype=torch.float64)] * draws
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    c, ac = sampler.step(denoiser, x, t, s, None, Fixed(*zeros))[0].flatten().tolist()
    noisy = sampler.step(denoiser, torch.zeros(draws, 1, dtype=torch.float64), t, s, None, unit_noise(draws, 1))[0]
    return ac - c, float(((noisy - c) ** 2).sum()), c


# --- unadjusted


@pytest.mark.parametrize("eps", [0.02, 1.0, 3.0])
def test_stationary_variance(eps):
    """Paper 000 eq. 77: 1 / (1 - eps / 4) on N(0, 1), which for eps = 1 is the 1.3333 of paper 001 eq. 40 at delta = .5."""
    a, variance, c = affine(Langevin(eps), normal(WHITE), 1.0, 1.0, 1)
    assert (a, variance, c) == pytest.approx((1 - eps / 2, eps, 0), abs=1e-12)
    assert variance / (1 - a**2) == pytest.approx(1 / (1 - eps / 4), rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "ve", "subvp", "flow"])
def test_the_step_is_in_units_of_the_noise(name):
    """At every level eps means eps sigma^2: the stationary variance is v / (1 - eps sigma^2 / (4 v)); its mean is exact."""
    process = orn.Gaussian(SCHEDULES[name])
    for t in (0.1, 0.5, 0.9):
        mean, v = marginal(process, t)
        eps = 0.3 * level(process.schedule, t)[1] ** 2
        a, variance, c = affine(Langevin(0.3), normal(process), t, t, 1)
        assert variance / (1 - a**2) == pytest.approx(v / (1 - eps / (4 * v)), rel=1e-9)
        assert c / (1 - a) == pytest.approx(mean, rel=1e-9)
        twice = affine(Langevin(0.3, steps=2), normal(process), t, t, 2)
        assert twice == pytest.approx((a * a, variance * (1 + a * a), c * (1 + a)), rel=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_the_step_with_a_base(base):
    """x + (eps / 2) Sigma score + sqrt(eps) L z, with the score of the density by autograd."""
    process, t = orn.Gaussian(orn.LinearVP(), BASES[base]), 0.3
    covariance = torch.eye(3, dtype=torch.float64) if BASES[base] is None else BASES[base].matrix()
    denoiser = exact.Normal(process, torch.tensor([1.0, 0.2, -0.4]).double(), 0.3 * torch.eye(3).double())
    x, z = (numbers(5, 3, seed=1) + mean_of(base)).requires_grad_(), numbers(5, 3, seed=2)
    score = torch.autograd.grad(denoiser.log_density(x, t).sum(), x)[0]
    root = torch.linalg.cholesky(covariance)
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
        moved = sampler.step(mixture(process), x, t, t, None, Fixed(z, u=accept + shift))[0][:, 0].numpy()
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
    y = sampler.step(mixture(process), x, t, t, None, Noise(2, n))[0]
    a, b = x[:, 0].numpy(), y[:, 0].numpy()
    functions = [lambda v: v, lambda v: v**2, lambda v: v**3, lambda v: v > 0, np.sin]
    for f in functions:
        assert abs((f(b) - 0.0).mean() - (f(a) - 0.0).mean()) < 4 * (f(b) - 0.0 - f(a)).std() / math.sqrt(n)
        for g in functions:
            flow = (f(a) - 0.0) * g(b) - (f(b) - 0.0) * g(a)  # detailed balance: no net flow
            assert abs(flow.mean()) < 4 * flow.std() / math.sqrt(n) + 1e-12
    once = Langevin(sampler.eps, sampler.snr, 1, True).step(mixture(process), x, t, t, None, Noise(2, n))[0]
    assert 0.2 < float((once != x).double().mean()) < 0.96
    wrong = Langevin(sampler.eps, sampler.snr, 8).step(mixture(process), x, t, t, None, Noise(2, n))[0]
    assert float(abs(wrong.var() / y.var() - 1)) > 0.05  # what the unadjusted step does


@pytest.mark.parametrize("base", ["diagonal", "full"])
@pytest.mark.parametrize(
    "sampler", [Langevin(1.5, steps=2, adjust=True), Langevin(snr=0.5, adjust=True)], ids=["eps", "snr"]
)
def test_the_adjusted_step_with_a_base(sampler, base):
    """The standard process in whitened coordinates, accepted and rejected alike."""
    prior, t = BASES[base], 0.3
    root = torch.linalg.cholesky(prior.matrix())
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
    denoiser, t = mixture(orn.Gaussian(orn.LinearVP())), 0.25
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
    sampler, denoiser = UnderdampedLangevin(eps, friction), normal(process)
    x = torch.tensor([[0.0], [1.0], [0.0], [0.0]], dtype=torch.float64)
    p = torch.tensor([[0.0], [0.0], [1.0], [0.0]], dtype=torch.float64)
    z = torch.tensor([[0.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    out = torch.cat(sampler.step(denoiser, x, t, t, p, Fixed(z)), 1).numpy()
    matrix, kick = (out[1:3] - out[0]).T, out[3] - out[0]
    law = solve_discrete_lyapunov(matrix, np.outer(kick, kick))
    mean, v = marginal(process, t)
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
    root, sigma = torch.linalg.cholesky(covariance), level(process.schedule, t)[1]
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


# --- annealed

LADDER = orn.Gaussian(orn.GeometricVE(0.05, 5.0))
LEVELS = np.linspace(1, 0, 12).tolist()  # sigma = 5 .. .05, geometric


def carry(sampler, denoiser, pairs, draws, variance):
    """The variance carried exactly through steps."""
    for t, s in pairs:
        a, b, _ = affine(sampler, denoiser, t, s, draws)
        variance = a * a * variance + b
    return variance


def test_annealed_langevin():
    """Paper 003: data N(0, .25), 200 steps a level: .258 from the largest sigma down, and 26.6 the other way."""
    data = normal(LADDER, mean=0.0)

    def visit(pairs, first):
        """200 steps a level: 10 by the sampler, the others by the same map of the variance."""
        variance = 1.0
        for t, s in pairs:
            variance = carry(first, data, [(t, s)], 10, variance)
            a, b, _ = affine(Langevin(0.2, steps=10), data, s, s, 10)
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
        found = sample(normal(process), AnnealedLangevin(0.3, steps=10), n=640, grid=grid, seed=1)
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
        x = AnnealedLangevin(0.3, steps=3).step(mixture(process), alpha_t * start, t, s, None, Fixed(*z))[0]
        moved.append(x / alpha_s)
    assert all(torch.allclose(x, moved[0], rtol=1e-8) for x in moved)


# --- predictor and corrector


class Refresh:
    """An exact corrector on the normal: x -> m + r (x - m) + sqrt(1 - r^2) std z."""

    order, stochastic, stages, corrects, exact = 0, True, 0, True, True

    def __init__(self, keep=0.9):
        self.keep = keep

    def step(self, denoiser, x, t, s, memory, rng):
        mean, variance = marginal(denoiser.process, t)
        z = rng.normal(x.shape, x.dtype)
        return mean + self.keep * (x - mean) + math.sqrt((1 - self.keep**2) * variance) * z, memory


@pytest.mark.parametrize("name", ["linear", "ve", "subvp", "flow"])
def test_predictor_and_corrector_keep_the_marginal(name):
    """Moments by recursion: the two maps one after the other; the corrector mends the predictor's variance up to eps / 4."""
    process, (t, s) = orn.Gaussian(SCHEDULES[name]), (0.9, 0.1)
    denoiser, times = normal(process), np.linspace(0.9, 0.1, 21).tolist()
    both = PredictorCorrector(EulerMaruyama(), Langevin(0.01, steps=2))
    a, b, c = affine(both, denoiser, 0.5, 0.45, 3)
    p, q = affine(EulerMaruyama(), denoiser, 0.5, 0.45, 1), affine(Langevin(0.01, steps=2), denoiser, 0.45, 0.45, 2)
    assert (a, b, c) == pytest.approx((p[0] * q[0], q[0] ** 2 * p[1] + q[1], q[0] * p[2] + q[2]), rel=1e-9)
    v_t, v_s = marginal(process, t)[1], marginal(process, s)[1]
    errors = []
    for corrector, draws in ((None, 1), (Langevin(0.01, steps=2), 3), (Langevin(0.1, steps=6), 7)):
        sampler = EulerMaruyama() if corrector is None else PredictorCorrector(EulerMaruyama(), corrector)
        errors.append(abs(carry(sampler, denoiser, pairwise(times), draws, v_t) / v_s - 1))
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
        got = carry(sampler, normal(process), pairs, draws, marginal(process, 0.9)[1])
        errors.append(abs(got / marginal(process, 0.1)[1] - 1))
    assert order(errors) >= sampler.order - 0.25
    assert sampler.order == (1 if isinstance(predictor, Multistep) else predictor.order)


def test_the_predictors_memory_is_dropped_and_the_correctors_kept():
    """A slope across a corrector's move is none of time: kept, it would leave ten times the variance error at 80 steps."""
    process = orn.Gaussian(orn.LinearVP())
    grid, x = torch.linspace(0.9, 0.1, 21, dtype=torch.float64), numbers(5, 1, seed=8)
    ends = []
    for predictor in (Multistep(), Multistep(1)):
        *_, state = sample_steps(
            mixture(process), PredictorCorrector(predictor, Langevin(0.1)), x, grid, Noise(1, range(5))
        )
        ends.append(state.x)
    assert torch.allclose(*ends, rtol=1e-9)

    seen = []

    class Remembers(Refresh):
        def step(self, denoiser, x, t, s, memory, rng):
            seen.append((t, s, memory))
            return x, s

    list(sample_steps(mixture(process), PredictorCorrector(Euler(), Remembers()), x, grid[:4], Noise(1, 5)))
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
    inner, made = normal(orn.Gaussian(SCHEDULES[name])), 0

    class Spy:
        process, shape = inner.process, inner.shape

        def __call__(self, *args):
            nonlocal made
            made += 1
            return inner(*args)

        def log_density(self, *args):
            nonlocal made
            made += 1
            return inner.log_density(*args)

    assert sampler.stochastic
    for calls in (1, 9, 30):
        made = 0
        found = sample(Spy(), sampler, n=2, calls=calls, seed=5)
        assert found.calls == made
        assert calls - sampler.stages < made <= calls
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
    mean, variance = marginal(process, 0.6)
    for sampler in (Langevin(0.5, adjust=True), UnderdampedLangevin(0.5)):
        *_, last = sample_steps(normal(process), sampler, torch.zeros(400, 1).double(), grid, Noise(3, 400))
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
        got = carry(sampler, normal(process), pairs, 2, marginal(process, 0.9)[1])
        errors.append(abs(got / marginal(process, 0.1)[1] - 1))
    assert order(errors) < 0.1
    assert errors[-1] > 0.01
    assert sampler.order == Langevin.order == UnderdampedLangevin.order == AnnealedLangevin.order == 0


# --- bad input

X = torch.zeros(2, 1, dtype=torch.float64)
PLAIN = orn.Denoiser(torch.nn.Identity(), orn.Gaussian(orn.LinearVP()), "v")


def at(sampler, t=0.5, s=0.5, denoiser=None):
    return sampler.step(denoiser or normal(LADDER), X, t, s, None, Noise(0, 2))


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
        (lambda: AnnealedLangevin(0.0), "eps=0.0", "0 < eps"),
        (lambda: AnnealedLangevin(1e-3, 0.01), "eps=0.001 at sigma_min=0.01", "4 sigma_min^2"),
        (lambda: AnnealedLangevin(sigma_min=-1.0), "sigma_min=-1.0", "sigma_min > 0"),
        (lambda: AnnealedLangevin(steps=0), "steps=0", "at least 1"),
        (lambda: at(Langevin(), 0.5, 0.4), "from t = 0.5 to s = 0.4", "AnnealedLangevin"),
        (lambda: at(UnderdampedLangevin(), 0.5, 0.4), "from t = 0.5 to s = 0.4", "PredictorCorrector"),
        (lambda: at(Langevin(), 0.0, 0.0, normal(WHITE)), "sigma = 0", "a level of noise"),
        (lambda: at(AnnealedLangevin(), 0.5, 0.5), "do not fall", "largest sigma first"),
        (lambda: at(Langevin(adjust=True), denoiser=PLAIN), "Denoiser, which has no log_density", "exact.Normal"),
        (lambda: sample(PLAIN, AnnealedLangevin(adjust=True), shape=(1,), steps=3), "Denoiser, which", "adjust=False"),
        (
            lambda: sample(normal(LADDER), AnnealedLangevin(), start=X, grid=torch.tensor([0.1, 0.5])),
            "rising",
            "expected",
        ),
        (lambda: PredictorCorrector(Heun(), Heun()), "corrector=Heun", "Langevin()"),
        (lambda: PredictorCorrector(Langevin(), Langevin()), "predictor=Langevin", "EulerMaruyama"),
        (lambda: at(PredictorCorrector(Heun(), Langevin()), 0.4, 0.5), "t = 0.4 to s = 0.5", "falling"),
    ],
)
def test_bad_input(call, got, remedy):
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert got in str(caught.value)
    assert remedy in str(caught.value)
