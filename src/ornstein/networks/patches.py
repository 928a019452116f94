"""Squares of an image, or stretches of a series, taken as one position with more channels; and back."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from ornstein.errors import ConfigurationError

Channels = int | tuple[int, int]


def in_and_out(channels: Channels) -> tuple[int, int]:
    """The channels of the input and of the output: one number stands for both. Raises ConfigurationError."""
    pair = (channels, channels) if isinstance(channels, int) else tuple(channels)
    if len(pair) != 2:
        raise ConfigurationError(f"got channels={channels}, expected one number, or those of input and output")
    return pair


def check_dims(network: str, dims: int) -> None:
    """Raise ConfigurationError unless a network's data are series or images."""
    if dims not in (1, 2):
        raise ConfigurationError(f"{network}: got dims={dims}, expected 1 (series) or 2 (images); use MLP for vectors")


def check_input(network: str, x: Tensor, channels: int, dims: int) -> None:
    """Raise ConfigurationError unless x is (b, channels, length) or (b, channels, height, width)."""
    if x.ndim != dims + 2 or x.shape[1] != channels:
        space = ("length",) if dims == 1 else ("height", "width")
        expected = f"(b, {channels}, {', '.join(space)})"
        raise ConfigurationError(f"{network}: got input of shape {tuple(x.shape)}, expected {expected}")


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The first `shape` positions of x (b, c, *space): x itself where nothing is to be cut."""
    for axis, size in enumerate(shape, start=2):
        if x.shape[axis] != size:
            x = x.narrow(axis, 0, size)
    return x


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """(b, c, *space) -> (b, c patch^dims, *ceil(space / patch)), zero-padded at the far ends."""
    if patch == 1:
        return x
    padding = [pad for size in reversed(x.shape[2:]) for pad in (0, -size % patch)]
    x = functional.pad(x, padding) if any(padding) else x
    if x.ndim == 4:
        return functional.pixel_unshuffle(x, patch)
    b, c, length = x.shape
    return x.reshape(b, c, length // patch, patch).transpose(2, 3).reshape(b, c * patch, length // patch)


def depth_to_space(x: Tensor, patch: int, shape: Sequence[int]) -> Tensor:
    """The inverse of `space_to_depth`, cropped to `shape`."""
    if patch > 1 and x.ndim == 4:
        x = functional.pixel_shuffle(x, patch)
    elif patch > 1:
        b, c, length = x.shape
        x = x.reshape(b, c // patch, patch, length).transpose(2, 3).reshape(b, c // patch, length * patch)
    return crop(x, shape)
