"""Tables in Parquet: one file, or a folder of shards, which together are one table; read row group by row group."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data.columns import TableScaling, require_pandas
from ornstein.data.streaming import spread
from ornstein.data.survey import CELLS, Fault, Field, check_names, raw_examples
from ornstein.errors import DataError

if TYPE_CHECKING:
    import pyarrow

CACHE = 1 << 28  # bytes of row groups that a stream keeps, or a single one where that is larger
DIGESTED, DIGESTED_BYTES = 1000, 4096  # column chunks that a digest looks into, at most, and how far
ROW_INDEX = "__index_level_"  # how pandas calls the row index that it writes as a column


@dataclass(frozen=True)
class Shard:
    """A file of the table, the rows of each of its row groups, and its footer, which is slow to parse."""

    path: Path
    groups: tuple[int, ...]
    footer: "pyarrow.parquet.FileMetaData"


class ParquetSource:
    """The table in a .parquet file, or in those of a folder in the order of their names, as a `Source`.

    A chunk is a row group. With `skip_bad`, shards whose footer cannot be read, and row groups whose data cannot, are
    passed over; a shard counts as one in `passed`, as nobody knows its rows. Raises DataError for damaged files, shards
    of another schema than the first, and types that are none of a table.
    """

    def __init__(self, path: Path, skip_bad: bool) -> None:
        require_pandas()
        self.name = str(path)
        self.faults: tuple[Fault, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.passed = 0
        files = sorted(p for p in path.iterdir() if _is_shard(p)) if path.is_dir() else [path]
        first: tuple[Path, pyarrow.Schema] | None = None
        self.shards: list[Shard] = []
        for file in files:
            try:
                schema, shard = _open(file)
            except DataError as error:
                if not skip_bad:
                    raise
                self.notes, self.passed = (*self.notes, f"passed over a shard: {error}"), self.passed + 1
                continue
            if first is None:
                first = file, schema
                self.fields = _fields(schema, str(file))
            _same_schema(*first, file, schema)
            self.shards.append(shard)
        if first is None:
            raise DataError(f"{path}: none of its {len(files)} .parquet files can be read; expected whole ones")
        self._places = [(i, g) for i, shard in enumerate(self.shards) for g in range(len(shard.groups))]
        self.sizes = tuple(self.shards[i].groups[g] for i, g in self._places)
        self.fields = tuple(replace(f, members=self._members(f.name)) for f in self.fields)

    def read(self, chunk: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some columns of a row group. Raises DataError where its data are damaged."""
        import pyarrow as pa

        numbers, found = {f.name for f in self.fields if f.kind == "number"}, {}
        table = self._table(chunk, names)
        with _readable(self.shards[self._places[chunk][0]].path):
            for name in names:
                column = table.column(name)
                if name in numbers:
                    found[name] = column.cast(pa.float64(), safe=False).to_numpy()
                    continue
                if pa.types.is_dictionary(column.type):
                    column = column.cast(column.type.value_type)
                found[name] = column.to_pandas(integer_object_nulls=True).astype(object).to_numpy()
        return found

    def where(self, row: int) -> str:
        """The row and its file, counted from 0."""
        for shard in self.shards:
            if row < sum(shard.groups):
                return f"row {row} of {shard.path.name}"
            row -= sum(shard.groups)
        raise IndexError(row)

    def digest(self) -> str:
        """Of the names, sizes and footers of the files, and the first 4 KiB of up to 1000 column chunks, evenly spread.

        A footer holds the extremes and the place of each column's data.
        """
        digest = hashlib.sha256()
        for shard in self.shards:
            size = shard.path.stat().st_size
            digest.update(f"{shard.path.name} {size};".encode())
            with open(shard.path, "rb") as file:
                file.seek(-8, 2)
                footer = int.from_bytes(file.read(4), "little")
                file.seek(-min(size, 8 + footer), 2)
                digest.update(file.read(footer))
        columns = max(1, self.shards[0].footer.num_columns)
        for chunk in spread(len(self._places) * columns, DIGESTED).tolist():
            shard, group = self._places[chunk // columns]
            digest.update(_beginning(self.shards[shard], group, chunk % columns))
        return digest.hexdigest()

    def _table(self, chunk: int, names: Sequence[str]) -> "pyarrow.Table":
        import pyarrow.parquet as pq

        shard, group = self.shards[self._places[chunk][0]], self._places[chunk][1]
        with _readable(shard.path), pq.ParquetFile(shard.path, metadata=shard.footer) as file:
            return file.read_row_group(group, columns=list(names), use_threads=False)

    def _members(self, name: str) -> tuple[Any, ...]:
        """Of a pandas category, its members in the order in which the first row group declares them; () of others."""
        if not self.sizes or next(f for f in self.fields if f.name == name).kind != "category":
            return ()
        try:
            column = self._table(0, [name]).column(name).unify_dictionaries()
        except DataError:  # told, or passed over, when its rows are read
            return ()
        return tuple(column.chunk(0).dictionary.to_pylist()) if column.num_chunks else ()


class TableStream:
    """Rows of a Parquet table that stays on disk, as a `ornstein.data.streaming.Stream` of raw examples.

    Parquet is read by whole row groups, each at most once a batch, and the last ones are kept, up to 256 MiB. So a batch
    of b random rows costs as many row groups as it touches, min(b, groups) where the table is much larger than
    that: to train from one, write it with row groups of some 1000 rows (`to_parquet(..., row_group_size=1000)`), or
    with `--stream never` where memory holds it.
    """

    def __init__(self, source: ParquetSource, scaling: TableScaling, rows: Tensor) -> None:
        self._source, self._scaling, self._rows = source, scaling, rows
        self._first = torch.tensor([0, *source.sizes]).cumsum(0)
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, columns)."""
        return (len(self._rows), *self._scaling.raw_shape)

    @property
    def dtype(self) -> torch.dtype:
        """float64."""
        return torch.float64

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Tensor) -> tuple[Tensor, int]:
        """The raw examples of `rows` (b,), float64 (b, columns), and 0: what is damaged is found, and named, at the start."""
        at = self._rows[rows.cpu()]
        groups = torch.searchsorted(self._first, at, right=True) - 1
        found = torch.empty(len(at), *self._scaling.raw_shape, dtype=self.dtype)
        for group in groups.unique().tolist():
            mine = groups == group
            found[mine] = self._group(group)[at[mine] - self._first[group]]
        return found, 0

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.read(rows)[0]

    def take(self, rows: Tensor) -> "TableStream":
        """The stream of some of the rows."""
        return TableStream(self._source, self._scaling, self._rows[rows])

    def digest(self) -> str:
        """Of the files, as `ParquetSource.digest`, of the rows, and of how the columns are read."""
        read = [(column.name, getattr(column, "values", None)) for column in self._scaling.columns]
        digest = hashlib.sha256(f"{self._source.digest()} {read}".encode())
        digest.update(self._rows.numpy().data.cast("B"))
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """What goes to a process that reads: not the row groups kept here."""
        return {**self.__dict__, "_kept": OrderedDict()}

    def _group(self, group: int) -> Tensor:
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        x = raw_examples(self._scaling.columns, self._source.read(group, self._scaling.names))
        self._kept[group] = x
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > CACHE:
            self._kept.popitem(last=False)
        return x


def _is_shard(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".parquet" and not path.name.startswith(".")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into a DataError that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} is damaged or no Parquet file ({' '.join(str(error).split())}); write it anew, or pass over what "
            "cannot be read by --skip-bad"
        ) from error


def _open(path: Path) -> tuple["pyarrow.Schema", Shard]:
    """The schema of a file, without the row index of pandas, and the file as a shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path) as file:
        footer = file.metadata
        schema = file.schema_arrow
        rows = tuple(footer.row_group(g).num_rows for g in range(footer.num_row_groups))
    columns = [i for i, name in enumerate(schema.names) if not name.startswith(ROW_INDEX)]
    return pa.schema([schema.field(i) for i in columns]), Shard(path, rows, footer)


def _beginning(shard: Shard, group: int, column: int) -> bytes:
    """The first bytes of the data of a column in a row group."""
    chunk = shard.footer.row_group(group).column(column)
    with open(shard.path, "rb") as file:
        file.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        return file.read(min(DIGESTED_BYTES, chunk.total_compressed_size))


def _same_schema(first: Path, expected: "pyarrow.Schema", file: Path, schema: "pyarrow.Schema") -> None:
    one = "expected one schema in all shards: write them anew with the same columns and types"
    for name in expected.names:
        if name not in schema.names:
            raise DataError(f"{file} has no column {name!r}, which {first.name} has; {one}")
        got, wanted = schema.field(name).type, expected.field(name).type
        if got != wanted:
            raise DataError(f"{file}: the column {name!r} is of type {got}, in {first.name} of {wanted}; {one}")
    for name in schema.names:
        if name not in expected.names:
            raise DataError(f"{file} has a column {name!r}, which {first.name} has not; {one}")


def _fields(schema: "pyarrow.Schema", source: str) -> tuple[Field, ...]:
    check_names(schema.names, source)
    return tuple(_field(name, schema.field(name).type, source) for name in schema.names)


def _field(name: str, kind: "pyarrow.DataType", source: str) -> Field:
    import pyarrow.types as types

    if types.is_integer(kind):
        return Field(name, "number", str(kind))
    if types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
        return Field(name, "number", {"float": "float32", "halffloat": "float16"}.get(str(kind), "float64"))
    if types.is_boolean(kind):
        return Field(name, "boolean")
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return Field(name, "text")
    if types.is_dictionary(kind):
        values = _field(name, kind.value_type, source)
        return Field(name, "category", values.dtype, ordered=kind.ordered)
    raise DataError(f"{source}: the column {name!r} is of type {kind}; expected {CELLS}")
