"""Files by their number, in a folder or in a zip: what a stream of pictures reads its bytes from, in any process."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ornstein.data.streaming import spread
from ornstein.errors import DataError

HEADS, HEAD_BYTES = 1000, 4096  # files looked into for a digest, and how far


class Store(Protocol):
    """Encoded pictures by their number; can be sent to other processes and used after a fork."""

    def read(self, number: int) -> bytes:
        """The bytes of a picture's file. Raises what the reading raises."""

    def called(self, number: int) -> str:
        """The picture as the user knows it."""

    def digest(self, numbers: np.ndarray) -> str:
        """SHA-256 (hex) that tells whether these pictures are the same, without reading them all."""


class _Names:
    """Names of files, relative, with "/" between their parts, sorted.

    Held as one array of bytes: a list of strings would be copied, string by string, into each forked process that so
    much as looks at it, by the counts of references.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._bytes = np.array([name.encode("utf-8", "surrogateescape") for name in sorted(names)], dtype=np.bytes_)

    def __getitem__(self, number: int) -> str:
        return bytes(self._bytes[number]).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self._bytes)))


class FolderStore:
    """The files in a folder and its subfolders, through links too; hidden folders, and links to a folder that they are in,
    are left out.

    Raises DataError for a folder that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        def stop(error: OSError) -> None:
            raise DataError(f"{error.filename} cannot be read ({error.strerror}); expected a folder of images")

        names = []
        for root, folders, files in os.walk(path, onerror=stop, followlinks=True):
            folders[:] = [f for f in folders if not f.startswith(".") and not _leads_back(os.path.join(root, f))]
            names += [(Path(root) / f).relative_to(path).as_posix() for f in files]
        self.path, self.names = path, _Names(names)

    def file(self, name: str) -> bytes:
        """The bytes of a file by its name."""
        return (self.path / name).read_bytes()

    def read(self, number: int) -> bytes:
        """The bytes of a file by its number."""
        return self.file(self.names[number])

    def called(self, number: int) -> str:
        """The file's path."""
        return f"{self.path}/{self.names[number]}"

    def digest(self, numbers: np.ndarray) -> str:
        """Of names and sizes, and of the first 4 KiB of at most 1000 files, evenly spread; "-" for what cannot be read."""
        digest = hashlib.sha256()
        for number in numbers.tolist():
            name = self.names[number]
            try:
                size = str((self.path / name).stat().st_size)
            except OSError:
                size = "-"
            digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        for number in heads(numbers):
            try:
                with open(self.path / self.names[number], "rb") as file:
                    digest.update(file.read(HEAD_BYTES))
            except OSError:
                digest.update(b"-")
        return digest.hexdigest()


def _leads_back(folder: str) -> bool:
    """Whether a folder is a link to one that it is in, by which a walk would never end."""
    if not os.path.islink(folder):
        return False
    return os.path.realpath(folder) in {os.path.realpath(above) for above in Path(folder).absolute().parents}


class ZipStore:
    """The files in a zip, which stays open: once in each process, as processes must not share a place in a file.

    Raises DataError for a file that is no zip, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        with zip_errors_named(path):
            self.names = _Names([info.filename for info in self._archive().infolist() if not info.is_dir()])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def file(self, name: str) -> bytes:
        """The bytes of a file by its name."""
        return self._archive().read(name)

    def read(self, number: int) -> bytes:
        """The bytes of a file by its number."""
        return self.file(self.names[number])

    def called(self, number: int) -> str:
        """The path of the zip and the name in it."""
        return f"{self.path}/{self.names[number]}"

    def digest(self, numbers: np.ndarray) -> str:
        """Of names, checksums (CRC-32) and sizes."""
        digest, archive = hashlib.sha256(), self._archive()
        for number in numbers.tolist():
            name = self.names[number]
            info = archive.getinfo(name)
            digest.update(f"{name}\0{info.CRC}\0{info.file_size}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), zipfile.ZipFile(self.path))
        return self._opened[1]


def heads(numbers: np.ndarray) -> list[int]:
    """Which of the files a digest looks into."""
    return numbers[spread(len(numbers), HEADS).numpy()].tolist()


@contextmanager
def zip_errors_named(path: Path) -> Iterator[None]:
    """Turn what zipfile raises on a damaged file into a DataError that names the file."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as a zip ({error}); it may be cut short: copy or download it again"
        ) from error
