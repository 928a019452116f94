"""The data that a trained model is held against, by `evaluate` and `likelihood`."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ornstein.config import DataOptions
from ornstein.errors import DataError

if TYPE_CHECKING:
    from ornstein.checkpoints import Model
    from ornstein.data import Dataset


def against(model: "Model", other: str | None) -> "tuple[Dataset, str, bool]":
    """The data set (`other` by name, or that of the run), its name, and whether it is what the model was trained on.

    Raises `DataError` where it is of another kind.
    """
    from ornstein.data import load_dataset

    config = model.config["options"]
    source = other or config["data"]
    dataset = load_dataset(source, seed=config["training"]["seed"], options=reading(config["reading"], other))
    if model.scaling is None:
        raise DataError(
            f"the model has no scaling, so {dataset.name} cannot be compared with; expected a run of `train`"
        )
    try:
        model.scaling.require_same(dataset.scaling)
    except DataError as error:
        raise DataError(
            f"{dataset.name} is of another kind than the data that the run was trained on: {error}"
        ) from None
    return dataset, source, dataset.fingerprint == model.config["data"]["fingerprint"]


def reading(saved: dict[str, Any], other: str | None) -> DataOptions:
    """How the data are read: as in training; of other data, what was said of that run's own data does not hold."""
    from ornstein.data.load import has_columns

    own = DataOptions(**saved)
    if other is None:
        return own
    label = own.label if has_columns(other) else ""
    return replace(own, stream="auto", holdout=None, label=label, numeric="standardise")


def held_out_labels(model: "Model", dataset: "Dataset") -> Any:
    """The classes of the held-out examples, by the model's own names. Raises `DataError` where the data lack them."""
    if dataset.test_labels is None or dataset.classes != model.classes:
        raise DataError(f"{dataset.name} lacks the classes of the model, which it needs; give other data")
    return dataset.test_labels
