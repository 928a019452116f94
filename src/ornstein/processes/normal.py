"""Normal laws: the base N(mean, Sigma) that a process draws its noise from (PriorGrad, paper 001 eq. 49), and the laws of
its steps, N(m, std^2 Sigma)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.noise import Noise

Number = float | Tensor


class Normal:
    """N(mean, Sigma) over states of shape d.

    Args:
        mean: of shape d.
        covariance: variances of shape d (diagonal Sigma), or the full matrix of shape (D, D) with D the size of d.

    Raises `ConfigurationError` where Sigma is not positive definite or its shape does not fit.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean, self.shape = mean, tuple(mean.shape)
        self.diagonal = tuple(covariance.shape) == self.shape
        if self.diagonal:
            least, self._factor = covariance.min(), covariance.sqrt()
        elif covariance.shape == (mean.numel(), mean.numel()):
            least = torch.linalg.eigvalsh(covariance.double()).min()
            self._factor = torch.linalg.cholesky_ex(covariance)[0]
        else:
            raise ConfigurationError(
                f"got a covariance of shape {tuple(covariance.shape)} for a mean of shape {self.shape}, "
                f"expected {self.shape} (variances) or {(mean.numel(), mean.numel())} (full)"
            )
        if not least > 0:
            raise ConfigurationError(f"got a covariance with smallest eigenvalue {least:g}, expected positive definite")
        diagonal = self._factor if self.diagonal else self._factor.diagonal()
        self.log_det = 2 * diagonal.double().log().sum().item()

    def colour(self, z: Tensor) -> Tensor:
        """L z with L L^T = Sigma: white noise (b, *d) becomes noise of covariance Sigma."""
        factor = self._factor.to(z)
        return factor * z if self.diagonal else (z.flatten(1) @ factor.T).view_as(z)

    def whiten(self, x: Tensor) -> Tensor:
        """L^-1 x, the inverse of `colour`."""
        factor = self._factor.to(x)
        if self.diagonal:
            return x / factor
        return torch.linalg.solve_triangular(factor, x.flatten(1).T, upper=False).T.view_as(x)

    def precision(self, x: Tensor) -> Tensor:
        """Sigma^-1 x."""
        factor = self._factor.to(x)
        return x / factor**2 if self.diagonal else torch.cholesky_solve(x.flatten(1).T, factor).T.view_as(x)

    def covary(self, x: Tensor) -> Tensor:
        """Sigma x."""
        factor = self._factor.to(x)
        return factor**2 * x if self.diagonal else (x.flatten(1) @ factor @ factor.T).view_as(x)

    def trace(self, scale: Tensor) -> Tensor:
        """tr(Sigma^-1 R Sigma R) for R = diag(scale), scale (b, D): (b,); of a full Sigma."""
        factor = self._factor.to(scale)
        return (torch.linalg.solve_triangular(factor, scale[:, :, None] * factor, upper=False) ** 2).sum((1, 2))

    def matrix(self) -> Tensor:
        """Sigma as a float64 matrix (D, D)."""
        factor = self._factor.double()
        return torch.diag(factor.flatten() ** 2) if self.diagonal else factor @ factor.T

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, Sigma) in nats, (b,)."""
        z = self.whiten(x - self.mean.to(x)).flatten(1)
        return -0.5 * (z**2).sum(1) - 0.5 * self.log_det - 0.5 * z.shape[1] * math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianLaw:
    """N(mean, std^2 Sigma), with Sigma the covariance of the base (I where it is None); mean (b, *d).

    `std` is a number, one per example (b, 1, ..., 1), or one per component (b, *d).
    """

    mean: Tensor
    std: Number
    base: Normal | None = None

    def sample(self, rng: Noise) -> Tensor:
        """mean + std L z, z ~ N(0, I)."""
        if isinstance(self.std, float) and self.std == 0:
            return self.mean
        z = rng.normal(self.mean.shape, self.mean.dtype)
        return self.mean + self.std * (z if self.base is None else self.base.colour(z))

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std^2 Sigma) in nats, (b,)."""
        z = ((x - self.mean) / self.std) if self.base is None else self.base.whiten((x - self.mean) / self.std)
        size, log_det = z[0].numel(), 0.0 if self.base is None else self.base.log_det
        log_std = torch.as_tensor(self.std, dtype=x.dtype).log().expand_as(x).flatten(1).sum(1)
        return -0.5 * (z**2).flatten(1).sum(1) - log_std - 0.5 * log_det - 0.5 * size * math.log(2 * math.pi)

    def kl(self, other: "GaussianLaw") -> Tensor:
        """KL(self || other) in nats, (b,), for laws on one base: 1/2 sum(r - 1 - log r) + 1/2 ||(m - m') / std'||^2.

        r = std^2 / std'^2, the norm is that of Sigma^-1 (paper 000 eq. 2). With a full Sigma and a std per component, sum r
        becomes tr(Sigma^-1 R Sigma R), R = diag(std / std').
        """
        z = (self.mean - other.mean) / other.std
        z = z if self.base is None else self.base.whiten(z)
        ratio = 2 * (torch.as_tensor(self.std, dtype=z.dtype).log() - torch.as_tensor(other.std, dtype=z.dtype).log())
        value = 0.5 * (z**2 + torch.expm1(ratio) - ratio).flatten(1).sum(1)
        if self.base is None or self.base.diagonal or ratio.ndim < 2 or ratio[0].numel() == 1:
            return value
        scale = torch.exp(ratio / 2).flatten(1)
        return value + 0.5 * (self.base.trace(scale) - (scale**2).sum(1))
