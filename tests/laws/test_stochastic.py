"""Reverse SDEs: weak orders by exact moments and by quadrature, strong orders on Brownian paths, DDPM's three variances."""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers import BASES, PAIRS, SCHEDULES, Fixed, affine_step, level, mean_of, moments, numbers, order
from scipy.interpolate import CubicSpline

import ornstein as orn
from ornstein import exact
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.samplers import Ancestral, sample, sample_steps
from ornstein.samplers.runge_kutta import Euler, Heun
from ornstein.samplers.stochastic import EulerMaruyama, StochasticHeun

MEAN, VARIANCE = 0.6, 0.25
MEANS, VARIANCES, WEIGHTS = np.array([-0.9, 0.7]), np.array([0.15, 0.3]), np.array([0.4, 0.6])
BOTH = {"em": EulerMaruyama, "heun": StochasticHeun}
NAMES = ["linear", "ve", "subvp", "flow", "edm", "cosine"]


def normal(process, variance=VARIANCE, mean=MEAN, size=1):
    return exact.Normal(process, torch.full((size,), mean, dtype=torch.float64), variance)


def mixture(process):
    return exact.Mixture(process, *(torch.from_numpy(v) for v in (MEANS[:, None], VARIANCES, WEIGHTS)))


def marginal(process, t):
    alpha, sigma = level(process.schedule, t)
    return alpha * MEAN, alpha**2 * VARIANCE + sigma**2


# --- weak order


def exact_moments(process, t, s, noise, mean, variance):
    """Mean and variance at s from any at t: in y = x / alpha the distance from p_t shrinks by ((v + r_s^2) / (v + r_t^2))^p,

    p = (1 + noise^2) / 2, since dy = (1 + noise^2) r (y - m) / (v + r^2) dr + noise dw.
    """
    (mean_t, variance_t), (mean_s, variance_s) = marginal(process, t), marginal(process, s)
    alpha_t, alpha_s = level(process.schedule, t)[0], level(process.schedule, s)[0]
    ratio = (variance_s / alpha_s**2) / (variance_t / alpha_t**2)
    kept = alpha_s / alpha_t * ratio ** ((1 + noise**2) / 2)
    return mean_s + kept * (mean - mean_t), variance_s + kept**2 * (variance - variance_t)


@pytest.mark.parametrize(
    ("name", "noise"),
    [*((name, noise) for name in ("linear", "ve", "subvp", "flow") for noise in (0, 1)), ("linear", 0.5), ("ve", 1.5)],
)
@pytest.mark.parametrize("recipe", BOTH)
def test_weak_order_on_the_normal(recipe, name, noise):
    """Mean and variance carried exactly, from p_t and from another law, which more noise forgets sooner."""
    process, sampler, (t, s) = orn.Gaussian(SCHEDULES[name]), BOTH[recipe](float(noise)), (0.9, 0.1)
    denoiser = normal(process)
    mean, variance = marginal(process, t)
    starts = ((mean, variance), (mean + math.sqrt(variance), 0.4 * variance))
    truths = [exact_moments(process, t, s, noise, *start) for start in starts]
    assert truths[0] == pytest.approx(marginal(process, s), rel=1e-12)
    errors, std = [], math.sqrt(marginal(process, s)[1])
    for steps in (60, 120) if sampler.order == 1 else (150, 300):
        laws = starts
        for now, then in itertools.pairwise(np.linspace(t, s, steps + 1).tolist()):
            a, b, c = affine_step(sampler, denoiser, now, then)
            laws = [(a * m + c, a * a * v + b * b) for m, v in laws]
        errors.append([max(abs(m - n) / std, abs(v - w) / std**2) for (m, v), (n, w) in zip(laws, truths, strict=True)])
    for pair in zip(*errors, strict=True):
        assert order(list(pair)) >= sampler.order - 0.25
        assert pair[-1] < 0.25


def waves(process, t):
    """E cos(x_t / std_t) and E sin(x_t / std_t) of the mixture in closed form, with the mean and std of x_t."""
    alpha, sigma = level(process.schedule, t)
    mean, variances = alpha * WEIGHTS @ MEANS, alpha**2 * VARIANCES + sigma**2
    std = math.sqrt(WEIGHTS @ (variances + (alpha * MEANS) ** 2) - mean**2)
    damped = WEIGHTS * np.exp(-variances / std**2 / 2)
    return np.array([damped @ np.cos(alpha * MEANS / std), damped @ np.sin(alpha * MEANS / std)]), mean, std


def expected_waves(sampler, denoiser, times):
    """The same of the sampler's law, by quadrature backwards: u_k(x) = E u_{k+1}(step(x, z)), z by Gauss-Hermite."""
    process = denoiser.process
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    places = []
    for time in times:
        _, mean, std = waves(process, time)
        places.append(np.linspace(mean - 8 * std, mean + 8 * std, 301))
    std = waves(process, times[-1])[2]
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


@pytest.mark.parametrize(("name", "noise"), [("linear", 0.5), ("linear", 1.0), ("ve", 1.0), ("flow", 1.5)])
@pytest.mark.parametrize("recipe", BOTH)
def test_weak_order_on_the_mixture(recipe, name, noise):
    process, sampler = orn.Gaussian(SCHEDULES[name]), BOTH[recipe](noise)
    t, s = 0.8, 0.3
    errors = []
    for steps in (16, 32):
        got = expected_waves(sampler, mixture(process), np.linspace(t, s, steps + 1).tolist())
        errors.append(float(np.abs(got - waves(process, s)[0]).max()))
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
        mean, variance = moments(StochasticHeun(noise), normal(process), times, *marginal(process, 1.0))
        errors.append(max(abs(mean - MEAN), abs(variance - VARIANCE)) / math.log(steps))
    assert order(errors) >= 1.75
    assert errors[-1] < 1e-4


def test_a_few_steps_do_not_overflow():
    """Ten steps of EDM's grid, 80 to .002: the plain trapezium rule in eps would make the variance 20 times too large."""
    process = orn.Gaussian(orn.EDM())
    times = orn.grids.karras(process, 10).tolist()
    _, variance = moments(StochasticHeun(), normal(process, mean=0.0), times, 0.0, 80.0**2 + VARIANCE)
    assert variance / VARIANCE == pytest.approx(1, abs=0.06)
    for times in ([1.0, 0.0], [1.0, 0.5, 0.0]):
        _, variance = moments(StochasticHeun(), normal(process, mean=0.0), times, 0.0, 80.0**2 + VARIANCE)
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
    mean, variance = marginal(process, t)
    x, ends = mean + math.sqrt(variance) * numbers(64, 1, seed=4), {}
    for steps in (16, 32, 64, 256):
        grid = torch.linspace(t, s, steps + 1, dtype=torch.float64)
        *_, ends[steps] = sample_steps(mixture(process), BOTH[recipe](brownian=True), x, grid, PATHS)
    errors = [float((ends[steps].x - ends[256].x).square().mean().sqrt()) for steps in (16, 32, 64)]
    assert order(errors) >= 0.75
    assert order(errors[:2]) >= 0.75
    assert errors[-1] < 0.2 * math.sqrt(marginal(process, s)[1])


def test_brownian_draws_have_the_law_of_fresh_ones():
    process = orn.Gaussian(orn.LinearVP())
    for recipe in BOTH.values():
        x, rng = torch.zeros(512, 8, dtype=torch.float64), Noise(1, 512)
        fresh, path = (recipe(brownian=b).step(normal(process, size=8), x, 0.5, 0.4375, None, rng)[0] for b in (0, 1))
        assert torch.allclose(fresh.mean(), path.mean(), atol=5 * float(fresh.std()) * math.sqrt(2 / 4096))
        assert float(path.std() / fresh.std()) == pytest.approx(1, abs=5 / math.sqrt(4096))
        few = recipe(brownian=True).step(normal(process, size=8), x[:2], 0.5, 0.4375, None, Noise(1, [5, 300]))[0]
        assert torch.allclose(few, path[[5, 300]])


# --- closed forms of a step


def test_euler_maruyama_is_the_printed_step():
    """Paper 000 eq. 139, with beta(t) dt for beta: (1 + beta / 2) x + beta score + sqrt(beta) z."""
    process = orn.Gaussian(orn.LinearVP())
    x, z = numbers(5, 1, seed=1), numbers(5, 1, seed=2)
    t, s = 0.6, 0.59
    beta = (0.1 + 19.9 * t) * (t - s)
    alpha, sigma = level(process.schedule, t)
    score = -(x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)
    got = EulerMaruyama().step(normal(process), x, t, s, None, Fixed(z))[0]
    assert torch.allclose(got, (1 + beta / 2) * x + beta * score + math.sqrt(beta) * z, rtol=1e-12)
    got = EulerMaruyama(2.0).step(normal(process), x, t, s, None, Fixed(z))[0]
    assert torch.allclose(got, (1 + beta / 2) * x + 2.5 * beta * score + 2 * math.sqrt(beta) * z, rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "noise", "error"), [(18, 0, 0.1405), (18, 1, 0.1561), (18, 2, 0.9766), (35, 1, 0.0705), (40, 2, 0.07524)]
)
def test_euler_maruyama_in_sigma(steps, noise, error):
    """Paper 000, the claim after eq. 172, |std - 1| at sigma = t, data N(0, 1) and g^2 = 2 noise^2 t, by its own recursion."""
    process = orn.Gaussian(orn.FromAlphaSigma(torch.ones_like, lambda t: 80 * t))
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    times = [*((high + k / (steps - 1) * (low - high)) ** 7 / 80 for k in range(steps)), 0.0]
    _, variance = moments(EulerMaruyama(float(noise)), normal(process, 1.0, 0.0), times, 0.0, 1 + 80.0**2)
    assert abs(math.sqrt(variance) - 1) == pytest.approx(error, rel=1e-3)


def test_same_marginals_from_the_same_start_only():
    """Paper 004, eq. 26 and 27: from N(0, 1) in place of p_1 the SDE ends at 3.555, the ODE at 2.845; from p_1 both at 4."""
    process = orn.Gaussian(orn.LinearVP(2.0, 2.0))
    times, denoiser = np.linspace(1, 0, 201).tolist(), normal(process, 4.0, 0.0)
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
    denoiser, x = mixture(process), numbers(6, 1, seed=5)
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
        StochasticHeun().step(normal(process), x, 0.2, 0.0, None, None)[0], normal(process)(x, 0.2).x0
    )
    found = StochasticHeun(0.7).step(normal(process), x, 1.0, 0.6, None, Fixed(z))[0]
    assert torch.allclose(found, 0.4 * MEAN + 0.6 * z)
    one, two = (
        sampler.step(normal(process), x, 1.0, 0.6, None, Fixed(z))[0] for sampler in (StochasticHeun(), Ancestral())
    )
    assert torch.allclose(one, two)


@pytest.mark.parametrize("brownian", [False, True])
@pytest.mark.parametrize("base", ["diagonal", "full"])
@pytest.mark.parametrize("recipe", BOTH)
def test_a_base_is_the_standard_process_whitened(recipe, base, brownian):
    """PriorGrad: x = mu + L y, with the noise L z."""
    prior = BASES[base]
    root, mu = torch.linalg.cholesky(prior.matrix()), mean_of(base)
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
        found = sample(normal(process), recipe, n=3, steps=5, seed=1)
        assert found.calls == 5 * stages - (stages - 1)
        assert found.x.dtype == torch.float32
        assert torch.isfinite(found.x).all()
        part = sample(normal(process), recipe, n=1, first=2, steps=5, seed=1)
        assert torch.allclose(part.x, found.x[2:], atol=1e-5)
    assert EulerMaruyama.order == 1
    assert StochasticHeun.order == 2


# --- DDPM's variances


def ddpm_variance(betas, choice, data):
    """Final variance of a DDPM chain by its own recursion, from the betas alone, in the exact eps of N(0, data)."""
    abar, variance = np.cumprod(1 - betas), 1.0
    for i in range(len(betas) - 1, -1, -1):
        eps = math.sqrt(1 - abar[i]) / (data * abar[i] + 1 - abar[i])
        factor = (1 - betas[i] / math.sqrt(1 - abar[i]) * eps) / math.sqrt(1 - betas[i])
        tilde = betas[i] * (1 - abar[i - 1]) / (1 - abar[i]) if i else 0.0
        fresh = {"beta-tilde": tilde, "beta": betas[i], "learned": math.sqrt(tilde * betas[i])}[choice]
        variance = factor**2 * variance + (fresh if i else 0.0)
    return variance


class Learned:
    """A denoiser with a learned variance at the given fraction of the way from beta-tilde to beta."""

    def __init__(self, denoiser, fraction):
        self.denoiser, self.process, self.fraction = denoiser, denoiser.process, fraction

    def __call__(self, x_t, t, cond=None, keep=None):
        return replace(self.denoiser(x_t, t), fraction=torch.full_like(x_t, self.fraction))


@pytest.mark.parametrize(("choice", "printed"), [("beta-tilde", 0.2461), ("beta", 0.2508), ("learned", None)])
def test_ddpm_variance_over_a_thousand_steps(choice, printed):
    """Paper 000 eq. 64 corrected, data N(0, .25): .2461 with beta-tilde (and .0286 with the printed root), .2508 with beta."""
    process = orn.Gaussian(orn.TableSchedule.linear(1000))
    denoiser = normal(process, mean=0.0)
    if choice == "learned":
        denoiser = Learned(denoiser, 0.5)
    _, variance = moments(Ancestral(variance=choice), denoiser, [i / 1000 for i in range(1000, 0, -1)], 0.0, 1.0)
    variance *= float(denoiser(torch.ones(1, 1, dtype=torch.float64), 1 / 1000).x0) ** 2  # the last step draws no noise
    assert variance == pytest.approx(ddpm_variance(np.linspace(1e-4, 0.02, 1000), choice, 0.25), rel=1e-8)
    if printed is not None:
        assert variance == pytest.approx(printed, abs=5e-5)


def test_beta_is_right_for_white_data_and_beta_tilde_for_a_point():
    """On any grid, however coarse: x_s of variance 1, and of variance sigma_s^2."""
    process = orn.Gaussian(orn.CosineVP())
    for times in ([0.95, 0.5, 0.1], [0.99, 0.7, 0.4, 0.2, 0.05]):
        _, variance = moments(Ancestral(variance="beta"), normal(process, 1.0, 0.0), times, 0.0, 1.0)
        assert variance == pytest.approx(1, rel=1e-12)
        sigma, last = (level(process.schedule, time)[1] for time in (times[0], times[-1]))
        _, variance = moments(Ancestral(variance="beta-tilde"), normal(process, 0.0, 0.0), times, 0.0, sigma**2)
        assert variance == pytest.approx(last**2, rel=1e-12)


def test_which_variance_is_used():
    process, (t, s) = orn.Gaussian(orn.LinearVP()), (0.6, 0.3)
    plain = normal(process)
    learned = Learned(plain, 0.3)

    def spread(sampler, denoiser):
        return affine_step(sampler, denoiser, t, s)[1]

    tilde, beta = spread(Ancestral(variance="beta-tilde"), plain), spread(Ancestral(variance="beta"), plain)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(process.schedule, t), level(process.schedule, s)
    assert beta == pytest.approx(math.sqrt(sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2), rel=1e-9)
    assert tilde == pytest.approx(beta * sigma_s / sigma_t, rel=1e-9)
    assert spread(Ancestral(), plain) == tilde
    assert spread(Ancestral(), learned) == pytest.approx(beta**0.3 * tilde**0.7, rel=1e-9)
    assert spread(Ancestral(variance="learned"), learned) == spread(Ancestral(), learned)
    assert spread(Ancestral(variance="beta"), learned) == beta
    assert spread(Ancestral(variance="beta-tilde"), learned) == tilde
    assert spread(Ancestral(0.5), Learned(plain, 1.0)) == pytest.approx(tilde / 2, rel=1e-9)
    assert spread(Ancestral(0.0), Learned(plain, 1.2)) == 0
    x, z = numbers(3, 1, seed=1), numbers(3, 1, seed=2)
    ended = Ancestral(variance="beta").step(plain, x, t, 0.0, None, Fixed(z))[0]
    assert torch.equal(ended, plain(x, t).x0)


# --- bad input

X = torch.zeros(2, 1, dtype=torch.float64)
FLOW = normal(orn.Gaussian(orn.RectifiedFlow()))


def run(sampler, denoiser=FLOW, times=(0.9, 0.5), start=X):
    return sample(denoiser, sampler, start=start, grid=torch.tensor(times, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "got", "remedy"),
    [
        (lambda: EulerMaruyama(-1.0), "noise=-1.0", "1 is the reverse SDE"),
        (lambda: StochasticHeun(math.nan), "noise=nan", "expected 0"),
        (lambda: StochasticHeun(math.inf), "noise=inf", "expected 0"),
        (
            lambda: run(EulerMaruyama(), times=(1.0, 0.5)),
            "t = 1, where g of RectifiedFlow is infinite",
            "StochasticHeun",
        ),
        (lambda: run(EulerMaruyama(0.0), times=(0.0, 0.5)), "t = 0, where sigma is 0", "StochasticHeun"),
        (lambda: run(StochasticHeun(), times=(0.1, 0.5)), "rising grid", "deterministic"),
        (lambda: Ancestral(variance="large"), "variance='large'", "beta-tilde, beta, learned"),
        (lambda: Ancestral(0.5, "beta"), "eta=0.5", "eta=1"),
        (lambda: run(Ancestral(variance="learned")), "not learned one", "'beta-tilde' or 'beta'"),
    ],
)
def test_bad_input(call, got, remedy):
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert got in str(caught.value)
    assert remedy in str(caught.value)


def test_a_flow_may_be_stepped_short_of_its_end():
    assert torch.isfinite(run(EulerMaruyama(), times=(0.99, 0.5, 0.0)).x).all()
    up = run(StochasticHeun(0.0), times=(0.1, 0.3, 0.6))
    assert torch.isfinite(up.x).all()
    assert up.calls == 4
