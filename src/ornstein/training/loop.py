"""`train`: the loop as a generator."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein.classifiers import Classifier
from ornstein.conditions import Condition, count_of, moved, rows_of
from ornstein.config import TrainingOptions
from ornstein.data import Dataset
from ornstein.data.streaming import Stream, batches
from ornstein.denoisers import TrainedDenoiser, check_condition
from ornstein.discrete import DiscreteDenoiser
from ornstein.errors import ConfigurationError, DataError
from ornstein.objectives import ObjectiveLike, usual
from ornstein.training.order import Batches
from ornstein.training.run import Record, Run


def train(
    denoiser: TrainedDenoiser,
    data: Tensor | np.ndarray | dict[str, Tensor] | Dataset,
    objective: ObjectiveLike | None = None,
    *,
    cond: Condition | None = None,
    options: TrainingOptions | None = None,
    steps: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
) -> Iterator[Record]:
    """Train `denoiser` in place; a generator of one `Record` after each step.

    Args:
        denoiser: what to train. When the loop ends, or is left, it holds the averaged weights and is in evaluation mode.
        data: examples (n, *d) in model units, of categories integers, of a `Product` a dict of its parts; or a `Dataset`, whose
            scaling is applied.
        objective: by default the squared error of the denoiser's own reading; of categories `objectives.usual`.
        cond: the condition of each example, (n, ...) or a dict; for a `Dataset`, its labels where the network has classes.
        options: all options; steps (1000), seed, batch_size and learning_rate may be given by themselves.

    Each example is trained without its condition with probability `options.label_dropout`, by itself.

    Raises `DataError` on data that do not fit, `ConfigurationError` on classes that the network does not know, and
    `NumericalError` on a loss that is not finite.
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
    check_batch(options.batch_size, len(examples))
    check_condition(denoiser, cond)
    run = Run(denoiser, objective or usual(denoiser.process), options)
    one = encode(examples[torch.zeros(1, dtype=torch.long)])
    denoiser.shape = {k: tuple(v.shape[1:]) for k, v in one.items()} if isinstance(one, dict) else tuple(one.shape[1:])
    denoiser.label_dropout = None if cond is None else options.label_dropout
    denoiser.train()
    return _steps(run, examples, cond, encode)


def check_batch(batch_size: int, n: int) -> None:
    """Raise `ConfigurationError` for a batch larger than the n examples to train on."""
    if batch_size > n:
        raise ConfigurationError(
            f"got batch_size={batch_size} for {n} training examples, expected at most as many: --batch-size {n} or less"
        )


def _steps(
    run: Run, examples: Tensor | Stream, cond: Condition | None, encode: Callable[[Tensor], Tensor]
) -> Iterator[Record]:
    order = Batches(len(examples), run.options.seed)
    plan = order.plan(run.seen, run.options.batch_size, run.share)
    read = batches(examples, plan, workers=0)
    try:
        while run.total is None or run.count < run.total:
            rows, raw, _ = next(read)
            yield run.step(moved(encode(raw), run.device), moved(rows_of(cond, rows), run.device))
    finally:
        run.use_averages()


def _examples(
    denoiser: TrainedDenoiser, data: Tensor | np.ndarray | dict[str, Tensor] | Dataset, cond: Condition | None
) -> tuple[Tensor | Stream, Condition | None, Callable[[Tensor], Any]]:
    if isinstance(data, Dataset):
        labels = (
            data.train_labels if getattr(denoiser.network, "classes", 0) or isinstance(denoiser, Classifier) else None
        )
        cond = labels if cond is None else cond
        _check_count(cond, len(data.train))
        return data.train, cond, data.scaling.encode
    if isinstance(data, dict):
        _check_count(cond, count_of(data))
        return torch.arange(count_of(data)), cond, lambda rows: rows_of(data, rows)
    examples = torch.as_tensor(data)
    if isinstance(denoiser, DiscreteDenoiser):
        check_codes(examples, denoiser.process.categories)
        _check_count(cond, len(examples))
        return examples, cond, torch.Tensor.long
    if not examples.is_floating_point():
        raise DataError(
            f"got data of type {examples.dtype}, expected floats in model units, or a Dataset with its scaling"
        )
    if examples.ndim < 2 or len(examples) < 1 or not torch.isfinite(examples).all():
        raise DataError(f"got data of shape {tuple(examples.shape)}, expected finite examples (n, *d)")
    _check_count(cond, len(examples))
    return examples, cond, torch.Tensor.float


def check_codes(x: Tensor, categories: int) -> None:
    """Raise `DataError` unless x (n, *d) are codes 0 .. K - 1, at least one example of them."""
    if x.is_floating_point() or x.ndim < 1 or not x.numel():
        raise DataError(f"got data of type {x.dtype} and shape {tuple(x.shape)}, expected integer codes (n, *d)")
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= categories:
        raise DataError(f"got codes from {low} to {high}, expected 0 to {categories - 1}")


def _check_count(cond: Condition | None, n: int) -> None:
    """Raise `DataError` unless there is a condition for each of n examples."""
    if cond is not None and count_of(cond) != n:
        raise DataError(f"got {count_of(cond)} conditions for {n} examples, expected one each")
