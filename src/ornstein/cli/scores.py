"""Scores as `ornstein bench` shows them: a table to read, a record for JSON and CSV, pictures."""

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
        lines.append(f"{name:{width}}{cells}{seen_order(last):8.1f}{last[-1].sampler.order:10}{cost:9.0f}")
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


def table_path(name: Path) -> Path:
    """NAME.csv."""
    return name.with_name(f"{name.name}.csv")


def write(name: Path, rows: "Sequence[tuple[str, Score]]", title: str) -> list[str]:
    """The table, and a picture for each target where matplotlib is installed."""
    import csv

    from ornstein.files import atomic_write
    from ornstein.plots.curves import lines_picture, require_matplotlib

    table = table_path(name)
    records = [record(where, score) for where, score in rows]
    with atomic_write(table) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    written = [str(table)]
    try:
        require_matplotlib()
    except ConfigurationError as error:
        say(f"note: no picture: {error}")
        return written
    for where in dict.fromkeys(where for where, _ in rows):
        named: dict[str, tuple[list[float], list[float]]] = {}
        here = [score for place, score in rows if place == where]
        for score in here:
            x, y = named.setdefault(score.name, ([], []))
            x.append(score.calls)
            y.append(score.median)
        ending = "-" + where.replace(", ", "-") if where else ""
        path = name.with_name(f"{name.name}{ending}.png")
        head = f"{where}{', ' if where else ''}{title}"
        ticks = sorted({score.asked for score in here})
        lines_picture(named, path, ("network calls", "error (median)"), head, ticks)
        written.append(str(path))
    return written
