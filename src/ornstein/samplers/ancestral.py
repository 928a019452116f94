"""Ancestral sampling: draw x_s from the process's own posterior. DDPM at eta = 1, DDIM at eta = 0."""

from dataclasses import dataclass

from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise


@dataclass(frozen=True)
class Ancestral:
    """x_s ~ q(x_s | x_t, x_0 = estimate.x0), with noise scaled by eta (Song et al. 2021; paper 001 eq. 42 corrected).

    On all T points of a table schedule, eta = 1 is DDPM with the variance beta-tilde and eta = 0 is DDIM.
    """

    eta: float = 1.0

    order = 1
    stages = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigurationError(f"got eta={self.eta}, expected 0 (DDIM) to 1 (DDPM)")

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return self.eta > 0

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """One step from time t to time s; there is no memory."""
        return denoiser.process.posterior(denoiser(x, t), t, s, self.eta).sample(rng), None
