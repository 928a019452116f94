"""Continuous-time samplers of categories against matrix exponentials, the master equation, one step written out, and
chi-square tests."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
import torch
from helpers import check_refusal

import ornstein as orn
from ornstein import exact, grids
from ornstein.likelihood import elbo
from ornstein.noise import Noise
from ornstein.processes import Categorical
from ornstein.samplers.ctmc import euler_law, poisson
from ornstein.samplers.jumps import time_of

K, N = 3, 4000
FLOW, FINITE = orn.RectifiedFlow(), orn.LinearVP(2.0, 18.0)
RATES = torch.tensor([[-1.0, 0.7, 0.3], [0.4, -0.9, 0.5], [0.2, 0.6, -0.8]], dtype=torch.float64)
KERNELS = {
    "uniform": orn.Uniform(K),
    "absorbing": orn.Absorbing(K),
    "birth-death": orn.BirthDeath(K),
    "rates": orn.Rates(RATES),
}
P0 = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)


def joint_law():
    table = torch.rand(K, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3
    return 0.9 * table / table.sum() + 0.1 / K**2  # a chi-square test wants no cell of less than a few draws


def chi_square(x, joint):
    """The p-value of drawn pairs against a joint law."""
    seen = torch.bincount(x[:, 0] * K + x[:, 1], minlength=K * K).double()
    expected = len(x) * joint.flatten()
    return scipy.stats.chi2.sf(float(((seen - expected) ** 2 / expected).sum()), K * K - 1)


def generators(process, denoiser, t):
    """The matrices of forward and reverse rates at t, (S, S), of one site."""
    x = torch.arange(process.states)[:, None]
    return (rates[:, 0].numpy() for rates in (process.forward_rates(x, t), process.rates(denoiser(x, t), t)))


@pytest.mark.parametrize("name", KERNELS)
def test_the_reverse_chain_runs_back_to_the_data(name):
    process = Categorical(FINITE, KERNELS[name])
    denoiser = exact.Table(process, P0)
    x, s, t = torch.arange(process.states)[:, None], 0.05, 0.9

    def marginal(time):
        return denoiser.log_density(x, time).exp().numpy()

    forward, back = generators(process, denoiser, 0.4)
    q = marginal(0.4)
    held = q > 0
    ratio = np.where(np.outer(held, held), q[None] / np.where(held, q, 1.0)[:, None], 0.0)  # check E07
    off = ~np.eye(process.states, dtype=bool)
    assert np.abs(back - forward.T * ratio)[off].max() < 1e-12
    assert np.abs(q @ (forward + back)).max() < 1e-12  # the corrector's generator keeps q_t
    run = scipy.integrate.solve_ivp(  # the master equation in falling time, check E06
        lambda u, p: p @ list(generators(process, denoiser, t - u))[1], (0, t - s), marginal(t), rtol=1e-9, atol=1e-12
    )
    assert np.abs(run.y[:, -1] - marginal(s)).max() < 1e-6


@pytest.mark.parametrize("name", ["uniform", "rates"])
def test_the_error_of_euler_steps_falls_as_tau(name):
    process = Categorical(FINITE, KERNELS[name])
    denoiser = exact.Table(process, P0)
    x, begin, end, errors = torch.arange(process.states)[:, None], 0.9, 0.1, []
    for steps in (20, 40, 80):
        p, times = denoiser.log_density(x, begin).exp(), np.linspace(begin, end, steps + 1)
        for t, s in itertools.pairwise(times.tolist()):
            step = euler_law(process.rates(denoiser(x, t), t), x, t - s).probs[:, 0]  # the sampler's own law
            p = p @ step
        errors.append(float((p - denoiser.log_density(x, end).exp()).abs().max()))
    for coarse, fine in itertools.pairwise(errors):  # check E08
        assert 1.7 < coarse / fine < 2.4


def test_the_steps_draw_from_their_laws():
    n, t, s = 20_000, 0.6, 0.55
    process = Categorical(FINITE, orn.Rates(RATES))
    denoiser = exact.Table(process, P0)
    for start in range(K):
        x = torch.full((n, 1), start)
        rates = process.rates(denoiser(x[:1], t), t)[0, 0]
        moves = [float(rates[y]) * (t - s) if y != start else 0.0 for y in range(K)]
        euler = [m if y != start else 1 - sum(moves) for y, m in enumerate(moves)]
        one = [m * math.exp(-sum(moves)) for m in moves]  # exactly one jump, to y
        leap = [p if y != start else 1 - sum(one) for y, p in enumerate(one)]
        wrapped = [0.0] * K
        for counts in itertools.product(range(6), repeat=2):  # Poisson jumps added up and cut to the range
            others = [y for y in range(K) if y != start]
            chance = math.prod(scipy.stats.poisson.pmf(c, moves[y]) for c, y in zip(counts, others, strict=True))
            place = start + sum(c * (y - start) for c, y in zip(counts, others, strict=True))
            wrapped[min(max(place, 0), K - 1)] += chance
        laws = ((orn.CTMCEuler(), euler), (orn.TauLeaping(), leap), (orn.TauLeaping(ordinal=True), wrapped))
        for sampler, law in laws:
            moved, _ = sampler.step(denoiser, x, t, s, None, Noise(start, n))
            seen = torch.bincount(moved[:, 0], minlength=K) / n
            assert max(abs(float(a) - b) for a, b in zip(seen, law, strict=True)) < 4 * 0.5 / n**0.5, sampler
    mean = torch.tensor([0.0, 0.3, 2.0, 7.5]).repeat(5000, 1)
    counts = poisson(mean, Noise(0, 5000).uniform((5000, 4)))
    assert (counts.double().mean(0) - mean[0]).abs().max() < 4 * (7.5 / 5000) ** 0.5
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert np.array_equal(
        poisson(torch.full_like(u, 2.0), u).numpy(), scipy.stats.poisson.ppf(u.numpy() + 1e-12, 2.0).astype(int)
    )


SAMPLERS = {
    "gillespie": (orn.Gillespie(), {}),
    "ancestral": (orn.Ancestral(), {"steps": 192}),
    "euler": (orn.CTMCEuler(), {"steps": 192}),
    "leaping": (orn.TauLeaping(), {"steps": 192}),
    "corrected": (orn.PredictorCorrector(orn.Ancestral(), orn.CTMCCorrector()), {"steps": 64}),
}


@pytest.mark.parametrize(
    ("name", "kernel"), [(n, k) for n in SAMPLERS for k in ("uniform", "absorbing")] + [("ancestral", "rates")]
)
def test_pairs_have_their_joint_law(name, kernel):
    sampler, options = SAMPLERS[name]
    joint = joint_law()
    denoiser = exact.Table(Categorical(FLOW, KERNELS[kernel]), joint)
    found = orn.sample(denoiser, sampler, n=N, batch_size=N, seed=2, **options)
    assert chi_square(found.x, joint) > 0.001
    apart = joint.sum(1)[:, None] * joint.sum(0)
    assert chi_square(found.x, apart) < 1e-9  # the test sees what goes together
    if name in ("gillespie", "leaping") and kernel == "uniform":
        again = orn.sample(denoiser, sampler, n=7, batch_size=3, seed=2, **options)
        assert torch.equal(again.x, found.x[:7])


def test_gillespie_stays_within_a_step_near_the_ends():
    schedule, n = orn.CosineVP(), 20_000
    masks = exact.Table(Categorical(schedule, orn.Absorbing(K)), P0)
    s = 0.9997
    x, _ = orn.Gillespie().step(masks, torch.full((n, 1), K), 1.0, s, None, Noise(0, n))
    share = 1 - float(schedule.alpha(s))
    assert abs(float((x == K).double().mean()) - share) < 4 * (share * (1 - share) / n) ** 0.5
    uniform = exact.Table(Categorical(schedule, orn.Uniform(K)), P0)
    t, s = 0.012, 0.006
    start = torch.zeros(n, 1, dtype=torch.long)
    law = uniform.process.posterior(uniform(start[:1], t), t, s).probs[0, 0]
    moved, _ = orn.Gillespie().step(uniform, start, t, s, None, Noise(0, n))
    assert abs(float((moved != 0).double().mean()) - float(1 - law[0])) < 4 * (float(1 - law[0]) / n) ** 0.5 + 1e-6


def test_a_step_made_again_draws_anew():
    process = Categorical(FLOW, orn.Absorbing(K))
    rng, x = Noise(0, 50), torch.full((50, 2), K)
    found = [orn.FirstHitting().step(exact.Table(process, joint_law()), x, 1.0, 0.0, None, rng)[0] for _ in range(2)]
    assert not torch.equal(*found)
    again = orn.FirstHitting().step(exact.Table(process, joint_law()), x[:7], 1.0, 0.0, None, Noise(0, 7))[0]
    assert torch.equal(again, found[0][:7])


def test_few_steps_do_not_have_the_law():
    joint = joint_law()
    denoiser = exact.Table(Categorical(FLOW, KERNELS["uniform"]), joint)
    assert chi_square(orn.sample(denoiser, orn.CTMCEuler(), n=N, batch_size=N, steps=6).x, joint) < 1e-4


@pytest.mark.parametrize("schedule", [FLOW, orn.CosineVP()])
def test_first_hitting_makes_a_call_a_token(schedule):
    joint = joint_law()
    process = Categorical(schedule, orn.Absorbing(K))
    denoiser = exact.Table(process, joint)
    found = orn.sample(denoiser, orn.FirstHitting(), n=N, batch_size=N)
    assert found.calls == 2
    assert chi_square(found.x, joint) > 0.001
    assert torch.equal(orn.sample(denoiser, orn.FirstHitting(), n=5, batch_size=2).x, found.x[:5])
    held = orn.Inpainting(orn.FirstHitting(), torch.tensor([[1, 0]]), torch.tensor([[False, True]]))
    given = orn.sample(denoiser, held, n=N, batch_size=N)
    assert given.calls == 1
    assert (given.x[:, 0] == 1).all()
    seen = torch.bincount(given.x[:, 1], minlength=K) / N
    assert (seen - joint[1] / joint[1].sum()).abs().max() < 4 * 0.5 / N**0.5
    alpha = torch.tensor([0.999, 0.5, 0.001], dtype=torch.float64)
    assert (schedule.alpha(time_of(schedule, alpha)) - alpha).abs().max() < 1e-12


def test_first_hitting_reveals_at_the_times_of_the_chain():
    n, s = 20_000, 0.4
    denoiser = exact.Table(Categorical(FLOW, orn.Absorbing(K)), joint_law())
    x, _ = orn.FirstHitting().step(denoiser, torch.full((n, 2), K), 1.0, s, None, Noise(0, n))
    masked = (x == K).sum(1)
    for count, truth in enumerate(scipy.stats.binom.pmf([0, 1, 2], 2, s)):  # each site is masked with probability s
        assert abs(float((masked == count).double().mean()) - truth) < 4 * 0.5 / n**0.5


def test_a_prompt_is_conditioned_on_exactly_by_masks():
    joint = joint_law()
    for kernel, exactly in ((orn.Absorbing(K), True), (orn.Uniform(K), False)):
        denoiser = exact.Table(Categorical(FLOW, kernel), joint)
        held = orn.Inpainting(orn.Ancestral(), torch.tensor([[2, 0]]), torch.tensor([[False, True]]))
        x = orn.sample(denoiser, held, n=N, steps=64, batch_size=N).x
        assert (x[:, 0] == 2).all()
        error = (torch.bincount(x[:, 1], minlength=K) / N - joint[2] / joint[2].sum()).abs().max()
        assert (error < 4 * 0.5 / N**0.5) == exactly, error


def test_the_bound_of_one_site_a_step_is_that_of_all_orders():
    """-log p(x) >= the mean over orders of sum_i -log p(x_i | x before i): Uria et al. 2014; Hoogeboom et al. 2022."""
    generator = torch.Generator().manual_seed(4)
    table = torch.randn(*(K + 1,) * 3, 3, K, generator=generator, dtype=torch.float64)  # any network of three sites

    class Network(torch.nn.Module):
        def forward(self, x, time):
            return table[x[:, 0], x[:, 1], x[:, 2]]

    process = Categorical(FLOW, orn.Absorbing(K))
    denoiser = orn.DiscreteDenoiser(Network(), process)
    x0 = torch.tensor([[2, 0, 1]])
    orders = []
    for order in itertools.permutations(range(3)):
        x, total = torch.full((1, 3), K), 0.0
        for site in order:
            total += float(table[tuple(x[0])][site].log_softmax(0)[x0[0, site]])
            x[0, site] = x0[0, site]
        orders.append(total)
    nodes, weights = np.polynomial.legendre.leggauss(10)
    bound = 0.0
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        for masks in itertools.product((True, False), repeat=3):
            x_t = torch.where(torch.tensor([masks]), K, x0)
            chance = math.prod(t if masked else 1 - t for masked in masks)
            bound += weight * chance / t * float(denoiser(x_t, float(t)).log_prob(x0))
    assert abs(bound - np.mean(orders)) < 1e-10
    drawn = elbo(denoiser, x0.expand(4000, 3), steps=math.inf, terms=16)
    assert abs(drawn.mean - np.mean(orders)) < 4 * drawn.standard_error


def test_tempering_is_its_formula():
    process = Categorical(FLOW, orn.Absorbing(K))
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    denoiser, masked = exact.Table(process, law), torch.full((1, 1), K)
    for temperature in (0.5, 2.0):
        found = orn.Tempered(denoiser, temperature)(masked, 0.5).probs[0, 0]
        assert (found - law ** (1 / temperature) / (law ** (1 / temperature)).sum()).abs().max() < 1e-12
    for top_p, kept in ((0.5, [1, 0, 0]), (0.599, [1, 0, 0]), (0.61, [2 / 3, 1 / 3, 0]), (0.95, [0.6, 0.3, 0.1])):
        found = orn.Tempered(denoiser, top_p=top_p)(masked, 0.5).probs[0, 0]
        assert (found - torch.tensor(kept, dtype=torch.float64)).abs().max() < 1e-12
    x = orn.sample(orn.Tempered(denoiser, top_p=0.5), n=50, steps=4).x
    assert (x == 0).all()
    assert torch.equal(
        orn.Tempered(denoiser)(torch.tensor([[1]]), 0.5).probs[0, 0], torch.eye(K, dtype=torch.float64)[1]
    )
    check_refusal(lambda: orn.Tempered(denoiser, 0.0), "temperature=0.0", "temperature > 0")
    check_refusal(lambda: orn.Tempered(denoiser, top_p=1.5), "top_p=1.5", "at most 1")
    numbers = exact.Normal(orn.Gaussian(orn.CosineVP()), torch.zeros(2), 1.0)
    check_refusal(lambda: orn.Tempered(numbers), "Gaussian", "expected one of categories")


def test_what_does_not_fit_is_refused():
    uniform = exact.Table(Categorical(FLOW, orn.Uniform(K)), joint_law())
    numbers = exact.Normal(orn.Gaussian(orn.CosineVP()), torch.zeros(2), 1.0)
    table = exact.Table(Categorical(None, orn.DiscretisedGaussian(K, length=8)), joint_law())
    for sampler in (orn.CTMCEuler(), orn.TauLeaping(), orn.Gillespie(), orn.FirstHitting()):
        check_refusal(lambda s=sampler: orn.sample(numbers, s, n=2), "a sampler of categories", "Multistep(), Heun()")
    for sampler in (orn.Heun(), orn.Multistep(), orn.RK45(), orn.EulerMaruyama(), orn.Langevin()):
        check_refusal(
            lambda s=sampler: orn.sample(uniform, s, n=2), "a sampler of numbers", "TauLeaping() or CTMCEuler()"
        )
    corrected = orn.PredictorCorrector(orn.CTMCEuler(), orn.CTMCCorrector())
    check_refusal(lambda: orn.sample(numbers, corrected, n=2), "a sampler of categories", "expected Multistep()")
    check_refusal(lambda: orn.sample(uniform, orn.FirstHitting(), n=2), "for Uniform", "for others Gillespie()")
    check_refusal(
        lambda: orn.sample(table, orn.CTMCEuler(), n=2, steps=4), "without rates", "Uniform, Absorbing or Rates"
    )
    masks = exact.Table(Categorical(FLOW, orn.Absorbing(K)), joint_law())
    check_refusal(
        lambda: orn.sample(masks, orn.TauLeaping(ordinal=True), n=2, steps=4), "no place in an order", "expected False"
    )
    low = orn.ILVR(orn.Ancestral(), torch.zeros(1, 2), filter=1)
    check_refusal(lambda: orn.sample(uniform, low, n=2, steps=3), "a sampler of numbers", "expected Ancestral()")
    check_refusal(lambda: orn.CTMCCorrector(eps=2.0), "eps=2.0", "0 < eps <= 1")
    x = torch.zeros(1, 2, dtype=torch.long)
    check_refusal(
        lambda: orn.CTMCCorrector().step(uniform, x, 0.5, 0.4, None, Noise(0, 1)), "for a corrector", "expected s = t"
    )
    check_refusal(lambda: orn.CTMCEuler().step(uniform, x, 0.4, 0.5, None, Noise(0, 1)), "to s = 0.5", "a falling grid")
    check_refusal(
        lambda: orn.sample(uniform, orn.Ancestral(eta=0.0), n=2, steps=4), "eta=0.0 for categories", "expected eta=1"
    )
    assert len(grids.uniform(uniform.process, 5)) == 6
