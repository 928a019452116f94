"""What likelihoods come to: `Likelihood` of the probability-flow ODE, `Bound` of the variational bound, in nats.

Both hold a value for each example and print its mean with a standard error. A log-density of continuous data has a unit (that
of the data), so it is quoted in nats alone; the log-probability of quantised data has none, and is quoted in bits/dim as well,
`-nats / (dims log 2)`.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError

LOOSE = 0.1
"""The share of a result above which its standard error makes it worthless."""


def standard_error(values: Tensor, dim: int = 0) -> Any:
    """That of the mean over an axis; NaN for a single value."""
    if values.shape[dim] == 1:
        return math.nan if values.ndim == 1 else torch.full_like(values.select(dim, 0), math.nan)
    errors = values.double().std(dim) / math.sqrt(values.shape[dim])
    return float(errors) if values.ndim == 1 else errors


@dataclass(frozen=True)
class _Figures:
    """What both have in common; `per_example` (n,) is in nats.

    dims: components of an example. calls: network evaluations per example, on average. seconds: wall-clock time.
    levels: the number of levels of quantised data, whose log-probability this is; None for a log-density.
    """

    dims: int
    calls: float
    seconds: float
    levels: int | None

    @property
    def per_example(self) -> Tensor:
        """The value of each example, (n,), in nats."""
        raise NotImplementedError

    @property
    def mean(self) -> float:
        """The mean over the examples, in nats."""
        return float(self.per_example.double().mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean in nats, of the examples and of what was drawn for each; NaN for one example."""
        return standard_error(self.per_example)

    @property
    def bits_per_dim(self) -> float:
        """`-mean / (dims log 2)`: bits to code a component. Raises `ConfigurationError` for continuous data."""
        return -self.mean / self._bit

    @property
    def bits_error(self) -> float:
        """The standard error of `bits_per_dim`."""
        return self.standard_error / self._bit

    @property
    def _bit(self) -> float:
        if self.levels is None:
            raise ConfigurationError(
                "got continuous data, whose density has a unit; expected quantised data for bits/dim: quote nats (.mean)"
            )
        return self.dims * math.log(2)

    def doubts(self) -> list[str]:
        """What makes the figure worthless, in words: nothing where all is well."""
        found = []
        if len(self.per_example) == 1:
            found.append("one example has no standard error: take more")
        if self.standard_error > LOOSE * abs(self.mean):
            found.append(
                f"the standard error, {self.standard_error:.3g} nats, is above a tenth of the result: take more examples"
            )
        return found


@dataclass(frozen=True)
class Likelihood(_Figures):
    """log p(x) by the probability-flow ODE.

    values: (n,) nats, a log-density of x in its own units, or a lower bound of the log-probability of quantised data.
    probe_error: (n,) standard error over the probes of the trace, None where the trace is exact or of one probe.
    mismatch: (n,) KL(q(x_1 | x_0) || prior) in nats, None where `terminal` stood in for the prior. What taking the prior for
    the law at t = 1 costs on average, KL(p_1 || prior), is at most its mean.
    sigma: the level sigma / alpha at which the density is, where the ODE begins.
    """

    values: Tensor
    probe_error: Tensor | None
    mismatch: Tensor | None
    sigma: float

    @property
    def per_example(self) -> Tensor:
        """log p(x) of each example, (n,), in nats."""
        return self.values

    def doubts(self) -> list[str]:
        """As of every figure; and where the probes of the trace are too few."""
        found = super().doubts()
        if self.probe_error is not None:
            error = float(self.probe_error.double().square().mean().sqrt())
            if error > LOOSE * abs(self.mean):
                found.append(f"the error of the trace, {error:.3g} nats an example, is above a tenth: take more probes")
        return found


@dataclass(frozen=True)
class Steps:
    """The terms of a bound, one a step of the chain, from the noisy end: means over the examples and their standard errors.

    t, s: (T,) the times a step goes from and to; the last goes to the data (s = 0), and is the reconstruction.
    nats: (T,) contributions to the bound, the negative of L_{t-1}. errors: (T,) their standard errors.
    """

    t: Tensor
    s: Tensor
    nats: Tensor
    errors: Tensor


@dataclass(frozen=True)
class Bound(_Figures):
    """A lower bound of log p(x) in named parts, each (n,) in nats, that sum to `total` (paper 002 eq. 23).

    prior: -KL(q(x_T | x_0) || p(x_T)), -L_T. diffusion: -sum over t of KL(q(x_s | x_t, x_0) || p(x_s | x_t)), the -L_{t-1}.
    reconstruction: E log p(x_0 | x_1), -L_0. steps: the terms one by one, where all of them were summed.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    steps: Steps | None = field(default=None)

    @property
    def total(self) -> Tensor:
        """The bound of each example, (n,), in nats."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def per_example(self) -> Tensor:
        """The same as `total`."""
        return self.total


def concatenated(parts: list[Tensor]) -> Tensor:
    """Parts of a batch as one tensor on the CPU, float64."""
    return torch.cat([part.detach().double().cpu() for part in parts]) if parts else torch.empty(0, dtype=torch.float64)
