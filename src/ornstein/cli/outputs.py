"""Where samples go: what is written by the name the user gives."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ornstein.config import TABLES
from ornstein.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ornstein.checkpoints import Model

LARGEST_ROW = 20  # pictures in a row of a grid with a column a class
KINDS = {
    ".npz": "arrays",
    ".npy": "array",
    ".png": "grid",
    ".txt": "text",
    ".jsonl": "lines",
    **dict.fromkeys(TABLES, "table"),
}
USUAL = {"image": ".png", "table": ".csv", "array": ".npz", "text": ".txt"}
FITS = {
    "image": ("arrays", "array", "grid", "folder"),
    "table": ("arrays", "table"),
    "array": ("arrays", "array"),
    "text": ("text", "lines", "arrays", "array"),
}
FITTING = {
    "image": "FILE.npz, FILE.png or a folder, a name without an ending, or FILE.npy",
    "table": "FILE.csv, FILE.csv.gz, FILE.parquet or FILE.npz",
    "array": "FILE.npz or FILE.npy",
    "text": "FILE.txt, FILE.jsonl (a string a line), FILE.npz or FILE.npy (tokens)",
}


def destination(out: Path | None, run: Path, model: "Model", overwrite: bool) -> Path:
    """Where to write. Raises `ConfigurationError`, before anything is drawn, where that cannot be."""
    data = _data(model)
    if data == "table" and (out is None or _kind(out) == "table"):
        from ornstein.data.columns import require_pandas

        require_pandas()
    if out is None:
        count = 1
        while (path := run / f"samples-{count}{USUAL[data]}").exists():
            count += 1
        return path
    if _kind(out) not in FITS[data]:
        what = {"image": "images", "table": "rows of a table", "array": "arrays", "text": "texts"}[data]
        raise ConfigurationError(f"got --out {out} for samples that are {what}, expected {FITTING[data]}")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigurationError(f"{out} is a folder that exists already and is not empty; give another name")
    if out.is_file() and not overwrite:
        raise ConfigurationError(f"{out} exists already; give another name, or --overwrite")
    return out


def write(path: Path, x: "Tensor", labels: "Tensor | None", model: "Model") -> None:
    """Write samples (n, *raw shape) as what the path asks for, whole or not at all."""
    kind = _kind(path)
    if kind == "arrays":
        labelled = {} if labels is None else {"labels": labels.numpy()}
        write_arrays(path, {"samples": x.numpy(), **labelled})
    elif kind == "array":
        write_arrays(path, x.numpy())
    elif kind in ("text", "lines"):
        write_texts(path, texts_of(model, x))
    elif kind == "table":
        from ornstein.data import TableScaling

        assert isinstance(model.scaling, TableScaling)
        model.scaling.write(path, x, labels)
    else:
        _write_pictures(path, x, labels, model, kind == "grid")


def texts_of(model: "Model", x: "Tensor") -> list[str]:
    """The texts of samples (n, length) of a model of text."""
    from ornstein.data import Codes

    assert isinstance(model.scaling, Codes)
    return model.scaling.text(x)


def readable(texts: list[str]) -> str:
    """Texts one below the other, each under a line that numbers it."""
    return "\n".join(f"--- {number} ---\n{text}" for number, text in enumerate(texts, start=1))


def write_texts(path: Path, texts: list[str]) -> None:
    """Write texts, whole or not at all: by a name that ends in .jsonl a JSON string a line, else to be read."""
    from ornstein.files import atomic_write

    lines = path.suffix.lower() == ".jsonl"
    content = (
        "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts) if lines else readable(texts) + "\n"
    )
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.encode(errors="surrogatepass"))


def write_arrays(path: Path, arrays: "dict[str, np.ndarray] | np.ndarray") -> None:
    """Write an .npz file, or an .npy file of one array, whole or not at all."""
    import numpy as np

    from ornstein.files import atomic_write

    with atomic_write(path) as temporary, open(temporary, "wb") as file:  # by a name, numpy would add its own ending
        if isinstance(arrays, dict):
            np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            np.save(file, arrays)


def _write_pictures(path: Path, x: "Tensor", labels: "Tensor | None", model: "Model", grid: bool) -> None:
    from ornstein.data import Codes, Scaling, to_uint8_images
    from ornstein.plots.grids import image_folder, image_grid

    assert isinstance(model.scaling, Scaling | Codes)
    images = to_uint8_images(model.scaling, x)
    classes = model.classes
    if grid:
        # Classes in turn: a row each time round.
        in_turn = labels is not None and 1 < len(set(labels.tolist())) == len(classes) <= LARGEST_ROW
        image_grid(images, path, len(classes) if in_turn else None)
        return
    if not all(re.fullmatch(r"\w[\w .-]*", name) for name in classes):  # names that cannot be a folder's
        classes = tuple(map(str, range(len(classes))))
    image_folder(images, path, None if labels is None else [classes[i] for i in labels.tolist()])


def _data(model: "Model") -> str:
    """What the samples of a model are: image, table, text or array."""
    from ornstein.data import TableScaling

    scaling = model.scaling
    if scaling is None:
        return "array"
    if getattr(scaling, "vocabulary", None) is not None:
        return "text"
    return "image" if scaling.is_image else "table" if isinstance(scaling, TableScaling) else "array"


def _kind(path: Path) -> str | None:
    """What a path asks for: arrays, array, grid, text, lines, table, folder, or None."""
    if path.is_dir():
        return "folder"
    ending = next((e for e in KINDS if path.name.lower().endswith(e)), path.suffix)
    return KINDS.get(ending, None if ending else "folder")
