"""What `ornstein bench` measures, against recursions, closed forms and drawn samples."""

import math

import numpy as np
import pytest
import torch
from helpers import SCHEDULES, level, moments

import ornstein as orn
from ornstein import accuracy, grids

FOCUSED = accuracy.Contender("usual", None, lambda sampler, steps: grids.focused(orn.Gaussian(orn.LinearVP()), steps))


@pytest.mark.parametrize("name", ["linear", "edm", "flow"])
@pytest.mark.parametrize(
    "sampler", [orn.Ancestral(), orn.Ancestral(0.4), orn.StochasticHeun(), orn.Heun(churn=0.2), orn.StochasticHeun(0.0)]
)
def test_the_law_of_a_run_by_its_steps_one_by_one(sampler, name):
    """Mean and variance carried through affine steps that are found at each step anew, in place of impulses through the run."""
    process, grid = orn.Gaussian(SCHEDULES[name]), grids.karras(orn.Gaussian(SCHEDULES[name]), 7)
    law = accuracy.law_of(process, sampler, grid)
    denoiser = orn.exact.Normal(process, torch.tensor([accuracy.MEAN]).double(), accuracy.VARIANCE)
    begun = level(process.schedule, float(grid[0]))[1] ** 2
    truth = moments(sampler, denoiser, grid.tolist(), 0.0, begun)
    if process.level(float(grid[-1])).sigma > 0:  # then the run lands by x_0, an affine map too
        at = torch.tensor([[0.0], [1.0]]).double()
        rest, one = denoiser(at, float(grid[-1])).x0.flatten().tolist()
        truth = rest + (one - rest) * truth[0], (one - rest) ** 2 * truth[1]
    assert law.mean == pytest.approx(truth[0], rel=1e-9)
    assert law.variance == pytest.approx(truth[1], rel=1e-9)
    assert law.calls in ((7,) if sampler.stages == 1 else (13,))


def test_the_law_of_a_multistep_run_by_samples():
    """With a memory, steps one by one do not tell: 200,000 draws, to five standard errors."""
    process = orn.Gaussian(orn.LinearVP())
    sampler, grid = orn.Multistep(2, "x0", exact=False, noise=1.0), grids.karras(process, 9)
    mean, variance, *_ = accuracy.law_of(process, sampler, grid)
    denoiser = orn.exact.Normal(process, torch.tensor([accuracy.MEAN]).double(), accuracy.VARIANCE)
    x = orn.sample(denoiser, sampler, n=200_000, grid=grid, seed=3, batch_size=50_000).x.double()
    assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / 2e5))
    assert float(x.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / 2e5))


@pytest.mark.parametrize("noise", [0.6, 1.0])
@pytest.mark.parametrize("name", ["linear", "ve", "subvp", "flow"])
def test_weak_order_of_multistep_with_noise(name, noise):
    """Order 1 as declared, against the exact law at t = .1 of what starts from N(0, sigma^2) at .9: along the reverse equation
    the distance from p_t shrinks by ((v + r_s^2) / (v + r_t^2))^((1 + noise^2) / 2), r = sigma / alpha."""
    process, sampler = orn.Gaussian(SCHEDULES[name]), orn.Multistep(2, "x0", exact=False, noise=noise)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(process.schedule, 0.9), level(process.schedule, 0.1)
    at_t, at_s = (accuracy.VARIANCE + (s / a) ** 2 for a, s in ((alpha_t, sigma_t), (alpha_s, sigma_s)))
    kept = alpha_s / alpha_t * (at_s / at_t) ** ((1 + noise**2) / 2)
    mean = alpha_s * accuracy.MEAN - kept * alpha_t * accuracy.MEAN
    variance = alpha_s**2 * at_s + kept**2 * (sigma_t**2 - alpha_t**2 * at_t)
    errors = []
    for steps in (60, 120):
        law = accuracy.law_of(process, sampler, torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64))
        errors.append(max(abs(law.mean - mean), abs(law.variance - variance)))
    assert math.log2(errors[0] / errors[1]) >= sampler.order - 0.25
    assert errors[1] < 0.1


@pytest.mark.parametrize("name", ["linear", "edm", "ve", "table-linear", "table-cosine", "flow"])
def test_ends_of_exact_paths(name):
    """At sigma = 0 whatever the schedule's first level: the normal target's in closed form."""
    process = orn.Gaussian(SCHEDULES[name])
    begin, start = accuracy.begun(process, (6, 4), 0, torch.float64)
    alpha, sigma = level(process.schedule, begin)
    stretch = math.sqrt(accuracy.VARIANCE / (alpha**2 * accuracy.VARIANCE + sigma**2))
    truth = accuracy.MEAN + stretch * (start - alpha * accuracy.MEAN)
    assert torch.allclose(accuracy.solved("normal", process, begin, start), truth, atol=1e-7)
    assert process.level(begin).log_snr == pytest.approx(max(-2 * math.log(160), process.level(1.0).log_snr))


def test_the_other_targets():
    """The ends of the mixture's paths are distributed as its data: the radius is nearly normal, of std 0.2."""
    process = orn.Gaussian(orn.LinearVP())
    begin, start = accuracy.begun(process, (400, 2), 0, torch.float64)
    nearest = (accuracy.solved("mixture", process, begin, start).norm(dim=1) - 1.5).abs()
    assert float(nearest.median()) == pytest.approx(0.2 * 0.6745, rel=0.2)
    assert accuracy.target("digits", process).means.shape == (1797, 64)


def test_scores_are_errors_at_the_calls_asked_for():
    process = orn.Gaussian(orn.LinearVP())
    denoiser = accuracy.target("normal", process)
    begin, start = accuracy.begun(process, (5, 4), 0, torch.float64)
    truth = accuracy.solved("normal", process, begin, start)
    karras = accuracy.Contender("Heun", orn.Heun(), lambda sampler, steps: grids.karras(process, steps))
    scores = list(accuracy.path_scores(denoiser, [FOCUSED, karras], (2, 8, 12), begin, start, truth))
    assert [(s.name, s.asked, s.calls) for s in scores] == [
        ("usual", 2, 2),
        ("usual", 8, 8),
        ("usual", 12, 12),
        ("Heun", 8, 7),  # 2 calls are one step alone, which is left out
        ("Heun", 12, 11),
    ]
    assert [s.sampler.corrector for s in scores[:3]] == [False, False, True]
    for score in scores:
        assert float(score.times[0]) == begin
        off = orn.sample(denoiser, score.sampler, start=start, grid=score.times).x - truth
        each = off.square().mean(1).sqrt().numpy()
        assert score.median == pytest.approx(float(np.sort(each)[2]))
        assert score.rms == pytest.approx(math.sqrt(float((each**2).mean())))
    assert accuracy.seen_order(scores[1:3]) == pytest.approx(
        math.log(scores[1].median / scores[2].median) / math.log(1.5)
    )
    assert math.isnan(accuracy.seen_order(scores[:1]))


def test_grids_begin_where_the_paths_do_and_what_fails_has_no_score():
    process = orn.Gaussian(orn.RectifiedFlow())
    denoiser = accuracy.target("normal", process)
    begin, start = accuracy.begun(process, (3, 4), 0, torch.float64)
    times = torch.tensor([1.0, 0.999, 0.5, 0.0], dtype=torch.float64)  # begin is sigma / alpha = 160, at .994

    class Failing:
        def __init__(self):
            self.process = process

        def __call__(self, x_t, t, cond=None, keep=None):
            return process.estimate(x_t, t, x0=x_t * math.nan)

    own = accuracy.Contender("own", orn.Euler(), lambda sampler, steps: times)
    (score,) = accuracy.path_scores(denoiser, [own], (4,), begin, start, start)
    assert score.times.tolist() == [begin, 0.5, 0.0]
    assert score.calls == 2
    assert list(accuracy.path_scores(Failing(), [own], (4,), begin, start, start)) == []


def test_a_fine_solution_knows_its_own_error():
    process = orn.Gaussian(orn.CosineVP())
    denoiser = accuracy.target("mixture", process)
    begin, start = accuracy.begun(process, (20, 2), 4, torch.float64)
    found, known = accuracy.finely(denoiser, begin, start)
    truth = accuracy.solved("mixture", process, begin, start)
    assert accuracy.distance(found, truth)[0] < known < 1e-4


def test_every_contender_of_a_bench_can_be_run():
    process = orn.Gaussian(orn.EDM())
    denoiser = accuracy.target("mixture", process)
    measured = grids.Linearised(denoiser, n=4, calls=40)
    begin, start = accuracy.begun(process, (4, 2), 0, torch.float64)
    truth = accuracy.solved("mixture", process, begin, start)
    lists = accuracy.ode_contenders(process, measured), accuracy.network_contenders(process, measured)
    for contenders in lists:
        found = list(accuracy.path_scores(denoiser, contenders, (9, 30), begin, start, truth))
        assert {score.name for score in found} == {contender.name for contender in contenders}
        assert all(score.calls <= score.asked for score in found)
        assert all(score.median < 0.3 for score in found if score.asked == 30)
    stochastic = accuracy.sde_contenders(process)
    assert {s.name for s in accuracy.law_scores(process, stochastic, (30,))} == {c.name for c in stochastic}
