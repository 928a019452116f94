"""States of parts: a product's laws are those of its parts by scipy, and samplers draw a mixed law that is known."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import SCHEDULES, check_refusal, exact_normal, level, numbers

import ornstein as orn
from ornstein import exact, grids
from ornstein.errors import ConfigurationError
from ornstein.likelihood import elbo
from ornstein.noise import Noise
from ornstein.processes import ProductEstimate

FLOW, COSINE = SCHEDULES["flow"], SCHEDULES["cosine"]
K = 3
PRODUCT = orn.Product(
    {
        "numbers": orn.Gaussian(COSINE),
        "kind": orn.Categorical(FLOW, orn.Uniform(K)),
        "word": orn.Categorical(FLOW, orn.Absorbing(4)),
    }
)
N = 5
X0 = {
    "numbers": numbers(N, 2),
    "kind": torch.tensor([[0], [1], [2], [2], [0]]),
    "word": torch.arange(2 * N).view(N, 2) % 4,
}
SHAPES = {"numbers": (N, 2), "kind": (N, 1), "word": (N, 2)}


def test_every_verb_is_that_of_the_parts_with_the_same_draws():
    for t in (0.3, torch.linspace(0.1, 0.9, N, dtype=torch.float64)):
        rng, same = Noise(1, N), Noise(1, N)
        state, start = PRODUCT.noise(X0, t, rng), PRODUCT.prior(SHAPES, rng, 1.0)
        for name, part in PRODUCT.parts.items():
            assert torch.equal(state[name], part.noise(X0[name], t, same))
        for name, part in PRODUCT.parts.items():
            assert torch.equal(start[name], part.prior(SHAPES[name], same))
        s = t / 2
        parts = {name: part.estimate(state[name], t, x0=X0[name]) for name, part in PRODUCT.parts.items()}
        law = PRODUCT.posterior(PRODUCT.estimate(state, t, parts=parts), t, s)
        drawn = law.sample(rng)
        for name, part in PRODUCT.parts.items():
            assert torch.equal(drawn[name], part.posterior(parts[name], t, s).sample(same))
    assert PRODUCT.is_data(0.0)
    assert not PRODUCT.is_data(1e-3)
    assert (PRODUCT.t_min, PRODUCT.steps, PRODUCT.given(None)) == (0.0, None, PRODUCT)
    assert "alpha 0.7" in PRODUCT.describe(0.3)


def transition_by_hand(x_s, x_t, s, t):
    """log q(x_t | x_s): scipy's normal, and the matrices of the kernels."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = level(COSINE, s), level(COSINE, t)
    std = math.sqrt(sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2)
    total = scipy.stats.norm.logpdf(x_t["numbers"], alpha_t / alpha_s * x_s["numbers"], std).sum(1)
    keep = (1 - t) / (1 - s)
    same = (x_t["kind"] == x_s["kind"]).numpy()
    total += np.log(keep * same + (1 - keep) / K).sum(1)
    return total + np.log(np.where(x_t["word"] == 4, 1 - keep, keep)).sum(1)


def test_probabilities_multiply():
    s, t = 0.2, 0.6
    x_t = PRODUCT.transition(X0, s, t).sample(Noise(2, N))
    assert (x_t["word"] == 4).any()
    assert (x_t["word"] != 4).any()
    law = PRODUCT.transition(X0, s, t)
    assert np.allclose(law.log_prob(x_t), transition_by_hand(X0, x_t, s, t), atol=1e-9)
    end = {**x_t, "word": torch.full_like(x_t["word"], 4)}
    truth = scipy.stats.norm.logpdf(x_t["numbers"]).sum(1) - math.log(K)
    assert np.allclose(PRODUCT.log_prior(end), truth, atol=1e-9)


def test_divergences_add_up_as_the_terms_of_a_bound_do():
    other = {"numbers": X0["numbers"] + 0.3, "kind": X0["kind"], "word": X0["word"]}
    s, t = 0.2, 0.6
    p, q = PRODUCT.transition(X0, s, t), PRODUCT.transition({**other, "kind": (X0["kind"] + 1) % K}, s, t)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = level(COSINE, s), level(COSINE, t)
    variance = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    of_numbers = 2 * (0.3 * alpha_t / alpha_s) ** 2 / (2 * variance)
    keep = (1 - t) / (1 - s)
    one, two = keep + (1 - keep) / K, (1 - keep) / K
    of_kind = one * math.log(one / two) + two * math.log(two / one)
    assert np.allclose(p.kl(q), of_numbers + of_kind, atol=1e-9)
    assert np.allclose(p.kl(p), 0, atol=1e-12)


def test_columns_of_one_site_have_probabilities():
    """The categories of a table are (b,), without a site's axis."""
    one = orn.Categorical(FLOW, orn.Uniform(K))
    process, x = orn.Product({"a": one, "b": one}), {"a": torch.tensor([0, 1]), "b": torch.tensor([2, 2])}
    assert np.allclose(process.log_prior(x), -2 * math.log(K))
    assert np.allclose(process.transition(x, 0.0, 0.4).log_prob(x), 2 * math.log(0.6 + 0.4 / K))
    assert np.allclose(process.transition(x, 0.0, 0.4).kl(process.transition(x, 0.0, 0.4)), 0)


def test_rows_of_an_estimate_are_those_of_each_part():
    t = torch.linspace(0.1, 0.9, N, dtype=torch.float64)
    parts = {name: part.estimate(X0[name], t, x0=X0[name]) for name, part in PRODUCT.parts.items()}
    some = PRODUCT.estimate(X0, t, parts=parts).rows([3, 1])
    assert torch.equal(some.t, t[[3, 1]])
    for name, part in parts.items():
        assert torch.equal(some.x_t[name], X0[name][[3, 1]])
        assert torch.equal(some.parts[name].x_t, part.x_t[[3, 1]])


MEANS, VARIANCE, SHARES = np.array([-1.2, 0.1, 1.5]), 0.09, np.array([0.5, 0.3, 0.2])


class Joint:
    """The exact denoiser of a category a ~ SHARES and a number ~ N(MEANS[a], VARIANCE): a mixture, seen at both of its parts.

    p(a | x_t) is SHARES q(a_t | a) N(n_t; alpha m_a, alpha^2 v + sigma^2), normalised; E[n_0 | x_t] is the mean over a.
    """

    def __init__(self, kernel) -> None:
        self.process = orn.Product({"number": orn.Gaussian(COSINE), "kind": orn.Categorical(FLOW, kernel)})
        self.shape, self.calls = {"number": (1,), "kind": ()}, 0

    def __call__(self, x_t, t, cond=None, keep=None):
        self.calls += 1
        numbers, kinds = self.process.parts.values()
        alpha, sigma = (torch.as_tensor(c).reshape(-1, 1) for c in numbers.level(t)[:2])
        means, n = torch.from_numpy(MEANS), x_t["number"].double()
        variance = alpha**2 * VARIANCE + sigma**2
        log_probs = torch.from_numpy(np.log(SHARES)) - (n - alpha * means) ** 2 / (2 * variance)
        log_probs = (log_probs + kinds.evidence(x_t["kind"], t)).log_softmax(-1)
        found = means + alpha * VARIANCE / variance * (n - alpha * means)
        x0 = (log_probs.exp() * found).sum(1, keepdim=True).to(x_t["number"])
        parts = {"number": numbers.estimate(x_t["number"], t, x0=x0)}
        parts["kind"] = kinds.estimate(x_t["kind"], t, log_probs=log_probs)
        return ProductEstimate(self.process, x_t, t, parts)


KERNELS = {"absorbing": orn.Absorbing(3), "uniform": orn.Uniform(3)}
PARTS = orn.Parts({"number": orn.Multistep(3), "kind": orn.Ancestral()})
SAMPLERS = {"ancestral": (orn.Ancestral(), 100), "parts": (PARTS, 50), "usual": (None, 50)}
DRAWS, CELLS = 4000, 5


def p_value(x):
    """Of the chi-square test that pairs of a category and a fifth of its normal law are as likely as they should be."""
    place = scipy.stats.norm.cdf((x["number"][:, 0].numpy() - MEANS[x["kind"]]) / math.sqrt(VARIANCE))
    cells = x["kind"].numpy() * CELLS + np.minimum((place * CELLS).astype(int), CELLS - 1)
    counts = np.bincount(cells, minlength=3 * CELLS)
    return scipy.stats.chisquare(counts, DRAWS * np.repeat(SHARES, CELLS) / CELLS).pvalue


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mixed_law_is_drawn_with_its_dependence(sampler, kernel):
    denoiser, (sampler, steps) = Joint(KERNELS[kernel]), SAMPLERS[sampler]
    found = orn.sample(denoiser, sampler, n=DRAWS, steps=steps, seed=3, batch_size=DRAWS)
    assert (found.calls, denoiser.calls) == (steps, steps)  # one of the network a step, whatever the parts
    assert p_value(found.x) > 0.01
    assert scipy.stats.kstest(found.x["number"][:, 0], mixture_cdf).pvalue > 0.01
    apart = {**found.x, "kind": found.x["kind"].roll(1)}
    assert p_value(apart) < 1e-9  # the marginals alone do not pass


def mixture_cdf(x):
    return (SHARES * scipy.stats.norm.cdf((np.asarray(x)[..., None] - MEANS) / math.sqrt(VARIANCE))).sum(-1)


def test_few_steps_draw_the_parts_apart():
    """The law of a step is a product: in one step the dependence of the parts is lost, as with sites of categories."""
    few = orn.sample(Joint(KERNELS["absorbing"]), PARTS, n=DRAWS, steps=2, seed=3, batch_size=DRAWS).x
    assert p_value(few) < 1e-9


class Apart:
    """Numbers of a normal law and categories of another, which know nothing of each other."""

    def __init__(self) -> None:
        self.shape = {"numbers": (1,), "kind": (1,)}
        self.numbers = exact_normal(orn.Gaussian(COSINE))
        joint = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
        self.kind = exact.Table(orn.Categorical(FLOW, orn.Uniform(3)), joint)
        self.process = orn.Product({"numbers": self.numbers.process, "kind": self.kind.process})

    def __call__(self, x_t, t, cond=None, keep=None):
        parts = {"numbers": self.numbers(x_t["numbers"], t), "kind": self.kind(x_t["kind"], t)}
        return ProductEstimate(self.process, x_t, t, parts)


@pytest.mark.parametrize(
    "sampler", [orn.Multistep(3, corrector=True), orn.Multistep(2, "x0", exact=False), orn.Euler()]
)
def test_a_part_makes_the_steps_that_its_sampler_makes_alone(sampler):
    denoiser, grid = Apart(), grids.uniform(orn.Gaussian(COSINE), 8)
    start = {"numbers": numbers(6, 1), "kind": torch.tensor([[0], [1], [2]] * 2)}
    both = orn.sample(
        denoiser, orn.Parts({"kind": orn.Ancestral(), "numbers": sampler}), start=start, grid=grid, seed=5
    )
    for name, alone, one in (("numbers", denoiser.numbers, sampler), ("kind", denoiser.kind, orn.Ancestral())):
        assert torch.equal(both.x[name], orn.sample(alone, one, start=start[name], grid=grid, seed=5).x)


def test_ancestral_steps_of_parts_are_ancestral_steps_of_the_whole():
    whole, parts = Apart(), {"numbers": orn.Ancestral(), "kind": orn.Ancestral()}
    drawn = [orn.sample(whole, s, n=70, steps=6, seed=2).x for s in (orn.Ancestral(), orn.Parts(parts))]
    for name in whole.shape:
        assert torch.equal(drawn[0][name], drawn[1][name])


def test_samples_do_not_depend_on_the_batch():
    denoiser = Joint(KERNELS["absorbing"])
    whole = orn.sample(denoiser, n=70, steps=12, seed=4, trajectory=6)
    parts = orn.sample(denoiser, n=70, steps=12, seed=4, batch_size=32)
    later = orn.sample(denoiser, n=20, steps=12, seed=4, first=50)
    for found, rows in ((parts.x, slice(None)), (later.x, slice(50, None))):
        assert torch.equal(found["kind"], whole.x["kind"][rows])
        assert torch.allclose(found["number"], whole.x["number"][rows], atol=1e-5)
    assert [t for t, _ in whole.trajectory] == [1.0, 0.5, 0.0]
    assert torch.equal(whole.trajectory[-1][1]["kind"], whole.x["kind"])
    none = orn.sample(denoiser, n=0, steps=2).x
    assert {name: tuple(part.shape) for name, part in none.items()} == {"number": (0, 1), "kind": (0,)}


def test_what_does_not_fit_is_refused():
    numbers, kind = orn.Gaussian(COSINE), orn.Categorical(FLOW, orn.Uniform(3))
    check_refusal(lambda: orn.Product({}), "no parts", "{name: process}")
    check_refusal(
        lambda: orn.Product({"kind": kind, "a": orn.Gaussian(orn.EDM())}), "'a'", "sigma(0) = 0, such as CosineVP()"
    )
    tables = {str(n): orn.Categorical(None, orn.DiscretisedGaussian(3, length=n)) for n in (40, 50)}
    check_refusal(lambda: orn.Product(tables), "[40, 50] steps", "one number for all")
    process = orn.Product({"numbers": numbers, "kind": kind})
    check_refusal(lambda: process.estimate(X0, 0.5, parts={"kind": 1}), "['kind']", "['kind', 'numbers']")
    check_refusal(lambda: orn.Parts({"numbers": orn.Heun()}), "calls the network 2 times", "one call")
    check_refusal(lambda: orn.Parts({"numbers": orn.RK45()}), "calls the network inf times", "Multistep()")
    denoiser = Apart()

    def drawn(sampler, of=denoiser):
        return lambda: orn.sample(of, sampler, n=2, steps=3)

    check_refusal(drawn(orn.Heun()), "Heun(", "Parts({name: sampler})")
    check_refusal(drawn(orn.TauLeaping()), "TauLeaping(", "Ancestral()")
    check_refusal(drawn(orn.Parts({"numbers": orn.Euler()})), "['numbers']", "['kind', 'numbers']")
    check_refusal(drawn(orn.Parts({"numbers": orn.Euler(), "kind": orn.Euler()})), "Euler(", "TauLeaping()")
    check_refusal(drawn(orn.Parts({"kind": orn.Euler()}), denoiser.numbers), "['kind']", "those of the process")
    check_refusal(drawn(orn.Ancestral(eta=0.0)), "eta=0.0 for categories", "eta=1")


def test_the_objective_of_the_bound_is_the_bound():
    n = 4000
    kind = torch.multinomial(torch.from_numpy(SHARES), n, True, generator=torch.Generator().manual_seed(0))
    number = (
        torch.from_numpy(MEANS)[kind]
        + VARIANCE**0.5 * torch.randn(n, generator=torch.Generator().manual_seed(1)).double()
    )
    x, denoiser = {"number": number[:, None], "kind": kind}, Joint(orn.Absorbing(3))
    loss = orn.VLB(orn.UniformSteps(20))(denoiser, x, None, Noise(0, n)).per_example.double() * 2
    bound = elbo(denoiser, x, steps=20)
    assert abs(float(loss.mean()) + float((bound.total - bound.prior).mean())) < 4 * float(loss.std()) / n**0.5
    with pytest.raises(ConfigurationError, match="for this one MixedObjective or VLB"):
        orn.DiscreteHybrid()(denoiser, x, None, Noise(0, n))


@pytest.mark.parametrize("form", ["denoising", "path"])
def test_the_bound_of_an_exact_joint_denoiser_is_nearly_its_log_density(form):
    n, rng = 400, np.random.default_rng(0)
    kind = rng.choice(3, n, p=SHARES)
    number = MEANS[kind] + VARIANCE**0.5 * rng.standard_normal(n)
    truth = np.log(SHARES[kind]) + scipy.stats.norm.logpdf(number, MEANS[kind], VARIANCE**0.5)
    x = {"number": torch.from_numpy(number)[:, None], "kind": torch.from_numpy(kind)}
    bound = elbo(Joint(orn.Absorbing(3)), x, steps=100, form=form)
    lost = torch.from_numpy(truth) - bound.total
    error = 4 * float(lost.std()) / n**0.5
    assert bound.dims == 2
    assert -error < float(lost.mean()) < 0.15 + error
    with pytest.raises(ConfigurationError, match="expected a chain: steps=1000"):
        elbo(Joint(orn.Absorbing(3)), x, steps=math.inf)
