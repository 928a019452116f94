"""Image files -> one uint8 array, by Pillow; refuses what has no single obvious meaning in 8 bits."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

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


def read_pictures(names: Sequence[str], read: Callable[[str], bytes], called: Callable[[str], str] = str) -> np.ndarray:
    """Decode image files into one uint8 array: (n, h, w) if grey, (n, h, w, 3) if in colour, in the order of `names`.

    `read(name)` gives a file's bytes, `called(name)` its name in messages. Grey stays grey; black-and-white becomes 0
    and 255; palettes become RGB; an alpha channel that is opaque everywhere is dropped; EXIF rotation is applied.
    Raises DataError, naming them, for a file that cannot be decoded and the first two that differ in size or channels.
    """
    pixels = np.empty(0, dtype=np.uint8)
    for i, name in enumerate(names):
        picture = _decode(read, name, called(name))
        if i == 0:
            pixels = np.empty((len(names), *picture.shape), dtype=np.uint8)
        elif picture.shape != pixels.shape[1:]:
            first, other = ((called(n), _size(a)) for n, a in ((names[0], pixels[0]), (name, picture)))
            raise DataError(
                f"images differ: {first[0]} is {first[1]}, {other[0]} is {other[1]}; expected one size (height by "
                "width) and one kind for all: resize, crop or convert them"
            )
        pixels[i] = picture
    return pixels


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[0]} x {picture.shape[1]} {'in colour' if picture.ndim == 3 else 'in grey'}"


def _decode(read: Callable[[str], bytes], name: str, called: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(read(name))) as image:
            if getattr(image, "is_animated", False):
                raise DataError(f"{called} holds several images; expected one: split it into single images")
            return _to_array(image, called)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{called} is not an image that Pillow can read; remove or replace it") from None
    except Exception as error:
        # Decoders raise errors of many types on damaged files (OSError, SyntaxError, struct.error, zlib.error, ...).
        raise DataError(
            f"{called} cannot be read ({str(error) or type(error).__name__}); remove or replace it"
        ) from error


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
