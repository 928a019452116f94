"""Laws of training times by their distributions: a law maps u to its quantile, so even u give even quantiles."""

import math

import numpy as np
import pytest
import torch
from helpers import SCHEDULES
from scipy import stats

import ornstein as orn
from ornstein import exact
from ornstein.noise import Noise
from ornstein.objectives import (
    LogNormalSigma,
    Objective,
    Stratified,
    UniformSteps,
    UniformTime,
)

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
