"""Tables -> `Dataset`: CSV files, Parquet files and folders of them, and pandas frames."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from ornstein.data.kinds import Category, Numeric
from ornstein.data.parquet import ParquetSource, TableStream
from ornstein.data.streaming import too_large
from ornstein.data.survey import Fault, Field, Source, Survey, infinite_rows, raw_examples
from ornstein.errors import ConfigurationError, DataError, nearest

if TYPE_CHECKING:
    import pandas

HOLDOUT = 0.1


def load_table(path: Path, seed: int, options: DataOptions) -> Dataset:
    """The table in a .csv, .csv.gz or .parquet file, or in the .parquet files of a folder, as a data set.

    Columns of numbers are standardised, or transformed by quantiles (`options.numeric`); text, booleans and pandas
    categories are categories; missing values keep a mark of their own. The column `options.label` gives the classes.
    Parquet is streamed by `options.stream`, judged by the memory that the table takes as float64.

    Raises DataError where the table cannot be read or trained on (see `ornstein.data.frames`, `parquet` and `survey`),
    ConfigurationError where pandas and pyarrow are not installed, or options do not fit.
    """
    if path.is_dir() or path.suffix.lower() == ".parquet":
        source = ParquetSource(path, options.skip_bad)
        stream = too_large(8 * sum(source.sizes) * len(source.fields), options.stream)
        return _Table(source, seed, options, source.notes).dataset(path.name, source if stream else None)
    if options.stream == "always":
        raise ConfigurationError(f"{path} cannot be streamed, as text has no row groups; convert it to Parquet")
    frame, notes = read_csv(path, options.skip_bad)
    return _Table(frame, seed, options, notes).dataset(path.name)


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

    def __init__(
        self,
        source: Source,
        seed: int,
        options: DataOptions,
        notes: tuple[str, ...] = (),
        held: np.ndarray | None = None,
    ) -> None:
        self.source, self.options, self.notes = source, options, notes
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
        survey, chunks = self._survey(keep=stream is None)
        label, parts = self._counted(), [np.flatnonzero(part & ~self.faults.rows) for part in (self.train, ~self.train)]
        if len(parts[0]) < 2 or not len(parts[1]):
            raise DataError(
                f"{self.source.name}: {len(parts[0])} rows to train on and {len(parts[1])} held out are left; expected "
                "at least 2 and 1"
            )
        with _named(self.source):
            scaling = survey.scaling(self.options.numeric == "quantile", label, self.place)
        rows_of = [torch.from_numpy(part) for part in parts]
        if stream is not None:
            x: list[Tensor | TableStream] = [TableStream(stream, scaling, part) for part in rows_of]
        else:
            everything = torch.cat([raw_examples(scaling.columns, values) for values in chunks])
            x = [everything[part] for part in rows_of]
        labels = [None if self.codes is None else torch.from_numpy(self.codes[part]) for part in parts]
        classes = () if label is None else tuple(map(str, label.values))
        notes = (_describe(scaling), *self.notes, *self.faults.notes())
        return Dataset(name, x[0], x[1], labels[0], labels[1], classes, scaling, notes, int(self.faults.rows.sum()))

    def _survey(self, keep: bool) -> tuple[Survey, list[dict[str, np.ndarray]]]:
        """The columns as measured in one pass over the chunks, and the chunks where they are to be kept."""
        survey, names = Survey(self.fields, self.n), [f.name for f in self.fields]
        chunks = []
        for chunk, first in enumerate(self.starts[:-1]):
            rows = slice(first, first + self.source.sizes[chunk])
            values = self._read(chunk, names)
            for column, bad in infinite_rows(values, self.fields):
                remedy = "expected finite numbers: repair them, leave them empty, or pass over such rows by --skip-bad"
                self.faults.add(Fault(f"an infinite value in the column {column!r}", first + bad, remedy))
            with _named(self.source):
                survey.add(values, ~self.faults.rows[rows], self.train[rows])
            chunks += [values] if keep else []
        return survey, chunks

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
        kind: str = named.kind
        if named.kind == "number":
            wrong = usable & ~(np.nan_to_num(column, posinf=0.5, neginf=0.5) % 1 == 0)
            if wrong.any():
                remedy = "expected whole numbers or names as classes: name another column by --label"
                self.faults.add(
                    Fault(f"{column[wrong][0]:g} in the label column {named.name!r}", np.flatnonzero(wrong), remedy)
                )
            kind, usable = "integer", usable & ~wrong
            column = np.where(usable, column, 0).astype(np.int64)
        values, codes = np.unique(column[usable].astype("int64" if kind == "integer" else "str"), return_inverse=True)
        if kind == "boolean":
            values = values == "True"
        indices = np.zeros(self.n, dtype=np.int64)
        indices[usable] = codes.reshape(-1)
        return Category(named.name, kind, tuple(values.tolist()), (0.0,) * len(values)), indices

    def _counted(self) -> Category | None:
        """The column of classes with their shares of the training data."""
        if self.label is None or self.codes is None:
            return None
        counts = np.bincount(self.codes[self.train & ~self.faults.rows], minlength=len(self.label.values))
        shares = tuple((counts / max(1, counts.sum())).tolist())
        return Category(self.label.name, self.label.kind, self.label.values, shares)

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
