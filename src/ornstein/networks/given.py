"""A condition as a network takes it: class labels or a vector for the embedding, an image to lie beside the input.

A network of `classes` = k > 0 takes {"labels": long (b,)} or {"vector": float (b, k)}, one of `images` = m > 0 takes
{"image": float (b, m, *space)}, one of both takes both in one dict. Where there is one of them, its tensor stands for the dict.
"""

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError


def parts_of(cond: Condition | None, classes: int, images: int = 0) -> tuple[Tensor | None, Tensor | None]:
    """What the embedding takes of a condition, and the image. Raises ConfigurationError for other parts than expected."""
    if cond is None:
        return None, None
    if not isinstance(cond, dict):
        if classes and images:
            raise ConfigurationError(f"got a condition that is one tensor, expected {_expected(classes, images)}")
        return (None, cond) if images else (cond, None)
    kinds = [name for name in ("labels", "vector") if name in cond]
    wanted = {*(kinds[:1] if classes else ()), *(("image",) if images else ())}
    if not classes and not images:
        raise ConfigurationError(
            f"got a condition of {sorted(cond)}, but the network has none: build it with classes=k"
        )
    if set(cond) != wanted or bool(classes) != bool(kinds):
        raise ConfigurationError(f"got a condition of {sorted(cond)}, expected {_expected(classes, images)}")
    if kinds and cond[kinds[0]].is_floating_point() != (kinds[0] == "vector"):
        raise ConfigurationError(
            f"got {kinds[0]} of type {cond[kinds[0]].dtype}, expected labels of integers, or a vector of floats"
        )
    return (cond[kinds[0]] if kinds else None), cond.get("image")


def beside(network: str, x: Tensor, image: Tensor | None, keep: Tensor | None, images: int) -> Tensor:
    """x (b, c, *space) with the image (b, images, *space), and 1 in one channel more, or zeros in all where it is dropped.

    So a network tells a black image from none. Raises ConfigurationError for an image of another shape.
    """
    if not images:
        return x
    shape = (len(x), images, *x.shape[2:])
    if image is None:
        return torch.cat([x, x.new_zeros(len(x), images + 1, *x.shape[2:])], dim=1)
    if tuple(image.shape) != shape:
        raise ConfigurationError(
            f"{network}: got an image of shape {tuple(image.shape)} as condition, expected {shape}"
        )
    check_keep(keep, len(x))
    shown = torch.cat([image.to(x), torch.ones_like(x[:, :1])], dim=1)
    if keep is not None:
        shown = torch.where(keep.bool().reshape(-1, *(1,) * (x.ndim - 1)), shown, 0)
    return torch.cat([x, shown], dim=1)


def check_keep(keep: Tensor | None, batch: int) -> None:
    """Raise ConfigurationError unless there is one truth value an example."""
    if keep is not None and keep.shape != (batch,):
        raise ConfigurationError(
            f"keep: got shape {tuple(keep.shape)}, expected ({batch},), one truth value an example"
        )


def check_images(network: str, images: int) -> None:
    """Raise ConfigurationError unless `images` is a number of channels."""
    if images < 0:
        raise ConfigurationError(f"{network}: got images={images}, expected 0 (none) or the channels of an image")


def _expected(classes: int, images: int) -> str:
    embedded = f'"labels": (b,) class indices or "vector": (b, {classes}) floats' if classes else ""
    image = f'"image": (b, {images}, *space) floats' if images else ""
    return f"a dict of {' and '.join(filter(None, (embedded, image)))}"
