"""A data set: raw training and held-out examples, their labels, and the scaling measured on the training part."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data.codes import Codes, tokens_under
from ornstein.data.scaling import Scaling
from ornstein.data.streaming import Stream, spread
from ornstein.errors import ConfigurationError, DataError, nearest
from ornstein.noise import fold

if TYPE_CHECKING:
    from ornstein.data.columns import TableScaling

_SPLIT_STREAM = 20  # keeps the split's random numbers apart from those of training and sampling under one seed
_MEASURED_ROWS, _MEASURED_BYTES = 10_000, 1 << 30  # of a stream, at most, to measure its scaling


@dataclass(frozen=True, eq=False)
class Dataset:
    """Raw examples to train on and to compare with.

    train, test: raw tensors (n, *scaling.raw_shape), or streams that read them; `test` is held out of training.
    train_labels, test_labels: int64 (n,) class indices into `classes`, or None where the data have no labels.
    train_cond, test_cond: what else is given with each example, (n, ...) as it was read: vectors of floats, uint8 images.
    classes: names of the classes, in the order of their indices.
    scaling: raw data <-> model units, measured on `train`; of text and integer codes, `Codes`.
    notes: what a user should know of how the data were read (one sentence each).
    skipped: how many examples were passed over because they could not be read; streams count theirs as they read.
    """

    name: str
    train: Tensor | Stream
    test: Tensor | Stream
    train_labels: Tensor | None
    test_labels: Tensor | None
    classes: tuple[str, ...]
    scaling: "Scaling | TableScaling | Codes"
    notes: tuple[str, ...] = ()
    skipped: int = 0
    train_cond: Tensor | None = None
    test_cond: Tensor | None = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the training examples, labels and conditions, shapes and types, and of what their codes mean (the
        names of classes, the columns of a table and their categories, a vocabulary): tells whether data are the same.

        Of a stream its `digest` stands for the examples, so the same data have another fingerprint when streamed; of
        overlapping windows the tokens under them do.
        """
        digest = hashlib.sha256()
        for examples in (self.train, self.train_labels, self.train_cond):
            if examples is not None:
                digest.update(f"{examples.dtype} {tuple(examples.shape)};".encode())
                if isinstance(examples, Tensor):
                    digest.update(tokens_under(examples).cpu().contiguous().numpy().data.cast("B"))
                else:
                    digest.update(examples.digest().encode())
        meaning = self._meaning()
        if any(meaning):
            digest.update(json.dumps(meaning).encode())
        return digest.hexdigest()

    def _meaning(self) -> list[list[Any]]:
        """Names of the classes, then of a table its columns by name with their categories, of text the vocabulary, for JSON."""
        if isinstance(self.scaling, Scaling):
            return [list(self.classes), []]
        if isinstance(self.scaling, Codes):
            vocabulary = self.scaling.vocabulary
            return [list(self.classes), [] if vocabulary is None else [vocabulary.to_dict()]]
        columns = [[column.name, getattr(column, "values", None)] for column in self.scaling.columns]
        return [list(self.classes), [*columns, getattr(self.scaling.label, "name", None)]]

    def describe(self) -> str:
        """One line: name, counts, shape, classes, sigma_data, notes; of text the windows and the vocabulary."""
        scaling = self.scaling
        if isinstance(scaling, Codes) and scaling.vocabulary is not None:
            unit = scaling.vocabulary.kind
            windows = f"{len(self.train)} training + {len(self.test)} held-out windows of {scaling.dims} {unit}"
            return "; ".join((f"{self.name}: {windows}, vocabulary of {scaling.levels} {unit}", *self.notes))
        size = " x ".join(map(str, scaling.raw_shape))
        kind = f"{size} images of {scaling.levels} levels" if scaling.is_image else f"{size} {scaling.dtype} values"
        classes = f"{len(self.classes)} classes" if self.classes else "no classes"
        if isinstance(scaling, Codes) and not scaling.is_image:
            kind = f"{size} codes of {scaling.levels} levels"
        last = "" if isinstance(scaling, Codes) else f", sigma_data {scaling.sigma_data:.4g}"
        text = f"{self.name}: {len(self.train)} training + {len(self.test)} held-out examples, {kind}, {classes}{last}"
        return "; ".join((text, *self.notes))


@dataclass(frozen=True, eq=False)
class Part:
    """Raw examples and labels as read from `source` (a file or an array in it), before they are split and scaled.

    skipped, notes: how many examples were passed over on the way here, and what to tell of it. cond: what is given with each.
    """

    x: Tensor | Stream
    labels: np.ndarray | None
    source: str
    skipped: int = 0
    notes: tuple[str, ...] = ()
    cond: Tensor | None = None

    def __post_init__(self) -> None:
        if self.cond is not None and len(self.cond) != len(self.x):
            raise DataError(
                f"{self.source}: {len(self.cond)} conditions for {len(self.x)} examples; expected one for each"
            )
        if self.labels is not None and self.labels.shape != (len(self.x),):
            raise DataError(
                f"{self.source}: labels of shape {self.labels.shape} for {len(self.x)} examples; expected one class "
                f"(an integer or a name) for each, shape ({len(self.x)},); for one-hot labels give labels.argmax(1)"
            )

    def take(self, rows: Tensor) -> "Part":
        """The examples of some rows."""
        x = self.x[rows] if isinstance(self.x, Tensor) else self.x.take(rows)
        cond = None if self.cond is None else self.cond[rows]
        return Part(x, None if self.labels is None else self.labels[rows.numpy()], self.source, cond=cond)

    def finite(self, skip_bad: bool) -> "Part":
        """The examples without NaN or inf; with `skip_bad` others are passed over, else they raise a DataError."""
        if not isinstance(self.x, Tensor):
            return self
        good, n = finite_rows(self.x, self.source, skip_bad), len(self.x)
        if len(good) == n:
            return self
        note = f"{self.source}: passed over {n - len(good)} of {n} examples, which hold NaN or inf"
        return replace(self.take(good), skipped=self.skipped + n - len(good), notes=(*self.notes, note))


def assemble(
    name: str,
    part: Part,
    test: Part | None = None,
    *,
    seed: int = 0,
    holdout: float | None = None,
    default_holdout: float = 0.1,
    levels: int | None = None,
    per_feature: bool = True,
    notes: tuple[str, ...] = (),
    scaling: Codes | None = None,
) -> Dataset:
    """Split, number the classes and measure the scaling: the way from what a file holds to a `Dataset`.

    `test` is the held-out part where the source has one of its own; else the fraction `holdout` of `part` is held out,
    drawn by `seed` with each class in proportion. The scaling of a stream is measured on at most 10,000 of its rows (and
    1 GiB), evenly spread; data of codes bring `scaling` with them. Raises DataError where too few examples remain, parts do
    not match or the data cannot be scaled; ConfigurationError for a `holdout` that makes no sense.
    """
    skipped, notes = part.skipped, (*notes, *part.notes)
    if test is not None:
        skipped, notes = skipped + test.skipped, (*notes, *test.notes)
    if test is None:
        part, test = split(part, default_holdout if holdout is None else holdout, seed)
    elif holdout is not None:
        raise ConfigurationError(
            f"{part.source} has held-out data of its own, got holdout={holdout}; leave holdout out"
        )
    if len(part.x) < 2 or len(test.x) < 1:
        raise DataError(
            f"{part.source}: {len(part.x)} training and {len(test.x)} held-out examples; expected at least 2 and 1"
        )
    if part.x.shape[1:] != test.x.shape[1:] or part.x.dtype != test.x.dtype:
        raise DataError(
            f"training examples of shape {tuple(part.x.shape[1:])} and type {part.x.dtype} ({part.source}), held-out "
            f"of {tuple(test.x.shape[1:])} and {test.x.dtype} ({test.source}); expected the same for both"
        )
    train_labels, test_labels, classes = _number_classes(part, test)
    labels = (train_labels, test_labels)
    if scaling is not None:
        return Dataset(name, part.x, test.x, *labels, classes, scaling, notes, skipped, part.cond, test.cond)
    x, note = measured_on(part.x)
    notes = (*notes, note) if note else notes
    try:
        measured = Scaling.measure(x, levels=levels, per_feature=per_feature)
    except DataError as error:
        raise DataError(f"{part.source}: {error}") from None
    return Dataset(name, part.x, test.x, *labels, classes, measured, notes, skipped, part.cond, test.cond)


def measured_on(x: Tensor | Stream) -> tuple[Tensor, str]:
    """What of the training examples the scaling is measured on, and a note where that is not all of them."""
    if isinstance(x, Tensor):
        return x, ""
    size = max(1, x.dtype.itemsize * math.prod(x.shape[1:]))
    rows = spread(len(x), min(_MEASURED_ROWS, max(2, _MEASURED_BYTES // size)))
    raw, bad = x.read(rows)
    lost = f", {bad} of which could not be read and have stand-ins" if bad else ""
    return raw, f"streamed from disk, the scaling measured on {len(rows)} of {len(x)} training examples{lost}"


def require_labels(dataset: Dataset) -> None:
    """Raise DataError where `dataset` has no labels, which a class-conditional model needs."""
    if dataset.train_labels is None:
        raise DataError(
            f"{dataset.name} has no labels, which a conditional model needs; give labels (of a table --label COLUMN, in "
            ".npz an array 'labels', in folders one subfolder a class, in zips dataset.json) or train without classes"
        )


def class_index(classes: tuple[str, ...], name: str | int) -> int:
    """Index of the class called `name`. Raises ConfigurationError, with the nearest name, where there is none."""
    if str(name) in classes:
        return classes.index(str(name))
    if not classes:
        raise ConfigurationError(f"class {str(name)!r} of data without classes; leave the class out")
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    raise ConfigurationError(f"no class {str(name)!r}{nearest(str(name), classes)}; the classes are {shown}")


def split(part: Part, fraction: float, seed: int) -> tuple[Part, Part]:
    """A part as training and held-out part: `fraction` of it, drawn by `seed`, each class in proportion, is held out.

    Raises ConfigurationError unless 0 < fraction < 1, DataError where too few examples remain.
    """
    if not 0 < fraction < 1:
        raise ConfigurationError(f"holdout={fraction}; expected the fraction to hold out of training, between 0 and 1")
    n = len(part.x)
    held = max(1, round(fraction * n))
    if n - held < 2:
        raise DataError(
            f"{part.source}: {n} examples, of which {held} would be held out; expected at least 2 to train on "
            "and 1 to hold out"
        )
    generator = torch.Generator().manual_seed(fold(seed, _SPLIT_STREAM))
    order = torch.randperm(n, generator=generator).numpy()
    if part.labels is not None:
        order = order[np.argsort(part.labels[order], kind="stable")]
    # Every (n / held)-th of the shuffled examples, sorted by class: each class in proportion within one.
    mask = np.zeros(n, dtype=bool)
    mask[order[((np.arange(held) + 0.5) * (n / held)).astype(np.int64)]] = True
    rows = torch.arange(n)
    return part.take(rows[torch.from_numpy(~mask)]), part.take(rows[torch.from_numpy(mask)])


def _number_classes(part: Part, test: Part) -> tuple[Tensor | None, Tensor | None, tuple[str, ...]]:
    if part.labels is None and test.labels is None:
        return None, None, ()
    if part.labels is None or test.labels is None:
        have, lack = (part, test) if test.labels is None else (test, part)
        raise DataError(f"{have.source} has labels and {lack.source} has none; expected labels for both or neither")
    labels = [_plain_labels(p) for p in (part, test)]
    if labels[0].dtype.kind != labels[1].dtype.kind:
        raise DataError(f"labels of type {labels[0].dtype} in {part.source}, {labels[1].dtype} in {test.source}")
    values, codes = np.unique(np.concatenate(labels), return_inverse=True)
    names = [str(v) for v in values]
    if values.dtype.kind == "U" and all(name.isdecimal() for name in names):
        # Folders named 0 .. 10 are numbers, though sorted as text 10 comes before 2.
        order = sorted(range(len(names)), key=lambda k: (int(names[k]), names[k]))
        names = [names[k] for k in order]
        codes = np.argsort(order)[codes]
    numbered = torch.from_numpy(codes.reshape(-1).astype(np.int64))
    return numbered[: len(part.x)].clone(), numbered[len(part.x) :].clone(), tuple(names)


def _plain_labels(part: Part) -> np.ndarray:
    """Labels as int64 or text."""
    labels = part.labels
    assert labels is not None
    if labels.dtype.kind in "iub":
        return labels.astype(np.int64)
    if labels.dtype.kind in "SU":
        return labels.astype(np.str_)
    if labels.dtype.kind == "f":
        wrong = ~(np.isfinite(labels) & (labels == np.trunc(labels)))
        if not wrong.any():
            return labels.astype(np.int64)
        raise DataError(
            f"{part.source}: label {labels[wrong][0]:g} in row {int(wrong.argmax())}; expected class numbers or names"
        )
    raise DataError(f"{part.source}: labels of type {labels.dtype}; expected class numbers or names")


def finite_rows(x: Tensor, source: str, skip_bad: bool = False) -> Tensor:
    """The rows of `x` without NaN or inf, int64 (m,).

    Raises DataError, with the first row and the count, where there are others, unless told to pass over them.
    """
    step = max(1, (1 << 22) // max(1, math.prod(x.shape[1:])))
    bad = torch.cat([~torch.isfinite(chunk).flatten(1).all(1) for chunk in x.split(step)])
    rows = bad.nonzero().flatten()
    if len(rows) and not skip_bad:
        raise DataError(
            f"{source}: {len(rows)} of {len(x)} examples hold NaN or inf, the first is row {int(rows[0])} (counted "
            "from 0); expected finite numbers: remove or repair these rows, or pass over them by --skip-bad"
        )
    return (~bad).nonzero().flatten()
