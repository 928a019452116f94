"""Samplers of categories in continuous time: the reverse chain, whose rates are R_hat (Campbell et al. 2022), stepped or
followed.

    Euler          x -> y with probability tau R_hat(x, y), each site by itself
    tau-leaping    n_y ~ Poisson(tau R_hat(x, y)) jumps at once (Gillespie 2001)
    corrector      a step of h at one time with R + R_hat, which leaves q_t as it is: q_t (R + R_hat) = 0
    exact          jump by jump (`jumps.py`)

Rates are infinite where alpha is 0 (t = 1 of alpha = 1 - t), and near the data, where what is wrong has to be put right. So a
step from such a time, and the step to the data, are those of the exact posterior, which sees a whole step; Campbell et al.
stop short of both ends.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.processes.categorical import Categorical, CategoricalLaw
from ornstein.processes.kernels import Kernel
from ornstein.processes.rates import RateKernel


def at_an_end(process: Categorical, t: float, s: float) -> bool:
    """Whether a step from t to s begins where rates are infinite, or ends at the data."""
    assert process.schedule is not None
    return process.is_data(s) or float(process.schedule.alpha(t)) == 0


def euler_law(rates: Tensor, x: Tensor, tau: float) -> CategoricalLaw:
    """Jumps with probability tau times rates (b, *d, S), else x stays; where they exceed 1 in sum they are scaled to that."""
    moves = tau * rates.scatter(-1, x[..., None], 0.0).clamp(min=0)
    total = moves.sum(-1, keepdim=True)
    moves = moves / total.clamp(min=1)
    return CategoricalLaw(moves.scatter(-1, x[..., None], (1 - total).clamp(min=0)))


def leaving(kernel: Kernel) -> float:
    """A bound of the forward rate at which a site leaves its state, over beta: 1 - pi is at most 1 where it is drawn anew."""
    return float(-kernel.matrix.diagonal().min()) if isinstance(kernel, RateKernel) else 1.0


def falling(t: float, s: float) -> None:
    """Raise `ConfigurationError` unless a step goes towards the data."""
    if not s < t:
        raise ConfigurationError(f"got a step from t = {t:g} to s = {s:g}, expected a falling grid")


class _Stepped:
    """Base of the samplers of one call a step: at an end the posterior's step, else `_moved` by the rates, which a subclass
    gives."""

    needs = "rates"
    order = 1
    stages = 1
    stochastic = True

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """One step from time t to time s; there is no memory."""
        falling(t, s)
        estimate, process = denoiser(x, t), denoiser.process
        self._check(process)
        if at_an_end(process, t, s):
            return process.posterior(estimate, t, s).sample(rng), None
        return self._moved(process.rates(estimate, t), x, t - s, rng), None

    def _check(self, process: Categorical) -> None:
        """Raise `ConfigurationError` for a process that it cannot step."""

    def _moved(self, rates: Tensor, x: Tensor, tau: float, rng: Noise) -> Tensor:
        """States x (b, *d) after a time tau of the rates (b, *d, S)."""
        raise NotImplementedError


@dataclass(frozen=True)
class CTMCEuler(_Stepped):
    """One Euler step of the reverse chain: P(x_s = y) = (t - s) R_hat(x_t, y) for y != x_t, and x_t with what is left (check
    E08)."""

    def _moved(self, rates: Tensor, x: Tensor, tau: float, rng: Noise) -> Tensor:
        return euler_law(rates, x, tau).sample(rng)


@dataclass(frozen=True)
class TauLeaping(_Stepped):
    """n_y ~ Poisson((t - s) R_hat(x_t, y)) jumps to each y at every site (Campbell et al. 2022, algorithm 1; check E18).

    ordinal: for ordered categories: the jumps add up, x_s = x_t + sum_y n_y (y - x_t), cut to 0 .. K - 1. Else a site takes a
    jump where it has exactly one, and stays where it has more: there is no sum of categories.

    Raises `ConfigurationError` where `ordinal` and the kernel has a mask, which has no place in the order.
    """

    ordinal: bool = False

    def _check(self, process: Categorical) -> None:
        if self.ordinal and process.states != process.categories:
            raise ConfigurationError(
                f"got ordinal=True for {process.kernel!r}, whose mask has no place in an order; expected False"
            )

    def _moved(self, rates: Tensor, x: Tensor, tau: float, rng: Noise) -> Tensor:
        rates = rates.scatter(-1, x[..., None], 0.0).clamp(min=0)
        counts = poisson(tau * rates, rng.uniform(rates.shape))
        if self.ordinal:
            states = rates.shape[-1]
            apart = torch.arange(states, device=x.device) - x[..., None]
            return (x + (counts * apart).sum(-1)).clamp(0, states - 1)
        return torch.where(counts.sum(-1) == 1, counts.argmax(-1), x)


@dataclass(frozen=True)
class CTMCCorrector:
    """`steps` Euler steps at one time with R + R_hat, under which q_t is invariant (Campbell et al. 2022, proposition 4).

    eps: the length of a step over the time in which a site is noised, or revealed, whichever is the shorter: h = eps min(1 /
    rho, (1 - alpha) / alpha) / beta, where rho is the largest rate at which the kernel leaves a state, over beta: at most 1 for
    those that draw a site anew, about K^2 / 5 for `BirthDeath`. Up to 0.5, at which the moves of a step just fit into a
    probability of 1. Where rates are infinite it does nothing. Unadjusted, it moves q_t by O(eps^2) a step, where sites depend
    on each other.
    """

    eps: float = 0.1
    steps: int = 1

    needs = "rates"
    order = 0
    stochastic = True
    corrects = True

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 0.5 or not isinstance(self.steps, int) or self.steps < 1:
            raise ConfigurationError(
                f"got eps={self.eps}, steps={self.steps}, expected 0 < eps <= 0.5 and a whole number of steps, at least 1"
            )

    @property
    def stages(self) -> int:
        """Calls of the denoiser in a full step."""
        return self.steps

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """Steps at time t, which is s. Raises `ConfigurationError` where it is not."""
        if s != t:
            raise ConfigurationError(f"got a step from t = {t:g} to s = {s:g} for a corrector, expected s = t")
        process = denoiser.process
        assert process.schedule is not None
        alpha = float(process.schedule.alpha(t))
        if alpha in (0.0, 1.0):
            return x, None
        h = self.eps * min(1 / leaving(process.kernel), (1 - alpha) / alpha) / -float(process.schedule.f(t))
        for _ in range(self.steps):
            estimate = denoiser(x, t)
            rates = process.rates(estimate, t)
            both = rates + process.forward_rates(x, t, rates.dtype)
            x = euler_law(both, x, h).sample(rng)
        return x, None


def poisson(mean: Tensor, u: Tensor) -> Tensor:
    """Poisson numbers of these means by inversion of uniform numbers u, both of one shape; int64."""
    mean = mean.double()
    term = torch.exp(-mean)
    cdf, counts, k = term, torch.zeros_like(mean, dtype=torch.long), 0
    while True:
        more = u >= cdf
        if not more.any() or k > 1000:
            return counts
        k += 1
        counts = counts + more
        term = term * mean / k
        cdf = cdf + term
