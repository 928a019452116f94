"""Laws of training times by their distributions: a law maps u to its quantile, so even u give even quantiles."""

import math

import numpy as np
import pytest
import torch
from helpers import SCHEDULES
from scipy import stats

import ornstein as orn
from ornstein import exact
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.objectives import (
    LogNormalSigma,
    Objective,
    Stratified,
    UniformLogSNR,
    UniformSteps,
    UniformTime,
)

NODES, RULE = np.polynomial.legendre.leggauss(32)
U = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_laws_by_their_distribution(name):
    process = orn.Gaussian(SCHEDULES[name])
    first = process.schedule.t_min
    uniform = UniformTime()(process, U).numpy()
    assert stats.kstest(uniform, stats.uniform(first, 1 - first).cdf).statistic < 1 / 4000
    drawn = LogNormalSigma(-0.7, 0.4)(process, U)
    log_sigma = -process.schedule.log_snr(drawn).numpy() / 2
    ends = -process.schedule.log_snr(torch.tensor([first, 1.0]).double()).numpy() / 2
    inside = (log_sigma > ends[0] + 1e-6) & (log_sigma < ends[1] - 1e-6)
    truth = stats.norm(-0.7, 0.4).ppf(U.numpy())
    assert inside.mean() > 0.9
    assert np.allclose(log_sigma[inside], truth[inside], atol=1e-6)


def test_uniform_steps():
    process = orn.Gaussian(orn.TableSchedule.linear(1000))
    steps = UniformSteps(8)(process, U) * 8
    values, counts = np.unique(steps.numpy(), return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert counts.tolist() == [500] * 8
    assert UniformSteps(8)(process, torch.tensor([0.0, 1.0]).double()).tolist() == [1 / 8, 1]


def test_edms_law_in_training_noise():
    """EDM's ln sigma ~ N(-1.2, 1.2^2), through the objective itself."""
    denoiser = exact.Normal(orn.Gaussian(orn.EDM()), torch.zeros(1), 0.25)
    t = Objective(LogNormalSigma())(denoiser, torch.zeros(4096, 1), None, Noise(1, 4096)).t
    log_sigma = denoiser.process.schedule.log_sigma(t).numpy()
    assert stats.kstest(log_sigma, stats.norm(-1.2, 1.2).cdf).pvalue > 0.01


def test_stratified_is_unbiased_and_steadier():
    process = orn.Gaussian(orn.LinearVP())
    u = torch.rand(400, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(law):  # a batch mean of something steep in t, 400 times
        return torch.stack([normal(law(process, row)) for row in u])

    def normal(t):
        return torch.exp(3 * t).mean()

    truth = (math.exp(3) - 1) / 3
    plain, strata = value(UniformTime()), value(Stratified())
    assert float(plain.mean()) == pytest.approx(truth, abs=5 * float(plain.std()) / 20)
    assert float(strata.mean()) == pytest.approx(truth, abs=5 * float(strata.std()) / 20)
    assert float(strata.std()) < float(plain.std()) / 10  # 1 / n^1.5 against 1 / n^0.5
    one = Stratified()(process, u[0])
    assert ((one * 32).floor() == torch.arange(32)).all()
    both = Stratified(LogNormalSigma())(process, u[0])
    assert (both.diff() > 0).all()


def ends(process) -> np.ndarray:
    """log(sigma / alpha) at both ends of a schedule."""
    return -process.schedule.log_snr(torch.tensor([process.schedule.t_min, 1.0]).double()).numpy() / 2


@pytest.mark.parametrize("name", SCHEDULES)
def test_uniform_log_snr_by_its_distribution(name):
    process = orn.Gaussian(SCHEDULES[name])
    for low, high in ((0.02, 20.0), (1e-4, 1e4)):
        first, last = np.clip(np.log([low, high]), *ends(process))
        got = -process.schedule.log_snr(UniformLogSNR(low, high)(process, U[::200])).numpy() / 2
        assert np.allclose(got, first + (last - first) * U[::200].numpy(), atol=1e-6)


LAWS = (UniformTime(), Stratified(), UniformLogSNR(), UniformLogSNR(0.1, 2.0), LogNormalSigma(-0.7, 0.4))


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_density_in_log_snr_is_that_of_the_times_drawn(name, law):
    """Between any two quantiles of the times lies the same mass of the density, by quadrature over log-SNR."""
    process = orn.Gaussian(SCHEDULES[name])
    schedule, plain = process.schedule, getattr(law, "law", law)
    for low, high in ((0.1, 0.3), (0.3, 0.6), (0.6, 0.95)):
        t = plain(process, torch.tensor([low, high], dtype=torch.float64))
        first, last = schedule.log_snr(t).tolist()
        lambdas = first + (last - first) / 2 * torch.from_numpy(NODES + 1)
        mass = (first - last) / 2 * law.density(process, schedule.time_at(lambdas)) @ torch.from_numpy(RULE)
        assert float(mass) == pytest.approx(high - low, rel=1e-3)


def test_the_density_beyond_the_schedule_is_in_its_ends():
    """Where a level is moved to an end there is a point of mass, not a density: its weight in an integral is 0."""
    process, law = orn.Gaussian(orn.EDM(0.1, 1.0)), LogNormalSigma(0.0, 2.0)
    t = law(process, U)
    outside = torch.isinf(law.density(process, t)).double().mean()
    assert float(outside) == pytest.approx(1 - np.diff(stats.norm(0, 2).cdf(np.log([0.1, 1.0])))[0], abs=1e-3)


def test_ranges_that_do_not_fit_are_refused():
    for low, high in ((0.0, 1.0), (2.0, 1.0), (1.0, math.inf)):
        with pytest.raises(ConfigurationError, match="expected 0 < sigma_min < sigma_max"):
            UniformLogSNR(low, high)
    with pytest.raises(ConfigurationError, match=r"runs from 0\.002 to 80"):
        UniformLogSNR(100.0, 200.0)(orn.Gaussian(orn.EDM()), U)
