"""Distributions in the plane whose density is known, so that samples and likelihoods can be judged exactly.

Each toy has `sample(n, rng)` -> float32 (n, 2) and `log_density(x)` -> float64 (n,), the normalised log-density in nats
with respect to the raw coordinates. Mixtures and normals also say their parameters, for `ornstein.exact`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ornstein.data.dataset import Dataset, Part, assemble
from ornstein.noise import Noise

TRAIN, TEST = 20_000, 2_000


class Toy(Protocol):
    """A distribution in the plane with a known density."""

    def sample(self, n: int, rng: Noise) -> Tensor:
        """Draw n points, float32 (n, 2); `rng` holds n examples, and point i depends on (seed, i) alone."""

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats, float64 (n,), of points (n, 2)."""


@dataclass(frozen=True, eq=False)
class MixtureToy:
    """Mixture of round normals, p(x) = sum_k weights_k N(x; means_k, variances_k I): means (k, 2), the others (k,)."""

    means: Tensor
    variances: Tensor
    weights: Tensor

    @classmethod
    def of(cls, means: Sequence[tuple[float, float]], std: float) -> "MixtureToy":
        """Equal weights and one standard deviation."""
        k = len(means)
        variances = torch.full((k,), std**2, dtype=torch.float64)
        return cls(torch.tensor(means, dtype=torch.float64), variances, torch.full((k,), 1 / k, dtype=torch.float64))

    def sample(self, n: int, rng: Noise) -> Tensor:
        """Draw n points, (n, 2)."""
        k = _inverse(self.weights, rng.uniform((n,)))
        return (self.means[k] + self.variances[k, None].sqrt() * rng.normal((n, 2), dtype=torch.float64)).float()

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (n,)."""
        squared = ((x.double()[:, None] - self.means) ** 2).sum(2)
        logs = self.weights.log() - squared / (2 * self.variances) - (2 * math.pi * self.variances).log()
        return logs.logsumexp(1)


@dataclass(frozen=True, eq=False)
class NormalToy:
    """A correlated normal N(mean, covariance): shapes (2,), (2, 2), float64."""

    mean: Tensor
    covariance: Tensor

    def sample(self, n: int, rng: Noise) -> Tensor:
        """Draw n points, (n, 2)."""
        root = torch.linalg.cholesky(self.covariance)
        return (self.mean + rng.normal((n, 2), dtype=torch.float64) @ root.T).float()

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (n,)."""
        offset = x.double() - self.mean
        squared = (offset @ torch.linalg.inv(self.covariance) * offset).sum(1)
        return -squared / 2 - math.log(2 * math.pi) - torch.logdet(self.covariance) / 2


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on the 8 dark squares of a board of 4 x 4 unit squares on [-2, 2]^2: density 1/8 there, 0 elsewhere."""

    def sample(self, n: int, rng: Noise) -> Tensor:
        """Draw n points, (n, 2)."""
        u = rng.uniform((n, 3))
        row = (u[:, 0] * 4).floor()
        # The dark squares of row r are the columns of r's parity.
        column = 2 * (u[:, 1] * 2).floor() + row % 2
        # Places within a square are multiples of 2^-20, which float32 holds: so no point is rounded off its square.
        within = (torch.stack([u[:, 2], u[:, 0] * 4 - row], 1) * 2**20).floor() / 2**20
        return (torch.stack([column, row], 1) + within - 2).float()

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (n,): -log 8 on dark squares, else -inf."""
        square = (x.double() + 2).floor()
        dark = ((square >= 0) & (square < 4)).all(1) & (square.sum(1) % 2 == 0)
        return torch.where(dark, -math.log(8), -math.inf).double()


@dataclass(frozen=True)
class Rings:
    """Blurred circles, p(x) = p(r) / (2 pi r): r = radius_k + std * normal, weights ~ radius_k, angle uniform.

    `std` is at most 1/8 of the smallest radius, so that r < 0 has probability below 1e-15.
    """

    radii: tuple[float, ...] = (1.0, 2.0, 3.0)
    std: float = 0.08

    def sample(self, n: int, rng: Noise) -> Tensor:
        """Draw n points, (n, 2)."""
        u, radii = rng.uniform((n, 2)), torch.tensor(self.radii, dtype=torch.float64)
        k, angle = _inverse(radii / radii.sum(), u[:, 0]), 2 * math.pi * u[:, 1]
        r = radii[k] + self.std * rng.normal((n,), dtype=torch.float64)
        return torch.stack([r * angle.cos(), r * angle.sin()], 1).float()

    def log_density(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (n,)."""
        radii = torch.tensor(self.radii, dtype=torch.float64)
        r = torch.linalg.vector_norm(x.double(), dim=1).clamp_min(1e-12)
        logs = (radii / radii.sum()).log() - ((r[:, None] - radii) / self.std) ** 2 / 2
        return logs.logsumexp(1) - math.log(self.std * math.sqrt(2 * math.pi)) - (2 * math.pi * r).log()


def _inverse(weights: Tensor, u: Tensor) -> Tensor:
    """Indices with probabilities `weights`, by inversion of the uniform `u`."""
    return torch.searchsorted(weights.cumsum(0), u.contiguous(), right=True).clamp_max(len(weights) - 1)


def _ring(count: int, radius: float) -> list[tuple[float, float]]:
    angles = [2 * math.pi * k / count for k in range(count)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


TOYS: dict[str, MixtureToy | NormalToy | Checkerboard | Rings] = {
    "gaussians": MixtureToy.of(_ring(8, 2.0), std=0.2),
    "grid": MixtureToy.of([(i, j) for i in range(-2, 3) for j in range(-2, 3)], std=0.1),
    "anisotropic": NormalToy(
        torch.tensor([1.0, -0.5], dtype=torch.float64), torch.tensor([[2.0, 0.9], [0.9, 0.5]], dtype=torch.float64)
    ),
    "checkerboard": Checkerboard(),
    "rings": Rings(),
}


def toy(name: str, seed: int = 0, holdout: float | None = None) -> Dataset:
    """The toy of that name as a data set: 22,000 points, of which 2,000 are held out unless told.

    Both coordinates share one shift and scale, so that a mixture of round normals is one in model units as well.
    """
    n = TRAIN + TEST
    part = Part(TOYS[name].sample(n, Noise(seed, n)), None, name)
    return assemble(name, part, seed=seed, holdout=holdout, default_holdout=TEST / n, per_feature=False)
