"""`ornstein watch`: the curves of runs, in the terminal, while they train or after."""

import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ornstein import logs
from ornstein.cli.common import Outcome, hint, parse, say
from ornstein.errors import ConfigurationError
from ornstein.plots.terminal import Style, chart, moving_mean, table

PROG = "ornstein watch"
PANELS = (  # the name in the log, the title, whether its axis may be logarithmic
    ("loss", "training loss", True),
    ("validation_loss", "validation loss", True),
    ("gradient_norm", "gradient norm", True),
    ("learning_rate", "learning rate", False),
    ("images_per_s", "images/s", False),
)
TOKENS = "tokens_per_s"  # what stands there for text
LEVELS = "loss_by_level/"
WIDE = 76  # characters from which two charts stand side by side
SHARE = 20  # curves are smoothed over one line in so many


@dataclass(frozen=True)
class Options:
    """Show the curves of a run in the terminal, or those of several runs in the same charts.

    Loss, validation loss, gradient norm, learning rate and speed over the steps; the loss at each noise level (times t
    from 0, data, to 1, noise); the time left.

    For example:
    - ornstein watch runs/digits-1 --follow
    - ornstein watch runs/digits-1 runs/digits-2
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN ...]", **hint())] = ()
    """The run folders."""
    follow: Annotated[bool, arg(**hint())] = False
    """Draw again as the log grows, until the runs end or Ctrl-C; where stdout is no terminal, a line on stderr each time."""
    every: float = 3.0
    """Seconds between two looks at the log."""
    smooth: Annotated[int | None, arg(**hint("default: a twentieth of the lines"))] = None
    """Training loss and gradient norm are shown as means of the last so many lines of the log; 1 shows them as they are."""
    json: Annotated[bool, arg(**hint())] = False
    """Print one JSON object on stdout, and nothing else: all curves as they are in the log."""


@dataclass(frozen=True)
class Watched:
    """What the folder of a run says of it at one moment; `age` is the time since its last line, in seconds."""

    name: str
    curves: dict[str, logs.Points]
    step: int
    total: int | None
    batch_size: int | None
    age: float
    length: int = 1
    """Tokens of an example of text, 1 of other data."""

    @property
    def ended(self) -> bool:
        """Whether all steps are made."""
        return self.total is not None and self.step >= self.total

    @property
    def images_per_s(self) -> float | None:
        """The speed in the last line that has one."""
        speeds, tokens = self.curves.get("images_per_s"), self.curves.get(TOKENS)
        if tokens:
            return tokens[-1][1] / self.length
        return speeds[-1][1] if speeds else None

    @property
    def seconds_left(self) -> float | None:
        """(total - step) batch_size / images_per_s; None where one of them is not known."""
        if self.total is None or not self.batch_size or not self.images_per_s:
            return None
        return max(0, self.total - self.step) * self.batch_size / self.images_per_s


def main(argv: list[str]) -> Outcome:
    """Watch as a command line says. Raises `OrnsteinError`."""
    options: Options = parse(Options, argv, PROG)
    if not options.runs:
        raise ConfigurationError(f"got no run, expected at least one, such as {PROG} runs/digits-1")
    if options.follow and options.json:
        raise ConfigurationError("got both --follow and --json, expected one of them")
    if not 0 < options.every < float("inf") or (options.smooth is not None and options.smooth < 1):
        wrong = f"--smooth {options.smooth}" if options.every > 0 else f"--every {options.every:g}"
        raise ConfigurationError(f"got {wrong}, expected a number above 0")
    style = Style.of(sys.stdout)
    watched = _follow(options, style) if options.follow else _look(options.runs)
    result = {"runs": [_result(path, run) for path, run in zip(options.runs, watched, strict=True)]}
    return Outcome(result, page(watched, style, options.smooth), options.json)


def page(watched: list[Watched], style: Style, smooth: int | None = None, fit: bool = False) -> str:
    """The charts, the losses by noise level, and last a line on how far each run is; `fit` for the terminal's height."""
    width, height = get_terminal_size()
    ends = _ends(watched)
    if not any(run.curves for run in watched):
        return "\n".join(ends)
    pairs = width >= WIDE
    rows = -(-(len(PANELS) + 1) // (2 if pairs else 1))
    room = max(0, height - 1 - len(ends))
    tall = min(16, max(3, room // rows - 2)) if fit else 8
    wide = (width - 3) // 2 if pairs else width
    longest = max(len(run.curves.get("loss", ())) for run in watched)
    count = smooth or max(1, longest // SHARE)
    blocks = [_panel(watched, panel, count, wide, tall, style) for panel in PANELS]
    blocks.append(_levels(watched, wide, tall))
    lines = [line for block in blocks for line in block]
    if pairs:
        lines = [f"{a}   {b}" for i in range(0, len(blocks), 2) for a, b in zip(*blocks[i : i + 2], strict=True)]
    if fit:  # a line too many or too long would push the page off the screen
        lines, ends = lines[:room], [end[:width] for end in ends]
    return "\n".join([*(line.rstrip() for line in lines), *ends])


def status(run: Watched) -> str:
    """How far a run is: steps, speed, time left."""
    if not run.curves:
        return f"nothing in {logs.LOG} yet; ornstein train writes a line every --log-every steps"
    share = (
        f" of {run.total} ({100 * run.step // max(run.total, 1)} %)"
        if run.total is not None
        else ", total not known yet"
    )
    parts = [f"step {run.step}{share}"]
    if run.images_per_s is not None:
        text = TOKENS in run.curves
        parts.append(f"{run.images_per_s * run.length:.4g} {'tokens' if text else 'images'}/s")
    if run.ended:
        parts.append("finished")
    else:
        parts += [] if run.seconds_left is None else [f"{duration(run.seconds_left)} left"]
        parts.append(f"last line {duration(run.age)} ago")
    return ", ".join(parts)


def _ends(watched: list[Watched]) -> list[str]:
    """The status of each run, with its name where there are several."""
    return [f"{run.name}: {status(run)}" if len(watched) > 1 else status(run) for run in watched]


def duration(seconds: float) -> str:
    """Seconds for reading: 45 s, 12 min, 3 h 5 min, 2 d 4 h."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def _look(folders: tuple[Path, ...]) -> list[Watched]:
    """The runs as they are now. Raises `CheckpointError` where a folder is no run."""
    short = [path.resolve().name for path in folders]
    names = short if len(set(short)) == len(short) else [str(path) for path in folders]
    return [_read(path, name) for path, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Watched:
    config, lines = logs.read_config(folder), logs.read_log(folder)
    try:
        batch_size = int(config["options"]["training"]["batch_size"])
    except (KeyError, TypeError, ValueError):
        batch_size = None  # then the time left is not known
    curves = logs.series(lines)
    shape = config.get("model", {}).get("shape") if batch_size else None
    length = int(shape[0]) if isinstance(shape, list) and TOKENS in curves else 1
    return Watched(
        name,
        curves,
        step=max((line["step"] for line in lines), default=0),
        total=logs.total_steps(folder, lines, config),
        batch_size=batch_size,
        length=length,
        age=max(0.0, time.time() - (folder / logs.LOG).stat().st_mtime) if lines else 0.0,
    )


def _follow(options: Options, style: Style) -> list[Watched]:
    """Look and draw until all runs have ended or Ctrl-C; returns the last look."""
    watched, steps = _look(options.runs), [-1]
    try:
        for watched in _looks(options):
            if sys.stdout.isatty():
                # Home, then clear what is left of each line and below: clearing the whole screen first would flicker.
                lines = page(watched, style, options.smooth, fit=True).split("\n")
                print("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", end="", flush=True)
            elif steps != [run.step for run in watched]:
                say("\n".join(_ends(watched)))
                steps = [run.step for run in watched]
    except KeyboardInterrupt:
        pass  # the way to stop looking: not an error
    if sys.stdout.isatty():
        print("\x1b[H\x1b[J", end="", flush=True)
    return watched


def _looks(options: Options) -> Iterator[list[Watched]]:
    while True:
        watched = _look(options.runs)
        yield watched
        if all(run.ended for run in watched):
            return
        time.sleep(options.every)


def _panel(
    watched: list[Watched], panel: tuple[str, str, bool], count: int, width: int, height: int, style: Style
) -> list[str]:
    name, title, logarithmic = panel
    curves = {run.name: run.curves.get(name, []) for run in watched}
    if name in ("loss", "gradient_norm") and count > 1:
        curves = {key: moving_mean(points, count) for key, points in curves.items()}
        title += f", mean of {count}"
    lengths = {key.partition("/")[2]: c for key, c in watched[0].curves.items() if key.startswith(f"{name}/")}
    if len(watched) == 1 and len(lengths) > 1:  # one curve for each length of the average of the weights
        curves, title = lengths, f"{title} by average"
    return chart(curves, title, width, height, style, logarithmic)


def _levels(watched: list[Watched], width: int, height: int) -> list[str]:
    """The loss at each noise level, in the mean of its last ten lines, a column for each run."""
    names = dict.fromkeys(name for run in watched for name in run.curves if name.startswith(LEVELS))
    last = [{name: moving_mean(run.curves.get(name, []), 10)[-1:] for name in names} for run in watched]
    order = sorted(names, key=_level)
    rows = [[name.removeprefix(LEVELS), *(f"{c[name][0][1]:.4g}" if c[name] else "-" for c in last)] for name in order]
    head = [["", *(run.name for run in watched)]] if rows and len(watched) > 1 else []
    return table([*head, *rows], "loss by noise level, mean of 10", width, height)


def _level(name: str) -> tuple[float, str]:
    """The number at the end of the name of a noise level, by which levels are sorted."""
    found = re.search(r"[\d.]+$", name)
    try:
        return (float(found[0]) if found else math.inf, name)
    except ValueError:
        return (math.inf, name)


def _result(path: Path, run: Watched) -> dict[str, Any]:
    return {
        "run": str(path),
        "step": run.step,
        "total_steps": run.total,
        "finished": run.ended,
        "images_per_s": run.images_per_s,
        "seconds_left": run.seconds_left,
        "series": {k: {"steps": [s for s, _ in c], "values": [v for _, v in c]} for k, c in run.curves.items()},
    }
