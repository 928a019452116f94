"""Denoisers and objectives of categories against sums over all states, integrals over t, and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import check_refusal

import ornstein as orn
from ornstein import exact
from ornstein.discrete import logistic_logits
from ornstein.errors import DataError
from ornstein.likelihood import elbo
from ornstein.noise import Noise
from ornstein.objectives.discrete import reveal_rate
from ornstein.processes import Categorical
from ornstein.terms import CategoricalTerms

K = 3
FLOW, FINITE = orn.RectifiedFlow(), orn.LinearVP(2.0, 18.0)  # the second has finite rates at t = 1
KERNELS = {"uniform": orn.Uniform(K), "absorbing": orn.Absorbing(K), "birth-death": orn.BirthDeath(K)}


def joint_law():
    table = torch.rand(K, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    return table / table.sum()


def data(n):
    """Draws of the joint law, in no order."""
    code = torch.multinomial(joint_law().flatten(), n, True, generator=torch.Generator().manual_seed(2))
    return torch.stack([code // K, code % K], 1)


class Logits(torch.nn.Module):
    """A network whose logits are a function of states and time that is known."""

    def __init__(self, states, size=K):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(states, size, generator=torch.Generator().manual_seed(3)))

    def forward(self, x, time):
        return self.table[x] + 0.001 * time.reshape(-1, *(1,) * x.ndim)


def test_the_readings_of_a_network_are_those_of_their_formulas():
    for name, kernel in KERNELS.items():
        process = Categorical(FLOW, kernel)
        x_t = torch.arange(process.states).reshape(1, 1, -1).expand(2, 1, -1)
        for t in (0.3, torch.tensor([0.3, 0.8], dtype=torch.float64)):
            times = torch.as_tensor(t).expand(2)
            net = Logits(process.states)
            plain, ours = (orn.DiscreteDenoiser(net, process, kind)(x_t, t).probs for kind in ("x0", "d3pm"))
            for row, x in itertools.product(range(2), range(process.states)):
                logits = net.table[x] + times[row]
                told = torch.stack(
                    [process.transition(torch.tensor([[k]]), 0.0, float(times[row])).probs[0, 0, x] for k in range(K)]
                )
                both = told * logits.softmax(0)
                alone = (told > 0) * logits.softmax(0)
                assert (ours[row, 0, x] - both / both.sum()).abs().max() < 1e-6
                assert (plain[row, 0, x] - alone / alone.sum()).abs().max() < 1e-6
        if name == "absorbing":
            assert torch.equal(plain[:, :, :K], torch.eye(K).expand(2, 1, K, K))
            assert torch.allclose(plain, ours)


def test_d3pm_is_the_mixture_that_d3pm_writes():
    # sum_x0 q(x_s, x_t | x_0) p~(x_0 | x_t), normalised: D3PM eq. 4
    process, net = Categorical(FLOW, orn.BirthDeath(K)), Logits(K)
    x_t, s, t = torch.arange(K)[None], 0.4, 0.7
    found = process.posterior(orn.DiscreteDenoiser(net, process, "d3pm")(x_t, t), t, s).probs[0]
    to_s, to_t = (process.transition(torch.arange(K)[None], *pair).probs[0] for pair in ((0.0, s), (s, t)))
    tilde = (net.table + t).softmax(1).double()
    written = torch.einsum("xk,ks,sx->xs", tilde, to_s, to_t)
    assert (found - written / written.sum(1, keepdim=True)).abs().max() < 1e-6


def test_the_logistic_head_is_the_mass_of_bins():
    k, x_t = 5, torch.tensor([[[0, 4, 5]]])  # 5 is a mask
    output = torch.tensor([[[[0.3, 0.5], [-0.7, -1.0], [0.1, 2.0]]]])
    found = logistic_logits(output, x_t, k).softmax(-1)[0, 0]
    for site, base in enumerate((-1.0, 1.0, 0.0)):
        place, width = base + float(output[0, 0, site, 0]), math.exp(float(output[0, 0, site, 1]) - 2)
        edges = [(-1 + 2 * (j - 0.5) / (k - 1) - place) / width for j in range(k + 1)]
        mass = np.diff([1 / (1 + math.exp(-e)) for e in edges])
        assert np.abs(found[site].numpy() - mass / mass.sum()).max() < 1e-6
    process = Categorical(FLOW, orn.Uniform(k))
    denoiser = orn.DiscreteDenoiser(Logits(k, 2), process, "d3pm", "logistic")
    assert denoiser(x_t.clamp(max=4), 0.5).log_probs.shape == (1, 1, 3, k)


def test_a_held_site_is_itself_even_where_all_else_is_masked():
    process = Categorical(FLOW, orn.Absorbing(K))
    x_t = torch.tensor([[1, K]])
    estimate = orn.DiscreteDenoiser(Logits(K + 1), process)(x_t, 1.0)
    assert torch.equal(estimate.probs[0, 0], torch.tensor([0.0, 1.0, 0.0]))
    law = process.posterior(estimate, 1.0, 0.5).probs[0].detach()
    assert torch.equal(law[0], torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert abs(float(law[1, K]) - 0.5) < 1e-6
    assert torch.isfinite(process.rates(estimate, 0.9)).all()


@pytest.mark.parametrize("name", KERNELS)
def test_the_rate_of_the_bound_is_the_limit_of_its_steps(name):
    process, terms = Categorical(FINITE, KERNELS[name]), CategoricalTerms()
    denoiser, h, t = exact.Table(process, joint_law()), 1e-4, 0.6
    x_t = torch.cartesian_prod(*[torch.arange(process.states)] * 2)
    for x0 in ((0, 1), (2, 2)):
        rows = torch.tensor([x0]).expand(len(x_t), 2)
        seen = process.transition(rows, 0.0, t).log_prob(x_t) > -math.inf
        estimate = denoiser(x_t[seen], t)
        rate, step = terms.rate(estimate, rows[seen], t), terms.step(estimate, rows[seen], t, t - h)
        assert (rate - step / h).abs().max() < 5e-3 * rate.abs().max()
        worse = exact.Table(process, torch.full((K, K), 1 / K**2, dtype=torch.float64))(x_t[seen], t)
        assert (terms.rate(worse, rows[seen], t) >= 0).all()


def test_masks_make_the_bound_a_weighted_cross_entropy():
    n, x = 512, data(512)
    for schedule in (FLOW, orn.CosineVP()):
        process = Categorical(schedule, orn.Absorbing(K))
        denoiser = orn.DiscreteDenoiser(Logits(K + 1), process)
        short, whole = (made(denoiser, x, None, Noise(5, n)) for made in (orn.MaskedCrossEntropy(), orn.RateVLB()))
        assert torch.allclose(short.per_example, whole.per_example, rtol=2e-4, atol=2e-5)
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    assert torch.allclose(reveal_rate(Categorical(FLOW, orn.Absorbing(K)), t), 1 / t)
    plain = orn.MaskedCrossEntropy(weighted=False)(denoiser, x, None, Noise(5, n))
    assert torch.allclose(plain.per_example * reveal_rate(process, plain.t).float(), short.per_example, rtol=1e-5)


def entropy():
    return float(-(joint_law() * joint_law().log()).sum())


@pytest.mark.parametrize("name", KERNELS)
def test_objectives_of_continuous_time_are_the_same_bound(name):
    process, n = Categorical(FINITE, KERNELS[name]), 40_000
    denoiser, x = exact.Table(process, joint_law()), data(40_000)
    rate, jump = (made(denoiser, x, None, Noise(7, n)) for made in (orn.RateVLB(), orn.CampbellELBO()))
    end = float(CategoricalTerms().end(process, x, 1.0).mean())
    last = -float(process.log_prior(process.noise(x, 1.0, Noise(8, n))).mean())
    for loss, rest in ((rate, end), (jump, last)):
        values = 2 * loss.per_example.double() + rest
        assert (
            abs(float(values.mean()) - entropy()) < 4 * float(values.std()) / n**0.5 + 0.02
        )  # .015 is lost at the prior
    assert set(jump.parts) == {"leave", "jump"}
    assert torch.equal(sum(jump.parts.values()), jump.per_example)


def test_what_cannot_move_leaves_the_gradient_finite():
    process, x = Categorical(FLOW, orn.Absorbing(K)), data(64)
    denoiser = orn.DiscreteDenoiser(Logits(K + 1), process)
    loss = orn.CampbellELBO()(denoiser, x, None, Noise(0, 64))
    late = process.noise(x, loss.t, _after_times(0, 64))
    assert (late == K).all(1).any()  # an example of masks alone
    loss.mean.backward()
    assert torch.isfinite(denoiser.network.table.grad).all()


def test_rates_of_times_in_a_batch_lose_no_digits():
    kernel = orn.Absorbing(K)
    masked, t = torch.full((1, 1), K), 1e-6
    many = kernel.between(orn.CosineVP(), 0.0, torch.tensor([t], dtype=torch.float64)).likelihood(
        masked, K, torch.float32
    )
    one = kernel.between(orn.CosineVP(), 0.0, t).likelihood(masked, K, torch.float64)
    assert float(one[0, 0, 0]) > 0
    assert (many.double() / one - 1).abs().max() < 1e-6


def test_campbells_integrand_is_least_at_the_true_rate():
    process = Categorical(FINITE, orn.Rates(torch.tensor([[-1.0, 0.7, 0.3], [0.4, -0.9, 0.5], [0.2, 0.6, -0.8]])))
    p0 = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)
    n, t = 60_000, 0.3
    law = process.transition(torch.arange(K)[None], 0.0, t).probs[0]
    q = p0 @ law
    forward = process.forward_rates(torch.arange(K)[None], t)[0]

    class Scaled(exact.Table):
        """The exact denoiser, with one entry of its law changed."""

        def __call__(self, x_t, t, cond=None, keep=None):
            found = super().__call__(x_t, t)
            changed = found.log_probs + FACTOR[0] * torch.eye(K, dtype=torch.float64)[2] * (x_t == 0)[..., None]
            return self.process.estimate(x_t, t, log_probs=changed.log_softmax(-1))

    class At:
        """All times at once."""

        def __call__(self, process, u):
            return torch.full_like(u, t)

    FACTOR, losses = [0.0], []
    x0 = torch.multinomial(p0, n, True, generator=torch.Generator().manual_seed(0))[:, None]
    for factor in (-0.3, 0.0, 0.3):
        FACTOR[0] = factor
        objective = orn.CampbellELBO()
        object.__setattr__(objective, "times", At())
        found = objective(Scaled(process, p0), x0, None, Noise(1, n)).per_example.double()
        back = process.rates(Scaled(process, p0)(torch.arange(K)[:, None], t), t)[:, 0]  # row x: R_hat(x, .)
        by_hand = 0.0  # check E21, with the constants
        for x in range(K):
            others = [y for y in range(K) if y != x]
            by_hand += float(q[x] * sum(back[x, y] - forward[x, y] for y in others))
            by_hand += float(q[x] * sum(forward[x, y] * (forward[x, y] / back[y, x]).log() for y in others))
        assert abs(float(found.mean()) - by_hand) < 4 * float(found.std()) / n**0.5
        losses.append(by_hand)
    assert losses[1] < min(losses[0], losses[2]) - 1e-4
    FACTOR[0] = 0.0
    ratios = q[None, :] / q[:, None]  # check E07: the true reverse rate is R(y, x) q_t(y) / q_t(x)
    back = process.rates(Scaled(process, p0)(torch.arange(K)[:, None], t), t)[:, 0]
    assert (back - forward.T * ratios)[~torch.eye(K, dtype=torch.bool)].abs().max() < 1e-12


def test_the_hybrid_is_the_bound_and_the_cross_entropy():
    n, x = 256, data(256)
    process = Categorical(None, orn.DiscretisedGaussian(K, length=20))
    denoiser = orn.DiscreteDenoiser(Logits(K), process, "d3pm")
    times = orn.UniformSteps(20)
    bound, both = (made(denoiser, x, None, Noise(5, n)) for made in (orn.VLB(times), orn.DiscreteHybrid(0.1, times)))
    assert torch.allclose(bound.per_example, both.parts["vlb"])
    assert torch.equal(bound.t, both.t)
    x_t = process.noise(x, both.t, _after_times(5, n))
    nll = -denoiser(x_t, both.t).log_prob(x) / 2
    assert torch.allclose(both.parts["cross_entropy"], 0.1 * nll, rtol=1e-5)
    # T times a term on average is the sum over the chain: the elbo's own, all terms
    many = data(20_000)
    loss = orn.VLB(times)(denoiser, many, None, Noise(6, 20_000)).per_example.detach().double() * 2
    whole = elbo(denoiser, many, steps=20, seed=3)
    assert abs(float(loss.mean()) + float((whole.total - whole.prior).mean())) < 4 * float(loss.std()) / 20_000**0.5


def _after_times(seed, n):
    """The noise of an objective where it has drawn its times."""
    rng = Noise(seed, n)
    rng.shared()
    return rng


@pytest.mark.parametrize("name", KERNELS)
def test_the_three_forms_of_the_elbo_agree(name):
    process = Categorical(FLOW, KERNELS[name])
    denoiser, x = exact.Table(process, joint_law()), data(1500)
    truth = denoiser.log_density(x, 0.0)
    forms = {
        "denoising": {"steps": 64},
        "path": {"steps": 64, "form": "path"},
        "limit": {"steps": math.inf, "terms": 64},
    }
    for form, options in forms.items():
        bound = elbo(denoiser, x, **options)
        assert bound.levels == K
        assert bound.dims == 2
        error = 4 * float((bound.total - truth).std()) / 1500**0.5
        lost = float((truth - bound.total).mean())
        assert -error < lost < error + (0.0 if form == "limit" else 0.06), form  # factorised steps lose .04
        assert abs(bound.bits_per_dim - -bound.mean / (2 * math.log(2))) < 1e-12
    drawn = elbo(denoiser, x, steps=64, terms=8)
    assert drawn.calls == 9
    assert abs(drawn.mean - bound.mean) < 4 * drawn.standard_error
    one = elbo(denoiser, x[:10], steps=64, terms=8, batch_size=3)
    assert (one.total - drawn.total[:10]).abs().max() < 1e-10


def test_what_does_not_fit_is_refused():
    process = Categorical(FLOW, orn.Uniform(K))
    denoiser, x, rng = orn.DiscreteDenoiser(Logits(K), process), data(8), Noise(0, 8)
    check_refusal(
        lambda: orn.MaskedCrossEntropy()(denoiser, x, None, rng), "for Uniform", "expected an Absorbing kernel"
    )
    numbers = orn.Denoiser(torch.nn.Identity(), orn.Gaussian(orn.CosineVP()), "v")
    check_refusal(lambda: orn.RateVLB()(numbers, x, None, rng), "got Gaussian", "Objective or VLB")
    table = orn.DiscreteDenoiser(Logits(K), Categorical(None, orn.DiscretisedGaussian(K, length=8)))
    check_refusal(lambda: orn.RateVLB()(table, x, None, rng), "of its 8 steps alone", "with UniformSteps(8)")
    check_refusal(lambda: orn.RateVLB(times=orn.UniformLogSNR()), "UniformLogSNR", "expected UniformTime()")
    check_refusal(lambda: orn.DiscreteHybrid(0.0), "weight=0.0", "for the bound alone VLB")
    check_refusal(lambda: orn.DiscreteDenoiser(Logits(K), process, "v"), "parametrization 'v'", "x0 or d3pm")
    check_refusal(
        lambda: orn.DiscreteDenoiser(Logits(K), process, head="logit"), "head 'logit'", "did you mean 'logits'"
    )
    check_refusal(
        lambda: orn.DiscreteDenoiser(Logits(K), orn.Gaussian(FLOW)), "Gaussian", "expected a Categorical process"
    )
    wrong = orn.DiscreteDenoiser(Logits(K, 5), process)
    check_refusal(lambda: wrong(x, 0.5), "output is (8, 2, 5)", "expected (8, 2, 3)")
    check_refusal(
        lambda: orn.sample(denoiser, orn.Heun(), n=2, shape=(2,)), "a sampler of numbers", "Ancestral(), TauLeaping()"
    )
    check_refusal(lambda: elbo(denoiser, x, terms=4, form="path"), "drawn terms", "terms=None")
    with pytest.raises(DataError, match="whole numbers 0 to 2"):
        elbo(denoiser, x + 1)
