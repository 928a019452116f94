"""Averages of the weights, of several lengths in one run."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Averages:
    """The power-function averages of Karras et al. 2024 (arXiv:2312.02696), one for each length in `lengths`.

    At step k:  average += (1 - beta) (weights - average),  beta = (1 - 1/k)^(1/length).

    The window is the share `length` of the steps so far, so it starts from nothing and needs no other warm-up; length 0
    is no average, the weights themselves. Which one is used is chosen later, by validation loss: `chosen`.
    """

    def __init__(self, lengths: Sequence[float], weights: Sequence[Tensor]) -> None:
        self.lengths, self.weights = tuple(lengths), list(weights)
        self.of = {length: [w.detach().clone() for w in self.weights] for length in self.lengths}
        self.chosen = self.lengths[0]

    @torch.no_grad()
    def update(self, count: int) -> None:
        """Take in the weights of step `count`, 1 or more."""
        for length, average in self.of.items():
            beta = (1 - 1 / count) ** (1 / length) if length > 0 else 0.0
            torch._foreach_lerp_(average, self.weights, 1 - beta)
