"""DDPM's three variances: chains by their own recursion, the laws each is right for, which is used, what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Fixed, affine_step, check_refusal, exact_normal, level, moments, numbers, run_on_flow

import ornstein as orn
from ornstein.samplers import Ancestral


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
    denoiser = exact_normal(process, mean=0.0)
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
        _, variance = moments(Ancestral(variance="beta"), exact_normal(process, 1.0, 0.0), times, 0.0, 1.0)
        assert variance == pytest.approx(1, rel=1e-12)
        sigma, last = (level(process.schedule, time)[1] for time in (times[0], times[-1]))
        _, variance = moments(Ancestral(variance="beta-tilde"), exact_normal(process, 0.0, 0.0), times, 0.0, sigma**2)
        assert variance == pytest.approx(last**2, rel=1e-12)


def test_which_variance_is_used():
    process, (t, s) = orn.Gaussian(orn.LinearVP()), (0.6, 0.3)
    plain = exact_normal(process)
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


@pytest.mark.parametrize(
    ("call", "got", "remedy"),
    [
        (lambda: Ancestral(variance="large"), "variance='large'", "beta-tilde, beta, learned"),
        (lambda: Ancestral(0.5, "beta"), "eta=0.5", "eta=1"),
        (lambda: run_on_flow(Ancestral(variance="learned")), "not learned one", "'beta-tilde' or 'beta'"),
    ],
)
def test_bad_input(call, got, remedy):
    check_refusal(call, got, remedy)
