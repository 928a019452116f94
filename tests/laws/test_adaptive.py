"""RK45 as a sampler: exact normal flows within its tolerances, scipy's, every example as if alone, what it refuses."""

import math

import numpy as np
import pytest
import torch
from helpers import SCHEDULES, level, numbers
from scipy.integrate import solve_ivp
from scipy.stats import norm

import ornstein as orn
from ornstein.errors import ConfigurationError, NumericalError

MEAN, VARIANCE = torch.tensor([0.6, -0.3]).double(), torch.tensor([0.25, 1.2]).double()


def normal(name):
    return orn.exact.Normal(orn.Gaussian(SCHEDULES[name]), MEAN, VARIANCE)


def flow(name, x, t, s):
    """The probability-flow ODE of N(m, v): the standardised state stays."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(SCHEDULES[name], t), level(SCHEDULES[name], s)
    stretch = torch.sqrt((alpha_s**2 * VARIANCE + sigma_s**2) / (alpha_t**2 * VARIANCE + sigma_t**2))
    return alpha_s * MEAN + stretch * (x - alpha_t * MEAN)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
@pytest.mark.parametrize("name", SCHEDULES)
def test_normal_flows_within_the_tolerance_in_both_directions(name, tolerance):
    sampler, (t, s) = orn.RK45(tolerance, tolerance), (0.85, 0.1)
    x = numbers(5, 2) + 0.5
    sizes = [math.hypot(*level(SCHEDULES[name], r)) for r in (t, s)]
    down = orn.sample(normal(name), sampler, start=x, grid=torch.tensor([t, s]).double())
    assert float((down.x - flow(name, x, t, s)).abs().max()) < 50 * tolerance * max(sizes)
    up = orn.sample(normal(name), sampler, start=down.x, grid=torch.tensor([s, 0.4, t]).double())
    assert float((up.x - x).abs().max()) < 200 * tolerance * max(sizes) / min(1.0, sizes[1])
    if tolerance == 1e-4:
        assert down.calls < 40


@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "subvp", "edm", "table-linear"])
def test_two_times_are_a_whole_grid(name):
    """From the prior to the data: what is left is the last call's, x_0 at sigma_min, where sigma(0) > 0."""
    process, x = orn.Gaussian(SCHEDULES[name]), numbers(4, 2)
    found = orn.sample(normal(name), orn.RK45(1e-7, 1e-7), start=x * process.level(1.0).sigma)
    truth = flow(name, x * process.level(1.0).sigma, 1.0, 0.0)
    assert float((found.x - truth).abs().max()) < (1e-3 if process.level(0.0).sigma > 0 else 1e-5)
    loose = orn.sample(normal(name), orn.RK45(), start=x * process.level(1.0).sigma)
    assert loose.calls < found.calls
    assert float((loose.x - truth).abs().max()) < 0.02


ISSUE = ["linear", "ve", "subvp", "flow"]


@pytest.mark.parametrize("name", ISSUE)
def test_a_mixture_as_scipy_solves_it(name):
    process, (t, s) = orn.Gaussian(SCHEDULES[name]), (0.9, 0.1)
    denoiser = orn.exact.Mixture(process, torch.tensor([[-0.9], [0.7]], dtype=torch.float64), 0.05)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(process.schedule, t), level(process.schedule, s)
    x = torch.tensor([[-1.2], [0.1], [0.6]]).double() * math.hypot(alpha_t, sigma_t)

    def slope(log_r, y):
        r2 = np.exp(2 * log_r)
        log_share = -((y[:, None] - np.array([-0.9, 0.7])) ** 2) / 2 / (0.05 + r2)
        share = np.exp(log_share - log_share.max(1, keepdims=True))
        mean = (share * np.array([-0.9, 0.7])).sum(1) / share.sum(1)
        return y - (0.05 * y + r2 * mean) / (0.05 + r2)

    ends = [math.log(sigma_t / alpha_t), math.log(sigma_s / alpha_s)]
    truth = alpha_s * solve_ivp(slope, ends, x[:, 0].numpy() / alpha_t, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    check_order(denoiser, x, torch.tensor([t, s], dtype=torch.float64), torch.from_numpy(truth)[:, None])


@pytest.mark.parametrize("name", ISSUE)
def test_the_order_on_a_normal_law(name):
    x = numbers(1, 2)
    check_order(normal(name), x, torch.tensor([0.85, 0.1], dtype=torch.float64), flow(name, x, 0.85, 0.1))


def check_order(denoiser, x, grid, truth):
    """With tighter tolerances the error falls as the calls to the power -5, the order of the pair."""
    found = [orn.sample(denoiser, orn.RK45(tol, tol), start=x, grid=grid) for tol in (1e-5, 1e-9)]
    errors = [float((f.x - truth).abs().max()) for f in found]
    assert errors[1] < 1e-6
    assert math.log(errors[0] / errors[1]) / math.log(found[1].calls / found[0].calls) >= orn.RK45.order - 0.25


def test_the_first_step_from_sharp_data_is_short():
    """Near data of two narrow components the field changes at once; a long first step sees nothing of it, and errs by .0065."""
    process, means = orn.Gaussian(orn.RectifiedFlow()), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double()
    denoiser, x = orn.exact.Mixture(process, means, 1e-4), means + 0.01 * numbers(2, 2)
    up = torch.tensor([0.0, 0.8], dtype=torch.float64)
    found, truth = (orn.sample(denoiser, orn.RK45(tol, tol), start=x, grid=up).x for tol in (1e-4, 1e-9))
    assert float((found - truth).abs().max()) < 1e-3


@pytest.mark.parametrize(
    "sampler", [orn.RK45(1e-7, 1e-7), orn.Multistep(4), orn.Heun(), orn.Multistep(3, corrector=True)]
)
@pytest.mark.parametrize("name", ["linear", "ve", "flow"])
def test_quantiles_are_kept_in_one_dimension(sampler, name):
    """Paper 002 eq. 52: paths do not cross, so each stays at its quantile: F_s(x_s) = F_t(x_t), the mixture's by scipy's erf."""
    process, means, variance = orn.Gaussian(SCHEDULES[name]), np.array([-0.9, 0.7]), 0.05
    denoiser = orn.exact.Mixture(process, torch.from_numpy(means)[:, None], variance)

    def quantile(x, t):
        alpha, sigma = level(process.schedule, t)
        return norm.cdf((x.numpy() - alpha * means) / math.sqrt(alpha**2 * variance + sigma**2)).mean(1)

    t, s = 0.9, 0.02
    x = numbers(12, 1) * math.hypot(*level(process.schedule, t))
    grid = torch.linspace(t, s, 2 if isinstance(sampler, orn.RK45) else 400, dtype=torch.float64)
    found = orn.sample(denoiser, sampler, start=x, grid=grid).x
    assert np.allclose(quantile(found, s), quantile(x, t), atol=2e-4)
    assert np.ptp(quantile(x, t)) > 0.5


class Turning:
    """A denoiser whose examples want steps of different sizes, by a condition that turns its x_0 faster or slower."""

    def __init__(self):
        self.process = orn.Gaussian(orn.LinearVP())

    def __call__(self, x_t, t, cond=None, keep=None):
        t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1).expand(len(x_t), 1)
        return self.process.estimate(x_t, t[:, 0], x0=torch.sin(cond[:, None] * t).expand_as(x_t).to(x_t))


def test_every_example_is_carried_as_if_alone_with_its_condition():
    start, speed = numbers(3, 2), torch.tensor([1.0, 40.0, 9.0]).double()
    together = orn.sample(Turning(), orn.RK45(1e-6, 1e-6), start=start, cond=speed)
    alone = [
        orn.sample(Turning(), orn.RK45(1e-6, 1e-6), start=start[i : i + 1], cond=speed[i : i + 1]) for i in range(3)
    ]
    assert torch.allclose(together.x, torch.cat([found.x for found in alone]), atol=1e-12)
    assert together.calls == max(found.calls for found in alone)
    assert min(found.calls for found in alone) < together.calls - 20


def test_what_it_refuses():
    denoiser = normal("linear")
    with pytest.raises(ConfigurationError, match="as its tolerances ask for"):
        orn.sample(denoiser, orn.RK45(), n=2, calls=20)
    for bad in (0.0, 1.0, -1e-3, math.nan):
        with pytest.raises(ConfigurationError, match="between 0 and 1"):
            orn.RK45(rtol=bad)

    class Jagged(type(denoiser)):
        def __call__(self, x_t, t, cond=None, keep=None):
            return self.process.estimate(x_t, t, x0=torch.sign(torch.sin(1e7 * x_t)))

    with pytest.raises(NumericalError, match=r"RK45.* from t = .* cannot meet its tolerances") as caught:
        orn.sample(Jagged(denoiser.process, MEAN, VARIANCE), orn.RK45(1e-9, 1e-9), n=2)
    assert caught.value.last.count == 0
    assert torch.isfinite(caught.value.last.x).all()
