"""A table of numbers and categories <-> a state of parts: `MixedScaling`, a `TableScaling` whose categories stay categories.

In model units {"numbers": (b, n), column: (b,), ...}: the numeric columns as `TableScaling` has them (standardised, or by
quantiles, with what tells missing values), and the code of each column of categories, int64, by its name. Raw examples are
those of the table, so samples are written as any other table's. Columns of one value are in no part and come back as they were.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ornstein.data.codes import Codes
from ornstein.data.columns import TableScaling
from ornstein.data.kinds import Category, Column
from ornstein.data.scaling import Scaling
from ornstein.errors import DataError, NumericalError
from ornstein.processes import Absorbing, Categorical, Gaussian, Product
from ornstein.schedules import CosineVP, RectifiedFlow, Schedule

NUMBERS = "numbers"


def masked(categories: int) -> Categorical:
    """Masks with probability t."""
    return Categorical(RectifiedFlow(), Absorbing(categories))


@dataclass(frozen=True)
class MixedScaling(TableScaling):
    """A `TableScaling` into a state of parts. `shape` is a dict of shapes; `dims` counts a category as one value."""

    layout: ClassVar[str] = "mixed table"

    @classmethod
    def of(cls, table: TableScaling) -> "MixedScaling":
        """That of a table. Raises `DataError` where no column of categories varies: numbers alone are no mixed state."""
        made = cls(table.columns, table.sigma_data, table.label, table.place)
        if not made.categories:
            raise DataError(
                "got a table without categories, expected a column of them: numbers alone need --process gaussian"
            )
        return made

    @cached_property
    def _parts(self) -> list[tuple[int, Column, str]]:
        """The columns that vary: number, column, and the part that they are in."""
        found = [(i, column) for i, column in enumerate(self.columns) if column.width]
        return [(i, column, _key(column.name) if isinstance(column, Category) else NUMBERS) for i, column in found]

    @cached_property
    def categories(self) -> dict[str, int]:
        """The parts that are categories, and how many there are of each."""
        return {key: len(c.values) for _, c, key in self._parts if isinstance(c, Category)}

    @cached_property
    def numbers(self) -> int:
        """How many model values the numeric columns take."""
        return sum(column.width for _, column, key in self._parts if key == NUMBERS)

    @property
    def shape(self) -> Any:
        """Model shapes of one example, by part."""
        parts: dict[str, tuple[int, ...]] = {NUMBERS: (self.numbers,)} if self.numbers else {}
        return {**parts, **dict.fromkeys(self.categories, ())}

    @cached_property
    def dims(self) -> int:
        """Number of model values of one example, a category being one."""
        return self.numbers + len(self.categories)

    def process(self, categorical: Callable[[int], Categorical] = masked, schedule: Schedule | None = None) -> Product:
        """A process of such states: numbers Gaussian under `schedule`, CosineVP where None; categories under the process made for
        their count, by default masks with probability t."""
        parts: dict[str, Any] = {key: categorical(k) for key, k in self.categories.items()}
        return Product(({NUMBERS: Gaussian(schedule or CosineVP())} if self.numbers else {}) | parts)

    def encode(self, raw: Tensor | np.ndarray) -> Any:
        """Raw (b, columns) -> a state of parts. Raises DataError where values are none that the columns have."""
        raw = torch.as_tensor(raw)
        if raw.ndim != 2 or raw.shape[1:] != self.raw_shape:
            raise DataError(
                f"raw data of shape {tuple(raw.shape)}; expected (n, {len(self.columns)}), one for each column"
            )
        values, numbers, parts = raw.cpu().double(), [], {}
        for i, column, key in self._parts:
            code = values[:, i]
            if not isinstance(column, Category):
                numbers.append(column.encode(code))
                continue
            if not ((code >= 0) & (code < len(column.values))).all():
                raise DataError(
                    f"the column {column.name!r} has codes outside 0 .. {len(column.values) - 1}, its categories"
                )
            parts[key] = code.long().to(raw.device)
        whole = {NUMBERS: torch.cat(numbers, 1).float().to(raw.device)} if numbers else {}
        return {**whole, **parts}

    def decode(self, x: Any) -> Tensor:
        """A state of parts -> raw, float64 (b, columns) on the CPU: codes of categories, NaN for what is missing.

        Raises DataError for other parts, NumericalError for numbers that are not finite.
        """
        if set(x) != set(self.shape):
            raise DataError(f"got a state of {sorted(x)}, expected {sorted(self.shape)}")
        rows, first, raw = len(next(iter(x.values()))), 0, []
        numbers = x[NUMBERS].cpu().double() if self.numbers else torch.empty(rows, 0, dtype=torch.float64)
        if not torch.isfinite(numbers).all():
            raise NumericalError("got numbers of samples that are NaN or infinite, expected finite ones")
        for column in self.columns:
            if isinstance(column, Category):
                raw.append(x[_key(column.name)].cpu().double() if column.width else numbers.new_zeros(rows))
            else:
                raw.append(column.decode(numbers[:, first : first + column.width]))
                first += column.width
        return torch.stack(raw, 1)

    def log_det(self) -> float:
        """log|d model / d raw| of the numbers of one example, in nats: what is quoted is a density of the numbers times a
        probability of the categories. Raises ConfigurationError where numbers have no density in their own units."""
        numeric = tuple(column for column in self.columns if not isinstance(column, Category) and column.width)
        return TableScaling(numeric, self.sigma_data).log_det() if numeric else 0.0


def _key(name: str) -> str:
    """The part that a column of categories is."""
    return f"{name} (category)" if name == NUMBERS else name


def read_scaling(values: Mapping[str, Any]) -> Scaling | TableScaling | Codes:
    """The scaling that a `to_dict` wrote, of a table, of codes or of anything else. Raises ConfigurationError on other fields."""
    if Codes.is_dict(values):
        return Codes.from_dict(values)
    kinds: dict[Any, Any] = {kind.layout: kind for kind in (TableScaling, MixedScaling)}
    found: Scaling | TableScaling = kinds.get(values.get("layout"), Scaling).from_dict(values)
    return found
