"""Samples that a file holds: what `ornstein sample` wrote, as raw examples of the run's model."""

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ornstein.config import TABLES
from ornstein.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ornstein.data import Codes, Scaling, TableScaling
    from ornstein.data.kinds import Column
    from ornstein.data.survey import Source


def read(path: Path, scaling: "Scaling | TableScaling | Codes") -> "Tensor":
    """The samples (n, *scaling.raw_shape) in an .npz file, in a table for a model of tables, in a .jsonl file for one of text.

    Raises DataError for a file that cannot be read, or that holds samples of another kind than the model's.
    """
    from ornstein.data import TableScaling

    if path.suffix.lower() == ".jsonl":
        return _read_texts(path, scaling)
    if not path.name.lower().endswith(TABLES):
        return _read_arrays(path, scaling)
    if not isinstance(scaling, TableScaling):
        raise DataError(f"{path} is a table, which this run does not make; expected an .npz file of `ornstein sample`")
    return _read_table(path, scaling)


def _read_arrays(path: Path, scaling: "Scaling | TableScaling | Codes") -> "Tensor":
    import numpy as np
    import torch

    try:
        with np.load(path, allow_pickle=False) as file:
            samples = torch.from_numpy(file["samples"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} has no array 'samples' ({error}); expected an .npz file of `ornstein sample`"
        ) from None
    got, expected = str(samples.dtype).removeprefix("torch."), scaling.dtype
    text = getattr(scaling, "vocabulary", None) is not None  # which may be of another length
    if (samples.ndim != 2 if text else tuple(samples.shape[1:]) != scaling.raw_shape) or got != expected:
        raise DataError(
            f"{path} holds {got} samples of shape {tuple(samples.shape[1:])}, expected {expected} of "
            f"{scaling.raw_shape}, as this run makes them"
        )
    return samples


def _read_texts(path: Path, scaling: "Scaling | TableScaling | Codes") -> "Tensor":
    """The tokens of texts, a JSON string a line, all of one length."""
    import torch

    vocabulary = getattr(scaling, "vocabulary", None)
    if vocabulary is None:
        raise DataError(f"{path} holds texts, which this run does not make; expected an .npz file of `ornstein sample`")
    try:
        texts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [vocabulary.encode(text, where=f"{path}, line {number}") for number, text in enumerate(texts, start=1)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as texts ({error}); expected a JSON string a line, as --out FILE.jsonl writes"
        ) from None
    if not rows or len({len(row) for row in rows}) > 1:
        lengths = sorted({len(row) for row in rows})
        raise DataError(
            f"{path} has {len(rows)} texts of {lengths} tokens; expected texts of one length, as `ornstein sample` makes them"
        )
    return torch.stack(rows)


def _read_table(path: Path, scaling: "TableScaling") -> "Tensor":
    """The rows of a table by the columns of the model; its column of classes, where it has one, is passed over."""
    import torch

    from ornstein.data.frames import read_csv
    from ornstein.data.parquet import ParquetSource
    from ornstein.data.survey import infinite_rows, raw_examples

    source: Source = ParquetSource(path, False) if path.suffix.lower() == ".parquet" else read_csv(path, False)
    known = [f.name for f in source.fields]
    own = [*scaling.names, *([scaling.label.name] if scaling.label else [])]
    if not set(scaling.names) <= set(known) <= set(own) or not sum(source.sizes):
        raise DataError(
            f"{path} has {sum(source.sizes)} rows of the columns {', '.join(known)}; expected rows of {', '.join(own)}, "
            "as this run makes them"
        )
    for fault in source.faults:
        raise DataError(f"{path}, {source.where(int(fault.rows[0]))}: {fault.what}; expected a number")
    fields, chunks = [f for f in source.fields if f.name in scaling.names], []
    for chunk in range(len(source.sizes)):
        values = source.read(chunk, scaling.names)
        for name, rows in infinite_rows(values, fields):
            raise DataError(f"{path}: an infinite value in the column {name!r} ({len(rows)} rows); expected numbers")
        for column in scaling.columns:
            _check(path, column, values[column.name])
        chunks.append(raw_examples(scaling.columns, values))
    return torch.cat(chunks)


def _check(path: Path, column: "Column", values: "np.ndarray") -> None:
    """Raise DataError where a column of the model cannot hold these values."""
    import pandas

    from ornstein.data.kinds import Category

    found = [None if pandas.isna(value) else value for value in pandas.unique(values).tolist()]
    if isinstance(column, Category):
        wrong = [value for value in found if value not in column.values]
        expected = f"one of {', '.join(map(repr, column.values))}"
        if path.suffix.lower() != ".parquet" and values.dtype != object:  # text that looks like numbers
            expected += ", which a CSV file cannot tell from numbers: sample with --out FILE.parquet"
    else:
        wrong, expected = found if values.dtype == object else [], "numbers"
    if wrong:
        raise DataError(f"{path}: the column {column.name!r} holds {wrong[0]!r}; expected {expected}")
