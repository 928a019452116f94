"""Training: `Run` holds all that changes, `train` is the loop as a generator.

Every draw is a function of (seed, rank, examples seen): the order of the data, times, noise, dropped labels and dropout.
The learning rate is a function of step / total, the window of the average one of the step. So a run restored from its
tensors and its two counters goes on bit for bit as if it had never stopped, on the same machine.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ornstein.config import TrainingOptions
from ornstein.data import Dataset
from ornstein.denoisers import Denoiser
from ornstein.devices import autocast, resolve_precision
from ornstein.errors import CheckpointError, ConfigurationError, DataError, NumericalError
from ornstein.noise import Noise, fold
from ornstein.objectives import Loss, Objective

ORDER, DROPOUT = 1, 2  # streams of the seed beside the noise itself
BETAS = (0.9, 0.99)
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


class Batches:
    """The order of n examples: one permutation per epoch, a function of (seed, epoch) alone, joined end to end."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def rows(self, seen: int, count: int) -> Tensor:
        """The rows of the `count` examples that follow after `seen` examples."""
        parts: list[Tensor] = []
        while count:
            epoch, place = divmod(seen, self.n)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(fold(self.seed, ORDER, epoch))
                self._epoch, self._order = epoch, torch.randperm(self.n, generator=generator)
            part = self._order[place : place + count]
            parts.append(part)
            seen, count = seen + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Run:
    """All that changes in training: the network, the average of its weights, the optimiser, and the counters.

    Args:
        denoiser: trained in place.
        objective: what is minimised.
        options: how; `options.steps` is the total, None while a budget has not fixed it.
        rank: the number of this process, whose draws are its own.
    """

    def __init__(self, denoiser: Denoiser, objective: Objective, options: TrainingOptions, rank: int = 0) -> None:
        _check(options)
        self.denoiser, self.objective, self.options, self.rank = denoiser, objective, options, rank
        self.names, self.parameters = zip(
            *((n, p) for n, p in denoiser.network.named_parameters() if p.requires_grad), strict=True
        )
        self.device = self.parameters[0].device
        self.precision = resolve_precision(options.precision, self.device)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=options.learning_rate, betas=BETAS, weight_decay=options.weight_decay, fused=True
        )
        self.count, self.seen, self.total = 0, 0, options.steps

    def step(self, x0: Tensor, cond: Tensor | None = None) -> Record:
        """One optimiser step on a batch x0 (b, *d) in model units, with its condition (b, ...).

        Raises `NumericalError` before the weights change where the loss or its gradient is not finite.
        """
        denoiser, options = self.denoiser, self.options
        rng = Noise(fold(options.seed, self.rank, self.seen), len(x0), self.device)
        keep = None if cond is None else rng.uniform((len(x0),)) >= options.label_dropout
        torch.manual_seed(fold(options.seed, DROPOUT, self.rank, self.seen))
        with autocast(self.precision, self.device):
            loss = self.objective(denoiser, x0, cond, rng, keep)
        mean = loss.mean
        self.optimiser.zero_grad(set_to_none=True)
        mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, options.clip, foreach=True)
        if not torch.isfinite(mean + norm):
            self.optimiser.zero_grad(set_to_none=True)
            raise NumericalError(self._describe_failure(loss))
        rate = options.learning_rate * self._rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.count, self.seen = self.count + 1, self.seen + len(x0)
        self._average()
        return Record(self.count, self.total, mean.item(), norm.item(), rate)

    @torch.no_grad()
    def _average(self) -> None:
        """averages += (1 - beta) (weights - averages), beta = (1 - 1/k)^(1/ema) at step k.

        The power-function average of Karras et al. 2024: its window is the share `ema` of the steps so far, so it starts
        from nothing and needs no other warm-up.
        """
        beta = (1 - 1 / self.count) ** (1 / self.options.ema) if self.options.ema > 0 else 0.0
        torch._foreach_lerp_(self.averages, list(self.parameters), 1 - beta)

    def _rate(self) -> float:
        """The share of the peak learning rate at this step: a linear rise, then a half cosine to zero at the end."""
        if self.total is None:
            return min(1.0, (self.count + 1) / 50)
        rise = max(1.0, self.options.warmup * self.total)
        place = min(1.0, self.count / self.total)
        return min(1.0, (self.count + 1) / rise) * 0.5 * (1 + math.cos(math.pi * place))

    def _describe_failure(self, loss: Loss) -> str:
        losses = loss.per_example.detach()
        bad = ~torch.isfinite(losses)
        where = int(bad.nonzero()[0]) if bad.any() else int(losses.argmax())
        t = float(loss.t[where])
        what = f"loss is {float(losses[where]):g} in {int(bad.sum())} of {len(bad)} examples"
        what = what if bad.any() else "gradient is not finite; the largest loss is"
        return (
            f"training stopped at step {self.count + 1}: the {what} at t = {t:.4g} "
            f"(log-SNR {float(self.denoiser.process.level(t).log_snr):.3g}); try a lower learning rate, or float32"
        )

    @contextmanager
    def averaged(self) -> Iterator[Denoiser]:
        """The denoiser with its averaged weights, in evaluation mode, for the length of a block."""
        weights = [p.detach().clone() for p in self.parameters]
        self.use_averages()
        try:
            yield self.denoiser
        finally:
            _copy(self.parameters, weights)
            self.denoiser.train()

    def use_averages(self) -> None:
        """Put the averaged weights in place of the trained ones, and the denoiser in evaluation mode."""
        _copy(self.parameters, self.averages)
        self.denoiser.eval()

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | None]]:
        """The tensors and the counters from which `restore` makes the same run."""
        tensors = {f"network.{name}": value.detach() for name, value in self.denoiser.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in zip(self.names, self.averages, strict=True)}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"optimiser.{key}.{name}"] = value.detach()
        return tensors, {"step": self.count, "seen": self.seen, "total": self.total}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int | None]) -> None:
        """Take over the tensors and counters of `state`. Raises `CheckpointError` where they are of another network."""
        load_network(self.denoiser.network, tensors, "network")
        _copy(self.averages, [tensors[f"average.{name}"] for name in self.names])
        held = []
        for name, parameter in zip(self.names, self.parameters, strict=True):
            keys = [key for key in OPTIMISER_STATE if f"optimiser.{key}.{name}" in tensors]
            values = {key: tensors[f"optimiser.{key}.{name}"] for key in keys}
            # The fused optimiser goes through memory: moments must have the layout (channels-last) of their weight.
            like = {key: v if v.ndim == 0 else torch.empty_like(parameter).copy_(v) for key, v in values.items()}
            held.append(like)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": {i: h for i, h in enumerate(held) if h}, "param_groups": groups})
        self.count, self.seen, self.total = int(counters["step"] or 0), int(counters["seen"] or 0), counters["total"]


def train(
    denoiser: Denoiser,
    data: Tensor | np.ndarray | Dataset,
    objective: Objective | None = None,
    *,
    cond: Tensor | None = None,
    options: TrainingOptions | None = None,
    steps: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
) -> Iterator[Record]:
    """Train `denoiser` in place; a generator of one `Record` after each step.

    Args:
        denoiser: what to train. When the loop ends, or is left, it holds the averaged weights and is in evaluation mode.
        data: examples (n, *d) in model units, or a `Dataset`, whose scaling is applied.
        objective: by default the squared error of the denoiser's own reading, at stratified times.
        cond: the condition of each example, (n, ...); for a `Dataset`, its labels where the network has classes.
        options: all options; steps (1000), seed, batch_size and learning_rate may be given by themselves.

    Raises `DataError` on data that do not fit and `NumericalError` on a loss that is not finite.
    """
    options = options or TrainingOptions()
    options = replace(
        options,
        steps=options.steps if steps is None else steps,
        seed=options.seed if seed is None else seed,
        batch_size=options.batch_size if batch_size is None else batch_size,
        learning_rate=options.learning_rate if learning_rate is None else learning_rate,
    )
    if options.budget is not None:
        raise ConfigurationError("a budget is kept by the command line, `ornstein train --budget`; give steps here")
    options = options if options.steps is not None else replace(options, steps=1000)
    examples, cond, encode = _examples(denoiser, data, cond)
    run = Run(denoiser, objective or Objective(), options)
    order, denoiser.shape = Batches(len(examples), options.seed), tuple(encode(examples[:1]).shape[1:])
    denoiser.train()
    return _steps(run, order, examples, cond, encode)


def _steps(
    run: Run, order: Batches, examples: Tensor, cond: Tensor | None, encode: Callable[[Tensor], Tensor]
) -> Iterator[Record]:
    try:
        while run.total is None or run.count < run.total:
            rows = order.rows(run.seen, run.options.batch_size).to(examples.device)
            x0 = encode(examples[rows]).to(run.device)
            yield run.step(x0, None if cond is None else cond[rows].to(run.device))
    finally:
        run.use_averages()


def _examples(
    denoiser: Denoiser, data: Tensor | np.ndarray | Dataset, cond: Tensor | None
) -> tuple[Tensor, Tensor | None, Callable[[Tensor], Tensor]]:
    if isinstance(data, Dataset):
        labels = data.train_labels if getattr(denoiser.network, "classes", 0) else None
        return data.train, labels if cond is None else cond, data.scaling.encode
    examples = torch.as_tensor(data)
    if not examples.is_floating_point():
        raise DataError(
            f"got data of type {examples.dtype}, expected floats in model units, or a Dataset with its scaling"
        )
    if examples.ndim < 2 or len(examples) < 1 or not torch.isfinite(examples).all():
        raise DataError(f"got data of shape {tuple(examples.shape)}, expected finite examples (n, *d)")
    if cond is not None and len(cond) != len(examples):
        raise DataError(f"got {len(cond)} conditions for {len(examples)} examples, expected one each")
    return examples, cond, torch.Tensor.float


@torch.no_grad()
def load_network(network: torch.nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Load the tensors `prefix.NAME` over the network's own, and buffers from `network.NAME`. Raises `CheckpointError`."""
    own = network.state_dict()
    found = {name: tensors.get(f"{prefix}.{name}", tensors.get(f"network.{name}")) for name in own}
    for name, value in found.items():
        if value is None or value.shape != own[name].shape:
            got = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise CheckpointError(
                f"got {got} for the weight '{name}', expected shape {tuple(own[name].shape)}: this is another network"
            )
    network.load_state_dict({name: value for name, value in found.items() if value is not None})


@torch.no_grad()
def _copy(targets: list[Tensor] | tuple[Tensor, ...], sources: list[Tensor]) -> None:
    torch._foreach_copy_(list(targets), sources)


def _check(options: TrainingOptions) -> None:
    ranges = {
        "steps": options.steps is None or options.steps >= 1,
        "batch_size": options.batch_size >= 1,
        "learning_rate": 0 < options.learning_rate < math.inf,
        "warmup": 0 <= options.warmup <= 1,
        "weight_decay": 0 <= options.weight_decay < math.inf,
        "clip": options.clip > 0,
        "ema": 0 <= options.ema < 1,
        "label_dropout": 0 <= options.label_dropout <= 1,
    }
    wrong = [name for name, fits in ranges.items() if not fits]
    if wrong:
        value = getattr(options, wrong[0])
        raise ConfigurationError(f"got {wrong[0]}={value}, out of its range; see `ornstein train --help`")
