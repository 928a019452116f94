"""`hf:NAME`: data of the Hugging Face Hub, or of a folder in a form that the Hub takes, through `datasets`.

`datasets` downloads and keeps what is asked for; of a folder on disk nothing is sent or fetched. A data set with a column
of images is read as `ornstein.data.folders` reads a folder; another one is a table.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ornstein.config import DataOptions
from ornstein.data.dataset import Dataset, Part, assemble
from ornstein.data.pictures import picture_part
from ornstein.data.stores import HEAD_BYTES, heads
from ornstein.data.streaming import refuse_streaming, refuse_table_options
from ornstein.errors import ConfigurationError, DataError, nearest

if TYPE_CHECKING:
    import datasets
    import pandas

_HELD_OUT = ("test", "validation")
_CLASSES = ("int", "uint", "float", "bool", "string", "large_string")  # types of values that can tell a class
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def load_hub(name: str, seed: int, options: DataOptions) -> Dataset:
    """The data set "hf:NAME", or "hf:NAME:CONFIG" where it has several configurations; NAME may be a folder on disk.

    Training examples are the split "train" (or the only one there is), held-out ones the split "test", else
    "validation", else they are split off. Classes of images: the column `options.label`, else the one column of classes
    that there is. No code of a data set is run.

    Raises ConfigurationError where `datasets` is not installed or options do not fit, DataError for data that cannot be
    found, fetched or read, with several columns of images, or with nothing to train on.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigurationError(f'{name} needs the package datasets; pip install "ornstein[hub]"') from error
    path, config = _parse(name)
    splits = _fetch(name, path, config)
    train, test, notes = _choose(name, splits)
    features = train.features
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(images) > 1:
        raise DataError(f"{name} has several columns of images ({', '.join(images)}); expected one")
    if not images:
        table = _table(name, train, test, seed, options)
        return replace(table, name=Path(path).name, notes=(*notes, *table.notes))
    refuse_table_options(f"{name}, data of images,", replace(options, label=""))
    label, more = _label_column(name, [part for part in (train, test) if part is not None], options.label)
    parts = [_pictures(name, part, images[0], label, options) for part in (train, test) if part is not None]
    return assemble(
        Path(path).name,
        parts[0],
        parts[1] if len(parts) == 2 else None,
        seed=seed,
        holdout=options.holdout,
        notes=(*notes, *more),
    )


class HubStore:
    """The images in a column of a data set, as a `Store`: they stay in the Arrow file that `datasets` maps to memory.

    The file is mapped anew in each process that the store is sent to.
    """

    def __init__(self, name: str, split: "datasets.Dataset", column: str) -> None:
        import datasets

        encoded = split.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.name, self.column, self.encoded = f"{name} [{split.split}]", column, encoded

    def read(self, number: int) -> bytes:
        """The bytes of the image in a row. Raises DataError where there is none."""
        cell = self.encoded[number][self.column]
        if cell is None:
            raise DataError(f"{self.called(number)} holds no image; remove the row")
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    def called(self, number: int) -> str:
        """The split and the row."""
        return f"{self.name} row {number}"

    def digest(self, numbers: np.ndarray) -> str:
        """Of the sizes of the images, and of the first 4 KiB of at most 1000, evenly spread."""
        import pyarrow.compute as pc

        cells = self.encoded.data.column(self.column)
        sizes = pc.fill_null(pc.binary_length(pc.struct_field(cells, "bytes")), -1).to_numpy()[numbers]
        outside = np.flatnonzero(sizes < 0)  # in files of their own, or missing
        if len(outside):
            paths = pc.struct_field(cells, "path").take(numbers[outside]).to_pylist()
            sizes[outside] = [os.path.getsize(path) if path and os.path.exists(path) else -1 for path in paths]
        digest = hashlib.sha256(sizes.astype(np.int64).tobytes())
        for number in heads(numbers):
            try:
                digest.update(self.read(number)[:HEAD_BYTES])
            except (DataError, OSError):
                digest.update(b"-")
        return digest.hexdigest()


def _parse(name: str) -> tuple[str, str | None]:
    """The name or folder, and the configuration, of "hf:NAME:CONFIG"."""
    rest = name.removeprefix("hf:")
    folder = os.path.expanduser(rest)
    if rest and os.path.exists(folder):
        return folder, None
    path, _, config = rest.partition(":")
    if not path:
        raise DataError(f"{name!r} names no data; expected hf:NAME, hf:NAME:CONFIG or hf:FOLDER")
    return os.path.expanduser(path), config or None


def _fetch(name: str, path: str, config: str | None) -> dict[str, "datasets.Dataset"]:
    import datasets

    try:
        return datasets.load_dataset(path, config)
    except Exception as error:
        # Errors of many packages arrive here: of files, of Arrow, of the network, of `datasets` itself.
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else None
        reason = " ".join(str(cause or error).split())[:300] or type(error).__name__
        raise DataError(
            f"{name} cannot be loaded ({reason}); expected the name of a data set on huggingface.co within reach of the "
            "network, hf:NAME:CONFIG for one of its configurations, or hf:FOLDER for one on disk"
        ) from error


def _choose(
    name: str, splits: dict[str, "datasets.Dataset"]
) -> tuple["datasets.Dataset", "datasets.Dataset | None", tuple[str, ...]]:
    found = list(splits)
    chosen = "train" if "train" in found else found[0]
    if chosen != "train" and len(found) > 1:
        raise DataError(f"{name} has the splits {', '.join(found)}; expected one called train")
    held = next((s for s in _HELD_OUT if s in found and s != chosen), None)
    ignored = [s for s in found if s not in (chosen, held)]
    notes = (f"ignored the splits {', '.join(ignored)}",) if ignored else ()
    return splits[chosen], None if held is None else splits[held], notes


def _label_column(name: str, parts: list["datasets.Dataset"], asked: str) -> tuple[str | None, tuple[str, ...]]:
    """The column of classes, or None, and what to tell of it."""
    import datasets

    features = parts[0].features
    if asked and asked not in features:
        raise ConfigurationError(
            f"{name} has no column {asked!r}{nearest(asked, features)}; its columns are {', '.join(features)}"
        )
    if asked and not _tells_a_class(features[asked]):
        fitting = ", ".join(c for c, kind in features.items() if _tells_a_class(kind)) or "none"
        raise ConfigurationError(
            f"{name}: the column {asked!r} for --label is of type {features[asked]}; expected whole numbers, text or "
            f"classes, one in each row; such columns: {fitting}"
        )
    columns = [asked] if asked else [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(columns) > 1:
        return None, (f"no classes are read: choose one of the columns {', '.join(columns)} by --label",)
    for part in parts if columns else []:
        # -1 is how data sets on the Hub say that a class is not told.
        without = sum(value is None or value == -1 for value in part[columns[0]])
        if without:
            lack = f"column {columns[0]} lacks the class of {without} of {len(part)} rows of split {part.split}"
            if asked:
                raise DataError(f"{name}: {lack}; expected a class for each: leave out --label, or these rows")
            return None, (f"no classes are read: {lack}",)
    return (columns[0] if columns else None), ()


def _tells_a_class(kind: object) -> bool:
    import datasets

    return isinstance(kind, datasets.ClassLabel) or (
        isinstance(kind, datasets.Value) and kind.dtype.startswith(_CLASSES)
    )


def _pictures(name: str, split: "datasets.Dataset", column: str, label: str | None, options: DataOptions) -> Part:
    store = HubStore(name, split, column)
    labels = None
    if label is not None:
        names = getattr(split.features[label], "names", None)
        labels = np.array([value if names is None else names[value] for value in split[label]])
    return picture_part(store, np.arange(len(split)), labels, store.name, options)


def _table(
    name: str, train: "datasets.Dataset", test: "datasets.Dataset | None", seed: int, options: DataOptions
) -> Dataset:
    import datasets

    from ornstein.data.tables import from_frame

    refuse_streaming(name, options)
    scalar = [c for c, kind in train.features.items() if isinstance(kind, datasets.Value | datasets.ClassLabel)]
    if not scalar:
        raise DataError(
            f"{name} has the columns {', '.join(train.features)}, none of images, numbers or classes; expected data of "
            "such columns"
        )
    other = [c for c in train.features if c not in scalar]
    notes = (f"ignored the columns {', '.join(other)}, whose entries are not single values",) if other else ()
    held = None if test is None else _frame(test.select_columns(scalar))
    table = from_frame(_frame(train.select_columns(scalar)), name, seed, options, test=held)
    return replace(table, notes=(*notes, *table.notes))


def _frame(split: "datasets.Dataset") -> "pandas.DataFrame":
    """The table of a split, with classes by their names; integers stay integers where some are missing."""
    import datasets
    import pandas
    import pyarrow

    integers = {
        getattr(pyarrow, name)(): pandas.array([], name.capitalize().replace("Ui", "UI")).dtype for name in _INTEGERS
    }
    frame = split.with_format("arrow")[:].to_pandas(types_mapper=integers.get)
    for column, kind in split.features.items():
        if isinstance(kind, datasets.ClassLabel):
            frame[column] = [None if value is None or value < 0 else kind.int2str(value) for value in split[column]]
    return frame
