"""Exponential multistep: DPM-Solver++ in data prediction, DPM-Solver++(2M) at order 2 (Lu et al. 2022)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.processes.normal import Number

Memory = tuple[Number, Tensor]  # log_snr and x_0 of the last call


@dataclass(frozen=True)
class Multistep:
    """With l = log(alpha / sigma) and h = l_s - l_t, the exact solution for x_0 linear in l, its slope from the last two calls:

        x_s = (sigma_s / sigma_t) x_t - alpha_s expm1(-h) D,   D = x_0 + h / (2 h_last) (x_0 - x_0 last)

    At order 1, and on a step that touches alpha = 0 or sigma = 0, D = x_0 (which is DDIM). One call a step.
    """

    order: int = 2

    stochastic = False
    stages = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigurationError(f"got order={self.order}, expected 1 or 2")

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: Memory | None, rng: Noise
    ) -> tuple[Tensor, Memory]:
        """One step from time t to time s; the memory is (log_snr, x_0) of the last call."""
        process, estimate = denoiser.process, denoiser(x, t)
        x0 = estimate.x0
        _, sigma_t, log_snr_t = process.level(t)
        alpha_s, sigma_s, log_snr_s = process.level(s)
        if sigma_t == 0:
            return process.posterior(estimate, t, s, eta=0.0).mean, (log_snr_t, x0)
        guess, h = x0, (log_snr_s - log_snr_t) / 2
        if memory is not None and self.order == 2 and math.isfinite(h):
            guess = torch.lerp(memory[1], x0, 1 + h / (log_snr_t - memory[0]))
        if process.base is not None:
            mu = process.base.mean.to(x)
            x, guess = x - mu, guess - mu
        moved = (sigma_s / sigma_t) * x - (alpha_s * math.expm1(-h)) * guess
        return (moved if process.base is None else moved + mu), (log_snr_t, x0)
