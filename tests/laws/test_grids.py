"""Grids against Karras's formula, geometric sequences and the published members of T-step chains."""

import math

import numpy as np
import pytest
import torch
from helpers import SCHEDULES
from scipy.stats import cauchy

import ornstein as orn
from ornstein import grids
from ornstein.errors import ConfigurationError

LANDS = ("linear", "cosine", "subvp", "flow", "alpha-sigma", "sde")  # sigma(0) = 0


def levels(process, grid):
    return torch.exp(-process.schedule.log_snr(grid) / 2).numpy()


@pytest.mark.parametrize("name", SCHEDULES)
def test_shape_of_every_grid(name):
    process = orn.Gaussian(SCHEDULES[name])
    for steps in (1, 2, 10):
        for law in (grids.uniform, grids.log_snr, grids.karras):
            grid = law(process, steps)
            assert grid.dtype == torch.float64
            assert len(grid) == steps + (name in LANDS)
            assert (grid[1:] < grid[:-1]).all()
            if name in LANDS or steps > 1:
                assert float(grid[-1]) == process.schedule.t_min
        assert float(grids.uniform(process, steps)[0]) == 1
        gaps = grids.uniform(process, steps).diff()
        assert torch.allclose(gaps, gaps[:1].expand_as(gaps)) if len(gaps) else True


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "ve", "flow", "table-linear"])
def test_karras_and_log_snr_by_their_formulas(name):
    process = orn.Gaussian(SCHEDULES[name])
    ends = levels(process, torch.tensor([process.schedule.t_min, 1.0], dtype=torch.float64))
    low, high = max(0.002, ends[0]), min(80.0, ends[1])
    i = np.arange(12) / 11
    truth = (high ** (1 / 5) + i * (low ** (1 / 5) - high ** (1 / 5))) ** 5  # Karras et al. 2022, eq. 5
    assert np.allclose(levels(process, grids.karras(process, 12, rho=5.0)[:12]), truth, rtol=1e-6)
    truth = np.geomspace(high, low, 12)
    assert np.allclose(levels(process, grids.log_snr(process, 12)[:12]), truth, rtol=1e-6)
    middle = levels(process, grids.karras(process, 6, sigma_min=0.05, sigma_max=3.0)[:1])
    assert middle[0] == pytest.approx(3.0 if ends[1] > 3 else ends[1])


def test_edm_defaults_are_edms_own_levels():
    """The eighteen-step levels of EDM's paper: 80 first, .002 last, and sigma itself is rho-linear in t."""
    process = orn.Gaussian(orn.EDM())
    sigma = levels(process, grids.karras(process, 18))
    assert sigma[0] == pytest.approx(80)
    assert sigma[-1] == pytest.approx(0.002)
    assert sigma[9] == pytest.approx((80 ** (1 / 7) + 9 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    assert torch.allclose(grids.karras(process, 18), grids.uniform(process, 18), atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 50, 300, 1000])
def test_members_of_a_chain(steps):
    """diffusers' timestep_spacing, whose index i is our t = (i + 1) / 1000; table of Lin et al. 2024, section 3.3."""
    process = orn.Gaussian(SCHEDULES["table-linear"])
    leading = (np.arange(steps) * (1000 // steps))[::-1]
    trailing = np.round(np.arange(1000, 0, -1000 / steps))[:steps] - 1
    linspace = np.linspace(0, 999, steps).round()[::-1] if steps > 1 else [999]
    for law, truth in ((grids.leading, leading), (grids.trailing, trailing), (grids.linspace, linspace)):
        grid = law(process, steps).numpy() * 1000 - 1
        assert np.allclose(grid[:steps], truth, atol=1e-9), law.__name__
        assert len(grid) == steps + (truth[-1] > 0)  # after a last member above the first step, the data
        assert grid[-1] in (0, -1)


def test_members_of_a_chain_of_another_length_and_schedule():
    assert np.allclose(
        grids.trailing(orn.Gaussian(orn.TableSchedule.cosine(100)), 4, chain=100), [1, 0.75, 0.5, 0.25, 0]
    )
    assert np.allclose(grids.leading(orn.Gaussian(orn.CosineVP()), 4, chain=8), [7 / 8, 5 / 8, 3 / 8, 1 / 8, 0])
    assert math.isclose(float(grids.linspace(orn.Gaussian(orn.EDM()), 2)[1]), 1 / 1000)


@pytest.mark.parametrize("name", ["linear", "cosine", "edm", "table-linear"])
def test_focused_grids_have_equal_shares_of_a_cauchy_law(name):
    process, (centre, width) = orn.Gaussian(SCHEDULES[name]), (0.5, 2.0)
    grid = orn.grids.focused(process, 9, centre, width)
    places = [-float(process.level(float(t)).log_snr) / 2 for t in grid[:9]]
    high, low = (-float(process.level(t).log_snr) / 2 for t in (1.0, process.schedule.t_min))
    assert places[0] == pytest.approx(min(high, math.log(160)))
    assert places[-1] == pytest.approx(max(low, math.log(0.002)))
    shares = np.diff(cauchy(math.log(centre), width).cdf(places))
    assert np.allclose(shares, shares[0], rtol=1e-6)
    for bad in ({"centre": 0.0}, {"width": -1.0}):
        with pytest.raises(ConfigurationError, match="expected positive numbers"):
            orn.grids.focused(process, 9, **bad)
