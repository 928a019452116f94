"""The count of network evaluations: taken where they are made, in the innermost denoisers, never declared by what wraps them.

A guided denoiser calls another on a doubled batch, or two of them, or one only at some noise levels. So the innermost ones of
a wrapped denoiser count the rows they are asked about, and the rows over those of the batch are its evaluations.
"""

import copy
from typing import Any

from torch import Tensor

from ornstein.conditions import Condition
from ornstein.processes.gaussian import Estimate, Gaussian
from ornstein.schedules.base import Time


class Tally:
    """Rows that innermost denoisers were asked about."""

    rows = 0


class _Innermost:
    """A denoiser that wraps none, adding its rows to a tally."""

    def __init__(self, denoiser: Any, tally: Tally) -> None:
        self.denoiser, self.tally = denoiser, tally

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        self.tally.rows += len(x_t)
        return self.denoiser(x_t, t, cond, keep)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)


def counting(denoiser: Any, tally: Tally) -> Any:
    """The denoiser with the innermost ones it is made of replaced, in copies of what wraps them, by ones that count."""
    found = inner(denoiser)
    if not found:
        return _Innermost(denoiser, tally)
    twin = copy.copy(denoiser)
    for name, value in found.items():
        object.__setattr__(
            twin, name, counting(value, tally)
        )  # beside a module's table of modules, which a copy shares
    return twin


def inner(denoiser: Any) -> dict[str, Any]:
    """The denoisers that are attributes of a denoiser."""
    held = {**getattr(denoiser, "__dict__", {}), **getattr(denoiser, "_modules", {})}
    return {name: value for name, value in held.items() if _is_denoiser(value)}


def _is_denoiser(value: Any) -> bool:
    return callable(value) and isinstance(getattr(value, "process", None), Gaussian)
