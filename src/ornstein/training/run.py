"""`Run`: all that changes in training, and one step of it."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ornstein.conditions import Condition, count_of, rows_of
from ornstein.config import TrainingOptions
from ornstein.denoisers import TrainedDenoiser
from ornstein.devices import autocast, resolve_precision
from ornstein.errors import ConfigurationError, NumericalError
from ornstein.noise import Noise, fold
from ornstein.objectives import History, Importance, Loss, ObjectiveLike
from ornstein.parallel import Group
from ornstein.training.averages import Averages
from ornstein.training.weights import copy_over, load_network

DROPOUT = 2  # a stream of the seed
BETAS = (0.9, 0.99)
LEVELS = 8  # equal parts of [0, 1] in which losses are told apart by their time
OPTIMISER_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Record:
    """What one step did: `count` steps made of `total` (None until a budget has fixed it), the mean loss of the batch, the
    norm of the gradient before clipping, the learning rate."""

    count: int
    total: int | None
    loss: float
    gradient_norm: float
    learning_rate: float


class Run:
    """All that changes in training: the network, the averages of its weights, the optimiser, and the counters.

    A batch of `options.batch_size` examples is shared among the processes of `group`, and each share is taken in
    `options.accumulate` parts. Times, noise and dropped labels are functions of (seed, examples seen, place in the batch):
    so losses do not depend on either number, but for rounding and dropout within the network.

    Args:
        denoiser: trained in place.
        objective: what is minimised.
        options: how; `options.steps` is the total, None while a budget has not fixed it.
        group: the processes that train together.
    """

    def __init__(
        self, denoiser: TrainedDenoiser, objective: ObjectiveLike, options: TrainingOptions, group: Group | None = None
    ) -> None:
        self.group = group or Group()
        _check(options, self.group.size)
        self.denoiser, self.objective, self.options = denoiser, objective, options
        self.names, self.parameters = zip(
            *((n, p) for n, p in denoiser.network.named_parameters() if p.requires_grad), strict=True
        )
        self.device = self.parameters[0].device
        self.precision = resolve_precision(options.precision, self.device)
        if options.compile:
            denoiser.network.compile()
        self.trained = copy.copy(denoiser)  # the same weights, through the wrapper that averages gradients
        self.trained._modules = {**denoiser._modules, "network": self.group.wrap(denoiser.network)}
        self.trained.training = True
        times = objective.times
        self.history = History(times) if isinstance(times, Importance) else None
        self.aim = objective  # with its times drawn as the history has it; the objective itself never changes
        self.averages = Averages(options.ema, self.parameters)
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, betas=BETAS, weight_decay=options.weight_decay, fused=True
        )
        self.share = self.group.share(options.batch_size)
        self.count, self.seen, self.total = 0, 0, options.steps
        # After its first backward pass DistributedDataParallel orders the gradients anew, and with them the sums of three or
        # more processes: one pass that counts for nothing, and a resumed run has the order of one that never stopped.
        self._settled = self.group.size == 1
        self.whole = True  # between steps: what is saved within one would be neither the state before nor after it
        self.skipped = 0  # examples that could not be read, and had stand-ins, in this process
        self.window = torch.zeros(2, LEVELS, device=self.device)  # sums of losses and their numbers since the last log
        self.asked_to_stop = self.stopped = False  # asked of one process, agreed by all in the next step

    def step(self, x0: Any, cond: Condition | None = None) -> Record:
        """One optimiser step: x0 (b, *d), or a dict of parts, is this process's share of the batch, in model units, with its
        condition (b, ...).

        Raises `NumericalError` before the weights change where the loss or its gradient is not finite.
        """
        options = self.options
        if not self._settled:
            self._gradient(x0, cond)
            self._settled = True
        losses = self._gradient(x0, cond)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        mean = torch.stack([loss.per_example.detach().sum() for loss in losses]).sum() / options.batch_size
        asked = mean.new_tensor(float(self.asked_to_stop))
        mean_loss, wishes = self.group.sum(torch.stack([mean, asked])).unbind()
        figures = torch.stack([mean_loss, wishes, norm.to(mean)]).tolist()  # the only wait for the device
        if not all(map(math.isfinite, figures)):
            self.optimiser.zero_grad(set_to_none=True)
            raise NumericalError(self._describe_failure(losses))
        self.stopped = self.stopped or figures[1] > 0
        rate = options.learning_rate * self._rate()
        self.whole = False
        self._update(rate, norm if figures[2] > options.clip else None)
        self.count, self.seen = self.count + 1, self.seen + options.batch_size
        self._average()
        for loss in losses:
            self._watch(loss)
        self._remember(losses)
        self.whole = True
        return Record(self.count, self.total, figures[0], figures[2], rate)

    def _gradient(self, x0: Any, cond: Condition | None) -> list[Loss]:
        """Leave the batch's gradient in the parameters; returns the losses of this process's parts."""
        count = count_of(x0)
        parts, losses = min(self.options.accumulate, count), []
        torch.manual_seed(fold(self.options.seed, DROPOUT, self.group.rank, self.seen))
        self.optimiser.zero_grad(set_to_none=True)
        for k in range(parts):
            rows = range(count * k // parts, count * (k + 1) // parts)
            part = slice(rows.start, rows.stop)
            with nullcontext() if k == parts - 1 else self.group.holding(self.trained.network):
                losses.append(self._forward(rows_of(x0, part), rows_of(cond, part), rows))
                self._backward(losses[-1])
        return losses

    def _forward(self, x0: Any, cond: Condition | None, rows: range) -> Loss:
        """The losses of some rows of this process's share."""
        options, first = self.options, self.share.start
        places = range(first + rows.start, first + rows.stop)
        rng = Noise(fold(options.seed, self.seen), places, self.device, options.batch_size)
        keep = None if cond is None else rng.uniform((len(rows),), torch.float32) >= options.label_dropout
        with autocast(self.precision, self.device):
            return self.aim(self.trained, x0, cond, rng, keep)

    def _backward(self, loss: Loss) -> None:
        """Add the gradient of these losses' share of the mean; the processes' are averaged, so each counts `size` times."""
        (loss.per_example.sum() * (self.group.size / self.options.batch_size)).backward()

    def _update(self, rate: float, too_long: Tensor | None) -> None:
        """Change the weights, by the gradient, cut to the longest allowed where its norm is `too_long`."""
        if too_long is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.options.clip, too_long)
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = rate
        self.optimiser.step()

    def _average(self) -> None:
        self.averages.update(self.count)

    @torch.no_grad()
    def _watch(self, loss: Loss) -> None:
        """Add losses to the window, by their time."""
        level = one_hot((loss.t * LEVELS).long().clamp(0, LEVELS - 1), LEVELS)
        values = loss.per_example.detach().float()
        # A product and not index_add_, whose order of summation on a GPU is another each time.
        self.window += torch.stack([values, torch.ones_like(values)]) @ level.to(values)

    def _remember(self, losses: list[Loss]) -> None:
        """Have the history of an importance law hold the terms that all processes found, and draw the next times by it."""
        if self.history is None:
            return
        t = torch.cat([loss.t.cpu() for loss in losses])
        terms = torch.cat([loss.term.detach().double().cpu() for loss in losses])
        for part in self.group.all((t, terms)):
            self.history.update(*part)
        self._take_aim()

    def _take_aim(self) -> None:
        if self.history is not None:
            times = replace(self.objective.times, probabilities=self.history.probabilities())  # type: ignore[type-var]
            self.aim = replace(self.objective, times=times)  # type: ignore[type-var]

    def losses_by_level(self) -> tuple[float, dict[str, float]]:
        """The mean loss since this was last asked, and that in each eighth of [0, 1] in which a time fell; resets both."""
        sums, counts = self.group.sum(self.window.clone()).cpu().double().unbind()
        self.window.zero_()
        levels = {f"t<{(k + 1) / LEVELS:g}": float(sums[k] / counts[k]) for k in range(LEVELS) if counts[k]}
        return float(sums.sum() / counts.sum()), levels

    def _rate(self) -> float:
        """The share of the peak learning rate at this step: a linear rise, then a half cosine to zero at the end."""
        if self.total is None:
            return min(1.0, (self.count + 1) / 1000)  # below what most totals ask for: no fall when it is known
        rise = max(1.0, self.options.warmup * self.total)
        place = min(1.0, self.count / self.total)
        return min(1.0, (self.count + 1) / rise) * 0.5 * (1 + math.cos(math.pi * place))

    def _describe_failure(self, losses: list[Loss]) -> str:
        values, t = (
            torch.cat([getattr(loss, name).detach().cpu() for loss in losses]) for name in ("per_example", "t")
        )
        bad = ~torch.isfinite(values)
        where = int(bad.nonzero()[0]) if bad.any() else int(values.argmax())
        what = f"loss is {float(values[where]):g} in {int(bad.sum())} of {len(bad)} examples"
        what = what if bad.any() else "gradient is not finite; the largest loss here is"
        level = self.denoiser.process.describe(float(t[where]))
        return (
            f"training stopped at step {self.count + 1}: the {what} at {level}; try a lower learning rate, or float32"
        )

    @contextmanager
    def averaged(self, length: float | None = None) -> Iterator[TrainedDenoiser]:
        """The denoiser with its averaged weights (`length`: which, the chosen ones), in evaluation mode, for a block."""
        weights = [p.detach().clone() for p in self.parameters]
        self.use_averages(length)
        try:
            yield self.denoiser
        finally:
            copy_over(self.parameters, weights)
            self.denoiser.train()

    def use_averages(self, length: float | None = None) -> None:
        """Put averaged weights in place of the trained ones, and the denoiser in evaluation mode."""
        copy_over(self.parameters, self.averages.of[self.averages.chosen if length is None else length])
        self.denoiser.eval()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the counters from which `restore` makes the same run. All processes must ask together."""
        tensors = {f"network.{name}": value.detach() for name, value in self.denoiser.network.state_dict().items()}
        for length, average in self.averages.of.items():
            tensors |= {f"average.{length:g}.{n}": v for n, v in zip(self.names, average, strict=True)}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"optimiser.{key}.{name}"] = value.detach()
        if self.history is not None:
            tensors |= {f"history.{name}": value for name, value in self.history.state().items()}
        tensors["window"] = torch.stack(self.group.all(self.window.cpu()))
        counters = {"step": self.count, "seen": self.seen, "total": self.total, "skipped": self.all_skipped()}
        return tensors, {**counters, "ema": self.averages.chosen, "processes": self.group.size}

    def all_skipped(self) -> int:
        """How many examples had stand-ins, in all processes, which must ask together."""
        return int(self.group.sum(torch.tensor(self.skipped, device=self.device)))

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Take over the tensors and counters of `state`. Raises `CheckpointError` where they are of another network."""
        load_network(self.denoiser.network, tensors, "network")
        for length, average in self.averages.of.items():
            copy_over(average, [tensors[f"average.{length:g}.{name}"] for name in self.names])
        held = []
        for name, parameter in zip(self.names, self.parameters, strict=True):
            keys = [key for key in OPTIMISER_STATE if f"optimiser.{key}.{name}" in tensors]
            values = {key: tensors[f"optimiser.{key}.{name}"] for key in keys}
            # The fused optimiser goes through memory: moments must have the layout (channels-last) of their weight.
            like = {key: v if v.ndim == 0 else torch.empty_like(parameter).copy_(v) for key, v in values.items()}
            held.append(like)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": {i: h for i, h in enumerate(held) if h}, "param_groups": groups})
        windows = tensors["window"]
        if len(windows) == self.group.size:
            self.window.copy_(windows[self.group.rank])
        elif self.group.main:
            self.window.copy_(windows.sum(0))
        if self.history is not None:
            self.history.restore({name: tensors[f"history.{name}"] for name in self.history.state()})
            self._take_aim()
        self.skipped = counters["skipped"] if self.group.main else 0
        self.count, self.seen, self.total = counters["step"], counters["seen"], counters["total"]
        self.averages.chosen = counters["ema"]


def _check(options: TrainingOptions, processes: int) -> None:
    ranges = {
        "steps": options.steps is None or options.steps >= 1,
        "batch_size": options.batch_size >= 1,
        "accumulate": options.accumulate >= 1,
        "learning_rate": 0 < options.learning_rate < math.inf,
        "warmup": 0 <= options.warmup <= 1,
        "weight_decay": 0 <= options.weight_decay < math.inf,
        "clip": options.clip > 0,
        "ema": len(options.ema) > 0 and all(0 <= length < 1 for length in options.ema),
        "label_dropout": 0 <= options.label_dropout <= 1,
    }
    wrong = [name for name, fits in ranges.items() if not fits]
    if wrong:
        value = getattr(options, wrong[0])
        raise ConfigurationError(f"got {wrong[0]}={value}, out of its range; see `ornstein train --help`")
    if options.batch_size < processes * options.accumulate:
        raise ConfigurationError(
            f"got {processes} processes x {options.accumulate} parts for a batch of {options.batch_size} examples, "
            "expected at least one example in each; raise batch_size, or take fewer"
        )
