"""Kernels of a table of matrices: the T-step chains of D3PM (Austin et al. 2021). For small K: T matrices K x K are kept.

    Q(i / T, j / T) = Q_{i+1} Q_{i+2} .. Q_j,        t = i / T alone

They need not commute, so the products from the data on are kept too, and others are made once where they are asked for.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.processes.dense import ROUNDING, Dense, check_square, stochastic
from ornstein.processes.kernels import Kernel, check_categories
from ornstein.schedules.base import Schedule, Time, as_time


class TableKernel(Kernel):
    """Base of the kernels of a table: a subclass gives `categories`, and `table`, Q_1 .. Q_T, (T, K, K) float64."""

    table: Tensor

    @cached_property
    def steps(self) -> int:  # type: ignore[override]
        """T."""
        return len(self.table)

    @cached_property
    def _products(self) -> Tensor:
        """Q_1 .. Q_i for i = 0 .. T, (T + 1, K, K)."""
        products = [torch.eye(self.table.shape[-1], dtype=torch.float64)]
        for matrix in self.table:
            products.append(stochastic(products[-1] @ matrix))
        return torch.stack(products)

    def between(self, schedule: Schedule | None, s: Time, t: Time) -> Dense:
        """Q_{i+1} .. Q_j for s = i / T, t = j / T. Raises `ConfigurationError` at other times."""
        i, j = self._index(s), self._index(t)
        if isinstance(i, int) and isinstance(j, int):
            return Dense(_product(self, i, j))
        i, j = torch.broadcast_tensors(torch.as_tensor(i), torch.as_tensor(j))
        if not i.any():
            return Dense(self._products[j])
        if (j == i + 1).all():
            return Dense(self.table[i])
        return Dense(torch.stack([_product(self, a, b) for a, b in zip(i.tolist(), j.tolist(), strict=True)]))

    def _index(self, t: Time) -> int | Tensor:
        place = as_time(t).cpu() * self.steps
        index = place.round().long()
        wrong = (place - index).abs() > ROUNDING * self.steps
        if wrong.any():
            raise ConfigurationError(
                f"got t = {float(as_time(t).cpu()[wrong].reshape(-1)[0]):g}, expected i / {self.steps}: a table "
                "of matrices is known at "
                f"the times of its steps alone; use a grid of them, and UniformSteps({self.steps}) in training"
            )
        return index if isinstance(t, Tensor) else int(index)


@lru_cache(maxsize=128)
def _product(kernel: TableKernel, i: int, j: int) -> Tensor:
    """Q_{i+1} .. Q_j."""
    if i == 0:
        return kernel._products[j]
    found = kernel.table[i]
    for k in range(i + 1, j):
        found = stochastic(found @ kernel.table[k])
    return found


@dataclass(frozen=True, eq=False)
class Matrices(TableKernel):
    """Any table of transition matrices, (T, K, K): rows of sum 1. Raises `ConfigurationError` where it is none."""

    table: Tensor

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.table, dtype=torch.float64)
        if table.ndim != 3:
            raise ConfigurationError(f"got matrices of shape {tuple(table.shape)}, expected (T, K, K)")
        check_square("transition probabilities", table)
        off = (table.sum(-1) - 1).abs()
        if table.min() < 0 or off.max() > ROUNDING:
            i, row = divmod(int(off.argmax()), table.shape[1])
            what = f"that sum to {table[i, row].sum():g} in row {row} of Q_{i + 1}" if table.min() >= 0 else "below 0"
            raise ConfigurationError(f"got transition probabilities {what}, expected rows of sum 1, from 0 to 1")
        object.__setattr__(self, "table", stochastic(table))

    @property
    def categories(self) -> int:  # type: ignore[override]
        """K."""
        return self.table.shape[-1]


@dataclass(frozen=True)
class DiscretisedGaussian(TableKernel):
    """Ordered categories that move as under a Gaussian (D3PM, appendix A.2.3):

        Q_i[x, y] = exp(-4 (x - y)^2 / ((K - 1)^2 beta_i)) / sum_n exp(-4 n^2 / ((K - 1)^2 beta_i)),  x != y,  n = -(K-1) .. K-1

    and the diagonal is what is left of 1, so that they are doubly stochastic. beta_i is linear from 1000 / T times
    `beta_start` to 1000 / T times `beta_end`: on categories that span [-1, 1] the noise of a step has a variance of half of
    it. They are DDPM's, 1e-4 and 0.02; where None, the last one is 4.5 / (K - 1)^2 for fewer than 16 categories, which 0.02
    would hardly move from where they are.
    """

    categories: int
    length: int = 1000
    beta_start: float = 1e-4
    beta_end: float | None = None

    def __post_init__(self) -> None:
        check_categories(self.categories)
        if self.beta_end is None:
            object.__setattr__(self, "beta_end", max(0.02, 4.5 / (self.categories - 1) ** 2))
        if self.length < 2 or not 0 < self.beta_start <= self._end:
            raise ConfigurationError(
                f"got length={self.length}, beta_start={self.beta_start}, beta_end={self.beta_end}, expected at "
                "least 2 steps and "
                "0 < beta_start <= beta_end"
            )

    @property
    def _end(self) -> float:
        assert self.beta_end is not None
        return self.beta_end

    @cached_property
    def table(self) -> Tensor:  # type: ignore[override]
        """Q_1 .. Q_T."""
        k = self.categories
        betas = torch.linspace(self.beta_start, self._end, self.length, dtype=torch.float64) * (1000 / self.length)
        n = torch.arange(-(k - 1), k, dtype=torch.float64)
        weights = torch.exp(-4 * n**2 / ((k - 1) ** 2 * betas[:, None]))
        weights = weights / weights.sum(1, keepdim=True)
        apart = torch.arange(k)[None, :] - torch.arange(k)[:, None] + k - 1
        moved = weights[:, apart] * (1 - torch.eye(k, dtype=torch.float64))
        return moved + torch.diag_embed(1 - moved.sum(-1))
