"""Linear filters of the state, which constraints keep a part of: x -> phi(x) of the same shape (b, *d).

The low-pass ones go down by a factor n and up again along the axes of space (all but the channels; the one axis of a vector):
down is the mean of blocks of n, up repeats them (`BlockAverage`) or interpolates (`Bilinear`, `Bicubic`); `Fourier` cuts the
spectrum. A filter is **idempotent**, phi(phi(x)) = phi(x), where what it keeps is kept exactly: then a state whose phi-part is
replaced by y's has that of y, phi(x - phi(x) + phi(y)) = phi(y). BlockAverage and Fourier are, the two that interpolate are
not: their constraint holds only roughly (paper 001 section 4, algorithm 3 with its claim on phi_n).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ornstein.errors import ConfigurationError


class Filter(Protocol):
    """A linear map of states onto states."""

    idempotent: ClassVar[bool]

    def __call__(self, x: Tensor) -> Tensor: ...

    def check(self, shape: tuple[int, ...]) -> None: ...


@dataclass(frozen=True)
class _LowPass:
    """factor: n, which divides the sizes of all axes of space; n = 1 keeps everything."""

    factor: int

    idempotent: ClassVar[bool]

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int) or self.factor < 1:
            raise ConfigurationError(f"got factor={self.factor!r}, expected a whole number of at least 1")

    def __call__(self, x: Tensor) -> Tensor:
        """phi(x)."""
        raise NotImplementedError

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `ConfigurationError` where the factor does not divide an axis of space of examples of `shape`."""
        space = shape[1:] if len(shape) > 1 else shape
        if not 1 <= len(space) <= 2:
            raise ConfigurationError(f"got examples of shape {shape}, expected vectors, series or images")
        if any(size % self.factor for size in space):
            smallest = min(space)
            fitting = [n for n in range(1, smallest + 1) if all(size % n == 0 for size in space)]
            raise ConfigurationError(
                f"got factor={self.factor} for {' x '.join(map(str, space))} values, expected one that divides them: "
                f"{', '.join(map(str, fitting))}"
            )

    def down(self, x: Tensor) -> Tensor:
        """The means of blocks of n^dims values, (b, *d / n)."""
        for axis in range(
            x.ndim - len(_space(x)), x.ndim
        ):  # the last one last: the first are summed in contiguous rows
            x = x.unflatten(axis, (-1, self.factor)).mean(axis + 1)
        return x


@dataclass(frozen=True)
class BlockAverage(_LowPass):
    """The mean of each block of n values along every axis of space, in all of its places: an orthogonal projection."""

    idempotent = True

    def __call__(self, x: Tensor) -> Tensor:
        """phi(x)."""
        return self.up(self.down(x))

    def up(self, low: Tensor) -> Tensor:
        """Each value of (b, *d / n) repeated n times along every axis of space."""
        for axis in reversed(
            range(low.ndim - len(_space(low)), low.ndim)
        ):  # the last one first, while there are few values
            size = low.shape[axis]
            low = low.unsqueeze(axis + 1).expand(*low.shape[: axis + 1], self.factor, *low.shape[axis + 1 :])
            low = low.reshape(*low.shape[:axis], size * self.factor, *low.shape[axis + 2 :])
        return low


@dataclass(frozen=True)
class _Interpolated(_LowPass):
    mode: ClassVar[str]

    idempotent = False

    def __call__(self, x: Tensor) -> Tensor:
        """phi(x)."""
        return self.up(self.down(x))

    def up(self, low: Tensor) -> Tensor:
        """The values of (b, *d / n), at the centres of their blocks, interpolated in the n times finer places."""
        high, wide = _window(low, self.factor)
        planes = functional.interpolate(_planes(low), scale_factor=(float(high), float(wide)), mode=self.mode)
        return planes.reshape(*_lead(low), *(size * self.factor for size in _space(low)))


@dataclass(frozen=True)
class Bilinear(_Interpolated):
    """Means of blocks, interpolated linearly: smoother than blocks, not idempotent."""

    mode = "bilinear"


@dataclass(frozen=True)
class Bicubic(_Interpolated):
    """Means of blocks, interpolated by cubic convolution, as ILVR's authors resize: not idempotent."""

    mode = "bicubic"


@dataclass(frozen=True)
class Fourier(_LowPass):
    """The frequencies below 1 / (2 n) of a cycle a value along every axis of space: an orthogonal projection, without blocks."""

    idempotent = True

    def __call__(self, x: Tensor) -> Tensor:
        """phi(x)."""
        axes = tuple(range(x.ndim - len(_space(x)), x.ndim))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # transforms know no half precision
        spectrum = torch.fft.rfftn(wide, dim=axes)
        for axis in axes:
            size = x.shape[axis]
            place = torch.fft.rfftfreq(size) if axis == axes[-1] else torch.fft.fftfreq(size)
            keep = (place.abs() * 2 * self.factor < 1) if self.factor > 1 else torch.ones_like(place, dtype=torch.bool)
            spectrum = spectrum * keep.to(x.device).reshape(-1, *(1,) * (x.ndim - 1 - axis))
        return torch.fft.irfftn(spectrum, s=_space(x), dim=axes).to(x.dtype)


FILTERS = {"block": BlockAverage, "bilinear": Bilinear, "bicubic": Bicubic, "fourier": Fourier}
"""What the short names of low-pass filters stand for."""


def _space(x: Tensor) -> tuple[int, ...]:
    """The sizes of the axes of space: those after the channels, or the one of vectors."""
    return tuple(x.shape[2:]) if x.ndim > 2 else tuple(x.shape[1:])


def _lead(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape[: x.ndim - len(_space(x))])


def _planes(x: Tensor) -> Tensor:
    """(b, c, h, w): a series has h = 1, a vector c = 1 as well."""
    return x if x.ndim == 4 else x.reshape(len(x), -1, 1, x.shape[-1])


def _window(x: Tensor, factor: int) -> tuple[int, int]:
    return (factor, factor) if x.ndim == 4 else (1, factor)
