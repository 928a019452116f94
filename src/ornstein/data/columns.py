"""A table <-> model units: `TableScaling`, the counterpart of `Scaling`, and its way back to the table's own columns.

Raw examples of a table are float64 (n, columns): a number, NaN where it is missing, or the code 0 .. k - 1 of a category.
`ornstein.data.kinds` says what becomes of each in model units.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ornstein.data.kinds import Category, Column, Numeric, from_plain, to_plain
from ornstein.data.scaling import Scaling, check_samples
from ornstein.errors import ConfigurationError, DataError
from ornstein.files import atomic_write

if TYPE_CHECKING:
    import pandas

    from ornstein.data.codes import Codes


@dataclass(frozen=True)
class TableScaling:
    """Raw tables <-> model units, column by column; beside `Scaling`, whose members it has.

    columns: in the order of the table.
    sigma_data: standard deviation of the training data in model units, over all values; their mean is 0.
    label, place: the column of classes, which is not among `columns`, and where in the table it stands.

    Raises ConfigurationError without columns that vary, or with two of one name.
    """

    columns: tuple[Column, ...]
    sigma_data: float
    label: Category | None = None
    place: int = 0

    layout: ClassVar[str] = "table"
    dtype: ClassVar[str] = "float64"
    levels: ClassVar[None] = None
    is_image: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.dims or not 0 < self.sigma_data < math.inf:
            raise ConfigurationError(
                f"a table of {self.dims} model values and sigma_data {self.sigma_data}; expected a column that varies"
            )
        if len(set(self.names)) < len(self.names):
            raise ConfigurationError(f"a table with the columns {', '.join(self.names)}; expected different names")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in their order, without the label."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def dims(self) -> int:
        """Number of model values of one example."""
        return sum(column.width for column in self.columns)

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The columns of plain standardised numbers, encoded together: which, their model values, shifts and scales."""
        firsts = accumulate((column.width for column in self.columns), initial=0)
        rows = [
            (i, first, column.shift, column.scale)
            for i, (column, first) in enumerate(zip(self.columns, firsts, strict=False))
            if isinstance(column, Numeric) and column.affine
        ]
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
        return table[:, 0].long(), table[:, 1].long(), table[:, 2], table[:, 3]

    @cached_property
    def _others(self) -> list[tuple[Column, int, int]]:
        """The other columns, each with its number and its first model value."""
        firsts = accumulate((column.width for column in self.columns), initial=0)
        together = set(self._affine[0].tolist())
        numbered = zip(self.columns, range(len(self.columns)), firsts, strict=False)
        return [(column, i, first) for column, i, first in numbered if i not in together]

    @property
    def shape(self) -> tuple[int, ...]:
        """Model shape of one example, (dims,)."""
        return (self.dims,)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of one raw example, (columns,)."""
        return (len(self.columns),)

    def encode(self, raw: Tensor | np.ndarray) -> Tensor:
        """Raw (b, columns) -> model units, float32 (b, dims), on the device of `raw`.

        Raises DataError where the shape is another, or values are none that the columns have.
        """
        raw = torch.as_tensor(raw)
        if raw.ndim != 2 or raw.shape[1:] != self.raw_shape:
            raise DataError(
                f"raw data of shape {tuple(raw.shape)}; expected (n, {len(self.columns)}), one for each column"
            )
        values = raw.cpu().double()  # not every accelerator has float64
        x = values.new_empty(len(values), self.dims)
        at, places, shift, scale = self._affine
        x[:, places] = (values[:, at] - shift) * scale
        for column, i, first in self._others:
            x[:, first : first + column.width] = column.encode(values[:, i])
        lacks = x.isnan()
        if lacks.any():
            column = self.columns[int(at[places == lacks.any(0).nonzero()[0]])]
            raise DataError(f"the column {column.name!r} lacks a value, which it never did in the data of the model")
        return x.float().to(raw.device)

    def decode(self, x: Tensor) -> Tensor:
        """Model units (b, dims) -> raw, float64 (b, columns) on the CPU: codes of categories, NaN for what is missing.

        Raises NumericalError where `x` holds NaN or inf, DataError where its shape is another.
        """
        parts = check_samples(x, self.shape).cpu().double().split([column.width for column in self.columns], 1)
        return torch.stack([column.decode(part) for column, part in zip(self.columns, parts, strict=True)], 1)

    def log_det(self) -> float:
        """log|d model / d raw| of one example in nats, over the columns that vary, where all are standardised numbers.

        Raises ConfigurationError where the table has no density: categories, missing values, quantiles.
        """
        for column in self.columns:
            if isinstance(column, Category) and column.width:
                raise ConfigurationError(
                    f"{column.name!r} is a column of categories, which have no density in its units"
                )
            if isinstance(column, Numeric) and (column.knots or column.missing is not None):
                what = "is transformed by quantiles" if column.knots else "has missing values"
                raise ConfigurationError(
                    f"the column {column.name!r} {what}, so the table has no density in its own units; expected "
                    "standardised numbers without gaps: quote the one in model units"
                )
        return math.fsum(math.log(c.scale) for c in self.columns if c.width)

    def frame(self, raw: Tensor, labels: Tensor | None = None) -> "pandas.DataFrame":
        """Raw examples (n, columns) as the table they are: its names, order and types; with `labels`, class indices (n,),
        the column of classes in its place. Raises ConfigurationError where pandas is not installed."""
        pandas = require_pandas()
        found = [column.series(raw[:, i].cpu().double()) for i, column in enumerate(self.columns)]
        if labels is not None and self.label is not None:
            found.insert(self.place, self.label.series(labels.cpu()))
        return pandas.concat(found, axis=1)

    def write(self, path: Path, raw: Tensor, labels: Tensor | None = None) -> None:
        """Write the table of `frame` to a .csv, .csv.gz or .parquet file, whole or not at all."""
        frame, name = self.frame(raw, labels), path.name.lower()
        if not name.endswith((".csv", ".csv.gz", ".parquet")):
            raise ConfigurationError(
                f"a table cannot be written to {path}; expected a name in .csv, .csv.gz or .parquet"
            )
        with atomic_write(path) as temporary:
            if name.endswith(".parquet"):
                frame.to_parquet(temporary, index=False)
            else:
                frame.to_csv(temporary, index=False, compression="gzip" if name.endswith(".gz") else None)

    def require_same(self, other: "Scaling | TableScaling | Codes") -> None:
        """Raise DataError, naming the column, where raw examples of `other` mean something else than those of this."""
        if not isinstance(other, TableScaling) or other.names != self.names:
            got = ", ".join(other.names) if isinstance(other, TableScaling) else "no table"
            raise DataError(f"a table with the columns {got}; expected {', '.join(self.names)}")
        for own, its in zip(self.columns, other.columns, strict=True):
            mine, theirs = (c.values if isinstance(c, Category) else None for c in (own, its))
            if mine != theirs:
                got, wanted = (
                    "numbers" if v is None else f"categories {', '.join(map(str, v))}" for v in (theirs, mine)
                )
                raise DataError(f"the column {own.name!r} holds {got}; expected {wanted}, as in the data of the model")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers, strings and lists, for JSON; `from_dict` gives back an equal scaling."""
        return {
            "layout": self.layout,
            "columns": [to_plain(column) for column in self.columns],
            "sigma_data": self.sigma_data,
            "label": None if self.label is None else to_plain(self.label),
            "place": self.place,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TableScaling":
        """The scaling that `to_dict` wrote. Raises ConfigurationError where fields are missing or unknown."""
        names = {"layout", "columns", "sigma_data", "label", "place"}
        if set(values) != names:
            raise ConfigurationError(f"a table's scaling with the fields {sorted(values)}; expected {sorted(names)}")
        label = None if values["label"] is None else from_plain(values["label"])
        if isinstance(label, Numeric):
            raise ConfigurationError(f"a table's label {label.name!r} is a column of numbers; expected categories")
        return cls(tuple(map(from_plain, values["columns"])), values["sigma_data"], label, values["place"])


def require_pandas() -> Any:
    """The module pandas. Raises ConfigurationError where it, or pyarrow, is not installed."""
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f'tables need pandas and pyarrow ({error}); pip install "ornstein[tables]"') from error
    return pandas
