"""The command line: `ornstein COMMAND ...`, one file a command.

A command's options are the fields of a frozen dataclass, read by tyro; the command returns an `Outcome`, which is
printed here. What the user can mend ends in one line on stderr and exit status 2, Ctrl-C in 130, never in a traceback.
torch is imported by the commands when they run, so that help pages come at once.
"""

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ornstein import __version__
from ornstein.cli.common import Outcome, finite, parse, rank, suggest
from ornstein.errors import ConfigurationError, OrnsteinError

COMMANDS = {
    "train": "Train a model on your data, or on built-in data, into a run folder.",
    "train-classifier": "Train a classifier of noisy data, by which a run is guided.",
    "sample": "Draw samples from a run: an .npz file, a picture grid or a folder of pictures.",
    "likelihood": "Say how probable held-out data are under a run, in nats and bits per dimension.",
    "bench": "Measure how exact every sampler is at a number of calls, on exact targets or on a run.",
    "evaluate": "Measure samples of a run against held-out data.",
    "watch": "Show the curves of runs in the terminal, while they train or after.",
    "inspect": "Say what a run is: process, network, steps, losses, checkpoints.",
}
INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default `sys.argv`). Returns the exit status: 0, 2 for an error, 130 for Ctrl-C."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as stop:  # tyro's way out after a help page
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; without this Python complains once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OrnsteinError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        return _fail(f"out of memory ({str(error)[:100]}); try a smaller --batch-size or network")


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        _help()
    if argv == ["--version"]:
        print(f"ornstein {__version__}", flush=True)
        return 0
    name = argv[0]
    if name not in COMMANDS:
        what = "the command comes first, got the option" if name.startswith("-") else "unknown command"
        raise ConfigurationError(f"{what} '{name}', expected {', '.join(COMMANDS)}{suggest(name, COMMANDS)}")
    outcome: Outcome = _module(name).main(argv[1:])
    if rank() == 0:
        print(json.dumps(finite(outcome.result), allow_nan=False) if outcome.json else outcome.text, flush=True)
    return outcome.status


def _module(name: str) -> Any:
    """The file of a command."""
    return import_module(f"ornstein.cli.{name.replace('-', '_')}")


def _help() -> None:
    """Print the page of all commands, and leave."""
    from typing import Annotated, Union

    from tyro.conf import subcommand

    pages = tuple(
        Annotated[_module(name).Options, subcommand(name, description=text)] for name, text in COMMANDS.items()
    )
    description = (
        f"ornstein {__version__}: diffusion models, trained, sampled and measured. First steps:\n"
        "- ornstein train digits\n- ornstein sample runs/digits-1\n- ornstein evaluate runs/digits-1\n\n"
        "For the options of a command: ornstein COMMAND --help. For the version: ornstein --version."
    )
    parse(Union[pages], ["--help"], "ornstein", description=description)  # noqa: UP007


def _fail(message: str, status: int = 2) -> int:
    who = f"ornstein (rank {rank()})" if "RANK" in os.environ else "ornstein"
    print(f"{who}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status
