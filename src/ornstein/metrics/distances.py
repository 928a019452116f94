"""Distances between two sets of examples, each a pure function of two tensors.

Every function takes `x` of shape `(n, *d)` and `y` of shape `(m, *d)`, flattens the examples, computes on the CPU and
returns a float: the same numbers on every device. Sums are in float64; pairwise distances of vectors of more than 128
numbers are in float32 after centring, which is what keeps 2000 MNIST images to seconds. Memory stays bounded: pairs
come in blocks of four million.

Randomness (the projections of `sliced_wasserstein`) is a function of `seed`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.errors import DataError

BLOCK = 2**22  # pairs of examples held at once: 16 to 32 MB
EXACT_WIDTH = 128  # vectors up to this length have their pairwise distances in float64


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance of the two normal laws with the mean and covariance of `x` (n, k) and of `y` (m, k).

        |mu_x - mu_y|^2 + Tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2),   C with the divisor n - 1

    (Dowson & Landau 1982; with a classifier's features, Heusel et al. 2017). The trace of the root is the sum of the
    singular values of `C_x^1/2 C_y^1/2`, so singular covariances (n <= k) need no offset and lose no digits.

    Unit: that of the features, squared. At least 2 examples each; fewer, NaN or unequal widths raise `DataError`.
    """
    x, y = _pair(x, y, least=2)
    x, y = x.double(), y.double()
    cov_x, cov_y = torch.cov(x.T).reshape(x.shape[1], -1), torch.cov(y.T).reshape(y.shape[1], -1)
    cross = torch.linalg.svdvals(_root(cov_x) @ _root(cov_y)).sum()
    distance = (x.mean(0) - y.mean(0)).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross
    return max(float(distance), 0.0)  # equal sets: rounding may leave -1e-12


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@dataclass(frozen=True)
class PrecisionRecall:
    """The four figures of `precision_recall`: all at least 0, higher is better; only `density` may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(samples: Tensor, real: Tensor, k: int = 5) -> PrecisionRecall:
    """Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    B_k(a) is the closed ball about example a of a set that reaches to its k-th nearest neighbour in that set.

        precision = share of samples in some B_k(real)        density  = mean over samples of #{B_k(real) around it} / k
        recall    = share of real in some B_k(sample)         coverage = share of B_k(real) that hold a sample

    Shapes `samples` (n, *d), `real` (m, *d). `DataError` unless n > k and m > k.
    """
    samples, real = _pair(samples, real, least=k + 1)
    reach_samples, reach_real = _reach(samples, k), _reach(real, k)
    inside = torch.zeros(len(samples), dtype=torch.long)  # balls of real examples around each sample
    covered = torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    for rows, distance in _blocks(samples, real):
        within = distance <= reach_real
        inside[rows] = within.sum(1)
        covered |= within.any(0)
        recalled |= (distance <= reach_samples[rows, None]).any(0)
    return PrecisionRecall(
        precision=float((inside > 0).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(inside.double().mean()) / k,
        coverage=float(covered.double().mean()),
    )


def _reach(x: Tensor, k: int) -> Tensor:
    """The distance of each example to its k-th nearest other example of the same set: (n,)."""
    # The example itself, at distance 0, is the smallest of its row: hence k + 1.
    return torch.cat([distance.kthvalue(k + 1, dim=1).values for _, distance in _blocks(x, x)])


def sliced_wasserstein(x: Tensor, y: Tensor, *, order: int = 2, projections: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein distance of the given order p: the mean over directions of a distance that sorting solves.

        SW_p = (mean over unit vectors u of  int_0^1 |F_ux^-1(q) - F_uy^-1(q)|^p dq)^(1/p)

    (Bonneel et al. 2015). The quantile functions are those of the two empirical laws, integrated exactly, so n and m
    may differ. The `projections` directions are uniform on the sphere and a function of `seed` and the width alone.

    Unit: that of the data. `DataError` on empty, NaN or unequal shapes, or an order or count below 1.
    """
    x, y = _pair(x, y, least=1)
    if order < 1 or projections < 1:
        raise DataError(f"sliced Wasserstein got order {order} and {projections} projections; expected at least 1 each")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    x_u, y_u = (x.double() @ directions).sort(0).values, (y.double() @ directions).sort(0).values
    # Both quantile functions are constant between the cuts i / n and j / m; in units of 1 / (n m) these are integers.
    n, m = len(x), len(y)
    cuts = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    mass = torch.diff(cuts, prepend=torch.zeros(1, dtype=torch.long)).double() / (n * m)
    gap = (x_u[(cuts - 1) // m] - y_u[(cuts - 1) // n]).abs().pow(order)
    return float((mass @ gap).mean()) ** (1 / order)


def correlation_error(x: Tensor, y: Tensor) -> float:
    """Mean over pairs of columns of |r_x - r_y|, r the Pearson correlation of the two columns: 0 (best) to 2.

    For tables of numbers, `x` (n, d) and `y` (m, d) with d >= 2: whether columns go together in one set as they do in the
    other. A column that is constant in a set correlates with none there: r = 0. Two sets of n from one law differ by
    about 1.1 / sqrt(n), so compare figures of equal n only.

    `DataError` on fewer than 2 examples each or 2 columns, NaN or unequal shapes.
    """
    x, y = _pair(x, y, least=2)
    if x.shape[1] < 2:
        raise DataError("correlation error of examples of one number; expected at least 2 columns")
    i, j = torch.triu_indices(x.shape[1], x.shape[1], offset=1)
    return float((_correlations(x) - _correlations(y))[i, j].abs().mean())


def _correlations(x: Tensor) -> Tensor:
    """Pearson correlations (d, d) of the columns of x (n, d)."""
    # By comparison, because the rounding error of the mean leaves a constant column a tiny variance, and noise for r.
    centred = (x.double() - x.double().mean(0)) * (x != x[0]).any(0)
    unit = centred / centred.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return unit.T @ unit


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance (Szekely & Rizzo 2013), as V-statistic: all pairs, an example with itself included.

        2 E|X - Y| - E|X - X'| - E|Y - Y'|

    At least 0, and 0 only for equal sets. For two sets of n from one law it is 2 E|X - X'| / n in the mean, so compare
    figures of equal n only. Unit: that of the data. `DataError` on empty, NaN or unequal shapes.
    """
    x, y = _pair(x, y, least=1)
    return max(2 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y), 0.0)


def _mean_distance(x: Tensor, y: Tensor) -> float:
    total = sum(float(distance.sum(dtype=torch.float64)) for _, distance in _blocks(x, y))
    return total / (len(x) * len(y))


def nearest_distances(x: Tensor, reference: Tensor) -> Tensor:
    """For each example of `x` (n, *d) the distance to its nearest example of `reference` (m, *d): (n,) float64.

    The nearest is found with blocked matrix products; its distance is then computed from the difference, so that a
    copy of a reference example is at 0 and not at the rounding error of the products. Unit: that of the data.
    `DataError` on empty, NaN or unequal shapes.
    """
    x, reference = _pair(x, reference, least=1)
    nearest = torch.cat([distance.argmin(1) for _, distance in _blocks(x, reference)])
    rows = max(1, BLOCK // x.shape[1])
    pairs = zip(x.split(rows), nearest.split(rows), strict=True)
    return torch.cat([(a.double() - reference[i].double()).norm(dim=1) for a, i in pairs])


def _blocks(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The Euclidean distances of all pairs, some rows of `x` at a time: (rows, distances to every `y`)."""
    itself = x is y
    dtype = torch.float64 if x.shape[1] <= EXACT_WIDTH else torch.float32
    x, y = x.to(dtype), y.to(dtype)
    centre = y.mean(0)  # |x|^2 + |y|^2 - 2 x.y loses digits far from the origin
    x, y = x - centre, y - centre
    rows = max(1, BLOCK // len(y))
    for start in range(0, len(x), rows):
        part = slice(start, min(start + rows, len(x)))
        distance = torch.cdist(x[part], y, compute_mode="use_mm_for_euclid_dist")
        if itself:  # exactly 0, which the matrix product misses by the root of its rounding error
            distance.diagonal(start).zero_()
        yield part, distance


def _pair(x: Tensor, y: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Both sets as finite CPU matrices of equal width, float32 or float64."""
    if x.shape[1:] != y.shape[1:]:
        raise DataError(
            f"cannot compare examples of shape {tuple(x.shape[1:])} with examples of shape {tuple(y.shape[1:])}; "
            "expected one shape (samples and data in the same units and layout)"
        )
    return matrix(x, "the first set", least), matrix(y, "the second set", least)


def matrix(x: Tensor, name: str, least: int = 1) -> Tensor:
    """`x` (n, *d) as an (n, prod d) CPU matrix of floats. `DataError` where n < `least` or a value is not finite."""
    if x.ndim < 1 or len(x) < least:
        count = len(x) if x.ndim else 0
        raise DataError(f"{name} has {count} examples; expected at least {least}: sample or hold out more")
    x = x.detach().cpu()
    x = (x if x.dtype == torch.float64 else x.float()).reshape(len(x), -1)
    if x.shape[1] == 0:
        raise DataError(f"{name} has examples without numbers, shape {tuple(x.shape)}; expected at least one")
    finite = x.isfinite().all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise DataError(f"{name} has NaN or infinite values, first in row {row}; expected finite numbers only")
    return x


def total_variation(x: Tensor, y: Tensor) -> float:
    """(1 / 2) sum_c |p(c) - q(c)| of the shares of each integer in x and in y, of any shapes: 0 alike, 1 apart."""
    values, places = torch.cat([x.flatten(), y.flatten()]).unique(return_inverse=True)
    p, q = (
        torch.bincount(part, minlength=len(values)).double() / len(part)
        for part in places.split([x.numel(), y.numel()])
    )
    return float((p - q).abs().sum() / 2)
