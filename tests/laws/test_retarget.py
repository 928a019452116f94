"""A denoiser of one schedule under another: exact denoisers must become the exact denoisers of the other process."""

import itertools

import pytest
import torch
from helpers import SCHEDULES, numbers

import ornstein as orn
from ornstein import exact
from ornstein.denoisers import Retargeted
from ornstein.processes import Normal as Base

MEANS = numbers(3, 2, seed=4)


def mixture(process):
    return exact.Mixture(process, MEANS, 0.1)


def by_snr(schedule, log_snr):
    return schedule.time_at(torch.tensor(log_snr, dtype=torch.float64))


@pytest.mark.parametrize(
    ("old", "new"), [*list(itertools.permutations(["linear", "ve", "edm", "flow"], 2)), ("cosine", "table-linear")]
)
def test_exact_stays_exact(old, new):
    ours, theirs = orn.Gaussian(SCHEDULES[new]), orn.Gaussian(SCHEDULES[old])
    truth, moved = mixture(ours), Retargeted(mixture(theirs), ours)
    for log_snr in (6.0, 0.5, -3.0, -6.0):
        t = float(by_snr(ours.schedule, log_snr))
        x = float(ours.schedule.sigma(t)) * numbers(5, 2, seed=6) + float(ours.schedule.alpha(t)) * MEANS[0]
        for time in (t, torch.full((5,), t, dtype=torch.float64)):
            got, expected = moved(x, time), truth(x, time)
            assert got.process is ours
            for kind in ("x0", "eps", "score", "v"):
                assert torch.allclose(got.reading(kind), expected.reading(kind), rtol=1e-6, atol=1e-7), kind


def test_a_base_is_kept():
    base = Base(torch.tensor([0.5, -1.0]).double(), torch.tensor([0.4, 2.0]).double())
    ours, theirs = orn.Gaussian(orn.EDM(), base), orn.Gaussian(orn.LinearVP(), base)
    x, t = numbers(4, 2, seed=6), float(by_snr(ours.schedule, 0.3))
    got = Retargeted(mixture(theirs), ours)(x, t)
    assert torch.allclose(got.x0, mixture(ours)(x, t).x0, rtol=1e-7)


def test_beyond_the_old_range_the_nearest_level_is_asked():
    """A narrow VE inside EDM's range: at the noise end as at its last level, at the data end as at its first."""
    theirs, ours = orn.Gaussian(orn.GeometricVE(0.1, 5.0)), orn.Gaussian(orn.EDM())
    moved, old = Retargeted(mixture(theirs), ours), mixture(theirs)
    x = numbers(4, 2, seed=6)
    noisy = float(by_snr(ours.schedule, -2 * 3.5))  # sigma = e^3.5 = 33
    sigma = float(ours.schedule.sigma(noisy))
    assert torch.allclose(moved(x * sigma, noisy).x0, old(x * 5.0, 1.0).x0, rtol=1e-6)
    clean = float(by_snr(ours.schedule, 2 * 4.0))  # sigma = e^-4 = .018
    assert torch.allclose(moved(x, clean).x0, old(x, 0.0).x0, rtol=1e-6)


def test_a_trained_network_sees_its_own_schedule():
    """The network of a VP model, used under EDM, is fed the VP's times and states of unit size."""
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x, time):
            seen.append((x, time))
            return torch.zeros_like(x)

    theirs, ours = orn.Gaussian(orn.LinearVP()), orn.Gaussian(orn.EDM())
    moved = Retargeted(orn.Denoiser(Spy(), theirs, "eps"), ours)
    t, x = 0.6, numbers(2, 3, seed=1, dtype=torch.float32) * 10
    estimate = moved(x, t)
    sigma = float(ours.schedule.sigma(t))
    own_t = float(by_snr(theirs.schedule, float(ours.schedule.log_snr(t))))
    alpha, own_sigma = float(theirs.schedule.alpha(own_t)), float(theirs.schedule.sigma(own_t))
    assert own_sigma / alpha == pytest.approx(sigma, rel=1e-9)
    assert torch.allclose(seen[0][0], x * alpha, rtol=1e-6)
    assert torch.allclose(seen[0][1], torch.full((2,), 1000 * own_t), rtol=1e-6)
    assert torch.allclose(estimate.x0, x, rtol=1e-5)  # eps = 0: x_0 = x_VE


def test_samples_of_a_retargeted_model():
    ours, theirs = orn.Gaussian(orn.EDM()), orn.Gaussian(orn.LinearVP())
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.4]], dtype=torch.float64)
    mean = torch.zeros(2, dtype=torch.float64)
    direct = orn.sample(exact.Normal(ours, mean, covariance), n=4, steps=6, seed=1).x
    moved = orn.sample(Retargeted(exact.Normal(theirs, mean, covariance), ours), n=4, steps=6, seed=1).x
    assert torch.allclose(direct, moved, rtol=1e-4, atol=1e-5)
