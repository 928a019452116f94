"""From options to an experiment: a new one, or one that goes on."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import torch

from ornstein import checkpoints, logs, networks, priors
from ornstein.classifiers import Classifier
from ornstein.config import RunOptions, restored, seconds, with_options
from ornstein.data import Codes, Conditioning, Dataset, load_dataset, require_labels
from ornstein.denoisers import Denoiser, TrainedDenoiser
from ornstein.errors import CheckpointError, ConfigurationError, DataError
from ornstein.experiment.aims import condition_of, is_classifier, is_discrete, learns_variance, objective
from ornstein.experiment.categories import as_states, build_categories
from ornstein.experiment.experiment import Experiment
from ornstein.files import held, is_leftover, sweep
from ornstein.noise import fold
from ornstein.parallel import Group
from ornstein.processes.gaussian import Gaussian
from ornstein.schedules import Schedule
from ornstein.specs import construct, parse, with_arguments
from ornstein.training import Run, check_batch
from ornstein.watching import require

ENCODERS = (networks.UNetEncoder, networks.MLPEncoder)
INITIAL = 5  # a stream of the seed


def create(options: RunOptions, folder: Path, group: Group | None = None) -> Experiment:
    """A new run in `folder`. Raises `ConfigurationError` where it exists, or where options and data do not fit."""
    made = prepare(options, folder, group)
    begin(made)
    return made


def begin(made: Experiment) -> None:
    """Make the folder of a prepared run, with its configuration. Raises `ConfigurationError` where it exists."""
    folder = made.folder
    if made.run.group.main:
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder):
            _check_free(folder)  # again: loading the data took its time
            priors.write(folder, getattr(made.run.denoiser.process, "base", None))
            checkpoints.write_config(folder, made.config)
    made.run.group.wait()


def prepare(options: RunOptions, folder: Path, group: Group | None = None) -> Experiment:
    """What `create` makes, with nothing written yet."""
    group = group or Group()
    _check_free(folder)
    group.wait()  # before the main process makes it
    if options.training.budget is not None and options.training.steps is not None:
        raise ConfigurationError("got both steps and budget, expected one of them")
    if options.training.budget is not None:
        seconds(options.training.budget)
    elif options.training.steps is None:
        options = with_options(options, {"steps": 5000})
    require(options.report.watch)
    dataset = _load(options)
    check_batch(options.training.batch_size, len(dataset.train))
    # What "auto" came to on this machine is kept: the sum that tells whether data have changed depends on it.
    options = with_options(options, {"stream": "never" if isinstance(dataset.train, torch.Tensor) else "always"})
    denoiser = build(options, dataset, group)
    conditioning = conditioning_of(options, dataset)
    model = checkpoints.describe(denoiser, dataset.scaling, dataset.classes, conditioning)
    run = Run(denoiser, objective(options, dataset.scaling, denoiser.process), options.training, group)
    labels = dataset.train_labels
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "class_counts": [] if labels is None else torch.bincount(labels, minlength=len(dataset.classes)).tolist(),
    }
    config = {"options": dataclasses.asdict(options), "data": data, "model": model, "total": options.training.steps}
    return Experiment(folder, options, config, dataset, run)


def resume(
    folder: Path, group: Group | None = None, allow_changed_data: bool = False, reading: dict[str, Any] | None = None
) -> Experiment:
    """A run as its newest checkpoint left it, or from its start where none was written yet.

    `reading`: options of reading that stand in for those of the run, such as {"skip_bad": True} or {"workers": 0}.
    Its `notes` say where it goes on otherwise than it would have: on changed data, on another number of processes.
    Raises `CheckpointError` where it is damaged, or where its data have changed and `allow_changed_data` is not given.
    """
    group, notes = group or Group(), []
    config = checkpoints.read_config(folder)
    options = with_options(restored(config["options"]), reading or {})
    dataset = _load(options)
    denoiser, scaling = checkpoints.rebuild(config["model"], folder)
    assert scaling is not None
    if dataset.fingerprint != config["data"]["fingerprint"]:
        _check_changed(dataset, scaling, config, folder, allow_changed_data)
        notes.append(f"the data in {options.data} have changed: the run goes on with them, and with its old scaling")
    dataset = dataclasses.replace(dataset, scaling=scaling)
    check_batch(options.training.batch_size, len(dataset.train))
    saved = bool(checkpoints.checkpoints(folder))  # if not, it starts again: first weights are a function of the seed
    denoiser = denoiser if saved else build(options, dataset, group, getattr(denoiser.process, "base", None))
    denoiser.to(group.device(options.training.device))
    run = Run(denoiser, objective(options, scaling, denoiser.process), options.training, group)
    if saved:
        tensors, counters = checkpoints.read(folder)
        run.restore(tensors, counters)
        before = counters["processes"]
        if before != group.size:
            notes.append(
                f"the run was saved by {before} processes and goes on with {group.size}: the same up to rounding (and "
                "dropout), no longer bit for bit"
            )
    if group.main:
        with held(folder):
            sweep(folder)
            logs.cut(folder, run.count)
    group.wait()
    return Experiment(folder, options, config, dataset, run, notes)


def build(options: RunOptions, dataset: Dataset, group: Group | None = None, base: Any = None) -> TrainedDenoiser:
    """The denoiser that the options describe for a data set, with fresh weights that are a function of the seed; a
    `Classifier` where the objective is that of one. The base is measured on the data where it is not given."""
    torch.manual_seed(fold(options.training.seed, INITIAL))
    if is_discrete(options):
        made = build_categories(options, dataset, _sizes(options, dataset)["classes"])
    else:
        made = _build_numbers(options, dataset, base)
    made.shape = dataset.scaling.shape
    return made.to((group or Group()).device(options.training.device))


def _build_numbers(options: RunOptions, dataset: Dataset, base: Any) -> TrainedDenoiser:
    """The denoiser of numbers, or the classifier."""
    scaling, learned, classifies = dataset.scaling, learns_variance(options), is_classifier(options)
    facts = {**_sizes(options, dataset), "shape": scaling.shape, "dims": len(scaling.shape) - 1}
    channels = scaling.shape[0]
    facts["channels"] = (channels, 2 * channels) if learned and not classifies else channels
    text = options.model.network
    if text == "auto":
        text = ("UNet" if len(scaling.shape) in (2, 3) else "MLP") + ("Encoder" if classifies else "")
    name = parse(text).name
    maker = getattr(networks, name, None)
    takes = () if maker is None else inspect.signature(maker).parameters
    if facts["images"] and "images" not in takes:
        raise ConfigurationError(f"got images as conditions for {name}, which takes none; expected UNet or DiT")
    network = construct(
        with_arguments(text, {name: value for name, value in facts.items() if name in takes}), torch.nn.Module
    )
    if isinstance(network, ENCODERS) != classifies:
        expected = "UNetEncoder or MLPEncoder" if classifies else "UNet, DiT or MLP"
        raise ConfigurationError(
            f"got network {name} for {'a classifier' if classifies else 'a model to be sampled'}, expected {expected}"
        )
    base = base or priors.measured(options.model.prior, condition_of(options), dataset, classifies)
    process = Gaussian(construct(options.model.schedule, Schedule), base)
    sigma_data = scaling.sigma_data if base is None else 1.0  # whitened by their own base, data have a std of 1
    if classifies:
        return Classifier(network, process, sigma_data)
    variance = "learned" if learned else None
    return Denoiser(network, process, options.model.parametrization, variance=variance, sigma_data=sigma_data)


def _sizes(options: RunOptions, dataset: Dataset) -> dict[str, Any]:
    """The arguments of networks that depend on the condition: classes, images, outputs."""
    condition = condition_of(options)
    if condition == "labels":
        require_labels(dataset)
        if is_classifier(options):
            return {"classes": 0, "images": 0, "outputs": len(dataset.classes)}
    conditioning = conditioning_of(options, dataset)
    classes = len(dataset.classes) if condition == "labels" else conditioning.vector if conditioning else 0
    images = conditioning.images if conditioning else 0
    return {"classes": classes, "images": images, "outputs": 1 + learns_variance(options)}


def conditioning_of(options: RunOptions, dataset: Dataset) -> Conditioning | None:
    """How conditions that are arrays are encoded, measured on those of training; None where there are no such."""
    return Conditioning.measure(dataset) if condition_of(options) == "arrays" else None


def _check_free(folder: Path) -> None:
    """Raise `ConfigurationError` where a folder holds something."""
    if folder.exists() and (not folder.is_dir() or not all(map(is_leftover, folder.iterdir()))):
        raise ConfigurationError(
            f"{folder} exists already; give another name with --out, or go on with it: ornstein train --resume {folder}"
        )


def _load(options: RunOptions) -> Dataset:
    reading, discrete = options.reading, is_discrete(options)
    if discrete and options.data.lower().endswith((".npy", ".npz")):
        reading = dataclasses.replace(reading, integers="codes")
    dataset = load_dataset(options.data, seed=options.training.seed, options=reading)
    if discrete:
        return as_states(dataset)
    if isinstance(dataset.scaling, Codes):
        raise ConfigurationError(
            f"got {dataset.name}, which holds codes, for a process of numbers; expected --process absorbing"
        )
    return dataset


def _check_changed(dataset: Dataset, scaling: Any, config: dict[str, Any], folder: Path, allowed: bool) -> None:
    """Raise `CheckpointError` where changed data are of another kind than those of the run, or are not wanted."""
    if not allowed:
        raise CheckpointError(
            f"the data in {config['options']['data']} are not those of the run {folder}: their fingerprint differs; give "
            "--allow-changed-data to go on with them"
        )
    classes = config["model"]["classes"]
    try:
        scaling.require_same(dataset.scaling)
        if list(dataset.classes) != classes:
            raise DataError(
                f"{len(dataset.classes)} classes; expected the {len(classes)} of the run, by the same names"
            )
    except DataError as error:
        raise CheckpointError(
            f"the data in {config['options']['data']} are of another kind than those of the run {folder}: {error}"
        ) from None
