"""Every public call of the core on states of every shape: the result has that shape and says the same per example."""

import math

import pytest
import torch

import ornstein as orn
from ornstein import exact, grids
from ornstein.denoisers import PARAMETRIZATIONS, Denoiser, Retargeted
from ornstein.noise import Noise
from ornstein.objectives import (
    EDMWeighting,
    LogNormalSigma,
    MinSNR,
    Objective,
    Simple,
    Stratified,
    UniformSteps,
    Weighting,
)
from ornstein.processes import Normal as Base
from ornstein.processes.gaussian import READINGS
from ornstein.samplers import Ancestral, Euler, Heun, Multistep, sample

SHAPES = [(2,), (7,), (1, 8, 8), (3, 9, 14), (16, 5)]
B = 3
SCHEDULES = [
    orn.LinearVP(),
    orn.CosineVP(),
    orn.GeometricVE(),
    orn.EDM(),
    orn.SubVP(),
    orn.RectifiedFlow(),
    orn.TableSchedule.linear(100),
    orn.FromAlphaSigma(lambda t: 1 - 0.5 * t, lambda t: t),
    orn.FromSDE(lambda t: -t, lambda t: 1 + t),
]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


class Net(torch.nn.Module):
    def __init__(self, copies: int = 1) -> None:
        super().__init__()
        self.copies, self.w = copies, torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x, time, cond=None, keep=None):
        assert x.dtype == time.dtype == torch.float32
        assert time.shape == x.shape[:1]
        shift = 0 if cond is None else cond.to(x).reshape(-1, *[1] * (x.ndim - 1))
        return torch.cat([torch.tanh(self.w * x + shift)] * self.copies, dim=1)


class Energy(Net):
    def forward(self, x, time, cond=None, keep=None):
        return self.w * x.square().flatten(1).sum(1)


def states(shape, seed=0):
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(seed))


def finite(x, shape, dtype=torch.float32):
    assert x.shape == (B, *shape)
    assert x.dtype == dtype
    assert torch.isfinite(x).all()


def bases(shape):
    size = math.prod(shape)
    yield None
    yield Base(torch.zeros(shape) + 0.5, torch.ones(shape) * 2)
    yield Base(torch.zeros(shape) + 0.5, torch.eye(size) + 0.5 / size)


@each_shape
def test_process(shape):
    x, times = states(shape), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for base in bases(shape):
        process = orn.Gaussian(orn.LinearVP(), base)
        for t, s in ((0.5, 0.3), (times, times * 0.7)):
            truth = process.noised(x, t, Noise(0, B))
            finite(process.noise(x, t, Noise(0, B)), shape)
            for reading in READINGS:
                finite(truth.reading(reading), shape)
                finite(process.estimate(x, t, **{reading: x}).x0, shape)
            law = process.posterior(truth, t, s, 0.5)
            other = process.transition(x, s, t)
            for one in (law, other):
                finite(one.sample(Noise(0, B)), shape)
                assert one.log_prob(x).shape == one.kl(law).shape == (B,)
            finite(process.drift(truth, t, 1.0), shape)
        path = process.path(x, torch.tensor([0.1, 0.4, 0.8]), Noise(0, B))
        assert path.shape == (3, B, *shape)
        assert process.log_prob_path(path, x, torch.tensor([0.1, 0.4, 0.8])).shape == (B,)
        finite(process.prior((B, *shape), Noise(0, B)), shape)
        assert process.log_prior(x).shape == (B,)
        assert process.given(None) is process


@each_shape
def test_each_example_stands_alone(shape):
    """Row i of a batch at times t is the batch of one at t_i: nothing mixes the examples."""
    x, times = states(shape), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    for base in bases(shape):
        process = orn.Gaussian(orn.CosineVP(), base)
        whole = process.estimate(x, times, v=x * 0.3)
        law = process.posterior(whole, times, times / 2, 0.7)
        for i in range(B):
            row, t = x[i : i + 1], float(times[i])
            one = process.estimate(row, t, v=row * 0.3)
            for reading in READINGS:
                assert torch.allclose(one.reading(reading), whole.reading(reading)[i : i + 1], rtol=1e-4, atol=1e-5)
            alone = process.posterior(one, t, t / 2, 0.7)
            assert torch.allclose(alone.mean, law.mean[i : i + 1], rtol=1e-4, atol=1e-5)
            assert torch.allclose(alone.log_prob(row), law.log_prob(x)[i : i + 1], rtol=1e-3)


@each_shape
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_schedules_broadcast_beside_states(schedule, shape):
    process = orn.Gaussian(schedule)
    for t in (torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.9]), 0.5):
        truth = process.noised(states(shape), t, Noise(0, B))
        finite(truth.x_t, shape)
        finite(truth.x0, shape)
        finite(truth.velocity, shape)
    grid = torch.full(shape, 0.4)
    for name in ("alpha", "sigma", "log_snr", "f", "g", "beta", "log_alpha", "log_sigma"):
        assert getattr(schedule, name)(grid).shape == shape
    assert schedule.time_at(schedule.log_snr(grid)).shape == shape


@each_shape
def test_denoisers_and_objectives(shape):
    x, process = states(shape), orn.Gaussian(orn.LinearVP())
    weightings = [Simple(), Simple("eps"), EDMWeighting(), MinSNR(), Weighting(torch.sigmoid)]
    laws = [orn.UniformTime(), UniformSteps(10), LogNormalSigma(), Stratified(LogNormalSigma())]
    for i, kind in enumerate(PARAMETRIZATIONS):
        network = Energy() if kind == "energy" else Net()
        denoiser = Denoiser(network, process, kind, sigma_data=0.5 if i % 2 or kind == "edm" else None)
        for t in (0.4, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)):
            finite(denoiser(x, t).x0, shape)
            finite(denoiser(x, t, torch.arange(B), torch.ones(B, dtype=torch.bool)).eps, shape)
        loss = Objective(laws[i % 4], weightings[i % 5])(denoiser, x, torch.arange(B), Noise(0, B))
        assert loss.per_example.shape == loss.t.shape == (B,)
        loss.mean.backward()
        assert network.w.grad is not None
    learned = Denoiser(Net(copies=2), process, variance="learned")
    estimate = learned(x, 0.5)
    finite(estimate.x0, shape)
    assert estimate.fraction is not None
    finite(estimate.fraction, shape)
    finite(process.posterior(estimate, 0.5, 0.4).sample(Noise(0, B)), shape)
    finite(Retargeted(denoiser, orn.Gaussian(orn.EDM()))(x, 0.5).x0, shape)


@each_shape
def test_exact_denoisers(shape):
    x, process = states(shape), orn.Gaussian(orn.LinearVP())
    mean, size = torch.zeros(shape) + 0.1, math.prod(shape)
    family = [
        exact.Normal(process, mean, 0.5),
        exact.Normal(process, mean, torch.ones(shape)),
        exact.Normal(process, mean, torch.eye(size)),
        exact.Mixture(process, states(shape), 0.1),
        exact.Mixture(process, states(shape), torch.ones(B, *shape)),
        exact.Empirical(process, states(shape), 0.1),
    ]
    for denoiser in family:
        assert denoiser.shape == shape
        for t in (0.4, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)):
            finite(denoiser(x, t).x0, shape)
            assert denoiser.log_density(x, t).shape == (B,)


@each_shape
@pytest.mark.parametrize(
    "sampler", [None, Ancestral(), Ancestral(0.0), Euler(), Heun(), Heun(churn=0.2), Multistep(1)], ids=str
)
def test_sampling(sampler, shape):
    for schedule in (orn.CosineVP(), orn.EDM(), orn.TableSchedule.linear(100)):
        denoiser = Denoiser(Net(), orn.Gaussian(schedule), "v", sigma_data=0.5)
        found = sample(denoiser, sampler, n=B, shape=shape, steps=3, batch_size=2, trajectory=1)
        finite(found.x, shape)
        assert all(x.shape == (B, *shape) for _, x in found.trajectory)
        finite(
            sample(denoiser, sampler, start=states(shape), grid=torch.tensor([0.6, 0.5]), cond=torch.arange(B)).x, shape
        )
        denoiser.shape = shape
        finite(sample(denoiser, sampler, n=B, calls=3).x, shape)
    process = orn.Gaussian(orn.LinearVP())
    for law in (grids.uniform, grids.log_snr, grids.karras, grids.trailing, grids.leading, grids.linspace):
        denoiser = exact.Normal(process, torch.zeros(shape), 0.5)
        finite(sample(denoiser, sampler, n=B, grid=law(process, 2)).x, shape)


@each_shape
def test_noise(shape):
    rng = Noise(0, B)
    finite(rng.normal((B, *shape)), shape)
    finite(rng.uniform((B, *shape)), shape, torch.float64)
    finite(rng.brownian(0.2, 0.5, (B, *shape)), shape)
