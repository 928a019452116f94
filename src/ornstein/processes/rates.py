"""Kernels of a rate matrix: categories in continuous time (Campbell et al. 2022, tauLDR). For small K: Q is K x K for each time.

    Q(s, t) = exp(R log(alpha_s / alpha_t)),        R(t) = beta(t) R,   beta = -d log alpha / dt

The clock is -log alpha. The rates of a named kernel are scaled so that its slowest mode decays as alpha(t), which then means the
same as for `Uniform`: what is left of the data.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.processes.dense import ROUNDING, Dense, DenseRate, check_square, stochastic
from ornstein.processes.kernels import Kernel, check_categories, elapsed, slope
from ornstein.schedules.base import Schedule, Time, as_time

FAR = 1e6
"""-log alpha that stands for infinity: all modes but the stationary law have died."""


class RateKernel(Kernel):
    """Base of the kernels of a rate matrix: a subclass gives `categories` and `matrix`, R at beta = 1, (K, K) float64."""

    matrix: Tensor

    @cached_property
    def _modes(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(left, values, right) with R = left diag(values) right, where R is reversible: pi_x R(x, y) = pi_y R(y, x)."""
        law = stationary(self.matrix)
        flow = law[:, None] * self.matrix
        if law.min() <= 0 or not torch.allclose(flow, flow.T, rtol=1e-9, atol=1e-12):
            return None
        root = law.sqrt()
        values, vectors = torch.linalg.eigh(root[:, None] * self.matrix / root)
        return vectors / root[:, None], values.clamp(max=0), vectors.T * root

    def between(self, schedule: Schedule | None, s: Time, t: Time) -> Dense:
        """exp(R log(alpha_s / alpha_t)), once for each pair of float times."""
        if isinstance(s, Tensor) or isinstance(t, Tensor):
            return Dense(self.after(-as_time(elapsed(schedule, s, t))))
        return _between(self, schedule, s, t)

    def rate(self, schedule: Schedule | None, t: Time) -> DenseRate:
        """beta(t) R."""
        return DenseRate(self.matrix, slope(schedule, t))

    def after(self, length: Tensor) -> Tensor:
        """exp(R length), (*length.shape, K, K); at infinity the stationary law in every row."""
        length = length.clamp(max=FAR)[..., None, None]
        if self._modes is not None:
            left, values, right = self._modes
            found = left * torch.exp(values * length) @ right
        else:
            # By squaring, since exp of a large matrix loses digits that a product of stochastic ones keeps.
            halvings = max(0, math.ceil(math.log2(max(1.0, float(length.max() * self.matrix.diagonal().abs().max())))))
            found = torch.linalg.matrix_exp(self.matrix * (length / 2**halvings))
            for _ in range(halvings):
                found = stochastic(found @ found)
        return stochastic(found)


@lru_cache(maxsize=128)
def _between(kernel: RateKernel, schedule: Schedule | None, s: float, t: float) -> Dense:
    return Dense(kernel.after(-as_time(elapsed(schedule, s, t))))


@dataclass(frozen=True, eq=False)
class Rates(RateKernel):
    """Any rate matrix: R(x, y) >= 0 off the diagonal, rows of sum 0; alpha(t) is the clock, -log alpha its time.

    matrix: (K, K). Raises `ConfigurationError` where it is none.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        matrix = torch.as_tensor(self.matrix, dtype=torch.float64)
        check_square("rates", matrix)
        off = matrix - torch.diag(matrix.diagonal())
        if off.min() < 0:
            x, y = divmod(int(off.argmin()), len(matrix))
            raise ConfigurationError(
                f"got the rate {off[x, y]:g} from state {x} to {y}, expected 0 or more off the diagonal"
            )
        sums = matrix.sum(1)
        worst = int(sums.abs().argmax())
        if sums[worst].abs() > ROUNDING * max(1.0, float(matrix.abs().max())):
            raise ConfigurationError(
                f"got rates that sum to {sums[worst]:g} in row {worst}, expected rows of sum 0: the diagonal is minus the sum of "
                "the others"
            )
        object.__setattr__(self, "matrix", off - torch.diag(off.sum(1)))

    @property
    def categories(self) -> int:  # type: ignore[override]
        """K."""
        return len(self.matrix)


@dataclass(frozen=True)
class BirthDeath(RateKernel):
    """Ordered categories that move to a neighbour, up or down at one rate: a random walk with reflecting ends."""

    categories: int

    def __post_init__(self) -> None:
        check_categories(self.categories)

    @cached_property
    def matrix(self) -> Tensor:  # type: ignore[override]
        """Tridiagonal, scaled."""
        steps = torch.ones(self.categories - 1, dtype=torch.float64)
        return scaled(torch.diag(steps, 1) + torch.diag(steps, -1))


@dataclass(frozen=True, eq=False)
class Neighbours(RateKernel):
    """Categories that move to those near them in an embedding (D3PM, appendix A.2.4): R = G + G^T off its diagonal.

    embedding: (K, m), a vector of each category. neighbours: G(x, y) = 1 for the so many y nearest to x, in Euclid's distance.
    Raises `ConfigurationError` where they leave categories apart.
    """

    embedding: Tensor
    neighbours: int = 4

    def __post_init__(self) -> None:
        k = len(self.embedding)
        if self.embedding.ndim != 2 or not 1 <= self.neighbours < k or not torch.isfinite(self.embedding).all():
            raise ConfigurationError(
                f"got an embedding of shape {tuple(self.embedding.shape)} and neighbours={self.neighbours}, "
                "expected finite (K, m) "
                "and from 1 to K - 1 neighbours"
            )
        if self._gap < 1e-9:
            raise ConfigurationError(
                f"got neighbours={self.neighbours}, which leave categories that no path joins; expected more neighbours"
            )

    @property
    def categories(self) -> int:  # type: ignore[override]
        """K."""
        return len(self.embedding)

    @cached_property
    def _graph(self) -> Tensor:
        x = self.embedding.double()
        apart = torch.cdist(x, x).fill_diagonal_(math.inf)
        near = torch.zeros_like(apart).scatter_(1, apart.topk(self.neighbours, 1, largest=False).indices, 1.0)
        return near + near.T

    @property
    def _gap(self) -> float:
        return gap(self._graph - torch.diag(self._graph.sum(1)))

    @cached_property
    def matrix(self) -> Tensor:  # type: ignore[override]
        """Symmetric, scaled."""
        return scaled(self._graph)


def stationary(matrix: Tensor) -> Tensor:
    """The law pi (K,) with pi R = 0, where there is one alone."""
    k = len(matrix)
    rows = torch.cat([matrix.T, torch.ones(1, k, dtype=matrix.dtype)])
    target = torch.zeros(k + 1, 1, dtype=matrix.dtype)
    target[-1] = 1
    return torch.linalg.lstsq(rows, target, driver="gelsd").solution[:, 0]


def gap(rates: Tensor) -> float:
    """The smallest rate of decay but 0 of symmetric rates; 0 where states are apart."""
    return float(-torch.linalg.eigvalsh(rates)[-2])


def scaled(graph: Tensor) -> Tensor:
    """Rates of a symmetric graph whose slowest mode decays at rate 1."""
    rates = graph - torch.diag(graph.sum(1))
    return rates / gap(rates)
