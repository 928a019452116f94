"""Independent truths for the tests of laws: closed forms at 50 digits, fixed noise, affine maps, a law by quadrature."""

import copy
import itertools
import math
from collections.abc import Callable

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

import ornstein as orn
from ornstein import exact
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.processes import Normal as Base
from ornstein.samplers import sample

mp.mp.dps = 50
T_VALUES = (1e-6, 1e-4, 0.01, 0.3, 0.5, 0.9, 1 - 1e-4, 1 - 1e-6)


def _vp_integral(t, low=0.1, high=20.0):
    return t * mp.mpf(low) + (mp.mpf(high) - mp.mpf(low)) * t**2 / 2


def _cosine(t, s=0.008):
    s = mp.mpf(s)
    return mp.cos((t + s) / (1 + s) * mp.pi / 2) / mp.cos(s / (1 + s) * mp.pi / 2)


def _edm(t, low=0.002, high=80.0, rho=7):
    low, high = mp.mpf(low) ** (mp.mpf(1) / rho), mp.mpf(high) ** (mp.mpf(1) / rho)
    return (low + t * (high - low)) ** rho


# name: (schedule, alpha(t), sigma(t)), the two functions written from the papers and evaluated at 50 digits
CLOSED: dict[str, tuple[orn.schedules.Schedule, Callable, Callable]] = {
    "linear": (
        orn.LinearVP(),
        lambda t: mp.exp(-_vp_integral(t) / 2),
        lambda t: mp.sqrt(1 - mp.exp(-_vp_integral(t))),
    ),
    "cosine": (orn.CosineVP(), _cosine, lambda t: mp.sqrt(1 - _cosine(t) ** 2)),
    "ve": (orn.GeometricVE(), lambda t: mp.mpf(1), lambda t: mp.mpf(0.01) * (mp.mpf(50) / mp.mpf(0.01)) ** t),
    "edm": (orn.EDM(), lambda t: mp.mpf(1), _edm),
    "subvp": (
        orn.SubVP(0.2, 12.0),
        lambda t: mp.exp(-_vp_integral(t, 0.2, 12.0) / 2),
        lambda t: 1 - mp.exp(-_vp_integral(t, 0.2, 12.0)),
    ),
    "flow": (orn.RectifiedFlow(), lambda t: 1 - t, lambda t: t),
}
SCHEDULES: dict[str, orn.schedules.Schedule] = {
    **{name: law[0] for name, law in CLOSED.items()},
    "table-linear": orn.TableSchedule.linear(1000),
    "table-cosine": orn.TableSchedule.cosine(100),
    "alpha-sigma": orn.FromAlphaSigma(lambda t: 1 - 0.9 * t**2, lambda t: t + t**2),
    "sde": orn.FromSDE(lambda t: -0.5 * (0.3 + 9 * t), lambda t: (0.3 + 9 * t) ** 0.5),
}


def level(schedule: orn.schedules.Schedule, t: float) -> tuple[float, float]:
    """(alpha, sigma) as floats."""
    return float(schedule.alpha(t)), float(schedule.sigma(t))


class Fixed:
    """Stands in for `Noise`: hands out given numbers in order."""

    def __init__(self, *normals: Tensor, u: Tensor | None = None) -> None:
        self.normals, self.u, self.rows = list(normals), u, slice(None)

    def normal(self, shape, dtype=torch.float32) -> Tensor:
        drawn = self.normals.pop(0)
        assert tuple(drawn.shape) == tuple(shape)
        return drawn.to(dtype)

    def uniform(self, shape, dtype=torch.float64) -> Tensor:
        assert self.u is not None
        assert tuple(self.u.shape) == tuple(shape)
        return self.u.to(dtype)

    def shared(self) -> Tensor:
        assert self.u is not None
        return self.u.to(torch.float64)


class Spy:
    """An exact denoiser that counts what is asked of it: estimates and log-densities."""

    def __init__(self, inner) -> None:
        self.inner, self.process, self.shape, self.made = inner, inner.process, inner.shape, 0

    def __call__(self, *args):
        self.made += 1
        return self.inner(*args)

    def log_density(self, *args) -> Tensor:
        self.made += 1
        return self.inner.log_density(*args)


def check_refusal(call: Callable, got: str, remedy: str) -> None:
    """That a call is refused with what it got and what to do."""
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert got in str(caught.value)
    assert remedy in str(caught.value)


def unit_noise(draws: int, size: int) -> Fixed:
    """Noise for draws * size examples of shape (size,): draw k is the identity on rows k size .. (k + 1) size, else 0.

    What comes out of a linear law, less what comes out without noise, is its matrix: its covariance is exact.
    """
    blocks = torch.eye(draws * size, dtype=torch.float64).reshape(draws * size, draws, size)
    return Fixed(*(blocks[:, k].clone() for k in range(draws)))


def affine_step(sampler, denoiser, t: float, s: float) -> tuple[float, float, float]:
    """(a, b, c) of one step x -> a x + b z + c on scalars, for a denoiser that is affine in x (a normal law)."""
    x, z = (torch.tensor(v, dtype=torch.float64).reshape(3, 1) for v in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))
    out = sampler.step(denoiser, x, t, s, None, Fixed(z))[0].flatten().tolist()
    return out[1] - out[0], out[2] - out[0], out[0]


def affine_law(sampler, denoiser, t: float, s: float, draws: int) -> tuple[float, float, float]:
    """(a, b^2, c) of one step x -> a x + b z + c on a scalar, from its value at two x and under each unit draw."""
    zeros = [torch.zeros(2, 1, dtype=torch.float64)] * draws
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    c, ac = sampler.step(denoiser, x, t, s, None, Fixed(*zeros))[0].flatten().tolist()
    noisy = sampler.step(denoiser, torch.zeros(draws, 1, dtype=torch.float64), t, s, None, unit_noise(draws, 1))[0]
    return ac - c, float(((noisy - c) ** 2).sum()), c


def carried_variance(sampler, denoiser, pairs, draws: int, variance: float) -> float:
    """The variance carried exactly through steps of several draws each."""
    for t, s in pairs:
        a, b, _ = affine_law(sampler, denoiser, t, s, draws)
        variance = a * a * variance + b
    return variance


def moments(sampler, denoiser, times: list[float], mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance carried exactly through the steps of a sampler without memory."""
    for t, s in itertools.pairwise(times):
        a, b, c = affine_step(sampler, denoiser, t, s)
        mean, variance = a * mean + c, a * a * variance + b * b
    return mean, variance


def order(errors: list[float]) -> float:
    """The order of accuracy seen in errors at steps N, 2N, 4N, ...: that of the last halving."""
    return math.log2(errors[-2] / errors[-1])


def spd(size: int, seed: int = 3) -> Tensor:
    """A well-conditioned positive definite matrix."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / size + 0.5 * torch.eye(size, dtype=torch.float64)


def root_of(covariance: Tensor) -> Tensor:
    """The symmetric square root, by scipy."""
    return torch.from_numpy(np.real(scipy.linalg.sqrtm(covariance.numpy())))


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of a fixed seed, drawn by torch."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Bases of a process: none, diagonal and full, on three dimensions
D = 3
MU = torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)
SIGMA = {
    "none": torch.eye(D, dtype=torch.float64),
    "diagonal": torch.diag(torch.tensor([0.5, 1.7, 2.3]).double()),
    "full": spd(D),
}
BASES = {"none": None, "diagonal": Base(MU, SIGMA["diagonal"].diagonal()), "full": Base(MU, SIGMA["full"])}
PAIRS = [(0.9, 0.4), (0.5, 0.47), (0.3, 0.05)]


def mean_of(base: str) -> torch.Tensor:
    return torch.zeros(D, dtype=torch.float64) if base == "none" else MU


# Data on a line: a normal law, and a mixture of two
MEAN, VARIANCE = 0.6, 0.25
MEANS, VARIANCES, WEIGHTS = np.array([-0.9, 0.7]), np.array([0.05, 0.2]), np.array([0.4, 0.6])


def exact_normal(process, variance: float = VARIANCE, mean: float = MEAN, size: int = 1) -> exact.Normal:
    return exact.Normal(process, torch.full((size,), mean, dtype=torch.float64), variance)


def exact_mixture(process, variances: np.ndarray = VARIANCES) -> exact.Mixture:
    return exact.Mixture(process, *(torch.from_numpy(v) for v in (MEANS[:, None], variances, WEIGHTS)))


def normal_marginal(process, t: float) -> tuple[float, float]:
    """Mean and variance of x_t for the normal law."""
    alpha, sigma = level(process.schedule, t)
    return alpha * MEAN, alpha**2 * VARIANCE + sigma**2


# What the tests of bad input hand to samplers
ZEROS = torch.zeros(2, 1, dtype=torch.float64)
LADDER = orn.Gaussian(orn.GeometricVE(0.05, 5.0))
NO_DENSITY = orn.Denoiser(torch.nn.Identity(), orn.Gaussian(orn.LinearVP()), "v")


def one_step(sampler, t: float = 0.5, s: float = 0.5, denoiser=None):
    return sampler.step(denoiser or exact_normal(LADDER), ZEROS, t, s, None, Noise(0, 2))


def run_on_flow(sampler, times: tuple[float, ...] = (0.9, 0.5)):
    denoiser = exact_normal(orn.Gaussian(orn.RectifiedFlow()))
    return sample(denoiser, sampler, start=ZEROS, grid=torch.tensor(times, dtype=torch.float64))


def awake(network: torch.nn.Module) -> torch.nn.Module:
    """A copy with every parameter moved off zero, so that nothing is hidden by zero last layers and gates."""
    network, generator = copy.deepcopy(network), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network
