"""Grids: the times a sampler visits, as plain descending float64 tensors: laws of time alone, and `optimal`, for one denoiser."""

from typing import Any

from ornstein.grids.laws import (
    SIGMA_MAX,
    SIGMA_MIN,
    focused,
    karras,
    lands_on_data,
    leading,
    linspace,
    log_snr,
    trailing,
    uniform,
)

__all__ = [
    "SIGMA_MAX",
    "SIGMA_MIN",
    "Linearised",
    "focused",
    "karras",
    "lands_on_data",
    "leading",
    "linspace",
    "log_snr",
    "optimal",
    "trailing",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name not in ("Linearised", "optimal"):
        raise AttributeError(f"module 'ornstein.grids' has no attribute '{name}'")
    from ornstein.grids import measured  # which runs samplers, and those take their grids from here

    return getattr(measured, name)
