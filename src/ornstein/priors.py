"""The prior of a run, the base N(mu, Sigma) of its process, measured on its training data by the name of an option:

    standard         N(0, I)
    data-diagonal    mean and variances of the data
    data-full        their whole covariance, of at most 4096 dimensions
    data-rank16      16 principal directions and what they leave of the variances
    class-diagonal   means and variances of each class, N(mu(c), Sigma(c))

Its tensors are kept in RUN/prior.safetensors, whose sum is in config.json.
"""

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.data import Dataset
from ornstein.data.streaming import spread
from ornstein.errors import CheckpointError, ConfigurationError, DataError
from ornstein.files import atomic_write
from ornstein.processes import ByClass, LowRank, Normal

FILE = "prior.safetensors"
EXAMPLES = 10_000
LARGEST = 4096
KNOWN = "standard, data-diagonal, data-full, data-rank16 (or another rank), class-diagonal"

Base = Normal | ByClass


def check(prior: str, condition: str) -> None:
    """Raise `ConfigurationError` for a name that there is not, or one that needs labels where there are none."""
    if prior not in ("standard", "data-diagonal", "data-full", "class-diagonal") and not _rank(prior):
        raise ConfigurationError(f"got prior '{prior}', expected one of {KNOWN}")
    if prior == "class-diagonal" and condition != "labels":
        raise ConfigurationError(
            f"got prior class-diagonal with condition {condition}, whose base has a law for each class; expected --condition "
            "labels, or --prior data-diagonal"
        )


def measured(prior: str, condition: str, dataset: Dataset, classifies: bool = False) -> Base | None:
    """The base of that name, measured on at most 10,000 evenly spread examples of the training part, in model units.

    Raises `ConfigurationError` where name, data and condition do not fit, `DataError` where the data are too few.
    """
    check(prior, condition)
    if prior == "standard":
        return None
    dims = math.prod(dataset.scaling.shape)
    if prior == "data-full" and dims > LARGEST:
        raise ConfigurationError(
            f"got prior data-full for data of {dims} dimensions, whose covariance has {dims} x {dims} numbers; expected at "
            f"most {LARGEST}: --prior data-rank64, or data-diagonal"
        )
    if prior == "class-diagonal" and classifies:
        raise ConfigurationError(
            "got prior class-diagonal for a classifier, which is to tell the classes apart and is not told one; expected a run "
            "with --prior data-diagonal"
        )
    rows = spread(len(dataset.train), EXAMPLES)
    x = dataset.scaling.encode(dataset.train[rows])
    if prior == "class-diagonal":
        assert dataset.train_labels is not None
        return _by_class(x, dataset.train_labels[rows], len(dataset.classes))
    try:
        return Normal.measure(x, _rank(prior) or prior.removeprefix("data-"))
    except ConfigurationError as error:
        raise ConfigurationError(f"prior {prior}: {error}") from None


def _by_class(x: Tensor, labels: Tensor, classes: int) -> ByClass:
    """A diagonal law of each class; that of all where a class has fewer than 2 examples, or ones that do not vary."""
    whole, laws = Normal.measure(x), []
    for label in range(classes):
        try:
            laws.append(Normal.measure(x[labels == label]))
        except DataError:
            laws.append(whole)
    means, variances = (
        torch.stack(part) for part in zip(*((law.mean, law.variances(law.mean)) for law in laws), strict=True)
    )
    return ByClass(Normal.each(means, variances))


def describe(base: Any) -> dict[str, Any] | None:
    """What config.json says of a base: its kind, and the sum of its file; None for N(0, I).

    Raises `ConfigurationError` for one that a file cannot hold: a function of the condition.
    """
    if base is None:
        return None
    kind = "by-class" if isinstance(base, ByClass) else "normal" if isinstance(base, Normal) else None
    if kind is None or (kind == "normal" and base.one_a_row):
        raise ConfigurationError(
            "the base is a function of the condition, which a checkpoint cannot hold; expected Normal(mean, covariance), "
            "ByClass(laws), or network.state_dict() saved with safetensors"
        )
    return {"kind": kind, "sha256": hashlib.sha256(_packed(base)).hexdigest()}


def write(folder: Path, base: Any) -> None:
    """Write RUN/prior.safetensors, whole or not at all; nothing for N(0, I)."""
    if base is None:
        return
    with atomic_write(folder / FILE) as temporary:
        temporary.write_bytes(_packed(base))


def read(folder: Path | None, said: dict[str, Any] | None) -> Base | None:
    """The base that `describe` described. Raises `CheckpointError` where its file is missing, or not the one that was written."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if said is None:
        return None
    place = FILE if folder is None else folder / FILE
    try:
        content = Path(place).read_bytes()
        if hashlib.sha256(content).hexdigest() != said["sha256"]:
            raise CheckpointError(f"{place} was cut short or altered: its checksum does not match that in config.json")
        tensors = load(content)
        mean = tensors.pop("mean")
        thin = "factors" in tensors
        covariance: Any = LowRank(tensors["variances"], tensors["factors"]) if thin else next(iter(tensors.values()))
        return ByClass(Normal.each(mean, covariance)) if said["kind"] == "by-class" else Normal(mean, covariance)
    except OSError as error:
        raise CheckpointError(
            f"{place}, which holds the prior of the run, cannot be read ({error.strerror or error}); expected it as `ornstein "
            "train` wrote it"
        ) from None
    except (SafetensorError, KeyError, TypeError, StopIteration, ConfigurationError) as error:
        raise CheckpointError(f"{place} does not hold a prior ({type(error).__name__}: {error})") from None


def _packed(base: Base) -> bytes:
    from safetensors.torch import save

    law = base.laws if isinstance(base, ByClass) else base
    tensors = {"mean": law.mean.double(), **law.covariance.tensors()}
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def _rank(prior: str) -> int:
    """r of data-rank<r>; 0 for other names."""
    found = re.fullmatch(r"data-rank([1-9]\d*)", prior)
    return int(found[1]) if found else 0
