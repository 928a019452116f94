"""Curves as pictures, by matplotlib (the extra `plots`), imported where one is asked for."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ornstein.errors import ConfigurationError
from ornstein.files import atomic_write

SMALLEST = 1e-7  # of the largest value: what is below is off the picture


def require_matplotlib() -> None:
    """Raise `ConfigurationError` where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ConfigurationError('pictures of curves need matplotlib: pip install "ornstein[plots]"') from None


def curve_picture(
    x: Sequence[float],
    y: Sequence[float],
    errors: Sequence[float],
    path: str | os.PathLike[str],
    labels: tuple[str, str],
    title: str,
) -> Path:
    """Write y with a band of two errors against x as a PNG, the vertical axis logarithmic where all of y is above 0.

    `labels` name the two axes. Whole or not at all; returns the path. Raises `ConfigurationError` without matplotlib.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    low, high = ([a + sign * 2 * e for a, e in zip(y, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, alpha=0.3, linewidth=0)
    axes.plot(x, y, linewidth=1)
    if min(y) > 0:
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(min(y) / 2, max(y) * SMALLEST))
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return Path(path)


def lines_picture(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | os.PathLike[str],
    labels: tuple[str, str],
    title: str,
    ticks: Sequence[float],
) -> Path:
    """Write named lines (x, y) as a PNG, both axes logarithmic, x marked at `ticks`; names stand beside it, `labels` at the axes.

    Whole or not at all; returns the path. Raises `ConfigurationError` without matplotlib.
    """
    require_matplotlib()
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.0), layout="constrained")
    axes, colours = figure.subplots(), colormaps["tab20"]
    for i, (name, (x, y)) in enumerate(lines.items()):
        colour, marker = colours(i % colours.N), "osv^D"[i % 5]
        axes.loglog(x, y, linewidth=1.2, marker=marker, markersize=4, color=colour, label=name)
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.xaxis.minorticks_off()
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return Path(path)
