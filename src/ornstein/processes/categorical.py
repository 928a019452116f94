"""The categorical process: sites of K categories, each forgotten by a kernel on its own, q(x_t | x_0) = prod_d Q(0, t)[x_0^d,
x_t^d].

What is estimated of x_0 is a law of each site, p(x_0 | x_t). The law of a step back is the mixture of the posteriors under it,

    p(x_s | x_t) = sum_{x_0} q(x_s | x_t, x_0) p(x_0 | x_t),
    q(x_s | x_t, x_0) = Q(0, s)[x_0, x_s] Q(s, t)[x_s, x_t] / Q(0, t)[x_0, x_t]      (Austin et al. 2021, D3PM, eq. 3; check
    E04, E20)

which is the true law where p(x_0 | x_t) is; where x_0 is given, p is at a point and the mixture is the posterior itself. In
continuous time it becomes the reverse rate (Campbell et al. 2022, proposition 3; checks E06, E07)

    R_hat(x, y) = R(y, x) sum_{x_0} q(y | x_0) / q(x | x_0) p(x_0 | x),   x != y.

States are int64 (b, *d), probabilities (b, *d, S); a time is a float or (b,).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.processes.kernels import Kernel, inverse
from ornstein.schedules.base import Schedule, Time, as_time

FAR_FROM_PRIOR = 0.02
"""The total variation between q(x_1 | x_0) and the prior above which a process is refused."""
ROUNDING = 1e-12


@dataclass(frozen=True)
class CategoricalEstimate:
    """What is held of x_0 given x_t: log p(x_0 | x_t) of each site, (b, *d, K), -inf for what x_t rules out."""

    process: "Categorical"
    x_t: Tensor
    t: Time
    log_probs: Tensor

    @property
    def probs(self) -> Tensor:
        """p(x_0 | x_t), (b, *d, K)."""
        return self.log_probs.exp()

    def rows(self, rows: Any) -> "CategoricalEstimate":
        """The estimate of some rows of the batch (a slice, numbers or a mask)."""
        t = self.t[rows] if isinstance(self.t, Tensor) and self.t.ndim else self.t
        return replace(self, x_t=self.x_t[rows], t=t, log_probs=self.log_probs[rows])

    def log_prob(self, x0: Tensor) -> Tensor:
        """log p(x_0 | x_t) of data x0 (b, *d), the sum over sites, in nats, (b,)."""
        return self.log_probs.gather(-1, x0[..., None])[..., 0].reshape(len(x0), -1).sum(1)


@dataclass(frozen=True)
class CategoricalLaw:
    """A law of each site by itself, probs (b, *d, S) of sum 1."""

    probs: Tensor

    def sample(self, rng: Noise) -> Tensor:
        """A draw, (b, *d), by inversion of one uniform number for each site."""
        return inverse(self.probs, rng.uniform(self.probs.shape[:-1]))

    def log_prob(self, x: Tensor) -> Tensor:
        """log of the probability of x (b, *d), in nats, (b,)."""
        return self.probs.gather(-1, x[..., None])[..., 0].log().reshape(len(x), -1).sum(1)

    def kl(self, other: "CategoricalLaw") -> Tensor:
        """KL(self || other), the sum over sites, in nats, (b,)."""
        p, q = self.probs, other.probs
        least = torch.finfo(q.dtype).tiny  # 0 log(0 / 0) has a gradient then
        return (torch.xlogy(p, p) - torch.xlogy(p, q.clamp(min=least))).flatten(1).sum(1)


@dataclass(frozen=True)
class Categorical:
    """The forward process of a kernel under a schedule, of which alpha(t) alone counts: the share of the data that is kept.

    schedule: None for a kernel that is a table of matrices, which has its own law of time. `RectifiedFlow()` is alpha = 1 - t.
    Raises `ConfigurationError` where q(x_1 | x_0) still depends on x_0: it never reaches its prior.
    """

    schedule: Schedule | None
    kernel: Kernel

    def __post_init__(self) -> None:
        if (self.schedule is None) != (self.kernel.steps is not None):
            raise ConfigurationError(
                f"got schedule={self.schedule!r} for {self.kernel!r}, expected "
                + (
                    "None: a table of matrices has its own"
                    if self.kernel.steps
                    else "one, such as RectifiedFlow(), alpha = 1 - t"
                )
            )
        far = self.kernel.between(self.schedule, 0.0, 1.0).spread(self.categories)
        if not far <= FAR_FROM_PRIOR:
            raise ConfigurationError(
                f"got {self.kernel!r} under {self.schedule!r}, whose law at t = 1 is {far:.3g} in total "
                "variation from its prior, "
                f"expected at most {FAR_FROM_PRIOR}: "
                + (
                    "take more noise"
                    if self.kernel.steps
                    else "take a schedule with alpha(1) = 0, such as RectifiedFlow()"
                )
            )

    @property
    def categories(self) -> int:
        """K, the categories of the data."""
        return self.kernel.categories

    @property
    def states(self) -> int:
        """S, the states of the process: the categories, and the mask of an absorbing kernel."""
        return self.kernel.states

    @property
    def steps(self) -> int | None:
        """T where the process is known at the times i / T alone."""
        return self.kernel.steps

    @property
    def holds(self) -> bool:
        """Whether a site may be at its data at every level, beside others that are noise: masks tell which are which."""
        return self.kernel.absorbing

    @property
    def t_min(self) -> float:
        """The first time of the schedule."""
        return 0.0 if self.schedule is None else self.schedule.t_min

    def is_data(self, t: Time) -> bool:
        """Whether the state at a float time t is the data."""
        return float(t) == 0 if self.schedule is None else float(self.schedule.log_alpha(t)) > -ROUNDING

    def describe(self, t: float) -> str:
        """The level at a time, for messages."""
        return f"t = {t:.4g}" if self.schedule is None else f"t = {t:.4g} (alpha {float(self.schedule.alpha(t)):.3g})"

    def given(self, cond: Condition | None) -> "Categorical":
        """The process under a condition: itself, which depends on none."""
        return self

    def rows(self, rows: Any) -> "Categorical":
        """The process of some rows of a batch: itself."""
        return self

    def noise(self, x0: Tensor, t: Time, rng: Noise) -> Tensor:
        """A draw of q(x_t | x_0)."""
        return self.kernel.between(self.schedule, 0.0, t).draw(x0, rng.uniform(x0.shape))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> CategoricalLaw:
        """q(x_t | x_s) for s < t."""
        return CategoricalLaw(self.kernel.between(self.schedule, s, t).rows(x_s))

    def prior_law(self, shape: Sequence[int], t: Time = 1.0, device: torch.device | str = "cpu") -> CategoricalLaw:
        """The mean over all categories of q(x_t | x_0): the law from which sampling starts at t."""
        even = torch.full((self.categories,), 1 / self.categories, dtype=torch.float64, device=device)
        law = self.kernel.between(self.schedule, 0.0, t).mix(even)
        return CategoricalLaw(law.expand(*shape, -1))

    def prior(self, shape: Sequence[int], rng: Noise, t: float = 1.0) -> Tensor:
        """A draw of the prior, (b, *d)."""
        if self.kernel.absorbing and t == 1 and self.schedule is not None and float(self.schedule.alpha(1.0)) == 0:
            return torch.full(tuple(shape), self.categories, device=rng.device)  # all of it the mask, at no draw
        return self.prior_law(shape, t, rng.device).sample(rng)

    def log_prior(self, x: Tensor) -> Tensor:
        """log of the prior's probability of x (b, *d), in nats, (b,)."""
        return self.prior_law(x.shape, 1.0, x.device).log_prob(x)

    def estimate(
        self, x_t: Tensor, t: Time, *, x0: Tensor | None = None, log_probs: Tensor | None = None
    ) -> CategoricalEstimate:
        """The estimate that holds log-probabilities (b, *d, K), or x_0 itself, (b, *d).

        Raises `ConfigurationError` unless exactly one is given, of a shape that fits x_t.
        """
        if (x0 is None) == (log_probs is None):
            raise ConfigurationError("got both or neither of x0 and log_probs, expected one of them")
        if x0 is not None:
            log_probs = one_hot(x0, self.categories).double().log()
        assert log_probs is not None
        if log_probs.shape != (*x_t.shape, self.categories):
            raise ConfigurationError(
                f"got log-probabilities of shape {tuple(log_probs.shape)}, expected {(*x_t.shape, self.categories)}"
            )
        return CategoricalEstimate(self, x_t, t if isinstance(t, float) else as_time(t), log_probs)

    def evidence(self, x_t: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """log q(x_t | x_0) over x_0, (b, *d, K), up to a number for each site: -inf for the x_0 that x_t rules out."""
        return self.kernel.between(self.schedule, 0.0, t).likelihood(x_t, self.categories, dtype).log()

    def posterior(self, estimate: CategoricalEstimate, t: Time, s: Time, eta: float = 1.0) -> CategoricalLaw:
        """The law of x_s given x_t, for s < t: the posteriors q(x_s | x_t, x_0), mixed by the estimate; see the module.

        eta must be 1: categories know no deterministic bridge. At s = 0 it is the estimate itself.
        """
        if eta != 1:
            raise ConfigurationError(
                f"got eta={eta} for categories, which know no bridge but that of eta=1; expected eta=1"
            )
        x_t, log_probs = estimate.x_t, estimate.log_probs
        ahead = self.kernel.between(self.schedule, s, t).likelihood(x_t, self.states, log_probs.dtype)
        mixed = self.kernel.between(self.schedule, 0.0, s).mix(self._over_likelihood(estimate, t))
        weights = ahead * mixed
        return CategoricalLaw(weights / weights.sum(-1, keepdim=True))

    def rates(self, estimate: CategoricalEstimate, t: Time) -> Tensor:
        """The reverse rates R_hat(x_t, .), 1 / time, (b, *d, S); that at x_t itself is minus the sum of the others.

        Raises `ConfigurationError` for a kernel without rates, `NumericalError` where they are infinite.
        """
        x_t, log_probs = estimate.x_t, estimate.log_probs
        ratios = self.kernel.between(self.schedule, 0.0, t).mix(self._over_likelihood(estimate, t))
        ratios = ratios / ratios.gather(-1, x_t[..., None])  # at x_t itself the sum is 1, whatever the factor
        rates = self.kernel.rate(self.schedule, t).columns(x_t, log_probs.dtype) * ratios
        return without(rates, x_t)

    def forward_rates(self, x_t: Tensor, t: Time, dtype: torch.dtype = torch.float64) -> Tensor:
        """The forward rates R(x_t, .), (b, *d, S), rows of sum 0."""
        return without(self.kernel.rate(self.schedule, t).rows(x_t, dtype), x_t)

    def land(self, estimate: CategoricalEstimate, rng: Noise) -> Tensor:
        """The data where the schedule does not end at them: a draw of p(x_0 | x_t)."""
        return CategoricalLaw(estimate.probs).sample(rng)

    def _over_likelihood(self, estimate: CategoricalEstimate, t: Time) -> Tensor:
        """p(x_0 | x_t) / q(x_t | x_0), (b, *d, K), up to a factor for each site; 0 for the x_0 that x_t rules out."""
        probs = estimate.probs
        likely = self.kernel.between(self.schedule, 0.0, t).likelihood(estimate.x_t, self.categories, probs.dtype)
        return torch.where(likely > 0, probs / likely.clamp(min=torch.finfo(probs.dtype).tiny), 0.0)


def without(rates: Tensor, x: Tensor) -> Tensor:
    """Rates (b, *d, S) with the entry of x (b, *d) made minus the sum of the others."""
    others = rates.scatter(-1, x[..., None], 0.0)
    return others.scatter(-1, x[..., None], -others.sum(-1, keepdim=True))
