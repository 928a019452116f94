"""Pictures in a folder or a zip: which files, which class each is of, and which are held out."""

import itertools
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ornstein.config import DataOptions
from ornstein.data.dataset import Dataset, Part, assemble
from ornstein.data.pictures import SUFFIXES, read_pictures
from ornstein.errors import DataError

_HELD_OUT = ("test", "val", "valid", "validation")
_INDEX = "dataset.json"


@dataclass(frozen=True)
class _Store:
    """Files by name, in a folder or a zip; names are relative, with "/" between their parts."""

    path: Path
    names: list[str]
    read: Callable[[str], bytes]

    def called(self, name: str) -> str:
        """A file as the user knows it."""
        return f"{self.path}/{name}"


def load_folder(path: Path, seed: int, options: DataOptions) -> Dataset:
    """The images in a folder, in subfolders too; hidden files and files that are not images are passed over.

    Classes: by `dataset.json` (EDM's layout, {"labels": [[name, class], ...]} or null) where there is one, else each
    subfolder is a class, else there are none. Subfolders `train` and `test` (or `val`), and no others, are the training
    and the held-out part. Files are taken in the order of their names.

    Raises DataError for an empty folder, images that cannot be read, that differ in size or channels, or without class.
    """

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); expected a folder of images")

    names = []
    for root, folders, files in os.walk(path, onerror=stop, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        names += [(Path(root) / f).relative_to(path).as_posix() for f in files]
    return _load(_Store(path, names, lambda name: (path / name).read_bytes()), seed, options)


def load_zip(path: Path, seed: int, options: DataOptions) -> Dataset:
    """The images in a zip, read as `load_folder` reads a folder; nothing is unpacked to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
            return _load(_Store(path, names, archive.read), seed, options)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as a zip ({error}); it may be cut short: copy or download it again"
        ) from error


def _load(store: _Store, seed: int, options: DataOptions) -> Dataset:
    visible = [n for n in store.names if not any(p.startswith((".", "__MACOSX")) for p in n.split("/"))]
    images = sorted(n for n in visible if Path(n).suffix.lower() in SUFFIXES)
    if not images:
        raise DataError(f"{store.path} holds no images; expected files ending in {', '.join(SUFFIXES)}")
    base = _common_folder(images)
    known = {*images, base + _INDEX}
    other = [n for n in visible if n not in known]
    notes = (f"passed over {len(other)} files that are not images, such as {other[0]}",) if other else ()
    relative = [n[len(base) :] for n in images]
    if base + _INDEX in store.names:
        part, test = _part(store, images, _indexed_labels(store, base, relative)), None
    else:
        part, test = _by_folder(store, images, relative)
    return assemble(store.path.name, part, test, seed=seed, holdout=options.holdout, notes=notes)


def _common_folder(names: list[str]) -> str:
    """The folders that all names begin with, as "a/b/" or "": an outer folder of all images says nothing of classes."""
    parents = [n.split("/")[:-1] for n in (names[0], names[-1])]  # sorted, so these two differ most
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*parents, strict=False))
    return "".join(f"{part}/" for part, _ in same)


def _by_folder(store: _Store, images: list[str], relative: list[str]) -> tuple[Part, Part | None]:
    """Training and held-out part (None where it has to be split off), classes by subfolder."""
    tops = {n.split("/")[0] for n in relative if "/" in n}
    outside = [n for n in relative if "/" not in n]
    if tops and outside:
        raise DataError(
            f"{store.path} holds images beside subfolders of images ({outside[0]} beside {min(tops)}/); expected one "
            "subfolder for each class, or all images in one folder"
        )
    held = tops - {"train"}
    if len(tops) != 2 or len(held) != 1 or not held <= set(_HELD_OUT):
        return _part(store, images, _folder_labels(relative) if tops else None), None
    parts = []
    for top in ("train", held.pop()):
        chosen = [
            (full, n.split("/", 1)[1]) for full, n in zip(images, relative, strict=True) if n.startswith(f"{top}/")
        ]
        below = [n for _, n in chosen]
        if len({"/" in n for n in below}) == 2:
            raise DataError(f"{store.path}/{top} holds images beside subfolders of images; expected one or the other")
        parts.append(_part(store, [full for full, _ in chosen], _folder_labels(below) if "/" in below[0] else None))
    return parts[0], parts[1]


def _folder_labels(relative: list[str]) -> np.ndarray:
    return np.array([n.split("/")[0] for n in relative])


def _part(store: _Store, images: list[str], labels: np.ndarray | None) -> Part:
    pixels = read_pictures(images, store.read, store.called)
    return Part(torch.from_numpy(pixels), labels, str(store.path))


def _indexed_labels(store: _Store, base: str, relative: list[str]) -> np.ndarray | None:
    """The classes that dataset.json gives to the images, or None where its labels are null."""
    name = store.called(base + _INDEX)
    expected = 'expected {"labels": [[file name, class number], ...]} or {"labels": null}'
    try:
        index = json.loads(store.read(base + _INDEX))
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
    labels = {file.replace("\\", "/"): label for file, label in pairs}
    lacking, extra = [n for n in relative if n not in labels], sorted(labels.keys() - set(relative))
    if lacking or extra:
        what = f"gives no class to {lacking[0]}" if lacking else f"names {extra[0]}, which is not there"
        raise DataError(f"{name} {what} ({len(lacking) or len(extra)} such files); expected a class for each image")
    return np.array([labels[n] for n in relative], dtype=np.int64)
