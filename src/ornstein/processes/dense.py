"""Transitions and rates that are matrices K x K, for small K; `rates.py` and `chains.py` make them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.processes.kernels import inverse

ROUNDING = 1e-6
"""How far rows may be from their sum."""


@dataclass(frozen=True, eq=False)
class Dense:
    """q(x_t | x_s) by a matrix (S, S), or one for each example, (b, S, S), float64."""

    matrix: Tensor

    def rows(self, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(x_t = . | x_s = x), (b, *d, S)."""
        return _rows(self.matrix.to(x.device, dtype), x)

    def likelihood(self, y: Tensor, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(x_t = y | x_s = .), (b, *d, n)."""
        return _rows(self.matrix[..., :n, :].mT.to(y.device, dtype), y)

    def mix(self, p: Tensor) -> Tensor:
        """p Q, (b, *d, S)."""
        matrix = self.matrix[..., : p.shape[-1], :].to(p)
        if matrix.ndim == 2:
            return p @ matrix
        return (p.flatten(1, -2) @ matrix).reshape(*p.shape[:-1], -1) if p.ndim > 2 else (p[:, None] @ matrix)[:, 0]

    def draw(self, x: Tensor, u: Tensor) -> Tensor:
        """By the cumulative sum of the rows."""
        return inverse(self.rows(x, u.dtype), u)

    def spread(self, categories: int) -> float:
        """The largest total variation of a category's row from the mean of their rows."""
        rows = self.matrix[..., :categories, :]
        return float((rows - rows.mean(-2, keepdim=True)).abs().sum(-1).max() / 2)


@dataclass(frozen=True, eq=False)
class DenseRate:
    """R(t) = beta(t) R, beta a float or (b,)."""

    matrix: Tensor
    beta: float | Tensor

    def rows(self, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """R(x, .), (b, *d, S)."""
        return _rows(self._scaled(x.device, dtype), x)

    def columns(self, y: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """R(., y), (b, *d, S)."""
        return _rows(self._scaled(y.device, dtype).mT, y)

    def _scaled(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        beta = self.beta.reshape(-1, 1, 1) if isinstance(self.beta, Tensor) else self.beta
        return (self.matrix * beta).to(device, dtype)


def check_square(what: str, matrix: Tensor) -> None:
    """Raise `ConfigurationError` unless matrices are square, of at least 2 states, and finite."""
    if (
        matrix.ndim < 2
        or matrix.shape[-1] != matrix.shape[-2]
        or matrix.shape[-1] < 2
        or not torch.isfinite(matrix).all()
    ):
        raise ConfigurationError(f"got {what} of shape {tuple(matrix.shape)}, expected finite numbers (K, K), K >= 2")


def _rows(matrix: Tensor, x: Tensor) -> Tensor:
    if matrix.ndim == 2:
        return matrix[x]
    return matrix[torch.arange(len(x), device=x.device).reshape(-1, *(1,) * (x.ndim - 1)), x]


def stochastic(matrix: Tensor) -> Tensor:
    """The matrix with what rounding did to its rows undone."""
    matrix = matrix.clamp(min=0)
    return matrix / matrix.sum(-1, keepdim=True)
