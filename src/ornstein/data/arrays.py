"""Data in numpy files: one array in a .npy, arrays by name in a .npz. Pickled objects are never read."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ornstein.config import DataOptions
from ornstein.data.codes import Codes
from ornstein.data.dataset import Dataset, Part, assemble, finite_rows
from ornstein.data.scaling import SERIES_NOTE, infer_layout
from ornstein.errors import DataError

# Names looked for, in this order: training examples, their labels, held-out examples, their labels.
NAMES = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("images", "labels", None, None),
    ("samples", "labels", None, None),
    ("x", "y", None, None),
)
CONDITIONS = (("train_cond", "test_cond"), ("cond_train", "cond_test"), ("cond", None))
"""Names of what is given with each example, for --condition arrays: of the training and of the held-out part."""


SERIES = "expected one length: cut or pad them, and save one array of floats (n, length, channels)"


def load_arrays(path: Path, seed: int, options: DataOptions) -> Dataset:
    """The data set in a .npy or .npz file.

    .npy: the examples, without labels. .npz: one of the sets of names in `NAMES` (labels and held-out part may be
    missing), or a single array of any name; beside them conditions, by the names in `CONDITIONS`. Types: uint8 (n, h, w) and
    (n, h, w, c) are images of 256 levels, booleans the same with 2; floats are continuous, (n, length, channels) series, and
    come back with their axes; other integers are taken as continuous numbers, or with `options.integers` "codes" as codes.

    Raises DataError for a file that cannot be read, names that are not known, series of different lengths, arrays of a
    shape or type that cannot be trained on, labels that do not fit the examples, and NaN or inf, unless
    `options.skip_bad` passes over such examples.
    """
    with readable(path):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _dataset(path, {"": loaded}, ("", None, None, None), seed, options)
        with loaded as file:
            names = _choose(path, file)
            conditions = _conditions(path, file.files, split=names[2] is not None)
            arrays = {name: file[name] for name in (*names, *conditions) if name is not None}
            ignored = [name for name in file.files if name not in arrays]
    return _dataset(path, arrays, names, seed, options, ignored, conditions)


def _choose(path: Path, file: "np.lib.npyio.NpzFile") -> tuple[str | None, ...]:
    found = file.files
    for names in NAMES:
        if names[0] in found:
            if names[3] in found and names[2] not in found:
                raise DataError(
                    f"{path} holds {names[3]} but no examples that go with them; add {names[2]} or remove it"
                )
            return tuple(name if name in found else None for name in names)
    alone = [name for name in found if name not in {name for pair in CONDITIONS for name in pair}]
    if len(alone) == 1:
        return (alone[0], None, None, None)
    _refuse_ragged(path, file)
    raise DataError(
        f"{path} holds the arrays {', '.join(sorted(found)) or '(none)'}; expected a single array, or "
        + ", or ".join("/".join(name for name in names if name) for names in NAMES)
    )


def _conditions(path: Path, found: list[str], split: bool) -> tuple[str | None, str | None]:
    """The names of the conditions of the examples and of the held-out part, where it has one of its own."""
    train, test = next((pair for pair in CONDITIONS if pair[0] in found), (None, None))
    if train is None or not split:
        return train, None
    if test not in found:
        wanted = " or ".join("/".join(filter(None, pair)) for pair in CONDITIONS[:2])
        raise DataError(f"{path} holds {train} and held-out examples without conditions; expected {wanted}")
    return train, test


def _refuse_ragged(path: Path, file: "np.lib.npyio.NpzFile") -> None:
    """Raise DataError where the arrays are series of one kind but of different lengths."""
    shapes = {name: shape for name in file.files if len(shape := file[name].shape) in (1, 2)}
    lengths = sorted({shape[0] for shape in shapes.values()})
    if len(lengths) > 1 and len({shape[1:] for shape in shapes.values()}) == 1:
        first, other = next((a, b) for a in shapes for b in shapes if shapes[a][0] < shapes[b][0])
        raise DataError(
            f"{path} holds {len(shapes)} series of {len(lengths)} lengths, {lengths[0]} to {lengths[-1]} ({first}: "
            f"{shapes[first][0]}, {other}: {shapes[other][0]}); {SERIES}"
        )


def _dataset(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    names: tuple[str | None, ...],
    seed: int,
    options: DataOptions,
    ignored: list[str] | None = None,
    conditions: tuple[str | None, str | None] = (None, None),
) -> Dataset:
    notes = [f"ignored the arrays {', '.join(ignored)}"] if ignored else []
    parts, levels, codes = [], None, None
    if options.integers == "codes":
        named = [(f"{path} [{name}]" if name else str(path), arrays[name]) for name in names[::2] if name is not None]
        codes = _as_codes(named[0], named[1] if len(named) == 2 else None)
    for examples, labels, cond in ((*names[:2], conditions[0]), (*names[2:], conditions[1])):
        if examples is None:
            continue
        source = f"{path} [{examples}]" if examples else str(path)
        x, levels, note = as_examples(arrays[examples], source, codes)
        notes += [note] if note and note not in notes else []
        part = Part(
            x,
            None if labels is None else _as_labels(arrays[labels]),
            source,
            cond=None if cond is None else as_condition(arrays[cond], f"{path} [{cond}]"),
        )
        parts.append(part if levels is not None or codes is not None else part.finite(options.skip_bad))
    test = parts[1] if len(parts) == 2 else None
    return assemble(
        path.name,
        parts[0],
        test,
        seed=seed,
        holdout=options.holdout,
        levels=levels,
        notes=tuple(notes),
        scaling=codes,
    )


def _as_codes(train: tuple[str, np.ndarray], test: tuple[str, np.ndarray] | None) -> Codes | None:
    """The codes 0 .. max of integers, named for messages; None for images and booleans, which stay so.

    The maximum is over all examples that training ones are drawn from. Raises DataError for floats, negative values,
    held-out values above that maximum, and values that are all 0.
    """
    array = train[1]
    if array.dtype == np.bool_ or array.ndim < 2 or not array.size:
        return None
    if array.dtype == np.uint8 and infer_layout(torch.empty(array.shape, dtype=torch.uint8, device="meta")) != "plain":
        return None
    _check_codes(*train)
    most = int(array.max())
    if test is not None:
        _check_codes(*test, most, train[0])
    if most < 1:
        raise DataError(f"{train[0]}: got codes that are all 0, expected data that vary")
    narrow = array.dtype.itemsize <= 4 and most <= np.iinfo(np.int32).max
    dtype = "uint8" if array.dtype == np.uint8 else "int32" if narrow else "int64"
    return Codes(tuple(array.shape[1:]), "plain", most + 1, dtype)


def _check_codes(source: str, array: np.ndarray, most: int = np.iinfo(np.int64).max - 1, largest_of: str = "") -> None:
    """Raise DataError, naming value and place, where `array` holds other than the integers 0 .. most."""
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{source}: got values of type {array.dtype}, expected integers, which --integers codes and a discrete --process "
            "need: give integers, or leave these options out"
        )
    if array.size and (array.min() < 0 or array.max() > most):
        place = np.argwhere((array < 0) | (array > most))[0].tolist()
        why = f" (the largest of {largest_of})" if largest_of else ""
        raise DataError(
            f"{source}: got the value {array[tuple(place)]} at {place} (counted from 0), expected codes 0 to {most}{why}: "
            "number the categories from 0, and give all of them in training"
        )


def as_condition(array: np.ndarray, source: str) -> Tensor:
    """A numpy array of conditions as a tensor, its numbers as they are. Raises DataError where it holds none, or NaN or inf."""
    if array.dtype.kind not in "buif" or array.ndim < 1:
        raise DataError(
            f"{source}: array of type {array.dtype} and shape {array.shape}; expected numbers, one row an example"
        )
    kind = array.dtype.newbyteorder("=") if array.dtype.itemsize > 1 else array.dtype
    cond = torch.from_numpy(np.require(array, kind, ["C", "W"]))
    if cond.is_floating_point():
        finite_rows(cond, source)
    return cond


def _as_labels(labels: np.ndarray) -> np.ndarray:
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def as_examples(array: np.ndarray, source: str, codes: Codes | None = None) -> tuple[Tensor, int | None, str]:
    """A numpy array as raw examples: the tensor (uint8, float32 or float64), its levels, and a note for the user or "".

    codes: what integers are, where they are codes: the tensor is of its type.

    Raises DataError where it cannot be trained on: no axis of features, a type that is not a number.
    """
    if array.dtype.kind not in "buif":
        raise DataError(f"{source}: array of type {array.dtype}; expected numbers (uint8 for images, or floats)")
    if array.ndim < 2 or 0 in array.shape[1:]:
        raise DataError(
            f"{source}: array of shape {array.shape}; expected (n, features), (n, height, width), ...; "
            "for single numbers use x.reshape(-1, 1)"
        )
    if codes is not None:
        return torch.from_numpy(np.require(array, codes.dtype, ["C", "W"])), None, ""
    levels: int | None = None
    dtype, notes = "float32", []
    if array.dtype == np.bool_ or array.dtype == np.uint8:
        levels, dtype = (2 if array.dtype == np.bool_ else 256), "uint8"
    elif array.dtype.kind in "ui":
        dtype = "float32" if array.dtype.itemsize <= 2 else "float64"
        notes.append(
            f"{array.dtype} values are taken as continuous, so samples are not rounded (for images store uint8)"
        )
    elif array.dtype.itemsize > 4:
        dtype = "float64"
    if array.ndim == 3 and levels is None:
        notes.append(SERIES_NOTE)
    # A copy in C order and the machine's byte order where the file has others; torch takes no other.
    return torch.from_numpy(np.require(array, dtype, ["C", "W"])), levels, "; ".join(notes)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what numpy and zipfile raise on a damaged or foreign file into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "allow_pickle" in reason or "pickled" in reason:
            reason = (
                "it holds Python objects, such as series of different lengths, or is no numpy file at all, and unpickling "
                f"could run foreign code; of series {SERIES}"
            )
        raise DataError(
            f"{path} cannot be read as a numpy file ({reason}); expected arrays of numbers written by numpy.save or "
            "numpy.savez"
        ) from error
