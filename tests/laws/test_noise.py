"""Noise: a function of (seed, example) alone, with the right laws, and a Brownian path that any grid shares."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from ornstein.noise import Noise, fold


@pytest.mark.parametrize("draw", ["normal", "uniform"])
def test_a_function_of_seed_and_example_alone(draw):
    def draws(indices):
        noise = Noise(11, indices)
        return [getattr(noise, draw)((noise.count, *shape)) for shape in ((3,), (), (2, 2))]

    whole = draws(200)
    for indices in ([0], [5, 70, 199], [199, 3, 3], list(range(64, 128)), range(50, 70)):
        for few, all_of_them in zip(draws(indices), whole, strict=True):
            assert torch.equal(few, all_of_them[list(indices)])
    other = getattr(Noise(12, 200), draw)((200, 3))
    assert not (other == whole[0]).any()
    assert len(torch.unique(whole[0])) > 590  # no example repeats another


def test_laws_of_the_numbers():
    noise = Noise(3, 4096)
    z, u = noise.normal((4096, 4), torch.float64).numpy(), noise.uniform((4096, 4)).numpy()
    assert stats.kstest(z.ravel(), "norm").pvalue > 0.01
    assert stats.kstest(u.ravel(), "uniform").pvalue > 0.01
    assert u.min() >= 0
    assert u.max() < 1
    across = np.corrcoef(np.concatenate([z, u, z[::-1]], axis=1).T) - np.eye(12)
    assert np.abs(across).max() < 5 / np.sqrt(4096)
    blocks = z.reshape(64, 64, 4)
    assert abs(np.corrcoef(blocks[:-1].ravel(), blocks[1:].ravel())[0, 1]) < 5 / np.sqrt(z.size)


def test_types_and_seeds():
    assert Noise(0, 2).normal((2, 3)).dtype == torch.float32
    assert Noise(0, 2).uniform((2, 3)).dtype == torch.float64
    seeds = [
        fold(0),
        fold(1),
        fold(0, 0),
        fold(0, 1),
        fold(0, 1, 0),
        fold(-1),
        fold(2**63),
        fold(0, 10),
        fold(0, 1, 0, 0),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert fold(5, 7) == fold(5, 7)


TIMES = [0.0, 0.125, 0.3, 0.5, 1 / 3 + 0.3, 0.9, 1.0]


def test_brownian_covariance_is_min_of_the_times():
    noise = Noise(8, 4096)
    paths = np.stack([noise.brownian(0.0, t, (4096, 1), torch.float64).numpy()[:, 0] for t in TIMES])
    truth = np.minimum.outer(TIMES, TIMES)
    assert np.abs(paths @ paths.T / 4096 - truth).max() < 5 * np.sqrt(2 / 4096)
    assert np.abs(paths.mean(1)).max() < 5 / np.sqrt(4096)
    rise = (paths[4] - paths[2]) / np.sqrt(TIMES[4] - TIMES[2])
    assert stats.kstest(rise, "norm").pvalue > 0.01
    fine = noise.brownian(0.3, 0.3 + 2**-12, (4096, 1), torch.float64).numpy()
    assert fine.var() * 2**12 == pytest.approx(1, abs=5 * np.sqrt(2 / 4096))


def test_brownian_is_one_path_for_every_grid():
    noise, shape = Noise(8, [3, 77]), (2, 2)
    whole = noise.brownian(0.9, 0.1, shape, torch.float64)
    for count in (2, 3, 7):
        grid = torch.linspace(0.9, 0.1, count + 1, dtype=torch.float64).tolist()
        parts = [noise.brownian(t, s, shape, torch.float64) for t, s in itertools.pairwise(grid)]
        assert torch.allclose(sum(parts), whole, atol=1e-14)
    assert torch.equal(noise.brownian(0.2, 0.7, shape), -noise.brownian(0.7, 0.2, shape))
    assert torch.equal(noise.brownian(0.4, 0.4, shape), torch.zeros(shape))
    alone = Noise(8, [77]).brownian(0.9, 0.1, (1, 2), torch.float64)
    assert torch.equal(alone[0], whole[1])


def test_brownian_leaves_the_other_draws_where_they_were():
    one, two = Noise(1, 3), Noise(1, 3)
    one.brownian(0.0, 0.37, (3, 2))
    assert torch.equal(one.normal((3, 2)), two.normal((3, 2)))
    first = Noise(1, 3).brownian(0.0, 1.0, (3, 2))
    assert not torch.equal(first, Noise(1, 3).normal((3, 2)))
    assert torch.equal(first, two.brownian(0.0, 1.0, (3, 2)))  # the path does not depend on draws made before
