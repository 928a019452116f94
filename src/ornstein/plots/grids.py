"""Pictures of samples: many in one PNG, or one PNG each."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ornstein.errors import ConfigurationError, DataError
from ornstein.files import atomic_write

_TILE = 48  # pixels: small images are enlarged to about this, so that 8 x 8 digits can be seen
_MARGIN = 2


def image_grid(images: Any, path: str | os.PathLike[str], columns: int | None = None, scale: int | None = None) -> Path:
    """Write `grid_picture` of the images as one PNG, whole or not at all. Returns the path."""
    return save_picture(grid_picture(images, columns, scale), path)


def save_picture(picture: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Write one picture, uint8 (h, w, c), as a PNG, whole or not at all. Returns the path."""
    with atomic_write(path) as temporary:
        _save(picture, temporary)
    return Path(path)


def grid_picture(images: Any, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """Images as one picture (h, w, c), row by row, on white with a margin of 2 pixels around each.

    images: uint8 (n, h, w) grey or (n, h, w, c) with c of 1, 3 or 4 channels, a numpy array or a tensor.
    columns: images in a row, about sqrt(n) unless given.
    scale: each pixel becomes scale x scale pixels; unless given, such that images are about 48 pixels high.

    Raises DataError for images of another shape or type, ConfigurationError for `columns` or `scale` below 1.
    """
    pixels = _checked(images)
    n, h, w, c = pixels.shape
    columns = min(n, math.ceil(math.sqrt(n))) if columns is None else columns
    scale = max(1, round(_TILE / max(h, w))) if scale is None else scale
    if columns < 1 or scale < 1:
        raise ConfigurationError(f"columns={columns} and scale={scale}; expected at least 1 for both")
    rows, h, w = math.ceil(n / columns), h * scale, w * scale
    grid = np.full((rows * (h + _MARGIN) + _MARGIN, columns * (w + _MARGIN) + _MARGIN, c), 255, dtype=np.uint8)
    for i in range(n):
        top = _MARGIN + (i // columns) * (h + _MARGIN)
        left = _MARGIN + (i % columns) * (w + _MARGIN)
        grid[top : top + h, left : left + w] = pixels[i].repeat(scale, axis=0).repeat(scale, axis=1)
    return grid


def image_folder(images: Any, folder: str | os.PathLike[str], labels: Sequence[int | str] | None = None) -> Path:
    """Write images as `folder/000000.png`, ..., with labels as `folder/<label>/000000.png`, ... Returns the folder.

    images: as in `image_grid`. labels: a class number or name for each image. `load_dataset(folder)` reads both forms.

    The folder appears whole or not at all. Raises DataError for images of another shape or type or labels that do not
    fit, ConfigurationError where the folder exists already and is not empty, or a label cannot be a folder's name.
    """
    pixels = _checked(images)
    names = (
        [""] * len(pixels) if labels is None else [str(getattr(label, "item", lambda v=label: v)()) for label in labels]
    )
    if len(names) != len(pixels):
        raise DataError(f"{len(names)} labels for {len(pixels)} images; expected one for each")
    for name in set(names):
        if labels is not None and (not name or name.startswith(".") or set(name) & set('/\\:\0*?"<>|')):
            raise ConfigurationError(f"label {name!r} cannot be the name of a folder; give class numbers instead")
    width = max(6, len(str(len(pixels) - 1)))
    with atomic_write(folder) as temporary:
        for i, (name, image) in enumerate(zip(names, pixels, strict=True)):
            (temporary / name).mkdir(parents=True, exist_ok=True)
            _save(image, temporary / name / f"{i:0{width}d}.png")
    return Path(folder)


def _checked(images: Any) -> np.ndarray:
    """The images as a numpy array (n, h, w, c)."""
    pixels = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if pixels.dtype != np.uint8:
        raise DataError(
            f"images of type {pixels.dtype}; expected uint8 from 0 to 255: decode samples with the scaling first"
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3, 4) or 0 in pixels.shape:
        raise DataError(f"images of shape {np.shape(images)}; expected (n, h, w) or (n, h, w, c) with c of 1, 3 or 4")
    return pixels


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    # The format is given since the temporary name may have another suffix than .png.
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, format="PNG")
