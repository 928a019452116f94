"""From where an option of training has its value: defaults, then a preset, then a TOML file, then the command line."""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from ornstein.config import GROUPS, OF_NUMBERS, TABLES, TEXTS, RunOptions, preset, with_options
from ornstein.errors import ConfigurationError, nearest

NO_PRESET = "none"
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def read_toml(path: Path) -> dict[str, Any]:
    """The options in a TOML file by name, and `data` and `preset` where they are in it.

    Names stand flat or in the tables [model], [objective], [training], [report]. Raises `ConfigurationError`, naming
    the file, on a name that is unknown (with the nearest), given twice, or of the wrong type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}), expected a TOML file of options") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    kinds, found = {"data": str, "preset": str, **_kinds()}, {}
    for table, entry in content.items():
        for name, value in entry.items() if table in GROUPS and isinstance(entry, dict) else [(table, entry)]:
            key = name.replace("-", "_")
            if key not in kinds:
                raise ConfigurationError(f"{path}: unknown option '{name}'{nearest(key, kinds) or _expected(kinds)}")
            if key in found:
                raise ConfigurationError(f"{path}: '{name}' is given twice, expected it once")
            if not _is_of(value, kinds[key]):
                raise ConfigurationError(f"{path}: got {name} = {value!r}, expected {_in_words(kinds[key])}")
            found[key] = value
    return found


def layered(
    data: str | None, preset_name: str | None, toml: dict[str, Any], process: str = "gaussian"
) -> tuple[RunOptions, str]:
    """The options that hold where the command line gives no others, and the name of the preset ("none" for none).

    Without a preset name, the preset is the one made for `data`; for a `process` of categories without what it says of numbers.
    Raises `ConfigurationError` on an unknown preset.
    """
    data = data if data is not None else toml.get("data", "")
    categories = (toml.get("process", process) if process == "gaussian" else process) != "gaussian"
    name = preset_name or toml.get("preset") or _preset_for(data, categories)
    made = {} if name == NO_PRESET else preset(name)
    if categories and "process" not in made:
        made = {key: value for key, value in made.items() if key not in OF_NUMBERS}
    changes = {key: value for key, value in toml.items() if key not in ("data", "preset")}
    options = RunOptions(data)
    for layer in (made, changes):
        options = with_options(options, exclusive(layer))
    return options, name


def exclusive(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer in which steps undoes the budget of the layer below, and the other way about."""
    if layer.get("steps") is not None and layer.get("budget") is not None:
        raise ConfigurationError("got both steps and budget, expected one of them")
    other = {"steps": "budget", "budget": "steps"}
    return {**{other[key]: None for key in layer if key in other}, **layer}


def to_toml(options: RunOptions) -> str:
    """The options as a TOML file, which `read_toml` reads back; options that are None are left out."""
    lines = [f"data = {json.dumps(options.data, ensure_ascii=False)}"]
    for group, values in asdict(options).items():
        if group in GROUPS:
            lines += ["", f"[{group}]"]
            lines += [f"{k} = {_toml_value(v)}" for k, v in values.items() if v is not None]
    return "\n".join(lines)


def _preset_for(data: str, categories: bool) -> str:
    from ornstein.data import TOYS

    if data in TOYS:
        return "toy2d"
    if data.lower().endswith(TEXTS):
        return "text"
    if data.lower().endswith(TABLES) or (data and any(Path(os.path.expanduser(data)).glob("*.parquet"))):
        return "mixed" if categories else "table"
    return "digits" if data == "digits" else NO_PRESET


def _kinds() -> dict[str, Any]:
    """The type of every option, by name; None, which TOML does not have, left out."""
    groups = get_type_hints(RunOptions)
    hints = {f.name: get_type_hints(groups[group])[f.name] for group in GROUPS for f in fields(groups[group])}
    return {name: _without_none(hint) for name, hint in hints.items()}


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Literal, tuple) or not get_args(hint):
        return hint
    return next(part for part in get_args(hint) if part is not type(None))


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_is_of(item, get_args(kind)[0]) for item in value)
    if kind is bool:
        return isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list, each {_in_words(get_args(kind)[0])}"
    return f"one of {', '.join(get_args(kind))}" if get_origin(kind) is Literal else _WORDS[kind]


def _expected(kinds: Iterable[str]) -> str:
    return f", expected one of {', '.join(kinds)}"


def _toml_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool | tuple | list) else str(value)
