"""Writing files whole or not at all."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ornstein.errors import ConfigurationError

LOCK = ".lock"
PATIENCE = 8.0  # seconds: a killed process's readers keep its lock until they notice, which takes them up to 5


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` when the block ends without an error.

    The block may create a file or a folder at the temporary path, which keeps the suffix of `path` (numpy goes by it).
    A reader sees the old content or the new, never half of it: files are flushed to disk, then renamed by `os.replace`,
    which is atomic within a file system. On any error, Ctrl-C included, the temporary path is removed and `path` is as
    it was. Missing parent folders are made.

    Raises ConfigurationError where `path` is a folder that holds something (nothing is overwritten), and OSError where
    the place cannot be written to.
    """
    path = Path(path)
    if path.is_dir() and any(path.iterdir()):
        raise ConfigurationError(f"{path} is a folder that exists already and is not empty; give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        # Without this, a power cut after the rename could leave a file of the right name and no content.
        for written in (temporary, *temporary.rglob("*")):
            if written.is_file():
                with open(written, "rb+") as file:
                    os.fsync(file.fileno())
            elif written.is_dir():
                _flush_folder(written)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep a folder for this process, as long as the block lasts; the system lets go of it however the process ends.

    Raises ConfigurationError where another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    with open(folder / LOCK, "w") as file:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.2)
                    continue
                raise ConfigurationError(
                    f"{folder} is in use by another process; wait until it ends, or give another folder"
                ) from None
            except OSError:  # a file system without locks
                pass
            break
        yield


def discard(path: Path) -> None:
    """Remove a folder so that it is there in full or not at all, whatever stops the removal."""
    doomed = _temporary(path)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """Whether a path is a lock, or what a killed process left half written or half removed."""
    return path.name == LOCK or re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp(\..*)?", path.name) is not None


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written, or half removed, in a folder and below."""
    for path in sorted(folder.rglob(".*.tmp*")):
        if not is_leftover(path):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A hidden name beside a path, with its suffix, that `sweep` knows."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")


def _flush_folder(folder: Path) -> None:
    """Write the names in a folder to disk, where the system lets folders be opened for that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
