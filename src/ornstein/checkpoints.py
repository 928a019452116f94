"""Checkpoints: safetensors and JSON, never pickle; written whole or not at all; checked when read.

    RUN/config.json                               what the model is: options, data, scaling, network, process
    RUN/prior.safetensors                         the base of the process, where it is not N(0, I)
    RUN/checkpoints/step-00001000/weights.safetensors    network, averages, optimiser
    RUN/checkpoints/step-00001000/state.json             counters, and the sums by which both files are checked

A folder is written under a temporary name and renamed, so a checkpoint is either there in full or not there.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.classifiers import Classifier
from ornstein.conditions import Condition
from ornstein.data import Conditioning
from ornstein.denoisers import TrainedDenoiser
from ornstein.descriptions import AnyScaling, describe, rebuild
from ornstein.errors import CheckpointError, ConfigurationError
from ornstein.files import atomic_write, discard
from ornstein.logs import CONFIG, read_config
from ornstein.schedules.base import Time
from ornstein.training import load_network

WEIGHTS, STATE = "weights.safetensors", "state.json"

__all__ = [
    "Model",
    "checkpoints",
    "describe",
    "load",
    "load_classifier",
    "place",
    "read",
    "rebuild",
    "save",
    "write_config",
]


@dataclass(frozen=True)
class Model:
    """A trained denoiser with the scaling of its data: what `load` returns.

    It stands in for its denoiser in model units; `sample` gives its samples in raw units.
    """

    denoiser: TrainedDenoiser
    scaling: AnyScaling | None
    classes: tuple[str, ...]
    config: dict[str, Any]
    step: int
    ema: float | None = None
    """Which of the run's averages these weights are, by its length."""
    conditioning: Conditioning | None = None
    """How raw conditions that are arrays become those of the network, where it was trained on such."""

    @property
    def process(self) -> Any:
        """The forward process of the denoiser."""
        return self.denoiser.process

    @property
    def shape(self) -> Any:
        """The shape d of one example in model units, of a state of parts a dict of them."""
        return self.denoiser.shape

    def __call__(self, x_t: Any, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Any:
        """The denoiser's estimate, in model units."""
        return self.denoiser(x_t, t, cond, keep)

    def labels(self, n: int) -> Tensor:
        """Classes of n samples, (n,), in the proportions of the training data: that of sample i is a function of i alone.

        The multiples of the golden ratio, modulo 1, are spread evenly at every n; each is read as a place in the classes.
        """
        counts = torch.tensor(self.config["data"]["class_counts"], dtype=torch.float64)
        places = (torch.arange(n, dtype=torch.float64) + 0.5) * ((5**0.5 - 1) / 2) % 1
        return torch.searchsorted(counts.cumsum(0) / counts.sum(), places, right=True).clamp(max=len(counts) - 1)

    def parameters(self) -> Any:
        """The parameters of the network."""
        return getattr(self.denoiser, "parameters", lambda: iter(()))()  # an exact denoiser has none


def save(folder: Path, tensors: dict[str, Tensor], counters: dict[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint of step counters["step"] into folder/checkpoints; keep the newest `keep`. Returns its path.

    Raises `CheckpointError` where it cannot be written (a full disk); those before it are then untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = place(folder, counters["step"])
    if path.exists():
        return path
    try:
        with atomic_write(path) as temporary:
            temporary.mkdir()
            save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, temporary / WEIGHTS)
            body = {"counters": counters, "weights_sha256": _sum_of(temporary / WEIGHTS)}
            (temporary / STATE).write_text(json.dumps({**body, "state_sha256": _sum_of_json(body)}, indent=1))
    except (OSError, SafetensorError) as error:
        kept = checkpoints(folder)
        whole = f"{kept[-1].name} and those before it are whole" if kept else "there is none before it"
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path.name} could not be written to {path.parent} ({reason}); {whole}") from None
    with suppress(OSError):  # what cannot be removed takes room, and harms nothing
        for old in checkpoints(folder)[: -max(1, keep)]:
            discard(old)
    return path


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / "checkpoints" / f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"))


def read(folder: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and counters of the newest checkpoint of a run, checked against their sums.

    Raises `CheckpointError` where there is none, or where it was cut short or altered; the message names the one before.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = checkpoints(folder)
    if not found:
        raise CheckpointError(f"no checkpoint in {folder / 'checkpoints'}; expected a run that was saved at least once")
    newest = found[-1]
    before = (
        f"; remove {newest} to go back to {found[-2].name}" if len(found) > 1 else "; it is the only one of this run"
    )
    try:
        state = json.loads((newest / STATE).read_text())
        body = {name: state[name] for name in ("counters", "weights_sha256")}
        if state["state_sha256"] != _sum_of_json(body):
            raise CheckpointError(f"{newest / STATE} was altered: its checksum does not match{before}")
        if body["weights_sha256"] != _sum_of(newest / WEIGHTS):
            raise CheckpointError(f"{newest / WEIGHTS} was cut short or altered: its checksum does not match{before}")
        return load_file(newest / WEIGHTS, device=str(device)), body["counters"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{newest} cannot be read ({type(error).__name__}: {error}){before}") from None


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write RUN/config.json, whole or not at all."""
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=1))


def load(run: Path | str, device: torch.device | str = "cpu", ema: float | None = None) -> Model:
    """The model of a run, with the averaged weights of its newest checkpoint, in evaluation mode.

    ema: the length of the average, one of those the run was trained with; by default the one of least validation loss.
    Raises `CheckpointError` where the run is not there, or is damaged, `ConfigurationError` on a length it does not have, and
    for a classifier. Nothing of what is read is executed.
    """
    config = read_config(Path(run))
    model, options = config["model"], config["options"]
    if model.get("kind") == "classifier":
        raise ConfigurationError(
            f"{run} is a classifier, which draws nothing; expected the run of a model, guided by it: ornstein sample RUN "
            f"--classifier {run} --guidance 2 --class NAME (in Python load_classifier)"
        )
    denoiser, scaling, step, ema = _weights_of(Path(run), config, device, ema)
    if options["model"]["condition"] != "none":
        denoiser.label_dropout = options["training"]["label_dropout"]
    saved = model.get("conditioning")
    conditioning = None if saved is None else Conditioning.from_dict(saved)
    return Model(denoiser, scaling, tuple(model["classes"]), config, step, ema, conditioning)


def load_classifier(run: Path | str, device: torch.device | str = "cpu", ema: float | None = None) -> Classifier:
    """The classifier of a run of `ornstein train-classifier`, as `load` loads a model, with its `classes` and `scaling`.

    Raises `CheckpointError` and `ConfigurationError` as `load` does, and for a run that is no classifier.
    """
    config = read_config(Path(run))
    if config["model"].get("kind") != "classifier":
        raise ConfigurationError(
            f"{run} is a model to be sampled, expected a classifier: train one by ornstein train-classifier {run}"
        )
    classifier, scaling, _, _ = _weights_of(Path(run), config, device, ema)
    assert isinstance(classifier, Classifier)
    classifier.classes, classifier.scaling = tuple(config["model"]["classes"]), scaling
    return classifier


def _weights_of(
    folder: Path, config: dict[str, Any], device: torch.device | str, ema: float | None
) -> tuple[TrainedDenoiser, AnyScaling | None, int, float]:
    """The denoiser of a run with one of its averages, in evaluation mode; its scaling, step and the length of the average."""
    tensors, counters = read(folder)
    denoiser, scaling = rebuild(config["model"], folder)
    ema, lengths = counters["ema"] if ema is None else ema, config["options"]["training"]["ema"]
    if ema not in lengths:
        raise ConfigurationError(f"got ema={ema:g}, expected one of {', '.join(f'{x:g}' for x in lengths)} of this run")
    load_network(denoiser.network, tensors, f"average.{ema:g}")
    denoiser.to(device).eval()
    return denoiser, scaling, int(counters["step"]), ema


def _sum_of(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def _sum_of_json(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
