"""Filters against matrices written out by hand, and against the discrete Fourier transform."""

import numpy as np
import pytest
import torch
from helpers import check_refusal, numbers

import ornstein as orn
from ornstein.filters import FILTERS


def down(size: int, n: int) -> np.ndarray:
    """Means of blocks of n."""
    return np.kron(np.eye(size // n), np.full((1, n), 1 / n))


def up(size: int, n: int, kind: str) -> np.ndarray:
    """Repeated, or interpolated between the centres of the blocks (linear, or Keys' cubic at a = -.75), ends clamped."""
    out = np.zeros((size, size // n))
    for j in range(size):
        place = (j + 0.5) / n - 0.5
        if kind == "block":
            out[j, j // n] = 1
            continue
        first = int(np.floor(place))
        for k in range(first - 1, first + 3):
            d = abs(place - k)
            if kind == "bilinear":
                weight = max(0.0, 1 - d)
            elif d <= 1:
                weight = 1.25 * d**3 - 2.25 * d**2 + 1
            else:
                weight = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0
            out[j, min(max(k, 0), size // n - 1)] += weight
    return out


def matrix(size: int, n: int, kind: str) -> np.ndarray:
    """phi on a line of `size` values."""
    if kind != "fourier":
        return up(size, n, kind) @ down(size, n)
    place = np.fft.fftfreq(size)
    dft = np.fft.fft(np.eye(size))
    return (np.linalg.inv(dft) @ np.diag((np.abs(place) < 1 / (2 * n)).astype(float)) @ dft).real


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("kind", FILTERS)
def test_on_vectors_series_and_images(kind, n):
    phi, x = FILTERS[kind](n), numbers(2, 3, 8, 16)
    truth = [np.eye(size) if n == 1 else matrix(size, n, kind) for size in (8, 16)]
    wide, high = (torch.from_numpy(m) for m in truth[::-1])
    assert torch.allclose(phi(x), high @ x @ wide.T, atol=1e-12)
    assert torch.allclose(phi(x[:, :, 0]), x[:, :, 0] @ wide.T, atol=1e-12)
    assert torch.allclose(phi(x[:, 0, 0]), x[:, 0, 0] @ wide.T, atol=1e-12)
    assert phi(x.float()).dtype == torch.float32
    for some in (x, x[:, :, 0], x[:, 0, 0]):
        whole = torch.eye(some[0].numel()).double().reshape(-1, *some.shape[1:])
        white = phi.down(whole).flatten(1)
        assert torch.allclose(
            white.T @ white, phi.std(some.shape) ** 2 * torch.eye(white.shape[1]).double(), atol=1e-12
        )
    with torch.autocast("cpu", torch.bfloat16):
        assert (phi(x.float()) - phi(x)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", FILTERS)
def test_what_is_idempotent_is_an_orthogonal_projection(kind):
    phi, truth = FILTERS[kind](2), matrix(16, 2, kind)
    assert np.allclose(truth @ truth, truth) == phi.idempotent
    assert np.allclose(truth, truth.T) == phi.idempotent
    x = numbers(1, 16)
    assert torch.allclose(phi(phi(x)), phi(x)) == phi.idempotent


def test_factors_that_do_not_fit_are_refused():
    check_refusal(lambda: orn.BlockAverage(0), "factor=0", "at least 1")
    check_refusal(lambda: orn.Fourier(2.0), "factor=2.0", "whole number")
    check_refusal(lambda: orn.BlockAverage(3).check((1, 28, 28)), "factor=3 for 28 x 28", "1, 2, 4, 7, 14, 28")
    check_refusal(lambda: orn.BlockAverage(2).check((1, 2, 2, 2)), "(1, 2, 2, 2)", "vectors, series or images")
