"""Image files -> uint8 arrays, by Pillow, at once or as they are asked for; refuses what has no single obvious meaning."""

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ornstein.config import DataOptions
from ornstein.data.dataset import Part
from ornstein.data.stores import Store
from ornstein.data.streaming import too_large
from ornstein.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")

# What Pillow calls modes that are refused -> what they are, and the way out.
_REFUSED = {
    "CMYK": ("CMYK (print) colours", "convert it to RGB with the colour profile you trust"),
    "LAB": ("Lab colours", "convert it to RGB"),
    "HSV": ("HSV colours", "convert it to RGB"),
    "I": ("integers of more than 8 bits", "convert it to 8 bits, or store float arrays in a .npy file"),
    "F": ("floating-point pixels", "store float arrays in a .npy file"),
}


@dataclass(frozen=True, eq=False)
class PictureStream:
    """Pictures of one size and kind, decoded when they are asked for: a `Stream` of uint8 (n, h, w) or (n, h, w, 3).

    store, numbers: where they are, and their numbers (n,) there.
    size, model: the shape of one picture, and the name of the picture that set it, for messages.
    labels: their classes (n,), or None.
    skip_bad: a picture that cannot be read, or that is of another shape, gives way to the next one of its class that
        can, counted from its row on and round the end, so a label stays true; without it, it is an error.

    Made by `PictureStream.of`.
    """

    store: Store
    numbers: np.ndarray
    size: tuple[int, ...]
    model: str
    labels: np.ndarray | None
    skip_bad: bool

    @classmethod
    def of(
        cls, store: Store, numbers: np.ndarray, labels: np.ndarray | None = None, skip_bad: bool = False
    ) -> "PictureStream":
        """The stream of the pictures `numbers`; the first that can be read sets the shape.

        Raises DataError where the first cannot be read, with `skip_bad` where none can.
        """
        first: DataError | None = None
        for number in numbers.tolist():
            try:
                picture = decode(store, number)
            except DataError as error:
                first = first or error
                if not skip_bad:
                    raise _with_remedy(error) from error
            else:
                return cls(store, numbers, picture.shape, store.called(number), labels, skip_bad)
        raise DataError(f"none of {len(numbers)} pictures can be read; the first: {first}")

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w) or (n, h, w, 3)."""
        return (len(self), *self.size)

    @property
    def dtype(self) -> torch.dtype:
        """uint8."""
        return torch.uint8

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.read(rows)[0]

    def read(self, rows: Tensor) -> tuple[Tensor, int]:
        """The pictures of `rows` (b,), and how many of them are stand-ins. Raises DataError for those without one."""
        pixels, bad = np.empty((len(rows), *self.size), dtype=np.uint8), 0
        for place, row in enumerate(rows.tolist()):
            try:
                pixels[place] = self._picture(row)
            except DataError as error:
                if not self.skip_bad:
                    raise _with_remedy(error) from error
                pixels[place] = self._stand_in(row, error)
                bad += 1
        return torch.from_numpy(pixels), bad

    def take(self, rows: Tensor) -> "PictureStream":
        """The stream of some of the rows: stand-ins are of these only."""
        chosen = rows.numpy()
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, numbers=self.numbers[chosen], labels=labels)

    def digest(self) -> str:
        """A sum over the files, by `Store.digest`."""
        return self.store.digest(self.numbers)

    def load(self) -> tuple[Tensor, list[int], DataError | None]:
        """All pictures (m, ...) that can be read, their rows, and the first error passed over (with `skip_bad`)."""
        pixels = np.empty(self.shape, dtype=np.uint8)
        good: list[int] = []
        first: DataError | None = None
        for row in range(len(self)):
            try:
                pixels[len(good)] = self._picture(row)
            except DataError as error:
                first = first or error
                if not self.skip_bad:
                    raise _with_remedy(error) from error
            else:
                good.append(row)
        return torch.from_numpy(pixels[: len(good)]), good, first

    def _picture(self, row: int) -> np.ndarray:
        number = int(self.numbers[row])
        picture = decode(self.store, number)
        if picture.shape != self.size:
            raise DataError(
                f"images differ: {self.model} is {_described(self.size)}, {self.store.called(number)} is "
                f"{_described(picture.shape)}; expected one size (height by width) and one kind for all: resize, crop "
                "or convert them"
            )
        return picture

    def _stand_in(self, row: int, error: DataError) -> np.ndarray:
        for other in ((row + step) % len(self) for step in range(1, len(self))):
            if self.labels is None or self.labels[other] == self.labels[row]:
                try:
                    return self._picture(other)
                except DataError:
                    continue
        kind = "" if self.labels is None else f" of class {self.labels[row]}"
        raise DataError(f"none of the pictures{kind} can be read, so that none can stand in; {error}")


def picture_part(
    store: Store, numbers: np.ndarray, labels: np.ndarray | None, source: str, options: DataOptions
) -> Part:
    """The pictures `numbers` of a store as a part of a data set: in memory, or as a stream by `options.stream`.

    Raises DataError for a picture that cannot be read or has another shape, which `options.skip_bad` passes over.
    """
    stream = PictureStream.of(store, numbers, labels, options.skip_bad)
    if too_large(int(np.prod(stream.shape)), options.stream):
        return Part(stream, labels, source)
    pixels, good, first = stream.load()
    skipped = len(stream) - len(good)
    notes = (f"passed over {skipped} of {len(stream)} images; the first: {str(first).split('; ')[0]}",) * bool(skipped)
    return Part(pixels, None if labels is None else labels[good], source, skipped, notes)


def _with_remedy(error: DataError) -> DataError:
    return DataError(f"{error}; or pass over such images by --skip-bad")


def _described(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]} {'in colour' if len(size) == 3 else 'in grey'}"


def decode(store: Store, number: int) -> np.ndarray:
    """A picture as uint8: (h, w) if grey, (h, w, 3) if in colour.

    Grey stays grey; black-and-white becomes 0 and 255; palettes become RGB; an alpha channel that is opaque everywhere
    is dropped; EXIF rotation is applied. Raises DataError, naming it, for a picture that cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    called = store.called(number)
    try:
        with Image.open(io.BytesIO(store.read(number))) as image:
            if getattr(image, "is_animated", False):
                raise DataError(f"{called} holds several images; expected one: split it into single images")
            return _to_array(image, called)
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError(f"{called} is not an image that Pillow can read; remove or replace it") from None
    except Exception as error:
        # Decoders raise errors of many types on damaged files (OSError, SyntaxError, struct.error, zlib.error, ...).
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{called} cannot be read ({reason}); remove or replace it") from error


def _to_array(image: "Image", called: str) -> np.ndarray:
    from PIL import ImageOps

    if image.mode not in ("L", "RGB") or "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB"):
        if "transparency" in image.info:  # one colour of the picture stands for "see through"
            image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "YCbCr":
        image = image.convert("RGB")
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        pixels = np.asarray(image)
        if (pixels[..., -1] == 255).all():
            return pixels[..., 0] if image.mode == "LA" else pixels[..., :3]
        raise DataError(f"{called} is transparent in parts; expected opaque images: lay it over a background colour")
    what, remedy = _REFUSED.get(image.mode.split(";")[0], (f"pixels of mode {image.mode}", "convert it to RGB"))
    raise DataError(f"{called} has {what}; expected 8-bit grey or RGB: {remedy}")
