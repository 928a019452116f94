"""The errors ornstein raises on purpose: each says what it got, what it expected and how to mend it.

All are subclasses of `OrnsteinError`, which the command line turns into one line on stderr and exit status 2.
"""

import difflib
from collections.abc import Iterable
from typing import Any


class OrnsteinError(Exception):
    """Something the user can mend."""


class ConfigurationError(OrnsteinError, ValueError):
    """Objects or options that cannot work together."""


class DataError(OrnsteinError, ValueError):
    """Data that cannot be trained on or compared with."""


class CheckpointError(OrnsteinError, RuntimeError):
    """A run or checkpoint that cannot be read or written."""


class DistributedError(OrnsteinError, RuntimeError):
    """A process of several that was lost."""


class NumericalError(OrnsteinError, RuntimeError):
    """A computation that left the finite numbers; `last` is what it had before, where that is kept."""

    def __init__(self, message: str, last: Any = None) -> None:
        super().__init__(message)
        self.last = last


def nearest(name: str, known: Iterable[str]) -> str:
    """The ending of an error message that suggests the known name nearest to `name`, or an empty string."""
    known = list(known)
    matches = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    return next((f"; did you mean '{k}'?" for k in known if k.lower() in matches), "")
