"""Samples of a table against real rows, column by column and pair by pair, by total variation.

    TV(p, q) = (1 / 2) sum_c |p(c) - q(c)|,   0 where the shares of all cells agree, 1 where no cell has rows of both

The cells of a column of categories are its categories. Those of a column of numbers lie between quantiles of the real rows,
which makes them about equally full; missing values are one more. The cells of a pair of columns are those of one times those of
the other: what one column tells of another is seen there, and nowhere else. Shares of n rows are never those of their law, so a
distance says little alone: it stands beside that of other real rows (`evaluate` says the same of its figures).
"""

from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from ornstein.data.columns import TableScaling
from ornstein.data.kinds import Category
from ornstein.errors import ConfigurationError, DataError
from ornstein.metrics.distances import total_variation


@dataclass(frozen=True)
class ColumnDistances:
    """Total variations in [0, 1]: of each column by its name, and of each pair of columns, in the order of the table."""

    columns: dict[str, float]
    pairs: dict[tuple[str, str], float]

    @property
    def column_mean(self) -> float:
        """The mean over the columns."""
        return fmean(self.columns.values())

    @property
    def pair_mean(self) -> float:
        """The mean over the pairs; NaN where there is one column."""
        return fmean(self.pairs.values()) if self.pairs else float("nan")


def column_distances(samples: Tensor, real: Tensor, scaling: TableScaling, bins: int = 8) -> ColumnDistances:
    """The total variations of samples (n, columns) from real rows (m, columns), raw rows of `scaling`; see the module.

    bins: cells of a column of numbers, fewer where many rows have one value. Columns that are constant in `scaling` are left out.
    Raises `DataError` where rows are none or of another table, `ConfigurationError` below 2 bins.
    """
    if bins < 2:
        raise ConfigurationError(f"got bins={bins}, expected at least 2")
    for name, rows in (("samples", samples), ("real rows", real)):
        if rows.ndim != 2 or rows.shape[1:] != scaling.raw_shape or not len(rows):
            raise DataError(
                f"got {name} of shape {tuple(rows.shape)}, expected (n, {len(scaling.columns)}), one for each column"
            )
    cells: dict[str, tuple[Tensor, Tensor]] = {}
    sizes: dict[str, int] = {}
    for i, column in enumerate(scaling.columns):
        if column.width:
            x, y = samples[:, i].cpu().double(), real[:, i].cpu().double()
            edges = torch.arange(0.5, len(column.values)).double() if isinstance(column, Category) else _edges(y, bins)
            cells[column.name] = _cell(x, edges), _cell(y, edges)
            sizes[column.name] = len(edges) + 2
    alone = {name: total_variation(*found) for name, found in cells.items()}
    pairs = {}
    for a, b in combinations(cells, 2):
        x, y = (first * sizes[b] + second for first, second in zip(cells[a], cells[b], strict=True))
        pairs[a, b] = total_variation(x, y)
    return ColumnDistances(alone, pairs)


def _edges(real: Tensor, bins: int) -> Tensor:
    """The lower ends of all cells but the first: quantiles of the real values, each once."""
    values = real[~real.isnan()].sort().values
    at = (torch.arange(1, bins) * len(values)) // bins
    return values[at].unique() if len(values) else values


def _cell(values: Tensor, edges: Tensor) -> Tensor:
    """The cell of each value, from its edge on; the last one is that of missing values."""
    return torch.where(values.isnan(), len(edges) + 1, torch.searchsorted(edges, values.contiguous(), right=True))
