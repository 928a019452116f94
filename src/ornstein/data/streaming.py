"""Examples that stay on disk: read when they are asked for, by the rows they are.

A `Stream` stands where a tensor of examples stands. `batches` reads from either by a plan of rows that its caller draws,
so what is read, and in which order, does not depend on the number of worker processes.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from ornstein.config import DataOptions
from ornstein.errors import ConfigurationError, DataError, OrnsteinError

PREFETCH = 2  # batches that each worker process keeps ready


class Stream(Protocol):
    """Raw examples by their rows, in the place of a tensor (n, *raw_shape): `len(s)`, `s.shape`, `s.dtype`, `s[rows]`.

    What is read is a function of the rows alone, in every process.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, *raw_shape)."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of the raw values."""

    def __len__(self) -> int: ...

    def read(self, rows: Tensor) -> tuple[Tensor, int]:
        """The raw examples of `rows` (b,), on the CPU, and how many of them could not be read and have stand-ins."""

    def __getitem__(self, rows: Tensor) -> Tensor: ...

    def take(self, rows: Tensor) -> "Stream":
        """The stream of some of the rows."""

    def digest(self) -> str:
        """A hexadecimal sum that tells whether the data behind the stream are the same, without reading them all."""


def too_large(size: int, mode: str) -> bool:
    """Whether examples of `size` bytes are to be streamed: by `mode` "always", "never", or "auto".

    "auto" streams what takes more than a quarter of physical memory, as loading holds up to two copies of the data; it
    never streams where the system does not say how much memory there is.
    """
    if mode != "auto":
        return mode == "always"
    try:
        return 4 * size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return False


def refuse_streaming(source: str, options: DataOptions) -> None:
    """Raise ConfigurationError where `options` ask to stream what is only read as a whole."""
    if options.stream == "always":
        raise ConfigurationError(
            f"{source} cannot be streamed, as it is read as a whole; expected images in a folder, a zip or behind hf:, "
            "or Parquet: leave out --stream always"
        )


def refuse_table_options(source: str, options: DataOptions) -> None:
    """Raise ConfigurationError where `options` speak of the columns of a table, and the data have none."""
    if options.label:
        raise ConfigurationError(
            f"{source} has no columns of a table, got --label {options.label}; leave it out: classes are the subfolders of a "
            "folder of images, or the array 'labels' of an .npz file"
        )
    if options.numeric != "standardise":
        raise ConfigurationError(f"{source} has no columns of a table, got --numeric {options.numeric}; leave it out")


def spread(n: int, count: int) -> Tensor:
    """min(n, count) of the rows 0 .. n - 1, evenly spread: the middles of as many equal parts, int64."""
    count = min(n, count)
    return (2 * torch.arange(count) + 1) * n // (2 * max(1, count))


def batches(
    examples: Tensor | Stream, plan: Iterator[Tensor], workers: int, pin: bool = False
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """For each tensor of rows (b,) in `plan`: (the rows, their raw examples, how many of these are stand-ins).

    A tensor is indexed where it lies. A stream is read by `workers` processes, at most `PREFETCH` batches each ahead of
    the caller, in the order of the plan; by this process where there are none. The plan may be endless. Closing the
    generator ends the processes, and so does the end of this one; SIGTERM and SIGINT do not, as they go to all processes
    of a terminal or a job, of which this one may want to finish a step. Random numbers outside are left as they were.

    pin: put what was read into page-locked memory, from which copies to a GPU are fast; starts CUDA.

    Raises what reading raises (DataError), as the batch it belongs to is due, and DataError where a process was killed
    while a batch was waited for; see `killed_readers_named` for the rest of the time.
    """
    if isinstance(examples, Tensor):
        for rows in plan:
            yield rows, examples[rows.to(examples.device)], 0
        return
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _Reader(examples),
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=_as_read,
        pin_memory=pin,
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),  # the loader draws a seed for its workers: not from the global state
    )
    with killed_readers_named():
        for batch in loader:
            if isinstance(batch, OrnsteinError):
                raise batch
            rows, x, bad = batch
            yield rows, x, bad


@contextmanager
def killed_readers_named() -> Iterator[None]:
    """Within it, torch's report that a reading process was killed becomes a DataError that says what to do.

    torch raises that report from a signal handler, so wherever the main thread happens to be: put the whole training
    loop inside.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise DataError(
            f"a process that reads the data is gone ({reason}); expected it to live as long as training: the machine "
            "may be short of memory or of shared memory (/dev/shm), so try --workers 0, or --workers 1 and a smaller "
            "batch"
        ) from error


class _Reader(torch.utils.data.Dataset[Any]):
    """A stream as DataLoader sees it: one item is one batch."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __getitem__(self, rows: Tensor) -> tuple[Tensor, Tensor, int] | OrnsteinError:
        # DataLoader would wrap an error in its own text of many lines, so errors travel as what was read.
        try:
            return rows, *self._stream.read(rows)
        except OrnsteinError as error:
            return error


def _outlive_signals(worker: int) -> None:
    """Leave it to the process that is read for what a signal to all of its processes means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _as_read(item: Any) -> Any:
    return item
