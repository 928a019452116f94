"""Exact samplers of the reverse chain of categories: jump by jump, at the times at which it jumps.

`FirstHitting` is for masks (Zheng et al. 2024): with n masked sites left at time t none of them is revealed until s with
probability ((1 - alpha_s) / (1 - alpha_t))^n, whatever the network says; so the time of the next one is drawn in closed form,
the site uniformly, and the symbol from p(x_0 | x_t): as many calls as tokens.

`Gillespie` is for any kernel with rates, by thinning (Lewis and Shedler 1979): candidate times come at a rate B that no
reverse rate exceeds in an interval, and are taken with probability R_hat / B. From p(x_0 | x_t) <= 1 follows B(x, y) = max
over x_0 of R(y, x) q(y | x_0) / q(x | x_0).

Examples jump at times of their own; the numbers of a step are drawn apart from the rest, so that a sample depends on (seed,
i) alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.noise import Noise
from ornstein.processes.categorical import Categorical
from ornstein.processes.kernels import inverse
from ornstein.samplers.ctmc import falling
from ornstein.schedules.base import Schedule, bisected

ENDS = 1e-3
"""alpha at the beginning, and 1 - alpha at the end, beyond which Gillespie's steps are the posterior's: sites drawn apart
there make an error of the square of it."""
SLACK = 1.5
"""How much larger than at the ends of an interval a bound of rates is taken within."""


@dataclass(frozen=True)
class FirstHitting:
    """Masks revealed one by one; see the module. A step makes as many calls as the most masked sites of an example.

    Raises `ConfigurationError` for a kernel that is not `Absorbing`.
    """

    needs = "rates"
    order = 1
    stages = math.inf
    stochastic = True

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """All that is revealed between time t and time s; there is no memory."""
        falling(t, s)
        process = denoiser.process
        if not process.kernel.absorbing:
            raise ConfigurationError(
                f"got FirstHitting for {process.kernel!r}, expected an Absorbing kernel; for others Gillespie()"
            )
        schedule, mask = process.schedule, process.categories
        own, x, shape = rng.branch(), x.flatten(1).clone(), x.shape
        masked_share = torch.full((len(x),), 1 - float(schedule.alpha(t)), dtype=torch.float64)
        last = 1 - float(schedule.alpha(s))
        rows = torch.arange(len(x), device=x.device)
        while True:
            left = (x == mask).sum(1)
            u = own.uniform((len(x), 3)).to(x.device)
            share = masked_share.to(x.device) * u[:, 0] ** (1 / left.clamp(min=1))
            going = (left > 0) & (share >= last)
            if not going.any():
                return x.view(shape), None
            masked_share = torch.where(going, share, masked_share.to(x.device))
            time = time_of(schedule, 1 - masked_share.cpu().clamp(min=last))
            site = (torch.cumsum(x == mask, 1) <= (u[:, 1] * left).long()[:, None]).sum(1).clamp(max=x.shape[1] - 1)
            probs = denoiser(x.view(shape), time).probs.reshape(*x.shape, -1)[rows, site]
            x[rows[going], site[going]] = inverse(probs, u[:, 2])[going]
            masked_share = torch.where(going, masked_share, torch.full_like(masked_share, -1.0))  # past s: no more


@dataclass(frozen=True)
class Gillespie:
    """The reverse chain jump by jump, by thinning; see the module. For small problems: a call for every candidate time.

    intervals: parts of a step's time, equal in log(alpha / (1 - alpha)), in each of which a bound of the rates is taken.

    Raises `NumericalError` where rates exceed the bound: more intervals are needed. `ConfigurationError` for less than one.
    """

    intervals: int = 32

    needs = "rates"
    order = 1
    stages = math.inf
    stochastic = True

    def __post_init__(self) -> None:
        if not isinstance(self.intervals, int) or self.intervals < 1:
            raise ConfigurationError(f"got intervals={self.intervals}, expected a whole number of at least 1")

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """All jumps between time t and time s; there is no memory."""
        falling(t, s)
        process, own = denoiser.process, rng.branch()
        schedule = process.schedule
        if float(schedule.alpha(s)) <= ENDS or float(schedule.alpha(t)) >= 1 - ENDS:
            return process.posterior(denoiser(x, t), t, s).sample(own), None
        first = min(max(float(schedule.alpha(t)), ENDS), 1 - ENDS)
        last = max(min(float(schedule.alpha(s)), 1 - ENDS), first)
        begin, end = torch.logit(torch.tensor([first, last], dtype=torch.float64)).tolist()
        places = torch.linspace(begin, end, self.intervals + 1, dtype=torch.float64)
        times = time_of(schedule, torch.sigmoid(places))
        if float(times[0]) < t:
            x = process.posterior(denoiser(x, t), t, float(times[0])).sample(own)
        x = self._follow(denoiser, x, times, own)
        if float(times[-1]) > s:
            x = process.posterior(denoiser(x, float(times[-1])), float(times[-1]), s).sample(own)
        return x, None

    def _follow(self, denoiser: DenoiserLike, x: Tensor, times: Tensor, own: Noise) -> Tensor:
        process, states = denoiser.process, denoiser.process.states
        shape, b = x.shape, len(x)
        x, place = x.flatten(1).clone(), torch.zeros(b, dtype=torch.long)
        now, rows = times[0].expand(b).clone(), torch.arange(b)
        while (place < len(times) - 1).any():
            u = own.uniform((b, 3)).cpu()
            inside = place.clamp(max=len(times) - 2)
            bound = SLACK * torch.maximum(largest_rates(process, x, now), largest_rates(process, x, times[inside + 1]))
            then = now + torch.log1p(-u[:, 0]) / bound.clamp(min=1e-300)
            beyond = then <= times[inside + 1]
            going = ~beyond & (place < len(times) - 1)
            at = torch.where(going, then, now)
            if going.any():
                rates = process.rates(denoiser(x.view(shape), at), at).clamp(min=0).reshape(b, -1)
                total = rates.sum(1).cpu()
                over = (total / bound.clamp(min=1e-300))[going].max()
                if over > 1 + 1e-6:
                    raise NumericalError(
                        f"got reverse rates {float(over):.3g} times their bound in one of {self.intervals} intervals, expected "
                        f"none above it: take more, such as Gillespie(intervals={4 * self.intervals})"
                    )
                jump = inverse(rates, u[:, 1].to(x.device))
                taken = going & (u[:, 2] * bound < total)
                x[rows[taken], jump[taken] // states] = jump[taken] % states
            now = torch.where(beyond, times[inside + 1], at)
            place = place + (beyond & (place < len(times) - 1)).long()
        return x.view(shape)


def largest_rates(process: Categorical, x: Tensor, t: Tensor) -> Tensor:
    """A bound of the sum of all reverse rates from states x (b, n) at times t (b,), for any p(x_0 | x_t), (b,)."""
    k, states = process.categories, process.states
    kernel, schedule = process.kernel, process.schedule
    law = kernel.between(schedule, 0.0, t).rows(torch.arange(k, device=x.device).expand(len(x), k))  # (b, K, S)
    at_x = law.gather(2, x[:, None].expand(-1, k, -1)).mT  # (b, n, K): q(x | x_0)
    ratio = law[:, None] / at_x[..., None].clamp(min=1e-300)
    most = torch.where(at_x[..., None] > 0, ratio, 0.0).amax(2)  # (b, n, S)
    rates = kernel.rate(schedule, t).columns(x) * most
    return rates.scatter(-1, x[..., None], 0.0).clamp(min=0).reshape(len(x), -1, states).sum((1, 2)).cpu()


def time_of(schedule: Schedule, alpha: Tensor) -> Tensor:
    """The times at which a schedule's alpha, which falls, has these values, float64."""
    return bisected(schedule.alpha, alpha)
