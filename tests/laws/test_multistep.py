"""Exponential integrators: the averages against quadrature, steps that are exact for polynomials, landing, noise, ends."""

import math

import numpy as np
import pytest
import torch
from helpers import SCHEDULES, affine_step, level, numbers, root_of
from scipy.integrate import quad, solve_ivp
from scipy.interpolate import BarycentricInterpolator

import ornstein as orn
from ornstein import exact
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.processes import Normal as Base
from ornstein.samplers import RK4, RK45, Ancestral, Midpoint, Multistep, Singlestep, sample
from ornstein.samplers.exponential import moments, weights

RNG = Noise(0, 2)


@pytest.mark.parametrize("z", [-40.0, -7.0, -2.5, -1.0, -0.3, -1e-9, 0.0, 1e-5, 0.9, 3.0, 8.0, 30.0])
def test_moments_against_quadrature(z):
    truth = [quad(lambda u, k=k: math.exp(-z * u) * u**k, 0, 1, epsabs=0, epsrel=1e-12)[0] for k in range(5)]
    assert np.allclose(moments(z, 5), np.array(truth) / truth[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("z", [-3.0, 0.0, 0.7])
@pytest.mark.parametrize("nodes", [[0.0], [0.0, -0.4], [0.0, 0.5], [0.0, -1.3, -2.0], [1.0, 0.0, -0.8, -2.2]])
def test_weights_average_the_polynomial_through_the_nodes(nodes, z):
    values = np.array([0.3, -1.1, 2.0, 0.7])[: len(nodes)]
    through = BarycentricInterpolator(np.array(nodes), values)
    whole = quad(lambda u: math.exp(z * (1 - u)), 0, 1)[0]
    truth = quad(lambda u: math.exp(z * (1 - u)) * float(through(u)), 0, 1, epsrel=1e-12)[0] / whole
    assert float(np.dot(weights(nodes, z), values)) == pytest.approx(truth, rel=1e-10)


def test_adams_and_dpm_solver_2m_are_the_plain_averages():
    assert np.allclose(weights([0, -1, -2, -3]), np.array([55, -59, 37, -9]) / 24)
    assert np.allclose(weights([1, 0, -1, -2]), np.array([9, 19, -5, 1]) / 24)  # Adams-Moulton
    r = 0.7  # of the last step's length to this one's
    assert np.allclose(weights([0, -r]), [1 + 1 / (2 * r), -1 / (2 * r)])


class Polynomial:
    """A denoiser whose reading is a polynomial in a variable of the level, whatever the state."""

    def __init__(self, schedule, prediction, variable, coefficients):
        self.process, self.prediction = orn.Gaussian(schedule), prediction
        self.variable, self.coefficients = variable, coefficients

    def at(self, t: float) -> float:
        l = float(self.process.schedule.log_snr(t)) / 2  # noqa: E741
        v = {"log_snr": l, "sigma": math.exp(-l if self.prediction == "eps" else l), "t": t}[self.variable]
        return float(np.polyval(self.coefficients, v))

    def __call__(self, x_t, t, cond=None, keep=None):
        return self.process.estimate(x_t, t, **{self.prediction: torch.full_like(x_t, self.at(t))})


@pytest.mark.parametrize("name", ["linear", "ve", "flow"])
@pytest.mark.parametrize("variable", ["log_snr", "sigma"])
@pytest.mark.parametrize("prediction", ["eps", "x0"])
@pytest.mark.parametrize("corrector", [False, True])
def test_polynomials_of_the_order_are_integrated_exactly(corrector, prediction, variable, name):
    """x / alpha = int eps d(sigma / alpha), x / sigma = int x_0 d(alpha / sigma); but for the first steps, of lower order."""
    schedule, coefficients = SCHEDULES[name], [0.02, -0.1, 0.3, 1.0]
    denoiser = Polynomial(schedule, prediction, variable, coefficients)
    sampler = Multistep(4, prediction, variable=variable, corrector=corrector)
    grid = torch.tensor([0.8, 0.75, 0.68, 0.6, 0.52, 0.45, 0.3], dtype=torch.float64)
    kept = sample(denoiser, sampler, start=torch.ones(1, 1, dtype=torch.float64), grid=grid, trajectory=1).trajectory
    x = {round(t, 6): float(v) for t, v in kept}
    for begin in (
        (0.52, 0.45) if corrector else (0.6, 0.52, 0.45)
    ):  # a corrector mends what the first steps left, by then
        end = max(t for t in x if t < begin)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = level(schedule, begin), level(schedule, end)

        def along(p, t=begin, s=end):
            """The reading where the ratio of the integral is p."""
            ratio = -2 * math.log(p) if prediction == "eps" else 2 * math.log(p)
            return denoiser.at(float(schedule.time_at(ratio)))

        if prediction == "eps":
            change = quad(along, sigma_t / alpha_t, sigma_s / alpha_s, epsrel=1e-11)[0]
            truth = alpha_s * (x[begin] / alpha_t + change)
        else:
            change = quad(along, alpha_t / sigma_t, alpha_s / sigma_s, epsrel=1e-11)[0]
            truth = sigma_s * (x[begin] / sigma_t + change)
        assert x[end] == pytest.approx(truth, rel=1e-7)


@pytest.mark.parametrize("variable", ["log_snr", "sigma"])
def test_landing_takes_eps_as_linear_in_sigma(variable):
    """On x = int eps d sigma from the last level to 0; of the x_0 it reads, and of a point of the data, exactly so."""
    process = orn.Gaussian(orn.GeometricVE(0.05, 10.0))
    grid = process.schedule.time_at(-2 * torch.log(torch.tensor([0.4, 0.3, 0.2, 0.1]).double()))
    grid = torch.cat([grid, torch.zeros(1)])  # where sigma is 0.05
    x, sampler = torch.tensor([[1.3]]).double(), Multistep(3, variable=variable)
    linear = Polynomial(process.schedule, "eps", "sigma", [0.7, 0.1])
    found = sample(linear, sampler, start=x, grid=grid, trajectory=1)
    (last, before), (end, after) = found.trajectory[-2:]
    assert (end, found.calls) == (0.0, 5)
    assert float(process.level(last).sigma) == pytest.approx(0.05)
    assert float(after) == pytest.approx(float(before) - 0.7 * 0.05**2 / 2 - 0.1 * 0.05, rel=1e-9)
    point = exact.Normal(process, torch.full((1,), 0.4, dtype=torch.float64), 0.0)
    assert float(sample(point, sampler, start=x, grid=grid).x) == pytest.approx(0.4, abs=1e-12)
    x0 = sample(linear, Multistep(3, "x0"), start=x, grid=grid, trajectory=1)
    assert float(x0.x) == pytest.approx(float(x0.trajectory[-2][1]) - 0.05 * (0.7 * 0.05 + 0.1), rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "edm", "flow", "table-linear"])
@pytest.mark.parametrize("noise", [0.4, 1.0, 1.7])
def test_the_reverse_sde_of_a_constant_estimate_is_solved_exactly(noise, name):
    """In y = x / alpha, r = sigma / alpha: dy = (1 + noise^2) (y - x_0) / r dr + noise sqrt(2 r) dw; by scipy in -log r."""
    schedule, rate = SCHEDULES[name], 1 + noise**2
    denoiser, (t, s) = Polynomial(schedule, "x0", "t", [0.8]), (0.6, 0.35)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(schedule, t), level(schedule, s)

    def slope(l, state):  # noqa: E741
        mean, variance, gain = state
        return [rate * (0.8 - mean), -2 * rate * variance + 2 * noise**2 * math.exp(-2 * l), -rate * gain]

    ends = [math.log(alpha_t / sigma_t), math.log(alpha_s / sigma_s)]
    mean, variance, gain = solve_ivp(slope, ends, [0.0, 0.0, 1.0], rtol=1e-11, atol=1e-13).y[:, -1]
    a, b, c = affine_step(Multistep(2, "x0", noise=noise), denoiser, t, s)
    assert a == pytest.approx(alpha_s / alpha_t * gain, rel=1e-8)
    assert b == pytest.approx(alpha_s * math.sqrt(variance), rel=1e-8)
    assert c == pytest.approx(alpha_s * mean, rel=1e-8)


def test_noise_of_one_is_ddpm_for_a_constant_estimate():
    denoiser = Polynomial(orn.LinearVP(), "x0", "t", [0.8])
    ours, ddpm = (affine_step(s, denoiser, 0.6, 0.35) for s in (Multistep(1, "x0", noise=1.0), Ancestral(1.0)))
    assert np.allclose(ours, ddpm, rtol=1e-9)


def test_first_steps_of_all_kinds_are_ddim():
    for name in SCHEDULES:
        denoiser = exact.Normal(orn.Gaussian(SCHEDULES[name]), torch.full((1,), 0.6, dtype=torch.float64), 0.25)
        ddim = affine_step(Ancestral(0.0), denoiser, 0.7, 0.45)
        for sampler in (
            Multistep(1),
            Multistep(3),
            Multistep(4, "x0"),
            Multistep(2, variable="t"),
            Multistep(2, corrector=True),
        ):
            assert np.allclose(affine_step(sampler, denoiser, 0.7, 0.45), ddim, rtol=1e-9), (name, sampler)


def test_a_level_visited_twice_gives_one_reading():
    denoiser = exact.Normal(orn.Gaussian(orn.LinearVP()), torch.full((1,), 0.6, dtype=torch.float64), 0.25)
    x, memory = numbers(2, 1), None
    for t, s in ((0.8, 0.6), (0.6, 0.5), (0.6, 0.5)):
        moved, memory = Multistep(3).step(denoiser, x, t, s, memory, RNG)
    assert torch.isfinite(moved).all()


@pytest.mark.parametrize(
    "sampler",
    [
        Multistep(3),
        Multistep(3, "x0"),
        Multistep(3, corrector=True),
        Multistep(2, "x0", corrector=True),
        Singlestep(2),
        Singlestep(3, "eps"),
        RK4(),
        RK45(1e-9, 1e-9),
        Midpoint(),
    ],
)
def test_a_base_is_the_standard_process_in_whitened_coordinates(sampler):
    base = Base(torch.tensor([0.4, -2.0]).double(), torch.tensor([[1.5, 0.6], [0.6, 0.7]]).double())
    root = root_of(base.matrix())
    plain, based = orn.Gaussian(orn.LinearVP()), orn.Gaussian(orn.LinearVP(), base)
    mean, covariance = torch.tensor([1.0, 0.2]).double(), torch.tensor([[0.5, 0.1], [0.1, 0.3]]).double()
    one = exact.Normal(plain, mean, covariance)
    two = exact.Normal(based, base.mean + root @ mean, root @ covariance @ root.T)
    y = numbers(4, 2, seed=3)
    a, b = (
        sample(d, sampler, start=x, **({} if isinstance(sampler, RK45) else {"steps": 6})).x
        for d, x in ((one, y), (two, base.mean + y @ root.T))
    )
    assert torch.allclose(b, base.mean + a @ root.T, rtol=1e-6, atol=1e-7)


BAD = {
    "readings": (lambda: Multistep(5), "readings=5, expected 1 to 4"),
    "prediction": (lambda: Multistep(2, "v"), "prediction='v', expected eps or x0"),
    "variable": (lambda: Multistep(2, variable="sigm"), "did you mean 'sigma'"),
    "noise": (lambda: Multistep(2, "x0", noise=-1.0), "noise=-1.0"),
    "noise of eps": (lambda: Multistep(2, noise=1.0), "expected 'x0' without a corrector"),
    "order": (lambda: Singlestep(4), "order=4, expected 2 or 3"),
    "single prediction": (lambda: Singlestep(2, "score"), "prediction='score'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes_are_refused(case):
    make, message = BAD[case]
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize("name", ["linear", "flow", "edm"])
@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_the_corrector_is_predict_read_correct(prediction, name):
    """Written out, as UniPC prints it: step by the readings so far, read there, make the step again with that reading among them,
    go on from the mended state. On a grid so coarse that every factor shows."""
    process = orn.Gaussian(SCHEDULES[name])
    denoiser = exact.Mixture(process, torch.tensor([[-0.9], [0.7]]).double(), 0.1)
    grid = [0.9, 0.6, 0.35, 0.2]
    x = start = numbers(5, 1) * float(process.level(0.9).sigma) + 0.1
    places, values = [], []

    def moved(x, t, s, values, places):
        (alpha_t, sigma_t, log_t), (alpha_s, sigma_s, log_s) = process.level(t), process.level(s)
        h = (log_s - log_t) / 2
        nodes = [(place - log_t / 2) / h for place in places]
        mean = sum(w * v for w, v in zip(weights(nodes, h if prediction == "eps" else -h), values, strict=True))
        if prediction == "eps":
            return alpha_s / alpha_t * x + (sigma_s - sigma_t * alpha_s / alpha_t) * mean
        return sigma_s / sigma_t * x + (alpha_s - alpha_t * sigma_s / sigma_t) * mean

    predicted = x
    for i, t in enumerate(grid):
        reading, place = denoiser(predicted, t).reading(prediction), float(process.level(t).log_snr) / 2
        if i:
            x = moved(x, grid[i - 1], t, [reading, *values[:2]], [place, *places[:2]])
        values, places = [reading, *values], [place, *places]
        if t != grid[-1]:
            predicted = moved(x, t, grid[i + 1], values[:2], places[:2])
    found = sample(
        denoiser,
        Multistep(2, prediction, corrector=True),
        start=start,
        grid=torch.tensor(grid, dtype=torch.float64),
        trajectory=1,
    )
    assert torch.allclose(found.x, predicted, rtol=1e-9, atol=1e-10)
