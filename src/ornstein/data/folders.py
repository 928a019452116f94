"""Pictures in a folder or a zip: which files, which class each is of, and which are held out."""

import itertools
import json
from pathlib import Path

import numpy as np

from ornstein.config import DataOptions
from ornstein.data.dataset import Dataset, assemble
from ornstein.data.pictures import SUFFIXES, picture_part
from ornstein.data.stores import FolderStore, ZipStore, zip_errors_named
from ornstein.errors import DataError

_HELD_OUT = ("test", "val", "valid", "validation")
_INDEX = "dataset.json"


def load_folder(path: Path, seed: int, options: DataOptions) -> Dataset:
    """The images in a folder, in subfolders too; hidden files and files that are not images are passed over.

    Classes: by `dataset.json` (EDM's layout, {"labels": [[name, class], ...]} or null) where there is one, else each
    subfolder is a class, else there are none. Subfolders `train` and `test` (or `val`), and no others, are the training
    and the held-out part. Files are taken in the order of their names.

    Raises DataError for an empty folder, images that cannot be read, that differ in size or channels, or without class.
    """
    return _load(FolderStore(path), seed, options)


def load_zip(path: Path, seed: int, options: DataOptions) -> Dataset:
    """The images in a zip, read as `load_folder` reads a folder; nothing is unpacked to disk."""
    with zip_errors_named(path):
        return _load(ZipStore(path), seed, options)


def _load(store: FolderStore | ZipStore, seed: int, options: DataOptions) -> Dataset:
    names = list(store.names)
    visible = [n for n in names if not any(p.startswith((".", "__MACOSX")) for p in n.split("/"))]
    images = [n for n in visible if Path(n).suffix.lower() in SUFFIXES]
    if not images:
        raise DataError(f"{store.path} holds no images; expected files ending in {', '.join(SUFFIXES)}")
    base = _common_folder(images)
    index = base + _INDEX if base + _INDEX in visible else None
    known = {*images, index}
    other = [n for n in visible if n not in known]
    notes = (f"passed over {len(other)} files that are not images, such as {other[0]}",) if other else ()
    relative = [n[len(base) :] for n in images]
    if index is None:
        groups = _by_folder(store.path, relative)
    else:
        groups = [(np.arange(len(images)), _indexed_labels(store, index, relative))]
    numbers = np.array([k for k, n in enumerate(names) if n in known and n != index])
    parts = [picture_part(store, numbers[rows], labels, str(store.path), options) for rows, labels in groups]
    test = parts[1] if len(parts) == 2 else None
    return assemble(store.path.name, parts[0], test, seed=seed, holdout=options.holdout, notes=notes)


def _common_folder(names: list[str]) -> str:
    """The folders that all names begin with, as "a/b/" or "": an outer folder of all images says nothing of classes."""
    parents = [n.split("/")[:-1] for n in (names[0], names[-1])]  # sorted, so these two differ most
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*parents, strict=False))
    return "".join(f"{part}/" for part, _ in same)


def _by_folder(path: Path, relative: list[str]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Rows and classes, by subfolder, of the training and the held-out part, or of one part that is to be split."""
    tops = {n.split("/")[0] for n in relative if "/" in n}
    outside = [n for n in relative if "/" not in n]
    if tops and outside:
        raise DataError(
            f"{path} holds images beside subfolders of images ({outside[0]} beside {min(tops)}/); expected one "
            "subfolder for each class, or all images in one folder"
        )
    held = tops - {"train"}
    if len(tops) != 2 or len(held) != 1 or not held <= set(_HELD_OUT):
        return [(np.arange(len(relative)), _folder_labels(relative) if tops else None)]
    groups = []
    for top in ("train", held.pop()):
        rows = [k for k, n in enumerate(relative) if n.startswith(f"{top}/")]
        below = [relative[k].split("/", 1)[1] for k in rows]
        if len({"/" in n for n in below}) == 2:
            raise DataError(f"{path}/{top} holds images beside subfolders of images; expected one or the other")
        groups.append((np.array(rows), _folder_labels(below) if "/" in below[0] else None))
    return groups


def _folder_labels(relative: list[str]) -> np.ndarray:
    return np.array([n.split("/")[0] for n in relative])


def _indexed_labels(store: FolderStore | ZipStore, file: str, relative: list[str]) -> np.ndarray | None:
    """The classes that dataset.json gives to the images, or None where its labels are null."""
    name = f"{store.path}/{file}"
    expected = 'expected {"labels": [[file name, class number], ...]} or {"labels": null}'
    try:
        index = json.loads(store.file(file))
    except ValueError as error:
        raise DataError(f"{name} is not JSON ({error}); {expected}") from error
    if not isinstance(index, dict) or "labels" not in index:
        raise DataError(f"{name} has no entry 'labels'; {expected}")
    if index["labels"] is None:
        return None
    pairs = index["labels"]
    if not isinstance(pairs, list) or not all(
        isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) and type(p[1]) is int for p in pairs
    ):
        raise DataError(f"{name} has labels of another form; {expected}")
    labels = {named.replace("\\", "/"): label for named, label in pairs}
    lacking, extra = [n for n in relative if n not in labels], sorted(labels.keys() - set(relative))
    if lacking or extra:
        what = f"gives no class to {lacking[0]}" if lacking else f"names {extra[0]}, which is not there"
        raise DataError(f"{name} {what} ({len(lacking) or len(extra)} such files); expected a class for each image")
    return np.array([labels[n] for n in relative], dtype=np.int64)
