"""The terms of a variational bound, by the kind of process: what `elbo` and the objectives `VLB` and `RateVLB` are made of.

    end    KL(q(x_t | x_0) || p(x_t)), L_T at t = 1
    step   KL(q(x_s | x_t, x_0) || p(x_s | x_t)), L_{t-1}
    rate   what `step` comes to per unit of a clock as s -> t
    last   log p(x_0 | x_t), -L_0

For numbers they are those of `ornstein.variational`, and the clock is minus the log-SNR. For categories the laws are those of
the process itself, and the clock is t: with R_hat the reverse rates under x_0 and under the estimate,

    rate = sum_{y != x_t} R_hat_0(x_t, y) log(R_hat_0 / R_hat)(x_t, y) - R_hat_0(x_t, y) + R_hat(x_t, y),

the limit of the KL, which is least, 0, at R_hat = R_hat_0. Under an absorbing kernel it is the cross-entropy of the masked
sites times -alpha' / (1 - alpha). Terms are in nats, (b,), float64.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ornstein import variational
from ornstein.errors import ConfigurationError
from ornstein.processes.categorical import Categorical, CategoricalEstimate, CategoricalLaw
from ornstein.processes.gaussian import Estimate, Gaussian
from ornstein.processes.normal import GaussianLaw
from ornstein.processes.product import Product, ProductEstimate, ProductLaw, State, total
from ornstein.schedules.base import EDGE, Time
from ornstein.variational import Bins, in_float64


class Terms(Protocol):
    """The terms of a bound; see the module. x0 is data (b, *d), t and s are times, floats or (b,)."""

    def end(self, process: Any, x0: Any, t: Time) -> Tensor:
        """KL(q(x_t | x_0) || p(x_t))."""

    def step(self, estimate: Any, x0: Any, t: Time, s: Time) -> Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t))."""

    def rate(self, estimate: Any, x0: Any, t: Time) -> Tensor:
        """The cost per unit of the clock."""

    def last(self, estimate: Any, x0: Any, t: Time) -> Tensor:
        """log p(x_0 | x_t)."""

    def clock(self, process: Any, first: float, last: float) -> tuple[float, float]:
        """The readings of the clock at two times."""

    def time_at(self, process: Any, reading: Tensor) -> Tensor:
        """The times (b,) of readings of the clock."""

    def marginal(self, process: Any, x0: Any, t: Time) -> Any:
        """q(x_t | x_0), a law."""

    def reverse(self, estimate: Any, t: Time, s: Time) -> Any:
        """p(x_s | x_t), a law."""

    def prior(self, process: Any, x: Any, t: Time) -> Any:
        """p(x_t), the law at the end, for states like x."""


@dataclass(frozen=True)
class GaussianTerms:
    """Those of numbers.

    least: the least std at the data, `variational.floor`. bins: the bins of quantised data, None for a density. fixed: where
    between beta~ (0) and beta (1) the variance lies, where it is not learned.
    """

    least: float
    bins: Bins | None = None
    fixed: float = 1.0

    def end(self, process: Gaussian, x0: Tensor, t: Time) -> Tensor:
        """`variational.prior_kl`."""
        return variational.prior_kl(process, x0, t)

    def step(self, estimate: Estimate, x0: Tensor, t: Time, s: Time) -> Tensor:
        """`variational.transition_kl`."""
        return variational.transition_kl(estimate, x0, t, s, self.fixed)

    def rate(self, estimate: Estimate, x0: Tensor, t: Time) -> Tensor:
        """`variational.kl_rate`, per unit of log-SNR."""
        return variational.kl_rate(estimate, x0, t)

    def last(self, estimate: Estimate, x0: Tensor, t: Time) -> Tensor:
        """`variational.reconstruction`."""
        return variational.reconstruction(estimate, x0, t, self.least, self.bins, self.fixed)

    def clock(self, process: Gaussian, first: float, last: float) -> tuple[float, float]:
        """The log-SNR at the last time and the first, which is larger."""
        low, high = process.schedule.log_snr(torch.tensor([last, first], dtype=torch.float64)).tolist()
        return low, high

    def time_at(self, process: Gaussian, reading: Tensor) -> Tensor:
        """The times of log-SNRs."""
        return process.schedule.time_at(reading)

    def marginal(self, process: Gaussian, x0: Tensor, t: Time) -> GaussianLaw:
        """`variational.marginal`."""
        return variational.marginal(process, x0, t)

    def reverse(self, estimate: Estimate, t: Time, s: Time) -> GaussianLaw:
        """`variational.reverse_law`."""
        return variational.reverse_law(estimate, t, s, self.fixed)

    def prior(self, process: Gaussian, x: Tensor, t: Time) -> GaussianLaw:
        """N(mu, sigma^2 Sigma)."""
        x = in_float64(x)
        return GaussianLaw(torch.zeros_like(x) + process.centre(x), float(process.level(t).sigma), process.base)


@dataclass(frozen=True)
class CategoricalTerms:
    """Those of categories, by the laws of the process. precise: in float64, or in the estimate's own type, as in training."""

    precise: bool = True

    def end(self, process: Categorical, x0: Tensor, t: Time) -> Tensor:
        """KL(q(x_t | x_0) || the mean of q(x_t | .) over all categories)."""
        return process.transition(x0, 0.0, t).kl(process.prior_law(x0.shape, t, x0.device))

    def step(self, estimate: CategoricalEstimate, x0: Tensor, t: Time, s: Time) -> Tensor:
        """The KL between two posteriors, that of x_0 and that of the estimate."""
        truth, held = self._pair(estimate, x0)
        process = estimate.process
        return process.posterior(truth, t, s).kl(process.posterior(held, t, s))

    def rate(self, estimate: CategoricalEstimate, x0: Tensor, t: Time) -> Tensor:
        """The relative entropy of two reverse rates, per unit of t; see the module."""
        truth, held = (estimate.process.rates(e, t) for e in self._pair(estimate, x0))
        least = torch.finfo(held.dtype).tiny
        at_x = estimate.x_t[..., None]
        true, own = (rates.scatter(-1, at_x, 0.0) for rates in (truth, held))
        terms = torch.xlogy(true, true) - torch.xlogy(true, own.clamp(min=least)) - true + own
        return terms.flatten(1).sum(1)

    def last(self, estimate: CategoricalEstimate, x0: Tensor, t: Time) -> Tensor:
        """The log-probability of the data under the estimate."""
        return self._pair(estimate, x0)[1].log_prob(x0)

    def clock(self, process: Categorical, first: float, last: float) -> tuple[float, float]:
        """The times themselves, short of the ends, where rates may be infinite."""
        return max(first, EDGE), min(last, 1 - EDGE)

    def time_at(self, process: Categorical, reading: Tensor) -> Tensor:
        """The same."""
        return reading

    def marginal(self, process: Categorical, x0: Tensor, t: Time) -> CategoricalLaw:
        """q(x_t | x_0)."""
        return process.transition(x0, 0.0, t)

    def reverse(self, estimate: CategoricalEstimate, t: Time, s: Time) -> CategoricalLaw:
        """The mixture of the posteriors."""
        return estimate.process.posterior(self._held(estimate), t, s)

    def prior(self, process: Categorical, x: Tensor, t: Time) -> CategoricalLaw:
        """The mean of q(x_t | .) over all categories."""
        return process.prior_law(x.shape, t, x.device)

    def _held(self, estimate: CategoricalEstimate) -> CategoricalEstimate:
        return replace(estimate, log_probs=in_float64(estimate.log_probs)) if self.precise else estimate

    def _pair(self, estimate: CategoricalEstimate, x0: Tensor) -> tuple[CategoricalEstimate, CategoricalEstimate]:
        """The truth and the estimate, of one type."""
        held = self._held(estimate)
        truth = estimate.process.estimate(estimate.x_t, estimate.t, x0=x0)
        return replace(truth, log_probs=truth.log_probs.to(held.log_probs)), held


@dataclass(frozen=True)
class ProductTerms:
    """Those of a state of parts: sums over the parts, of which each has its own. There is no clock that all share."""

    parts: dict[str, Terms]

    def end(self, process: Product, x0: State, t: Time) -> Tensor:
        """The sum of theirs."""
        return total(each.end(process.parts[name], x0[name], t) for name, each in self.parts.items())

    def step(self, estimate: ProductEstimate, x0: State, t: Time, s: Time) -> Tensor:
        """The sum of theirs."""
        return total(each.step(estimate.parts[name], x0[name], t, s) for name, each in self.parts.items())

    def rate(self, estimate: ProductEstimate, x0: State, t: Time) -> Tensor:
        """Raises `ConfigurationError`: numbers are integrated over log-SNR, categories over t."""
        raise _without_clock()

    def last(self, estimate: ProductEstimate, x0: State, t: Time) -> Tensor:
        """The sum of theirs."""
        return total(each.last(estimate.parts[name], x0[name], t) for name, each in self.parts.items())

    def clock(self, process: Product, first: float, last: float) -> tuple[float, float]:
        """Raises `ConfigurationError`, as `rate` does."""
        raise _without_clock()

    def time_at(self, process: Product, reading: Tensor) -> Tensor:
        """Raises `ConfigurationError`, as `rate` does."""
        raise _without_clock()

    def marginal(self, process: Product, x0: State, t: Time) -> ProductLaw:
        """The product of theirs."""
        return ProductLaw({name: each.marginal(process.parts[name], x0[name], t) for name, each in self.parts.items()})

    def reverse(self, estimate: ProductEstimate, t: Time, s: Time) -> ProductLaw:
        """The product of theirs."""
        return ProductLaw({name: each.reverse(estimate.parts[name], t, s) for name, each in self.parts.items()})

    def prior(self, process: Product, x: State, t: Time) -> ProductLaw:
        """The product of theirs."""
        return ProductLaw({name: each.prior(process.parts[name], x[name], t) for name, each in self.parts.items()})


def _without_clock() -> ConfigurationError:
    """The error of a Product that is asked for the limit: numbers are integrated over log-SNR, categories over t."""
    return ConfigurationError("got the limit of continuous time for a Product, expected a chain: steps=1000")


def terms_of(
    process: Any, times: tuple[float, ...], bins: Bins | None = None, fixed: float = 1.0, precise: bool = True
) -> Terms:
    """The terms for a process on a chain whose first times are `times`. Raises `ConfigurationError` for options that do not fit.

    bins, fixed: of numbers alone, see `GaussianTerms`. precise: of categories alone, see `CategoricalTerms`.
    """
    if isinstance(process, Gaussian):
        one = len(times) == 1
        least = float(process.level(times[0]).sigma) if one else variational.floor(process, times[0], times[1])
        return GaussianTerms(least, bins, fixed)
    if isinstance(process, Product):
        return ProductTerms({n: terms_of(part, times, None, fixed, precise) for n, part in process.parts.items()})
    if bins is not None:
        raise ConfigurationError("got bins for categories, which have probabilities by themselves; expected none")
    return CategoricalTerms(precise)
