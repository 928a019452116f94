"""From a name or a path to a data set."""

import os
from dataclasses import replace
from pathlib import Path

from ornstein.config import TABLES, TEXTS, DataOptions
from ornstein.data.arrays import load_arrays
from ornstein.data.dataset import Dataset
from ornstein.data.digits import digits
from ornstein.data.folders import load_folder, load_zip
from ornstein.data.levels import check_levels, requantised
from ornstein.data.pictures import SUFFIXES
from ornstein.data.streaming import refuse_streaming, refuse_table_options
from ornstein.data.text import load_text
from ornstein.data.toys import TOYS, toy
from ornstein.data.vocabulary import Vocabulary
from ornstein.errors import ConfigurationError, DataError, nearest

PREFIX = "hf:"
NAMES = ("digits", *TOYS)
_ACCEPTED = (
    f"{', '.join(NAMES)}, a .npy or .npz file, a {', '.join(TABLES)} table, a {' or '.join(TEXTS)} text, a folder of "
    "images or of .parquet files, a .zip of images, or hf:NAME"
)


def load_dataset(
    source: str | os.PathLike[str],
    *,
    seed: int = 0,
    holdout: float | None = None,
    options: DataOptions | None = None,
    vocabulary: Vocabulary | None = None,
) -> Dataset:
    """Load the data called `source`: a built-in name ("digits" or a toy), a .npy/.npz file, a table, a text, images.

    Tables are .csv, .csv.gz and .parquet files, and folders that hold .parquet files; texts are .txt and .txt.gz files;
    images are in a folder or a .zip. hf:NAME, hf:NAME:CONFIG and hf:FOLDER go through Hugging Face `datasets`, over the
    network where need be.

    seed: draws the held-out part (and a toy's points); the same seed gives the same split. Of text the end is held out.
    holdout: fraction held out of training, by default 0.2 of the digits, 1/11 of a toy, 0.1 of files that bring no
        held-out part of their own; stands in for that of `options`.
    options: how the data are read; see `ornstein.config.DataOptions`.
    vocabulary: that of a model, for a text to compare it with; it stands in for that of `options`.

    A built-in name wins over a file of that name; write "./digits" for the file. Raises DataError where there is
    no such data or it cannot be trained on, ConfigurationError where options make no sense for it.
    """
    options = options or DataOptions()
    options = options if holdout is None else replace(options, holdout=holdout)
    name = os.fspath(source)
    _refuse_foreign_options(name, options)
    if options.levels is None:
        return _load(name, seed, options, vocabulary)
    check_levels(options.levels)
    return requantised(_load(name, seed, options, vocabulary), options.levels)


def _load(name: str, seed: int, options: DataOptions, vocabulary: Vocabulary | None) -> Dataset:
    if name in NAMES:
        refuse_streaming(name, options)
        refuse_table_options(name, options)
    if name == "digits":
        return digits(seed, options.holdout)
    if name in TOYS:
        return toy(name, seed, options.holdout)
    if name.startswith(PREFIX):
        from ornstein.data.hub import load_hub

        return load_hub(name, seed, options)
    path = Path(os.path.expanduser(name))
    if path.is_file() and path.name.lower().endswith(TEXTS):
        refuse_streaming(name, options)
        refuse_table_options(name, options)
        return load_text(path, options, vocabulary)
    return _load_path(path, name, seed, options)


def has_columns(source: str) -> bool:
    """Whether `source` is a table, or may be one, as what is behind hf: may; options of columns fit no other data."""
    return source not in NAMES and (source.startswith(PREFIX) or _is_table(Path(os.path.expanduser(source))))


def _refuse_foreign_options(name: str, options: DataOptions) -> None:
    """Raise ConfigurationError where `options` speak of text or of integer arrays, and the data are no such file."""
    lower, usual = name.lower() if name not in NAMES and not name.startswith(PREFIX) else "", DataOptions()
    if not lower.endswith((".npy", ".npz")) and options.integers != usual.integers:
        raise ConfigurationError(
            f"{name}: got --integers {options.integers}, expected a .npy or .npz file of integers: leave it out"
        )
    if lower.endswith(TEXTS) and options.levels is not None:
        raise ConfigurationError(f"{name}: got --levels {options.levels} for text, expected images: leave it out")
    for option in () if lower.endswith(TEXTS) else ("length", "vocabulary"):
        if getattr(options, option) != getattr(usual, option):
            raise ConfigurationError(
                f"{name}: got --{option} {getattr(options, option)}, expected a text, {' or '.join(TEXTS)}: leave it out"
            )


def _is_table(path: Path) -> bool:
    return path.name.lower().endswith(TABLES) if path.is_file() else any(path.glob("*.parquet"))


def _load_path(path: Path, name: str, seed: int, options: DataOptions) -> Dataset:
    if _is_table(path):
        from ornstein.data.tables import load_table

        return load_table(path, seed, options)
    if path.exists():
        refuse_table_options(str(path), options)
    if path.is_dir():
        return load_folder(path, seed, options)
    suffix = path.suffix.lower()
    if not path.exists():
        if suffix or len(path.parts) != 1:
            raise DataError(f"{path} does not exist; expected {_ACCEPTED}")
        raise DataError(f"no data called {name!r}{nearest(name, NAMES)}; expected {_ACCEPTED}")
    if suffix in (".npy", ".npz"):
        refuse_streaming(str(path), options)
        return load_arrays(path, seed, options)
    if suffix == ".zip":
        return load_zip(path, seed, options)
    if suffix in SUFFIXES:
        raise DataError(f"{path} is a single image; expected a folder of images: give the folder it is in")
    raise DataError(f"{path} is of no kind that can be read; expected {_ACCEPTED}")
