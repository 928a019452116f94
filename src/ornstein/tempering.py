"""Sharper estimates of categories: denoiser -> denoiser, off unless wrapped. Their samples are of another law than the
model's."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.denoisers import DenoiserLike, Wrapper
from ornstein.errors import ConfigurationError
from ornstein.processes.categorical import Categorical, CategoricalEstimate
from ornstein.schedules.base import Time


class Tempered(Wrapper):
    """p(x_0 | x_t)^(1 / temperature) of each site, then the fewest categories whose probability is at least `top_p`,
    renormalised.

    top_p is the nucleus of Holtzman et al. (2020). What samples win in plausibility they lose in variety, and likelihoods are
    those of the model without it. Raises `ConfigurationError` for a denoiser of numbers, and unless temperature > 0 is finite
    and 0 < top_p <= 1.
    """

    def __init__(self, denoiser: DenoiserLike, temperature: float = 1.0, top_p: float = 1.0) -> None:
        if not isinstance(denoiser.process, Categorical):
            raise ConfigurationError(f"got a denoiser of {type(denoiser.process).__name__}, expected one of categories")
        if not 0 < temperature < math.inf or not 0 < top_p <= 1:
            raise ConfigurationError(
                f"got temperature={temperature}, top_p={top_p}, expected a finite temperature > 0 and top_p above 0, at most 1"
            )
        super().__init__(denoiser)
        self.temperature, self.top_p = temperature, top_p

    def __call__(
        self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None
    ) -> CategoricalEstimate:
        """The sharper estimate."""
        estimate = self.denoiser(x_t, t, cond, keep)
        log_probs = (estimate.log_probs / self.temperature).log_softmax(-1)
        if self.top_p < 1:
            ranked, order = log_probs.sort(-1, descending=True)
            before = ranked.exp().cumsum(-1) - ranked.exp()  # of the more probable ones
            dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= self.top_p)
            log_probs = log_probs.masked_fill(dropped, -torch.inf).log_softmax(-1)
        return replace(estimate, log_probs=log_probs)
