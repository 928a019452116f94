"""Importance-sampled times: the law by its quantiles, the mean by enumeration, the history against deques."""

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Fixed

import ornstein as orn
from ornstein import exact
from ornstein.errors import CheckpointError, ConfigurationError
from ornstein.objectives import VLB, History, Importance, Objective, Simple, Stratified, UniformSteps

P = torch.tensor([0.05, 0.5, 0.15, 0.3], dtype=torch.float64)
TOY = orn.Gaussian(orn.TableSchedule.from_betas([0.1, 0.2, 0.35, 0.5]))


def test_steps_are_drawn_by_their_probabilities():
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for law, p in ((Importance(4, probabilities=P), P), (Importance(4), P * 0 + 0.25)):
        t = law(TOY, u)
        counts = torch.bincount((4 * t).long(), minlength=5)[1:]
        assert (counts - 1000 * p).abs().max() <= 1  # stratified: any u gives the law to within one
        assert torch.allclose(law.weight(t), (0.25 / p)[(4 * t).long() - 1], rtol=1e-12)
    one = torch.stack([Importance(4, probabilities=P)(TOY, v[None]) for v in u])
    assert torch.allclose(torch.bincount((4 * one[:, 0]).long(), minlength=5)[1:].double() / 1000, P, atol=0.05)
    edges = Importance(4, probabilities=P)(TOY, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert edges.tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    "objective", [Objective(UniformSteps(4), Simple("x0")), VLB(UniformSteps(4))], ids=lambda o: type(o).__name__
)
def test_the_mean_over_the_steps_is_unbiased(objective):
    """One example, so that a loss is a function of its step: its mean is the plain mean over steps, whatever p."""
    n = 6000
    denoiser = exact.Normal(TOY, torch.zeros(1).double(), 0.25)

    def losses(times):
        x0, eps = torch.full((n, 1), 0.8, dtype=torch.float64), torch.full((n, 1), -0.5, dtype=torch.float64)
        u = torch.full((n,), 0.5, dtype=torch.float64)
        return replace(objective, times=times)(denoiser, x0, None, Fixed(eps, u=u))

    each = torch.stack([losses(Stratified(UniformSteps(4))).per_example[k * n // 4] for k in range(4)])
    drawn = losses(Importance(4, probabilities=P))
    assert float(drawn.mean) == pytest.approx(float(each.mean()), rel=2e-3)
    step = (4 * drawn.t).long() - 1
    assert torch.allclose(drawn.term, each[step], rtol=1e-12)
    assert torch.allclose(drawn.per_example, each[step] / (4 * P[step]), rtol=1e-12)
    assert drawn.weight is not None
    assert float((drawn.per_example - each[step]).abs().min()) > 1e-3
    for part in drawn.parts.values():
        assert float(part.sum()) != 0
    if drawn.parts:
        assert torch.allclose(torch.stack(list(drawn.parts.values())).sum(0), drawn.per_example)


def test_the_variance_falls_on_the_profile_of_a_bound():
    """A38: DDPM's 1000 steps, L_0 and the terms of unit-variance data, noise of 50 %: 12.7k -> 14 nats^2."""
    beta = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - beta)
    tilde = (1 - np.r_[1, abar[:-1]]) / (1 - abar) * beta
    mean = np.r_[abs(0.5 * np.log(2 * np.pi * beta[0]) + 0.5), 0.5 * np.log(beta[1:] / tilde[1:])]
    values = mean * np.abs(1 + 0.5 * np.random.default_rng(0).standard_normal((200, 1000)))
    law = Importance(1000, keep=200)
    history = History(law)
    for row in values:
        history.update(torch.arange(1, 1001) / 1000, torch.from_numpy(row))
    p = history.probabilities()
    assert p is not None
    second, total = (values**2).mean(0), values.mean(0).sum()
    t = torch.arange(1, 1001).double() / 1000
    weight = replace(law, probabilities=p).weight(t).numpy()  # of T L_i, whose mean over uniform steps is the sum
    spread = (p.numpy() * (1000 * weight) ** 2 * second).sum() - total**2
    uniform, best = 1000 * second.sum() - total**2, np.sqrt(second).sum() ** 2 - total**2
    assert uniform == pytest.approx(12.7e3, rel=0.1)
    assert best == pytest.approx(14, rel=0.2)
    assert spread == pytest.approx(best, rel=0.02)


def test_the_history_is_that_of_deques():
    rng, law = np.random.default_rng(1), Importance(5, keep=3, mix=0.1)
    history, truth = History(law), [deque(maxlen=3) for _ in range(5)]
    for n in (1, 4, 40, 7, 2):  # 40: more of a step than are kept
        step, terms = rng.integers(1, 6, n), rng.normal(size=n)
        full = all(len(d) == 3 for d in truth)
        p = history.probabilities()
        assert (p is None) == (not full)
        if p is not None:
            root = np.sqrt([np.mean(np.square(d)) for d in truth])
            assert np.allclose(p.numpy(), 0.9 * root / root.sum() + 0.1 / 5, rtol=1e-12)
            replace(law, probabilities=p)
        history.update(torch.from_numpy(step / 5), torch.from_numpy(terms))
        for s, v in zip(step, terms, strict=True):
            truth[s - 1].append(v)
        for row, held, count in zip(history.values, truth, history.count, strict=True):
            assert sorted(row[: int(count)].tolist()) == pytest.approx(sorted(held))
    assert int(history.count.sum()) == 54


def test_a_history_goes_on_from_its_state_bit_for_bit():
    rng, law = torch.Generator().manual_seed(2), Importance(6, keep=2)

    def batches():
        for _ in range(4):
            yield torch.randint(1, 7, (20,), generator=rng) / 6, torch.randn(20, generator=rng)

    told = list(batches())
    whole, first, second = History(law), History(law), History(law)
    for batch in told:
        whole.update(*batch)
    for batch in told[:2]:
        first.update(*batch)
    saved, held = first.state(), first.values.clone()
    first.update(*told[0])
    assert torch.equal(saved["values"], held)  # a copy
    second.restore(saved)
    for batch in told[2:]:
        second.update(*batch)
    assert torch.equal(second.values, whole.values)
    assert torch.equal(second.count, whole.count)
    assert torch.equal(second.probabilities(), whole.probabilities())
    parts = History(law)
    for t, terms in told:  # two processes, told in the order of their rank
        parts.update(t[:9], terms[:9])
        parts.update(t[9:], terms[9:])
    assert torch.equal(parts.values, whole.values)


def test_losses_of_zero_are_drawn_uniformly():
    history = History(Importance(3, keep=1))
    history.update(torch.tensor([1, 2, 3]) / 3, torch.zeros(3))
    assert torch.allclose(history.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))


def test_what_does_not_fit_is_refused_in_words():
    for wrong, said in (
        (lambda: Importance(0), "steps=0"),
        (lambda: Importance(keep=0), "keep=0"),
        (lambda: Importance(mix=0.0), "left out of the sum"),
        (lambda: Importance(4, probabilities=P[:3]), r"expected \(4,\)"),
        (lambda: Importance(4, probabilities=2 * P), "of sum 1"),
        (lambda: Importance(2, probabilities=torch.tensor([0.0, 1.0])), "all positive"),
        (lambda: Stratified(Importance()), "stratified already"),
        (lambda: Stratified(Stratified()), "stratified already"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            wrong()
    with pytest.raises(CheckpointError, match="another law"):
        History(Importance(4)).restore(History(Importance(5)).state())
