"""What a table holds: its columns, found and measured in one pass over its chunks, and its rows as raw examples."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ornstein.data.columns import TableScaling
from ornstein.data.kinds import Category, Column, Numeric, Value
from ornstein.errors import DataError

CATEGORIES = 200  # more in a column of text are names or sentences, not categories
KNOTS = 1000  # of a column transformed by quantiles, at most
KEPT = 100_000  # rows, evenly spread, that quantiles are taken from
EXACT = 2**53  # integers beyond it are not all float64 numbers
CELLS = "numbers, booleans or text: turn dates into numbers, such as days since one of them, or leave the column out"


@dataclass(frozen=True)
class Field:
    """A column as its table declares it: numbers of a numpy dtype, text, booleans, or a pandas category.

    dtype: of numbers, or of a category's members where these are numbers.
    members, ordered: of a pandas category, in its order, whether they occur or not.
    """

    name: str
    kind: Literal["number", "text", "boolean", "category"]
    dtype: str = ""
    members: tuple[Any, ...] = ()
    ordered: bool = False


@dataclass(frozen=True)
class Fault:
    """Rows that cannot be used: what is wrong with them, shown for the first, and what would be right."""

    what: str
    rows: np.ndarray
    remedy: str


class Source(Protocol):
    """A table in chunks of rows: one for a file of text, one for each row group of Parquet.

    name: of the table, for messages. sizes: rows of each chunk. faults: rows found unusable when it was opened.
    passed, notes: how much was passed over when it was opened, and is in no chunk, and what to tell of it.
    """

    name: str
    fields: tuple[Field, ...]
    sizes: tuple[int, ...]
    faults: tuple[Fault, ...]
    passed: int
    notes: tuple[str, ...]

    def read(self, chunk: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some columns of a chunk: numbers as float64 with NaN where missing, others as objects with None or NaN."""

    def where(self, row: int) -> str:
        """The place of a row, for a message: "line 7" or "row 6 of part-1.parquet"."""


@dataclass
class _Numbers:
    """Of a column of numbers, over all usable rows: low, high, whole, gaps; over those to train on: ends and moments."""

    low: float = math.inf
    high: float = -math.inf
    whole: bool = True
    gaps: int = 0
    missing: int = 0
    ends: tuple[float, float] = (math.inf, -math.inf)
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared differences from the mean
    kept: list[np.ndarray] = field(default_factory=list)

    def add(self, values: np.ndarray, train: np.ndarray, keep: np.ndarray | None) -> None:
        """Take in the values (n,) of usable rows, of which `train` (n,) tells those to train on, and `keep` those to hold."""
        lacks = np.isnan(values)
        self.gaps, self.missing = self.gaps + int(lacks.sum()), self.missing + int((lacks & train).sum())
        seen, x = values[~lacks], values[train & ~lacks]
        if len(seen):
            self.low, self.high = min(self.low, float(seen.min())), max(self.high, float(seen.max()))
            self.whole = self.whole and bool((seen == np.rint(seen)).all())
        if len(x):
            self.ends = min(self.ends[0], float(x.min())), max(self.ends[1], float(x.max()))
            self._add_moments(x)
            if keep is not None:
                self.kept.append(values[train & ~lacks & keep])

    def _add_moments(self, x: np.ndarray) -> None:
        """Chan, Golub & LeVeque 1979: the moments of a union from those of its parts."""
        with np.errstate(over="ignore"):  # seen, and named, in `column`
            mean, total = np.mean(x), self.count + len(x)
            self.squares += float(((x - mean) ** 2).sum() + (mean - self.mean) ** 2 * self.count * len(x) / total)
            self.mean = float(self.mean + (mean - self.mean) * len(x) / total)
        self.count = total

    def column(self, named: Field) -> tuple[Column, float]:
        """The column, and the sum of the variances of its model values over the training data."""
        share = self.missing / max(1, self.missing + self.count)
        missing = share if self.gaps else None
        if self.low > self.high:
            return Numeric(named.name, named.dtype, None, None, True, 0.0, 1.0, missing), 0.0
        if named.dtype.startswith(("int", "uint")) and max(-self.low, self.high) > EXACT:
            raise DataError(
                f"the column {named.name!r} holds integers beyond 2^53, which are not kept exactly; expected measured "
                "numbers: leave out columns of identifiers"
            )
        # Equal values are told by their ends: the rounded mean of many 0.1 is not 0.1.
        if self.ends[0] < self.ends[1]:
            std, mean = math.sqrt(self.squares / self.count), self.mean
        else:
            std, mean = 0.0, self.ends[0] if self.count else 0.0
        scale = 1 / std if std > 0 else 1.0
        if not (math.isfinite(scale) and math.isfinite(std) and scale > 0):
            raise DataError(f"the standard deviation of the column {named.name!r} is beyond float64; rescale it")
        nodes = _quantiles(np.concatenate(self.kept)) if self.kept and std > 0 else ()
        column = Numeric(named.name, named.dtype, self.low, self.high, self.whole, mean, scale, missing, *nodes)
        varies = (1 - share) if std > 0 and column.varies else 0.0
        return column, varies + (4 * share * (1 - share) if self.gaps else 0.0)


@dataclass
class _Categories:
    """Of a column of categories: how often each is in the rows to train on; 0 for those in other usable rows only."""

    counts: dict[Value, int] = field(default_factory=dict)

    def add(self, values: np.ndarray, train: np.ndarray, name: str) -> None:
        """Take in the values (n,) of usable rows, of which `train` (n,) tells those to train on."""
        import pandas

        codes, distinct = pandas.factorize(values, use_na_sentinel=True)
        often = np.bincount(codes[train] + 1, minlength=len(distinct) + 1)
        for code, value in enumerate([None, *distinct.tolist()]):
            if code or (codes < 0).any():
                self.counts[plain(value, name)] = self.counts.get(plain(value, name), 0) + int(often[code])
        if len(self.counts) > CATEGORIES:
            some = ", ".join(repr(value) for value in list(self.counts)[:3])
            raise DataError(
                f"the column {name!r} has more than {CATEGORIES} categories, such as {some}; expected a few: leave the "
                "column out, group its values, or make it the classes by --label"
            )

    def column(self, named: Field) -> tuple[Column, float]:
        column = category(named, self.counts)
        return column, column.scale**2 * sum(p * (1 - p) for p in column.shares) if column.width else 0.0


class Survey:
    """The columns of a table of `rows` rows, chunk after chunk; numbers with their quantiles on demand."""

    def __init__(self, fields: Sequence[Field], rows: int, quantile: bool) -> None:
        self.fields = tuple(fields)
        self._step = max(1, math.ceil(rows / KEPT)) if quantile else None
        self._found = [_Numbers() if f.kind == "number" else _Categories() for f in fields]

    def add(self, values: Mapping[str, np.ndarray], first: int, usable: np.ndarray, train: np.ndarray) -> None:
        """Take in columns of the rows from `first` on: which of the rows are usable, and which of those to train on."""
        keep = None if self._step is None else ((first + np.arange(len(usable))) % self._step == 0)[usable]
        for named, found in zip(self.fields, self._found, strict=True):
            if named.name not in values:
                continue
            column = values[named.name][usable]
            if isinstance(found, _Numbers):
                found.add(column, train[usable], keep)
            else:
                found.add(column, train[usable], named.name)

    def scaling(self, label: Category | None, place: int) -> TableScaling:
        """The scaling of the table. Raises DataError where no column varies, or one cannot be scaled."""
        found = [f.column(named) for named, f in zip(self.fields, self._found, strict=True)]
        dims = sum(column.width for column, _ in found)
        variance = sum(variance for _, variance in found)
        if not variance > 0:
            raise DataError(f"all {len(found)} columns are constant in the training data; expected one that varies")
        return TableScaling(tuple(column for column, _ in found), math.sqrt(variance / dims), label, place)


def category(named: Field, counts: Mapping[Value, int]) -> Category:
    """A column of categories that occur, and how often each, in the order that the table declares, or sorted."""
    declared = [plain(member, named.name) for member in named.members]
    more: list[Any] = [value for value in counts.keys() - declared if value is not None]
    try:
        more.sort()
    except TypeError:  # numbers and text in one pandas category
        more.sort(key=str)
    values = (*(value for value in (*declared, *more) if value in counts), *([None] * (None in counts)))
    total = max(1, sum(counts.values()))
    shares = tuple(counts[value] / total for value in values)
    members = (*declared, *more) if named.kind == "category" else ()
    return Category(named.name, named.kind, values, shares, named.dtype, members, named.ordered)


def check_names(names: Sequence[str], source: str) -> None:
    """Raise DataError where a table has no columns, or columns without a name or of the same name."""
    if not names:
        raise DataError(f"{source} has no columns; expected a table with a name for each column")
    if "" in names:
        raise DataError(
            f"{source}: column {names.index('') + 1} of {len(names)} has no name; expected a name for each: where it is "
            "the row number that pandas writes, leave it out by to_csv(..., index=False)"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{source} has {len(twice)} column names more than once ({', '.join(twice)}); rename the columns"
        )


def infinite_rows(values: Mapping[str, np.ndarray], fields: Sequence[Field]) -> Iterator[tuple[str, np.ndarray]]:
    """The columns of a chunk that hold infinite numbers, with the rows where."""
    for named in fields:
        if named.kind == "number" and named.name in values and (bad := np.isinf(values[named.name])).any():
            yield named.name, np.flatnonzero(bad)


def raw_examples(columns: Sequence[Column], values: Mapping[str, np.ndarray]) -> Tensor:
    """The rows of a chunk as raw examples, float64 (n, columns): numbers, NaN, codes of categories.

    What is no category of its column (in rows that are passed over) has the code 0.
    """
    import pandas

    found = []
    for column in columns:
        array = values[column.name]
        if isinstance(column, Category):
            codes, distinct = pandas.factorize(array, use_na_sentinel=True)
            place = {value: code for code, value in enumerate(column.values)}
            table = [place.get(plain(value, column.name), 0) for value in [*distinct.tolist(), None]]
            array = np.array(table, dtype=np.float64)[codes]  # the code -1 of the missing takes the last
        found.append(torch.from_numpy(np.array(array, dtype=np.float64)))
    return torch.stack(found, 1)


def plain(value: Any, name: str) -> Value:
    """A category as text, a boolean or a number of Python, which JSON can hold."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise DataError(
        f"the column {name!r} holds {value!r} of type {type(value).__name__}; expected numbers, booleans or text"
    )


def _quantiles(x: np.ndarray) -> tuple[tuple[float, ...], ...]:
    """Knots of x, their normal scores, and the scores at the lower and upper end of each, where any are tied.

    The score is the normal quantile of the middle rank of the value, standardised over x.
    """
    x = np.sort(x)
    knots, counts = np.unique(x, return_counts=True)
    middle = (np.cumsum(counts) - counts / 2) / len(x)
    if len(knots) > KNOTS:
        at = np.searchsorted(middle, np.linspace(0, 1, KNOTS)).clip(0, len(knots) - 1)
        at = np.unique(np.concatenate([[0], at, [len(knots) - 1]]))
        knots, middle, counts = knots[at], middle[at], counts[at]
    if len(knots) < 2:  # varies, but not among the rows kept
        return ()
    half = np.where(counts > 1, counts / 2, 0) / len(x)
    ranks = np.stack([middle, middle - half, middle + half])
    # The ranks 0 and 1 have no finite score, and need none: beyond its ends decoding is constant.
    ranks[1, 0], ranks[2, -1] = middle[0], middle[-1]
    scores = torch.special.ndtri(torch.from_numpy(ranks)).numpy()
    of_all = np.interp(x, knots, scores[0])
    found = tuple(tuple(row.tolist()) for row in (knots, *(scores - of_all.mean()) / of_all.std()))
    return found if half.any() else found[:2]
