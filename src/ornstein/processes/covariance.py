"""Covariances Sigma = L L^T over states of shape d (D numbers), of three kinds with one interface:

    Diagonal   Sigma = diag(v)            L = diag(sqrt(v))
    Full       Sigma any (D, D)           L = Sigma^(1/2), the symmetric root, so that white pixels keep their places (ZCA)
    LowRank    Sigma = diag(v) + U U^T    L = V^(1/2) M, M = I + Q (sqrt(1 + S^2) - 1) Q^T, where V^(-1/2) U = Q S R^T is the thin
                                          SVD, V = diag(v): M^2 = I + Q S^2 Q^T, and all costs O(D r)

A white state is z = L^-1 (x - mu). A score, being a gradient, goes the other way: white, it is L^T score. With `each` there is
one law a row: a leading axis b on all tensors.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError

SINGULAR = 1e-14  # of the largest eigenvalue: what float64 cannot tell from 0


class Held:
    """Tensors in float64, and copies of them in other types and on other devices, each made once; or some rows of another's."""

    def __init__(self, *tensors: Tensor, of: "Held | None" = None, index: Any = None) -> None:
        self._tensors, self._of, self._index = tensors, of, index
        self._copies: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

    def like(self, x: Tensor) -> tuple[Tensor, ...]:
        """The tensors in the type and on the device of x."""
        key = (x.dtype, x.device)
        if key not in self._copies:
            if self._of is None:
                self._copies[key] = tuple(tensor.to(x) for tensor in self._tensors)
            else:
                index = self._index.to(x.device) if isinstance(self._index, Tensor) else self._index
                self._copies[key] = tuple(tensor[index] for tensor in self._of.like(x))
        return self._copies[key]

    def precise(self) -> tuple[Tensor, ...]:
        """The tensors in float64, where they were given."""
        if self._of is None:
            return self._tensors
        found = self._of.precise()
        index = self._index.to(found[0].device) if isinstance(self._index, Tensor) else self._index
        return tuple(tensor[index] for tensor in found)

    def rows(self, index: Any) -> "Held":
        """Some rows of the tensors, taken when they are asked for."""
        return Held(of=self, index=index)


class Covariance:
    """Base of the three kinds: what all share. `each`: one law a row."""

    diagonal = False

    def __init__(self, held: Held, log_det: Tensor, each: bool) -> None:
        self._held, self.each, self._log_det = held, each, Held(log_det)

    @property
    def log_det(self) -> float | Tensor:
        """log |Sigma|: a number, or (b,) in float64."""
        found = self._log_det.precise()[0]
        return found if self.each else float(found)

    def log_det_beside(self, x: Tensor) -> Tensor:
        """log |Sigma| in the type and on the device of x: one number, or (b,)."""
        return self._log_det.like(x)[0]

    def rows(self, index: Any) -> "Covariance":
        """The covariances of some rows (a slice, numbers or a mask); itself where all rows have one."""
        if not self.each:
            return self
        twin = copy.copy(self)
        twin._held, twin._log_det = self._held.rows(index), self._log_det.rows(index)
        return twin

    def whiten(self, x: Tensor) -> Tensor:
        """L^-1 x."""
        raise NotImplementedError

    def colour(self, z: Tensor) -> Tensor:
        """L z."""
        raise NotImplementedError

    def whiten_score(self, score: Tensor) -> Tensor:
        """L^T score; L is symmetric unless a kind says otherwise."""
        return self.colour(score)

    def colour_score(self, z: Tensor) -> Tensor:
        """L^-T z."""
        return self.whiten(z)

    def covary(self, x: Tensor) -> Tensor:
        """Sigma x."""
        return self.colour(self.whiten_score(x))

    def precision(self, x: Tensor) -> Tensor:
        """Sigma^-1 x."""
        return self.colour_score(self.whiten(x))

    def trace(self, scale: Tensor) -> Tensor:
        """tr(Sigma^-1 R Sigma R) for R = diag(scale), scale (b, D): (b,)."""
        raise NotImplementedError

    def variances(self, x: Tensor) -> Tensor:
        """The diagonal of Sigma beside x: of shape d, or (b, *d)."""
        raise NotImplementedError

    def matrix(self) -> Tensor:
        """Sigma in float64, (D, D) or (b, D, D)."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What it was made from, by name, in float64."""
        raise NotImplementedError


class Diagonal(Covariance):
    """diag(variances), variances of shape d, or (b, *d) with `each`."""

    diagonal = True

    def __init__(self, variances: Tensor, each: bool = False) -> None:
        variances = precise(variances)
        flat = variances.reshape(len(variances) if each else 1, -1)
        _require_positive(flat.amin(1), each)
        super().__init__(Held(variances, variances.sqrt()), flat.log().sum(1), each)

    def whiten(self, x: Tensor) -> Tensor:
        """x / sqrt(v)."""
        return x / self._held.like(x)[1]

    def colour(self, z: Tensor) -> Tensor:
        """sqrt(v) z."""
        return z * self._held.like(z)[1]

    def trace(self, scale: Tensor) -> Tensor:
        """sum of scale^2."""
        return scale.square().sum(1)

    def variances(self, x: Tensor) -> Tensor:
        """v."""
        return self._held.like(x)[0]

    def matrix(self) -> Tensor:
        """diag(v)."""
        return torch.diag_embed(self._held.precise()[0].flatten(int(self.each)))

    def tensors(self) -> dict[str, Tensor]:
        """variances."""
        return {"variances": self._held.precise()[0]}


class Full(Covariance):
    """A matrix (D, D), or (b, D, D) with `each`, over states of `shape` d."""

    def __init__(self, covariance: Tensor, shape: tuple[int, ...], each: bool = False) -> None:
        covariance = precise(covariance)
        if not torch.isfinite(covariance).all():
            raise ConfigurationError("got a covariance with NaN or infinity, expected finite numbers")
        if (covariance - covariance.mT).abs().max() > 1e-5 * covariance.abs().max():
            raise ConfigurationError("got a covariance that is not symmetric, expected Sigma = Sigma^T")
        covariance = (covariance + covariance.mT) / 2
        values, vectors = torch.linalg.eigh(covariance)
        lowest, highest = values[..., 0].reshape(-1), values[..., -1].reshape(-1)
        _require_positive(lowest, each, SINGULAR * highest.clamp(min=0))
        root, inverse = ((vectors * values[..., None, :] ** power) @ vectors.mT for power in (0.5, -0.5))
        super().__init__(Held(covariance, root, inverse), values.log().sum(-1), each)
        self.shape = shape

    def whiten(self, x: Tensor) -> Tensor:
        """Sigma^(-1/2) x."""
        return _times(self._held.like(x)[2], x)

    def colour(self, z: Tensor) -> Tensor:
        """Sigma^(1/2) z."""
        return _times(self._held.like(z)[1], z)

    def covary(self, x: Tensor) -> Tensor:
        """Sigma x."""
        return _times(self._held.like(x)[0], x)

    def trace(self, scale: Tensor) -> Tensor:
        """The squared norm of L^-1 R L."""
        _, root, inverse = self._held.like(scale)
        return (inverse @ (scale[:, :, None] * root)).square().sum((1, 2))

    def variances(self, x: Tensor) -> Tensor:
        """The diagonal."""
        return self._held.like(x)[0].diagonal(dim1=-2, dim2=-1).reshape(*((-1,) if self.each else ()), *self.shape)

    def matrix(self) -> Tensor:
        """Sigma."""
        return self._held.precise()[0]

    def tensors(self) -> dict[str, Tensor]:
        """covariance."""
        return {"covariance": self._held.precise()[0]}


class LowRank(Covariance):
    """diag(variances) + U U^T, with variances v of shape d and factors U (*d, r); (b, *d) and (b, *d, r) with `each`.

    Raises `ConfigurationError` where shapes do not fit or a variance is not above 0: it is the least that an eigenvalue can be.
    """

    def __init__(self, variances: Tensor, factors: Tensor, each: bool = False) -> None:
        if factors.ndim != variances.ndim + 1 or factors.shape[:-1] != variances.shape:
            raise ConfigurationError(
                f"got factors of shape {tuple(factors.shape)} for variances of shape {tuple(variances.shape)}, expected "
                f"({', '.join(map(str, variances.shape))}, r)"
            )
        variances, factors = precise(variances), precise(factors)
        if not torch.isfinite(factors).all():
            raise ConfigurationError("got factors with NaN or infinity, expected finite numbers")
        flat = variances.reshape(len(variances) if each else 1, -1)
        _require_positive(flat.amin(1), each)
        std = variances.sqrt()
        lead = variances.shape[:1] if each else ()
        whitened = (factors / std[..., None]).reshape(*lead, -1, factors.shape[-1])
        q, s, _ = torch.linalg.svd(whitened, full_matrices=False)
        log_det = flat.log().sum(1) + torch.log1p(s**2).reshape(len(flat), -1).sum(1)
        super().__init__(Held(variances, factors, std, q, s), log_det, each)

    def whiten(self, x: Tensor) -> Tensor:
        """M^-1 V^(-1/2) x."""
        return self._stretched(x / self._held.like(x)[2], -0.5)

    def colour(self, z: Tensor) -> Tensor:
        """V^(1/2) M z."""
        return self._held.like(z)[2] * self._stretched(z, 0.5)

    def whiten_score(self, score: Tensor) -> Tensor:
        """M V^(1/2) score."""
        return self._stretched(self._held.like(score)[2] * score, 0.5)

    def colour_score(self, z: Tensor) -> Tensor:
        """V^(-1/2) M^-1 z."""
        return self._stretched(z, -0.5) / self._held.like(z)[2]

    def _stretched(self, x: Tensor, power: float) -> Tensor:
        """(M^2)^power x = x + Q ((1 + S^2)^power - 1) Q^T x."""
        *_, q, s = self._held.like(x)
        within = _times(q.mT, x.flatten(1)) * torch.expm1(power * torch.log1p(s**2))
        return x + _times(q, within).view_as(x)

    def trace(self, scale: Tensor) -> Tensor:
        """With Sigma^-1 = V^-1 - B B^T, B = V^(-1/2) Q S / sqrt(1 + S^2), a sum over D r^2 products."""
        variances, factors, std, q, s = self._held.like(scale)
        lead = int(self.each)
        v, u = variances.flatten(lead)[..., None], factors.flatten(lead, -2)
        b = q * (s / (1 + s**2).sqrt())[..., None, :] / std.flatten(lead)[..., None]
        r = scale[..., None]
        crossed = (u.mT @ (r * b)).square().sum((1, 2))
        return scale.square().sum(1) + (r**2 * (u**2 / v - v * b**2)).sum((1, 2)) - crossed

    def variances(self, x: Tensor) -> Tensor:
        """v + the sum of squares of U."""
        variances, factors, *_ = self._held.like(x)
        return variances + factors.square().sum(-1)

    def matrix(self) -> Tensor:
        """diag(v) + U U^T."""
        variances, factors, *_ = self._held.precise()
        lead = int(self.each)
        factors = factors.flatten(lead, -2)
        return torch.diag_embed(variances.flatten(lead)) + factors @ factors.mT

    def tensors(self) -> dict[str, Tensor]:
        """variances and factors."""
        variances, factors, *_ = self._held.precise()
        return {"variances": variances, "factors": factors}


def precise(x: Tensor) -> Tensor:
    """x in float64 without its graph; on the CPU where its device has no float64 (MPS)."""
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).double()


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix x for rows x (b, ...): one matrix for all, or one a row. In the type of x: under autocast noise would be rounded."""
    flat = x.flatten(1)
    with torch.autocast(x.device.type, enabled=False):
        found = flat @ matrix.mT if matrix.ndim == 2 else (matrix @ flat[:, :, None])[:, :, 0]
    return found.view_as(x) if found.shape == flat.shape else found


def _require_positive(least: Tensor, each: bool, above: Tensor | float = 0.0) -> None:
    """Raise `ConfigurationError` unless the smallest eigenvalues (b,), or (1,), are above 0 by what can be told from it."""
    wrong = ~(least > above)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        where = f" in row {row}" if each else ""
        raise ConfigurationError(
            f"got a covariance with smallest eigenvalue {float(least[row]):g}{where}, expected positive definite"
        )
