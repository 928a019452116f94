"""Tables -> `Dataset`: CSV files, Parquet files and folders of them, and pandas frames."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ornstein.config import DataOptions
from ornstein.data.columns import TableScaling
from ornstein.data.dataset import Dataset, Part, split
from ornstein.data.frames import FrameSource, read_csv
from ornstein.data.kinds import Category, Column, Numeric
from ornstein.data.parquet import ParquetSource, TableStream
from ornstein.data.streaming import too_large
from ornstein.data.survey import Fault, Field, Source, Survey, category, infinite_rows, plain, raw_examples
from ornstein.errors import ConfigurationError, DataError, nearest

if TYPE_CHECKING:
    import pandas

HOLDOUT = 0.1
BLOCK = 1 << 24  # bytes of a chunk that are read at a time, or a single column


def load_table(path: Path, seed: int, options: DataOptions) -> Dataset:
    """The table in a .csv, .csv.gz or .parquet file, or in the .parquet files of a folder, as a data set.

    Columns of numbers are standardised, or transformed by quantiles (`options.numeric`); text, booleans and pandas
    categories are categories; missing values keep a mark of their own. The column `options.label` gives the classes.
    Parquet is streamed by `options.stream`, judged by the memory that the table takes as float64. What is not streamed
    is read twice by blocks of columns, to measure it and to take it in: memory holds the raw examples and, of a CSV file
    or a frame, the pandas table, but no third copy.

    Raises DataError where the table cannot be read or trained on (see `ornstein.data.frames`, `parquet` and `survey`),
    ConfigurationError where pandas and pyarrow are not installed, or options do not fit.
    """
    if path.is_dir() or path.suffix.lower() == ".parquet":
        source = ParquetSource(path, options.skip_bad)
        stream = too_large(8 * sum(source.sizes) * len(source.fields), options.stream)
        return _Table(source, seed, options).dataset(path.name, source if stream else None)
    if options.stream == "always":
        raise ConfigurationError(f"{path} cannot be streamed, as text has no row groups; convert it to Parquet")
    return _Table(read_csv(path, options.skip_bad), seed, options).dataset(path.name)


def from_frame(
    frame: "pandas.DataFrame", name: str, seed: int, options: DataOptions, *, test: "pandas.DataFrame | None" = None
) -> Dataset:
    """A pandas table, and its held-out part where there is one, as a data set called `name`: see `load_table`."""
    import pandas

    if test is None:
        return _Table(FrameSource(frame.reset_index(drop=True), name), seed, options).dataset(name)
    if options.holdout is not None:
        raise ConfigurationError(
            f"{name} has held-out data of its own, got holdout={options.holdout}; leave holdout out"
        )
    if list(test.columns) != list(frame.columns):
        raise DataError(
            f"{name}: held-out columns {list(test.columns)}; expected those to train on, {list(frame.columns)}"
        )
    both = FrameSource(pandas.concat([frame, test], ignore_index=True), name)
    return _Table(both, seed, options, held=np.arange(len(frame) + len(test)) >= len(frame)).dataset(name)


@dataclass
class _Faults:
    """The rows that cannot be used, which are passed over with `skip_bad` and raise a DataError without."""

    source: Source
    skip_bad: bool
    rows: np.ndarray  # (n,) bool

    def __post_init__(self) -> None:
        self._counts: dict[str, int] = defaultdict(int)
        for fault in self.source.faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        if not self.skip_bad:
            count = f" (and {len(fault.rows) - 1} more rows)" if len(fault.rows) > 1 else ""
            where = self.source.where(int(fault.rows[0]))
            raise DataError(f"{self.source.name}, {where}: {fault.what}{count}; {fault.remedy}")
        self._counts[fault.what.partition(":")[0]] += int((~self.rows[fault.rows]).sum())
        self.rows[fault.rows] = True

    def notes(self) -> tuple[str, ...]:
        if not self.rows.any():
            return ()
        each = ", ".join(f"{what} ({count})" for what, count in self._counts.items() if count)
        return (f"passed over {int(self.rows.sum())} of {len(self.rows)} rows: {each}",)


class _Table:
    """A source on its way to a data set: which rows are held out, which columns are what."""

    def __init__(self, source: Source, seed: int, options: DataOptions, held: np.ndarray | None = None) -> None:
        self.source, self.options = source, options
        self.n = sum(source.sizes)
        if not self.n:
            raise DataError(f"{source.name} has the columns {_list(source.fields)} and no rows; expected some")
        self.fields, named, self.place = _choose(source, options.label)
        if not self.fields:
            raise DataError(
                f"{source.name} has no column beside the label {options.label!r}; expected some to generate"
            )
        self.starts = [0, *accumulate(source.sizes)]
        self.faults = _Faults(source, options.skip_bad, np.zeros(self.n, dtype=bool))
        self.label: Category | None = None
        self.codes: np.ndarray | None = None
        if named is not None:
            self.label, self.codes = self._classes(named)
        self.train = ~(self._held(seed) if held is None else held)

    def dataset(self, name: str, stream: ParquetSource | None = None) -> Dataset:
        """Measure the columns, and read them, unless they are to be streamed from `stream`."""
        survey = self._survey()
        label, parts = self._counted(), [np.flatnonzero(part & ~self.faults.rows) for part in (self.train, ~self.train)]
        if len(parts[0]) < 2 or not len(parts[1]):
            raise DataError(
                f"{self.source.name}: {len(parts[0])} rows to train on and {len(parts[1])} held out are left; expected "
                "at least 2 and 1"
            )
        with _named(self.source):
            scaling = survey.scaling(label, self.place)
        if stream is not None:
            x: list[Tensor] | list[TableStream] = [TableStream(stream, scaling, torch.from_numpy(p)) for p in parts]
        else:
            x = self._examples(scaling.columns, parts)
        labels = [None if self.codes is None else torch.from_numpy(self.codes[part]) for part in parts]
        classes = () if label is None else tuple(map(str, label.values))
        notes = (_describe(scaling), *self.source.notes, *self.faults.notes())
        skipped = self.source.passed + int(self.faults.rows.sum())
        return Dataset(name, x[0], x[1], labels[0], labels[1], classes, scaling, notes, skipped)

    def _survey(self) -> Survey:
        """The columns as measured in one pass over the chunks, or two to pass over rows that are unusable."""
        survey, names = Survey(self.fields, self.n, self.options.numeric == "quantile"), [f.name for f in self.fields]
        for chunk, first in enumerate(self.starts[:-1]):
            if self.options.skip_bad:
                for _, values in self._blocks(chunk, names):
                    self._check_finite(first, values)
            rows = slice(first, first + self.source.sizes[chunk])
            for _, values in self._blocks(chunk, names):
                self._check_finite(first, values)
                with _named(self.source):
                    survey.add(values, first, ~self.faults.rows[rows], self.train[rows])
        return survey

    def _check_finite(self, first: int, values: Mapping[str, np.ndarray]) -> None:
        for column, bad in infinite_rows(values, self.fields):
            remedy = "expected finite numbers: repair them, leave them empty, or pass over such rows by --skip-bad"
            self.faults.add(Fault(f"an infinite value in the column {column!r}", first + bad, remedy))

    def _examples(self, columns: Sequence[Column], parts: Sequence[np.ndarray]) -> list[Tensor]:
        """The raw examples of each part, which is its rows, rising."""
        x = [torch.empty(len(part), len(columns), dtype=torch.float64) for part in parts]
        for chunk, size in enumerate(self.source.sizes):
            first = self.starts[chunk]
            ends = [np.searchsorted(part, (first, first + size)) for part in parts]
            for left, values in self._blocks(chunk, [column.name for column in columns]):
                raw = raw_examples(columns[left : left + len(values)], values)
                for out, part, (start, end) in zip(x, parts, ends, strict=True):
                    out[start:end, left : left + len(values)] = raw[torch.from_numpy(part[start:end] - first)]
        return x

    def _blocks(self, chunk: int, names: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The columns of a chunk, some at a time to save memory, and the number of the first of them."""
        step = max(1, BLOCK // (8 * max(1, self.source.sizes[chunk])))
        for left in range(0, len(names), step):
            yield left, self._read(chunk, names[left : left + step])

    def _read(self, chunk: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some columns of a chunk; one that cannot be read is passed over with `skip_bad`, and stands as missing."""
        try:
            return self.source.read(chunk, names)
        except DataError:
            if not self.options.skip_bad:
                raise
            first, size = self.starts[chunk], self.source.sizes[chunk]
            self.faults.add(Fault("damaged row groups", np.arange(first, first + size), ""))
            numbers = {f.name for f in self.source.fields if f.kind == "number"}
            return {name: np.full(size, np.nan, dtype=float if name in numbers else object) for name in names}

    def _classes(self, named: Field) -> tuple[Category, np.ndarray]:
        """The column of classes, its values in the order of their indices, and the index (n,) of each row."""
        import pandas

        found = [self._read(chunk, [named.name])[named.name] for chunk in range(len(self.source.sizes))]
        column = np.concatenate(found)
        lacks = pandas.isna(column) & ~self.faults.rows
        if lacks.any():
            remedy = "expected a class in every row: fill it in, or pass over such rows by --skip-bad"
            self.faults.add(Fault(f"no class in the label column {named.name!r}", np.flatnonzero(lacks), remedy))
        usable = ~self.faults.rows
        if named.kind == "number":
            wrong = usable & ~(np.nan_to_num(column, posinf=0.5, neginf=0.5) % 1 == 0)
            if wrong.any():
                remedy = "expected whole numbers or names as classes: name another column by --label"
                self.faults.add(
                    Fault(f"{column[wrong][0]:g} in the label column {named.name!r}", np.flatnonzero(wrong), remedy)
                )
            usable &= ~wrong
            column = np.where(usable, column, 0).astype(np.int64)
        codes, distinct = pandas.factorize(column[usable])
        with _named(self.source):
            values = [plain(value, named.name) for value in distinct.tolist()]
            label = category(named, dict.fromkeys(values, 0))
        place = {value: index for index, value in enumerate(label.values)}
        indices = np.zeros(self.n, dtype=np.int64)
        indices[usable] = np.array([place[value] for value in values], dtype=np.int64)[codes]
        return replace(label, kind="integer") if named.kind == "number" else label, indices

    def _counted(self) -> Category | None:
        """The column of classes with their shares of the training data."""
        if self.label is None or self.codes is None:
            return None
        counts = np.bincount(self.codes[self.train & ~self.faults.rows], minlength=len(self.label.values))
        shares = tuple((counts / max(1, counts.sum())).tolist())
        return replace(self.label, shares=shares)

    def _held(self, seed: int) -> np.ndarray:
        """Which rows (n,) are held out, drawn by the seed, each class in proportion."""
        usable = np.flatnonzero(~self.faults.rows)
        labels = None if self.codes is None else self.codes[usable]
        part = Part(torch.from_numpy(usable), labels, self.source.name)
        _, test = split(part, HOLDOUT if self.options.holdout is None else self.options.holdout, seed)
        held = np.zeros(self.n, dtype=bool)
        held[np.asarray(test.x)] = True
        return held


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Put the name of the table before what is wrong with its columns."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from None


def _choose(source: Source, label: str) -> tuple[tuple[Field, ...], Field | None, int]:
    """The columns to generate, the column of classes, and its place."""
    names = [f.name for f in source.fields]
    if not label:
        return source.fields, None, 0
    if label not in names:
        raise ConfigurationError(
            f"{source.name} has no column {label!r} for --label{nearest(label, names)}; the columns are {_list(source.fields)}"
        )
    place = names.index(label)
    return (*source.fields[:place], *source.fields[place + 1 :]), source.fields[place], place


def _list(fields: Sequence[Field], most: int = 20) -> str:
    return ", ".join([f.name for f in fields[:most]] + ["..."] * (len(fields) > most))


def _describe(scaling: TableScaling) -> str:
    """The columns in words: how many of numbers and of categories, with missing values, constant."""
    numbers = [c for c in scaling.columns if isinstance(c, Numeric)]
    constant = sum(not c.width for c in scaling.columns)
    gaps = sum(c.missing is not None if isinstance(c, Numeric) else None in c.values for c in scaling.columns)
    text = f"{len(numbers)} columns of numbers, {len(scaling.columns) - len(numbers)} of categories"
    text += f", {gaps} with missing values" * (gaps > 0) + f", {constant} constant" * (constant > 0)
    return f"{text}, {scaling.dims} model values" + (f", classes by {scaling.label.name!r}" if scaling.label else "")
