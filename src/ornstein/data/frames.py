"""Tables in memory: pandas frames, and CSV files read into one."""

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from ornstein.data.columns import require_pandas
from ornstein.data.survey import Fault, Field
from ornstein.errors import DataError

if TYPE_CHECKING:
    import pandas

CELLS = "numbers, booleans or text: turn dates into numbers, such as days since one of them, or leave the column out"
_KINDS = {"boolean": "boolean", "string": "text", "empty": "number", "integer": "number", "floating": "number"}


class FrameSource:
    """A table in memory as a `Source` of one chunk; `lines` is the file whose lines its rows are, if one."""

    def __init__(
        self, frame: "pandas.DataFrame", name: str, lines: Path | None = None, faults: tuple[Fault, ...] = ()
    ) -> None:
        self.name, self._frame, self._lines = name, frame, lines
        check_names([str(column) for column in frame.columns], name)
        frame.columns = [str(column) for column in frame.columns]
        self.fields = tuple(_field(frame[column], name) for column in frame.columns)
        self.sizes: tuple[int, ...] = (len(frame),)
        self.faults = faults

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


def read_csv(path: Path, skip_bad: bool) -> tuple[FrameSource, tuple[str, ...]]:
    """The table in a .csv or .csv.gz file (comma, UTF-8, a line of names first), and notes on what was passed over.

    A column whose values are numbers for the most part is one of numbers; rows with text there are faults. Raises
    DataError for a file that cannot be read, has no names, or lines with more fields than names.
    """
    pandas = require_pandas()
    too_long: list[list[str]] = []

    def pass_over(fields: list[str]) -> None:
        too_long.append(fields)

    try:
        _check_header(path)
        # The parser in Python is slow, and the only one that tells which lines it leaves out.
        more: dict[str, Any] = {"engine": "python", "on_bad_lines": pass_over} if skip_bad else {}
        frame = pandas.read_csv(path, dtype_backend="numpy_nullable", encoding="utf-8-sig", index_col=False, **more)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); expected comma-separated text") from error
    except pandas.errors.ParserError as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise DataError(
            f"{path}: {reason}; expected as many fields as names in each line: quote fields that hold commas, or pass "
            "over such lines by --skip-bad"
        ) from error
    faults = [fault for name in frame.columns if (fault := _settle(frame, name)) is not None]
    notes = (f"passed over {len(too_long)} lines with more fields than names",) if too_long else ()
    return FrameSource(frame, str(path), path, tuple(faults)), notes


def _settle(frame: "pandas.DataFrame", name: str) -> Fault | None:
    """Make a column of text whose values are numbers for the most part one of numbers; the rows with text are faults."""
    import pandas

    column = frame[name]
    if not isinstance(column.dtype, pandas.StringDtype):
        return None
    numbers = pandas.to_numeric(column, errors="coerce", dtype_backend="numpy_nullable")
    text = (numbers.isna() & column.notna()).to_numpy()
    if 2 * text.sum() >= column.notna().sum():
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
        return Field(name, "category")
    if pandas.api.types.is_bool_dtype(dtype):
        return Field(name, "boolean")
    if pandas.api.types.is_integer_dtype(dtype) or pandas.api.types.is_float_dtype(dtype):
        return Field(name, "number", "float64" if column.isna().all() else str(dtype).lower())
    inferred = pandas.api.types.infer_dtype(column, skipna=True)
    if inferred not in _KINDS:
        raise DataError(f"{source}: the column {name!r} is of type {inferred}; expected {CELLS}")
    kind: Any = _KINDS[inferred]
    return Field(name, kind, ("int64" if inferred == "integer" else "float64") if kind == "number" else "")


def _check_header(path: Path) -> None:
    """Raise DataError where the first line of a CSV file cannot be the names of its columns."""
    records = _records(path)
    names = next((fields for _, fields in records), None)
    if names is None:
        raise DataError(f"{path} is empty; expected a line of column names, then one line a row")
    foreign = [mark for mark in (";", "\t", "|") if mark in names[0]]
    if len(names) == 1 and foreign:
        raise DataError(f"{path} has fields separated by {foreign[0]!r}; expected commas: convert it")
    check_names([name.strip() for name in names], str(path))
    if all(_is_number(name) for name in names):
        raise DataError(f"{path} begins with numbers, {', '.join(names[:3])}; expected a line of column names: add one")
    line, fields = next(records, (2, names))
    if len(fields) > len(names):
        raise DataError(
            f"{path}: line {line} has {len(fields)} fields for {len(names)} names; expected a name for each"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file that are not empty, and the line at which each begins, counted from 1."""
    with _open(path) as file:
        reader, last = csv.reader(file), 0
        for fields in reader:
            first, last = last + 1, reader.line_num
            if fields:
                yield first, fields


def _open(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _line(path: Path, row: int) -> int:
    """The line of a CSV file at which a row begins: not row + 2, where lines are empty or fields hold line breaks."""
    return next((line for number, (line, _) in enumerate(_records(path)) if number == row + 1), row + 2)
