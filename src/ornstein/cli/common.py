"""What the commands share: reading options, saying what was found, choosing a device."""

import contextlib
import dataclasses
import io
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ornstein.errors import ConfigurationError, nearest


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command has to say: `result` as JSON where `json` is set, else `text`; and the exit status."""

    result: dict[str, Any]
    text: str
    json: bool
    status: int = 0


def parse(kind: Any, argv: list[str], prog: str, *, default: Any = None, description: str | None = None) -> Any:
    """The dataclass `kind` filled from a command line by tyro; `default` holds the values of options not given.

    Raises `ConfigurationError`, in one line, on a command line that does not fit, and SystemExit after a help page.
    """
    import tyro
    from tyro.conf import (
        DisallowNone,
        FlagCreatePairsOff,
        OmitArgPrefixes,
        OmitSubcommandPrefixes,
        PositionalMetavarFromFieldName,
    )

    said, markers = io.StringIO(), (OmitArgPrefixes, OmitSubcommandPrefixes, FlagCreatePairsOff, DisallowNone)
    given = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(said):
            value, rest = tyro.cli(
                kind,
                prog=prog,
                args=argv,
                description=description,
                config=(*markers, PositionalMetavarFromFieldName),
                return_unknown_args=True,
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigurationError(f"{_plain(said.getvalue())}; see {prog} --help") from None
    for token in rest:
        if token.startswith("-"):
            raise ConfigurationError(
                f"unknown option '{token}' of {prog}{suggest(token, _options(kind))}; see {prog} --help"
            )
    if rest:
        raise ConfigurationError(f"{prog} got '{rest[0]}', which is one name too many; see {prog} --help")
    return value


def hint(text: str = "") -> dict[str, str]:
    """The keyword for `tyro.conf.arg` that puts `text` in the place of "(default: ...)" on the help page."""
    return {"help_behavior_hint": f"({text})" if text else ""}


def suggest(name: str, known: Iterable[str]) -> str:
    """`nearest` for names of the command line: the part before "=" and the dashes do not count."""
    plain = name.partition("=")[0].lstrip("-").replace("_", "-")
    dashes = "--" if name.startswith("-") else ""
    return nearest(plain, known).replace("mean '", f"mean '{dashes}")


def finite(value: Any) -> Any:
    """`value` with numbers that JSON does not know, NaN and infinity, replaced by None."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """A remark on the way, on stderr: stdout holds the outcome alone."""
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)


def rank() -> int:
    """The number of this process among those that a launcher started; the first alone speaks."""
    return int(os.environ.get("RANK", "0"))


def _options(kind: Any) -> Iterator[str]:
    """The names of the options of a dataclass, those of the dataclasses in it included, without dashes."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from _options(field.type)
        else:
            yield field.name.strip("_").replace("_", "-")


def _plain(box: str) -> str:
    """The message in tyro's box, which is of ASCII where stdout knows no other: what stands above its rule."""
    body: list[str] = []
    for line in re.sub(r"\x1b\[[\d;]*m", "", box).splitlines()[1:]:
        text = line.strip("│| ")
        rule = not text.strip("─-╰╯+")
        if rule and any(body):
            break
        body.append("" if rule else text)
    message = " ".join(" ".join(body).split()).partition(" Got errors:")[0].rstrip(". ")
    message = re.sub(
        r"^invalid choice (.*) for argument '(\S+)'. Expected one of \((.*)\)$", r"got \1 for \2, expected \3", message
    )
    kinds = {"INT": "a whole number", "FLOAT": "a number"}
    message = re.sub(r"\{\[(\w+) \[\1 \.\.\.\]\]\}", r"\1", message)  # some of a type
    wrong = re.fullmatch(r"Error parsing (\S+): no type matching (\w+) could be instantiated from \['(.*)'\]", message)
    if wrong:
        return f"got '{wrong[3]}' for {wrong[1]}, expected {kinds.get(wrong[2], wrong[2])}"
    if empty := re.match(r"Missing value for argument '(\S+)'", message):
        return f"{empty[1]} lacks its value"
    missing = re.fullmatch(r"Missing from .*?: (\S+) .*", message)
    return f"{missing[1]} is missing" if missing else message or "the command line cannot be read"
