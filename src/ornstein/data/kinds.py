"""The kinds of columns of a table, numbers and categories, each as it stands in model units.

In model units

    number            (value - shift) * scale, or its normal score; 0 where it is missing
    missing or not    2 (m - p), m = 1 where missing and p the share of that: a value of its own, if any are missing
    category          (one-hot - shares) * scale: k values, whose variance is 1 in the mean

all of mean 0 over the training data. A column of one value takes no part in the model and comes back as it was.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ornstein.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import pandas

Value = str | bool | int | float | None


@dataclass(frozen=True)
class Numeric:
    """A column of numbers, standardised, or by its quantiles to a normal law.

    dtype: of the column in its table: "int64", "float32", ...
    low, high: smallest and largest value of the data, None where all are missing.
    whole: all values are whole numbers; then samples are rounded, and kept within low .. high (a count stays a count).
    shift, scale: of the training data. A column that is constant there, and not elsewhere, has scale 1.
    missing: share of the training data where it is missing, None in a column that always has a value.
    knots, scores: values, rising, and their normal scores, standardised; linear between them, which decodes exactly
        what was a knot, and constant beyond: samples keep within the training data. Empty where not by quantiles.
    lower, upper: scores of the ends of the ranks that each knot takes, all of which decode to it: a value that 40 % of
        the rows have is 40 % of what a normal law gives. Empty where none is in two rows.
    """

    name: str
    dtype: str
    low: float | None
    high: float | None
    whole: bool
    shift: float
    scale: float
    missing: float | None = None
    knots: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    lower: tuple[float, ...] = ()
    upper: tuple[float, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether there are two different values."""
        return self.low != self.high

    @property
    def affine(self) -> bool:
        """Whether its one model value is (raw - shift) * scale."""
        return self.varies and self.missing is None and not self.knots

    @property
    def width(self) -> int:
        """How many model values it takes."""
        return int(self.varies) + int(self.missing is not None and self.low is not None)

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Knots and scores as tensors, which they are slow to become."""
        return torch.tensor(self.knots, dtype=torch.float64), torch.tensor(self.scores, dtype=torch.float64)

    @cached_property
    def _inverse(self) -> tuple[Tensor, Tensor]:
        """Scores and knots of the way back: two scores for a knot that takes several ranks, one for any other."""
        ends = torch.tensor([self.lower or self.scores, self.upper or self.scores], dtype=torch.float64).T
        keep = torch.stack([torch.ones(len(ends), dtype=torch.bool), ends[:, 1] > ends[:, 0]], 1)
        return ends[keep], self._nodes[0][:, None].expand(-1, 2)[keep]

    def encode(self, raw: Tensor) -> Tensor:
        """Raw values (b,) -> model units (b, width)."""
        lacks = raw.isnan()
        if self.missing is None and self.low is not None and lacks.any():
            raise DataError(f"the column {self.name!r} lacks a value, which it never did in the data of the model")
        parts = []
        if self.varies:
            x = _interpolate(raw, *self._nodes) if self.knots else (raw - self.shift) * self.scale
            parts.append(torch.where(lacks, 0.0, x))
        if self.missing is not None and self.low is not None:
            parts.append(2 * (lacks.to(raw.dtype) - self.missing))
        return torch.stack(parts, 1) if parts else raw.new_empty(len(raw), 0)

    def decode(self, x: Tensor) -> Tensor:
        """Model units (b, width) -> raw values (b,)."""
        low, high = (math.nan if value is None else value for value in (self.low, self.high))
        raw = x.new_full((len(x),), low)
        if self.varies:
            raw = _interpolate(x[:, 0], *self._inverse) if self.knots else x[:, 0] / self.scale + self.shift
            raw = raw.round().clamp(low, high) if self.whole else raw
        if self.width > int(self.varies) and self.missing is not None:
            raw = torch.where(x[:, -1] / 2 + self.missing > 0.5, math.nan, raw)
        return raw

    def series(self, raw: Tensor) -> "pandas.Series":
        """Raw values as a column of the table's own type; integers that may be missing as pandas' nullable integers."""
        import pandas

        if self.dtype.startswith("float"):
            return pandas.Series(raw.numpy().astype(self.dtype), name=self.name)
        nullable = self.dtype.replace("i", "I", 1).replace("u", "U", 1)
        column = pandas.Series(raw.numpy(), name=self.name).astype(nullable)
        return column if self.missing is not None else column.astype(self.dtype)


@dataclass(frozen=True)
class Category:
    """A column of a few values: text, booleans or a pandas category. A missing one is a category of its own, the last.

    kind: "text", "boolean" or "category"; "integer" of a column of classes.
    values: the categories, in the order of their codes, None for the missing.
    shares: of each in the training data, 0 where only held-out data have it.
    dtype: of the numbers that are its categories, "" where they are none.
    members, ordered: of a pandas category, in its own order, with those that no row has.
    """

    name: str
    kind: str
    values: tuple[Value, ...]
    shares: tuple[float, ...]
    dtype: str = ""
    members: tuple[Value, ...] = ()
    ordered: bool = False

    @property
    def width(self) -> int:
        """How many model values it takes."""
        return len(self.values) if len(self.values) > 1 else 0

    @property
    def scale(self) -> float:
        """The factor by which the variance of the one-hot values is 1 in the mean, 1 where they are constant."""
        variance = sum(share * (1 - share) for share in self.shares)
        return math.sqrt(self.width / variance) if variance > 0 else 1.0

    def encode(self, raw: Tensor) -> Tensor:
        """Codes (b,) -> model units (b, width)."""
        k = len(self.values)
        if not ((raw >= 0) & (raw < k)).all():
            raise DataError(f"the column {self.name!r} has codes outside 0 .. {k - 1}, its {k} categories")
        if not self.width:
            return raw.new_empty(len(raw), 0)
        return (one_hot(raw.long(), k) - raw.new_tensor(self.shares)) * self.scale

    def decode(self, x: Tensor) -> Tensor:
        """Model units (b, width) -> the code (b,) of the largest value."""
        if not self.width:
            return x.new_zeros(len(x))
        return (x / self.scale + x.new_tensor(self.shares)).argmax(1).to(x.dtype)

    def series(self, raw: Tensor) -> "pandas.Series":
        """Codes as a column of the table's own type."""
        import pandas

        values = [self.values[code] for code in raw.long().tolist()]
        known = [value for value in self.values if value is not None]
        if self.kind == "category":
            members = pandas.Index(self.members or known, dtype=self.dtype or None)
            return pandas.Series(pandas.Categorical(values, members, ordered=self.ordered), name=self.name)
        boolean = "bool" if len(known) == len(self.values) else "boolean"
        # Before pandas 3 text was held as objects, and the type "str" made the missing the word "None".
        words = "object" if pandas.__version__.startswith("2.") else "str"
        dtype: Any = {"text": words, "integer": self.dtype or "int64", "boolean": boolean}[self.kind]
        return pandas.Series(values, name=self.name, dtype=dtype)


Column = Numeric | Category


def to_plain(column: Column) -> dict[str, Any]:
    """The fields of a column for JSON."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(column).items()}


def from_plain(values: Mapping[str, Any]) -> Column:
    """The column that `to_plain` wrote, fields with a default left out or not. Raises ConfigurationError on others."""
    kinds: tuple[Any, ...] = (Numeric, Category)
    for kind in kinds:
        needed = {f.name for f in fields(kind) if f.default is MISSING}
        if needed <= set(values) <= {f.name for f in fields(kind)}:
            found: Column = kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
            return found
    raise ConfigurationError(f"a column with the fields {sorted(values)}; expected those of numbers or of categories")


def _interpolate(x: Tensor, nodes: Tensor, values: Tensor) -> Tensor:
    """The values at x, linear between the rising nodes, constant beyond them and between equal values; exact there."""
    right = torch.searchsorted(nodes, x.contiguous()).clamp(1, len(nodes) - 1)
    share = ((x - nodes[right - 1]) / (nodes[right] - nodes[right - 1])).clamp(0, 1)
    return torch.lerp(values[right - 1], values[right], share)
