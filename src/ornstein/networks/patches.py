"""Squares of an image, or stretches of a series, taken as one position with more channels; and back."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


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
