"""Score matching: four losses in closed form for a linear score, their constants, traces, floors, and one minimiser."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import Fixed, level, numbers
from scipy.integrate import quad
from torch import nn

import ornstein as orn
from ornstein import exact
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.objectives import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    Importance,
    Objective,
    Simple,
    SlicedScoreMatching,
    UniformLogSNR,
    UniformSteps,
    irreducible,
)

PROCESS = orn.Gaussian(orn.LinearVP())


class At:
    """A time law of one time."""

    def __init__(self, t: float) -> None:
        self.t = t

    def __call__(self, process, u):
        return torch.full_like(u, self.t)


def every_form(law, truth=None) -> dict:
    return {
        "explicit": ExplicitScoreMatching(truth, law),
        "denoising": DenoisingScoreMatching(law),
        "implicit": ImplicitScoreMatching(law),
        "sliced": SlicedScoreMatching(law),
        "sliced-full": SlicedScoreMatching(law, reduced=False),
    }


FORMS = list(every_form(None))


class Linear(nn.Module):
    """The score -K x, or the energy x^T K x / 2 of score -(K + K^T) x / 2."""

    def __init__(self, k, energy: bool) -> None:
        super().__init__()
        self.k, self.energy = nn.Parameter(k.clone()), energy

    def forward(self, x, time):
        return 0.5 * ((x @ self.k.T) * x).sum(1) if self.energy else -x @ self.k.T


# --- closed forms for a linear score and normal data: everything is quadratic, so rules of two nodes are exact

C = torch.tensor([[0.7, 0.2], [0.2, 0.3]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)
SIGNS = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64)


@pytest.mark.parametrize("energy", [False, True], ids=["score", "energy"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("t", [0.1, 0.6])
def test_value_and_gradient_in_closed_form(form, t, energy):
    """s = -K x, x_t ~ N(0, C_t): sigma^2 / D times the formula of each form; all gradients are K C_t - I."""
    alpha, sigma = level(PROCESS.schedule, t)
    c_t = alpha**2 * C + sigma**2 * EYE
    for k in (torch.tensor([[1.3, 0.5], [0.1, 0.8]], dtype=torch.float64), torch.linalg.inv(c_t)):
        network = Linear(k, energy)
        denoiser = orn.Denoiser(network, PROCESS, "energy" if energy else "score")
        objective = every_form(At(t), exact.Normal(PROCESS, torch.zeros(2).double(), C))[form]
        x0, eps, v = SIGNS[:, :2] @ torch.linalg.cholesky(C).T, SIGNS[:, 2:4], SIGNS[:, 4:]
        loss = objective(denoiser, x0, None, Fixed(eps, v, u=torch.ones(len(SIGNS)))).mean
        k = (k + k.T) / 2 if energy else k
        norm, precision = torch.trace(k @ c_t @ k.T), torch.linalg.inv(c_t)
        value = {
            "explicit": torch.trace((precision - k) @ c_t @ (precision - k).T) / 2,
            "denoising": (norm - 2 * torch.trace(k) + 2 / sigma**2) / 2,
        }.get(form, norm / 2 - torch.trace(k))
        assert float(loss.detach()) == pytest.approx(float(sigma**2 / 2 * value), rel=1e-9, abs=1e-12)
        loss.backward()
        slope = k @ c_t - EYE
        slope = (slope + slope.T) / 2 if energy else slope
        assert torch.allclose(network.k.grad, sigma**2 / 2 * slope, rtol=1e-9, atol=1e-12)


def two_points(t_of):
    """B24: x_0 = -1 or 1 at alpha^2 = 1/2, by Gauss-Hermite: (x_0, eps, weights, time)."""
    t = float(PROCESS.schedule.time_at(t_of))
    nodes, rule = np.polynomial.hermite_e.hermegauss(40)
    eps, weights = torch.from_numpy(nodes).repeat(2)[:, None], torch.from_numpy(rule / rule.sum()).repeat(2) / 2
    return torch.tensor([-1.0, 1.0]).double().repeat_interleave(40)[:, None], eps, weights, t


def test_the_floor_of_denoising_score_matching():
    """B24: DSM - ESM is the constant .899199 / 2 for every k, and the loss of the exact score: its floor."""
    x0, eps, weights, t = two_points(0.0)
    truth = exact.Empirical(PROCESS, torch.tensor([[-1.0], [1.0]]).double())

    def mean(objective, denoiser):
        return float(objective(denoiser, x0, None, Fixed(eps, u=torch.ones(80))).per_example.detach() @ weights)

    for power, factor in ((0.0, 1.0), (2.0, 0.5)):
        explicit, denoising = ExplicitScoreMatching(truth, At(t), power), DenoisingScoreMatching(At(t), power)
        for k in (0.5, 1.0, 2.0):
            denoiser = orn.Denoiser(Linear(torch.tensor([[k]]).double(), False), PROCESS, "score")
            assert mean(denoising, denoiser) - mean(explicit, denoiser) == pytest.approx(
                factor * 0.899199 / 2, abs=2e-6
            )
        rng = Fixed(eps, u=torch.ones(80))
        floor = float(irreducible(denoising, truth, x0, rng).per_example @ weights)
        assert floor == pytest.approx(factor * 0.899199 / 2, abs=2e-6)
        assert float(irreducible(explicit, truth, x0, Fixed(eps, u=torch.ones(80))).mean) == 0.0

    def density(x):  # of x_t and the square of its slope over it
        parts = [math.exp(-((x - m) ** 2)) / math.sqrt(math.pi) / 2 for m in (-math.sqrt(0.5), math.sqrt(0.5))]
        slope = sum(-2 * (x - m) * p for m, p in zip((-math.sqrt(0.5), math.sqrt(0.5)), parts, strict=True))
        return slope**2 / sum(parts)

    assert 2 - quad(density, -8, 8, epsabs=1e-12)[0] == pytest.approx(0.899199, abs=1e-6)  # E |cond|^2 - E |score|^2
    left = irreducible(Objective(At(t), Simple("x0")), truth, x0, Fixed(eps, u=torch.ones(80))).per_example @ weights
    assert float(left) == pytest.approx(
        0.899199 * 0.5, abs=1e-6
    )  # Var(x_0 | x_t) = sigma^4 / alpha^2 (1/sigma^2 - E score^2)


def test_ncsn_is_denoising_score_matching_over_geometric_levels():
    """sigma^2 weighting: 1/2 ||sigma s + eps||^2, at every level of a geometric sequence (paper 003 eq. 3)."""
    process = orn.Gaussian(orn.GeometricVE(0.01, 10.0))
    denoiser = orn.Denoiser(Net(), process, "score")
    x0 = numbers(9, 2, 3)
    loss = DenoisingScoreMatching(orn.Stratified(UniformSteps(3)))(denoiser, x0, None, Noise(0, 9))
    rng = Noise(0, 9)
    rng.shared()
    eps, sigma = rng.normal(x0.shape, x0.dtype), torch.tensor([0.1, 1, 10]).double().repeat_interleave(3).view(-1, 1, 1)
    score = denoiser.network(x0 + sigma * eps, 1000 * loss.t.float())
    assert torch.allclose(loss.per_example, (sigma * score + eps).square().mean((1, 2)) / 2, rtol=1e-6)


# --- traces and second derivatives


class Net(nn.Module):
    """A network that is no gradient field, of float64."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(numbers(3, 6, 6, seed=4) / 2)

    def forward(self, x, time):
        h = torch.tanh(x.flatten(1) @ self.w[0]) + 0.1 * torch.sin(time.to(x))[:, None]
        return (h @ self.w[1] + torch.sin(x.flatten(1) @ self.w[2])).view_as(x)


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.w = self.net.w

    def forward(self, x, time):
        return 0.5 * (x + self.net(x, time)).square().flatten(1).sum(1)


def made(parametrization):
    network = Energy() if parametrization == "energy" else Net()
    return orn.Denoiser(network, PROCESS, parametrization, sigma_data=0.5 if parametrization == "edm" else None)


X0 = numbers(5, 2, 3, seed=1)
PARAMETRIZATIONS = ["eps", "x0", "v", "score", "edm", "energy"]


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_trace_against_the_jacobian(parametrization):
    denoiser = made(parametrization)
    eps, v = numbers(5, 2, 3, seed=2), numbers(5, 2, 3, seed=3)
    alpha, sigma = level(PROCESS.schedule, 0.3)
    x_t = alpha * X0 + sigma * eps
    at = torch.full((1,), 0.3, dtype=torch.float64)
    traces, slices, scores = [], [], []
    for row, sign in zip(x_t, v.sign(), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: denoiser(x[None], at).score[0].flatten(), row)
        jacobian, sign = jacobian.flatten(1), sign.flatten()
        traces.append(torch.trace(jacobian))
        slices.append(sign @ jacobian @ sign)
        scores.append(denoiser(row[None], at).score[0].flatten())
    score = torch.stack(scores)
    forms = every_form(At(0.3))
    truth = {
        "implicit": torch.stack(traces) + 0.5 * score.square().sum(1),
        "sliced": torch.stack(slices) + 0.5 * score.square().sum(1),
        "sliced-full": torch.stack(slices) + 0.5 * (v.sign().flatten(1) * score).sum(1) ** 2,
    }
    for form, value in truth.items():
        loss = forms[form](denoiser, X0, None, Fixed(eps, v, u=torch.ones(5)))
        assert torch.allclose(loss.per_example, sigma**2 / 6 * value, rtol=1e-8)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_gradient_against_finite_differences(parametrization, form):
    denoiser = made(parametrization)
    objective = every_form(UniformLogSNR(0.1, 10.0))[form]

    def loss():
        return objective(denoiser, X0, None, Noise(3, 5)).mean

    (gradient,) = torch.autograd.grad(loss(), denoiser.network.w)
    h = 1e-6
    for place in ((0, 1, 2), (1, 3, 0), (2, 5, 5)):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                denoiser.network.w[place] += sign * h
                sides.append(float(loss()))
                denoiser.network.w[place] -= sign * h
        assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / 2 / h, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("form", FORMS[1:])
def test_the_loss_is_the_same_without_gradients(form):
    denoiser, objective = made("v"), every_form(UniformLogSNR())[form]
    there = objective(denoiser, X0, None, Noise(3, 5)).per_example
    assert there.requires_grad
    with torch.no_grad():
        here = objective(denoiser.eval(), X0, None, Noise(3, 5)).per_example
    assert not here.requires_grad
    assert torch.allclose(here, there, rtol=1e-12)


def test_projections_are_averaged():
    denoiser, eps = made("v"), numbers(5, 2, 3)
    vs = [numbers(5, 2, 3, seed=k) for k in (5, 6, 7)]
    for reduced in (True, False):
        one = [
            SlicedScoreMatching(At(0.4), reduced=reduced)(denoiser, X0, None, Fixed(eps, v, u=torch.ones(5)))
            for v in vs
        ]
        objective = SlicedScoreMatching(At(0.4), projections=3, reduced=reduced)
        loss = objective(denoiser, X0, None, Fixed(eps, *vs, u=torch.ones(5)))
        assert torch.allclose(loss.per_example, torch.stack([part.per_example for part in one]).mean(0), rtol=1e-12)


@pytest.mark.parametrize(
    "network",
    [
        orn.MLP((1, 8, 8), width=16, depth=1),
        orn.UNet(1, widths=(8,), attention=1),
        orn.DiT(1, width=32, depth=1),
    ],
    ids=lambda n: type(n).__name__,
)
def test_the_library_s_networks_have_second_derivatives(network):
    """Attention has them in its plain form alone. In float32."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    denoiser = orn.Denoiser(network, PROCESS, "v")
    x0 = numbers(3, 1, 8, 8, dtype=torch.float32)
    loss = SlicedScoreMatching(UniformLogSNR())(denoiser, x0, None, Noise(0, 3))
    loss.mean.backward()
    assert loss.per_example.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    assert sum(float(p.grad.abs().sum()) > 0 for p in network.parameters() if p.grad is not None) > 5


# --- one minimiser

MEANS = torch.tensor([[-1.2, 0.3], [1.0, -0.6], [0.4, 1.3]], dtype=torch.float64)
MIXTURE = exact.Mixture(PROCESS, MEANS, 0.15, torch.tensor([0.5, 0.2, 0.3]))
TIME = 0.3


class AtOnce:
    """The exact mixture at one time for the whole batch."""

    process = PROCESS

    def __call__(self, x_t, t, cond=None, keep=None):
        return MIXTURE(x_t, float(t[0]))


def mixture(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    k = torch.multinomial(torch.tensor([0.5, 0.2, 0.3]), n, replacement=True, generator=generator)
    return (MEANS[k] + math.sqrt(0.15) * torch.randn(n, 2, generator=generator, dtype=torch.float64)).float()


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x, time):
        return self.net(x)


@pytest.mark.parametrize("form", FORMS[:4])
def test_a_small_network_finds_the_score_of_a_mixture(form):
    steps, size, denoiser = 200, 768, orn.Denoiser(Small(), PROCESS, "v")
    objective = every_form(At(TIME), AtOnce())[form]
    optimiser = torch.optim.Adam(denoiser.parameters(), 3e-2, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for k, x0 in enumerate(mixture(size * steps, 1).split(size)):
        optimiser.zero_grad()
        objective(denoiser, x0, None, Noise(k, size)).mean.backward()
        optimiser.step()
        decay.step()
    x_t = PROCESS.noise(mixture(4000, 2), TIME, Noise(0, 4000))
    with torch.no_grad():
        score, truth = denoiser(x_t, TIME).score, MIXTURE(x_t, TIME).score
    error = float(((score - truth).square().sum() / truth.square().sum()).sqrt())
    assert error < 0.05  # the best linear score, that of a normal law, is 16 % off


def test_what_does_not_fit_is_refused_in_words():
    with pytest.raises(ConfigurationError, match="257 backward passes"):
        ImplicitScoreMatching()(made("v"), torch.zeros(1, 257), None, Noise(0, 1))
    cut = made("v")
    cut.forward = torch.no_grad()(cut.forward)
    with pytest.raises(ConfigurationError, match="autograd cannot follow"):
        SlicedScoreMatching()(cut, X0, None, Noise(0, 5))
    other = exact.Normal(orn.Gaussian(orn.CosineVP()), torch.zeros(2, 3).double(), 1.0)
    with pytest.raises(ConfigurationError, match="expected one process"):
        ExplicitScoreMatching(other)(made("v"), X0, None, Noise(0, 5))
    with pytest.raises(ConfigurationError, match="projections=0"):
        SlicedScoreMatching(projections=0)


def test_importance_weights_multiply_the_loss():
    p = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    loss = DenoisingScoreMatching(Importance(3, probabilities=p))(made("v"), X0, None, Noise(0, 5))
    assert torch.allclose(loss.weight, 1 / (3 * p[(3 * loss.t).round().long() - 1]))
    one = float(loss.term[0].detach())
    alone = DenoisingScoreMatching(At(float(loss.t[0])))(made("v"), X0, None, Noise(0, 5))
    assert one == pytest.approx(float(alone.per_example[0].detach()), rel=1e-9)
