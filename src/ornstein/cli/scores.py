"""Scores as `ornstein bench` shows them: a table to read, a record for JSON and CSV, pictures."""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ornstein.cli.common import say
from ornstein.errors import ConfigurationError

if TYPE_CHECKING:
    from ornstein.accuracy import Score


def table(head: str, scores: "Iterable[Score]", calls: Sequence[int]) -> str:
    """A row a sampler: its error at each number of calls, the order seen between the last two, microseconds a step."""
    from ornstein.accuracy import seen_order

    named: dict[str, dict[int, Score]] = {}
    for score in scores:
        named.setdefault(score.name, {})[score.asked] = score
    width = max(map(len, named), default=0)
    lines = [head, " " * width + "".join(f"{c:>9}" for c in calls) + f"{'order':>8}{'declared':>10}{'us/step':>9}"]
    for name, row in named.items():
        cells = "".join(f"{row[c].median:9.2g}" if c in row else " " * 9 for c in calls)
        last = list(row.values())[-2:]
        cost = 1e6 * min(score.seconds for score in row.values())
        order = seen_order(last)
        shown = f"{order:8.1f}" if math.isfinite(order) else f"{'-':>8}"
        lines.append(f"{name:{width}}{cells}{shown}{last[-1].sampler.order:10}{cost:9.0f}")
    return "\n".join(lines)


def record(where: str | None, score: "Score") -> dict[str, Any]:
    """A score for JSON and CSV."""
    named = {} if where is None else {"target": where}
    return {
        **named,
        "name": score.name,
        "sampler": str(score.sampler),
        "asked": score.asked,
        "calls": score.calls,
        "median": score.median,
        "rms": score.rms,
        "us_per_step": round(1e6 * score.seconds, 1),
    }


def paths(name: Path, targets: Iterable[str]) -> tuple[Path, list[Path]]:
    """NAME.csv, and a picture for each target, or NAME.png for a run."""
    endings = [f"-{where.replace(', ', '-')}" for where in targets if where] or [""]
    return name.with_name(f"{name.name}.csv"), [name.with_name(f"{name.name}{ending}.png") for ending in endings]


def refuse_existing(name: Path, targets: Iterable[str]) -> None:
    """Raise `ConfigurationError`, before anything is computed, where files cannot be written; say where pictures will not be."""
    table, pictures = paths(name, targets)
    for path in (table, *pictures):
        if path.exists():
            raise ConfigurationError(f"{path} exists already; give another name")
    if name.parent.exists() and not os.access(name.parent, os.W_OK):
        raise ConfigurationError(f"{name.parent} cannot be written to; give another place: --out NAME")
    if not _pictures():
        say('note: no pictures will be written, which need matplotlib: pip install "ornstein[plots]"')


def _pictures() -> bool:
    from ornstein.plots.curves import require_matplotlib

    try:
        require_matplotlib()
    except ConfigurationError:
        return False
    return True


def write(name: Path, rows: "Sequence[tuple[str, Score]]", title: str) -> list[str]:
    """The table, and a picture for each target where matplotlib is installed."""
    import csv

    from ornstein.files import atomic_write
    from ornstein.plots.curves import lines_picture

    targets = list(dict.fromkeys(where for where, _ in rows))
    table, pictures = paths(name, targets)
    records = [record(where, score) for where, score in rows]
    with atomic_write(table) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    if not _pictures():
        return [str(table)]
    for where, path in zip(targets, pictures, strict=True):
        named: dict[str, tuple[list[float], list[float]]] = {}
        here = [score for place, score in rows if place == where]
        for score in here:
            x, y = named.setdefault(score.name, ([], []))
            x.append(score.asked)
            y.append(score.median)
        what = "error of the standard deviation" if where.endswith("law") else "error (median)"
        head = f"{where}{', ' if where else ''}{title}"
        lines_picture(named, path, ("network calls", what), head, sorted({score.asked for score in here}))
    return [str(path) for path in (table, *pictures)]
