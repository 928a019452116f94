"""What a run folder says in text: config.json, what was asked for, and log.jsonl, what happened. Imports no torch.

A line of the log is one JSON object with the step it was written at, such as

    {"step": 50, "loss": 0.31, "gradient_norm": 0.8, "learning_rate": 1e-3, "images_per_s": 800.0,
     "losses_by_level": {"t<0.125": 0.31, "t<0.25": 0.12}}
    {"step": 500, "validation_loss": 0.29, "validation_losses": {"0.05": 0.29, "0.1": 0.3}}
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ornstein.config import GROUPS as OPTIONS
from ornstein.errors import CheckpointError
from ornstein.files import atomic_write

CONFIG, LOG = "config.json", "log.jsonl"
GROUPS = {"losses_by_level": "loss_by_level", "validation_losses": "validation_loss"}
COUNTERS = ("step", "total")

Points = list[tuple[int, float]]


def read_log(folder: Path | str) -> list[dict[str, Any]]:
    """The lines of a run's log, oldest first; damaged ones, such as one cut short by a crash, are passed over."""
    path, lines = Path(folder) / LOG, []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except (ValueError, RecursionError):
            continue
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def append(folder: Path | str, line: dict[str, Any]) -> None:
    """Add one line to the log of a run. Raises OSError where the disk is full."""
    with open(Path(folder) / LOG, "ab+") as file:
        # A line cut short by a full disk would swallow this one.
        whole = file.tell() == 0 or (file.seek(-1, 2), file.read(1))[1] == b"\n"
        file.write((b"" if whole else b"\n") + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())  # a checkpoint that survives a power cut has its log


def cut(folder: Path | str, step: int) -> None:
    """Drop the lines of the log beyond a step, which a resumed run writes again. The file changes whole or not at all."""
    path = Path(folder) / LOG
    if path.exists():
        lines = [line for line in read_log(folder) if line["step"] <= step]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line by name, those in a group as group/name: loss, validation_loss/0.05, loss_by_level/t<0.125."""
    named: dict[str, Any] = {}
    for key, value in line.items():
        if key in GROUPS and isinstance(value, dict):
            named |= {f"{GROUPS[key]}/{name}": inner for name, inner in value.items()}
        elif key not in COUNTERS:
            named[key] = value
    return {k: float(v) for k, v in named.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def series(lines: list[dict[str, Any]]) -> dict[str, Points]:
    """The curve (step, value), ... of each scalar of the log, by name."""
    curves: dict[str, Points] = {}
    for line in lines:
        for name, value in scalars(line).items():
            curves.setdefault(name, []).append((line["step"], value))
    return curves


def total_steps(folder: Path | str, lines: list[dict[str, Any]], config: dict[str, Any]) -> int | None:
    """The steps a run makes in all: from its log, else its newest checkpoint, else its configuration.

    None where a budget has not fixed it yet, or no checkpoint was written since.
    """
    found = (total for total in _totals(Path(folder), lines, config) if isinstance(total, int))
    return next(found, None)


def _totals(folder: Path, lines: list[dict[str, Any]], config: dict[str, Any]) -> Iterator[Any]:
    """Where the total may be said, the newest first."""
    yield from (line.get("total") for line in reversed(lines))
    for place in sorted(folder.glob("checkpoints/step-*/state.json"), reverse=True):
        try:
            yield json.loads(place.read_text())["counters"]["total"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged checkpoint; `ornstein inspect` says what is wrong with it
    yield config.get("total")


def read_config(folder: Path | str) -> dict[str, Any]:
    """The content of RUN/config.json. Raises `CheckpointError` where there is none or it is not whole."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text())
        if not {"options", "model"} <= config.keys() or not set(OPTIONS) <= config["options"].keys():
            raise ValueError("it lacks options or model, or is of another version of ornstein")
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"no {CONFIG} in {folder}; expected the folder of a run, as `ornstein train` makes it"
        ) from None
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); expected the configuration of a run") from None
    return config
