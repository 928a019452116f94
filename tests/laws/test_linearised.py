"""Grids made for a denoiser: its first-order model against closed forms and real runs, and what a grid found on it is worth."""

import math

import pytest
import torch
from helpers import SCHEDULES, numbers

import ornstein as orn
from ornstein import exact, grids, linearised
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.processes import Normal as Base

VARIANCE, SIZE = 0.3, 600


def wide(name, base=None):
    return exact.Normal(orn.Gaussian(SCHEDULES[name], base), torch.full((SIZE,), 0.4).double(), VARIANCE)


@pytest.mark.parametrize("base", [1.0, 0.01, 4.0])
@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "table-linear"])
def test_the_slope_is_the_jacobian_of_a_normal_law(name, base):
    """eps = r (y - m) / (v + r^2), so that J = r / (v + r^2): Tweedie's second formula, from the sizes of the readings alone.

    With a base N(mu, s I) the same in whitened coordinates, where the data have the variance v / s.
    """
    law = None if base == 1 else Base(torch.full((SIZE,), 0.3).double(), torch.full((SIZE,), base).double())
    model = grids.Linearised(wide(name, law), n=64, calls=40)
    ratio = torch.exp(-model.process.schedule.log_snr(model.times) / 2)
    found, seen = model._table[:, -1], ratio > 0.05  # below, a narrow base leaves eps to the rounding of float32
    assert torch.allclose(found[seen], (ratio / (VARIANCE / base + ratio**2))[seen], rtol=0.02)


@pytest.mark.parametrize("name", ["linear", "edm"])
@pytest.mark.parametrize(
    "sampler",
    [
        orn.Multistep(2),
        orn.Multistep(3, corrector=True),
        orn.Multistep(2, "x0", exact=False),
        orn.Heun(),
        orn.RK4(),
        orn.Singlestep(2),
    ],
)
def test_a_run_on_the_model_errs_as_on_a_denoiser_that_is_linear(sampler, name, monkeypatch):
    """On N(m, v I) the model is exact but for the sampling error of J: each trajectory's error is that of the sampler itself."""
    monkeypatch.setattr(linearised, "DOUBTS", (1.0,))
    denoiser, steps = wide(name), 9
    model = grids.Linearised(denoiser, n=16)
    grid = grids.focused(denoiser.process, steps)
    start = denoiser.process.prior((16, SIZE), orn.Noise(1, 16), float(grid[0])).double()
    truth = orn.sample(denoiser, orn.RK45(1e-9, 1e-9), start=start, grid=grid[[0, -1]]).x
    off = orn.sample(denoiser, sampler, start=start, grid=grid).x - truth
    real = float(off.square().mean(1).sqrt().log().mean().exp())
    assert model.error(sampler, grid) == pytest.approx(real, rel=0.05)


class Counting:
    def __init__(self, denoiser):
        self.denoiser, self.process, self.shape, self.calls = denoiser, denoiser.process, denoiser.shape, 0

    def __call__(self, x_t, t, cond=None, keep=None):
        self.calls += 1
        return self.denoiser(x_t, t)


@pytest.mark.parametrize("name", ["table-linear", "cosine"])
def test_grids_found_on_it_err_less_and_cost_no_calls(name):
    """A mixture in 8 dimensions; the error is the median over 100 other starts, at 8 calls and at 6."""
    process = orn.Gaussian(SCHEDULES[name])
    denoiser = Counting(exact.Mixture(process, numbers(5, 8, seed=2), 0.05))
    model = grids.Linearised(denoiser)
    assert denoiser.calls == linearised.CALLS
    begun = process.prior((100, 8), orn.Noise(7, 100), float(model.times[0])).double()
    truth = orn.sample(denoiser, orn.Multistep(3, corrector=True), start=begun, grid=grids.focused(process, 300)).x
    before = denoiser.calls
    found = {steps: model.grid(orn.Multistep(3), steps) for steps in (6, 8)}
    assert denoiser.calls == before
    for steps, grid in found.items():
        plain = grids.focused(process, steps)
        assert grid.shape == plain.shape
        assert grid.dtype == torch.float64
        assert (grid[1:] < grid[:-1]).all()
        assert torch.allclose(grid[[0, -1]], plain[[0, -1]])
        errors = [
            float(
                (orn.sample(denoiser, orn.Multistep(3), start=begun, grid=g).x - truth).square().mean(1).sqrt().median()
            )
            for g in (grid, plain)
        ]
        assert errors[0] < 0.85 * errors[1]
        assert model.error(orn.Multistep(3), grid) < model.error(orn.Multistep(3), plain)
    once = grids.optimal(denoiser, 6, orn.Multistep(3))
    assert torch.equal(once, found[6])


def test_conditions_and_parts_reach_the_denoiser(monkeypatch):
    """A condition scales the data: with it, half of the trajectories are another law's. Readings in parts are the same."""
    process = orn.Gaussian(orn.EDM())

    class Conditional:
        def __init__(self):
            self.process, self.shape = process, (3,)

        def __call__(self, x_t, t, cond=None, keep=None):
            size = cond[:, None].to(x_t) ** 2
            level = process.level(t)
            return process.estimate(x_t, t, x0=size / (size + level.sigma**2) * x_t)

    cond = torch.tensor([1, 1, 3, 3])
    whole = grids.Linearised(Conditional(), cond=cond, n=4, calls=20)
    monkeypatch.setattr(linearised, "AT_ONCE", 60)
    parts = grids.Linearised(Conditional(), cond=cond, n=4, calls=20)
    assert torch.allclose(whole._gram, parts._gram, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(whole._gram, grids.Linearised(Conditional(), cond=cond.flip(0), n=4, calls=20)._gram)


def test_the_error_is_a_geometric_mean_over_trajectories_of_the_mean_square_over_doubts(monkeypatch):
    """Two trajectories of unlike size, each alone and both together; three Jacobians, each alone and all together."""
    process, sampler = orn.Gaussian(orn.EDM()), orn.Multistep(2)
    grid = grids.focused(process, 6)

    def models(scales):
        class Scaled(type(exact.Normal(process, torch.zeros(SIZE), 1.0))):
            def __call__(self, x_t, t, cond=None, keep=None):
                level, size = process.level(t), torch.tensor(scales).double()[:, None] ** 2
                return process.estimate(x_t, t, x0=(size / (size + level.sigma**2)).to(x_t) * x_t)

        return grids.Linearised(Scaled(process, torch.zeros(SIZE), 1.0), n=len(scales))

    model, errors = models([0.3, 3.0]), []
    whole = model.error(sampler, grid)
    gram = model._gram
    for row in (0, 1):
        model._gram = gram[row : row + 1]
        errors.append(model.error(sampler, grid))
    assert max(errors) > 3 * min(errors)
    assert whole == pytest.approx(math.sqrt(errors[0] * errors[1]))
    apart = []
    for doubt in linearised.DOUBTS:
        monkeypatch.setattr(linearised, "DOUBTS", (doubt,))
        apart.append(model.error(sampler, grid))
    assert errors[1] == pytest.approx(math.sqrt(sum(e**2 for e in apart) / 3))
    assert max(apart) > 1.3 * min(apart)


def test_every_grid_begins_where_the_trajectories_do():
    model = grids.Linearised(wide("linear"), n=4, calls=80)
    short = grids.karras(model.process, 8)
    whole = torch.cat([model.times[:1], short[1:]])
    assert float(short[0]) < float(model.times[0])
    assert model.error(orn.Heun(), short) == model.error(orn.Heun(), whole)


def test_what_it_refuses():
    denoiser = wide("edm")
    model = grids.Linearised(denoiser, n=2, calls=12)
    assert model.grid(orn.Multistep(), 1).tolist() == [1.0]
    for steps in (0, 13):
        with pytest.raises(ConfigurationError, match="expected 1 to 12"):
            model.grid(orn.Multistep(), steps)
    for sampler in (orn.Ancestral(), orn.RK45()):
        with pytest.raises(ConfigurationError, match="without noise, with a fixed number of calls"):
            model.grid(sampler, 4)
    with pytest.raises(ConfigurationError, match="expected at least 1 trajectory"):
        grids.Linearised(denoiser, n=0)

    class Broken(Counting):
        def __call__(self, x_t, t, cond=None, keep=None):
            return self.process.estimate(x_t, t, x0=x_t * math.nan)

    with pytest.raises(NumericalError, match="returns NaN"):
        grids.optimal(Broken(denoiser), 5)
