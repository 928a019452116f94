"""Bounds as objectives: the sum over the chain and the weights in closed form, the variance's optimum, who gets gradients."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers import SCHEDULES, Fixed, numbers
from scipy.integrate import quad
from scipy.stats import norm

import ornstein as orn
from ornstein import exact
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.objectives import (
    VLB,
    DenoisingScoreMatching,
    ELBOWeighting,
    Hybrid,
    ImplicitScoreMatching,
    Importance,
    LikelihoodWeighting,
    LogNormalSigma,
    Objective,
    SlicedScoreMatching,
    Stratified,
    UniformLogSNR,
    UniformSteps,
    UniformTime,
)
from ornstein.variational import Bins

V = 0.25
NODES, RULE = np.polynomial.hermite_e.hermegauss(3)  # exact for what is quadratic in x_0 and in eps
PAIRS = torch.tensor([(math.sqrt(V) * a, b) for a in NODES for b in NODES], dtype=torch.float64)
WEIGHTS = torch.tensor([p * q for p in RULE for q in RULE], dtype=torch.float64) / RULE.sum() ** 2
BETAS = np.array([0.1, 0.2, 0.35, 0.5])
TOY = orn.Gaussian(orn.TableSchedule.from_betas(BETAS))


@dataclass(frozen=True)
class Step:
    """The law of one step of a chain."""

    step: int
    steps: int

    def __call__(self, process, u):
        return torch.full_like(u, self.step / self.steps)


class Learned:
    """A denoiser with given fractions, (b,), in place of learned ones."""

    def __init__(self, denoiser, fraction) -> None:
        self.denoiser, self.process, self.fraction = denoiser, denoiser.process, fraction

    def __call__(self, x_t, t, cond=None, keep=None):
        estimate = self.denoiser(x_t, t)
        fraction = torch.as_tensor(self.fraction, dtype=x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1))
        return replace(estimate, fraction=fraction.expand_as(x_t))


def chain_of(schedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """alpha_i^2 / alpha_{i-1}^2 and abar_i, i = 1 .. T, of a variance-preserving schedule."""
    abar = schedule.alpha(torch.arange(1, steps + 1).double() / steps).numpy() ** 2
    return abar / np.r_[1, abar[:-1]], abar


def bound_terms(schedule, steps: int) -> np.ndarray:
    """E L_{i-1} in nats, i = 1 .. T, for x_0 ~ N(0, V), the exact posterior mean and variance beta_i: case B26 by hand."""
    alpha, abar = chain_of(schedule, steps)
    before, beta = np.r_[1, abar[:-1]], 1 - alpha
    left = 1 / (alpha / beta + 1 / (before * V + 1 - before))  # Var(x_{i-1} | x_i)
    with np.errstate(divide="ignore"):
        terms = 0.5 * (np.log(beta / ((1 - before) / (1 - abar) * beta)) - 1 + left / beta)
    terms[0] = 0.5 * math.log(2 * math.pi * beta[0]) + 0.5 * left[0] / beta[0]
    return terms


def every_step(objective, denoiser, steps: int, shape=(1,)):
    """E of the loss and of its parts over x_0 ~ N(0, V), eps and the uniform steps; equal components."""
    u = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    x0, eps = (PAIRS[:, k].repeat(steps).reshape(-1, *[1] * len(shape)).expand(-1, *shape) for k in (0, 1))
    loss = objective(denoiser, x0, None, Fixed(eps, u=u.repeat_interleave(len(PAIRS))))
    mean = WEIGHTS.repeat(steps) / steps
    return float(loss.per_example @ mean), {k: float(v @ mean) for k, v in loss.parts.items()}


@pytest.mark.parametrize(("steps", "gap"), [(10, 0.0937), (100, 0.0108)])
@pytest.mark.parametrize("fraction", [None, 1.0])
def test_the_vlb_is_the_bound_of_the_chain(steps, gap, fraction):
    process = orn.Gaussian(orn.LinearVP())
    denoiser = exact.Normal(process, torch.zeros(1, 3).double(), V)
    denoiser = denoiser if fraction is None else Learned(denoiser, fraction)
    got, parts = every_step(VLB(UniformSteps(steps), fixed=1.0), denoiser, steps, (1, 3))
    truth = bound_terms(process.schedule, steps)
    assert got == pytest.approx(truth.sum(), rel=1e-9)  # nats per component: three equal ones have the terms of one
    assert parts["reconstruction"] == pytest.approx(truth[0], rel=1e-9)
    assert parts["diffusion"] == pytest.approx(truth[1:].sum(), rel=1e-9)
    last = chain_of(process.schedule, steps)[1][-1]
    prior = 0.5 * (-math.log(1 - last) - 1 + (1 - last) + last * V)
    entropy = 0.5 * math.log(2 * math.pi * math.e * V)
    assert got + prior - entropy == pytest.approx(gap, rel=0.03)  # B26


def test_the_terms_stand_at_the_levels_of_the_chain_where_the_data_end_is_noisy():
    """For VE: levels from sigma(0) up; L_0 decodes from sigma(0). KL by its own formula for one example."""
    process = orn.Gaussian(orn.GeometricVE(0.1, 10.0))
    denoiser = exact.Normal(process, torch.zeros(1).double(), V)
    sigmas = np.geomspace(0.1, 10, 3)
    x0, eps = 0.7, -0.4
    data, noise = torch.tensor([[x0]], dtype=torch.float64), torch.tensor([[eps]], dtype=torch.float64)
    got = [
        float(VLB(Step(i, 3), fixed=0.0)(denoiser, data, None, Fixed(noise, u=torch.ones(1))).per_example)
        for i in (1, 2, 3)
    ]
    error = [V / (V + s**2) * (x0 + s * eps) - x0 for s in sigmas]
    snr = 1 / sigmas**2
    truth = [0.5 * (snr[i - 1] - snr[i]) * error[i] ** 2 for i in (1, 2)]
    least = sigmas[0] * math.sqrt(1 - snr[1] / snr[0])
    truth = [-norm.logpdf(x0, x0 + error[0], least), *truth]
    assert got == pytest.approx([3 * v for v in truth], rel=1e-9)


def test_quantised_data_are_decoded_in_their_bins():
    denoiser = exact.Normal(TOY, torch.zeros(2).double(), V)
    x0, eps = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[0.3, -0.8]]).double()
    objective = VLB(Step(1, 4), Bins(levels=5, lowest=(-1.0,), width=(0.5,)), fixed=1.0)
    got = float(objective(denoiser, x0, None, Fixed(eps, u=torch.ones(1))).per_example)
    a, s = math.sqrt(0.9), math.sqrt(0.1)
    mean = V * a / (0.9 * V + 0.1) * (a * x0 + s * eps).numpy()[0]
    mass = norm.cdf([0.25, np.inf], mean, s) - norm.cdf([-0.25, 0.75], mean, s)
    assert got == pytest.approx(-4 * np.log(mass).sum() / 2, rel=1e-9)


# --- weights of the squared error


class Net(torch.nn.Module):
    """Predicts nonsense; twice as many channels where a variance is learned."""

    def __init__(self, seed: int = 0, copies: int = 1, dtype=torch.float64) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(numbers(copies, 3, seed=seed, dtype=dtype))

    def forward(self, x, time):
        time = torch.tanh(time.to(x) / 1000).reshape(-1, *[1] * (x.ndim - 1))
        return torch.cat([torch.sin(w[0] * x) + w[1] * time + w[2] for w in self.w], dim=1)


X0 = numbers(8, 2, 3, seed=1)
RNG = (7, 8)


@pytest.mark.parametrize("fixed", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("reading", ["eps", "x0", "score", "v"])
@pytest.mark.parametrize("name", ["linear", "toy", "flow"])
def test_elbo_weighting_is_the_vlb_less_what_no_network_changes(name, reading, fixed):
    process = TOY if name == "toy" else orn.Gaussian(SCHEDULES[name])
    if name == "flow" and reading in ("eps", "score"):
        with pytest.raises(ConfigurationError, match="expected reading 'x0' or 'v'"):
            ELBOWeighting(reading, fixed).at(process, torch.ones(1).double(), UniformSteps(4))
        return
    denoisers = [orn.Denoiser(Net(seed), process, "v") for seed in (1, 2)]
    times = Stratified(UniformSteps(4))
    whole = [VLB(times, fixed=fixed)(d, X0, None, Noise(*RNG)) for d in denoisers]
    squared = [Objective(times, ELBOWeighting(reading, fixed))(d, X0, None, Noise(*RNG)) for d in denoisers]
    assert set((4 * whole[0].t).tolist()) == {1.0, 2.0, 3.0, 4.0}
    differences = [(one.per_example - two.per_example).detach() for one, two in (whole, squared)]
    assert torch.allclose(*differences, rtol=1e-9)
    assert float(differences[0].abs().min()) > 1e-4


def test_elbo_weights_by_the_table_of_betas():
    """Paper 001 eq. 40 corrected: T b^2 / (2 s^2 alpha (1 - abar)) on eps, and the decoder's 1 / (2 s^2) on x_0."""
    abar, t = np.cumprod(1 - BETAS), torch.arange(1, 5).double() / 4
    tilde = BETAS[1:] * (1 - abar[:-1]) / (1 - abar[1:])
    for fixed, variance in ((0.0, tilde), (1.0, BETAS[1:])):
        got = ELBOWeighting("eps", fixed).at(TOY, t, UniformSteps(4)).numpy()
        first = (1 - abar[0]) / abar[0] / (2 * (tilde[0] if fixed == 0 else BETAS[0]))
        rest = BETAS[1:] ** 2 / (2 * variance * (1 - BETAS[1:]) * (1 - abar[1:]))
        assert np.allclose(got, 4 * np.r_[first, rest], rtol=1e-10)


def eps_error(schedule, t) -> torch.Tensor:
    """Var(eps | x_t) for x_0 ~ N(0, V): the error of the exact denoiser."""
    alpha2, sigma2 = schedule.alpha(t) ** 2, schedule.sigma(t) ** 2
    return alpha2 * V / (alpha2 * V + sigma2)


@pytest.mark.parametrize("name", ["ve", "edm", "table-linear", "linear", "flow"])
@pytest.mark.parametrize("law", [UniformTime(), UniformLogSNR(0.02, 20.0), LogNormalSigma(0.0, 3.0)], ids=str)
def test_likelihood_weighting_is_the_integral_over_log_snr_under_any_law(name, law):
    """E [w ||error||^2] = 1/2 integral e d lambda, and with t uniform 1/2 E [g^2 ||score error||^2]: lambda = g^2."""
    process = orn.Gaussian(SCHEDULES[name])
    schedule, first = process.schedule, process.schedule.t_min
    if name in ("linear", "flow") and not isinstance(law, UniformLogSNR):
        return  # an unbounded range of log-SNR: the integral itself is infinite
    n = 8000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    t = law(process, u)
    weights = LikelihoodWeighting().at(process, t, law)
    got = float((weights * eps_error(schedule, t)).mean())

    ends = schedule.time_at(-2 * torch.log(torch.tensor([0.02, 20.0], dtype=torch.float64)))
    low, high = ends.tolist() if isinstance(law, UniformLogSNR) else (first, 1.0)
    ends = -schedule.log_snr(torch.tensor([low, high], dtype=torch.float64)).numpy() / 2

    def of_log_sigma(log_sigma):  # d log_snr = 2 d log(sigma / alpha), and e is a function of that ratio
        return V / (V + math.exp(2 * log_sigma))

    assert got == pytest.approx(quad(of_log_sigma, *ends, limit=200)[0], rel=2e-3)
    if isinstance(law, UniformTime):
        for v in (0.2, 0.6):
            score = (
                float(LikelihoodWeighting().at(process, torch.tensor([v], dtype=torch.float64), law))
                / float(schedule.sigma(v)) ** -2
            )
            assert score == pytest.approx(float(schedule.g(v)) ** 2 / 2 * (1 - first), rel=1e-9)


def test_likelihood_weighting_weighs_the_error_of_eps():
    process = orn.Gaussian(orn.EDM())
    denoiser, times = orn.Denoiser(Net(), process, "edm", sigma_data=0.5), Stratified(UniformLogSNR())
    plain = Objective(times, orn.Simple("eps"))(denoiser, X0, None, Noise(*RNG)).per_example
    weighed = Objective(times, LikelihoodWeighting())(denoiser, X0, None, Noise(*RNG)).per_example
    assert torch.allclose(weighed, plain * math.log(80 / 0.002), rtol=1e-9)  # half the range of log-SNR


# --- the hybrid loss


def test_the_hybrid_loss_is_least_at_the_reverse_variance():
    """A17: data N(0, .25), beta (.1, .2, .35, .5), step 3: v = .4637, where the variance is Var(x_2 | x_3)."""
    denoiser, grid = exact.Normal(TOY, torch.zeros(1).double(), V), torch.linspace(0, 1, 2001).double()
    x0, eps = (PAIRS[:, k].repeat(len(grid))[:, None] for k in (0, 1))
    learned = Learned(denoiser, grid.repeat_interleave(len(PAIRS)))
    loss = Hybrid(times=Step(3, 4))(learned, x0, None, Fixed(eps, u=torch.ones(len(x0))))
    mean = loss.per_example.view(len(grid), -1) @ WEIGHTS
    abar = np.cumprod(1 - BETAS)
    tilde = (1 - abar[1]) / (1 - abar[2]) * BETAS[2]
    left = 1 / ((1 - BETAS[2]) / BETAS[2] + 1 / (abar[1] * V + 1 - abar[1]))
    best = (math.log(left) - math.log(tilde)) / (math.log(BETAS[2]) - math.log(tilde))
    assert best == pytest.approx(0.4637, abs=1e-4)
    assert float(grid[mean.argmin()]) == pytest.approx(best, abs=4e-4)


def test_the_weight_of_the_hybrid_stands_before_the_sum():
    """.001 times the *sum* of the T terms, not their mean, beside the mean squared error."""
    process, steps = orn.Gaussian(orn.LinearVP()), 10
    denoiser = Learned(exact.Normal(process, torch.zeros(1, 3).double(), V), 1.0)
    got, parts = every_step(Hybrid(0.001, UniformSteps(steps), reading="eps"), denoiser, steps, (1, 3))
    assert parts["vlb"] == pytest.approx(0.001 * bound_terms(process.schedule, steps).sum(), rel=1e-9)
    squared = float(eps_error(process.schedule, torch.arange(1, steps + 1).double() / steps).mean())
    assert parts["squared"] == pytest.approx(squared, rel=1e-9)
    assert got == pytest.approx(parts["vlb"] + parts["squared"], rel=1e-12)


@pytest.mark.parametrize("parametrization", ["eps", "x0", "v", "score", "edm"])
def test_the_bound_of_the_hybrid_trains_the_variance_alone(parametrization):
    network = Net(copies=2)
    denoiser = orn.Denoiser(network, TOY, parametrization, variance="learned", sigma_data=0.7)
    times = Stratified(UniformSteps(4))
    loss = Hybrid(0.5, times)(denoiser, X0, None, Noise(*RNG))
    of_bound, of_squares = (
        torch.autograd.grad(loss.parts[name].sum(), network.w, retain_graph=True)[0] for name in ("vlb", "squared")
    )
    assert float(of_bound[0].abs().max()) == 0.0
    assert float(of_bound[1].abs().min()) > 0.0
    assert float(of_squares[1].abs().max()) == 0.0
    alone = Objective(times)(denoiser, X0, None, Noise(*RNG)).per_example
    assert torch.allclose(alone, loss.parts["squared"], rtol=1e-9)
    bound = VLB(times)(denoiser, X0, None, Noise(*RNG)).per_example
    assert torch.allclose(0.5 * bound, loss.parts["vlb"], rtol=1e-12)


# --- what holds for every objective on a chain, and beyond

MANY = [
    VLB(Stratified(UniformSteps(4))),
    VLB(Importance(4, probabilities=torch.tensor([0.4, 0.3, 0.2, 0.1]).double())),
    Hybrid(times=UniformSteps(4)),
    Hybrid(times=Importance(4, probabilities=torch.tensor([0.4, 0.3, 0.2, 0.1]).double()), reading="x0"),
    Objective(Importance(4, probabilities=torch.tensor([0.1, 0.2, 0.3, 0.4]).double())),
    Objective(Stratified(UniformLogSNR()), LikelihoodWeighting()),
    DenoisingScoreMatching(Stratified()),
    ImplicitScoreMatching(UniformLogSNR()),
    SlicedScoreMatching(projections=2, reduced=False),
]


@pytest.mark.parametrize("objective", MANY, ids=repr)
def test_a_batch_in_parts_has_the_losses_of_the_whole(objective):
    denoiser = orn.Denoiser(Net(copies=2), orn.Gaussian(orn.LinearVP()), "v", variance="learned")
    whole = objective(denoiser, X0, None, Noise(*RNG))
    for rows in ([0, 2, 4], [1, 3, 5, 6, 7]):
        part = objective(denoiser, X0[rows], None, Noise(7, rows, total=8))
        assert torch.equal(part.t, whole.t[rows])
        assert torch.allclose(part.per_example, whole.per_example[rows], rtol=1e-9)
        assert torch.allclose(part.term, whole.term[rows], rtol=1e-9)


@pytest.mark.parametrize("objective", [*MANY[:4], Objective(UniformSteps(4), ELBOWeighting("v"))], ids=repr)
def test_no_step_is_infinite_without_signal_at_the_end(objective):
    """Zero terminal SNR, in float32: every step of the chain has a finite loss and gradient."""
    network = Net(copies=2, dtype=torch.float32)
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.CosineVP()), "v", variance="learned")
    loss = objective(denoiser, numbers(64, 2, 3, dtype=torch.float32), None, Noise(0, 64))
    assert loss.per_example.dtype == torch.float32
    assert set((4 * loss.t).tolist()) == {1.0, 2.0, 3.0, 4.0}
    loss.mean.backward()
    assert torch.isfinite(loss.per_example).all()
    assert torch.isfinite(network.w.grad).all()


def test_conditions_reach_the_network():
    class Spy(torch.nn.Module):
        def forward(self, x, time, cond, keep):
            return torch.cat([x * keep.to(x)[:, None] + cond.to(x)[:, None], x], dim=1)

    process = orn.Gaussian(orn.LinearVP())
    denoiser = orn.Denoiser(Spy(), process, "eps", variance="learned")
    x0, cond, keep = numbers(4, 2), torch.arange(4), torch.tensor([True, False, True, False])
    for objective in (VLB(), Hybrid(), DenoisingScoreMatching(), ImplicitScoreMatching(), SlicedScoreMatching()):
        one, two, three = (
            objective(denoiser, x0, c, Noise(0, 4), k).per_example
            for c, k in ((cond, keep), (cond + 1, keep), (cond, ~keep))
        )
        assert (one != two).all(), objective
        assert (one != three).all(), objective


def test_what_does_not_fit_is_refused_in_words():
    process = orn.Gaussian(orn.LinearVP())
    denoiser = orn.Denoiser(Net(), process, "eps")
    with pytest.raises(ConfigurationError, match='variance="learned"'):
        Hybrid()(denoiser, X0, None, Noise(*RNG))
    for make in (VLB, Hybrid, lambda times: Objective(times, ELBOWeighting())):
        for times in (UniformTime(), Stratified(LogNormalSigma())):
            with pytest.raises(ConfigurationError, match=r"expected that of a chain: UniformSteps\(1000\)"):
                make(times=times)
        with pytest.raises(ConfigurationError, match="chain of 1 steps, expected at least 2"):
            make(times=UniformSteps(1))
    for times in (UniformSteps(), Importance(), Stratified(UniformSteps())):
        with pytest.raises(ConfigurationError, match="has no density"):
            Objective(times, LikelihoodWeighting())
        with pytest.raises(ConfigurationError, match="has no density"):
            times.density(process, torch.ones(1))
    for wrong, said in (
        (lambda: Hybrid(weight=0.0), "weight"),
        (lambda: Hybrid(reading="epsilon"), "reading"),
        (lambda: VLB(fixed=2.0), "fixed"),
        (lambda: ELBOWeighting("edm"), "reading"),
        (lambda: ELBOWeighting(fixed=-1.0), "fixed"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            wrong()
