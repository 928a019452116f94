"""The divergence of a field, tr(df/dz), by products v^T (df/dz) that autograd gives for one pass back through the network.

`Exact` takes v = e_1, ..., e_D and sums the diagonal: D passes. `Hutchinson` takes K random v with E[v v^T] = I, for which
E[v^T (df/dz) v] is the trace (Hutchinson 1990; Grathwohl et al. 2019): K passes, whatever D. Its probes are drawn once and
kept along the path, so that what is integrated is smooth, and the spread of K integrals is the error of their mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.noise import Noise

LAWS = ("rademacher", "gaussian")


class Trace(Protocol):
    """A recipe: the probes of examples, and what they make of a field."""

    def draw(self, x: Tensor, rng: Noise) -> Tensor:
        """What is drawn for examples x (b, *d) and kept along their paths, with leading axis b."""

    def products(self, value: Tensor, z: Tensor, probes: Tensor) -> Tensor:
        """Estimates of tr(d value / dz), (b, K), float64 on the CPU, of a `value` that autograd knows as a function of z."""


@dataclass(frozen=True)
class Exact:
    """The sum of the diagonal of df/dz. Refused above `limit` dimensions, for it takes D passes back for every call."""

    limit: int = 256

    def draw(self, x: Tensor, rng: Noise) -> Tensor:
        """None, (b, 0). Raises `ConfigurationError` above the limit."""
        dims = x[0].numel()
        if dims > self.limit:
            raise ConfigurationError(
                f"got the exact trace in {dims} dimensions, {dims} passes back through the network for every call; expected "
                f"at most {self.limit} dimensions: use Hutchinson(probes=1), one pass back, or Exact(limit={dims})"
            )
        return x.new_empty(len(x), 0)

    def products(self, value: Tensor, z: Tensor, probes: Tensor) -> Tensor:
        """tr(d value / dz), (b, 1)."""
        columns = value.flatten(1).unbind(1)
        rows = [_pulled(column.sum(), z).flatten(1)[:, i] for i, column in enumerate(columns)]
        return _nats(torch.stack(rows, 1)).sum(1, keepdim=True)


@dataclass(frozen=True)
class Hutchinson:
    """v^T (df/dz) v for `probes` vectors v an example, of independent signs ("rademacher") or N(0, I) ("gaussian")."""

    probes: int = 1
    law: str = "rademacher"

    def __post_init__(self) -> None:
        if self.probes < 1 or self.law not in LAWS:
            raise ConfigurationError(
                f"got {self.probes} probes of law '{self.law}', expected at least 1 of rademacher or gaussian"
            )

    def draw(self, x: Tensor, rng: Noise) -> Tensor:
        """(b, K, *d), drawn from `rng`."""
        v = rng.normal((len(x), self.probes, *x.shape[1:]), x.dtype)
        return torch.where(v < 0, -1.0, 1.0).to(x.dtype) if self.law == "rademacher" else v

    def products(self, value: Tensor, z: Tensor, probes: Tensor) -> Tensor:
        """v^T (d value / dz) v for every probe, (b, K)."""
        sums = [_nats(_pulled((v * value).sum(), z) * v).flatten(1).sum(1) for v in probes.unbind(1)]
        return torch.stack(sums, 1)


def divergence(field: Callable[[Tensor], Tensor], z: Tensor, trace: Trace, probes: Tensor) -> tuple[Tensor, Tensor]:
    """field(z), (b, *d), and the trace's estimates of its divergence (b, K), by one call of the field.

    The gradients of parameters are left alone. The field must act on each row by itself, and be differentiable.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = field(z)
        return value.detach(), trace.products(value, z, probes)


def _pulled(scalar: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(scalar, z, retain_graph=True)[0]


def _nats(x: Tensor) -> Tensor:
    return x.cpu().double()  # not every accelerator has float64
