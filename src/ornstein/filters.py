"""Linear low-pass filters of the state, whose part of it a constraint keeps: phi = U D along each axis of space.

D takes the N values of an axis (not the channels) to fewer, U takes these back to N places:

    BlockAverage      D the means of blocks of n, U repeats them
    Bilinear, Bicubic D the means of blocks of n, U interpolates them
    Fourier           D = U^T, the cosines and sines of the frequencies below 1 / (2 n) of a cycle a value

A filter is **idempotent**, phi(phi(x)) = phi(x), where D U = I: then a state whose phi-part is replaced by y's has that of y,
phi(x - phi(x) + phi(y)) = phi(y). BlockAverage and Fourier are orthogonal projections, the two that interpolate are not even
idempotent: their constraint holds only roughly (paper 001 section 4, algorithm 3 with its claim on phi_n). The rows of D are
orthogonal in all four, D D^T = c I, so that D of white noise is white.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ornstein.errors import ConfigurationError


@dataclass(frozen=True)
class LowPass:
    """What the four filters share. factor: n, which divides the size of every axis of space; n = 1 keeps everything."""

    factor: int

    idempotent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int) or self.factor < 1:
            raise ConfigurationError(f"got factor={self.factor!r}, expected a whole number of at least 1")

    def __call__(self, x: Tensor) -> Tensor:
        """phi(x), of the shape of x: vectors (b, N), series (b, c, N), images (b, c, N, M)."""
        return self.up(self.down(x), x.shape)

    def down(self, x: Tensor) -> Tensor:
        """D along each axis of space."""
        for axis in _space(x.shape):
            x = _along(x, axis, _matrices(self, x.shape[axis], x.dtype, x.device)[0])
        return x

    def up(self, low: Tensor, shape: Sequence[int]) -> Tensor:
        """U along each axis of space, to that of `shape`."""
        for axis in reversed(_space(shape)):  # the last one first, while there are few values
            low = _along(low, axis, _matrices(self, shape[axis], low.dtype, low.device)[1])
        return low

    def std(self, shape: Sequence[int]) -> float:
        """The standard deviation of `down` of white noise of `shape`: the root of c for each axis."""
        return math.prod(float(np.linalg.norm(self.pair(shape[axis])[0][0])) for axis in _space(shape))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `ConfigurationError` where the factor does not divide an axis of space of examples of `shape`."""
        space = shape[1:] if len(shape) > 1 else shape
        if not 1 <= len(space) <= 2:
            raise ConfigurationError(f"got examples of shape {shape}, expected vectors, series or images")
        if any(size % self.factor for size in space):
            fitting = [n for n in range(1, min(space) + 1) if all(size % n == 0 for size in space)]
            raise ConfigurationError(
                f"got factor={self.factor} for {' x '.join(map(str, space))} values, expected one that divides them: "
                f"{', '.join(map(str, fitting))}"
            )

    def pair(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """D (k, N) and U (N, k) for an axis of N = size values."""
        raise NotImplementedError


class _Blocks(LowPass):
    """D means of blocks, U some interpolation of them."""

    mode: ClassVar[str]

    def pair(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """D (k, N) and U (N, k) for an axis of N = size values."""
        count = size // self.factor
        down = np.kron(np.eye(count), np.full((1, self.factor), 1 / self.factor))
        line = torch.eye(count, dtype=torch.float64).reshape(count, 1, 1, count)
        up = functional.interpolate(line, size=(1, size), mode=self.mode).reshape(count, size).T
        return down, up.numpy()


class BlockAverage(_Blocks):
    """The mean of each block of n values along every axis of space, in all of its places: an orthogonal projection."""

    idempotent, mode = True, "nearest"


class Bilinear(_Blocks):
    """Means of blocks, interpolated linearly: smoother than blocks, not idempotent."""

    mode = "bilinear"


class Bicubic(_Blocks):
    """Means of blocks, interpolated by cubic convolution, as ILVR's authors resize: not idempotent."""

    mode = "bicubic"


class Fourier(LowPass):
    """The frequencies below 1 / (2 n) of a cycle a value along every axis of space: an orthogonal projection, without blocks."""

    idempotent = True

    def pair(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """D (k, N) and U = D^T for an axis of N = size values."""
        if self.factor == 1:
            return np.eye(size), np.eye(size)
        waves = [np.full(size, size**-0.5)]
        for k in range(1, math.ceil(size / (2 * self.factor))):
            angle = 2 * np.pi * k * np.arange(size) / size
            waves += [np.cos(angle) * (2 / size) ** 0.5, np.sin(angle) * (2 / size) ** 0.5]
        return np.stack(waves), np.stack(waves).T


FILTERS = {"block": BlockAverage, "bilinear": Bilinear, "bicubic": Bicubic, "fourier": Fourier}
"""What the short names of low-pass filters stand for."""


@lru_cache(maxsize=256)
def _matrices(filter: LowPass, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """D and U where they are needed, made once."""
    down, up = (torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in filter.pair(size))
    return down.to(device, dtype), up.to(device, dtype)


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """The matrix on the last axis or the one before, in the type of x: autocast would round what is to be kept exactly."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ matrix.T if axis == -1 else matrix @ x


def _space(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of space: those after the channels, or the one of vectors."""
    return (-2, -1) if len(shape) > 3 else (-1,)
