"""Tables in memory: pandas frames, and CSV files read into one."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from ornstein.data.columns import require_pandas
from ornstein.data.survey import CELLS, Fault, Field, check_names
from ornstein.errors import DataError

if TYPE_CHECKING:
    import pandas

_KINDS = {"boolean": "boolean", "string": "text", "empty": "number", "integer": "number", "floating": "number"}


class FrameSource:
    """A table in memory as a `Source` of one chunk.

    lines: the file whose lines its rows are, if one. passed: how many of its lines are no rows, being too long.
    """

    def __init__(
        self,
        frame: "pandas.DataFrame",
        name: str,
        lines: Path | None = None,
        faults: tuple[Fault, ...] = (),
        passed: int = 0,
    ) -> None:
        self.name, self._frame, self._lines = name, frame, lines
        check_names([str(column) for column in frame.columns], name)
        frame.columns = [str(column) for column in frame.columns]
        self.fields = tuple(_field(frame[column], name) for column in frame.columns)
        self.sizes: tuple[int, ...] = (len(frame),)
        self.faults, self.passed = faults, passed
        self.notes: tuple[str, ...] = (f"passed over {passed} lines with more fields than names",) if passed else ()

    def read(self, chunk: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some columns of the table."""
        numbers = {f.name for f in self.fields if f.kind == "number"}
        return {
            name: self._frame[name].to_numpy(dtype="float64", na_value=np.nan)
            if name in numbers
            else self._frame[name].astype(object).to_numpy()
            for name in names
        }

    def where(self, row: int) -> str:
        """The line of the file, counted from 1, or the row, counted from 0."""
        return f"row {row}" if self._lines is None else f"line {_line(self._lines, row)}"


def read_csv(path: Path, skip_bad: bool) -> FrameSource:
    """The table in a .csv or .csv.gz file (comma, UTF-8, a line of names first).

    A column whose values are numbers for the most part is one of numbers; rows with text there, and lines with fewer
    fields than names, are faults; lines with more are passed over with `skip_bad`. Raises DataError for a file that
    cannot be read, has no names, decimal commas, or, without `skip_bad`, lines with more fields than names.
    """
    pandas = require_pandas()
    # Before pandas 3 not the default, by which all digits count.
    exact: dict[str, Any] = {"float_precision": "round_trip"} if pandas.__version__.startswith("2.") else {}
    try:
        names = _check_header(path)
        try:
            frame = pandas.read_csv(
                path,
                dtype_backend="numpy_nullable",
                encoding="utf-8-sig",
                index_col=False,
                low_memory=False,  # types of whole columns, not of pieces of the file, which may differ
                on_bad_lines="skip" if skip_bad else "error",
                **exact,
            )
        except pandas.errors.ParserError:
            _check_lines(path, len(names), skip_bad)
            raise
        rows, too_long, short = len(frame), 0, None
        # Counting fields is slow. What pandas fills up lacks its last field; what it skips it does not tell.
        if skip_bad or frame.iloc[:, -1].isna().any():
            rows, too_long, short = _check_lines(path, len(names), skip_bad)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except (OSError, EOFError, zlib.error, csv.Error, pandas.errors.ParserError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({reason}); expected comma-separated text") from error
    if len(frame) != rows:
        raise DataError(
            f"{path} has {rows} rows by its commas and quotes, of which pandas reads {len(frame)}; expected fields quoted "
            "throughout: write it anew"
        )
    settled = [_settle(frame, name, str(path)) for name in frame.columns]
    faults = tuple(fault for fault in (short, *settled) if fault is not None)
    return FrameSource(frame, str(path), path, faults, too_long)


def _settle(frame: "pandas.DataFrame", name: str, source: str) -> Fault | None:
    """Make a column of text whose values are numbers for the most part one of numbers; the rows with text are faults.

    Raises DataError where they are numbers with decimal commas for the most part.
    """
    import pandas

    column = frame[name]
    if not isinstance(column.dtype, pandas.StringDtype):
        return None
    numbers = pandas.to_numeric(column, errors="coerce", dtype_backend="numpy_nullable")
    text = (numbers.isna() & column.notna()).to_numpy()
    if 2 * text.sum() >= column.notna().sum():
        commas = column.str.fullmatch(r"\s*-?\d+,\d+\s*").fillna(False).to_numpy(dtype=bool)
        if 2 * commas.sum() > column.notna().sum():
            raise DataError(
                f"{source}: the column {name!r} holds numbers with decimal commas, such as {column[commas].iloc[0]!r}; "
                'expected decimal points: convert them, e.g. by pandas.read_csv(..., decimal=",").to_csv(..., index=False)'
            )
        return None
    fitting = pandas.to_numeric(column[~text], dtype_backend="numpy_nullable")
    frame[name] = numbers.astype(fitting.dtype)
    rows = np.flatnonzero(text)
    if not len(rows):
        return None
    return Fault(
        f"text in the numeric column {name!r}: {column.iloc[rows[0]]!r}",
        rows,
        "expected a number, or nothing where it is missing: repair it, pass over such rows by --skip-bad, or make all "
        "values text where they are categories",
    )


def _field(column: "pandas.Series", source: str) -> Field:
    import pandas

    name, dtype = str(column.name), column.dtype
    if isinstance(dtype, pandas.CategoricalDtype):
        members, numbers = dtype.categories, pandas.api.types.is_numeric_dtype(dtype.categories.dtype)
        boolean = pandas.api.types.is_bool_dtype(members.dtype)
        declared = str(members.dtype).lower() if numbers and not boolean else ""
        return Field(name, "category", declared, tuple(members.tolist()), bool(dtype.ordered))
    if pandas.api.types.is_bool_dtype(dtype):
        return Field(name, "boolean")
    if pandas.api.types.is_integer_dtype(dtype) or pandas.api.types.is_float_dtype(dtype):
        return Field(name, "number", "float64" if column.isna().all() else str(dtype).lower())
    inferred = pandas.api.types.infer_dtype(column, skipna=True)
    if inferred not in _KINDS:
        raise DataError(f"{source}: the column {name!r} is of type {inferred}; expected {CELLS}")
    kind: Any = _KINDS[inferred]
    return Field(name, kind, ("int64" if inferred == "integer" else "float64") if kind == "number" else "")


def _check_lines(path: Path, width: int, skip_bad: bool) -> tuple[int, int, Fault | None]:
    """Count the fields of each line of a CSV file: rows of the table, lines that are too long, rows that are short.

    Raises DataError for lines that are too long where these are not passed over.
    """
    rows, too_long, fewest, short = -1, 0, 0, list[int]()  # the first is the names
    for line, fields in _records(path):
        if len(fields) > width:
            if not skip_bad:
                raise DataError(
                    f"{path}: line {line} has {len(fields)} fields for {width} names; expected a name for each: quote "
                    "fields that hold commas, or pass over such lines by --skip-bad"
                )
            too_long += 1
            continue
        if len(fields) < width:
            fewest = fewest if short else len(fields)
            short.append(rows)
        rows += 1
    if not short:
        return rows, too_long, None
    remedy = "expected as many: complete them (was the file cut short?), or pass over such lines by --skip-bad"
    return rows, too_long, Fault(f"too few fields: {fewest} for {width} names", np.array(short), remedy)


def _check_header(path: Path) -> list[str]:
    """The names in the first line of a CSV file. Raises DataError where they cannot be names."""
    records = _records(path)
    names = next((fields for _, fields in records), None)
    if names is None:
        raise DataError(f"{path} is empty; expected a line of column names, then one line a row")
    foreign = [mark for mark in (";", "\t", "|") if mark in names[0]]
    if len(names) == 1 and foreign:
        raise DataError(
            f"{path} has fields separated by {foreign[0]!r}; expected commas: convert it, e.g. by "
            f"pandas.read_csv(..., sep={foreign[0]!r}).to_csv(..., index=False)"
        )
    check_names([name.strip() for name in names], str(path))
    # The names 0 .. n - 1 are those that pandas gives to the columns of an array.
    if all(_is_number(name) for name in names) and names != list(map(str, range(len(names)))):
        raise DataError(f"{path} begins with numbers, {', '.join(names[:3])}; expected a line of column names: add one")
    line, fields = next(records, (2, names))
    if len(fields) > len(names):  # pandas takes it, and all lines like it
        raise DataError(
            f"{path}: line {line} has {len(fields)} fields for {len(names)} names; expected a name for each: quote fields "
            "that hold commas"
        )
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file that are not blank, and the line at which each begins, counted from 1."""
    with _open(path) as file:
        reader, last = csv.reader(file), 0
        for fields in reader:
            first, last = last + 1, reader.line_num
            # As pandas reads it: a line of "" is one field, which is missing.
            if len(fields) > 1 or (fields and (not fields[0] or fields[0].strip(" \t"))):
                yield first, fields


def _open(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _line(path: Path, row: int) -> int:
    """The line of a CSV file at which a row begins: not row + 2, where lines are empty or fields hold line breaks."""
    return next((line for number, (line, _) in enumerate(_records(path)) if number == row + 1), row + 2)
