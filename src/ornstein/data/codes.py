"""Codes: raw data <-> the states of a discrete process; the counterpart of `Scaling`.

A discrete process (D3PM, Austin et al. 2021, arXiv:2107.03006) has no use for units: its data are codes x in {0 .. K-1}^d, and

    model = raw, as int64 with the channels first,        log|d model / d raw| = 0,

so that log p(model) = log p(raw): bits per code need no correction. What the codes mean is kept beside them: the levels of an
image, the symbols of a text.

Windows of a text overlap: all n - L + 1 of them are one view of n tokens, L times smaller than it looks. `placed` and
`tokens_under` are for those who move or read all examples, and must not copy them out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ornstein.data.layouts import IMAGES, Laid
from ornstein.data.scaling import Scaling
from ornstein.data.vocabulary import Vocabulary
from ornstein.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from ornstein.data.dataset import Dataset

_DTYPES = {"uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64}
_KIND = "codes"


@dataclass(frozen=True)
class Codes(Laid):
    """Raw integers 0 .. levels - 1 <-> model codes, int64 with channels first; beside `Scaling`, whose members it has.

    shape: model shape of one example: (L,) for text, (c, h, w) for images, the raw one for arrays.
    layout: of the raw data: "hw" (n, h, w), "hwc" (n, h, w, c), "chw" (n, c, h, w), all images; "plain" keeps its axes.
    levels: K, the number of codes, 2 or more.
    dtype: of the raw data: "uint8", "int16", "int32" or "int64".
    vocabulary: of text, what its K codes stand for; else None.

    Raises ConfigurationError where the fields do not go together.
    """

    shape: tuple[int, ...]
    layout: str
    levels: int
    dtype: str
    vocabulary: Vocabulary | None = None

    sigma_data: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.layout not in (*IMAGES, "plain") or self.dtype not in _DTYPES:
            raise ConfigurationError(
                f"got codes of layout {self.layout!r} and dtype {self.dtype!r}, expected one of {', '.join(IMAGES)}, plain "
                f"and one of {', '.join(_DTYPES)}"
            )
        if self.is_image and len(self.shape) != 3:
            raise ConfigurationError(f"got images of model shape {self.shape}, expected (channels, height, width)")
        most = torch.iinfo(_DTYPES[self.dtype]).max + 1
        if not 2 <= self.levels <= most:
            raise ConfigurationError(f"got levels={self.levels} for {self.dtype} codes, expected 2 to {most}")
        if self.vocabulary is not None and (len(self.vocabulary) != self.levels or len(self.shape) != 1):
            raise ConfigurationError(
                f"got a vocabulary of {len(self.vocabulary)} for {self.levels} codes of shape {self.shape}, expected as "
                "many symbols as codes, and a shape (length,)"
            )

    @classmethod
    def of(cls, scaling: Scaling) -> "Codes":
        """The codes of data of levels (uint8 images, booleans) under their `Scaling`. Raises DataError for other data."""
        if scaling.levels is None:
            raise DataError(_continuous(f"{scaling.dtype} values of shape {scaling.raw_shape}"))
        return cls(scaling.shape, scaling.layout, scaling.levels, scaling.dtype)

    def encode(self, raw: Tensor | np.ndarray) -> Tensor:
        """Raw integers (b, *raw_shape) -> codes, int64 (b, *shape), on the device of `raw`.

        Raises DataError where the shape is another, for data that are no integers, and for a value outside 0 .. K - 1, which
        it names with its place. Values on an accelerator are not looked at: that would wait for it at each batch.
        """
        if isinstance(raw, np.ndarray):
            raw = torch.from_numpy(raw if raw.flags.writeable else raw.copy())
        if raw.ndim == 0 or tuple(raw.shape[1:]) != self.raw_shape:
            raise DataError(
                f"got raw data of shape {tuple(raw.shape)}, expected (n, {', '.join(map(str, self.raw_shape))})"
            )
        if raw.is_floating_point() or raw.is_complex():
            raise DataError(f"got raw data of type {raw.dtype}, expected the integers 0 to {self.levels - 1}")
        if raw.device.type == "cpu":
            self._check(raw, "raw value")
        return self.channels_first(raw).long()

    def decode(self, x: Tensor) -> Tensor:
        """Codes (b, *shape) -> raw data (b, *raw_shape) of `dtype`.

        Text may be of any length. Raises DataError where the shape is another, or for a code outside 0 .. K - 1, such as a mask
        that is left.
        """
        fits = tuple(x.shape[1:]) == self.shape or (self.vocabulary is not None and x.ndim == 2)
        if x.ndim == 0 or not fits or x.is_floating_point():
            raise DataError(
                f"got model data of shape {tuple(x.shape)} and type {x.dtype}, expected integers "
                f"(n, {', '.join(map(str, self.shape))})"
            )
        self._check(x, "code")
        return self.raw_axes(x).to(_DTYPES[self.dtype]).contiguous()

    def text(self, raw: Tensor) -> list[str]:
        """The texts of raw examples (b, L), one a row. Raises DataError for data without a vocabulary."""
        if self.vocabulary is None:
            raise DataError(
                f"got codes of shape {self.raw_shape} without a vocabulary, expected those of a text: a model trained on a "
                ".txt file"
            )
        return [self.vocabulary.decode(row) for row in raw]

    def log_det(self) -> float:
        """0: codes are what they are, and their probability is that of the raw data."""
        return 0.0

    def require_same(self, other: Any) -> None:
        """Raise DataError where raw examples of `other` are of another kind, or mean something else, than those of this."""
        if not isinstance(other, Codes):
            raise DataError(f"got {other.dtype} data of layout {other.layout}, expected codes 0 to {self.levels - 1}")
        mine, theirs = (_named(codes.vocabulary) for codes in (self, other))
        if self.vocabulary != other.vocabulary:
            raise DataError(
                f"got {theirs}, expected {mine}, as in the data of the model: encode the text by the model's vocabulary"
            )
        # An array whose largest code is smaller means the same; fewer levels of an image are other greys.
        fewer = self.vocabulary is None and self.layout == "plain" and other.levels <= self.levels
        one, two = ((c.raw_shape, c.layout, c.dtype, self.levels if fewer else c.levels) for c in (self, other))
        if one != two:
            raise DataError(f"got data of (shape, layout, type, levels) {two}, expected {one}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers, strings and lists, for JSON; `from_dict` gives back equal codes."""
        vocabulary = None if self.vocabulary is None else self.vocabulary.to_dict()
        return {
            "kind": _KIND,
            "shape": list(self.shape),
            "layout": self.layout,
            "levels": self.levels,
            "dtype": self.dtype,
            "vocabulary": vocabulary,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Codes":
        """The codes that `to_dict` wrote. Raises ConfigurationError where fields are missing or unknown."""
        names = {"kind", *(f.name for f in fields(cls))}
        if set(values) != names or values["kind"] != _KIND:
            raise ConfigurationError(f"got codes with the fields {sorted(values)}, expected {sorted(names)}")
        vocabulary = None if values["vocabulary"] is None else Vocabulary.from_dict(values["vocabulary"])
        return cls(tuple(values["shape"]), values["layout"], values["levels"], values["dtype"], vocabulary)

    @staticmethod
    def is_dict(values: Mapping[str, Any]) -> bool:
        """Whether `values` were written by `Codes.to_dict`, rather than by that of a scaling."""
        return values.get("kind") == _KIND

    def _check(self, x: Tensor, what: str) -> None:
        """Raise DataError, naming the first with its place, where values are outside 0 .. K - 1."""
        if not x.numel() or (x.dtype == torch.uint8 and self.levels == 256):
            return
        low, high = (int(end) for end in torch.aminmax(x))
        if low < 0 or high >= self.levels:
            place = ((x < 0) | (x >= self.levels)).nonzero()[0].tolist()
            at = ", ".join(map(str, place))
            raise DataError(
                f"got the {what} {int(x[tuple(place)])} at [{at}] (counted from 0), expected 0 to {self.levels - 1}"
            )


def discrete(dataset: "Dataset") -> "Dataset":
    """`dataset` as a discrete process takes it: with `Codes` in place of its scaling; the raw examples stay as they are.

    Text and integer codes have them already; uint8 images and booleans have levels. Raises DataError for what is continuous.
    """
    scaling = dataset.scaling
    if isinstance(scaling, Codes):
        return dataset
    if not isinstance(scaling, Scaling):
        raise DataError(f"{dataset.name}: {_continuous('a table of columns')}")
    try:
        return replace(dataset, scaling=Codes.of(scaling))
    except DataError as error:
        raise DataError(f"{dataset.name}: {error}") from None


def tokens_under(examples: Tensor) -> Tensor:
    """What overlapping windows are a view of: the tokens (n + L - 1,) of windows (n, L) that each begin one token later.

    Other examples come back as they are.
    """
    if examples.ndim == 2 and examples.stride() == (1, 1) and len(examples):
        return examples.as_strided((len(examples) + examples.shape[1] - 1,), (1,))
    return examples


def placed(examples: Tensor, device: torch.device) -> Tensor:
    """`examples` on `device`; of overlapping windows only the tokens under them are moved, and viewed as windows there."""
    tokens = tokens_under(examples)
    if tokens is examples:
        return examples.to(device)
    return tokens.to(device).unfold(0, examples.shape[1], 1)


def _named(vocabulary: Vocabulary | None) -> str:
    if vocabulary is None:
        return "codes without a vocabulary"
    shown = vocabulary.symbols if len(vocabulary.symbols) <= 80 else vocabulary.symbols[:80] + " ..."
    return f"a vocabulary of {len(vocabulary)} {vocabulary.kind}" + (f" {shown!r}" if shown else "")


def _continuous(what: str) -> str:
    return (
        f"got {what}, expected text, images of levels or integer codes, which a discrete process needs; give a .txt file, "
        "images (--levels 16 for fewer levels), integers in a .npy file with --integers codes, or leave out --process (or "
        "--process gaussian)"
    )
