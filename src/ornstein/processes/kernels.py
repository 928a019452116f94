"""Kernels: how one site of categories forgets. A kernel gives q(x_t | x_s) for any s < t as a `Transition`.

Row vectors, as in D3PM (Austin et al. 2021): Q[x, y] = q(x_t = y | x_s = x). The kernels of this file keep a site with
probability a = alpha(t) / alpha(s) and otherwise draw it anew from one law pi, whatever it was:

    Q = a I + (1 - a) 1 pi^T,        R = beta (1 pi^T - I),   beta(t) = -d log alpha / dt

with pi uniform (`Uniform`), the mask (`Absorbing`) or given (`Marginal`). They commute and form a semigroup, so s and t may
be any times; and nothing of the size K x K is ever made: a row is a one-hot vector beside pi. `chains.py` has the kernels of
matrices.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.schedules.base import Schedule, Time

LAST = 1 - 2.0**-23
"""The largest place in a cumulative sum: so that rounding never finds what has probability 0."""


def beside(c: Time, p: Tensor) -> float | Tensor:
    """A coefficient beside p (b, ...): floats stay floats; (b,) becomes (b, 1, ..., 1) of the type of p."""
    if not isinstance(c, Tensor) or c.ndim == 0:
        return float(c)
    return c.to(p).reshape(c.shape + (1,) * (p.ndim - 1))


def inverse(probs: Tensor, u: Tensor) -> Tensor:
    """The state (b, *d) at place u in [0, 1) (b, *d) of the cumulative probabilities (b, *d, S), normalised or not."""
    cdf = probs.cumsum(-1)
    place = u.to(cdf).clamp(max=LAST)[..., None] * cdf[..., -1:]
    return (cdf <= place).sum(-1).clamp(max=probs.shape[-1] - 1)


class Transition(Protocol):
    """q(x_t | x_s) of each site: states x, y are int64 (b, *d), probabilities (b, *d, S)."""

    def rows(self, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(x_t = . | x_s = x), (b, *d, S)."""

    def likelihood(self, y: Tensor, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(x_t = y | x_s = .) over the first n states, (b, *d, n), up to a factor for each site."""

    def mix(self, p: Tensor) -> Tensor:
        """sum_x p(x) q(x_t = . | x_s = x), (b, *d, S), of weights p (b, *d, k) over the first k states."""

    def draw(self, x: Tensor, u: Tensor) -> Tensor:
        """A draw of x_t given x_s = x at the places u in [0, 1) (b, *d)."""

    def spread(self, categories: int) -> float:
        """The largest total variation of a category's row from the mean of their rows."""


class Rate(Protocol):
    """The forward rate R(x, y) from state x to y at a time, 1 / time: off its diagonal 0 or more, rows of sum 0."""

    def rows(self, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """R(x, .), (b, *d, S)."""

    def columns(self, y: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """R(., y), (b, *d, S)."""


class Kernel:
    """Base of the kernels: `categories` K of the data, `states` S >= K of the process, those beyond K being no data.

    steps: T where it is known at the times i / T alone, else None. absorbing: whether a site that is not the mask is as it
    was in the data.
    """

    categories: int
    steps: int | None = None
    absorbing: bool = False

    @property
    def states(self) -> int:
        """S, the number of states."""
        return self.categories

    def between(self, schedule: Schedule | None, s: Time, t: Time) -> Transition:
        """q(x_t | x_s) for s < t, floats or (b,)."""
        raise NotImplementedError

    def rate(self, schedule: Schedule | None, t: Time) -> Rate:
        """The forward rate at t. Raises `ConfigurationError` for a kernel that has none."""
        raise ConfigurationError(
            f"got {self!r}, a table of matrices without rates between its steps; expected a kernel that has them, such as "
            "Uniform, Absorbing or Rates"
        )


def elapsed(schedule: Schedule | None, s: Time, t: Time) -> float | Tensor:
    """log alpha(t) - log alpha(s), <= 0, of the shape of the times; -inf where alpha(t) is 0."""
    assert schedule is not None
    end, begin = schedule.log_alpha(t), schedule.log_alpha(s)
    lost = torch.where(torch.isinf(begin), 0.0, end - begin)  # what is lost is lost
    return lost if isinstance(s, Tensor) or isinstance(t, Tensor) else float(lost)


def slope(schedule: Schedule | None, t: Time) -> float | Tensor:
    """beta(t) = -d log alpha / dt, 1 / time. Raises `NumericalError` where it is infinite."""
    assert schedule is not None
    beta = -schedule.f(t)
    return beta if isinstance(t, Tensor) else float(beta)


@dataclass(frozen=True)
class Redrawn:
    """Q = keep I + (1 - keep) 1 pi^T, of a kernel's pi; `log_keep` is a float or float64 (b,), from which both are formed."""

    kernel: "Redrawing"
    log_keep: float | Tensor

    @property
    def keep(self) -> float | Tensor:
        """The probability that a site is kept."""
        return self.log_keep.exp() if isinstance(self.log_keep, Tensor) else math.exp(self.log_keep)

    @property
    def fresh(self) -> float | Tensor:
        """1 - keep, without cancellation."""
        return -torch.expm1(self.log_keep) if isinstance(self.log_keep, Tensor) else -math.expm1(self.log_keep)

    def rows(self, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(x_t = . | x_s = x), (b, *d, S)."""
        law = self.kernel.law(x.device, dtype).expand(*x.shape, -1)
        return _added(beside(self.fresh, law) * law, x, beside(self.keep, law))

    def likelihood(self, y: Tensor, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """q(x_t = y | x_s = .) up to a factor, (b, *d, n): where pi(y) = 0, y was kept, and it is the one-hot vector."""
        chance = self.kernel.law(y.device, dtype)[y][..., None]
        keep = beside(self.keep, chance)
        fresh = (beside(self.fresh, chance) * chance).expand(*y.shape, self.kernel.states)
        return _added(fresh, y, torch.where(chance == 0, chance.new_ones(()), keep))[..., :n]

    def mix(self, p: Tensor) -> Tensor:
        """keep p + (1 - keep) pi sum p, (b, *d, S)."""
        keep = beside(self.keep, p)
        fresh = beside(self.fresh, p) * p.sum(-1, keepdim=True) * self.kernel.law(p.device, p.dtype)
        more = self.kernel.states - p.shape[-1]
        return fresh + keep * (torch.nn.functional.pad(p, (0, more)) if more else p)

    def draw(self, x: Tensor, u: Tensor) -> Tensor:
        """x where u < keep, else a draw of pi at the place (u - keep) / (1 - keep)."""
        keep = torch.as_tensor(beside(self.keep, u), dtype=u.dtype, device=u.device)
        place = (u - keep) / (1 - keep).clamp(min=2.0**-60)
        return torch.where(u < keep, x, self.kernel.quantile(place))

    def spread(self, categories: int) -> float:
        """keep (1 - 1 / K): the rows differ in what is kept alone."""
        return float(torch.as_tensor(self.keep).max()) * (1 - 1 / categories)


@dataclass(frozen=True)
class RedrawnRate:
    """R = beta (1 pi^T - I)."""

    kernel: "Redrawing"
    beta: float | Tensor

    def rows(self, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """R(x, .) = beta (pi - e_x), (b, *d, S)."""
        law = self.kernel.law(x.device, dtype).expand(*x.shape, -1)
        beta = beside(self.beta, law)
        return _added(beta * law, x, -beta)

    def columns(self, y: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """R(., y) = beta (pi(y) - e_y), (b, *d, S)."""
        chance = self.kernel.law(y.device, dtype)[y][..., None]
        beta = beside(self.beta, chance)
        return _added((beta * chance).expand(*y.shape, self.kernel.states), y, -beta)


class Redrawing(Kernel):
    """Base of the kernels that keep a site or draw it anew from a law pi, which a subclass gives."""

    def law(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """pi, (S,)."""
        raise NotImplementedError

    def quantile(self, u: Tensor) -> Tensor:
        """The states at places u in [0, 1) of the cumulative probabilities of pi."""
        raise NotImplementedError

    def between(self, schedule: Schedule | None, s: Time, t: Time) -> Redrawn:
        """q(x_t | x_s), of keep = alpha(t) / alpha(s)."""
        return Redrawn(self, elapsed(schedule, s, t))

    def rate(self, schedule: Schedule | None, t: Time) -> RedrawnRate:
        """beta(t) (1 pi^T - I)."""
        return RedrawnRate(self, slope(schedule, t))


@dataclass(frozen=True)
class Uniform(Redrawing):
    """Categories drawn anew from all of them alike: pi = 1 / K (Hoogeboom et al. 2021; D3PM, uniform)."""

    categories: int

    def __post_init__(self) -> None:
        check_categories(self.categories)

    def law(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """1 / K of each."""
        return torch.full((self.categories,), 1 / self.categories, device=device, dtype=dtype)

    def quantile(self, u: Tensor) -> Tensor:
        """floor(K u)."""
        return (u * self.categories).long().clamp(0, self.categories - 1)


@dataclass(frozen=True)
class Absorbing(Redrawing):
    """Categories replaced by a mask, state K, which stays: pi is the mask (D3PM, absorbing; masked diffusion).

    With alpha(t) = 1 - t (`RectifiedFlow`, the "log-linear" schedule) a site is masked with probability t; on a grid of T steps
    that is D3PM's beta_i = 1 / (T - i + 1).
    """

    categories: int

    absorbing = True

    def __post_init__(self) -> None:
        check_categories(self.categories, least=1)

    @property
    def states(self) -> int:
        """K + 1, with the mask."""
        return self.categories + 1

    @property
    def mask(self) -> int:
        """The state that is no category."""
        return self.categories

    def law(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The mask alone."""
        law = torch.zeros(self.states, device=device, dtype=dtype)
        law[self.mask] = 1
        return law

    def quantile(self, u: Tensor) -> Tensor:
        """The mask."""
        return torch.full_like(u, self.mask, dtype=torch.long)


@dataclass(frozen=True)
class Marginal(Redrawing):
    """Categories drawn anew from a law of their own, such as their shares in the data (Vignac et al. 2023, DiGress).

    probabilities: pi, K positive numbers of sum 1. Raises `ConfigurationError` on others.
    """

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        check_categories(len(self.probabilities))
        total = sum(self.probabilities)
        if min(self.probabilities) <= 0 or abs(total - 1) > 1e-6:
            raise ConfigurationError(
                f"got probabilities from {min(self.probabilities):g} that sum to {total:g}, expected positive numbers of sum 1"
            )

    @property
    def categories(self) -> int:  # type: ignore[override]
        """K."""
        return len(self.probabilities)

    def law(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The given one."""
        return torch.tensor(self.probabilities, device=device, dtype=dtype)

    def quantile(self, u: Tensor) -> Tensor:
        """By their cumulative sum."""
        return inverse(self.law(u.device, u.dtype).expand(*u.shape, -1), u)


def check_categories(categories: int, least: int = 2) -> None:
    """Raise `ConfigurationError` unless there are at least so many categories."""
    if not isinstance(categories, int) or categories < least:
        raise ConfigurationError(f"got categories={categories!r}, expected a whole number of at least {least}")


def _added(fresh: Tensor, x: Tensor, weight: float | Tensor) -> Tensor:
    """fresh + weight e_x, (b, *d, S); fresh may be an expanded view."""
    kept = weight.expand(*x.shape, 1) if isinstance(weight, Tensor) else fresh.new_full((), weight).expand(*x.shape, 1)
    return fresh.scatter_add(-1, x[..., None], kept.to(fresh.dtype))
