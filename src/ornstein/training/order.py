"""The order in which examples are seen."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ornstein.noise import fold

ORDER = 1  # a stream of the seed


class Batches:
    """The order of n examples: one permutation per epoch, a function of (seed, epoch) alone, joined end to end."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def rows(self, seen: int, count: int) -> Tensor:
        """The rows of the `count` examples that follow after `seen` examples."""
        parts: list[Tensor] = []
        while count:
            epoch, place = divmod(seen, self.n)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(fold(self.seed, ORDER, epoch))
                self._epoch, self._order = epoch, torch.randperm(self.n, generator=generator)
            part = self._order[place : place + count]
            parts.append(part)
            seen, count = seen + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def plan(self, seen: int, size: int, share: range) -> Iterator[Tensor]:
        """Without end, from `seen` examples on: of each batch of `size` examples the rows of one `share` of it."""
        while True:
            yield self.rows(seen, size)[share.start : share.stop]
            seen += size
