"""Denoisers: what a network is fed and how it is read, by the formulas of DDPM and EDM (paper 000 eq. 203-212)."""

import math

import pytest
import torch
from helpers import SCHEDULES, level, numbers

import ornstein as orn
from ornstein.integrate import FixedSteps
from ornstein.noise import Noise
from ornstein.objectives import DenoisingScoreMatching
from ornstein.processes import Normal as Base


class Spy(torch.nn.Module):
    """Remembers what it was fed, and answers sin(x) + 0.1."""

    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x, time, cond=None, keep=None):
        self.x, self.time, self.cond, self.keep = x, time, cond, keep
        return torch.cat([torch.sin(x) + 0.1] * self.copies, dim=1)


X = numbers(4, 3, seed=1)


@pytest.mark.parametrize("name", ["edm", "linear", "cosine", "subvp"])
def test_edm_preconditioning(name):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) at x = x_t / alpha and sigma / alpha."""
    schedule, sigma_data, t, network = SCHEDULES[name], 0.6, 0.45, Spy()
    denoiser = orn.Denoiser(network, orn.Gaussian(schedule), "edm", sigma_data=sigma_data)
    alpha, sigma = level(schedule, t)
    x, s = X / alpha, sigma / alpha
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)
    c_out = s * sigma_data / math.sqrt(s**2 + sigma_data**2)
    c_in = 1 / math.sqrt(s**2 + sigma_data**2)
    truth = c_skip * x + c_out * (torch.sin(c_in * x) + 0.1)
    for when in (t, torch.full((4,), t, dtype=torch.float64)):
        assert torch.allclose(denoiser(X, when).x0, truth, rtol=1e-7)
        assert torch.allclose(network.x, c_in * x, rtol=1e-7)
        assert torch.allclose(network.time, torch.full((4,), math.log(s) / 4), rtol=1e-6)


def test_the_network_of_a_chain_sees_its_index():
    network = Spy()
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.TableSchedule.linear(1000)))
    denoiser(X, 371 / 1000)
    assert network.time.tolist() == [371.0] * 4
    assert torch.equal(network.x, X)
    denoiser(X, torch.tensor([0.1, 0.2, 0.3, 1.0]).double())
    assert torch.allclose(network.time, torch.tensor([100.0, 200.0, 300.0, 1000.0]))
    told = orn.Denoiser(network, denoiser.process, time=lambda t: 1 - t)
    told(X, 0.25)
    assert network.time.tolist() == [0.75] * 4


def test_input_is_scaled_to_unit_variance_where_sigma_data_is_given():
    base = Base(torch.tensor([1.0, -2.0, 0.5]).double(), torch.ones(3).double())
    schedule, network = orn.LinearVP(), Spy()
    alpha, sigma = level(schedule, 0.3)
    norm = math.sqrt(alpha**2 * 0.49 + sigma**2)
    for process, mu in ((orn.Gaussian(schedule), 0.0), (orn.Gaussian(schedule, base), base.mean)):
        estimate = orn.Denoiser(network, process, "v", sigma_data=0.7)(X, 0.3)
        assert torch.allclose(network.x, (X - mu) / norm)
        v = torch.sin((X - mu) / norm) + 0.1
        assert torch.allclose(estimate.x0, mu + alpha * (X - mu) - sigma * v)  # alpha^2 + sigma^2 = 1


def test_energy_is_minus_the_potential_of_the_score():
    class Energy(torch.nn.Module):
        def forward(self, x, time):
            return (x**4).sum(1) + x.prod(1)

    denoiser = orn.Denoiser(Energy(), orn.Gaussian(orn.LinearVP()), "energy").eval()
    score = -(4 * X**3 + torch.stack([X[:, 1] * X[:, 2], X[:, 0] * X[:, 2], X[:, 0] * X[:, 1]], dim=1))
    with torch.no_grad():
        estimate = denoiser(X, 0.4)
    assert torch.allclose(estimate.score, score)
    assert not estimate.score.requires_grad


@pytest.mark.parametrize(
    "network", [lambda: orn.DiT(1, width=32, depth=1), lambda: orn.UNet(1, widths=(32,), blocks=1)]
)
def test_an_energy_with_attention_can_be_trained_and_has_a_likelihood(network):
    """E = ||x - N(x)||^2 / 2: its score by differences, the gradient of a loss of it, the trace of its field."""

    class Energy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner = network()
            for p in self.inner.parameters():
                torch.nn.init.normal_(p, std=0.1)

        def forward(self, x, time):
            return 0.5 * (x - self.inner(x, time)).square().flatten(1).sum(1)

    denoiser = orn.Denoiser(Energy(), orn.Gaussian(orn.LinearVP()), "energy").double()
    x, along = numbers(2, 1, 4, 4, seed=1), numbers(2, 1, 4, 4, seed=2)
    time = torch.full((2,), 400.0)
    slope = [denoiser.network(x + step * along, time) for step in (1e-4, -1e-4)]
    truth = -(slope[0] - slope[1]) / 2e-4
    found = (denoiser(x, 0.4).score * along).flatten(1).sum(1)
    assert torch.allclose(found, truth, rtol=1e-4)
    DenoisingScoreMatching()(denoiser, x, None, Noise(0, 2)).mean.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in denoiser.parameters() if p.requires_grad)
    assert torch.isfinite(orn.log_likelihood(denoiser.eval(), 0.1 * x, solver=FixedSteps(2)).values).all()


def test_learned_variance_is_the_second_half():
    class Two(torch.nn.Module):
        def forward(self, x, time):
            return torch.cat([x * 0 + 0.2, x * 0 - 0.5], dim=1)

    x = numbers(4, 3, 2, 2, seed=1)
    estimate = orn.Denoiser(Two(), orn.Gaussian(orn.LinearVP()), variance="learned")(x, 0.4)
    assert torch.allclose(estimate.eps, torch.full_like(x, 0.2))
    assert torch.allclose(estimate.fraction, torch.full_like(x, 0.25))  # (v + 1) / 2


def test_condition_and_dropout_reach_the_network():
    network = Spy()
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.LinearVP()))
    cond, keep = torch.arange(4), torch.tensor([True, False, True, False])
    denoiser(X, 0.4, cond, keep)
    assert network.cond is cond
    assert network.keep is keep
    denoiser(X, 0.4)
    assert network.cond is None


def test_single_precision_in_single_precision_out():
    denoiser = orn.Denoiser(Spy(), orn.Gaussian(orn.CosineVP()), "v", sigma_data=0.5)
    times = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    for t in (0.3, times, times.float()):
        for kind in ("x0", "eps", "score", "velocity"):
            assert denoiser(X.float(), t).reading(kind).dtype == torch.float32
