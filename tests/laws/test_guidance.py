"""Guidance against closed forms: linear-Gaussian conditions, the flow of a guided field, the gradient of DPS."""

import math

import pytest
import torch
from helpers import BASES, MU, SCHEDULES, SIGMA, D, Spy, awake, check_refusal, numbers, spd
from torch.distributions import MultivariateNormal

import ornstein as orn
from ornstein import exact
from ornstein.processes import Normal as Base
from ornstein.processes.gaussian import READINGS
from ornstein.samplers.base import Counted

TIMES = (0.05, 0.4, 0.9)
M, C = torch.tensor([0.3, -0.5, 1.0]).double(), spd(D, seed=8)
A, R = torch.tensor([[1.0, 0.5, -0.3], [0.0, 1.0, 2.0]]).double(), torch.diag(torch.tensor([0.2, 0.5]).double())
Y = torch.tensor([[1.2, -0.7]]).double()


def conditional_law() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of x_0 given y = A x_0 + N(0, R), x_0 ~ N(M, C)."""
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + R)
    return M + gain @ (Y[0] - A @ M), C - gain @ A @ C


def log_prob_of(process, base: str):
    """log p_t(y | x_t), from the joint normal law of (x_0, x_t)."""
    mu = MU if process.base is not None else torch.zeros(D).double()

    def log_prob(x_t, t, y):
        alpha, sigma, _ = process.level(t)
        gain = alpha * C @ torch.linalg.inv(alpha**2 * C + sigma**2 * SIGMA[base])
        x0 = M + (x_t - mu - alpha * (M - mu)) @ gain.T
        rest = C - alpha * gain @ C
        return MultivariateNormal(x0 @ A.T, A @ rest @ A.T + R).log_prob(y)

    return log_prob


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["linear", "flow", "ve", "table-cosine"])
def test_bayes_rule_at_the_right_noise_level_is_the_conditional_law(name, base):
    process = orn.Gaussian(SCHEDULES[name], BASES[base])
    guided = orn.ClassifierGuidance(exact.Normal(process, M, C), log_prob_of(process, base))
    truth, x = exact.Normal(process, *conditional_law()), numbers(4, D)
    for t in TIMES:
        ours, theirs = guided(x, t, Y.expand(4, 2)), truth(x, t)
        assert torch.allclose(ours.x0, theirs.x0, atol=1e-9)
        assert torch.allclose(ours.score, theirs.score, atol=1e-9)
    for sampler in (orn.Heun(), orn.Multistep(3), orn.Ancestral(), orn.StochasticHeun(), orn.Singlestep(3)):
        a, b = (
            orn.sample(d, sampler, start=x, steps=9, cond=c).x for d, c in ((guided, Y.expand(4, 2)), (truth, None))
        )
        assert torch.allclose(a, b, atol=1e-8 if name in ("linear", "ve") else 5e-3)  # others begin beyond FAR


def test_the_check_b23_of_the_equations():
    """At the numbers of the check, x_0 ~ N(0, 1): .722272 at the right level, 2.333 for p(y | x_0 = x_t)."""
    process = orn.Gaussian(orn.FromAlphaSigma(lambda t: (1 - t) ** 0.5, lambda t: t**0.5))  # abar = 1 - t
    x, y, r2 = torch.tensor([[0.4]]).double(), torch.tensor([[1.1]]).double(), 0.3
    prior = exact.Normal(process, torch.zeros(1).double(), 1.0)

    def right(x_t, t, y):
        alpha, sigma, _ = process.level(t)
        return MultivariateNormal(alpha * x_t, (r2 + sigma**2) * torch.eye(1).double()).log_prob(y)

    def naive(x_t, t, y):
        return MultivariateNormal(x_t, r2 * torch.eye(1).double()).log_prob(y)

    gains = [(orn.ClassifierGuidance(prior, f)(x, 0.5, y).score - prior(x, 0.5).score).item() for f in (right, naive)]
    assert gains[0] == pytest.approx(0.722272, abs=5e-7)
    assert gains[1] == pytest.approx(2.333, abs=5e-4)


class Pair:
    """Exact denoisers of two normal laws, of x_0 given the condition and of all x_0."""

    def __init__(self, process, given, whole) -> None:
        self.process, self.shape, self.batches = process, (1,), []
        self.laws = [exact.Normal(process, torch.full((1,), m).double(), v) for m, v in (given, whole)]

    def __call__(self, x_t, t, cond=None, keep=None):
        self.batches.append(len(x_t))
        kept = torch.ones(len(x_t), dtype=torch.bool) if keep is None else keep
        x0 = torch.where(kept[:, None], *(law(x_t, t).x0 for law in self.laws))
        return self.process.estimate(x_t, t, x0=x0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.7, 4.0])
@pytest.mark.parametrize("kind", ["free", "auto"])
def test_the_guided_field_has_its_own_flow(kind, scale):
    """dy/ds = eps_w, y = x / alpha, is linear for normal laws: y scales with (v_c + s^2)^(w/2) (v + s^2)^((1-w)/2)."""
    process, v_c, v = orn.Gaussian(orn.EDM(0.002, 10.0)), 0.3, 1.4
    pair, cond = Pair(process, (0.0, v_c), (0.0, v)), torch.zeros(2)
    guided = orn.ClassifierFreeGuidance(pair, scale) if kind == "free" else orn.Autoguidance(*pair.laws, scale)
    ends = [(v_c + s**2) ** (scale / 2) * (v + s**2) ** ((1 - scale) / 2) for s in (0.002, 10.0)]
    start = torch.tensor([[3.0], [-8.0]]).double()
    grid = orn.grids.karras(process, 200)
    *_, last, _ = orn.sample_steps(guided, orn.RK4(), start, grid, orn.Noise(0, 2), cond)  # before it lands
    assert torch.allclose(last.x, start * ends[0] / ends[1], rtol=1e-6)
    # E12: it is not the diffused tilted law p(x|c)^w p(x)^(1-w), whose variance it would have at s = 0
    tilted = 1 / (scale / v_c + (1 - scale) / v)
    flowed = (ends[0] / ends[1]) ** 2 * (1 / (scale / (v_c + 100) + (1 - scale) / (v + 100)))
    assert (abs(flowed / tilted - 1) < 1e-3) == (scale in (0.0, 1.0))


def test_posterior_sampling_is_the_gradient_at_the_posterior_mean():
    process = orn.Gaussian(orn.LinearVP())
    prior, r2, x = exact.Normal(process, torch.full((1,), 0.4).double(), 0.6), 0.25, numbers(3, 1)
    y = torch.tensor([[1.0], [0.0], [-2.0]]).double()

    def log_likelihood(x0, y):
        return -0.5 * (y - x0).square().sum(1) / r2

    guided = orn.PosteriorSampling(_Followed(prior), log_likelihood, scale=1.5)
    for t in TIMES:
        alpha, sigma, _ = process.level(t)
        slope = alpha * 0.6 / (alpha**2 * 0.6 + sigma**2)
        x0 = 0.4 + slope * (x - alpha * 0.4)
        with torch.no_grad():
            found = guided(x, t, y)
        assert torch.allclose(found.score - prior(x, t).score, 1.5 * slope * (y - x0) / r2, atol=1e-10)
        variance = 0.6 - alpha * slope * 0.6  # what it leaves out: the exact factor has r2 + variance
        assert variance > 1e-3
        assert not found.x0.requires_grad


class _Followed:
    """An exact denoiser as autograd sees it."""

    def __init__(self, inner) -> None:
        self.inner, self.process, self.shape = inner, inner.process, inner.shape

    def __call__(self, x_t, t, cond=None, keep=None):
        assert cond is None
        return self.inner(x_t, t)


@pytest.mark.parametrize("base", ["none", "full"])
@pytest.mark.parametrize("name", ["linear", "flow", "edm"])
def test_a_shifted_estimate_has_another_x0_at_the_same_state(name, base):
    process, x, change = orn.Gaussian(SCHEDULES[name], BASES[base]), numbers(4, D), numbers(4, D, seed=2)
    for t in (0.3, torch.tensor([0.1, 0.3, 0.5, 0.9]).double()):
        plain = exact.Normal(process, M, C)(x, t)
        for kind in READINGS:
            held = process.estimate(x, t, **{kind: plain.reading(kind)}).shifted(change)
            assert torch.allclose(held.x0, plain.x0 + change, atol=1e-9)
            assert torch.allclose(held.eps, process.estimate(x, t, x0=plain.x0 + change).eps, atol=1e-9)


def test_at_sigma_zero_nothing_is_shifted():
    process, x = orn.Gaussian(orn.RectifiedFlow()), numbers(2, 1)
    held = process.estimate(x, 0.0, v=x)
    assert torch.equal(held.shifted(x).value, x)
    both = process.estimate(x, torch.tensor([0.0, 0.5]).double(), v=x).shifted(torch.ones_like(x)).value - x
    assert both[0] == 0
    assert both[1] != 0


@pytest.mark.parametrize("parametrization", READINGS)
@pytest.mark.parametrize("learned", [None, "learned"])
def test_one_call_on_a_doubled_batch_in_every_parametrisation(parametrization, learned):
    torch.manual_seed(0)
    network = awake(orn.MLP((2, 3), 16, 1, classes=4, outputs=2 if learned else 1))
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.LinearVP()), parametrization, variance=learned, sigma_data=0.7)
    x, cond = numbers(5, 2, 3, dtype=torch.float32), torch.tensor([0, 1, 2, 3, 3])
    for t in (0.4, torch.linspace(0.1, 0.9, 5, dtype=torch.float64)):
        given, none = denoiser(x, t, cond), denoiser(x, t)
        guided = orn.ClassifierFreeGuidance(denoiser, 2.5)(x, t, cond)
        assert guided.kind == given.kind
        assert torch.allclose(guided.x0, none.x0 + 2.5 * (given.x0 - none.x0), atol=2e-5)
        if learned:
            assert torch.allclose(guided.fraction, given.fraction)
            rescaled = orn.ClassifierFreeGuidance(denoiser, 2.5, rescale=0.5)(x, t, cond)
            clipped = orn.Clipped(denoiser, -0.1, 0.1)(x, t, cond)
            for other in (rescaled, clipped):
                assert not torch.allclose(other.x0, guided.x0, atol=1e-3)
                assert torch.allclose(other.fraction, given.fraction)


@pytest.mark.parametrize("kind", ["eps", "edm", "x0"])
def test_a_guide_of_another_parametrisation(kind):
    process, x = orn.Gaussian(orn.LinearVP()), numbers(4, D)
    strong, weak = exact.Normal(process, M, C), exact.Normal(process, M + 0.5, 2 * C)

    class Held:
        shape = (D,)

        def __init__(self, inner, kind, sigma_data):
            self.process, self.inner, self.kind, self.sigma_data = process, inner, kind, sigma_data

        def __call__(self, x_t, t, cond=None, keep=None):
            truth = self.inner(x_t, t)
            held = process.estimate(x_t, t, x0=truth.x0, sigma_data=self.sigma_data)
            return process.estimate(x_t, t, **{self.kind: held.reading(self.kind)}, sigma_data=self.sigma_data)

    guided = orn.Autoguidance(Held(strong, "edm", 0.5), Held(weak, kind, 1.3), scale=1.8)
    for t in TIMES:
        wanted = weak(x, t).x0 + 1.8 * (strong(x, t).x0 - weak(x, t).x0)
        assert torch.allclose(guided(x, t).x0, wanted, atol=1e-9)


def test_the_interval_and_the_count_of_evaluations():
    process = orn.Gaussian(orn.EDM())
    pair, cond = Pair(process, (1.0, 0.3), (0.0, 1.4)), torch.zeros(3)
    guided = orn.ClassifierFreeGuidance(pair, 3.0, interval=(0.2, 5.0))
    x = numbers(3, 1)
    for sigma, inside in ((0.1, False), (0.21, True), (4.9, True), (6.0, False)):
        t = float(process.schedule.time_at(-2 * math.log(sigma)))
        plain, whole = (law(x, t).x0 for law in pair.laws)
        wanted = whole + 3 * (plain - whole) if inside else plain
        counted = Counted(guided, cond)
        assert torch.allclose(counted(x, t).x0, wanted, atol=1e-9)
        assert counted.calls == 1 + inside
        assert torch.allclose(guided(x, torch.full((3,), t).double(), cond).x0, wanted, atol=1e-9)
    pair.batches.clear()
    drawn = orn.sample(orn.Clipped(guided, -9.0, 9.0), n=3, calls=30, cond=cond)
    assert drawn.calls == sum(pair.batches) // 3 <= 30
    assert len(pair.batches) == 15  # a guided denoiser makes two evaluations each time, at most
    assert set(pair.batches) == {3, 6}
    assert orn.sample(orn.ClassifierFreeGuidance(pair, 1.0), n=3, calls=30, cond=cond).calls == 30
    assert orn.sample(orn.Autoguidance(guided, pair), n=3, calls=30, cond=cond).calls <= 30
    assert orn.sample(orn.ClassifierFreeGuidance(pair, 2.0), orn.Heun(), n=3, calls=30, cond=cond).calls == 30


def test_a_wrapper_of_the_users_own_is_counted_within_and_other_objects_are_left_alone():
    class Twice(orn.Wrapper):
        def __call__(self, x_t, t, cond=None, keep=None):
            self.denoiser(x_t, t, cond, keep)
            return self.denoiser(x_t, t, cond, keep)

    denoiser = orn.Denoiser(orn.MLP(2, 8, 1), orn.Gaussian(orn.CosineVP()), "v")
    denoiser.shape = (2,)
    outer = Twice(denoiser)
    assert orn.sample(outer, n=2, steps=4).calls == 8
    assert orn.sample(orn.Retargeted(outer, orn.Gaussian(orn.LinearVP())), n=2, steps=4).calls == 8
    assert outer.denoiser is denoiser
    spy = Spy(exact.Normal(orn.Gaussian(orn.CosineVP()), torch.zeros(2), 1.0))
    assert orn.sample(spy, n=2, steps=4).calls == spy.made == 4


def test_what_a_wrapper_holds_may_be_callable_and_know_its_process():
    class LogProb:
        process = orn.Gaussian(orn.CosineVP())

        def __call__(self, x_t, t, y):
            return -x_t.square().sum(1)

    plain = exact.Normal(LogProb.process, torch.zeros(2).double(), 1.0)
    for guided in (
        orn.ClassifierGuidance(plain, LogProb()),
        orn.PosteriorSampling(plain, lambda x, y: -x.square().sum(1)),
    ):
        for start in (None, torch.ones(2, 2).double()):  # from t = 1, where sigma / alpha is above 1000
            assert orn.sample(guided, n=2, calls=10, start=start).calls == 10


def test_rows_that_the_caller_drops_stay_dropped():
    pair = Pair(orn.Gaussian(orn.CosineVP()), (1.0, 0.3), (0.0, 1.4))
    x, keep = numbers(3, 1), torch.tensor([True, False, True])
    guided = orn.ClassifierFreeGuidance(pair, 3.0)(x, 0.4, torch.zeros(3), keep)
    given, whole = (law(x, 0.4).x0 for law in pair.laws)
    assert torch.allclose(guided.x0, torch.where(keep[:, None], whole + 3 * (given - whole), whole), atol=1e-9)


def test_rescaling_about_the_mean_of_the_base():
    process = orn.Gaussian(orn.LinearVP(), Base(MU, SIGMA["diagonal"].diagonal()))
    given, whole, x = exact.Normal(process, M, C), exact.Normal(process, M, 3 * C), numbers(4, D)
    found = orn.Autoguidance(given, whole, 2.5, rescale=1.0)(x, 0.5).x0 - MU
    free = orn.Autoguidance(given, whole, 2.5)(x, 0.5).x0 - MU
    wanted = (given(x, 0.5).x0 - MU).std(1, keepdim=True) / free.std(1, keepdim=True) * free
    assert torch.allclose(found, wanted, atol=1e-9)


def test_a_guide_of_the_same_prior_by_other_tensors():
    laws = [Base(MU.clone(), SIGMA["full"].clone()) for _ in range(2)]
    strong, weak = (exact.Normal(orn.Gaussian(orn.LinearVP(), law), M, C) for law in laws)
    x = numbers(2, D)
    assert torch.allclose(orn.Autoguidance(strong, weak, 2.0)(x, 0.5).x0, strong(x, 0.5).x0)
    retargeted = orn.Retargeted(weak, orn.Gaussian(orn.CosineVP(), laws[0]))
    assert torch.isfinite(retargeted(x, 0.5).x0).all()
    assert Base(MU, SIGMA["full"]) != Base(MU + 1, SIGMA["full"])
    assert Base(MU, SIGMA["full"]) != Base(MU, SIGMA["diagonal"].diagonal())
    by_class = [orn.ByClass(Base.each(torch.zeros(2, 3), torch.full((2, 3), v))) for v in (1.0, 1.0, 2.0)]
    assert by_class[0] == by_class[1] != by_class[2]
    assert len({*by_class}) == 2


def test_rescaling_brings_back_the_spread_of_the_conditional_model():
    process, x = orn.Gaussian(orn.LinearVP()), numbers(3, 6)
    given, whole = (exact.Normal(process, torch.zeros(6).double(), v) for v in (0.3, 2.0))
    std = given(x, 0.5).x0.std(1)
    for rescale, wanted in (
        (1.0, std),
        (0.25, 0.75 * orn.Autoguidance(given, whole, 3.0)(x, 0.5).x0.std(1) + 0.25 * std),
    ):
        found = orn.Autoguidance(given, whole, 3.0, rescale=rescale)(x, 0.5).x0
        assert torch.allclose(found.std(1), wanted, atol=1e-9)


def test_guidance_is_differentiable_for_likelihoods():
    """The log-density of the guided model's own flow, with w = 1: that of the conditional law."""
    process = orn.Gaussian(orn.LinearVP())
    guided = orn.ClassifierGuidance(exact.Normal(process, M, C), _rows(process))
    mean, covariance = conditional_law()
    x = MultivariateNormal(mean, covariance).mean + 0.3 * numbers(3, D)
    found = orn.log_likelihood(guided, x, cond=Y.expand(3, 2))
    plain = orn.log_likelihood(exact.Normal(process, mean, covariance), x)
    assert torch.allclose(found.values, plain.values, atol=1e-6)
    assert torch.allclose(
        found.values, MultivariateNormal(mean, covariance).log_prob(x), atol=0.02
    )  # its prior is N(0, I)


def _rows(process):
    """log p_t(y | x_t) at times of their own, (b,)."""

    def log_prob(x_t, t, y):
        each = zip(x_t, torch.as_tensor(t).expand(len(x_t)).tolist(), y, strict=True)
        return torch.stack([log_prob_of(process, "none")(x[None], s, z[None])[0] for x, s, z in each])

    return log_prob


PROCESS = orn.Gaussian(orn.LinearVP())
PLAIN = exact.Normal(PROCESS, M, C)


def test_bad_guidance_is_refused():
    unconditional = orn.Denoiser(orn.MLP(2, 8, 1), PROCESS)
    conditional = orn.Denoiser(orn.MLP(2, 8, 1, classes=3), PROCESS)
    x = numbers(2, D)
    check_refusal(lambda: orn.ClassifierFreeGuidance(unconditional), "unconditional model", "--condition labels")
    conditional.label_dropout = 0.0
    check_refusal(lambda: orn.ClassifierFreeGuidance(conditional), "label dropout 0", "--label-dropout 0.1")
    conditional.label_dropout = 0.1
    guided = orn.ClassifierFreeGuidance(conditional)
    check_refusal(lambda: orn.sample(guided, n=2, shape=(2,)), "without a condition", "cond=")
    check_refusal(
        lambda: orn.sample(guided, n=2, shape=(2,), cond=torch.tensor([0, 3])),
        "class 3, which the model never saw",
        "0 to 2",
    )
    check_refusal(
        lambda: orn.sample(guided, n=2, calls=1, shape=(2,), cond=torch.zeros(2).long()), "got 1 calls", "2 each"
    )
    check_refusal(lambda: orn.ClassifierFreeGuidance(conditional, math.inf), "scale=inf", "1 guides nothing")
    check_refusal(lambda: orn.ClassifierFreeGuidance(conditional, 2.0, (3.0, 0.2)), "interval=(3.0, 0.2)", "low < high")
    check_refusal(lambda: orn.ClassifierFreeGuidance(conditional, rescale=2.0), "rescale=2.0", "0 (off) to 1")
    other = exact.Normal(orn.Gaussian(orn.CosineVP()), M, C)
    check_refusal(lambda: orn.Autoguidance(PLAIN, other), "CosineVP", "Retargeted")
    based = exact.Normal(orn.Gaussian(orn.LinearVP(), Base(MU, SIGMA["full"])), M, C)
    check_refusal(lambda: orn.Autoguidance(PLAIN, based), "guide of", "that of the model")
    with_labels, without = (orn.Denoiser(orn.MLP(2, 8, 1, classes=k), PROCESS) for k in (3, 0))
    check_refusal(lambda: orn.Autoguidance(with_labels, without), "without a condition", "trained with it")
    for log_prob, got in ((lambda x, t, y: x, "(2, 3)"), (lambda x, t, y: x.detach().sum(1), "autograd cannot follow")):
        check_refusal(lambda f=log_prob: orn.ClassifierGuidance(PLAIN, f)(x, 0.5, None), got, "expected")
