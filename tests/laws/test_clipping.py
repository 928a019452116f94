"""Estimates kept within the range of the data, against numpy."""

import numpy as np
import pytest
import torch
from helpers import numbers

import ornstein as orn
from ornstein import exact
from ornstein.checkpoints import Model
from ornstein.clipping import Clipped
from ornstein.data import Scaling
from ornstein.errors import ConfigurationError

PROCESS = orn.Gaussian(orn.LinearVP())
INNER = exact.Normal(PROCESS, torch.zeros(6, dtype=torch.float64), 4.0)
X = 3 * numbers(5, 6, seed=1)


def test_clamped():
    found, free = Clipped(INNER, -0.5, 1.5)(X, 0.3), INNER(X, 0.3)
    assert np.allclose(found.x0, np.clip(free.x0.numpy(), -0.5, 1.5))
    alpha, sigma, _ = PROCESS.level(0.3)
    assert torch.allclose(alpha * found.x0 + sigma * found.eps, X)


@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_dynamic_thresholding(quantile):
    found, free = Clipped(INNER, -1.0, 2.0, quantile)(X, 0.3).x0.numpy(), INNER(X, 0.3).x0.numpy()
    centred = free - 0.5
    most = np.maximum(np.quantile(np.abs(centred), quantile, axis=1, keepdims=True), 1.5)
    assert np.allclose(found, 0.5 + np.clip(centred, -most, most) * 1.5 / most, rtol=1e-6)
    assert (most > 1.5).any()
    assert np.abs(found - 0.5).max() <= 1.5 + 1e-6


def test_the_range_of_a_model_is_that_of_its_levels():
    scaling = Scaling((6,), "plain", (1.7,), (2 / 3,), 4, "uint8", 0.6)
    model = Model(INNER, scaling, (), {}, 0)
    clipped = Clipped(model)
    assert (clipped.low, clipped.high) == pytest.approx((-1.7 * 2 / 3, 1.3 * 2 / 3))
    found = orn.sample(clipped, n=20, calls=4)
    assert found.x.dtype == torch.uint8
    assert int(found.x.max()) <= 3
    assert clipped.shape == (6,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clipped(INNER), "without a range"),
        (lambda: Clipped(INNER, 1.0), "both or neither"),
        (lambda: Clipped(INNER, 1.0, 1.0), "low < high"),
        (lambda: Clipped(INNER, 0.0, 1.0, 1.0), "between 0 and 1"),
        (lambda: Clipped(Model(INNER, Scaling.measure(numbers(9, 6)), (), {}, 0)), "without a range"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
