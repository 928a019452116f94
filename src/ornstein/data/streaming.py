"""Examples that stay on disk: read when they are asked for, by the rows they are."""

from typing import Protocol

import torch
from torch import Tensor


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
