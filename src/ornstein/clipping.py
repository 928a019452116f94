"""Estimates kept within the range of the data: denoiser -> denoiser, off unless wrapped. Only for data that have a range.

A clipped estimate is no longer the posterior mean: samples change, their likelihoods are those of another model.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.denoisers import DenoiserLike, Wrapper
from ornstein.errors import ConfigurationError
from ornstein.processes.gaussian import Estimate
from ornstein.schedules.base import Time


class Clipped(Wrapper):
    """x_0 clamped to [low, high]; with `quantile`, dynamic thresholding (Saharia et al. 2022, section 2.3):

        s = max(q, half),  x_0 <- middle + clamp(x_0 - middle, -s, s) half / s

    where q is that quantile of |x_0 - middle| within an example, and middle -+ half are low and high.

    Args:
        denoiser: what is wrapped, a `Model` too: low and high are then those of its raw levels.
        low, high: the range of the data in model units; by default that of the model's scaling.
        quantile: in (0, 1), 0.995 in the paper; None to clamp.

    Raises `ConfigurationError` where the data have no range, and on one that is empty.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        low: float | None = None,
        high: float | None = None,
        quantile: float | None = None,
    ) -> None:
        if (low is None) != (high is None):
            raise ConfigurationError(f"got low={low}, high={high}, expected both or neither")
        if low is None or high is None:
            low, high = _range_of(denoiser)
        if not low < high:
            raise ConfigurationError(f"got low={low}, high={high}, expected low < high")
        if quantile is not None and not 0 < quantile < 1:
            raise ConfigurationError(f"got quantile={quantile}, expected a number between 0 and 1, as 0.995, or None")
        super().__init__(denoiser)
        self.low, self.high, self.quantile = low, high, quantile

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        """The estimate whose x_0 lies within the range."""
        estimate = self.denoiser(x_t, t, cond, keep)
        clipped = estimate.process.estimate(x_t, t, x0=self._within(estimate.x0))
        return replace(clipped, fraction=estimate.fraction)

    def _within(self, x0: Tensor) -> Tensor:
        if self.quantile is None:
            return x0.clamp(self.low, self.high)
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        centred = x0 - middle
        size = (
            centred.abs().flatten(1).to(torch.promote_types(x0.dtype, torch.float32))
        )  # quantile knows no half precision
        most = torch.quantile(size, self.quantile, dim=1).clamp(min=half)
        most = most.to(x0).reshape(-1, *(1,) * (x0.ndim - 1))
        return middle + torch.clamp(centred, -most, most) * (half / most)


def _range_of(denoiser: DenoiserLike) -> tuple[float, float]:
    """The least and the greatest level of a model's data, in model units."""
    scaling = getattr(denoiser, "scaling", None)
    levels = getattr(scaling, "levels", None)
    if scaling is None or levels is None:
        raise ConfigurationError(
            "got a denoiser of data without a range; expected low= and high= in model units, or a Model of images of levels"
        )
    raw = torch.tensor([0.0, levels - 1.0], dtype=torch.float64)
    ends = (raw[:, None] - torch.tensor(scaling.shift)) * torch.tensor(scaling.scale)
    return float(ends[0].min()), float(ends[1].max())
