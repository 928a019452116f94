"""The bound against closed forms, and against log p(x_0 .. x_T) / q(x_1 .. x_T | x_0) along drawn paths.

Expectations of quadratics are exact: `Noise` is replaced by columns of a Hadamard matrix, of mean 0 and orthogonal.
"""

import importlib
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import BASES, MU, SCHEDULES, SIGMA, D, level, numbers
from scipy.linalg import hadamard

import ornstein as orn
from ornstein import exact, grids
from ornstein.noise import Noise
from ornstein.processes import Estimate

module = importlib.import_module("ornstein.likelihood.elbo")
elbo = module.elbo


class Signs:
    """Stands in for `Noise`: draw k of n examples is `size` columns of a Hadamard matrix, from `first` on, in a circle."""

    columns, first, u = torch.empty(0), 0, torch.empty(0)

    def __init__(self, seed, rows, device="cpu"):
        self.at = self.first

    def normal(self, shape, dtype=torch.float32):
        size = math.prod(shape[1:])
        if self.at + size > self.columns.shape[1]:
            self.at = self.first
        self.at += size
        return self.columns[:, self.at - size : self.at].reshape(shape).to(dtype)

    def uniform(self, shape):
        return self.u.expand(shape)


def orthogonal(monkeypatch, draws: int, size: int = 1, u=0.5) -> torch.Tensor:
    """Make `elbo` draw `draws` independent sets of `size` signs; returns another such set, for x_0: (n, size)."""
    order = 2 ** math.ceil(math.log2((draws + 1) * size + 1))
    columns = torch.from_numpy(hadamard(order)[:, 1 : 1 + (draws + 1) * size]).double()
    for name, value in (("columns", columns), ("first", size), ("u", torch.as_tensor(u, dtype=torch.float64))):
        monkeypatch.setattr(Signs, name, value)
    monkeypatch.setattr(module, "Noise", Signs)
    return columns[:, :size]


def entropy(variance: float) -> float:
    return 0.5 * math.log(2 * math.pi * math.e * variance)


@pytest.mark.parametrize(("steps", "gap"), [(10, 0.0937), (100, 0.0108), (1000, 0.00109)])
def test_the_gap_falls_with_the_length_of_the_chain(monkeypatch, steps, gap):
    """Case B26: data N(0, .25), exact posterior mean, variance beta. The average over the data is exact."""
    x = 0.5 * orthogonal(monkeypatch, draws=1)
    denoiser = exact.Normal(orn.Gaussian(orn.LinearVP()), torch.zeros(1), 0.25)
    bound = elbo(denoiser, x, steps=steps)
    assert -bound.mean - entropy(0.25) == pytest.approx(gap, rel=0.03)
    # exactly: each step is short by 1/2 (log beta / beta~ - 1 + Var(x_s | x_t) / beta), the last by log beta_1 for Var(x_0 | x_1)
    abar = np.exp(-(0.1 * (s := np.arange(steps + 1) / steps) + 9.95 * s**2))
    beta, then = 1 - abar[1:] / abar[:-1], abar[:-1]
    variance = 1 / ((1 - beta) / beta + 1 / (then * 0.25 + 1 - then))
    exactly = 0.5 * (np.log(beta / variance) - 1 + variance / beta).sum() + prior_gap(denoiser.process.schedule, 0.25)
    assert -bound.mean - entropy(0.25) == pytest.approx(exactly, rel=1e-6)
    assert bound.calls == steps


def prior_gap(schedule, variance: float, t: float = 1.0) -> float:
    """KL(p_t || N(0, sigma_t^2)) of one component: what taking the prior for the law at t costs."""
    alpha, sigma = level(schedule, t)
    r = alpha**2 * variance / sigma**2
    return 0.5 * (r - math.log1p(r))


class ReverseKernel:
    """The exact denoiser of N(MU, c Sigma), Sigma that of the base, with the exact variance of x_s given x_t too."""

    def __init__(self, process, variance: float, times: list[float]) -> None:
        mean = torch.zeros(D, dtype=torch.float64) if process.base is None else MU
        full = torch.eye(D).double() if process.base is None else process.base.matrix()
        self.exact, self.process, self.variance = exact.Normal(process, mean, variance * full), process, variance
        self.before = dict(zip(times, (None, *times), strict=False))
        self.second = times[1]

    def __call__(self, x_t, t, cond=None, keep=None):
        held, s = self.exact(x_t, t), self.before[t]
        alpha, sigma = level(self.process.schedule, t)
        alpha_s, sigma_s = (1.0, 0.0) if s is None else level(self.process.schedule, s)
        whole = alpha_s**2 * self.variance + sigma_s**2
        reverse = whole - (alpha / alpha_s * whole) ** 2 / (alpha**2 * self.variance + sigma**2)
        if s is None:  # the last step: between beta~ of the step before and sigma^2
            s, t = t, self.second
            (alpha_s, sigma_s), (alpha, sigma) = level(self.process.schedule, s), level(self.process.schedule, t)
            large = sigma_s**2
        else:
            large = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
        small = sigma_s**2 - (alpha / alpha_s * sigma_s**2) ** 2 / sigma**2
        fraction = math.log(reverse / small) / math.log(large / small)
        return Estimate(self.process, x_t, held.t, held.kind, held.value, fraction=torch.full_like(x_t, fraction))


@pytest.mark.parametrize("form", ["denoising", "path"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", [*SCHEDULES, "short table"])
def test_the_exact_reverse_kernel_has_no_gap(monkeypatch, name, base, form):
    """The bound is log p(x_0) but for the prior, whose error KL(p_1 || prior) is known; 0 where alpha(1) = 0."""
    schedule = SCHEDULES.get(name, orn.TableSchedule.cosine(6))
    process, c = orn.Gaussian(schedule, BASES[base]), 0.4
    times = module.chain(process, 6).tolist()
    signs = orthogonal(monkeypatch, draws=6, size=D)
    x = math.sqrt(c) * (signs if process.base is None else process.base.colour(signs))
    x = x if process.base is None else x + MU
    bound = elbo(ReverseKernel(process, c, times), x, steps=6, form=form)
    truth = -D * entropy(c) - 0.5 * float(torch.logdet(SIGMA[base])) - D * prior_gap(schedule, c)
    assert bound.mean == pytest.approx(truth, abs=1e-8)
    if form == "denoising":  # of one x_0, by averaging over the noise alone, with log p_1 - log prior over q(x_1 | x_0)
        one = elbo(ReverseKernel(process, c, times), x[:1].expand_as(x), steps=6)
        mu, (alpha, sigma) = MU * (process.base is not None), level(schedule, 1.0)
        r, centred = alpha**2 * c / sigma**2, x[0] - mu
        squared = alpha**2 / sigma**2 * float(torch.linalg.solve(SIGMA[base], centred) @ centred) + D
        mismatch = -0.5 * D * math.log1p(r) + 0.5 * squared * r / (1 + r)
        log_p = float(torch.distributions.MultivariateNormal(mu, c * SIGMA[base]).log_prob(x[0]))
        assert one.mean == pytest.approx(log_p - mismatch, abs=1e-8)


@pytest.mark.parametrize("form", ["denoising", "path"])
def test_standard_normal_data_are_coded_at_their_entropy(monkeypatch, form):
    """Case A06: -ELBO = 1.41894 with L_0, which is -3.186, so 4.605 without; beta is the exact variance here."""
    steps = 1000 if form == "denoising" else 100
    x = orthogonal(monkeypatch, draws=1 if form == "denoising" else steps)
    denoiser = exact.Normal(orn.Gaussian(orn.TableSchedule.linear(steps)), torch.zeros(1), 1.0)
    bound = elbo(denoiser, x, steps=steps, form=form)
    gap = prior_gap(denoiser.process.schedule, 1.0)
    assert -bound.mean == pytest.approx(entropy(1.0) + gap, abs=1e-8)
    assert -bound.mean == pytest.approx(1.41894, abs=5e-5)
    if form == "denoising":
        assert float(bound.reconstruction.mean()) == pytest.approx(3.186, abs=5e-4)
        assert -float((bound.prior + bound.diffusion).mean()) == pytest.approx(4.605, abs=5e-4)


def log_ratio_of_paths(process, denoiser, x0: torch.Tensor, times: list[float], fixed: float) -> torch.Tensor:
    """log p(x_0 .. x_T) - log q(x_1 .. x_T | x_0) along drawn paths, (n,), written out in betas and conditioning."""

    def log_normal(x, mean, variance):
        return (-0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))).flatten(1).sum(1)

    grid = torch.tensor(times, dtype=torch.float64)
    path = process.path(x0, grid, Noise(99, len(x0)))
    total = -process.log_prob_path(path, x0, grid) + log_normal(path[-1], 0.0, level(process.schedule, 1.0)[1] ** 2)
    for i, (s, t) in enumerate(pairwise(times)):
        (alpha_s, sigma_s), (alpha, sigma) = level(process.schedule, s), level(process.schedule, t)
        guess = denoiser(path[i + 1], t).x0
        gain = alpha / alpha_s * sigma_s**2 / sigma**2
        small = sigma_s**2 - (gain * sigma) ** 2
        if i == 0:
            sigma_1, beta_tilde_2 = sigma_s, small
        variance = small ** (1 - fixed) * (sigma**2 - (alpha / alpha_s * sigma_s) ** 2) ** fixed
        total += log_normal(path[i], alpha_s * guess + gain * (path[i + 1] - alpha * guess), variance)
    last = beta_tilde_2 ** (1 - fixed) * (sigma_1**2) ** fixed
    return total + log_normal(x0, denoiser(path[0], times[0]).x0, last)


@pytest.mark.parametrize("name", ["linear", "flow", "ve"])
def test_both_forms_are_the_mean_log_ratio_along_paths(name):
    """On a mixture with points far apart, an inexact variance and an odd grid: 3 standard errors, by 20 000 paths."""
    process = orn.Gaussian(SCHEDULES[name])
    denoiser = exact.Mixture(process, numbers(3, 2, seed=1), 0.05)
    times, n = [0.02, 0.05, 0.2, 0.4, 0.75, 1.0], 20_000
    x0 = numbers(3, 2, seed=1)[torch.arange(n) % 3] + 0.2
    truth = log_ratio_of_paths(process, denoiser, x0, times, 0.3)
    grid = torch.tensor(times[::-1])
    for form in ("denoising", "path"):
        got = elbo(denoiser, x0, grid=grid, form=form, fixed=0.3, seed=5, batch_size=n).total
        error = math.hypot(float(truth.std()), float(got.std())) / math.sqrt(n)
        assert error < 0.2
        assert float(got.mean()) == pytest.approx(float(truth.mean()), abs=3 * error)


def test_drawn_terms_are_unbiased(monkeypatch):
    """Every step enumerated by its uniform number: the mean is the whole sum. With T - 1 strata it is the sum itself."""
    steps = 9
    process = orn.Gaussian(orn.CosineVP())
    denoiser = exact.Normal(process, torch.tensor([0.3]), 0.25)
    x = orthogonal(monkeypatch, draws=1)
    whole = elbo(denoiser, x, steps=steps)
    places = (torch.arange(steps - 1) + 0.5) / (steps - 1)
    found = []
    for u in places:
        monkeypatch.setattr(Signs, "u", u)
        found.append(elbo(denoiser, x, steps=steps, terms=1))
    assert np.mean([bound.mean for bound in found]) == pytest.approx(whole.mean, rel=1e-12)
    assert len({round(bound.mean, 9) for bound in found}) == steps - 1
    assert found[0].calls == 2
    assert found[0].steps is None
    assert torch.allclose(found[0].reconstruction, whole.reconstruction)
    each = elbo(denoiser, x, steps=steps, terms=steps - 1)
    assert each.mean == pytest.approx(whole.mean, rel=1e-12)
    # two strata of four steps: a place in the second half never takes a step of the first
    monkeypatch.setattr(Signs, "u", torch.tensor([0.2, 0.7]))
    halves = elbo(denoiser, x, steps=steps, terms=2)
    i = [1 + int(v * (steps - 1)) for v in (0.1, 0.85)]
    terms = whole.steps.nats.flip(0)
    assert float(halves.diffusion.mean()) == pytest.approx(4 * float(terms[i].sum()), rel=1e-9)


def test_the_limit_of_long_chains(monkeypatch):
    """1/2 int Var(eps | x_t) d log-SNR = 1/2 log (1 + c SNR) between the ends; chains of any variance tend to it as 1/T."""
    process, c = orn.Gaussian(orn.LinearVP()), 0.25
    denoiser = exact.Normal(process, torch.zeros(1), c)
    x = math.sqrt(c) * orthogonal(monkeypatch, draws=1)
    limit = elbo(denoiser, x, steps=math.inf, terms=400)
    snr = [0.002**-2, 80.0**-2]
    assert float(limit.diffusion.mean()) == pytest.approx(
        -0.5 * math.log((1 + c * snr[0]) / (1 + c * snr[1])), rel=1e-4
    )
    assert float(limit.prior.mean()) == pytest.approx(-0.5 * c * snr[1])
    assert limit.calls == 401
    assert limit.steps is None
    for fixed in (0.0, 1.0):
        gaps = []
        for steps in (200, 400, 800):
            grid = grids.log_snr(process, steps)[:-1]
            gaps.append(float((limit.diffusion - elbo(denoiser, x, grid=grid, fixed=fixed).diffusion).mean()))
        assert gaps[0] > gaps[1] > gaps[2] > 0
        assert gaps[2] / gaps[1] == pytest.approx(0.5, abs=0.05)
    assert -limit.mean == pytest.approx(entropy(c), abs=2e-4)
    table = exact.Normal(orn.Gaussian(orn.TableSchedule.linear(1000)), torch.zeros(1), c)  # cut to the schedule's ends
    snr = [float(table.process.schedule.log_snr(t).exp()) for t in (0.0, 1.0)]
    cut = elbo(table, x, steps=math.inf, terms=10)
    assert float(cut.prior.mean()) == pytest.approx(-0.5 * c * max(snr[1], 80.0**-2), rel=1e-6)
    error = c / (1 + c * snr[0])  # Var(x_0 | x_1), coded with the variance beta_1 = 1e-4
    last = -0.5 * math.log(2 * math.pi * 1e-4) - 0.5 * error / 1e-4
    assert float(cut.reconstruction.mean()) == pytest.approx(last, rel=1e-6)
    fine = exact.Normal(orn.Gaussian(orn.GeometricVE(1e-4, 50.0)), torch.zeros(1), c)  # and not below .002
    assert float(elbo(fine, x, steps=math.inf, terms=400).diffusion.mean()) == pytest.approx(
        -0.5 * math.log((1 + c * 0.002**-2) / (1 + c * 50.0**-2)), rel=1e-3
    )
    free = elbo(table, x, steps=math.inf, terms=10, fixed=0.0)  # of the variance of p
    assert torch.allclose(free.total, cut.total, rtol=1e-10)


def test_a_grid_may_begin_below_the_noise_and_end_at_the_data(monkeypatch):
    """grid[0] = .7 takes N(0, sigma(.7)^2) for the law there; the data's time at the end makes no difference."""
    c = 0.25
    for schedule in (orn.LinearVP(), orn.TableSchedule.linear(1000), orn.GeometricVE()):
        process = orn.Gaussian(schedule)
        denoiser = exact.Normal(process, torch.zeros(1), c)
        x = math.sqrt(c) * orthogonal(monkeypatch, draws=1)
        grid = torch.tensor([0.7, 0.3, 0.1, 0.02])
        bound = elbo(denoiser, x, grid=grid)
        alpha, sigma = level(schedule, 0.7)
        assert float(bound.prior.mean()) == pytest.approx(-0.5 * c * alpha**2 / sigma**2)
        assert bound.calls == 4
        assert torch.equal(bound.steps.t, grid.double())
        assert torch.equal(bound.steps.s, torch.tensor([0.3, 0.1, 0.02, 0.0]).double())
        if not isinstance(schedule, orn.GeometricVE):
            ended = elbo(denoiser, x, grid=torch.cat([grid, torch.zeros(1)]))
            assert torch.equal(ended.total, bound.total)
    single = (torch.arange(100, 0, -1) / 100).float()  # whose last time rounds to below 1/100
    table = exact.Normal(orn.Gaussian(orn.TableSchedule.linear(100)), torch.zeros(1), c)
    assert elbo(table, x, grid=single).calls == 100
    assert elbo(table, x, steps=3, terms=50).calls == 3  # the sum of all costs no more
    one = elbo(denoiser, x, steps=1)
    assert one.calls == 1
    assert torch.equal(one.diffusion, torch.zeros(len(x)).double())
