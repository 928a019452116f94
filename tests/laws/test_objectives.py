"""Objectives: the loss of an exact denoiser is its floor, by Gauss-Hermite rules; weights, times, gradients."""

import math

import numpy as np
import pytest
import torch
from helpers import SCHEDULES, Fixed, level, numbers
from scipy.integrate import quad

import ornstein as orn
from ornstein import exact
from ornstein.noise import Noise
from ornstein.objectives import (
    EDMWeighting,
    LogNormalSigma,
    MinSNR,
    Objective,
    Simple,
    Stratified,
    UniformSteps,
    UniformTime,
    Weighting,
)

V = 0.3
Z, W = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(12))
W = W / W.sum()


class At:
    """A time law of one time."""

    def __init__(self, t: float) -> None:
        self.t = t

    def __call__(self, process, u):
        return torch.full_like(u, self.t)


def normal_floor(schedule, reading: str, t: float) -> float:
    """min E (r_hat - r)^2 = Var(r | x_t) for x_0 ~ N(m, V), from Var(x_0 | x_t) = V sigma^2 / (alpha^2 V + sigma^2)."""
    alpha, sigma = level(schedule, t)
    x0 = V * sigma**2 / (alpha**2 * V + sigma**2)
    slope = {"x0": 1.0, "eps": -alpha / sigma, "v": -sigma - alpha**2 / sigma, "score": alpha / sigma**2}
    return x0 * slope[reading] ** 2


def expectation(denoiser, objective, mean: float = 0.4, u=None) -> float:
    """E loss over x_0 ~ N(mean, V) and the noise (and u), exactly: the loss is a polynomial of degree 2 in both."""
    u, w = (torch.tensor([0.5]).double(), torch.ones(1).double()) if u is None else u
    i, j, k = (index.flatten() for index in torch.meshgrid(*(torch.arange(len(v)) for v in (Z, Z, u)), indexing="ij"))
    x0 = mean + math.sqrt(V) * Z[i, None]
    loss = objective(denoiser, x0, None, Fixed(Z[j, None], u=u[k]))
    assert loss.per_example.shape == loss.t.shape == (len(x0),)
    return float((loss.per_example * W[i] * W[j] * w[k]).sum())


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_denoiser_reaches_the_floor(name, t):
    process = orn.Gaussian(SCHEDULES[name])
    denoiser = exact.Normal(process, torch.tensor([0.4]).double(), V)
    for reading in ("x0", "eps", "v", "score"):
        got = expectation(denoiser, Objective(At(t), Simple(reading)))
        assert got == pytest.approx(normal_floor(process.schedule, reading, t), rel=1e-6)
    wrong = exact.Normal(process, torch.tensor([0.5]).double(), V)
    assert expectation(wrong, Objective(At(t), Simple("x0"))) > normal_floor(process.schedule, "x0", t) * (1 + 1e-12)


def test_the_floor_of_the_tutorial():
    """Paper 000, after eq. 93: with v = 1 and sigma = .5 the floor of (1/2)||s - target||^2 is 1.6, not 0."""
    process = orn.Gaussian(orn.GeometricVE(0.1, 2.5))  # sigma(.5) = .5
    denoiser = exact.Normal(process, torch.zeros(1).double(), 1.0)
    got = []
    for z in Z:  # x_0 standard normal through the same rule
        loss = Objective(At(0.5), Simple("score"))(denoiser, Z[:, None], None, Fixed(z.expand(12, 1), u=Z * 0 + 0.5))
        got.append(float((loss.per_example * W).sum()))
    assert 0.5 * float((torch.tensor(got) * W).sum()) == pytest.approx(1.6, rel=1e-6)


def test_the_floor_averaged_over_time():
    """L_simple of exact N(m, V) data under DDPM's schedule, against scipy's integral over t."""
    process = orn.Gaussian(orn.LinearVP())
    denoiser = exact.Normal(process, torch.tensor([0.4]).double(), V)
    nodes, weights = np.polynomial.legendre.leggauss(48)
    u = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    got = expectation(denoiser, Objective(UniformTime(), Simple("eps")), u=u)
    assert got == pytest.approx(quad(lambda t: normal_floor(process.schedule, "eps", t), 0, 1)[0], rel=1e-6)


def test_the_loss_of_a_mixture_is_the_posterior_variance():
    """E loss - floor = 0 where the floor is E Var(x_0 | x_t), by quadrature over x_t of the mixture's density."""
    means, variances, weights = np.array([-1.0, 0.8]), np.array([0.05, 0.3]), np.array([0.35, 0.65])
    process, t = orn.Gaussian(orn.CosineVP()), 0.4
    alpha, sigma = level(process.schedule, t)
    denoiser = exact.Mixture(process, *(torch.from_numpy(v) for v in (means[:, None], variances, weights)))
    total = 0.0
    nodes, rule = np.polynomial.hermite_e.hermegauss(60)
    rule = rule / rule.sum()
    for m, v, w in zip(means, variances, weights, strict=True):
        x0, z = (g.ravel() for g in np.meshgrid(m + math.sqrt(v) * nodes, nodes))
        loss = Objective(At(t), Simple("x0"))(
            denoiser,
            torch.from_numpy(x0)[:, None],
            None,
            Fixed(torch.from_numpy(z)[:, None], u=torch.zeros(len(z)).double()),
        )
        total += w * float((loss.per_example.numpy() * np.outer(rule, rule).ravel()).sum())

    def parts(x):  # of p(x_t): component densities, posterior means and variances
        spread = alpha**2 * variances + sigma**2
        share = weights * np.exp(-((x - alpha * means) ** 2) / 2 / spread) / np.sqrt(2 * np.pi * spread)
        mean = means + alpha * variances / spread * (x - alpha * means)
        var = variances * sigma**2 / spread
        density = share.sum()
        first, second = (share * mean).sum() / density, (share * (var + mean**2)).sum() / density
        return density * (second - first**2)

    assert total == pytest.approx(quad(parts, -5, 5, epsabs=1e-12, limit=200)[0], rel=1e-6)


# --- weightings, on a network that predicts nonsense


class Nonsense(torch.nn.Module):
    def __init__(self, dtype=torch.float64) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.7, -0.3, 0.2], dtype=dtype))

    def forward(self, x, time):
        scale = self.w[1] * torch.tanh(time.to(x) / 1000).reshape(-1, *[1] * (x.ndim - 1))
        return torch.sin(self.w[0] * x) + scale + self.w[2]


X0 = numbers(6, 2, 3, seed=1)


def losses(denoiser, weighting, times=None) -> torch.Tensor:
    return Objective(times or UniformTime(), weighting)(denoiser, X0, None, Noise(7, 6)).per_example


@pytest.mark.parametrize("name", ["edm", "linear", "cosine", "flow"])
def test_edm_weighting_is_the_plain_error_of_f(name):
    """lambda c_out^2 = 1 (paper 000 eq. 213-217)."""
    denoiser = orn.Denoiser(Nonsense(), orn.Gaussian(SCHEDULES[name]), "edm", sigma_data=0.6)
    assert torch.allclose(losses(denoiser, EDMWeighting(0.6)), losses(denoiser, Simple()), rtol=1e-6)
    assert torch.equal(losses(denoiser, Simple()), losses(denoiser, Simple("edm")))
    assert not torch.allclose(losses(denoiser, EDMWeighting(0.5)), losses(denoiser, Simple()), rtol=1e-3)


def test_loss_by_hand():
    """w(t) mean (r_hat - r)^2 with everything from its definition."""
    process = orn.Gaussian(orn.LinearVP())
    network = Nonsense()
    denoiser = orn.Denoiser(network, process, "v")
    rng = Noise(7, 6)
    u = rng.shared()
    eps = rng.normal((6, 2, 3), torch.float64)
    alpha, sigma = (c.reshape(6, 1, 1) for c in (process.schedule.alpha(u), process.schedule.sigma(u)))
    x_t = alpha * X0 + sigma * eps
    with torch.no_grad():
        v = network(x_t, (1000 * u).float())
        x0_hat = alpha * x_t - sigma * v
    truth = {
        None: (v - (alpha * eps - sigma * X0)) ** 2,
        "x0": (x0_hat - X0) ** 2,
        "eps": ((x_t - alpha * x0_hat) / sigma - eps) ** 2,
    }
    for reading, error in truth.items():
        assert torch.allclose(losses(denoiser, Simple(reading)), error.mean((1, 2)), rtol=1e-6)
    loss = Objective()(denoiser, X0, None, Noise(7, 6))
    assert torch.allclose(loss.t, u)
    assert torch.allclose(loss.mean, truth[None].mean())
    snr = (alpha / sigma).flatten() ** 2
    weights = {
        MinSNR(5.0): snr.clamp(max=5.0),
        EDMWeighting(0.6): snr + 1 / 0.36,
        Weighting(torch.sigmoid): snr / (1 + snr),
    }
    for weighting, weight in weights.items():
        assert torch.allclose(losses(denoiser, weighting), weight * truth["x0"].mean((1, 2)), rtol=1e-6)
    in_v = losses(denoiser, Weighting(lambda log_snr: log_snr**2, reading=None))
    assert torch.allclose(in_v, snr.log() ** 2 * truth[None].mean((1, 2)), rtol=1e-6)
    assert torch.allclose(
        losses(denoiser, MinSNR(1e9)), truth["eps"].mean((1, 2)), rtol=1e-5
    )  # SNR |dx_0|^2 = |deps|^2


def test_min_snr_values():
    weight = MinSNR(5.0)(torch.log(torch.tensor([0.1, 4.9, 5.1, 1e6], dtype=torch.float64)))
    assert torch.allclose(weight, torch.tensor([0.1, 4.9, 5.0, 5.0], dtype=torch.float64))
    edm = EDMWeighting(0.5)(torch.log(torch.tensor([1 / 0.04], dtype=torch.float64)))  # sigma = .2
    assert float(edm) == pytest.approx((0.2**2 + 0.5**2) / (0.2 * 0.5) ** 2)


@pytest.mark.parametrize("parametrization", ["eps", "x0", "v", "score", "velocity", "edm"])
def test_gradient_against_finite_differences(parametrization):
    network = Nonsense()
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.LinearVP()), parametrization, sigma_data=0.8)

    def loss():
        return Objective(UniformSteps(10), MinSNR())(denoiser, X0, None, Noise(7, 6)).mean

    loss().backward()
    h = 1e-6
    for i in range(3):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                network.w[i] += sign * h
                ends.append(float(loss()))
                network.w[i] -= sign * h
        assert float(network.w.grad[i]) == pytest.approx((ends[0] - ends[1]) / 2 / h, rel=1e-5, abs=1e-7)


def test_energy_gradient_reaches_the_weights():
    class Energy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def forward(self, x, time):
            return 0.5 * self.w * x.square().flatten(1).sum(1)

    network = Energy()
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.LinearVP()), "energy")
    loss = Objective(At(0.5), Simple("score"))(denoiser, X0, None, Noise(7, 6)).mean
    loss.backward()
    alpha, sigma = level(denoiser.process.schedule, 0.5)
    rng = Noise(7, 6)
    rng.shared()
    eps = rng.normal(X0.shape, torch.float64)
    x_t = alpha * X0 + sigma * eps
    assert loss.item() == pytest.approx(float((-0.5 * x_t + eps / sigma).square().mean()))
    assert float(network.w.grad) == pytest.approx(float((2 * (-0.5 * x_t + eps / sigma) * -x_t).mean()))


def test_conditions_reach_the_network():
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, x, time, cond, keep):
            seen.update(cond=cond, keep=keep)
            return x

    denoiser = orn.Denoiser(Spy(), orn.Gaussian(orn.LinearVP()), "eps")
    cond, keep = torch.arange(6), torch.tensor([True, False] * 3)
    Objective()(denoiser, X0, cond, Noise(0, 6), keep)
    assert seen["cond"] is cond
    assert seen["keep"] is keep


@pytest.mark.parametrize("times", [UniformTime(), Stratified(), Stratified(LogNormalSigma())])
def test_a_batch_in_parts_has_the_losses_of_the_whole(times):
    """What lets several processes, or gradient accumulation, train as one process with the whole batch does."""
    denoiser, objective = orn.Denoiser(Nonsense(), orn.Gaussian(orn.LinearVP()), "v"), Objective(times)
    whole = objective(denoiser, X0, None, Noise(7, 6))
    parts = [objective(denoiser, X0[rows], None, Noise(7, rows, total=6)) for rows in ([0, 2, 4], [1, 3, 5])]
    for part, rows in zip(parts, ([0, 2, 4], [1, 3, 5]), strict=True):
        assert torch.equal(part.t, whole.t[rows])
        assert torch.allclose(part.per_example, whole.per_example[rows], rtol=1e-12)
    if times == Stratified():
        assert torch.equal((whole.t * 6).floor(), torch.arange(6.0, dtype=torch.float64))
