"""Every random draw of the library.

A `Noise` belongs to a list of examples. Example i receives numbers that are a function of (seed, i) and of the count of
draws made so far, and of nothing else: not of the batch it sits in, nor of the number of processes, nor of the order.
Rows are drawn in blocks of 64 (example i is row i % 64 of block i // 64, one generator a block), which makes that cheap;
every draw consumes a fixed count, whatever the values.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError

BLOCK = 64
BROWNIAN_DEPTH = 24


def fold(seed: int, *numbers: int) -> int:
    """Derive a seed in [0, 2^63) from a seed and integers, by hashing: unequal inputs give unrelated streams."""
    text = ",".join(str(int(number)) for number in (seed, *numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Noise:
    """The random numbers of the examples `indices` under `seed`.

    Args:
        seed: any integer.
        indices: the examples' numbers, or an integer n for examples 0 .. n - 1.
        device: where the numbers are drawn. CPU and CUDA generators differ, so a seed means one thing per kind of device.
        total: how many examples there are in all, where `indices` are some of them; by default one more than the last.

    `rows`, the indices as a slice or a list, picks this part's rows out of anything that is (total, ...); `indices` are the
    examples' numbers as they were given.
    """

    def __init__(
        self, seed: int, indices: int | Sequence[int], device: torch.device | str = "cpu", total: int | None = None
    ) -> None:
        indices = range(indices) if isinstance(indices, int) else indices
        self.seed, self.device, self.count = int(seed), torch.device(device), len(indices)
        self.total = max(indices, default=-1) + 1 if total is None else total
        self.indices = indices
        self.rows = slice(indices.start, indices.stop, indices.step) if isinstance(indices, range) else list(indices)
        self._blocks = sorted({i // BLOCK for i in indices})
        place = {block: BLOCK * k for k, block in enumerate(self._blocks)}
        rows = [place[i // BLOCK] + i % BLOCK for i in indices]
        self._rows = (
            None if rows == list(range(BLOCK * len(place))) else torch.tensor(rows, dtype=torch.long).to(device)
        )
        self._generators = [torch.Generator(self.device).manual_seed(fold(seed, block)) for block in self._blocks]
        self._shared = torch.Generator().manual_seed(fold(seed, -1))
        self._branches = 0

    def branch(self) -> "Noise":
        """Numbers of the same examples apart from these, others at each call: for what draws more for some examples than for
        others."""
        self._branches += 1
        return Noise(fold(self.seed, -2, self._branches), self.indices, self.device, self.total)

    def shared(self) -> Tensor:
        """Independent numbers, uniform on [0, 1), one for each of all the examples: (total,), float64, on the CPU.

        Every part of a batch draws the same, so that a law of the whole batch (stratified times) needs no communication.
        """
        return torch.rand(self.total, generator=self._shared, dtype=torch.float64)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Independent N(0, 1) numbers of `shape`, whose first axis runs over the examples."""
        blocks = [
            torch.randn(BLOCK, *shape[1:], generator=g, dtype=dtype, device=self.device) for g in self._generators
        ]
        drawn = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
        return drawn if self._rows is None else drawn[self._rows]

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """Independent numbers, uniform on [0, 1), of `shape`, whose first axis runs over the examples."""
        blocks = [torch.rand(BLOCK, *shape[1:], generator=g, dtype=dtype, device=self.device) for g in self._generators]
        drawn = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
        return drawn if self._rows is None else drawn[self._rows]

    def brownian(self, t: float, s: float, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """The increment W(s) - W(t) of one Brownian path on [0, 1] per example: N(0, |s - t|), consistent over grids.

        The path is a function of (seed, example) alone, found by Levy's bisection to a resolution of 2^-24 and
        linear below that, so a refined grid sees the same path. It leaves `normal` and `uniform` where they were.
        """
        if not (0 <= t <= 1 and 0 <= s <= 1):
            raise ConfigurationError(f"got times {t} and {s}, expected both in [0, 1]")
        return self._path(s, shape, dtype) - self._path(t, shape, dtype)

    def _path(self, t: float, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        left, right, node = 0.0, 1.0, 1
        w_left, w_right = torch.zeros(shape, dtype=dtype, device=self.device), self._node(0, shape, dtype)
        for _ in range(BROWNIAN_DEPTH):
            if t in (left, right):
                break
            middle = (left + right) / 2
            w_middle = (w_left + w_right) / 2 + (right - left) ** 0.5 / 2 * self._node(node, shape, dtype)
            if t < middle:
                right, w_right, node = middle, w_middle, 2 * node
            else:
                left, w_left, node = middle, w_middle, 2 * node + 1
        return w_left + (t - left) / (right - left) * (w_right - w_left)

    def _node(self, node: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """N(0, 1) numbers that belong to one node of the bisection tree."""
        twin = object.__new__(Noise)
        twin.device, twin._rows = self.device, self._rows
        twin._generators = [
            torch.Generator(self.device).manual_seed(fold(self.seed, block, 1, node)) for block in self._blocks
        ]
        return twin.normal(shape, dtype)
