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
from ornstein.errors import NumericalError
from ornstein.likelihood import elbo
from ornstein.noise import Noise
from ornstein.processes import Categorical
from ornstein.samplers.ctmc import at_an_end, euler_law, poisson
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
    n, t, s, far = 20_000, 0.6, 0.55, 0.2
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
        for counts in itertools.product(
            range(12), repeat=2
        ):  # Poisson jumps of a long step, added up and cut to the range
            others = [y for y in range(K) if y != start]
            chance = math.prod(
                scipy.stats.poisson.pmf(c, float(rates[y]) * (t - far)) for c, y in zip(counts, others, strict=True)
            )
            place = start + sum(c * (y - start) for c, y in zip(counts, others, strict=True))
            wrapped[min(max(place, 0), K - 1)] += chance
        laws = ((orn.CTMCEuler(), s, euler), (orn.TauLeaping(), s, leap), (orn.TauLeaping(ordinal=True), far, wrapped))
        for sampler, end, law in laws:
            moved, _ = sampler.step(denoiser, x, t, end, None, Noise(start, n))
            seen = torch.bincount(moved[:, 0], minlength=K) / n
            assert max(abs(float(a) - b) for a, b in zip(seen, law, strict=True)) < 4 * 0.5 / n**0.5, sampler
    mean = torch.tensor([0.0, 0.3, 2.0, 7.5]).repeat(5000, 1)
    counts = poisson(mean, Noise(0, 5000).uniform((5000, 4)))
    assert (counts.double().mean(0) - mean[0]).abs().max() < 4 * (7.5 / 5000) ** 0.5
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert np.array_equal(
        poisson(torch.full_like(u, 2.0), u).numpy(), scipy.stats.poisson.ppf(u.numpy() + 1e-12, 2.0).astype(int)
    )


def step_law(kind, denoiser, x, t, s):
    """The law of each site (b, n, S) after one step of a sampler from states x."""
    estimate, process = denoiser(x, t), denoiser.process
    if kind == "ancestral" or at_an_end(process, t, s):
        return process.posterior(estimate, t, s).probs
    rates = process.rates(estimate, t)
    if kind == "euler":
        return euler_law(rates, x, t - s).probs
    moves = ((t - s) * rates).scatter(-1, x[..., None], 0.0)
    one = moves * torch.exp(-moves.sum(-1, keepdim=True))  # exactly one jump
    return one.scatter(-1, x[..., None], 1 - one.sum(-1, keepdim=True))


def pair_law(kind, denoiser, steps):
    """The law of pairs that a sampler makes in equal steps from t = 1 to 0, with no draw: all states carried along."""
    process, n = denoiser.process, denoiser.process.states
    x = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    p = process.prior_law((len(x), 2)).probs.gather(2, x[..., None])[..., 0].prod(1)
    for t, s in itertools.pairwise(np.linspace(1, 0, steps + 1).tolist()):
        law = step_law(kind, denoiser, x[p > 0], t, s)
        p = torch.einsum("b,by,bz->yz", p[p > 0], law[:, 0], law[:, 1]).flatten()
    return p.view(n, n)[:K, :K]


@pytest.mark.parametrize("kind", ["ancestral", "euler", "leaping"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_error_of_pairs_falls_as_tau(name, kind):
    joint = joint_law()
    denoiser = exact.Table(Categorical(FLOW, KERNELS[name]), joint)
    errors = [float((pair_law(kind, denoiser, steps) - joint).abs().max()) for steps in (24, 48, 96)]
    for coarse, fine in itertools.pairwise(errors):
        assert 1.7 < coarse / fine < 2.4
    assert errors[-1] < 0.007


@pytest.mark.parametrize("name", KERNELS)
def test_the_corrector_keeps_its_law(name):
    process, t = Categorical(FLOW, KERNELS[name]), 0.4
    denoiser = exact.Table(process, P0)
    law = denoiser.log_density(torch.arange(process.states)[:, None], t).exp()
    x = (torch.arange(N) + 0.5)[:, None] / N
    x = (x.double() > law.cumsum(0)).sum(1, keepdim=True)  # of the law, but for rounding
    moved, _ = orn.CTMCCorrector(eps=0.4, steps=40).step(denoiser, x, t, t, None, Noise(3, N))
    seen = torch.bincount(moved[:, 0], minlength=process.states).double()
    assert scipy.stats.chi2.sf(float(((seen - N * law) ** 2 / (N * law)).sum()), process.states - 1) > 0.001
    together = float((moved == x).double().mean()) - float((law**2).sum())
    assert together < 4 * 0.5 / N**0.5  # where it began is forgotten


SAMPLERS = {
    "gillespie": (orn.Gillespie(intervals=16), {}),
    "ancestral": (orn.Ancestral(), {"steps": 64}),
    "euler": (orn.CTMCEuler(), {"steps": 64}),
    "leaping": (orn.TauLeaping(), {"steps": 96}),
    "corrected": (orn.PredictorCorrector(orn.Ancestral(), orn.CTMCCorrector()), {"steps": 32}),
}
PAIRS = [(n, k) for n in SAMPLERS for k in ("uniform", "absorbing")] + [
    ("ancestral", "rates"),
    ("gillespie", "birth-death"),
]


@pytest.mark.parametrize(("name", "kernel"), PAIRS)
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


def test_gillespie_wants_a_bound_of_its_rates():
    def log_odds(t):  # they fall at once about t = 0.5
        return 20 * (0.5 - t) + 6 * torch.tanh(60 * (0.5 - t))

    schedule = orn.FromAlphaSigma(lambda t: torch.sigmoid(log_odds(t)), lambda t: torch.sigmoid(-log_odds(t)))
    denoiser = exact.Table(Categorical(schedule, orn.Uniform(K)), P0)
    with pytest.raises(NumericalError, match=r"times their bound in one of 1 intervals.*Gillespie\(intervals=4\)"):
        orn.sample(denoiser, orn.Gillespie(1), n=500, batch_size=500)
    x = orn.sample(denoiser, orn.Gillespie(4), n=N, batch_size=N).x
    assert (torch.bincount(x[:, 0], minlength=K) / N - P0).abs().max() < 4 * 0.5 / N**0.5


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
    denoiser, seen = exact.Table(Categorical(FLOW, orn.Absorbing(K)), joint_law()), []

    class Watched:
        process = denoiser.process

        def __call__(self, x, t, cond=None, keep=None):
            seen.append(t)
            return denoiser(x, t)

    x, rng, s = torch.full((N, 2), K), Noise(0, N), 1.0
    for t, s in itertools.pairwise([1.0, 0.6, 0.2]):  # stopped on the way: each site is a mask with probability s
        x, _ = orn.FirstHitting().step(denoiser, x, t, s, None, rng)
        masks = (x == K).sum(1)
        counts = torch.bincount(masks, minlength=3).double()
        expected = N * torch.tensor([(1 - s) ** 2, 2 * s * (1 - s), s**2], dtype=torch.float64)
        assert scipy.stats.chi2.sf(float(((counts - expected) ** 2 / expected).sum()), 2) > 0.001
        first = int((x[masks == 1][:, 0] == K).sum())
        assert scipy.stats.binomtest(first, int(counts[1]), 0.5).pvalue > 0.001
    orn.FirstHitting().step(Watched(), torch.full((N, 2), K), 1.0, 0.0, None, Noise(1, N))
    later, sooner = (times.numpy() for times in seen)  # the larger and the smaller of two uniform numbers
    assert scipy.stats.kstest(later, lambda t: t**2).pvalue > 0.001
    assert scipy.stats.kstest(sooner, lambda t: 1 - (1 - t) ** 2).pvalue > 0.001


@pytest.mark.parametrize("name", [*SAMPLERS, "ordinal", "first hitting"])
def test_states_of_any_shape(name):
    """Images (b, c, h, w) go as the same sites in a row do."""
    more = {
        "ordinal": (orn.TauLeaping(ordinal=True), {"steps": 8}),
        "first hitting": (orn.FirstHitting(), {}),
    }
    sampler, options = {**SAMPLERS, **more}[name]
    process = Categorical(FLOW, orn.Absorbing(K) if name == "first hitting" else orn.Uniform(K))
    table = torch.randn(process.states, 7, K, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    class Network(torch.nn.Module):
        def forward(self, x, time):
            everywhere = x.flatten(1).sum(1) % 7
            return table[x, everywhere.reshape(-1, *(1,) * (x.ndim - 1))] + time.reshape(-1, *(1,) * x.ndim) / 1000

    denoiser, options = (
        orn.DiscreteDenoiser(Network(), process),
        {**options, **({"steps": 8} if "steps" in options else {})},
    )
    image = orn.sample(denoiser, sampler, n=3, shape=(2, 1, 3), seed=1, **options)
    row = orn.sample(denoiser, sampler, n=3, shape=(6,), seed=1, **options)
    assert image.x.shape == (3, 2, 1, 3)
    assert torch.equal(image.x.flatten(1), row.x)
    assert 0 <= int(image.x.min()) <= int(image.x.max()) < K


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
    mixed = orn.PredictorCorrector(orn.Ancestral(), orn.CTMCCorrector())
    check_refusal(lambda: orn.sample(numbers, mixed, n=2), "a sampler of categories", "expected Multistep()")
    of_numbers = orn.PredictorCorrector(orn.Ancestral(), orn.Langevin())
    check_refusal(lambda: orn.sample(uniform, of_numbers, n=2), "a sampler of numbers", "expected Ancestral()")
    check_refusal(lambda: orn.CTMCCorrector(eps=2.0), "eps=2.0", "0 < eps <= 0.5")
    check_refusal(lambda: orn.CTMCCorrector(steps=1.5), "steps=1.5", "a whole number of steps")
    check_refusal(lambda: orn.Gillespie(0), "intervals=0", "at least 1")
    x = torch.zeros(1, 2, dtype=torch.long)
    check_refusal(
        lambda: orn.CTMCCorrector().step(uniform, x, 0.5, 0.4, None, Noise(0, 1)), "for a corrector", "expected s = t"
    )
    check_refusal(lambda: orn.CTMCEuler().step(uniform, x, 0.4, 0.5, None, Noise(0, 1)), "to s = 0.5", "a falling grid")
    check_refusal(
        lambda: orn.sample(uniform, orn.Ancestral(eta=0.0), n=2, steps=4), "eta=0.0 for categories", "expected eta=1"
    )
    assert len(grids.uniform(uniform.process, 5)) == 6
