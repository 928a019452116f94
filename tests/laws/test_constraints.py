"""ILVR and inpainting against linear algebra: what is kept exactly, and the moments of what is drawn."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import LADDER, SCHEDULES, Fixed, Spy, check_refusal, exact_normal, level, numbers, unit_noise
from test_filters import matrix

import ornstein as orn
from ornstein import exact
from ornstein.filters import FILTERS
from ornstein.processes import Normal as Base

SAMPLERS = {
    "ancestral": orn.Ancestral(),
    "multistep": orn.Multistep(3, corrector=True),
    "heun": orn.Heun(churn=0.1),
    "singlestep": orn.Singlestep(2),
    "sde": orn.StochasticHeun(),
    "corrected": orn.PredictorCorrector(orn.Ancestral(), orn.Langevin()),
    "annealed": orn.AnnealedLangevin(steps=2),
    "adaptive": orn.RK45(),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["linear", "edm", "table-cosine"])
def test_the_low_frequencies_are_those_of_the_reference(name, sampler):
    process = orn.Gaussian(SCHEDULES[name])
    denoiser, y = exact.Normal(process, torch.zeros(1, 4, 8).double(), 0.7), numbers(1, 1, 4, 8, dtype=torch.float32)
    for filter in (2, orn.Fourier(4)):
        x = orn.sample(denoiser, orn.ILVR(SAMPLERS[sampler], y, filter), n=3, steps=6).x
        phi = orn.BlockAverage(2) if filter == 2 else filter
        assert (phi(x) - phi(y)).abs().max() < 1e-5
        assert (x - y).abs().max() > 0.3
    assert (orn.sample(denoiser, orn.ILVR(SAMPLERS[sampler], y, 1), n=2, steps=6).x - y).abs().max() < 1e-5
    rough = orn.sample(denoiser, orn.ILVR(SAMPLERS[sampler], y, orn.Bilinear(2)), n=3, steps=6).x
    assert (orn.Bilinear(2)(rough) - orn.Bilinear(2)(y)).abs().max() > 0.02  # not idempotent


class _Still:
    """A sampler that adds its noise and nothing else, for the algebra of one constrained step."""

    order, stochastic, stages = 1, True, 1

    def __init__(self, std: float) -> None:
        self.std = std

    def step(self, denoiser, x, t, s, memory, rng):
        return x + self.std * rng.normal(x.shape, x.dtype), memory


@pytest.mark.parametrize("kind", FILTERS)
def test_one_step_draws_its_two_noises_apart(kind):
    """x_s = (I - phi)(x + std z) + phi (alpha_s y + sigma_s z'), paper 001 algorithm 3 mended; A28, A30, A31."""
    size, table = 16, orn.TableSchedule.linear(1000)
    process, phi = orn.Gaussian(table), matrix(size, 2, kind)
    alpha, sigma = level(table, 0.003)
    y, std = numbers(1, size), 0.0087
    denoiser, still = exact.Normal(process, torch.zeros(size).double(), 1.0), orn.ILVR(_Still(std), y, FILTERS[kind](2))
    few = FILTERS[kind](2).down(y).shape[1]
    zeros = [torch.zeros(size, size).double(), torch.zeros(size, few).double()]
    x = torch.eye(size).double()
    plain = still.step(denoiser, torch.zeros_like(x), 0.004, 0.003, None, Fixed(*zeros))[0]
    assert np.allclose(plain, (alpha * phi @ y[0].numpy())[None].repeat(size, 0))
    moved = still.step(denoiser, x, 0.004, 0.003, None, Fixed(*zeros))[0] - plain
    assert np.allclose(moved.T, np.eye(size) - phi)
    own = still.step(denoiser, 0 * x, 0.004, 0.003, None, Fixed(x, zeros[1]))[0] - plain
    assert np.allclose(own.T, std * (np.eye(size) - phi))
    unit = torch.eye(few).double()
    fresh = still.step(denoiser, 0 * x[:few], 0.004, 0.003, None, Fixed(0 * x[:few], unit))[0] - plain[:few]
    assert np.allclose(fresh.T @ fresh, sigma**2 * phi @ phi.T)  # the level of s, and another draw
    # with a base, the noise of y is that of the whole state
    based = orn.Gaussian(table, Base(y[0] * 0, torch.linspace(0.5, 2.0, size).double()))
    whole = still.step(_At(based), 0 * x, 0.004, 0.003, None, Fixed(0 * x, x))[0] - plain
    assert np.allclose(whole.T @ whole, sigma**2 * phi @ based.base.matrix().numpy() @ phi.T)


class _At:
    """A denoiser of which only the process is asked."""

    def __init__(self, process) -> None:
        self.process = process


def test_the_checks_a28_and_a30_of_the_equations():
    """||Cov|| = .145 for linear interpolation at the check's levels; E|x_0 - y|^2 / d = 0, 1, 1.5, 1.75 for n = 1, 2, 4, 8."""
    betas = np.array([0.0, 0.1, 0.2, 0.35, 0.5])
    keep = np.cumprod(1 - betas)
    std = math.sqrt((1 - keep[2]) / (1 - keep[3]) * betas[3])
    phi = orn.Bilinear(2)(torch.eye(16).double()).T.numpy()
    assert np.linalg.norm((np.eye(16) - phi) @ phi.T * std * math.sqrt(1 - keep[2])) == pytest.approx(0.145, abs=5e-4)
    process = orn.Gaussian(SCHEDULES["linear"])
    denoiser, x = exact.Normal(process, torch.zeros(16).double(), 1.0), torch.eye(16).double()
    for n, truth in ((1, 0.0), (2, 1.0), (4, 1.5), (8, 1.75)):
        # x and y white: the mean of |x_0 - y|^2 is the sum of squares of the two matrices that take x and y to x_0 - y
        of_x = orn.ILVR(_Still(0.0), torch.zeros(1, 16).double(), n).step(denoiser, x, 0.1, 0.0, None, Fixed(x))[0]
        of_y = orn.ILVR(_Still(0.0), x, n).step(denoiser, 0 * x, 0.1, 0.0, None, _rows(Fixed(x)))[0] - x
        assert float(of_x.square().sum() + of_y.square().sum()) / 16 == pytest.approx(truth, abs=1e-12)


def _rows(rng: Fixed) -> Fixed:
    rng.indices = range(16)
    return rng


CORRELATED = np.array([[1.0, 0.8], [0.8, 1.0]])
OBSERVED = 1.5


def moments_by_hand(process, times, resamplings) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of (x_1, x_2) under ancestral sampling with x_1 replaced, of N(0, CORRELATED) given x_1 = 1.5."""
    mean, cov = np.zeros(2), level(process.schedule, times[0])[1] ** 2 * np.eye(2)
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = level(process.schedule, t), level(process.schedule, s)
        forward = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2  # variance of x_t given x_s
        back = sigma_s**2 * forward / sigma_t**2
        gain = alpha_t * CORRELATED @ np.linalg.inv(alpha_t**2 * CORRELATED + sigma_t**2 * np.eye(2))
        on_x0, on_xt = alpha_s * forward / sigma_t**2, alpha_t / alpha_s * sigma_s**2 / sigma_t**2
        for attempt in range(resamplings if sigma_s else 1):
            if attempt:
                mean, cov = alpha_t / alpha_s * mean, (alpha_t / alpha_s) ** 2 * cov + forward * np.eye(2)
            step = on_x0 * gain + on_xt * np.eye(2)
            mean, cov = step @ mean, step @ cov @ step.T + back * np.eye(2)
            mean, cov = np.array([alpha_s * OBSERVED, mean[1]]), np.diag([sigma_s**2, cov[1, 1]])
    return mean, cov


def inpainting(resamplings: int) -> orn.Inpainting:
    reference, missing = torch.tensor([[OBSERVED, 0.0]]).double(), torch.tensor([False, True])
    return orn.Inpainting(orn.Ancestral(), reference, missing, resamplings=resamplings)


@pytest.mark.parametrize("resamplings", [1, 4])
def test_inpainting_has_the_moments_of_its_recursion(resamplings):
    process = orn.Gaussian(SCHEDULES["linear"])
    denoiser, sampler = (
        exact.Normal(process, torch.zeros(2).double(), torch.from_numpy(CORRELATED)),
        inpainting(resamplings),
    )
    times = [1.0, 0.7, 0.4, 0.2, 0.05, 0.0]
    mean, cov = torch.zeros(2).double(), level(process.schedule, 1.0)[1] ** 2 * torch.eye(2).double()
    for t, s in pairwise(times):
        draws = 3 * resamplings - 1 if s else 0
        x, zeros = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double(), [torch.zeros(3, 2).double()] * draws
        out = sampler.step(denoiser, x, t, s, None, Fixed(*zeros))[0]
        noise = torch.zeros(0, 2).double()
        if draws:
            noise = (
                sampler.step(denoiser, torch.zeros(2 * draws, 2).double(), t, s, None, unit_noise(draws, 2))[0] - out[0]
            )
        step = (out[1:] - out[0]).T
        mean, cov = step @ mean + out[0], step @ cov @ step.T + noise.T @ noise
    truth = moments_by_hand(process, times, resamplings)
    assert np.allclose(mean, truth[0], atol=1e-10)
    assert np.allclose(cov, truth[1], atol=1e-10)


def test_replacement_is_biased_and_resampling_mends_it():
    """On DDPM's 1000 steps the mean is .749 where the conditional law has 1.2; ten resamplings give 1.152."""
    table = orn.TableSchedule.linear(1000)
    times = [i / 1000 for i in range(1000, 0, -1)]
    means = []
    for resamplings in (1, 10):
        mean = moments_by_hand(orn.Gaussian(table), times, resamplings)[0]
        alpha, sigma = level(table, 0.001)
        gain = alpha * CORRELATED @ np.linalg.inv(alpha**2 * CORRELATED + sigma**2 * np.eye(2))
        means.append(float((gain @ mean)[1]))
    assert means == pytest.approx([0.749, 1.152], abs=6e-4)

    class Silent(Fixed):
        def normal(self, shape, dtype=torch.float32):
            return torch.zeros(shape, dtype=dtype)

    denoiser = exact.Normal(orn.Gaussian(table), torch.zeros(2).double(), torch.from_numpy(CORRELATED))
    grid = torch.tensor(times, dtype=torch.float64)
    *_, last = orn.sample_steps(denoiser, inpainting(1), torch.zeros(1, 2).double(), grid, Silent())
    assert last.x[0].tolist() == pytest.approx([OBSERVED, means[0]], abs=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_known_places_come_back_as_they_are(sampler):
    process = orn.Gaussian(SCHEDULES["edm"])
    denoiser, y = exact.Normal(process, torch.zeros(1, 4, 4).double(), 0.7), numbers(3, 1, 4, 4, dtype=torch.float32)
    missing = torch.zeros(1, 4, 4, dtype=torch.bool)
    missing[:, :, 2:] = True
    constrained = orn.Inpainting(SAMPLERS[sampler], y, missing)
    whole = orn.sample(denoiser, constrained, n=5, steps=5)
    for i in range(5):
        assert torch.equal(whole.x[i][~missing], y[i % 3][~missing])
    assert (whole.x[0] - whole.x[3]).abs()[missing].min() > 1e-4
    if sampler != "adaptive":  # whose steps are each example's own, but its rounding is not
        parts = orn.sample(denoiser, constrained, n=5, steps=5, batch_size=2)
        assert torch.allclose(parts.x, whole.x, atol=1e-5)
        later = orn.sample(denoiser, constrained, n=2, steps=5, first=2)
        assert torch.allclose(later.x, whole.x[2:4], atol=1e-5)


def test_super_resolution_keeps_the_means():
    denoiser = exact.Normal(orn.Gaussian(SCHEDULES["cosine"]), torch.zeros(1, 8, 8).double(), 0.5)
    low = numbers(2, 1, 4, 4, dtype=torch.float32)
    x = orn.sample(denoiser, orn.ILVR.super_resolution(orn.Ancestral(), low, 2), n=2, steps=5).x
    assert np.allclose(x.reshape(2, 1, 4, 2, 4, 2).mean((3, 5)), low, atol=1e-5)


def test_calls_range_and_memory():
    spy = Spy(exact_normal(LADDER, size=4))
    y = numbers(1, 4, dtype=torch.float32)
    for resamplings, calls in ((1, 6), (3, 3 * 5 + 1)):
        assert orn.sample(spy, orn.ILVR(orn.Ancestral(), y, 2, resamplings=resamplings), n=2, steps=6).calls == calls
    assert orn.sample(spy, orn.ILVR(orn.Ancestral(), y, 2, resamplings=3), n=2, calls=16).calls == 16
    assert (
        orn.sample(spy, orn.ILVR(orn.Ancestral(), y, 2, resamplings=10), n=2).calls == 10 * 24 + 1
    )  # 25 steps by default
    adaptive = orn.sample(spy, orn.ILVR(orn.RK45(), y, 2), n=2, trajectory=1)
    assert len(adaptive.trajectory) == 26
    free = orn.sample(spy, orn.Multistep(3), n=2, steps=6).x
    outside = orn.ILVR(orn.Multistep(3), y, 2, start=1e-9, stop=1e-9)  # never within: the sampler as it is, memory too
    assert torch.equal(orn.sample(spy, outside, n=2, steps=6).x, free)
    late = _Remembering()
    orn.sample(spy, orn.ILVR(late, y, 2, start=0.5), n=2, steps=6)
    assert late.got[0] is None
    assert {"mine", None} == set(late.got[1:])  # kept while nothing is constrained, then dropped
    assert late.got.index(None, 1) > 1
    landed = _Landing()
    orn.sample(spy, orn.ILVR(landed, y, 2, start=0.5), n=2, steps=6)
    orn.sample(spy, orn.ILVR(landed, y, 2, start=1e-9, stop=1e-9), n=2, steps=6)
    assert landed.landed == [None, "mine"]  # what the constraint moved the state off is no memory to land by
    stopped = orn.sample(spy, orn.ILVR(orn.Ancestral(), y, 2, stop=0.3), n=2, steps=6).x
    assert 1e-3 < (orn.BlockAverage(2)(stopped) - orn.BlockAverage(2)(y)).abs().max() < 3


class _Remembering(orn.Ancestral):
    """Ancestral steps that note what memory they are given."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "got", [])

    def step(self, denoiser, x, t, s, memory, rng):
        self.got.append(memory)
        return super().step(denoiser, x, t, s, None, rng)[0], "mine"


class _Landing(_Remembering):
    """The same, which notes what it lands with."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "landed", [])

    def land(self, denoiser, x, t, memory, rng):
        self.landed.append(memory)
        return denoiser(x, t).x0


Y = torch.zeros(1, 1, 8, 8)


def test_bad_constraints_are_refused():
    check_refusal(lambda: orn.ILVR(orn.Ancestral(), Y, 3), "factor=3 for 8 x 8", "1, 2, 4, 8")
    check_refusal(lambda: orn.ILVR(orn.Langevin(), Y, 2), "Langevin", "PredictorCorrector")
    check_refusal(lambda: orn.ILVR(orn.Ancestral(), Y, 2, resamplings=0), "resamplings=0", "at least 1")
    check_refusal(lambda: orn.ILVR(orn.Ancestral(), Y, 2, start=0.2, stop=0.5), "start=0.2, stop=0.5", "start >= stop")
    check_refusal(lambda: orn.ILVR(orn.Ancestral(), Y * math.nan, 2), "NaN", "finite")
    check_refusal(lambda: orn.Inpainting(orn.Ancestral(), Y, torch.ones(5) > 0), "(5,)", "broadcasts")
    denoiser = exact.Normal(orn.Gaussian(SCHEDULES["linear"]), torch.zeros(1, 4, 4), 1.0)
    check_refusal(lambda: orn.sample(denoiser, orn.ILVR(orn.Ancestral(), Y, 2), n=2), "(1, 1, 8, 8)", "as the samples")
    missing = torch.ones(4, 4, dtype=torch.bool)
    rising = torch.tensor([0.1, 0.5])
    inside = orn.Inpainting(orn.Multistep(), Y[..., :4, :4], missing)
    check_refusal(lambda: orn.sample(denoiser, inside, n=2, grid=rising), "rising grid", "deterministic")
    check_refusal(
        lambda: inside.step(denoiser, torch.zeros(1, 1, 4, 4), 0.3, 0.5, None, orn.Noise(0, 1)), "s = 0.5", "falling"
    )
