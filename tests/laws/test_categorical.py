"""Categorical processes against matrices multiplied out by hand, sums over all paths, scipy's expm and closed forms."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import check_refusal

import ornstein as orn
from ornstein import exact, grids
from ornstein.noise import Noise
from ornstein.processes import Categorical
from ornstein.terms import CategoricalTerms

K, T = 3, 4
DRAWS = 2000
MIXED = 0.75  # how alike two sites are in the test of factorised steps
FLOW = orn.RectifiedFlow()
RATES = torch.tensor([[-1.0, 0.7, 0.3], [0.4, -0.9, 0.5], [0.2, 0.6, -0.8]], dtype=torch.float64)
KERNELS = {
    "uniform": orn.Uniform(K),
    "absorbing": orn.Absorbing(K),
    "marginal": orn.Marginal((0.2, 0.3, 0.5)),
    "birth-death": orn.BirthDeath(K),
    "neighbours": orn.Neighbours(torch.tensor([[0.0], [1.0], [1.5]]), 1),
    "rates": orn.Rates(RATES),
}


def stochastic(*shape, seed=0):
    """Random matrices with rows of sum 1, which do not commute."""
    table = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    return table / table.sum(-1, keepdim=True)


def chain(name):
    """A process with T steps, and its Q_1 .. Q_T written from the papers."""
    keeps = [1 - 1 / (T - i + 1) for i in range(1, T + 1)]  # alpha_i / alpha_{i-1} for alpha = 1 - i / T
    if name == "table":
        table = torch.cat([stochastic(T - 1, K, K), torch.full((1, K, K), 1 / K, dtype=torch.float64)])
        return Categorical(None, orn.Matrices(table)), table.numpy()
    if name == "absorbing":
        fresh = np.eye(K + 1)[[K] * (K + 1)]
        return Categorical(FLOW, KERNELS[name]), np.stack([a * np.eye(K + 1) + (1 - a) * fresh for a in keeps])
    if name in ("uniform", "marginal"):
        law = {"uniform": np.full(K, 1 / K), "marginal": np.array([0.2, 0.3, 0.5])}[name]
        return Categorical(FLOW, KERNELS[name]), np.stack([a * np.eye(K) + (1 - a) * law for a in keeps])
    rates = KERNELS[name].matrix.numpy()
    last = scipy.linalg.expm(rates * 1e3)
    found = [scipy.linalg.expm(rates * -math.log(a)) if a > 0 else last for a in keeps]
    return Categorical(FLOW, KERNELS[name]), np.stack(found)


CHAINS = ("table", *KERNELS)


def joint_of(steps, x0):
    """q(x_1 .. x_T | x_0) as an array with T axes."""
    states = steps.shape[-1]
    law = steps[0][x0]
    for matrix in steps[1:]:
        law = law[..., None] * matrix.reshape((1,) * (law.ndim - 1) + (states, states))
    return law


@pytest.mark.parametrize("name", CHAINS)
def test_every_posterior_is_that_of_the_enumerated_chain(name):
    process, steps = chain(name)
    states = steps.shape[-1]
    for x0, j in itertools.product(range(K), range(2, T + 1)):
        law = joint_of(steps, x0)
        for i in range(1, j):
            pair = law.sum(tuple(a for a in range(T) if a not in (i - 1, j - 1)))
            for x_t in np.flatnonzero(pair.sum(0)):
                estimate = process.estimate(torch.tensor([[x_t]]), j / T, x0=torch.tensor([[x0]]))
                found = process.posterior(estimate, j / T, i / T).probs[0, 0].numpy()
                assert np.abs(found - pair[:, x_t] / pair[:, x_t].sum()).max() < 1e-12
    # and at s = 0 it is x_0 itself
    estimate = process.estimate(torch.full((1, 1), states - 1), 1.0, x0=torch.tensor([[1]]))
    assert torch.equal(process.posterior(estimate, 1.0, 0.0).probs[0, 0, :K], torch.eye(K, dtype=torch.float64)[1])


@pytest.mark.parametrize("name", CHAINS)
def test_transitions_compose_and_batches_of_times_agree(name):
    process, steps = chain(name)
    states, x = steps.shape[-1], torch.arange(steps.shape[-1])[None]
    for i, j in itertools.combinations(range(T + 1), 2):
        product = np.linalg.multi_dot([np.eye(states), np.eye(states), *steps[i:j]])
        found = process.transition(x, i / T, j / T).probs[0].numpy()
        # what has already been absorbed or mixed entirely (alpha = 0) is checked from the data on
        assert np.abs(found - product)[: K if i == 0 else None].max() < 1e-12
    s, t = torch.tensor([0.0, 0.25, 0.5]).double(), torch.tensor([0.25, 0.75, 1.0]).double()
    many = process.transition(x.expand(3, -1), s, t).probs
    for row in range(3):
        one = process.transition(x, float(s[row]), float(t[row])).probs[0]
        assert (many[row] - one).abs().max() < 1e-14
        kernel = process.kernel.between(process.schedule, s, t)
        back = kernel.likelihood(x.expand(3, -1), states)[row]
        scale = back.sum(-1) / one.sum(0)  # up to a factor for each site, of what is possible at all
        assert (back - scale[:, None] * one.T)[one.sum(0) > 0].abs().max() < 1e-14
        weights = stochastic(3, 2, K)
        assert (kernel.mix(weights)[row] - weights[row] @ one[:K]).abs().max() < 1e-14


@pytest.mark.parametrize("name", KERNELS)
def test_rates_are_the_slopes_of_transitions_and_marginals_those_of_expm(name):
    process = Categorical(orn.LinearVP(0.5, 20.0), KERNELS[name])
    states = process.states
    x, t, h = torch.arange(states)[None], 0.4, 1e-6
    slope = (process.transition(x, t, t + h).probs[0] - torch.eye(states)) / h
    rates = process.forward_rates(x, t)[0]
    assert (rates - slope).abs().max() < 1e-3 * rates.abs().max()
    assert rates.sum(1).abs().max() < 1e-12
    columns = process.kernel.rate(process.schedule, t).columns(x)[0]
    assert (columns.T - rates).abs().max() < 1e-12
    unit = (rates / -process.schedule.f(t)).numpy()
    for time in (0.1, 0.5, 0.9):
        truth = scipy.linalg.expm(unit * -float(process.schedule.log_alpha(time)))
        assert np.abs(process.transition(x, 0.0, time).probs[0].numpy() - truth).max() < 1e-12


def test_masks_have_the_share_t_and_doubly_stochastic_kernels_end_uniform():
    process = Categorical(FLOW, orn.Absorbing(5))
    betas = [1 / (10 - i + 1) for i in range(1, 11)]
    for i in (1, 4, 10):  # check E05
        masked = process.transition(torch.tensor([[2]]), 0.0, i / 10).probs[0, 0, 5]
        assert abs(float(masked) - (1 - np.prod([1 - b for b in betas[:i]]))) < 1e-12
        assert abs(float(masked) - i / 10) < 1e-12
    for kernel in (orn.Uniform(6), orn.BirthDeath(6), orn.Neighbours(torch.randn(6, 2), 2), orn.DiscretisedGaussian(6)):
        schedule = None if kernel.steps else FLOW
        rows = kernel.between(schedule, 0.0, 1.0).rows(torch.arange(6)[None])[0]
        assert (rows - 1 / 6).abs().max() < (0.005 if kernel.steps else 1e-12)
        middle = kernel.between(schedule, 0.0, 0.5).rows(torch.arange(6)[None])[0]
        assert (middle.sum(0) - 1).abs().max() < 1e-12


def test_the_discretised_gaussian_is_that_of_the_paper():
    kernel = orn.DiscretisedGaussian(5, length=10, beta_start=0.01, beta_end=0.02)
    beta, k = np.linspace(0.01, 0.02, 10)[3] * 100, 5
    sums = sum(math.exp(-4 * n**2 / ((k - 1) ** 2 * beta)) for n in range(-(k - 1), k))
    matrix = np.array(
        [[math.exp(-4 * (i - j) ** 2 / ((k - 1) ** 2 * beta)) / sums for j in range(k)] for i in range(k)]
    )
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, 1 - matrix.sum(1))
    assert np.abs(kernel.table[3].numpy() - matrix).max() < 1e-14


@pytest.mark.parametrize("name", CHAINS)
def test_draws_have_the_probabilities_of_their_laws(name):
    process, steps = chain(name)
    n, x0 = 20_000, torch.tensor([0, 2])
    for t in (0.5, torch.full((n,), 0.5, dtype=torch.float64)):
        drawn = process.noise(x0.expand(n, 2), t, Noise(3, n))
        truth = process.transition(x0[None], 0.0, 0.5).probs[0]
        for site in range(2):
            seen = torch.bincount(drawn[:, site], minlength=process.states) / n
            assert (seen - truth[site]).abs().max() < 4 * 0.5 / n**0.5
            assert (seen[truth[site] == 0] == 0).all()
    prior = torch.bincount(process.prior((n,), Noise(4, n)), minlength=process.states) / n
    assert (
        prior - torch.from_numpy(np.linalg.multi_dot([np.eye(len(steps[0])), *steps])[:K].mean(0))
    ).abs().max() < 0.015
    law = process.transition(x0.expand(n, 2), 0.0, 0.5)
    log_probs = truth[[0, 1], drawn[0]].log().sum()
    assert abs(float(law.log_prob(drawn)[0] - log_probs)) < 1e-12


def two_sites(seed=1):
    """A correlated joint law of two sites."""
    table = torch.rand(K, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return 0.9 * table / table.sum() + 0.1 / K**2  # a chi-square test wants no cell of less than a few draws


@pytest.mark.parametrize("name", CHAINS)
def test_the_mixture_under_the_exact_estimate_is_the_exact_reverse_law(name):
    process, steps = chain(name)  # check E20, and the exact denoiser itself
    p0 = np.array([0.5, 0.1, 0.4])
    denoiser = exact.Table(process, torch.from_numpy(p0))
    for j in range(2, T + 1):
        before = p0 @ np.linalg.multi_dot([np.eye(steps.shape[-1]), *steps[: j - 1], np.eye(steps.shape[-1])])[:K]
        pair = before[:, None] * steps[j - 1]
        for x_t in np.flatnonzero(pair.sum(0)):
            estimate = denoiser(torch.tensor([[x_t]]), j / T)
            found = process.posterior(estimate, j / T, (j - 1) / T).probs[0, 0].numpy()
            assert np.abs(found - pair[:, x_t] / pair[:, x_t].sum()).max() < 1e-12
            density = denoiser.log_density(torch.tensor([[x_t]]), j / T)
            assert abs(float(density.exp()) - pair[:, x_t].sum()) < 1e-12


def bound_by_paths(process, steps, denoiser, x0):
    """E_q log q(x_1 .. x_T | x_0) / p(x_0, x_1 .. x_T), the negative bound, summed over all paths of all sites."""
    states, n = steps.shape[-1], len(x0)
    everything = torch.cartesian_prod(*[torch.arange(states)] * n).reshape(-1, n)
    laws = [joint_of(steps, x) for x in x0]
    reverse = {}
    for j in range(1, T + 1):
        for row, x_t in enumerate(everything):
            estimate = denoiser(x_t[None], j / T)
            law = estimate.probs[0] if j == 1 else process.posterior(estimate, j / T, (j - 1) / T).probs[0]
            reverse[j, row] = law.numpy()
    prior = np.linalg.multi_dot([np.eye(states), *steps])[:K].mean(0)
    number = {tuple(x.tolist()): row for row, x in enumerate(everything)}
    total = 0.0
    for paths in itertools.product(*[zip(*np.nonzero(law), strict=True) for law in laws]):
        chance = math.prod(law[path] for law, path in zip(laws, paths, strict=True))
        places = list(zip(*paths, strict=True))  # x_1 .. x_T, all sites
        log_p = sum(math.log(prior[x]) for x in places[-1])
        for j in range(T, 0, -1):
            target = places[j - 2] if j > 1 else tuple(x0)
            law = reverse[j, number[places[j - 1]]]
            log_p += sum(math.log(law[site][x]) for site, x in enumerate(target))
        total += chance * (math.log(chance) - log_p)
    return total


def bound_by_terms(process, denoiser, x0):
    """The same by the terms of the library, each averaged over all x_t exactly."""
    terms, data = CategoricalTerms(), torch.tensor([x0])
    everything = torch.cartesian_prod(*[torch.arange(process.states)] * len(x0)).reshape(-1, len(x0))
    total = float(terms.end(process, data, 1.0))
    for j in range(1, T + 1):
        rows = data.expand(len(everything), -1)
        chance = process.transition(rows, 0.0, j / T).log_prob(everything).exp()
        seen = chance > 0
        estimate = denoiser(everything[seen], j / T)
        costs = (
            -terms.last(estimate, rows[seen], 1 / T) if j == 1 else terms.step(estimate, rows[seen], j / T, (j - 1) / T)
        )
        total += float((chance[seen] * costs).sum())
    return total


@pytest.mark.parametrize("name", ["uniform", "absorbing", "table"])
def test_the_bound_is_the_sum_over_all_paths(name):
    process, steps = chain(name)
    p0 = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64)
    wrong = exact.Table(process, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))  # a model that is not exact
    for x0 in range(K):
        by_paths = bound_by_paths(process, steps, wrong, (x0,))
        assert abs(by_paths - bound_by_terms(process, wrong, (x0,))) < 1e-10
        assert by_paths > -math.log(float(p0[x0])) - 2
    # the exact denoiser of one site leaves no gap, on average over the data
    denoiser = exact.Table(process, p0)
    average = sum(float(p0[x]) * bound_by_terms(process, denoiser, (x,)) for x in range(K))
    mismatch = float((p0 * p0.log()).sum())
    prior = np.linalg.multi_dot([np.eye(process.states), *steps])
    end = float(torch.from_numpy(p0.numpy() @ prior[:K]).xlogy(torch.ones(1, dtype=torch.float64)).sum())
    assert end == 0
    assert abs(average + mismatch) < 1e-10


def test_two_sites_leave_the_gap_of_factorised_steps():
    process, steps = chain("uniform")
    joint = torch.eye(K, dtype=torch.float64) / K  # both sites alike
    joint = MIXED * joint + (1 - MIXED) / K**2
    denoiser = exact.Table(process, joint)
    gap = -float(-(joint * joint.log()).sum())
    for x0 in itertools.product(range(K), repeat=2):
        gap += float(joint[x0]) * bound_by_terms(process, denoiser, x0)
    one = bound_by_paths(process, steps, denoiser, (0, 1))
    assert abs(one - bound_by_terms(process, denoiser, (0, 1))) < 1e-10
    # the gap is what the reverse chain loses by drawing sites apart: sum over steps of the mutual information given x_t
    everything = torch.cartesian_prod(*[torch.arange(K)] * 2)
    lost = 0.0
    for j in range(1, T + 1):
        for x_t in everything:
            ahead = process.kernel.between(FLOW, (j - 1) / T, j / T).rows(torch.arange(K)[None])[0]
            pair = torch.exp(denoiser.log_density(everything, (j - 1) / T)) if j > 1 else joint.flatten()
            chance = pair * ahead[everything[:, 0], x_t[0]] * ahead[everything[:, 1], x_t[1]]
            law = (chance / chance.sum()).reshape(K, K)
            apart = law.sum(1, keepdim=True) * law.sum(0, keepdim=True)
            lost += float(chance.sum()) * float((law * (law / apart).log()).sum())
    assert abs(gap - lost) < 1e-10
    assert abs(gap - 0.20) < 0.05, gap


def test_the_bound_of_masks_with_the_exact_denoiser_is_exact():
    joint = two_sites()
    process = Categorical(FLOW, orn.Absorbing(K))
    denoiser, terms = exact.Table(process, joint), CategoricalTerms()
    nodes, weights = np.polynomial.legendre.leggauss(8)  # the integrand is a polynomial of t
    for x0 in itertools.product(range(K), repeat=2):
        data = torch.tensor([x0])
        total = float(terms.end(process, data, 1.0))
        for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            for kept in itertools.product((True, False), repeat=2):
                x_t = torch.where(torch.tensor([kept]), data, K)
                chance = math.prod(1 - t if keep else t for keep in kept)
                total += weight * chance * float(terms.rate(denoiser(x_t, float(t)), data, float(t)))
        assert abs(total + math.log(float(joint[x0]))) < 1e-12


def test_large_vocabularies_need_no_square_matrices():
    k = 50_000  # K x K of them would be 20 GB
    for kernel in (orn.Uniform(k), orn.Absorbing(k)):
        process = Categorical(FLOW, kernel)
        x0 = torch.tensor([[0, 1, 49_999, 7]])
        x_t = process.noise(x0, 0.5, Noise(0, 1))
        estimate = process.estimate(x_t, 0.5, log_probs=torch.full((1, 4, k), -math.log(k)))
        law, rates = process.posterior(estimate, 0.5, 0.25), process.rates(estimate, 0.5)
        assert law.probs.dtype == torch.float32
        assert law.probs.shape == rates.shape == (1, 4, process.states)
        assert (law.probs.sum(-1) - 1).abs().max() < 1e-4
        assert process.prior((1, 4), Noise(1, 1)).shape == (1, 4)


def test_the_ancestral_sampler_reaches_the_data_of_every_kernel():
    joint = two_sites()
    for name in CHAINS:
        process, _ = chain(name)
        if name == "table":
            process = Categorical(None, orn.DiscretisedGaussian(K, length=320))
        steps = 320 if name == "table" else 128  # sites are drawn apart in a step, which few steps show
        grid = grids.uniform(process, steps)
        found = orn.sample(exact.Table(process, joint), orn.Ancestral(), n=DRAWS, grid=grid, batch_size=DRAWS)
        assert found.calls == steps
        seen = torch.bincount(found.x[:, 0] * K + found.x[:, 1], minlength=K * K)
        expected = DRAWS * joint.flatten()
        assert float(((seen - expected) ** 2 / expected).sum()) < 26.1, name  # chi-square of 8 degrees at p = .001
    again = orn.sample(exact.Table(process, joint), n=10, grid=grid, batch_size=3)
    assert torch.equal(again.x, found.x[:10])  # sample i is a function of (seed, i)
    apart = joint.sum(1)[:, None] * joint.sum(0)
    assert float(((seen - DRAWS * apart.flatten()) ** 2 / (DRAWS * apart.flatten())).sum()) > 26.1


@pytest.mark.parametrize("name", ["absorbing", "uniform", "table"])
def test_samples_from_noised_data_begin_at_their_strength(name):
    process = Categorical(None, orn.DiscretisedGaussian(K, length=50)) if name == "table" else chain(name)[0]
    p0, strength, n = torch.tensor([0.5, 0.1, 0.4], dtype=torch.float64), 0.4, 20_000
    denoiser = exact.Table(process, p0)
    found = orn.sdedit(denoiser, torch.full((1, 1), 1), strength, n=n, steps=20, batch_size=n)
    noised = process.transition(torch.tensor([[1]]), 0.0, strength).probs[
        0, 0
    ]  # then back by the exact posterior of one site
    back = denoiser(torch.arange(process.states)[:, None], strength).probs[:, 0]
    truth = torch.where(noised[:, None] > 0, noised[:, None] * back, 0.0).sum(0)
    assert found.calls == 20
    assert (torch.bincount(found.x[:, 0], minlength=K) / n - truth).abs().max() < 4 * 0.5 / n**0.5
    check_refusal(lambda: grids.uniform(process, 4, begin=1.5), "got 1.5", "at most 1")


def test_what_makes_no_process_is_refused():
    bad, negative = RATES.clone(), RATES.clone()
    bad[0, 0], negative[2, 1] = 0.0, -0.1
    check_refusal(lambda: orn.Rates(bad), "sum to 1 in row 0", "minus the sum of the others")
    check_refusal(lambda: orn.Rates(negative), "-0.1 from state 2 to 1", "expected 0 or more off the diagonal")
    check_refusal(lambda: orn.Rates(torch.zeros(2, 3)), "shape (2, 3)", "expected finite numbers (K, K)")
    short = torch.stack([torch.eye(2), torch.tensor([[1.0, 0.0], [0.4, 0.5]])])
    check_refusal(lambda: orn.Matrices(short), "sum to 0.9 in row 1 of Q_2", "expected rows of sum 1")
    check_refusal(lambda: orn.Matrices(torch.tensor([[[1.5, -0.5], [0.0, 1.0]]])), "below 0", "from 0 to 1")
    far = "0.667 in total variation from its prior"
    check_refusal(lambda: Categorical(orn.GeometricVE(), orn.Uniform(3)), far, "alpha(1) = 0")
    check_refusal(lambda: Categorical(None, orn.Matrices(torch.eye(3)[None])), far, "take more noise")
    check_refusal(lambda: Categorical(FLOW, orn.Rates(torch.zeros(3, 3))), far, "expected at most 0.02")
    check_refusal(lambda: Categorical(None, orn.Uniform(3)), "schedule=None", "expected one, such as RectifiedFlow()")
    check_refusal(
        lambda: Categorical(FLOW, orn.DiscretisedGaussian(3)),
        "RectifiedFlow()",
        "None: a table of matrices has its own",
    )
    check_refusal(lambda: orn.Marginal((0.5, 0.6)), "sum to 1.1", "positive numbers of sum 1")
    apart = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
    check_refusal(lambda: orn.Neighbours(apart, 1), "no path joins", "expected more neighbours")
    check_refusal(lambda: orn.Neighbours(apart, 4), "neighbours=4", "from 1 to K - 1")
    check_refusal(lambda: orn.Uniform(1), "categories=1", "at least 2")
    check_refusal(lambda: orn.DiscretisedGaussian(3, length=1), "length=1", "at least 2 steps")
    process = Categorical(None, orn.DiscretisedGaussian(3, length=8))
    check_refusal(lambda: process.noise(torch.tensor([[1]]), 0.3, Noise(0, 1)), "t = 0.3", "expected i / 8")
    check_refusal(lambda: process.kernel.rate(None, 0.5), "without rates", "Uniform, Absorbing or Rates")
    check_refusal(lambda: grids.uniform(process, 9), "9 steps of a table of 8", "at most as many")
    x, half = torch.tensor([[1]]), 0.5
    estimate = process.estimate(x, half, x0=x)
    check_refusal(lambda: process.posterior(estimate, half, 0.25, eta=0.5), "eta=0.5 for categories", "expected eta=1")
    check_refusal(lambda: process.estimate(x, half), "both or neither", "expected one of them")
    check_refusal(lambda: process.estimate(x, half, log_probs=torch.zeros(1, 1, 2)), "(1, 1, 2)", "expected (1, 1, 3)")
    check_refusal(
        lambda: orn.Denoiser(torch.nn.Identity(), process), "for a Denoiser", "for categories DiscreteDenoiser"
    )
    check_refusal(lambda: exact.Table(process, torch.ones(3)), "sum 3", "expected probabilities")
