"""Toys: densities integrate to 1, and samples follow them."""

import math

import numpy as np
import pytest
import torch

from ornstein.data import TOYS, load_dataset
from ornstein.noise import Noise

BOX = {"gaussians": 4.0, "grid": 3.0, "anisotropic": 12.0, "checkerboard": 2.5, "rings": 4.0}
N = 20_000


def _midpoints(side, count):
    """Midpoints of a count x count partition of [-side, side]^2, and the area of a cell."""
    h = 2 * side / count
    line = -side + h * (torch.arange(count, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(line, line), h * h


@pytest.mark.parametrize("name", TOYS)
def test_densities_integrate_to_one(name):
    points, area = _midpoints(BOX[name], 400)
    density = TOYS[name].log_density(points).exp()
    assert float(density.sum() * area) == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("name", TOYS)
def test_samples_follow_the_density(name):
    """Chi-square of the counts in the cells of a grid against the integral of the density over each cell."""
    toy, side, cells, fine = TOYS[name], BOX[name], 20, 20
    points, area = _midpoints(side, cells * fine)
    mass = toy.log_density(points).exp() * area
    mass = mass.reshape(cells, fine, cells, fine).sum((1, 3)).numpy()
    x = toy.sample(N, Noise(3, N))
    assert x.shape == (N, 2)
    assert x.dtype == torch.float32
    counts = np.histogram2d(*x.numpy().T, bins=cells, range=[[-side, side]] * 2)[0]
    large = mass * N > 5
    chi2 = float(((counts - N * mass)[large] ** 2 / (N * mass[large])).sum())
    degrees = int(large.sum()) - 1
    assert abs(chi2 - degrees) < 5 * math.sqrt(2 * degrees)
    assert counts[~large].sum() <= N * mass[~large].sum() + 5 * math.sqrt(N * mass[~large].sum() + 1)
    assert torch.isfinite(toy.log_density(x)).all()


@pytest.mark.parametrize("name", ["gaussians", "grid"])
def test_mixtures_say_their_parameters(name):
    torch_mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(TOYS[name].weights),
        torch.distributions.Independent(
            torch.distributions.Normal(TOYS[name].means, TOYS[name].variances.sqrt()[:, None].expand(-1, 2)), 1
        ),
    )
    x = 4 * torch.rand(50, 2, dtype=torch.float64) - 2
    torch.testing.assert_close(TOYS[name].log_density(x), torch_mixture.log_prob(x))


def test_the_anisotropic_normal_says_its_parameters():
    toy = TOYS["anisotropic"]
    x = 4 * torch.rand(50, 2, dtype=torch.float64) - 2
    expected = torch.distributions.MultivariateNormal(toy.mean, toy.covariance).log_prob(x)
    torch.testing.assert_close(toy.log_density(x), expected)


def test_points_depend_on_seed_and_index_alone():
    for toy in TOYS.values():
        assert torch.equal(toy.sample(200, Noise(5, 200))[70:90], toy.sample(20, Noise(5, range(70, 90))))
        assert not torch.equal(toy.sample(20, Noise(6, 20)), toy.sample(20, Noise(5, 20)))


@pytest.mark.parametrize("name", TOYS)
def test_toy_data_sets_keep_round_things_round(name):
    data = load_dataset(name)
    assert (len(data.train), len(data.test)) == (20_000, 2_000)
    assert len(data.scaling.scale) == 1
    assert float(data.scaling.encode(data.train).double().std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert data.scaling.log_det() == pytest.approx(2 * math.log(data.scaling.scale[0]))
