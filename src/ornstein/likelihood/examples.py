"""What a likelihood is asked of: examples, checked once, then given out in batches in model units.

On a plain denoiser x is in model units: floats, the codes of a process of categories, or a dict of parts. On a `Model` (a
denoiser with a `scaling`) x is raw data, and so is the unit of the answer: nats of the model's units become those of the data
by adding `log_det`, or are those of a probability of levels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.conditions import Condition, count_of, moved, rows_of
from ornstein.denoisers import DenoiserLike, check_condition
from ornstein.errors import ConfigurationError, DataError
from ornstein.integrate import RungeKutta, Solver
from ornstein.processes.categorical import Categorical
from ornstein.samplers.base import device_of

BATCH_SIZE = 256


@dataclass(frozen=True)
class Batch:
    """Examples `rows` of the whole: x0 (b, *d), or a dict of parts, in model units and the condition, on the denoiser's
    device."""

    rows: range
    x0: Any
    cond: Condition | None


@dataclass(frozen=True)
class Examples:
    """n examples x with their condition (n, ...) and, where they are raw data, their scaling. Made by `Examples.of`.

    categories: K where they are codes of categories in model units.
    """

    x: Any
    cond: Condition | None
    scaling: Any
    device: torch.device
    categories: int | None = None

    @classmethod
    def of(cls, denoiser: DenoiserLike, x: Any, cond: Condition | None, in_model_units: bool = False) -> "Examples":
        """The examples a denoiser is asked about. Raises `DataError` where x cannot be data of that denoiser.

        in_model_units: x is that even where the denoiser is a `Model`, as latents are.
        """
        scaling = None if in_model_units else getattr(denoiser, "scaling", None)
        if isinstance(x, dict):  # a state of parts, in model units
            return cls(x, cond, None, device_of(denoiser))
        x = torch.as_tensor(x)
        if not len(x) or x.ndim < 2:
            raise DataError(f"got x of shape {tuple(x.shape)}, expected (n, ...) with at least one example")
        if cond is not None and count_of(cond) != len(x):
            raise ConfigurationError(f"got {count_of(cond)} rows of cond for {len(x)} examples, expected {len(x)}")
        check_condition(denoiser, cond)
        categories = None
        if scaling is None and isinstance(denoiser.process, Categorical):
            categories = denoiser.process.categories
            _check_levels(x, categories)
        elif scaling is None:
            _check_model_units(x, getattr(denoiser, "shape", None))
        elif scaling.levels is not None:
            _check_levels(x, scaling.levels)
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise DataError("x holds NaN or infinity, expected finite numbers")
        return cls(x, cond, scaling, device_of(denoiser), categories)

    def __len__(self) -> int:
        return count_of(self.x)

    @property
    def levels(self) -> int | None:
        """The number of levels of quantised data, or of categories; None for continuous data and for floats in model units."""
        return self.categories if self.scaling is None else self.scaling.levels

    @property
    def dims(self) -> int:
        """Components of an example."""
        if self.scaling is not None:
            return int(self.scaling.dims)
        return sum(part[0].numel() for part in (self.x.values() if isinstance(self.x, dict) else (self.x,)))

    def log_det(self) -> float:
        """What turns nats of a density in model units into nats of the data's: 0 where x is in model units, or has levels.

        Raises `ConfigurationError` where the data have no density.
        """
        return 0.0 if self.scaling is None or self.levels is not None else self.scaling.log_det()

    def batches(self, size: int | None) -> Iterator[Batch]:
        """The examples in order, `size` at a time. Raises `DataError` where raw data are not of the scaling's shape."""
        size = BATCH_SIZE if size is None else size
        if size < 1:
            raise ConfigurationError(f"got batch_size={size}, expected at least 1")
        for begin in range(0, len(self), size):
            rows = range(begin, min(begin + size, len(self)))
            part = rows_of(self.x, slice(rows.start, rows.stop))
            x0 = part if self.scaling is None else self.scaling.encode(part)
            cond = rows_of(self.cond, slice(rows.start, rows.stop))
            yield Batch(rows, moved(x0, self.device), moved(cond, self.device))


def _check_model_units(x: Tensor, shape: tuple[int, ...] | None) -> None:
    if not x.is_floating_point():
        raise DataError(f"got x of type {x.dtype}, expected floats in model units; pass the loaded Model for raw data")
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise DataError(f"got x of shape {tuple(x.shape)}, expected (n, {', '.join(map(str, shape))})")


def _check_levels(x: Tensor, levels: int) -> None:
    low, high = float(x.min()), float(x.max())
    whole = not x.is_floating_point() or bool((x == x.round()).all())
    if not (whole and low >= 0 and high < levels):
        raise DataError(
            f"got {'' if whole else 'fractional '}values from {low:g} to {high:g}, expected the whole numbers 0 to "
            f"{levels - 1} of the model's data of {levels} levels"
        )


def usual_solver(examples: Examples) -> Solver:
    """Tolerances of 1e-5 in float64; 1e-4 in float32, where tighter ones resolve the rounding of a network, at many calls."""
    tolerance = 1e-5 if examples.scaling is None and examples.x.dtype == torch.float64 else 1e-4
    return RungeKutta(tolerance, tolerance)
