"""Exact denoisers: densities against torch.distributions and quadrature, scores against autograd of those."""

import math

import numpy as np
import pytest
import torch
from helpers import SCHEDULES, level, numbers, spd
from scipy.integrate import quad
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import ornstein as orn
from ornstein import exact
from ornstein.processes import Normal as Base

MU = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
BASES = {"none": None, "diagonal": Base(MU, torch.tensor([0.4, 1.5, 0.9]).double()), "full": Base(MU, spd(3, 7))}
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
MEANS = torch.tensor([[1.0, -1.0, 0.2], [-0.6, 0.4, 1.5], [0.1, 0.1, -1.0]], dtype=torch.float64)
VARIANCES = torch.tensor([[0.2, 0.05, 0.4], [0.1, 0.3, 0.01], [0.5, 0.2, 0.2]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
T = [0.03, 0.4, 0.95]


def normal_truth(process, base: str, covariance, t: float) -> MultivariateNormal:
    alpha, sigma = level(process.schedule, t)
    mu, noise = (torch.zeros(3).double(), torch.eye(3).double()) if base == "none" else (MU, BASES[base].matrix())
    return MultivariateNormal(mu + alpha * (MEAN - mu), alpha**2 * covariance + sigma**2 * noise)


def mixture_truth(process, base: str, t: float) -> MixtureSameFamily:
    alpha, sigma = level(process.schedule, t)
    mu, noise = (torch.zeros(3).double(), torch.ones(3).double())
    if base != "none":
        mu, noise = MU, BASES[base].matrix().diagonal()
    scale = (alpha**2 * VARIANCES + sigma**2 * noise).sqrt()
    return MixtureSameFamily(Categorical(WEIGHTS), Independent(Normal(mu + alpha * (MEANS - mu), scale), 1))


def check(denoiser, truth, x: torch.Tensor, t: float) -> None:
    """Density equals the truth's; score equals the truth's gradient; a batch of times equals one time."""
    x = x.requires_grad_()
    log_density = truth.log_prob(x)
    score = torch.autograd.grad(log_density.sum(), x)[0]
    x = x.detach()
    assert torch.allclose(denoiser.log_density(x, t), log_density, rtol=1e-9, atol=1e-9)
    assert torch.allclose(denoiser(x, t).score, score, rtol=1e-7, atol=1e-8)
    own = x.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(denoiser.log_density(own, t).sum(), own)[0], score, rtol=1e-7, atol=1e-8)
    times = torch.full((len(x),), t, dtype=torch.float64)
    assert torch.allclose(denoiser(x, times).x0, denoiser(x, t).x0)
    assert torch.allclose(denoiser.log_density(x, times), denoiser.log_density(x, t))


@pytest.mark.parametrize("t", T)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["linear", "ve", "flow", "table-cosine"])
def test_normal(name, base, t):
    process = orn.Gaussian(SCHEDULES[name], BASES[base])
    x = numbers(5, 3, seed=2) * (1 + level(process.schedule, t)[1])
    for covariance in (spd(3), torch.tensor([0.3, 0.0, 2.0]).double(), 0.25):
        matrix = covariance
        if not torch.is_tensor(covariance) or covariance.ndim < 2:
            matrix = torch.diag(torch.as_tensor(covariance).double().expand(3))
        check(exact.Normal(process, MEAN, covariance), normal_truth(process, base, matrix, t), x.clone(), t)


@pytest.mark.parametrize("t", T)
@pytest.mark.parametrize("base", ["none", "diagonal"])
@pytest.mark.parametrize("name", ["subvp", "edm", "cosine", "alpha-sigma"])
def test_mixture(name, base, t):
    process = orn.Gaussian(SCHEDULES[name], BASES[base])
    x = numbers(5, 3, seed=2) * (1 + level(process.schedule, t)[1])
    check(exact.Mixture(process, MEANS, VARIANCES, WEIGHTS * 7), mixture_truth(process, base, t), x, t)


@pytest.mark.parametrize("t", [0.1, 0.5])
def test_posterior_mean_and_density_by_quadrature(t):
    """E[x_0 | x_t] and p_t(x_t) as integrals over x_0, which know nothing of Tweedie or of sums of normals."""
    process = orn.Gaussian(orn.CosineVP())
    means, variances, weights = np.array([-1.0, 0.8]), np.array([0.05, 0.3]), np.array([0.35, 0.65])
    denoiser = exact.Mixture(process, *(torch.from_numpy(v) for v in (means[:, None], variances, weights)))
    alpha, sigma = level(process.schedule, t)

    def joint(x0, x_t):
        data = (weights * np.exp(-((x0 - means) ** 2) / 2 / variances) / np.sqrt(2 * np.pi * variances)).sum()
        return data * math.exp(-((x_t - alpha * x0) ** 2) / 2 / sigma**2) / math.sqrt(2 * math.pi) / sigma

    for x_t in (-0.9, 0.1, 1.3):
        settings = {"points": [-1, 0, 0.8, x_t / alpha], "epsabs": 1e-12, "limit": 200}
        density = quad(lambda r, x=x_t: joint(r, x), -6, 6, **settings)[0]
        first = quad(lambda r, x=x_t: r * joint(r, x), -6, 6, **settings)[0]
        x = torch.tensor([[x_t]], dtype=torch.float64)
        assert float(denoiser.log_density(x, t)) == pytest.approx(math.log(density), abs=1e-9)
        assert float(denoiser(x, t).x0) == pytest.approx(first / density, abs=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_empirical_by_brute_force(smoothing):
    process = orn.Gaussian(orn.LinearVP())
    data = numbers(40, 2, 3, seed=8)
    denoiser = exact.Empirical(process, data, smoothing)
    x, t = numbers(4, 2, 3, seed=9), 0.2
    alpha, sigma = level(process.schedule, t)
    total = sigma**2 + alpha**2 * smoothing**2
    for row, x0, density in zip(x.numpy(), denoiser(x, t).x0.numpy(), denoiser.log_density(x, t), strict=True):
        distance = np.array([((row - alpha * y) ** 2).sum() for y in data.numpy()])
        weights = np.exp(-distance / 2 / total)
        centres = [y + smoothing**2 * alpha / total * (row - alpha * y) for y in data.numpy()]
        truth = sum(w * c for w, c in zip(weights, centres, strict=True)) / weights.sum()
        assert np.allclose(x0, truth, rtol=1e-9, atol=1e-10)
        assert float(density) == pytest.approx(math.log(weights.mean() * (2 * math.pi * total) ** -3), rel=1e-10)


def test_empirical_far_from_the_data_and_near_it():
    process = orn.Gaussian(orn.EDM())
    data = numbers(20, 2, seed=8)
    denoiser = exact.Empirical(process, data)
    near = denoiser(data + 1e-4, 0.0)
    assert torch.allclose(near.x0, data, atol=1e-12)  # sigma(0) = .002: every weight but one underflows
    far = denoiser(torch.full((1, 2), 1e4, dtype=torch.float64), 0.0).x0
    assert torch.isfinite(far).all()
    assert torch.allclose(far, data[data.sum(1).argmax()])


def test_images_and_float32():
    process = orn.Gaussian(orn.CosineVP())
    mean, variances = numbers(2, 3, 4, seed=1), numbers(2, 3, 4, seed=2).exp()
    x = numbers(5, 2, 3, 4, seed=3)
    denoiser, t = exact.Normal(process, mean, variances), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double()
    alpha, sigma = (c.reshape(5, 1, 1, 1) for c in (process.schedule.alpha(t), process.schedule.sigma(t)))
    truth = mean + alpha * variances / (alpha**2 * variances + sigma**2) * (x - alpha * mean)
    assert torch.allclose(denoiser(x, t).x0, truth)
    law = Normal(alpha * mean, (alpha**2 * variances + sigma**2).sqrt())
    assert torch.allclose(denoiser.log_density(x, t), law.log_prob(x).sum((1, 2, 3)))
    mixture = exact.Mixture(process, mean[None], variances[None])
    assert torch.allclose(mixture(x, t).x0, truth)
    single = denoiser(x.float(), t).x0
    assert single.dtype == torch.float32
    assert torch.allclose(single, truth.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variances", [torch.tensor(0.3), torch.tensor([0.1, 0.4, 0.0, 0.2])])
def test_round_components_are_those_of_full_variances(variances):
    """They take their rows of times together, the others one by one, in other products: the same law."""
    process, means = orn.Gaussian(orn.LinearVP()), numbers(4, 2, 3, seed=5)
    round_ones = exact.Mixture(process, means, variances)
    full = exact.Mixture(process, means, variances.reshape(-1, 1, 1).expand(4, 2, 3))
    x, times = numbers(6, 2, 3, seed=6), torch.linspace(0.05, 0.9, 6).double()
    for t in (0.3, times, 1, torch.tensor(0.4)):
        assert torch.allclose(round_ones(x, t).x0, full(x, t).x0, atol=1e-10)
        assert torch.allclose(round_ones.log_density(x, t), full.log_density(x, t), atol=1e-10)
