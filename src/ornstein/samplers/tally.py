"""The count of network evaluations: taken where they are made, in the innermost denoisers, never declared by what wraps them.

A guided denoiser calls another on a doubled batch, or two of them, or one only at some noise levels. So the denoisers within a
`Wrapper` count the rows they are asked about, and the rows over those of the batch are its evaluations. Anything else is
asked as it is, and counts once a call: a copy of it might not be what its maker expects.
"""

import copy
from typing import Any

from torch import Tensor

from ornstein.conditions import Condition, count_of
from ornstein.denoisers import Wrapper
from ornstein.processes.gaussian import Estimate
from ornstein.schedules.base import Time


class Tally:
    """Rows that innermost denoisers were asked about."""

    rows = 0


class _Innermost:
    """A denoiser that wraps none, adding its rows to a tally."""

    def __init__(self, denoiser: Any, tally: Tally) -> None:
        self.denoiser, self.tally = denoiser, tally

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        self.tally.rows += count_of(x_t)
        return self.denoiser(x_t, t, cond, keep)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)


def counting(denoiser: Any, tally: Tally) -> Any:
    """The denoiser, in a copy of each `Wrapper` that it is made of, with what these hold replaced by ones that count."""
    if not isinstance(denoiser, Wrapper):
        return _Innermost(denoiser, tally)
    twin = copy.copy(denoiser)
    for name in denoiser.holds:
        setattr(twin, name, counting(getattr(denoiser, name), tally))
    return twin
