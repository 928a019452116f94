"""Writing files whole or not at all."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ornstein.errors import ConfigurationError


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
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        # Without this, a power cut after the rename could leave a file of the right name and no content.
        for written in (temporary, *temporary.rglob("*")):
            if written.is_file():
                with open(written, "rb+") as file:
                    os.fsync(file.fileno())
        os.replace(temporary, path)
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
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"{folder} is in use by another process; wait until it ends, or give another folder"
            ) from None
        yield


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written by `atomic_write` in a folder and below."""
    for path in sorted(folder.rglob(".*.tmp*")):
        if not re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp(\..*)?", path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
