"""The squared error, the objective that is meant where none is named, with the time law and the weighting of its defaults.

The comparison is the mean squared error over the components of one reading r (paper 001 eq. 41, with the expectation over
t it lacks):

    loss_i = w(t_i) mean_d (r_hat(x_t, t) - r)^2,   t_i from the time law, x_t = process.noise(x_0, t)

With eps and w = 1 that is L_simple; with EDM's F and w = 1 it is EDM's loss, since its weight on x_0 times c_out^2 is 1.
With a weight from a bound (`LikelihoodWeighting`, `ELBOWeighting`) it is the variational bound of a fixed variance. Under a
base N(mu, Sigma) the error is whitened, so that its square is Mahalanobis' (paper 001 eq. 50): in the norm of Sigma^-1, and of
Sigma for the score.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.denoisers import DenoiserLike
from ornstein.noise import Noise
from ornstein.processes.gaussian import Gaussian
from ornstein.schedules.base import EDGE


@dataclass(frozen=True)
class Loss:
    """Per-example losses (b,), the times they were taken at (b,), and named parts that sum to the loss.

    Under a law that draws some times more often than others, `weight` (b,) holds the factors that keep the mean unbiased; they
    are in `per_example` and in the parts already. On a chain of T steps the times are i/T.
    """

    per_example: Tensor
    t: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The mean over the examples: what is minimised."""
        return self.per_example.mean()

    @property
    def term(self) -> Tensor:
        """The losses without their weights, (b,): those of t as it is, which a history of losses keeps."""
        return self.per_example if self.weight is None else self.per_example / self.weight


class TimeLaw(Protocol):
    """A law of training times: maps independent uniform numbers in (0, 1) to times.

    A law of a chain has `steps`; one that draws some steps more often than others has `weight(t)`, 1 / (T p_i).
    """

    def __call__(self, process: Any, u: Tensor) -> Tensor: ...

    def density(self, process: Gaussian, t: Tensor) -> Tensor: ...


class ObjectiveLike(Protocol):
    """What training needs: a time law, and a call that returns a `Loss`."""

    @property
    def times(self) -> TimeLaw:
        """The law of training times."""

    def __call__(
        self, denoiser: DenoiserLike, x0: Any, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss: ...


class WeightingLaw:
    """Base of the weightings: a factor on the squared error of `reading` (the denoiser's own where None).

    One that depends on t through the log-SNR alone says `__call__`, another `at`; `check` refuses time laws.
    """

    reading: str | None

    def __call__(self, log_snr: Tensor) -> Tensor:
        """The weights at log-SNR values (b,)."""
        raise NotImplementedError

    def at(self, process: Gaussian, t: Tensor, times: TimeLaw) -> Tensor:
        """The weights at times t (b,) that were drawn by `times`."""
        return self(process.schedule.log_snr(t))

    def check(self, times: TimeLaw) -> None:
        """Raise `ConfigurationError` where it has no weights for the times of this law."""


@dataclass(frozen=True)
class UniformTime:
    """t uniform between the first time of the schedule and 1."""

    def __call__(self, process: Gaussian, u: Tensor) -> Tensor:
        """The times of uniform numbers u (b,)."""
        first = process.t_min
        return first + (1 - first) * u

    def density(self, process: Gaussian, t: Tensor) -> Tensor:
        """The density of the log-SNR at t: 1 / ((1 - t_min) |d log_snr / dt|), where |d log_snr / dt| = g^2 / sigma^2."""
        schedule = process.schedule
        return (schedule.sigma(t) / schedule.g(t)) ** 2 / (1 - schedule.t_min)


@dataclass(frozen=True)
class Simple(WeightingLaw):
    """Weight 1 on one reading: on the denoiser's own where None. `Simple("eps")` is L_simple for any parametrisation."""

    reading: str | None = None

    def __call__(self, log_snr: Tensor) -> Tensor:
        """The weights at log-SNR values (b,)."""
        return torch.ones_like(log_snr)


@dataclass(frozen=True)
class Objective:
    """The weighted squared error of one reading; see the module.

    times: a time law. weighting: `Simple`, `EDMWeighting`, `MinSNR`, `Weighting`, `LikelihoodWeighting`, `ELBOWeighting`.
    """

    times: TimeLaw = UniformTime()
    weighting: WeightingLaw = Simple()

    def __post_init__(self) -> None:
        self.weighting.check(self.times)

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) under the condition cond (b, ...), with draws from rng.

        Times are drawn for the whole batch of which rng holds a part: a batch in parts has the losses of the whole.
        Rows where `keep` (b,) is False are trained as unconditional.
        """
        process = denoiser.process.given(cond)
        t = self.times(process, rng.shared().clamp(EDGE, 1 - EDGE))[rng.rows]
        truth = process.noised(x0, t, rng)
        estimate = denoiser(truth.x_t, t, cond, keep)
        reading = self.weighting.reading or estimate.kind
        error = estimate.reading(reading) - replace(truth, sigma_data=estimate.sigma_data).reading(reading)
        error = error if process.base is None else whitened(error, process.base, reading)
        loss, weight = error.square().flatten(1).mean(1), None
        if not isinstance(self.weighting, Simple):
            loss = loss * self.weighting.at(process, t, self.times).to(loss)
        if hasattr(self.times, "weight"):
            weight = self.times.weight(t).to(loss)
            loss = loss * weight
        return Loss(loss, t, weight=weight)


def whitened(error: Tensor, base: Any, reading: str) -> Tensor:
    """The error of a reading in the white coordinates of a base: L^-1 error, of the score L^T error."""
    return base.whiten_score(error) if reading == "score" else base.whiten(error)
