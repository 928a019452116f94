"""A run folder: train what its configuration says, with a log, validation, sample grids and checkpoints on the way.

RUN/config.json   RUN/log.jsonl   RUN/checkpoints/step-*   RUN/samples/step-*.png
"""

import dataclasses
import inspect
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from tqdm import tqdm

from ornstein import checkpoints, networks
from ornstein.config import GROUPS, RunOptions, seconds, with_options
from ornstein.data import Dataset, load_dataset, require_labels, to_uint8_images
from ornstein.denoisers import Denoiser
from ornstein.devices import autocast, pick_device
from ornstein.errors import CheckpointError, ConfigurationError, NumericalError
from ornstein.files import atomic_write
from ornstein.noise import Noise, fold
from ornstein.objectives import (
    EDMWeighting,
    LogNormalSigma,
    MinSNR,
    Objective,
    Simple,
    Stratified,
    UniformSteps,
    UniformTime,
)
from ornstein.plots.grids import image_grid
from ornstein.processes.gaussian import Gaussian
from ornstein.samplers import sample
from ornstein.schedules import Schedule
from ornstein.specs import construct, parse, with_arguments
from ornstein.training import Batches, Record, Run

LOG = "log.jsonl"
MEASURED = 50  # steps from which a budget learns the speed
HELD_OUT = 1024  # examples of the validation loss
VALIDATION, GRID, INITIAL = 3, 4, 5  # streams of the seed
GRID_SIZE, GRID_CALLS = 64, 20


class Experiment:
    """A run with its folder. Made by `create` or `resume`; `train` does the work."""

    def __init__(self, folder: Path, options: RunOptions, config: dict[str, Any], dataset: Dataset, run: Run) -> None:
        self.folder, self.options, self.config, self.dataset, self.run = folder, options, config, dataset, run
        self.labelled = options.model.condition == "labels"
        self.last: dict[str, float] = {}
        self._interrupted = False

    def train(self, progress: bool = True) -> dict[str, Any]:
        """Train to the last step, or until interrupted (Ctrl-C finishes the step and saves).

        Returns a summary: run, steps, loss, validation_loss, seconds, images_per_s, stopped. On a loss that is not
        finite the last good state is saved and `NumericalError` raised.
        """
        began, first, durations = time.perf_counter(), self.run.count, []
        bar = tqdm(total=self.run.total, initial=first, unit="step", disable=None if progress else True, leave=False)
        self.run.denoiser.train()
        try:
            with _on_interrupt(self._interrupt):
                for record, duration in self._steps():
                    durations.append(duration)
                    self._report(record, durations, began, bar)
        except NumericalError as error:
            raise NumericalError(f"{error}; the last good state is saved in {self.save()}") from None
        finally:
            bar.close()
        self.save()
        stopped = "interrupted" if self._interrupted else "finished"
        if stopped == "finished" and self.options.report.validate_every:
            self._validate()
        made = (self.run.count - first) * self.options.training.batch_size
        return {
            "run": str(self.folder),
            "steps": self.run.count,
            "loss": self.last.get("loss"),
            "validation_loss": self.last.get("validation_loss"),
            "seconds": round(time.perf_counter() - began, 3),
            "images_per_s": round(made / max(sum(durations), 1e-9), 1),
            "precision": self.run.precision,
            "stopped": stopped,
        }

    def _steps(self) -> Iterator[tuple[Record, float]]:
        """Step after step until the total or an interruption: the record, and the seconds it took with its data."""
        train, labels = self.dataset.train, self.dataset.train_labels if self.labelled else None
        order, batch = Batches(len(train), self.options.training.seed), self.options.training.batch_size
        while not self._interrupted and (self.run.total is None or self.run.count < self.run.total):
            tick = time.perf_counter()
            rows = order.rows(self.run.seen, batch)
            x0 = self.dataset.scaling.encode(train[rows]).to(self.run.device)
            record = self.run.step(x0, None if labels is None else labels[rows].to(self.run.device))
            yield record, time.perf_counter() - tick

    def save(self) -> Path:
        """Write a checkpoint of the present state; returns its path."""
        try:
            return checkpoints.save(self.folder, *self.run.state(), keep=self.options.report.keep)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {self.run.count} could not be written to {self.folder} ({error.strerror}); "
                "the ones before it are whole"
            ) from None

    def _interrupt(self) -> None:
        self._interrupted = True

    def _report(self, record: Record, durations: list[float], began: float, bar: tqdm) -> None:
        report, count, last = self.options.report, record.count, record.count == record.total
        self.last["loss"] = record.loss
        speed = self.options.training.batch_size / median(durations[-MEASURED:])
        bar.update(1)
        bar.set_postfix_str(f"loss {record.loss:.4f}, {speed:.0f} images/s", refresh=False)
        if report.log_every and (count % report.log_every == 0 or last):
            line = {"loss": record.loss, "gradient_norm": record.gradient_norm, "learning_rate": record.learning_rate}
            self._log({"step": count, **line, "images_per_s": round(speed, 1)})
        if record.total is None:
            self._fix_total(durations, began)
            bar.total = self.run.total
        if report.validate_every and count % report.validate_every == 0 and not last:
            self._validate()
        if report.grid_every and (count % report.grid_every == 0 or last):
            self._grid()
        if report.save_every and count % report.save_every == 0:
            self.save()

    def _fix_total(self, durations: list[float], began: float) -> None:
        """Turn the budget into a number of steps: what is left of it over the time of a step and its share of reports."""
        budget, spent = seconds(self.options.training.budget or ""), time.perf_counter() - began
        if len(durations) < MEASURED and spent + durations[-1] < budget:
            return
        report, step = self.options.report, fmean(durations[5:] or durations)  # the first ones prepare kernels
        for every, action in ((report.validate_every, self._validate), (report.grid_every, self._grid)):
            tick = time.perf_counter()
            if every and spent < budget / 10:
                action()
                step += (time.perf_counter() - tick) / every
        left = budget - (time.perf_counter() - began)
        self.run.total = self.run.count + max(0, int(left / step))

    def _validate(self) -> None:
        """The loss on held-out data, by the averaged weights, at noise that is the same every time."""
        held, labels, losses = len(self.dataset.test), self.dataset.test_labels if self.labelled else None, []
        n = min(held, HELD_OUT)
        spread = torch.arange(n) * held // n  # held-out data may be sorted by class
        with self.run.averaged() as denoiser, torch.no_grad(), autocast(self.run.precision, self.run.device):
            for first in range(0, n, 256):
                rows = spread[first : first + 256]
                rng = Noise(fold(self.options.training.seed, VALIDATION), rows.tolist(), self.run.device)
                cond = None if labels is None else labels[rows].to(self.run.device)
                x0 = self.dataset.scaling.encode(self.dataset.test[rows]).to(self.run.device)
                losses.append(self.run.objective(denoiser, x0, cond, rng).per_example)
        self.last["validation_loss"] = torch.cat(losses).double().mean().item()
        self._log({"step": self.run.count, "validation_loss": self.last["validation_loss"]})

    def _grid(self) -> None:
        """A picture grid of samples, where the data are images."""
        if not self.dataset.scaling.is_image:
            return
        classes = len(self.dataset.classes)
        cond = torch.arange(GRID_SIZE) % classes if self.labelled else None
        with self.run.averaged() as denoiser, autocast(self.run.precision, self.run.device):
            seed = fold(self.options.training.seed, GRID)
            x = sample(denoiser, n=GRID_SIZE, calls=GRID_CALLS, cond=cond, seed=seed).x
        images = to_uint8_images(self.dataset.scaling, self.dataset.scaling.decode(x.cpu()))
        image_grid(images, self.folder / "samples" / f"step-{self.run.count:08d}.png")

    def _log(self, line: dict[str, Any]) -> None:
        with open(self.folder / LOG, "a") as file:
            file.write(json.dumps(line) + "\n")


def create(options: RunOptions, folder: Path) -> Experiment:
    """A new run in `folder`. Raises `ConfigurationError` where it exists, or where options and data do not fit."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(
            f"{folder} exists already; give another name with --out, or go on with it: ornstein train --resume {folder}"
        )
    if options.training.budget is not None and options.training.steps is not None:
        raise ConfigurationError("got both steps and budget, expected one of them")
    if options.training.budget is not None:
        seconds(options.training.budget)
    elif options.training.steps is None:
        options = with_options(options, {"steps": 5000})
    dataset = load_dataset(options.data, seed=options.training.seed)
    denoiser = build(options, dataset)
    model = checkpoints.describe(denoiser, dataset.scaling, dataset.classes)
    run, labels = Run(denoiser, objective(options), options.training), dataset.train_labels
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "test": len(dataset.test),
        "class_counts": [] if labels is None else torch.bincount(labels, minlength=len(dataset.classes)).tolist(),
    }
    config = {"options": dataclasses.asdict(options), "data": data, "model": model, "total": options.training.steps}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.write_config(folder, config)
    return Experiment(folder, options, config, dataset, run)


def resume(folder: Path) -> Experiment:
    """A run as its newest checkpoint left it, or from its start where none was written yet.

    Raises `CheckpointError` where it is damaged or its data have changed.
    """
    config = checkpoints.read_config(folder)
    changes = {k: v for group in GROUPS for k, v in config["options"][group].items()}
    options = with_options(RunOptions(config["options"]["data"]), changes)
    dataset = load_dataset(options.data, seed=options.training.seed)
    if dataset.fingerprint != config["data"]["fingerprint"]:
        raise CheckpointError(
            f"the data in {options.data} are not those of the run {folder}: their fingerprint differs"
        )
    saved = bool(checkpoints.checkpoints(folder))  # if not, it starts again: first weights are a function of the seed
    denoiser = checkpoints.rebuild(config["model"])[0] if saved else build(options, dataset)
    run = Run(denoiser.to(pick_device(options.training.device)), objective(options), options.training)
    if saved:
        run.restore(*checkpoints.read(folder))
    _cut_log(folder, run.count)
    return Experiment(folder, options, config, dataset, run)


def build(options: RunOptions, dataset: Dataset) -> Denoiser:
    """The denoiser that the options describe for a data set, with fresh weights that are a function of the seed."""
    shape = dataset.scaling.shape
    classes = 0
    if options.model.condition == "labels":
        require_labels(dataset)
        classes = len(dataset.classes)
    text = options.model.network
    if text == "auto":
        text = "UNet" if len(shape) in (2, 3) else "MLP"
    maker = getattr(networks, parse(text).name, None)
    takes = () if maker is None else inspect.signature(maker).parameters
    known = {"shape": shape, "channels": shape[0], "dims": len(shape) - 1, "classes": classes}
    facts = {name: value for name, value in known.items() if name in takes}
    torch.manual_seed(fold(options.training.seed, INITIAL))
    network = construct(with_arguments(text, facts), torch.nn.Module)
    process = Gaussian(construct(options.model.schedule, Schedule))
    denoiser = Denoiser(network, process, options.model.parametrization, sigma_data=dataset.scaling.sigma_data)
    denoiser.shape = shape
    return denoiser.to(pick_device(options.training.device))


def objective(options: RunOptions) -> Objective:
    """The objective that the options describe."""
    times = construct(options.objective.times, (UniformTime, UniformSteps, LogNormalSigma, Stratified))
    return Objective(times, construct(options.objective.weighting, (Simple, EDMWeighting, MinSNR)))


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, oldest first; one cut short by a crash is passed over."""
    path, lines = folder / LOG, []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def _cut_log(folder: Path, step: int) -> None:
    """Drop the lines of the log beyond a step: a resumed run writes them again."""
    lines = [line for line in read_log(folder) if line.get("step", 0) <= step]
    with atomic_write(folder / LOG) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


@contextmanager
def _on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` on the first Ctrl-C, in place of the KeyboardInterrupt that a second one raises."""
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        action()

    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
