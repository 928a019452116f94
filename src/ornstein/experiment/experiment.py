"""`Experiment`: a run with its folder, and what is reported, drawn and saved while it trains."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ornstein import checkpoints, logs
from ornstein.classifiers import Classifier
from ornstein.config import RunOptions, seconds
from ornstein.data import Codes, Conditioning, Dataset, Scaling, to_uint8_images
from ornstein.data.streaming import batches, killed_readers_named
from ornstein.devices import autocast, reason
from ornstein.errors import CheckpointError, DataError, NumericalError
from ornstein.experiment.aims import condition_of
from ornstein.experiment.feed import Feed
from ornstein.experiment.interrupts import on_interrupt
from ornstein.files import atomic_write, held
from ornstein.noise import Noise, fold
from ornstein.parallel import together
from ornstein.plots.grids import grid_picture, save_picture
from ornstein.samplers import sample
from ornstein.training import Batches, Record, Run
from ornstein.training.noise_scale import noise_scale
from ornstein.watching import Watcher, open_watchers

MEASURED = 50  # steps from which a budget learns the speed
HELD_OUT = 1024  # examples of the validation loss
VALIDATION, GRID = 3, 4  # streams of the seed
GRID_SIZE, GRID_CALLS = 64, 20
TEXTS, TEXT_CALLS = 4, 64


class Experiment:
    """A run with its folder. Made by `create` or `resume`; `train` does the work.

    `notes` are what a user should know before it goes on.
    """

    def __init__(
        self,
        folder: Path,
        options: RunOptions,
        config: dict[str, Any],
        dataset: Dataset,
        run: Run,
        notes: list[str] | None = None,
    ) -> None:
        self.folder, self.options, self.config, self.dataset, self.run = folder, options, config, dataset, run
        self.notes = notes or []
        self.condition, saved = condition_of(options), config["model"].get("conditioning")
        conditioning = None if saved is None else Conditioning.from_dict(saved)
        self.feed = Feed(dataset, self.condition, conditioning, run.device)
        text = getattr(dataset.scaling, "vocabulary", None) is not None
        self.text, self.unit, self.each = text, "tokens" if text else "images", dataset.scaling.dims if text else 1
        self.last: dict[str, float] = {}
        self._watchers: list[Watcher] = []

    def describe(self) -> str:
        """One line: where and how the run trains, as `--precision auto` and the hardware decided it."""
        run, options = self.run, self.options.training
        network = type(run.denoiser.network).__name__
        examples = self.feed.examples
        kept = f"on {examples.device}" if isinstance(examples, Tensor) else "read from disk as needed"
        parts = [
            f"{run.device}, {run.precision}{reason(options.precision, run.precision, run.device)}",
            f"{network} of {sum(p.numel() for p in run.parameters):,} parameters{', compiled' if options.compile else ''}",
            "fused AdamW",
            f"data {kept}",
            f"{run.group.size} processes" if run.group.size > 1 else f"{torch.get_num_threads()} threads",
        ]
        return "; ".join(parts)

    def train(self, progress: bool = True) -> dict[str, Any]:
        """Train to the last step, or until interrupted (Ctrl-C or SIGTERM finishes the step and saves).

        Returns a summary: run, steps, loss, validation_loss, seconds, images_per_s (of text tokens_per_s), stopped. On a loss
        that is not finite and on data that cannot be read the last good state is saved, then `NumericalError` or `DataError`
        raised.
        """
        began, first, run = time.perf_counter(), self.run.count, self.run
        with (
            held(self.folder) if run.group.main else nullcontext(),
            on_interrupt(self._interrupt),
            together(run.group, self._how_to_go_on),
        ):
            busy = self._train(began, progress)
            skipped = self.dataset.skipped + run.all_skipped()
        made = (run.count - first) * self.options.training.batch_size
        return {
            "run": str(self.folder),
            "steps": run.count,
            "loss": self.last.get("loss"),
            "validation_loss": self.last.get("validation_loss"),
            "ema": run.averages.chosen,
            "skipped": skipped,
            "seconds": round(time.perf_counter() - began, 3),
            f"{self.unit}_per_s": round(self.each * made / max(busy, 1e-9), 1),
            "device": str(run.device),
            "precision": run.precision,
            "processes": run.group.size,
            "stopped": "interrupted" if run.stopped else "finished",
        }

    def _train(self, began: float, progress: bool) -> float:
        """Train and save; returns the seconds that the steps took, without the reports between them."""
        run, durations = self.run, []
        shown = progress and run.group.main
        bar = tqdm(total=run.total, initial=run.count, unit="step", disable=None if shown else True, leave=False)
        run.denoiser.train()
        names = self.options.report.watch if run.group.main else ()
        self._watchers = open_watchers(names, self.folder, self.config, run.count)
        try:
            with killed_readers_named():
                for record, duration in self._steps():
                    durations.append(duration)
                    self._report(record, durations, began, bar)
            self.save()
        except (NumericalError, DataError) as error:
            # The other processes know nothing of data that one cannot read, and cannot save with it.
            if isinstance(error, DataError) and (run.group.size > 1 or not run.whole):
                raise
            raise type(error)(f"{error}; the last good state is saved in {self.save()}") from None
        finally:
            bar.close()
            for watcher in self._watchers:
                watcher.close()
        return sum(durations)

    def data(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Without end, from where the run stands: this process's share of each batch, in model units, and its condition."""
        run, examples = self.run, self.feed.examples
        order = Batches(len(examples), self.options.training.seed)
        plan = order.plan(run.seen, self.options.training.batch_size, run.share)
        for rows, raw, bad in batches(examples, plan, self.options.reading.workers, run.device.type == "cuda"):
            run.skipped += bad
            yield self.feed.batch(rows, raw)

    def _steps(self) -> Iterator[tuple[Record, float]]:
        """Step after step until the total or an interruption: the record, and the seconds it took with its data."""
        run, data = self.run, self.data()
        while not run.stopped and (run.total is None or run.count < run.total):
            tick = time.perf_counter()
            record = run.step(*next(data))
            yield record, time.perf_counter() - tick

    def save(self) -> Path:
        """Write a checkpoint of the present state; returns its path. All processes must ask together."""
        tensors, counters = self.run.state()
        place = checkpoints.place(self.folder, self.run.count)
        if self.run.group.main:
            checkpoints.save(self.folder, tensors, counters, keep=self.options.report.keep)
        return place

    def _how_to_go_on(self) -> str:
        saved = checkpoints.checkpoints(self.folder)
        newest = f"{saved[-1].name} is whole" if saved else "No checkpoint was written yet"
        return f"{newest}; go on with the launcher and: ornstein train --resume {self.folder}"

    def _interrupt(self) -> None:
        self.run.asked_to_stop = True
        self.run.stopped = self.run.group.size == 1  # several processes agree on it in their next step

    def _report(self, record: Record, durations: list[float], began: float, bar: tqdm) -> None:
        report, count = self.options.report, record.count
        self.last["loss"] = record.loss
        speed = self.each * self.options.training.batch_size / median(durations[-MEASURED:])
        bar.update(1)
        bar.set_postfix_str(f"loss {record.loss:.4f}, {speed:.0f} {self.unit}/s", refresh=False)
        fixed = record.total is None and self._fix_total(durations, began)
        last = count == self.run.total
        if fixed:
            bar.total = self.run.total
            self._log({"total": self.run.total})
        if report.log_every and (count % report.log_every == 0 or last):
            self._log_step(record, speed)
        if report.validate_every and (count % report.validate_every == 0 or last):
            self._validate()
        if report.noise_scale_every and (count % report.noise_scale_every == 0 or last):
            self._measure_noise()
        if report.grid_every and (count % report.grid_every == 0 or last):
            self._grid()
        # A budget's total is saved at once: a resumed run keeps it, and with it its learning rates.
        if not last and (fixed or (report.save_every and count % report.save_every == 0)):
            self._attempt("the checkpoint", self.save)

    def _fix_total(self, durations: list[float], began: float) -> bool:
        """Turn the budget into a number of steps, once: what is left of it over the time of a step and its share of reports."""
        budget, spent = seconds(self.options.training.budget or ""), time.perf_counter() - began
        if not self.run.group.same(len(durations) >= MEASURED or spent + durations[-1] >= budget):
            return False
        report, step = self.options.report, fmean(durations[5:] or durations)  # the first ones prepare kernels
        for every, action in ((report.validate_every, self._validate), (report.grid_every, self._grid)):
            tick = time.perf_counter()
            if every and self.run.group.same(spent < budget / 10):
                action()
                step += (time.perf_counter() - tick) / every
        left = budget - (time.perf_counter() - began)
        self.run.total = self.run.group.same(self.run.count + max(0, int(left / step)))
        return True

    def _validate(self) -> None:
        """The loss on held-out data of each average, at noise that is the same every time; the best one is chosen."""
        averages = self.run.averages
        losses = {length: self._held_out_loss(length) for length in averages.lengths}
        averages.chosen = min(losses, key=losses.__getitem__)
        self.last["validation_loss"] = losses[averages.chosen]
        named = {f"{length:g}": loss for length, loss in losses.items()}
        self._log({"validation_loss": losses[averages.chosen], "validation_losses": named})

    def _held_out_loss(self, length: float) -> float:
        run, held = self.run, len(self.dataset.test)
        n = min(held, HELD_OUT)
        places, share = torch.arange(n) * held // n, run.group.share(n)  # held-out data may be sorted by class
        total = torch.zeros((), device=run.device)
        with run.averaged(length) as denoiser, torch.no_grad(), autocast(run.precision, run.device):
            for first in range(share.start, share.stop, 256):
                numbers = range(first, min(first + 256, share.stop))
                rows = places[numbers.start : numbers.stop]
                rng = Noise(fold(self.options.training.seed, VALIDATION), numbers, run.device, n)
                total += run.objective(denoiser, *self.feed.held_out(rows), rng).per_example.float().sum()
        return float(run.group.sum(total)) / n

    def _measure_noise(self) -> None:
        """The gradient noise scale on the batches that come next, which training will see again."""
        found = noise_scale(self.run, self.data())
        figures = {"gradient_square": found.gradient_square, "gradient_variance": found.variance}
        self._log({**figures, "gradient_noise_scale": found.examples})

    def _grid(self) -> None:
        """A picture grid of samples, where the data are images and the model makes some; of text a few texts."""
        if not self.run.group.main or isinstance(self.run.denoiser, Classifier):
            return
        if self.dataset.scaling.is_image:
            self._attempt("the sample grid", self._draw_grid)
        elif self.text:
            self._attempt("the sample texts", self._draw_texts)

    def _draw_texts(self) -> None:
        scaling = self.dataset.scaling
        assert isinstance(scaling, Codes)
        with self.run.averaged() as denoiser, autocast(self.run.precision, self.run.device):
            x = sample(
                denoiser, n=TEXTS, calls=TEXT_CALLS, cond=self.feed.shown(TEXTS, self.condition), seed=self._grid_seed()
            ).x
        texts = "".join(
            f"--- {i} ---\n{text}\n" for i, text in enumerate(scaling.text(scaling.decode(x.cpu())), start=1)
        )
        path = self.folder / "samples" / f"step-{self.run.count:08d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(texts.encode(errors="surrogatepass"))

    def _grid_seed(self) -> int:
        return fold(self.options.training.seed, GRID)

    def _draw_grid(self) -> None:
        scaling = self.dataset.scaling
        assert isinstance(scaling, Scaling | Codes)
        cond = self.feed.shown(GRID_SIZE, self.condition)
        with self.run.averaged() as denoiser, autocast(self.run.precision, self.run.device):
            x = sample(denoiser, n=GRID_SIZE, calls=GRID_CALLS, cond=cond, seed=self._grid_seed()).x
        picture = grid_picture(to_uint8_images(scaling, scaling.decode(x.cpu())))
        path = self.folder / "samples" / f"step-{self.run.count:08d}.png"
        for watcher in self._watchers:
            watcher.images(self.run.count, "samples", picture)
        save_picture(picture, path)

    def _log_step(self, record: Record, speed: float) -> None:
        loss, levels = self.run.losses_by_level()
        line = {"loss": loss, "gradient_norm": record.gradient_norm, "learning_rate": record.learning_rate}
        skipped = self.dataset.skipped + self.run.all_skipped()
        counted = {"skipped": skipped} if skipped else {}
        self._log({**line, f"{self.unit}_per_s": round(speed, 1), **counted, "losses_by_level": levels})

    def _log(self, values: dict[str, Any]) -> None:
        """A line in the log, and the same numbers to those who watch."""
        if not self.run.group.main:
            return
        step = self.run.count
        self._attempt("the log", lambda: logs.append(self.folder, {"step": step, **values}))
        for watcher in self._watchers:
            watcher.scalars(step, logs.scalars(values))

    def _attempt(self, what: str, action: Callable[[], Any]) -> None:
        """Do what a full disk can stop, or a network in its first steps, and train on: the next time it may go better."""
        try:
            action()
        except (OSError, CheckpointError, NumericalError) as error:
            said = getattr(error, "strerror", None) or error
            text = f"ornstein: step {self.run.count}: {what} could not be made ({said}); training goes on"
            tqdm.write(text, file=sys.stderr)
