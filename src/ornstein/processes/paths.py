"""The forward process as a whole, its chain and the law at its end: the part of `Gaussian` that steps and losses never touch."""

from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ornstein.noise import Noise
from ornstein.processes.normal import GaussianLaw
from ornstein.schedules.base import Schedule

if TYPE_CHECKING:
    from ornstein.processes.gaussian import Estimate, Gaussian


class Paths:
    """Base of `Gaussian`: where its time begins and ends, draws of its chain and of its prior, and their densities."""

    schedule: Schedule

    holds = False
    """Whether a place may be at its data at every level, beside others that are noise."""

    t_min = property(attrgetter("schedule.t_min"), doc="The first time of the schedule.")

    @property
    def steps(self) -> int | None:
        """T where the schedule is a table of T steps."""
        return getattr(self.schedule, "steps", None)

    def is_data(self: "Gaussian", t: float) -> bool:  # type: ignore[misc]
        """Whether the state at t is the data: sigma(t) = 0."""
        return float(self.level(t).sigma) == 0

    def describe(self: "Gaussian", t: float) -> str:  # type: ignore[misc]
        """The level at a time, for messages."""
        return f"t = {t:.4g} (log-SNR {float(self.level(t).log_snr):.3g})"

    def land(self, estimate: "Estimate", rng: Noise) -> Tensor:
        """The data where the schedule ends above sigma = 0: the estimate of them, at no draw."""
        return estimate.x0

    def path(self: "Gaussian", x0: Tensor, grid: Tensor, rng: Noise) -> Tensor:  # type: ignore[misc]
        """A draw of the forward chain at the ascending times of `grid`, (len(grid), b, *d), given x_0 at time 0.

        The first state is drawn from q(x_t | x_0), each further one from `transition` (paper 001 eq. 4).
        """
        times = [float(t) for t in grid]
        states = [self.noise(x0, times[0], rng)]
        for s, t in pairwise(times):
            states.append(self.transition(states[-1], s, t).sample(rng))
        return torch.stack(states)

    def log_prob_path(self: "Gaussian", path: Tensor, x0: Tensor, grid: Tensor) -> Tensor:  # type: ignore[misc]
        """log q(path | x_0) in nats, (b,): the joint log-density of a forward chain, the sum of its transitions."""
        times = [float(t) for t in grid]
        alpha, sigma, _ = self.level(times[0])
        mu = self.centre(x0)
        total = GaussianLaw(mu + alpha * (x0 - mu), sigma, self.base).log_prob(path[0])
        for i, (s, t) in enumerate(pairwise(times)):
            total = total + self.transition(path[i], s, t).log_prob(path[i + 1])
        return total

    def prior(  # type: ignore[misc]
        self: "Gaussian", shape: Sequence[int], rng: Noise, t: float = 1.0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """A draw of N(mu, sigma(t)^2 Sigma), the law from which sampling starts at time t (1 unless a grid starts later)."""
        z = self.level(t).sigma * rng.normal(shape, dtype)
        return z if self.base is None else self.base.colour(z) + self.base.centre(z)

    def log_prior(self: "Gaussian", x: Tensor) -> Tensor:  # type: ignore[misc]
        """log N(x; mu, sigma(1)^2 Sigma) in nats, (b,)."""
        return GaussianLaw(torch.zeros_like(x) + self.centre(x), float(self.level(1.0).sigma), self.base).log_prob(x)
