"""Exponential Runge-Kutta: calls within the step in place of a memory. For eps it is DPM-Solver-2 and -3 (Lu et al. 2022), for
x_0 DPM-Solver++(2S) and (3S)."""

from dataclasses import dataclass

from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.samplers.exponential import carried, transfer, weights
from ornstein.samplers.multistep import PREDICTIONS


@dataclass(frozen=True)
class Singlestep:
    """x_s = a x_t + c <D>, as in `Multistep`, with D known at t and at one or two places u of log-SNR within the step.

    order 2: u = 1/2, whose reading stands for the average. order 3: u = 1/3 and 2/3, the second reached by the line through
    the first, the average that of the line through u = 0 and 2/3. As many calls a step as the order; a step from or to
    alpha = 0 or sigma = 0 is of order 1 and takes one call.
    """

    order: int = 2
    prediction: str = "x0"

    stochastic = False

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ConfigurationError(
                f"got order={self.order!r}, expected 2 or 3; of order 1 is Multistep(1), of order 4 RK4()"
            )
        if self.prediction not in PREDICTIONS:
            raise ConfigurationError(f"got prediction={self.prediction!r}, expected {' or '.join(PREDICTIONS)}")

    @property
    def stages(self) -> int:
        """Calls of the denoiser in a full step."""
        return self.order

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """One step from time t to time s; there is no memory."""
        process, estimate = denoiser.process, denoiser(x, t)
        begin, end = process.level(t), process.level(s)
        if 0 in (begin.alpha, begin.sigma, end.alpha, end.sigma):
            return process.posterior(estimate, t, s, eta=0.0).mean, None
        values, reached = [estimate.reading(self.prediction)], 0.0
        for u in (1 / 2,) if self.order == 2 else (1 / 3, 2 / 3):
            r = float(process.schedule.time_at(begin.log_snr + u * (end.log_snr - begin.log_snr)))
            part = transfer(begin, process.level(r), self.prediction)
            nodes = [0.0, reached / u] if reached else [0.0]
            factors = [part.c * weight for weight in weights(nodes, part.z)]
            inner = carried(process, x, part, factors, values, self.prediction)
            values, reached = [values[0], denoiser(inner, r).reading(self.prediction)], u
        whole = transfer(begin, end, self.prediction)
        factors = [whole.c * weight for weight in weights([0.0, reached], 0.0 if self.order == 2 else whole.z)]
        return carried(process, x, whole, factors, values, self.prediction), None
