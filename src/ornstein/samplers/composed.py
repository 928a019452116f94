"""Samplers made of samplers."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.samplers.base import Sampler


@dataclass(frozen=True)
class PredictorCorrector:
    """A step of the predictor from t to s, then one of the corrector at s (Song et al. 2021, algorithm 1).

    predictor: any sampler that goes from t to s. corrector: one that stays at a noise level: `Langevin`,
    `UnderdampedLangevin`, for categories `CTMCCorrector`. At the data there is nothing to correct, and the predictor's step
    is all.

    The corrector's memory is kept; the predictor's is dropped. A multistep memory holds x_0 on the trajectory as it was,
    and the corrector moves the state off it: its slope would take that move for a change of x_0 in time, an error of the
    order of eps a step, larger than what the slope mends. So a multistep predictor makes its first step each time, of order 1.
    `order` is the predictor's under an `exact` corrector, else 0: an unadjusted one leaves its own bias on any grid.
    """

    predictor: Sampler
    corrector: Sampler

    stochastic = True

    def __post_init__(self) -> None:
        if not getattr(self.corrector, "corrects", False):
            raise ConfigurationError(
                f"got corrector={self.corrector}, expected a sampler that stays at its noise level: "
                "Langevin() or UnderdampedLangevin(), for categories CTMCCorrector()"
            )
        if getattr(self.predictor, "corrects", False):
            raise ConfigurationError(
                f"got predictor={self.predictor}, expected a sampler that goes from one time to another: "
                "EulerMaruyama(), Ancestral(), Heun()"
            )

        both = {getattr(part, "needs", "score") for part in (self.predictor, self.corrector)} - {"any"}
        if len(both) > 1:
            raise ConfigurationError(
                f"got predictor={self.predictor} with corrector={self.corrector}, one of numbers and one of categories; expected "
                "both of one kind: CTMCCorrector() for categories, Langevin() for numbers"
            )

    @property
    def order(self) -> int:
        """Order of accuracy in the number of steps; a one-step predictor's is at most its calls."""
        if not getattr(self.corrector, "exact", False):
            return 0
        return self.predictor.order if self.predictor.order <= self.predictor.stages else 1

    @property
    def needs(self) -> str:
        """What the corrector needs, which knows one kind of states."""
        return getattr(self.corrector, "needs", "score")

    @property
    def stages(self) -> float:
        """Calls of the denoiser in a full step."""
        return self.predictor.stages + self.corrector.stages

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: Any, rng: Noise
    ) -> tuple[Tensor, Any]:
        """One step from time t to time s; the memory is the corrector's."""
        if not s < t:
            raise ConfigurationError(f"got a step from t = {t:g} to s = {s:g}, expected a falling grid")
        x, _ = self.predictor.step(denoiser, x, t, s, None, rng)
        if denoiser.process.is_data(s):
            return x, memory
        return self.corrector.step(denoiser, x, s, s, memory, rng)
