"""Ancestral sampling: draw x_s from the process's own posterior. DDPM at eta = 1, DDIM at eta = 0."""

from dataclasses import dataclass, replace

from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise

VARIANCES = ("beta-tilde", "beta", "learned")


@dataclass(frozen=True)
class Ancestral:
    """x_s ~ q(x_s | x_t, x_0 = estimate.x0), with noise scaled by eta (Song et al. 2021; paper 001 eq. 42 corrected).

    On all T points of a table schedule, eta = 1 is DDPM and eta = 0 is DDIM.

    variance, of the step of eta = 1: "beta-tilde" = Var(x_s | x_t, x_0), right for data at a point; "beta" = Var(x_t | x_s),
        right for data N(0, I); "learned" = between the two as the denoiser says (paper 001 eq. 44), which must have learned
        it; None = learned where the denoiser has, else beta-tilde. A step to sigma = 0 draws no noise.
    """

    eta: float = 1.0
    variance: str | None = None

    needs = "any"
    order = 1
    stages = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigurationError(f"got eta={self.eta}, expected 0 (DDIM) to 1 (DDPM)")
        if self.variance not in (None, *VARIANCES):
            raise ConfigurationError(f"got variance={self.variance!r}, expected None or one of {', '.join(VARIANCES)}")
        if self.variance is not None and self.eta != 1:
            raise ConfigurationError(
                f"got variance={self.variance!r} with eta={self.eta}, expected eta=1 (DDPM), whose variance it is"
            )

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return self.eta > 0

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """One step from time t to time s; there is no memory."""
        estimate = denoiser(x, t)
        if self.variance == "learned" and estimate.fraction is None:
            raise ConfigurationError(
                "got variance='learned' and a denoiser that has not learned one; expected "
                "Denoiser(..., variance='learned'), or 'beta-tilde' or 'beta'"
            )
        if self.variance == "beta":
            estimate = replace(estimate, fraction=x.new_ones(()))
        elif self.variance == "beta-tilde":
            estimate = replace(estimate, fraction=None)
        return denoiser.process.posterior(estimate, t, s, self.eta).sample(rng), None
