"""Curves drawn with characters, for a terminal or a pipe. Imports no torch and no numpy.

A cell of one character holds 2 x 4 dots in Braille, so a chart of 60 x 8 characters has 120 x 32 dots. Where the output
knows ASCII alone, or several curves must be told apart without colours, a cell holds one mark: * for the first curve.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TextIO

from ornstein.logs import Points

BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # the bit of each dot of a cell, row by row
MARKS = "*o+x#@"
COLOURS = (36, 33, 35, 32, 34, 31)  # cyan, yellow, magenta, green, blue, red
LABELS = 9  # characters for the numbers beside the axis


@dataclass(frozen=True)
class Style:
    """What the output can show: characters beyond ASCII, colours."""

    unicode: bool = True
    colour: bool = False

    @classmethod
    def of(cls, stream: TextIO | None = None) -> "Style":
        """The style of an output, stdout by default: colours for a terminal alone, ASCII where the locale is C."""
        stream = stream or sys.stdout
        environment = os.environ
        # Python reads and writes UTF-8 in the C locale (PEP 538), whatever the terminal can show: so ask the user's words.
        locale = environment.get("LC_ALL") or environment.get("LANG") or ""
        try:
            "⣿│".encode(stream.encoding or "ascii")
            unicode = locale not in ("C", "POSIX")
        except (UnicodeError, LookupError):
            unicode = False
        plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
        return cls(unicode, stream.isatty() and not plain)


def moving_mean(points: Points, count: int) -> Points:
    """y_i = mean of the last `count` values up to i, fewer at the start; values that are not finite do not count."""
    finite = [point for point in points if math.isfinite(point[1])]
    smooth: Points = []
    before = [0.0] * count
    # A window is the end of one block of `count` values and the start of the next: sums of both, with no differences, in
    # which one huge value would wipe out the digits of those after it.
    for first in range(0, len(finite), count):
        block = finite[first : first + count]
        for place, ((step, _), total) in enumerate(zip(block, accumulate(y for _, y in block), strict=True)):
            smooth.append((step, (total + before[place]) / min(count, first + place + 1)))
        before = [*list(accumulate(y for _, y in reversed(block[1:])))[::-1], 0.0]
    return smooth


def chart(
    curves: dict[str, Points], title: str, width: int, height: int, style: Style, logarithmic: bool = False
) -> list[str]:
    """Curves by name over their steps, as height + 2 lines of `width` visible characters: title, plot, steps.

    logarithmic: the vertical axis may be logarithmic, and is where all values are positive and span more than a decade.
    """
    shown = {name: [p for p in points if math.isfinite(p[1])] for name, points in curves.items()}
    every = [point for points in shown.values() for point in points]
    columns, bar = max(4, width - LABELS - 2), "│" if style.unicode else "|"
    if not every:
        margin = " " * (LABELS + 1) + bar
        body = [_fit(f"{margin} nothing yet" if row == height // 2 else margin, width) for row in range(height)]
        return [_fit(title, width), *body, " " * width]
    low, high = min(y for _, y in every), max(y for _, y in every)
    log = logarithmic and low > 0 and high > 10 * low
    dots = style.unicode and (style.colour or len(shown) == 1)
    down = 4 if dots else 1
    across = columns * (2 if dots else 1)
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    cells: dict[tuple[int, int], tuple[int, int]] = {}  # by row and column, the curve on top and the dots of all
    for index, points in enumerate(shown.values()):
        places = [(_place(x, first, last, across), _place(y, high, low, height * down, log)) for x, y in points]
        for x, y in _joined(places):
            place = (y // 4, x // 2) if dots else (y, x)
            bits = cells.get(place, (index, 0))[1]
            cells[place] = index, bits | BRAILLE[y % 4][x % 2]
    share = 1 - (height // 2 * down + (down - 1) / 2) / max(1, height * down - 1)  # of the way up, in the middle row
    middle = low * (high / low) ** share if log else low + (high - low) * share
    labels = {height // 2: middle, 0: high, height - 1: low} if high > low else {height // 2: low}
    lines = [_head(title + (", log" if log else ""), list(shown), width, style)]
    for row in range(height):
        label = f"{labels[row]:.3g}" if row in labels else ""
        drawn = (_cell(cells.get((row, column)), dots, style) for column in range(columns))
        lines.append(f"{label:>{LABELS}} {bar}{''.join(drawn)}")
    start, end = str(first), str(last) if last > first else ""
    return [*lines, _fit(" " * (LABELS + 2) + start + end.rjust(columns - len(start)), width)]


def table(rows: Sequence[Sequence[str]], title: str, width: int, height: int) -> list[str]:
    """Rows of text with the columns aligned, as height + 2 lines of `width` characters.

    Too many rows stand in two halves side by side; what is beyond is left out.
    """
    if len(rows) > height + 1:
        half = -(-len(rows) // 2)
        blank = [""] * len(rows[0])
        rows = [[*a, *b] for a, b in zip(rows[:half], [*rows[half:], blank][:half], strict=True)]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(sizes[0]), *(c.rjust(n) for c, n in zip(row[1:], sizes[1:], strict=True))])
        for row in rows
    ]
    lines = [title, *(f"  {line}" for line in lines or ["nothing yet"])][: height + 2]
    return [_fit(line, width) for line in [*lines, *[""] * (height + 2 - len(lines))]]


def _place(value: float, start: float, end: float, count: int, log: bool = False) -> int:
    """The number, 0 .. count - 1, of the dot for a value between start and end."""
    if start == end:
        return count // 2
    if log:
        value, start, end = math.log(value), math.log(start), math.log(end)
    # Halved, so that the difference of two values near the largest float is finite.
    return round((value / 2 - start / 2) / (end / 2 - start / 2) * (count - 1))


def _joined(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The dots of the straight lines from place to place."""
    dots = places[:1]
    for (x, y), (to_x, to_y) in pairwise(places):
        count = max(abs(to_x - x), abs(to_y - y))
        dots += [(x + round((to_x - x) * i / count), y + round((to_y - y) * i / count)) for i in range(1, count + 1)]
    return dots


def _cell(cell: tuple[int, int] | None, dots: bool, style: Style) -> str:
    if cell is None:
        return " "
    index, bits = cell
    return _coloured(chr(0x2800 + bits) if dots else MARKS[index % len(MARKS)], index, style)


def _coloured(text: str, index: int, style: Style) -> str:
    return f"\x1b[{COLOURS[index % len(COLOURS)]}m{text}\x1b[0m" if style.colour else text


def _head(title: str, names: list[str], width: int, style: Style) -> str:
    """The title, and where there are several curves the mark and name of each, as far as there is room."""
    line, room = title[:width], width - len(title)
    for index, name in enumerate(names if len(names) > 1 else ()):
        mark = "●" if style.unicode and style.colour else MARKS[index % len(MARKS)]
        entry = f"  {mark} {name}"
        if len(entry) > room:
            break
        line, room = line + _coloured(entry, index, style), room - len(entry)
    return line + " " * max(0, room)


def _fit(text: str, width: int) -> str:
    return text[:width].ljust(width)
