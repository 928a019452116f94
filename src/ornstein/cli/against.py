"""The data that a trained model is held against, by `evaluate` and `likelihood`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ornstein.cli.prompting import is_categorical
from ornstein.config import TEXTS, DataOptions
from ornstein.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.data import Dataset


def against(
    model: "Model", other: str | None, unknown: "Literal['error', 'skip'] | None" = None
) -> "tuple[Dataset, str, bool]":
    """The data set (`other` by name, or that of the run), its name, and whether it is what the model was trained on.

    A text is read by the vocabulary of the model; unknown: what is done about characters that it lacks, None as in training.
    Raises `DataError` where it is of another kind.
    """
    config = model.config["options"]
    source = other or config["data"]
    options = reading(config["reading"], other)
    dataset = _loaded(model, source, options if unknown is None else replace(options, unknown=unknown))
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


def _loaded(model: "Model", source: str, options: DataOptions) -> "Dataset":
    """The data as the model takes them: codes of its vocabulary, states of categories, or numbers."""
    from ornstein.data import load_dataset
    from ornstein.data.text import load_text
    from ornstein.experiment.categories import as_states

    seed, discrete = model.config["options"]["training"]["seed"], is_categorical(model)
    vocabulary = getattr(model.scaling, "vocabulary", None)
    path = Path(source).expanduser()
    if vocabulary is not None and source.lower().endswith(TEXTS) and path.is_file():
        return load_text(path, options, vocabulary)
    if discrete and source.lower().endswith((".npy", ".npz")):
        options = replace(options, integers="codes")
    dataset = load_dataset(source, seed=seed, options=options)
    return as_states(dataset) if discrete else dataset


def reading(saved: dict[str, Any], other: str | None) -> DataOptions:
    """How the data are read: as in training; of other data, what was said of that run's own data does not hold."""
    from ornstein.data.load import has_columns

    own = DataOptions(**saved)
    if other is None:
        return own
    label = own.label if has_columns(other) else ""
    if not other.lower().endswith(TEXTS):
        usual = DataOptions()
        own = replace(own, length=usual.length, vocabulary=usual.vocabulary)
    return replace(own, stream="auto", holdout=None, label=label, numeric="standardise", integers="numbers")


def held_out_labels(model: "Model", dataset: "Dataset") -> Any:
    """The classes of the held-out examples, by the model's own names. Raises `DataError` where the data lack them."""
    if dataset.test_labels is None or dataset.classes != model.classes:
        raise DataError(f"{dataset.name} lacks the classes of the model, which it needs; give other data")
    return dataset.test_labels


def condition_of(model: "Model") -> str:
    """What the model was trained to be told: none, labels or arrays."""
    return model.config["options"]["model"]["condition"]


def held_out_conditions(model: "Model", dataset: "Dataset", rows: "Tensor") -> "Tensor | None":
    """The conditions of held-out examples by their rows, as the network takes them: classes, or arrays encoded as in training.

    None for a model without conditions. Raises `DataError` where the data lack them.
    """
    condition = condition_of(model)
    if condition == "none":
        return None
    if condition == "labels":
        return held_out_labels(model, dataset)[rows]
    if dataset.test_cond is None:
        raise DataError(
            f"{dataset.name} has no conditions, which the model needs; expected an array 'cond' beside the examples"
        )
    assert model.conditioning is not None
    return model.conditioning.encode(dataset.test_cond[rows])


def typical_conditions(model: "Model", n: int) -> "Tensor | None":
    """Conditions of n samples as they are in the data of the run: classes by their shares, or those of held-out examples."""
    import torch

    if condition_of(model) == "labels":
        return model.labels(n)
    if condition_of(model) == "none":
        return None
    dataset, _, _ = against(model, None)
    return held_out_conditions(model, dataset, torch.arange(n) * len(dataset.test) // n)
