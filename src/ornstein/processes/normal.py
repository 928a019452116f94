"""Normal laws: the base N(mean, Sigma) that a process draws its noise from (PriorGrad, paper 001 eq. 49), and the laws of
its steps, N(m, std^2 Sigma)."""

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError, DataError
from ornstein.noise import Noise
from ornstein.processes.covariance import Covariance, Diagonal, Full, Held, LowRank, precise

if TYPE_CHECKING:
    from ornstein.processes.conditional import ConditionalNormal

Number = float | Tensor
FLOOR = 1e-3
SWEEPS = 8  # of the power iteration that finds the components of a low rank: more change the sixth digit


class Normal:
    """N(mean, Sigma) over states of shape d.

    Args:
        mean: of shape d.
        covariance: variances of shape d (diagonal Sigma), the full matrix of shape (D, D) with D the size of d, or
            `LowRank(variances, factors)`.

    `Normal.each` makes one law a row, which is what a base has under a condition. Raises `ConfigurationError` where Sigma is
    not positive definite or its shape does not fit.
    """

    def __init__(self, mean: Tensor, covariance: Tensor | LowRank) -> None:
        self._set(mean, covariance, tuple(mean.shape), each=False)

    @classmethod
    def each(cls, means: Tensor, covariance: Tensor | LowRank) -> "Normal":
        """b laws: means (b, *d); covariance variances (b, *d), matrices (b, D, D), or `LowRank` of (b, *d) and (b, *d, r)."""
        new = cls.__new__(cls)
        new._set(means, covariance, tuple(means.shape[1:]), each=True)
        return new

    def _set(self, mean: Tensor, covariance: Any, shape: tuple[int, ...], each: bool) -> None:
        self.shape, lead, size = shape, tuple(mean.shape[:1]) if each else (), math.prod(shape)
        if not torch.isfinite(mean).all():
            raise ConfigurationError("got a mean with NaN or infinity, expected finite numbers")
        thin = isinstance(covariance, LowRank)
        given = tuple(covariance.tensors()["variances"].shape if thin else covariance.shape)
        if given == tuple(mean.shape):
            found = _of_rows(covariance, each) if thin else Diagonal(covariance, each)
        elif given == (*lead, size, size) and not thin:
            found = Full(covariance, shape, each)
        else:
            raise ConfigurationError(
                f"got a covariance of shape {given} for a mean of shape {tuple(mean.shape)}, expected {tuple(mean.shape)} "
                f"(variances), {(*lead, size, size)} (full) or LowRank of such variances"
            )
        self.covariance: Covariance = found
        self._mean = Held(mean)
        self.scale = float(found.variances(precise(mean)).mean().sqrt())
        """The root mean square of the standard deviations: what sigma = 1 comes to, in model units."""

    @classmethod
    def measure(cls, data: Tensor, kind: str | int = "diagonal", floor: float = FLOOR) -> "Normal":
        """The mean and the covariance of data (n, *d) in model units: a base measured on what it will make.

        kind: "diagonal"; "full", for up to a few thousand dimensions; a rank r, probabilistic PCA: U = q_i sqrt(l_i - s^2) of
            the r largest eigenvalues l_i and their directions q_i, s^2 the mean of the others, and v what is left of the
            variances.
        floor: the least variance of a component (of a direction, in "full"), as a share of their mean: a constant pixel has none
            of its own. Without noise in it a white value would be a division by 0.

        Raises `DataError` on data that do not vary, and on no more than D examples for a full covariance.
        """
        x = precise(data.flatten(1))
        if len(x) < 2 or not torch.isfinite(x).all():
            raise DataError(f"got {len(x)} examples, expected at least 2, of finite numbers")
        mean, shape = x.mean(0), data.shape[1:]
        x = x - mean
        variances = x.square().mean(0)
        least = floor * float(variances.mean())
        if not least > 0:
            raise DataError(f"got data that do not vary and floor={floor}, expected a covariance above 0")
        if kind == "full":
            if len(x) <= x.shape[1]:
                raise DataError(
                    f"got {len(x)} examples for a full covariance of {x.shape[1]} dimensions, expected more than that; a low "
                    "rank (kind=16) or kind='diagonal' needs fewer"
                )
            values, vectors = torch.linalg.eigh(x.T @ x / len(x))
            covariance: Tensor | LowRank = (vectors * values.clamp(min=least)) @ vectors.T
        elif kind == "diagonal":
            covariance = variances.clamp(min=least).view(shape)
        elif isinstance(kind, int) and 0 < kind <= min(len(x) - 1, x.shape[1]):
            covariance = _principal(x, variances, kind, least, shape)
        else:
            raise ConfigurationError(
                f"got kind={kind!r}, expected 'diagonal', 'full' or a rank of 1 to {min(len(x) - 1, x.shape[1])}"
            )
        return cls(mean.view(shape), covariance)

    def __eq__(self, other: object) -> bool:
        """Whether it is the same law, by the same numbers."""
        if not isinstance(other, Normal) or repr(self) != repr(other):
            return False
        mine, theirs = ({"mean": law.mean, **law.covariance.tensors()} for law in (self, other))
        return all(torch.equal(mine[name].cpu().double(), theirs[name].cpu().double()) for name in mine)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        each = ", one a row" if self.one_a_row else ""
        return f"Normal(shape={self.shape}, {type(self.covariance).__name__}{each})"

    @property
    def mean(self) -> Tensor:
        """mu, of shape d; (b, *d) where there is one law a row."""
        return self._mean.precise()[0]

    @property
    def one_a_row(self) -> bool:
        """Whether each row has a law of its own."""
        return self.covariance.each

    @property
    def diagonal(self) -> bool:
        """Whether Sigma is held as variances."""
        return self.covariance.diagonal

    @property
    def log_det(self) -> float | Tensor:
        """log |Sigma|: a number, or (b,) in float64."""
        return self.covariance.log_det

    def given(self, cond: Any) -> "Normal":
        """The law under a condition, on which this one does not depend: itself."""
        return self

    def rows(self, index: Any) -> "Normal":
        """The laws of some rows (a slice, numbers or a mask); itself where all rows have one."""
        if not self.one_a_row:
            return self
        twin = copy.copy(self)
        twin.covariance, twin._mean = self.covariance.rows(index), self._mean.rows(index)
        return twin

    def centre(self, x: Tensor) -> Tensor:
        """mu beside x (b, *d), in its type and on its device."""
        return self._mean.like(x)[0]

    def colour(self, z: Tensor) -> Tensor:
        """L z with L L^T = Sigma: white noise (b, *d) becomes noise of covariance Sigma."""
        return self.covariance.colour(z)

    def whiten(self, x: Tensor) -> Tensor:
        """L^-1 x, the inverse of `colour`."""
        return self.covariance.whiten(x)

    def colour_score(self, z: Tensor) -> Tensor:
        """L^-T z: the score in white coordinates becomes that of x."""
        return self.covariance.colour_score(z)

    def whiten_score(self, score: Tensor) -> Tensor:
        """L^T score, the inverse of `colour_score`."""
        return self.covariance.whiten_score(score)

    def precision(self, x: Tensor) -> Tensor:
        """Sigma^-1 x."""
        return self.covariance.precision(x)

    def covary(self, x: Tensor) -> Tensor:
        """Sigma x."""
        return self.covariance.covary(x)

    def trace(self, scale: Tensor) -> Tensor:
        """tr(Sigma^-1 R Sigma R) for R = diag(scale), scale (b, D): (b,)."""
        return self.covariance.trace(scale)

    def variances(self, x: Tensor) -> Tensor:
        """The diagonal of Sigma beside x: of shape d, or (b, *d)."""
        return self.covariance.variances(x)

    def matrix(self) -> Tensor:
        """Sigma as a float64 matrix (D, D), or (b, D, D)."""
        return self.covariance.matrix()

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, Sigma) in nats, (b,)."""
        z = self.whiten(x - self.centre(x)).flatten(1)
        return -0.5 * (z**2).sum(1) - 0.5 * self.covariance.log_det_beside(z) - 0.5 * z.shape[1] * math.log(2 * math.pi)


@dataclass(frozen=True)
class GaussianLaw:
    """N(mean, std^2 Sigma), with Sigma the covariance of the base (I where it is None); mean (b, *d).

    `std` is a number, one per example (b, 1, ..., 1), or one per component (b, *d).
    """

    mean: Tensor
    std: Number
    base: "Normal | ConditionalNormal | None" = None

    def sample(self, rng: Noise) -> Tensor:
        """mean + std L z, z ~ N(0, I)."""
        if isinstance(self.std, float) and self.std == 0:
            return self.mean
        z = rng.normal(self.mean.shape, self.mean.dtype)
        return self.mean + self.std * (z if self.base is None else self.base.colour(z))

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std^2 Sigma) in nats, (b,)."""
        z = ((x - self.mean) / self.std) if self.base is None else self.base.whiten((x - self.mean) / self.std)
        size, log_det = z[0].numel(), 0.0 if self.base is None else self.base.covariance.log_det_beside(z)
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


def _of_rows(covariance: LowRank, each: bool) -> Covariance:
    """The covariance, read as one law a row or as one for all, whichever way it was made."""
    return covariance if covariance.each == each else LowRank(**covariance.tensors(), each=each)


def expm1(v: Number) -> Number:
    """exp(v) - 1 of a float or a tensor."""
    return math.expm1(v) if isinstance(v, float) else torch.expm1(v)


def _principal(x: Tensor, variances: Tensor, rank: int, least: float, shape: torch.Size) -> LowRank:
    """The first components of centred data x (n, D) as factors, and what they leave of the variances, at least `least`.

    Directions by power iteration from fixed random ones: no (D, D) matrix is made.
    """
    count = min(rank + 8, x.shape[1])
    start = torch.randn(x.shape[1], count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = torch.linalg.qr(start.to(x.device))[0]
    for _ in range(SWEEPS):
        q = torch.linalg.qr(x.T @ (x @ q))[0]
    values, turned = torch.linalg.eigh((x @ q).T @ (x @ q) / len(x))
    values, q = values[-rank:], (q @ turned)[:, -rank:]
    others = max(1, x.shape[1] - rank)
    rest = float((variances.sum() - values.sum()).clamp(min=0)) / others
    factors = q * (values - rest).clamp(min=0).sqrt()
    left = (variances - factors.square().sum(1)).clamp(min=least)
    return LowRank(left.view(shape), factors.view(*shape, rank))
