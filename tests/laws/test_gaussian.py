"""The Gaussian process against Gaussian conditioning by matrices, torch.distributions and closed forms at 50 digits."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from helpers import BASES, CLOSED, MU, SCHEDULES, SIGMA, D, Fixed, level, mean_of, numbers, root_of, unit_noise
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import ornstein as orn
from ornstein.noise import Noise
from ornstein.processes import GaussianLaw
from ornstein.processes import Normal as Base

# --- readings


def truths(name: str, t: float, x0: np.ndarray, eps: np.ndarray, sigma_data: float) -> dict[str, np.ndarray]:
    """Every reading from its definition, with derivatives of the closed forms by mpmath."""
    _, alpha_law, sigma_law = CLOSED[name]
    alpha, sigma = float(alpha_law(mp.mpf(t))), float(sigma_law(mp.mpf(t)))
    slopes = [float(mp.diff(law, mp.mpf(t))) for law in (alpha_law, sigma_law)]
    s = sigma / alpha
    c_skip, c_out = sigma_data**2 / (s**2 + sigma_data**2), s * sigma_data / math.sqrt(s**2 + sigma_data**2)
    return {
        "x_t": alpha * x0 + sigma * eps,
        "x0": x0,
        "eps": eps,
        "score": -eps / sigma,
        "v": alpha * eps - sigma * x0,
        "velocity": slopes[0] * x0 + slopes[1] * eps,
        "edm": (x0 - c_skip * (x0 + s * eps)) / c_out,  # paper 000 eq. 203-212: x_0 = c_skip x + c_out F
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0.04, 0.5, 0.97])
@pytest.mark.parametrize("name", CLOSED)
def test_every_reading_from_every_reading(name, t, dtype):
    process = orn.Gaussian(CLOSED[name][0])
    x0, eps = numbers(4, 2, 3, seed=1).numpy(), numbers(4, 2, 3, seed=2).numpy()
    truth = {k: torch.from_numpy(v).to(dtype) for k, v in truths(name, t, x0, eps, 0.6).items()}
    x_t = truth.pop("x_t")
    alpha, sigma = level(CLOSED[name][0], t)
    unit = 1e-6 if dtype == torch.float32 else 1e-13
    for when in (t, torch.full((4,), t, dtype=torch.float64)):
        for given, value in truth.items():
            estimate = process.estimate(x_t, when, **{given: value}, sigma_data=0.6)
            for wanted, expected in truth.items():
                got = getattr(estimate, wanted)
                assert got.dtype == dtype
                # rounding of x_t (size alpha + sigma) is divided by alpha or sigma on the way from eps or x_0
                worst = 40 * unit * (alpha + sigma) * (1 + 1 / alpha + 1 / sigma) * (1 + float(expected.abs().max()))
                error = float((got - expected).abs().max())
                assert error <= worst, f"{wanted} from {given}: {error}"
                back = process.estimate(x_t, when, **{wanted: got}, sigma_data=0.6).reading(given)
                assert float((back - value).abs().max()) <= 4 * worst * (1 + float(value.abs().max()))


@pytest.mark.parametrize("name", SCHEDULES)
def test_round_trip_through_all_readings(name):
    process = orn.Gaussian(SCHEDULES[name])
    x_t, x0 = numbers(5, 2, seed=1), numbers(5, 2, seed=2)
    for t in (0.1, 0.6, torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95]).double()):
        estimate = process.estimate(x_t, t, x0=x0)
        for kind in ("eps", "velocity", "v", "score", "edm"):
            estimate = process.estimate(x_t, t, **{kind: estimate.reading(kind)})
        assert torch.allclose(estimate.x0, x0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("base", BASES)
def test_score_is_the_gradient_of_the_conditional_density(base):
    process = orn.Gaussian(orn.LinearVP(), BASES[base])
    t, x0 = 0.3, numbers(4, D, seed=1)
    alpha, sigma = level(process.schedule, t)
    x_t = numbers(4, D, seed=2).requires_grad_()
    mu = mean_of(base)
    law = MultivariateNormal(mu + alpha * (x0 - mu), sigma**2 * SIGMA[base])
    truth = torch.autograd.grad(law.log_prob(x_t).sum(), x_t)[0]
    estimate = process.estimate(x_t.detach(), t, x0=x0)
    assert torch.allclose(estimate.score, truth, rtol=1e-10)
    assert torch.allclose(process.estimate(x_t.detach(), t, score=truth).x0, x0, rtol=1e-9, atol=1e-10)
    assert torch.allclose(mu + alpha * (x0 - mu) + sigma * estimate.eps, x_t)


@pytest.mark.parametrize("t", [0.2, 0.8])
@pytest.mark.parametrize("name", CLOSED)
def test_drift_moves_the_state_along_its_law(name, t):
    schedule, alpha, sigma = CLOSED[name]
    process = orn.Gaussian(schedule)
    x0, eps = numbers(3, 2, seed=1), numbers(3, 2, seed=2)
    t_mp = mp.mpf(t)
    a, s, da, ds = (float(v) for v in (alpha(t_mp), sigma(t_mp), mp.diff(alpha, t_mp), mp.diff(sigma, t_mp)))
    x_t = a * x0 + s * eps
    estimate = process.estimate(x_t, t, x0=x0)
    assert torch.allclose(process.drift(estimate, t), da * x0 + ds * eps, rtol=1e-9, atol=1e-9)
    f, g2 = da / a, 2 * (s * ds - da / a * s * s)
    for noise in (0.3, 1.0):
        truth = f * x_t - (1 + noise**2) / 2 * g2 * (-eps / s)
        assert torch.allclose(process.drift(estimate, t, noise), truth, rtol=1e-9, atol=1e-9)
        batch = process.estimate(x_t, torch.full((3,), t).double(), x0=x0)
        assert torch.allclose(process.drift(batch, torch.full((3,), t).double(), noise), truth, rtol=1e-6, atol=1e-6)


# --- draws: their exact mean and covariance, read off the linear map from noise to state


@pytest.mark.parametrize("base", BASES)
def test_noise_and_prior_have_the_right_law(base):
    process = orn.Gaussian(orn.GeometricVE(0.1, 3.0), BASES[base])  # sigma(1) is not 1
    t, mu, x0 = 0.4, mean_of(base), numbers(1, D, seed=5)
    alpha, sigma = level(process.schedule, t)
    zero = process.noise(x0, t, Fixed(torch.zeros(1, D)))
    assert torch.allclose(zero, mu + alpha * (x0 - mu))
    rows = process.noise(x0.expand(D, D), t, unit_noise(1, D)) - zero
    assert torch.allclose(rows.T @ rows, sigma**2 * SIGMA[base])
    rows = process.prior((D, D), unit_noise(1, D), t, torch.float64) - mu
    assert torch.allclose(rows.T @ rows, sigma**2 * SIGMA[base])
    truth = MultivariateNormal(mu, level(process.schedule, 1.0)[1] ** 2 * SIGMA[base])
    assert torch.allclose(process.log_prior(x0), truth.log_prob(x0))


def test_noised_holds_the_truth_at_every_level():
    for name, schedule in SCHEDULES.items():
        process = orn.Gaussian(schedule)
        x0, eps = numbers(6, 2, 2, seed=1, dtype=torch.float32), numbers(6, 2, 2, seed=2, dtype=torch.float32)
        t = torch.tensor([1e-4, 0.01, 0.3, 0.7, 0.99, 1.0], dtype=torch.float64)
        truth = process.noised(x0, t, Fixed(eps))
        alpha, sigma = (c.reshape(6, 1, 1).float() for c in (schedule.alpha(t), schedule.sigma(t)))
        assert torch.allclose(truth.x_t, alpha * x0 + sigma * eps, rtol=1e-5, atol=1e-6), name
        loss = 1e-5 * (alpha**2 + sigma**2) / (alpha**2 + sigma**2).clamp(max=1) ** 2
        assert ((truth.x0 - x0).abs() <= loss * 4).all(), name
        assert ((truth.eps - eps).abs() <= loss * 4).all(), name


# --- laws and paths


@pytest.mark.parametrize("std", ["number", "example"])
@pytest.mark.parametrize("base", BASES)
def test_law_against_torch_distributions(base, std):
    stds = {"number": (0.7, 1.3), "example": (torch.rand(4, 1).double() + 0.2, torch.rand(4, 1).double() + 0.2)}[std]
    means = numbers(4, D, seed=1), numbers(4, D, seed=2)
    ours = [GaussianLaw(m, s, BASES[base]) for m, s in zip(means, stds, strict=True)]
    scales = [torch.as_tensor(s).double().expand(4, 1)[:, :, None] for s in stds]
    theirs = [MultivariateNormal(m, s**2 * SIGMA[base]) for m, s in zip(means, scales, strict=True)]
    x = numbers(4, D, seed=3)
    assert torch.allclose(ours[0].log_prob(x), theirs[0].log_prob(x))
    assert torch.allclose(ours[0].kl(ours[1]), kl_divergence(*theirs))
    assert torch.allclose(ours[0].kl(ours[0]), torch.zeros(4).double(), atol=1e-14)
    z = numbers(4, D, seed=4)
    root = root_of(SIGMA[base])
    assert torch.allclose(ours[0].sample(Fixed(z)), means[0] + scales[0][:, 0] * (z @ root.T))


@pytest.mark.parametrize("base", BASES)
def test_law_with_a_std_per_component(base):
    means, stds = (numbers(4, D, seed=1), numbers(4, D, seed=2)), (torch.rand(4, D) + 0.3, torch.rand(4, D) + 0.3)
    ours = [GaussianLaw(m, s.double(), BASES[base]) for m, s in zip(means, stds, strict=True)]
    theirs = [
        MultivariateNormal(m, torch.diag_embed(s.double()) @ SIGMA[base] @ torch.diag_embed(s.double()))
        for m, s in zip(means, stds, strict=True)
    ]
    assert torch.allclose(ours[0].log_prob(means[1]), theirs[0].log_prob(means[1]))
    assert torch.allclose(ours[0].kl(ours[1]), kl_divergence(*theirs))


def test_law_of_images():
    law = GaussianLaw(numbers(3, 2, 4, 5, seed=1), 0.4)
    x = numbers(3, 2, 4, 5, seed=2)
    assert torch.allclose(law.log_prob(x), Normal(law.mean, 0.4).log_prob(x).sum((1, 2, 3)))
    other = GaussianLaw(x, 0.9)
    assert torch.allclose(law.kl(other), kl_divergence(Normal(law.mean, 0.4), Normal(x, 0.9)).sum((1, 2, 3)))


@pytest.mark.parametrize("base", BASES)
def test_base_matrices(base):
    if base == "none":
        return
    ours, cov, x = BASES[base], SIGMA[base], numbers(5, D, seed=1)
    assert torch.allclose(ours.matrix(), cov)
    assert torch.allclose(ours.covary(x), x @ cov)
    assert torch.allclose(ours.precision(x), x @ torch.linalg.inv(cov))
    assert torch.allclose(ours.whiten(ours.colour(x)), x)
    assert torch.allclose(ours.log_prob(x), MultivariateNormal(MU, cov).log_prob(x))


def test_base_over_images():
    mean, variances = numbers(2, 2, 3, seed=1), numbers(2, 2, 3, seed=2).exp()
    diagonal, full = Base(mean, variances), Base(mean, torch.diag(variances.flatten()))
    x = numbers(4, 2, 2, 3, seed=3)
    truth = Normal(mean, variances.sqrt()).log_prob(x).sum((1, 2, 3))
    for base in (diagonal, full):
        assert torch.allclose(base.log_prob(x), truth)
        assert torch.allclose(base.colour(x), variances.sqrt() * x)
        assert torch.allclose(base.precision(x), x / variances)
        assert torch.allclose(base.covary(x), x * variances)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["linear", "ve", "table-linear"])
def test_paths_are_the_joint_normal(name, base):
    process = orn.Gaussian(SCHEDULES[name], BASES[base])
    grid = torch.tensor([0.1, 0.35, 0.36, 0.8], dtype=torch.float64)
    x0, mu = numbers(1, D, seed=3), mean_of(base)
    levels = [level(process.schedule, float(t)) for t in grid]
    mean = torch.cat([mu + alpha * (x0 - mu) for alpha, _ in levels], dim=1)[0]
    factor = torch.empty(4, 4, dtype=torch.float64)
    for i, (alpha_i, sigma_i) in enumerate(levels):
        for j, (alpha_j, _) in enumerate(levels):
            if i <= j:
                factor[i, j] = factor[j, i] = alpha_j / alpha_i * sigma_i**2
    covariance = torch.kron(factor, SIGMA[base])
    rows = 4 * D
    drawn = process.path(x0.expand(rows, D).contiguous(), grid, unit_noise(4, D)).transpose(0, 1).flatten(1) - mean
    assert torch.allclose(drawn.T @ drawn, covariance, rtol=1e-9, atol=1e-12)
    path = numbers(4, 2, D, seed=4) * 0.3 + mean.reshape(4, 1, D)
    truth = MultivariateNormal(mean, covariance).log_prob(path.transpose(0, 1).flatten(1))
    assert torch.allclose(process.log_prob_path(path, x0.expand(2, D), grid), truth, rtol=1e-8)


@pytest.mark.parametrize("base", ["diagonal", "full"])
def test_a_base_is_the_standard_process_in_whitened_coordinates(base):
    """PriorGrad (paper 001 eq. 49, uncentred): with x = mu + L y everything is the N(0, I) process of y."""
    root = root_of(SIGMA[base])

    def there(y):
        return MU + y @ root.T

    plain, based = orn.Gaussian(orn.LinearVP()), orn.Gaussian(orn.LinearVP(), BASES[base])
    y0, y_t, t, s = numbers(3, D, seed=1), numbers(3, D, seed=2), 0.7, 0.35
    a, b = plain.estimate(y_t, t, x0=y0), based.estimate(there(y_t), t, x0=there(y0))
    for kind in ("eps", "v", "velocity", "edm"):
        assert torch.allclose(b.reading(kind), a.reading(kind) @ root.T, rtol=1e-9, atol=1e-12)
        again = based.estimate(there(y_t), t, **{kind: b.reading(kind)})
        assert torch.allclose(again.x0, there(y0), rtol=1e-9, atol=1e-10)
    for eta in (0.0, 0.3, 1.0):
        assert torch.allclose(based.posterior(b, t, s, eta).mean, there(plain.posterior(a, t, s, eta).mean))
    assert torch.allclose(based.transition(there(y_t), s, t).mean, there(plain.transition(y_t, s, t).mean))
    assert torch.allclose(based.drift(b, t, 1.0), plain.drift(a, t, 1.0) @ root.T, rtol=1e-9)


def test_the_ends_need_no_division_by_zero():
    """alpha(1) = 0 and sigma(0) = 0 under cosine and flow: v and x_0 stay readable, the posterior lands on the data."""
    for schedule in (orn.CosineVP(), orn.RectifiedFlow()):
        process = orn.Gaussian(schedule)
        x0, z = numbers(3, 2, seed=1), numbers(3, 2, seed=2)
        top = process.noised(x0, 1.0, Fixed(z))
        assert torch.allclose(top.x_t, z)
        assert torch.allclose(top.x0, x0, atol=1e-12)
        landed = process.posterior(process.estimate(z, 1.0, x0=x0), 1.0, 0.0)
        assert torch.allclose(landed.mean, x0)
        assert float(landed.std) == 0
        bridge = process.posterior(process.estimate(z, 1.0, x0=x0), 1.0, 0.5)
        alpha, sigma = level(schedule, 0.5)
        assert torch.allclose(bridge.mean, alpha * x0, atol=1e-12)  # x_1 says nothing about the path of x_0
        assert float(bridge.std) == pytest.approx(sigma)


def test_draws_come_from_the_noise_given():
    process = orn.Gaussian(orn.CosineVP())
    x0 = numbers(5, 2, seed=1, dtype=torch.float32)
    one = process.noise(x0, 0.3, Noise(4, 5))
    two = torch.cat([process.noise(x0[i : i + 1], 0.3, Noise(4, [i])) for i in range(5)])
    assert torch.equal(one, two)
