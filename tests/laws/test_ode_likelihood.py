"""Likelihoods by the probability-flow ODE against closed forms, on every schedule, shape and base; and encoding."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import BASES, SCHEDULES, level, numbers, order, spd
from scipy.integrate import quad
from scipy.stats import norm
from scipy.stats import t as student

import ornstein as orn
from ornstein import exact
from ornstein.curve import Curve
from ornstein.data import Scaling
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigurationError, DataError, NumericalError
from ornstein.integrate import DORMAND_PRINCE, FixedSteps, RungeKutta
from ornstein.likelihood.encoding import decode, encode
from ornstein.likelihood.ode import Dequantise, log_likelihood
from ornstein.likelihood.trace import Exact, Hutchinson, divergence
from ornstein.noise import Noise

SHAPES = [(2,), (16,), (1, 8, 8)]
TIGHT = RungeKutta(1e-6, 1e-6)
ISSUE = ["linear", "cosine", "ve", "flow"]


def normal(process, shape, seed=1):
    """Data of a full covariance."""
    return exact.Normal(process, 0.5 * numbers(*shape, seed=seed), 0.4 * spd(math.prod(shape), seed))


def mixture(process, shape):
    means, variances = 0.5 * numbers(3, *shape, seed=4), 0.1 + 0.2 * numbers(3, *shape, seed=5) ** 2
    return exact.Mixture(process, means, variances, torch.tensor([0.5, 0.2, 0.3]))


def at_the_end(denoiser):
    return lambda x: denoiser.log_density(x, 1.0)


def at_the_data(denoiser, x):
    """log-density at the schedule's first level, in the units of x_0: where alpha is not 1 there, x_t = alpha x_0 + ..."""
    process = denoiser.process
    t, mu = process.schedule.t_min, 0.0 if process.base is None else process.base.mean
    alpha = level(process.schedule, t)[0]
    return denoiser.log_density(mu + alpha * (x - mu), t) + x[0].numel() * math.log(alpha)


def drawn(denoiser, n, seed=0):
    """Examples such as the data are."""
    noise = numbers(n, *denoiser.shape, seed=seed)
    if isinstance(denoiser, exact.Normal):
        return denoiser.mean.view(denoiser.shape) + 0.6 * noise
    k = torch.arange(n) % len(denoiser.means)
    return (denoiser.means[k] + denoiser.variances[k].sqrt() * noise.flatten(1)).view_as(noise)


class AtOnce(Exact):
    """The same sum by one batched pass back, for speed in many dimensions (`Exact` is held against the Jacobian below)."""

    def products(self, value, z, probes):
        flat, eye = value.flatten(1), torch.eye(z[0].numel(), dtype=z.dtype)
        directions = eye[:, None].expand(-1, len(z), -1)
        rows = torch.autograd.grad(flat, z, directions, is_grads_batched=True)[0].flatten(2)
        return (rows * eye[:, None]).sum((0, 2))[:, None]


@pytest.mark.parametrize("data", [normal, mixture])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ISSUE)
def test_closed_forms(name, shape, data):
    denoiser = data(orn.Gaussian(SCHEDULES[name]), shape)
    x, trace = drawn(denoiser, 2), Exact() if shape == (2,) else AtOnce()
    found = log_likelihood(denoiser, x, trace=trace, solver=TIGHT, terminal=at_the_end(denoiser))
    assert float((found.values - at_the_data(denoiser, x)).abs().max()) < 1e-4
    assert found.values.dtype == torch.float64
    assert (found.dims, found.levels, found.mismatch, found.probe_error) == (math.prod(shape), None, None, None)
    assert found.sigma == pytest.approx(level(denoiser.process.schedule, 0.0)[1])


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - set(ISSUE)))
def test_every_other_schedule_is_the_same_curve(name):
    denoiser, rough = (
        mixture(orn.Gaussian(SCHEDULES[name]), (2,)),
        name == "sde",
    )  # whose levels are quadratures, slow ones
    x = drawn(denoiser, 1)
    solver = RungeKutta(1e-4, 1e-4) if rough else RungeKutta()
    found = log_likelihood(denoiser, x, solver=solver, terminal=at_the_end(denoiser))
    assert float((found.values - at_the_data(denoiser, x)).abs().max()) < (1e-3 if rough else 1e-4)


def test_what_changes_with_the_logarithm_of_the_level():
    """dz/dtheta = sin(log theta) z, from theta_0 = 1e-4 on: a long first step would see none of it, and take it for 0."""
    process, dims = orn.Gaussian(orn.LinearVP()), 20

    class Waves:
        def __init__(self):
            self.process = process

        def __call__(self, x_t, t, cond=None, keep=None):
            alpha, sigma, _ = process.level(t, x_t)
            slope = torch.sin(torch.log(torch.atan2(sigma, alpha))) * x_t / (alpha**2 + sigma**2).sqrt()
            return process.estimate(x_t, t, edm=-slope)

    x, (alpha, sigma) = numbers(2, dims), level(process.schedule, 1.0)
    integral = [s * (math.sin(math.log(s)) - math.cos(math.log(s))) / 2 for s in (1e-4, math.atan2(sigma, alpha))]
    stretch = math.log(math.hypot(alpha, sigma)) + integral[1] - integral[0]
    truth = torch.distributions.Normal(0.0, sigma).log_prob(x * math.exp(stretch)).sum(1) + dims * stretch
    found = log_likelihood(Waves(), x, trace=Exact())
    assert torch.allclose(found.values, truth, atol=1e-3)


@pytest.mark.parametrize("name", ["linear", "ve", "table-cosine"])
@pytest.mark.parametrize("base", ["diagonal", "full"])
def test_bases(base, name):
    denoiser = normal(orn.Gaussian(SCHEDULES[name], BASES[base]), (3,))
    x = drawn(denoiser, 3)
    found = log_likelihood(denoiser, x, terminal=at_the_end(denoiser))
    assert float((found.values - at_the_data(denoiser, x)).abs().max()) < 1e-4


class Wrapped:
    """A denoiser of another sigma_data, saying what it says in the reading and scale of `kind`."""

    def __init__(self, inner, sigma_data, kind="x0", own=None):
        self.inner, self.process, self.sigma_data, self.kind, self.own = inner, inner.process, sigma_data, kind, own

    def __call__(self, x_t, t, cond=None, keep=None):
        found = self.process.estimate(x_t, t, x0=self.inner(x_t, t).x0, sigma_data=self.own or self.sigma_data)
        sigma_data = {"sigma_data": found.sigma_data} if self.kind == "edm" else {}
        return self.process.estimate(x_t, t, **{self.kind: found.reading(self.kind)}, **sigma_data)


@pytest.mark.parametrize("kind", ["x0", "v", "edm", "edm of another scale"])
def test_sigma_data_changes_the_path_and_not_the_figure(kind):
    inner = mixture(orn.Gaussian(SCHEDULES["cosine"]), (2,))
    denoiser = Wrapped(inner, 0.5, kind.split()[0], 0.8 if "scale" in kind else None)
    x = drawn(inner, 3)
    found = log_likelihood(denoiser, x, terminal=at_the_end(inner))
    assert Curve.of(denoiser).sigma_data == 0.5
    assert float((found.values - at_the_data(inner, x)).abs().max()) < 1e-4


def test_the_slope_is_the_derivative_of_the_flow():
    """dz/dtheta against differences of the closed-form flow of normal data, which keeps (x_t - alpha m) / std_t."""
    schedule, mean, variance = orn.CosineVP(), 0.6, 0.25
    process = orn.Gaussian(schedule)
    curve = Curve.of(Wrapped(exact.Normal(process, torch.full((1,), mean).double(), variance), 0.7))

    def z(theta):
        t = float(schedule.time_at(-2 * math.log(0.7 * math.tan(theta))))
        alpha, sigma = level(schedule, t)
        x_t = alpha * mean + 1.3 * math.sqrt(alpha**2 * variance + sigma**2)
        return x_t / math.hypot(0.7 * alpha, sigma)

    for theta in (0.02, 0.5, 1.2, 1.55):
        at = torch.tensor([theta], dtype=torch.float64)
        slope = float(curve.slope(at, torch.tensor([[z(theta)]], dtype=torch.float64), None))
        assert slope == pytest.approx((z(theta + 1e-5) - z(theta - 1e-5)) / 2e-5, abs=1e-7)


# --- networks


class Linear(torch.nn.Module):
    """The reading `kind` of the exact denoiser of N(0, 0.25), whose estimates are multiples of the state."""

    def __init__(self, process, kind, sigma_data=None):
        super().__init__()
        self.process, self.kind, self.sigma_data = process, kind, sigma_data or 1.0
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, seen, time, cond=None, keep=None):
        schedule = self.process.schedule
        t = schedule.time_at(-8 * time.double()) if self.kind == "edm" else time.double() / 1000
        t = t.clamp(schedule.t_min, 1)
        alpha, sigma = (c.reshape(-1, 1) for c in (schedule.alpha(t), schedule.sigma(t)))
        x = seen.double() * (((alpha * self.sigma_data) ** 2 + sigma**2).sqrt() if self.kind == "edm" else 1)
        x0 = alpha * 0.25 / (0.25 * alpha**2 + sigma**2) * x
        if self.kind == "energy":
            return self.one * (0.5 * x**2 / (0.25 * alpha**2 + sigma**2)).sum(1).float()
        estimate = self.process.estimate(x, t, x0=x0, sigma_data=self.sigma_data)
        return (self.one * estimate.reading(self.kind)).float()


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score", "velocity", "edm", "energy"])
def test_networks_of_every_parametrisation(kind):
    process = orn.Gaussian(orn.LinearVP(0.5, 12.0))
    sigma_data = 0.5 if kind == "edm" else None
    denoiser = Denoiser(Linear(process, kind, sigma_data), process, kind, sigma_data=sigma_data).eval()
    x = numbers(4, 3, dtype=torch.float32)
    truth = torch.distributions.Normal(0.0, 0.5).log_prob(x.double()).sum(1)
    variance = 0.25 * level(process.schedule, 1.0)[0] ** 2 + level(process.schedule, 1.0)[1] ** 2
    last = torch.distributions.Normal(0.0, variance**0.5)
    with torch.no_grad():
        found = log_likelihood(denoiser, x, terminal=lambda x: last.log_prob(x).sum(1))
    assert float((found.values - truth).abs().max()) < 5e-3
    assert denoiser.network.one.grad is None


COVARIANCE = torch.tensor([[0.4, 0.25], [0.25, 0.3]], dtype=torch.float64)


class Shifted:
    """N(cond, COVARIANCE) for every example its own condition."""

    def __init__(self, process):
        self.process, self.inner = process, exact.Normal(process, torch.zeros(2).double(), COVARIANCE)
        self.rows = 0

    def __call__(self, x_t, t, cond=None, keep=None):
        self.rows += len(x_t)
        alpha = self.process.level(t, x_t).alpha
        return self.process.estimate(x_t, t, x0=self.inner(x_t - alpha * cond, t).x0 + cond)


def test_conditions_batches_and_calls():
    denoiser, x, cond = Shifted(orn.Gaussian(orn.LinearVP())), numbers(5, 2, seed=3), numbers(5, 2, seed=4)
    x = cond + 0.5 * x
    plain = log_likelihood(denoiser, x, cond=cond)
    assert plain.calls == pytest.approx(denoiser.rows / 5)
    truth = torch.distributions.MultivariateNormal(cond, COVARIANCE).log_prob(x)
    assert float((plain.values - truth).abs().max()) < 0.05  # of the prior
    options = {"cond": cond, "trace": Hutchinson(2, "gaussian"), "seed": 5}
    found = log_likelihood(denoiser, x, **options)
    assert found.probe_error.min() > 1e-3
    part = log_likelihood(denoiser, x, batch_size=2, **options)
    assert torch.allclose(part.values, found.values, rtol=1e-12, atol=1e-12)
    assert torch.allclose(part.probe_error, found.probe_error, atol=1e-12)


def test_what_cannot_be_differentiated_is_refused():
    inner = normal(orn.Gaussian(orn.LinearVP()), (2,))

    class Cut:
        process = inner.process

        @torch.no_grad()
        def __call__(self, x_t, t, cond=None, keep=None):
            return inner(x_t, t)

    with pytest.raises(ConfigurationError, match="autograd cannot follow"):
        log_likelihood(Cut(), numbers(2, 2))


# --- the trace


def test_traces_against_the_jacobian():
    a = numbers(6, 6, seed=1)

    def field(z):
        return torch.tanh(z.flatten(1) @ a).view_as(z) * z.flatten(1).sum(1).view(-1, 1, 1)

    z = numbers(3, 2, 3, seed=2)
    jacobian = torch.autograd.functional.jacobian(field, z)
    blocks = torch.stack([jacobian[i, :, :, i].reshape(6, 6) for i in range(3)])
    value, products = divergence(field, z, Exact(), Exact().draw(z, Noise(0, 3)))
    assert torch.equal(value, field(z))
    assert torch.allclose(products[:, 0], blocks.diagonal(dim1=1, dim2=2).sum(1), atol=1e-12)
    for law in ("rademacher", "gaussian"):
        trace = Hutchinson(4, law)
        v = trace.draw(z, Noise(0, 3))
        assert v.shape == (3, 4, 2, 3)
        products = divergence(field, z, trace, v)[1]
        truth = torch.einsum("bki,bij,bkj->bk", v.flatten(2), blocks, v.flatten(2))
        assert torch.allclose(products, truth, atol=1e-12)
        many = Hutchinson(2000, law).draw(z, Noise(1, 3)).flatten(2)
        assert torch.allclose(many.transpose(1, 2) @ many / 2000, torch.eye(6).double().expand(3, 6, 6), atol=0.12)
        assert (many.abs() == 1).all() == (law == "rademacher")


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_the_interval_of_probes_covers(law):
    """The same x a hundred times, row i with the probes of example i: K = 16, Student t, full covariance."""
    denoiser = normal(orn.Gaussian(orn.CosineVP()), (8,))
    x = drawn(denoiser, 1)
    found = log_likelihood(
        denoiser, x.expand(100, 8), trace=Hutchinson(16, law), terminal=at_the_end(denoiser), batch_size=100
    )
    off = found.values - at_the_data(denoiser, x)
    assert ((off.abs() <= student.ppf(0.975, 15) * found.probe_error).sum()) >= 90
    assert abs(float(off.mean())) < 4 * float(off.std()) / 10
    assert 0.7 < float(found.probe_error.square().mean().sqrt() / off.std()) < 1.4
    assert float(found.probe_error.min()) > 1e-3


def test_one_sign_is_exact_on_a_multiple_of_the_identity_and_one_normal_is_not():
    process = orn.Gaussian(orn.LinearVP())
    denoiser = exact.Normal(process, torch.zeros(50).double(), 0.3)
    x = drawn(denoiser, 2)
    for law, right in (("rademacher", True), ("gaussian", False)):
        found = log_likelihood(denoiser, x, trace=Hutchinson(1, law), solver=TIGHT, terminal=at_the_end(denoiser))
        error = float((found.values - at_the_data(denoiser, x)).abs().max())
        assert (error < 1e-4) == right
        assert found.probe_error is None
    default = log_likelihood(denoiser, x, solver=TIGHT, terminal=at_the_end(denoiser))  # above 32 dimensions
    assert float((default.values - at_the_data(denoiser, x)).abs().max()) < 1e-4


# --- the law at t = 1


def test_what_the_prior_costs():
    """Averaged over the data the default is low by KL(p_1 || prior), closed form, which the mismatch bounds from above."""
    process, mean, variance = orn.Gaussian(orn.LinearVP(0.1, 4.0)), 1.5, 0.25
    denoiser = exact.Normal(process, torch.full((1,), mean).double(), variance)
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    x, weights = torch.from_numpy(mean + 0.5 * nodes)[:, None], torch.from_numpy(weights / weights.sum())
    found = log_likelihood(denoiser, x, solver=RungeKutta(1e-8, 1e-8))
    alpha, sigma = level(process.schedule, 1.0)
    ratio = (alpha**2 * variance + sigma**2) / sigma**2
    kl = 0.5 * ((alpha * mean / sigma) ** 2 + ratio - 1 - math.log(ratio))
    assert float(weights @ (denoiser.log_density(x, 0.0) - found.values)) == pytest.approx(kl, rel=1e-5)
    assert kl > 0.01
    assert torch.allclose(found.mismatch, 0.5 * (alpha * x[:, 0] / sigma) ** 2 + 0 * x[:, 0], rtol=1e-9)
    assert float(weights @ found.mismatch) > kl


# --- solvers


def test_the_figure_has_the_order_of_the_solver():
    denoiser = mixture(orn.Gaussian(orn.CosineVP()), (2,))
    x, errors = drawn(denoiser, 3), []
    for steps in (12, 24):
        found = log_likelihood(denoiser, x, solver=FixedSteps(steps), terminal=at_the_end(denoiser))
        errors.append(float((found.values - at_the_data(denoiser, x)).abs().max()))
        assert found.calls == 1 + 6 * steps
    assert order(errors) >= DORMAND_PRINCE.order - 0.25


def test_tighter_tolerances_give_smaller_errors():
    denoiser = mixture(orn.Gaussian(SCHEDULES["edm"]), (2,))
    x, errors, calls = drawn(denoiser, 3), [], []
    for tolerance in (1e-3, 1e-5, 1e-8):
        solver = RungeKutta(tolerance, tolerance)
        found = log_likelihood(denoiser, x, solver=solver, terminal=at_the_end(denoiser))
        errors.append(float((found.values - at_the_data(denoiser, x)).abs().max()))
        calls.append(found.calls)
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-6
    assert calls == sorted(calls)


# --- raw data


class Raw:
    """Stands in for a loaded model: an exact denoiser in model units, and a scaling."""

    def __init__(self, denoiser, scaling):
        self.denoiser, self.scaling, self.process, self.shape = denoiser, scaling, denoiser.process, scaling.shape

    def __call__(self, x_t, t, cond=None, keep=None):
        return self.denoiser(x_t, t, cond, keep)


LEVELS = Scaling((1,), "plain", (2.0,), (0.5,), 5, "uint8", 0.7)
PHYSICAL = Scaling((2,), "plain", (3.0, -1.0), (0.5, 4.0), None, "float64", 1.0)


def quantised(mean=0.1, std=0.25, schedule=None):
    process = orn.Gaussian(schedule or orn.LinearVP())
    return Raw(exact.Normal(process, torch.full((1,), mean).double(), std**2), LEVELS)


def wide():
    process = orn.Gaussian(orn.LinearVP())
    return Raw(normal(process, (300,)), replace(LEVELS, shape=(300,), shift=(2.0,), scale=(0.5,)))


def test_continuous_raw_data_in_their_own_units():
    inner = normal(orn.Gaussian(orn.LinearVP()), (2,))
    raw = numbers(3, 2) / torch.tensor([0.5, 4.0]) + torch.tensor([3.0, -1.0])
    found = log_likelihood(Raw(inner, PHYSICAL), raw, terminal=at_the_end(inner), solver=RungeKutta())
    model = PHYSICAL.encode(raw)
    mean, covariance = inner.mean, 0.4 * spd(2, 1)
    scale = torch.tensor([0.5, 4.0]).double()
    truth = torch.distributions.MultivariateNormal(
        mean / scale + torch.tensor([3.0, -1.0]).double(), covariance / scale[:, None] / scale
    ).log_prob(raw)
    assert torch.allclose(found.values, truth, atol=1e-4)
    assert torch.allclose(found.values - PHYSICAL.log_det(), inner.log_density(model, 0.0), atol=1e-4)


def test_uniform_dequantisation_is_a_bound_that_tightening_raises():
    """Against log P of a level by the normal law's distribution function, and E log p(x + u) by quadrature."""
    model, k, n = quantised(), 3, 400
    raw = torch.full((n, 1), k, dtype=torch.uint8)
    low, high = (k - 0.5 - 2.0) * 0.5, (k + 0.5 - 2.0) * 0.5
    probability = math.log(norm.cdf(high, 0.1, 0.25) - norm.cdf(low, 0.1, 0.25))
    expected = quad(lambda z: norm.logpdf(z, 0.1, 0.25), low, high)[0] / 0.5 + math.log(0.5)
    options = {"terminal": at_the_end(model.denoiser), "batch_size": n, "sigma": 0.0}
    plain = log_likelihood(model, raw, **options)
    several = log_likelihood(model, raw, dequantise=Dequantise(4), **options)
    tight = log_likelihood(model, raw, dequantise=Dequantise(4, tighten=True), **options)
    assert plain.mean == pytest.approx(expected, abs=4 * plain.standard_error)
    assert several.mean == pytest.approx(expected, abs=4 * several.standard_error)
    assert several.standard_error == pytest.approx(plain.standard_error / 2, rel=0.15)
    assert several.mean + 6 * several.standard_error < tight.mean < probability
    assert probability - tight.mean < (probability - expected) / 2
    assert (plain.levels, plain.dims) == (5, 1)
    assert plain.bits_per_dim == pytest.approx(-plain.mean / math.log(2))
    assert several.calls == pytest.approx(4 * plain.calls, rel=0.1)


@pytest.mark.parametrize("sigma", [0.0, 0.1, None])
def test_draws_are_those_of_the_noise(sigma):
    """Both averages over draws, from the closed-form density at the same places in the bins, of the data with noise of sigma:
    by default half the width of a level, .25."""
    model, raw = quantised(), torch.tensor([[1], [2], [4]], dtype=torch.uint8)
    rng = Noise(9, 3)
    u = torch.stack([rng.uniform((3, 1), torch.float32) for _ in range(3)], 1).double()
    places = 0.5 * (raw.double()[:, None] + u - 0.5 - 2.0)
    level = 0.25 if sigma is None else sigma
    logs = torch.distributions.Normal(0.1, math.hypot(0.25, level)).log_prob(places)[:, :, 0] + math.log(0.5)
    for tighten, truth in ((False, logs.mean(1)), (True, logs.logsumexp(1) - math.log(3))):
        options = {
            "dequantise": Dequantise(3, tighten),
            "seed": 9,
            "terminal": at_the_end(model.denoiser),
            "sigma": sigma,
        }
        found = log_likelihood(model, raw, **options)
        assert torch.allclose(found.values, truth, atol=2e-3)
        assert found.sigma == pytest.approx(level, abs=0.011)  # 0: the schedule's own first level


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: log_likelihood(normal(VP, (2,)), numbers(2, 2), dequantise=Dequantise()), ConfigurationError, "continuous"),
        (lambda: log_likelihood(Raw(normal(VP, (2,)), PHYSICAL), numbers(2, 2), dequantise=Dequantise()),
         ConfigurationError, "continuous"),
        (lambda: log_likelihood(quantised(), LOW, dequantise=Dequantise(2, True), trace=Hutchinson()), ConfigurationError,
         "no bound"),
        (lambda: Dequantise(0), ConfigurationError, "draws=0"),
        (lambda: Hutchinson(0), ConfigurationError, "0 probes"),
        (lambda: Hutchinson(1, "uniform"), ConfigurationError, "rademacher or gaussian"),
        (lambda: log_likelihood(normal(VP, (300,)), numbers(2, 300), trace=Exact()), ConfigurationError,
         "300 passes back.*Exact\\(limit=300\\)"),
        (lambda: log_likelihood(quantised(), LOW + 4), DataError, "0 to 4"),
        (lambda: log_likelihood(quantised(), LOW + 0.5), DataError, "fractional"),
        (lambda: log_likelihood(normal(VP, (2,)), numbers(2, 3)), DataError, "shape"),
        (lambda: log_likelihood(normal(VP, (2,)), numbers(2, 2), cond=numbers(3, 1)), ConfigurationError, "3 rows of cond"),
        (lambda: log_likelihood(normal(orn.Gaussian(orn.GeometricVE(0.2, 50.0)), (2,)), numbers(2, 2)), ConfigurationError,
         "sigma / alpha = 0.2, is above a tenth.*sigma_min is at most 0.1"),
        (lambda: log_likelihood(quantised(schedule=orn.EDM(sigma_min=0.6)), LOW), ConfigurationError,
         "sigma / alpha = 0.6, is above the width of a level.*sigma_min is at most 0.5"),
        (lambda: log_likelihood(normal(VP, (2,)), numbers(2, 2), terminal=lambda x: x[:, 0] * math.nan), NumericalError,
         "terminal"),
        (lambda: log_likelihood(normal(VP, (2,)), numbers(2, 2), terminal=lambda x: x), ConfigurationError,
         r"terminal that returns \(2, 2\) for 2 examples"),
        (lambda: log_likelihood(normal(VP, (2,)), numbers(2, 2), sigma=math.nan), ConfigurationError, "sigma=nan"),
        (lambda: log_likelihood(normal(VP, (2,)), numbers(2, 2), sigma=3.0), ConfigurationError, "got sigma=3, expected at most"),
        (lambda: log_likelihood(wide(), torch.zeros(1, 300, dtype=torch.uint8), dequantise=Dequantise(2, tighten=True)),
         ConfigurationError, r"importance\) in 300 dimensions, .* or uniform dequantisation"),
    ],
)  # fmt: skip
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


VP = orn.Gaussian(orn.LinearVP())
LOW = torch.arange(3, dtype=torch.uint8)[:, None]


# --- encoding


@pytest.mark.parametrize("name", ["linear", "cosine", "ve", "table-linear"])
def test_latents_of_normal_data(name):
    """The flow of N(m, v) keeps the standardised state, from the first level to the last."""
    process, mean, variance = orn.Gaussian(SCHEDULES[name]), 0.6, 0.25
    denoiser = exact.Normal(process, torch.full((3,), mean).double(), variance)
    x = numbers(2, 3)
    (alpha_0, sigma_0), (alpha_1, sigma_1) = (level(process.schedule, t) for t in (process.schedule.t_min, 1.0))
    scale = math.sqrt((alpha_1**2 * variance + sigma_1**2) / (variance + (sigma_0 / alpha_0) ** 2))
    found = encode(denoiser, x)
    assert torch.allclose(found.x, alpha_1 * mean + scale * (x - mean), rtol=1e-4, atol=1e-4)
    assert found.round_trip is None
    assert torch.allclose(decode(denoiser, found.x).x, x, atol=1e-4)


def test_the_round_trip_falls_with_the_tolerance():
    denoiser = mixture(orn.Gaussian(orn.CosineVP()), (1, 2, 2))
    x = drawn(denoiser, 2)
    trips = [
        encode(denoiser, x, solver=RungeKutta(tolerance, tolerance), round_trip=True)
        for tolerance in (1e-3, 1e-5, 1e-7)
    ]
    errors = [float(trip.round_trip.max()) for trip in trips]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-6
    back = decode(denoiser, trips[1].x).x - x
    assert torch.allclose(back.square().mean((1, 2, 3)).sqrt(), trips[1].round_trip, rtol=1e-3)


def test_raw_data_return():
    model, raw = quantised(), torch.arange(5, dtype=torch.uint8)[:, None]
    latents = encode(model, raw)
    assert latents.x.dtype == torch.float32
    assert torch.equal(decode(model, latents.x).x, raw)
