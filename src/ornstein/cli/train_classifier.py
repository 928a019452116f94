"""`ornstein train-classifier`: a classifier of noisy data for a run, which `ornstein sample --classifier` guides it by."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ornstein.cli.common import Outcome, hint, parse
from ornstein.cli.train import free_name, trained
from ornstein.config import restored, with_options
from ornstein.errors import CheckpointError, ConfigurationError, DataError

PROG = "ornstein train-classifier"
USUAL = 2000
LEVELS = (0.0, 0.5, 1.0, 2.0)  # sigma / alpha at which accuracy is told
TIMES = "Stratified(LogNormalSigma(mean=0.0, std=1.6))"  # about the levels at which classes part, whatever the schedule
KEPT = {"UNet": ("widths", "blocks", "attention", "patch"), "MLP": ("width", "depth")}
DROPOUT = 0.2


@dataclass(frozen=True)
class Options:
    """Train a classifier p_t(class | x_t) on the data of RUN, at all levels of the noise of its process, into a run folder.

    It guides samples of RUN towards a class, whether RUN was trained on labels or not. Ctrl-C saves, and `ornstein train
    --resume` goes on.

    For example:
    - ornstein train-classifier runs/digits-1
    - ornstein train-classifier runs/digits-1 --budget 2m --network "UNetEncoder(widths=(32, 64), blocks=1)"
    """

    run: Positional[Path]
    """The run folder of the model: its data must have labels."""
    out: Annotated[Path | None, arg(metavar="CRUN", **hint("default: RUN-classifier-1, RUN-classifier-2, ..."))] = None
    """The run folder to make; one that exists is never written over."""
    network: Annotated[str | None, arg(metavar="CALL", **hint("default: of the size of the run's"))] = None
    """UNetEncoder for images and series, "UNetEncoder(widths=(64, 128), patch=2)", "MLPEncoder(width=256, depth=3)"."""
    steps: Annotated[int | None, arg(**hint(f"default: {USUAL}"))] = None
    """Optimiser steps in all."""
    budget: Annotated[str | None, arg(**hint())] = None
    """Wall-clock time in place of --steps: 90s, 10m, 2h."""
    batch_size: Annotated[int | None, arg(**hint("default: the run's"))] = None
    """Examples per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay: classifiers overfit before denoisers do."""
    device: Annotated[str | None, arg(**hint("default: the run's"))] = None
    """Where to train: auto, cpu, cuda, cuda:1, mps."""
    json: Annotated[bool, arg(**hint())] = False
    """Print one JSON object on stdout, and nothing else."""


def main(argv: list[str]) -> Outcome:
    """Train a classifier as a command line says. Raises `OrnsteinError`."""
    options: Options = parse(Options, argv, PROG)
    if options.steps is not None and options.budget is not None:
        raise ConfigurationError("got both --steps and --budget, expected one of them")
    from ornstein import checkpoints, experiment
    from ornstein.parallel import join

    config = checkpoints.read_config(options.run)
    _check(options.run, config)
    folder = options.out or _beside(options.run)
    settings = with_options(restored(config["options"]), _changes(options, config))
    group = join(settings.training.device)
    made = experiment.prepare(settings, group.same(folder), group)
    if made.config["data"]["fingerprint"] != config["data"]["fingerprint"]:
        raise CheckpointError(
            f"the data in {settings.data} are not those of the run {options.run}: their fingerprint differs; expected the data "
            "it was trained on, for their scaling must be one"
        )
    made.config["guides"] = str(options.run)
    experiment.begin(made)
    outcome = trained(made, options.json)
    found = _accuracy(made) if group.main else {}
    head, _, follow = outcome.text.rpartition("\n")
    levels = ", ".join(f"{100 * share:.1f} % at {level:g}" for level, share in found.items())
    text = f"{head}\nheld-out examples named right, by sigma / alpha: {levels}\n{follow}"
    return replace(
        outcome,
        result={**outcome.result, "accuracy": {f"{level:g}": share for level, share in found.items()}},
        text=text,
    )


def _check(run: Path, config: dict[str, Any]) -> None:
    """Raise an error where a run is none that a classifier can guide."""
    if config["model"].get("kind") == "classifier":
        raise ConfigurationError(f"got {run}, which is a classifier, expected the run of the model that it is to guide")
    if config["options"]["model"]["condition"] == "arrays":
        raise ConfigurationError(
            f"got {run}, trained with --condition arrays, whose network takes those and no class; expected a run with "
            "--condition labels, or without a condition"
        )
    if not config["data"]["class_counts"]:
        raise DataError(
            f"got {run}, whose data ({config['options']['data']}) have no labels to tell apart; expected a run on data with "
            "labels (in .npz an array 'labels', in folders one subfolder a class, of a table --label COLUMN)"
        )


def _changes(options: Options, config: dict[str, Any]) -> dict[str, Any]:
    """The options in which the classifier's run differs from the model's."""
    chosen = {"batch_size": options.batch_size, "device": options.device}
    steps = USUAL if options.steps is None and options.budget is None else options.steps
    return {
        "objective": "classifier",
        "times": TIMES,
        "weighting": "",
        "condition": "labels",
        "network": options.network or _encoder(config["model"]["network"]),
        "steps": steps,
        "budget": options.budget,
        "learning_rate": options.learning_rate,
        "weight_decay": options.weight_decay,
        "watch": (),
        **{name: value for name, value in chosen.items() if value is not None},
    }


def _encoder(text: str) -> str:
    """The encoder of the size of a denoising network: of a UNet its way down."""
    from ornstein.specs import Spec, parse

    spec = parse(text)
    if spec.name not in KEPT:
        return "auto"
    sizes = {name: spec.kwargs[name] for name in KEPT[spec.name] if name in spec.kwargs}
    return str(Spec(f"{spec.name}Encoder", (), {**sizes, "dropout": DROPOUT}))


def _beside(run: Path) -> Path:
    run = run if run.name not in ("", "..") else run.resolve()
    return free_name(run.parent, f"{run.name}-classifier")


def _accuracy(made: Any) -> dict[float, float]:
    """The share of held-out examples, at most 1024, whose class is found from x_t, by sigma / alpha."""
    import torch

    from ornstein.noise import Noise

    held = len(made.dataset.test)
    n, right, schedule = min(held, 1024), dict.fromkeys(LEVELS, 0), made.run.denoiser.process.schedule
    with made.run.averaged() as classifier, torch.no_grad():
        for first in range(0, n, 256):
            places = range(first, min(first + 256, n))
            x0, labels = made.feed.held_out(torch.arange(places.start, places.stop) * held // n)
            for level in LEVELS:
                t = float(schedule.time_at(-2 * math.log(level))) if level else schedule.t_min
                x_t = classifier.process.noise(x0, t, Noise(0, places, made.run.device))
                right[level] += int((classifier(x_t, t).argmax(1) == labels).sum())
    return {level: count / n for level, count in right.items()}
