"""What samples are asked to resemble: images and arrays from files, in a model's raw units, and masks of them.

An image becomes one of the model's where there is one obvious way, which a note then says: colour to grey and back, another
size of the same proportions, 256 levels to the model's. Everything else is refused.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ornstein.data.arrays import readable
from ornstein.data.columns import TableScaling
from ornstein.data.pictures import SUFFIXES, decode
from ornstein.data.scaling import Scaling
from ornstein.data.stores import FolderStore
from ornstein.errors import DataError

WHITE = 255
ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class _File:
    """A `Store` of the one picture in a file."""

    path: Path

    def read(self, number: int) -> bytes:
        return self.path.read_bytes()

    def called(self, number: int) -> str:
        return str(self.path)

    def digest(self, numbers: np.ndarray) -> str:
        raise NotImplementedError


def read_examples(path: Path, scaling: Scaling | TableScaling) -> tuple[Tensor, list[str]]:
    """The examples in a file or a folder of images, raw (k, *scaling.raw_shape), and notes on what was converted.

    An image file, a folder of them (by name), or a .npy or .npz with one array, (k, *raw_shape) or one example alone. Raises
    `DataError` where they cannot be read, or are of another size or range that has no obvious way to the model's.
    """
    if isinstance(scaling, TableScaling):
        raise DataError(f"got {path} for a model of tables, expected a model of images, series or arrays")
    if path.suffix.lower() in ARRAYS:
        return _fitting(_array(path), path, scaling), []
    if not scaling.is_image:
        raise DataError(f"got {path} for a model of {scaling.raw_shape} numbers, expected a .npy or .npz file of them")
    notes: list[str] = []
    pictures = [_as_of_model(decode(store, i), store.called(i), scaling, notes) for store, i in _pictures(path)]
    return torch.stack(pictures), list(dict.fromkeys(notes))


def read_mask(path: Path, scaling: Scaling | TableScaling) -> tuple[Tensor, list[str]]:
    """Where values are missing, truth values (1, *scaling.shape), and notes: white in an image, or True in a .npy or .npz file.

    Raises `DataError` where it cannot be read, has another size, or marks nothing or everything.
    """
    if isinstance(scaling, TableScaling):
        raise DataError(f"got {path} for a model of tables, expected a model of images, series or arrays")
    notes: list[str] = []
    if path.suffix.lower() in ARRAYS:
        values = _array(path)
        values = values[0] if values.shape[:1] == (1,) and len(values.shape) > len(scaling.raw_shape) else values
        if values.shape != scaling.raw_shape or values.dtype != np.bool_:
            raise DataError(
                f"{path} holds {values.dtype} values of shape {values.shape}, expected truth values of shape "
                f"{scaling.raw_shape}, True where values are to be drawn"
            )
        missing = torch.from_numpy(values)
        missing = missing.movedim(-1, 0) if scaling.layout in ("hwc", "lc") else missing
        missing = missing.reshape(scaling.shape)
    else:
        if not scaling.is_image:
            raise DataError(
                f"got {path} for a model of {scaling.raw_shape} numbers, expected a .npy or .npz file of truth values"
            )
        store, number = next(iter(_pictures(path)))
        grey = _resized(_grey(decode(store, number)), store.called(number), scaling, notes, nearest=True)
        between = int(((grey > 0) & (grey < WHITE)).sum())
        if between:
            notes.append(f"{path} has {between} values between black and white; those of 128 and above count as white")
        missing = torch.from_numpy(grey >= (WHITE + 1) // 2).expand(scaling.shape)
    if not missing.any() or missing.all():
        what = "marks nothing, so that nothing is left to draw" if not missing.any() else "marks everything"
        raise DataError(f"{path} {what}; expected white where values are to be drawn, black where they are kept")
    return missing[None], notes


def _pictures(path: Path) -> list[tuple[_File | FolderStore, int]]:
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} does not exist; expected an image file, or a folder of them")
        return [(_File(path), 0)]
    store = FolderStore(path)
    numbers = [i for i, name in enumerate(store.names) if name.lower().endswith(SUFFIXES)]
    if not numbers:
        raise DataError(f"{path} holds no images; expected files that end in {', '.join(SUFFIXES)}")
    return [(store, i) for i in numbers]


def _array(path: Path) -> np.ndarray:
    with readable(path):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded as file:
            if len(file.files) != 1 and "samples" not in file.files:
                raise DataError(
                    f"{path} holds the arrays {', '.join(file.files)}, expected one array, or one called samples"
                )
            return file["samples" if "samples" in file.files else file.files[0]]


def _fitting(values: np.ndarray, path: Path, scaling: Scaling) -> Tensor:
    """An array as raw examples of the model."""
    values = values[None] if values.shape == scaling.raw_shape else values
    if values.shape[1:] != scaling.raw_shape or not len(values) or values.dtype.kind not in "buif":
        raise DataError(
            f"{path} holds {values.dtype} values of shape {values.shape}, expected examples of the model, "
            f"(k, {', '.join(map(str, scaling.raw_shape))}) numbers"
        )
    if scaling.levels is not None and not (
        (values == np.round(values)).all() and values.min() >= 0 and values.max() < scaling.levels
    ):
        raise DataError(
            f"{path} holds values from {values.min():g} to {values.max():g}, expected the model's levels, whole numbers from "
            f"0 to {scaling.levels - 1}"
        )
    if not np.isfinite(values).all():
        raise DataError(f"{path} holds NaN or infinity, expected finite numbers")
    return torch.from_numpy(np.ascontiguousarray(values)).to(getattr(torch, scaling.dtype))


def _as_of_model(pixels: np.ndarray, called: str, scaling: Scaling, notes: list[str]) -> Tensor:
    """uint8 (h, w) or (h, w, 3) as one raw example of the model."""
    channels, levels = scaling.shape[0], scaling.levels or WHITE + 1
    if channels not in (1, 3):
        raise DataError(f"got {called} for a model of images of {channels} channels, expected a .npy or .npz file")
    if channels == 1 and pixels.ndim == 3:
        pixels = _grey(pixels)
        notes.append(f"{called} is taken in grey, as the model's images are")
    elif channels == 3 and pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=2)
        notes.append(f"{called} is grey: each of the model's three colours gets it")
    pixels = _resized(pixels, called, scaling, notes)
    if levels != WHITE + 1:
        pixels = np.round(pixels.astype(np.float64) * (levels - 1) / WHITE).astype(np.uint8)
        notes.append(f"{called} is rounded to the model's {levels} levels")
    if pixels.ndim == 3 and scaling.layout == "chw":
        pixels = np.moveaxis(pixels, -1, 0)
    return torch.from_numpy(np.array(pixels)).reshape(scaling.raw_shape)


def _grey(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    return pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))


def _resized(pixels: np.ndarray, called: str, scaling: Scaling, notes: list[str], nearest: bool = False) -> np.ndarray:
    """The picture in the model's size, where its proportions are the model's."""
    from PIL import Image

    (high, wide), (h, w) = pixels.shape[:2], scaling.shape[1:]
    if (high, wide) == (h, w):
        return pixels
    if high * w != wide * h:
        raise DataError(
            f"{called} is {high} x {wide}, expected {h} x {w} or the same proportions: crop it (what to keep is yours to say)"
        )
    notes.append(f"{called} is resized from {high} x {wide} to {h} x {w}")
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS if high < h else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize((w, h), how))
