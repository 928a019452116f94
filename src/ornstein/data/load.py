"""From a name or a path to a data set."""

import os
from dataclasses import replace
from pathlib import Path

from ornstein.config import TABLES, DataOptions
from ornstein.data.arrays import load_arrays
from ornstein.data.dataset import Dataset
from ornstein.data.digits import digits
from ornstein.data.folders import load_folder, load_zip
from ornstein.data.pictures import SUFFIXES
from ornstein.data.streaming import refuse_streaming, refuse_table_options
from ornstein.data.toys import TOYS, toy
from ornstein.errors import DataError, nearest

PREFIX = "hf:"
NAMES = ("digits", *TOYS)
_ACCEPTED = (
    f"{', '.join(NAMES)}, a .npy or .npz file, a {', '.join(TABLES)} table, a folder of images or of .parquet files, "
    "a .zip of images, or hf:NAME"
)


def load_dataset(
    source: str | os.PathLike[str], *, seed: int = 0, holdout: float | None = None, options: DataOptions | None = None
) -> Dataset:
    """Load the data called `source`: a built-in name ("digits" or a toy), a .npy/.npz file, a table, images.

    Tables are .csv, .csv.gz and .parquet files, and folders that hold .parquet files; images are in a folder or a
    .zip. hf:NAME, hf:NAME:CONFIG and hf:FOLDER go through Hugging Face `datasets`, over the network where need be.

    seed: draws the held-out part (and a toy's points); the same seed gives the same split.
    holdout: fraction held out of training, by default 0.2 of the digits, 1/11 of a toy, 0.1 of files that bring no
        held-out part of their own; stands in for that of `options`.
    options: how the data are read; see `ornstein.config.DataOptions`.

    A built-in name wins over a file of that name; write "./digits" for the file. Raises DataError where there is
    no such data or it cannot be trained on, ConfigurationError where options make no sense for it.
    """
    options = options or DataOptions()
    options = options if holdout is None else replace(options, holdout=holdout)
    name = os.fspath(source)
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
    return _load_path(Path(os.path.expanduser(name)), name, seed, options)


def has_columns(source: str) -> bool:
    """Whether `source` is a table, or may be one, as what is behind hf: may; options of columns fit no other data."""
    return source not in NAMES and (source.startswith(PREFIX) or _is_table(Path(os.path.expanduser(source))))


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
