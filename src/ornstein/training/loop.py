"""`train`: the loop as a generator."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ornstein.config import TrainingOptions
from ornstein.data import Dataset
from ornstein.data.streaming import Stream, batches
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigurationError, DataError
from ornstein.objectives import Objective, ObjectiveLike
from ornstein.training.order import Batches
from ornstein.training.run import Record, Run


def train(
    denoiser: Denoiser,
    data: Tensor | np.ndarray | Dataset,
    objective: ObjectiveLike | None = None,
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
    check_batch(options.batch_size, len(examples))
    run = Run(denoiser, objective or Objective(), options)
    denoiser.shape = tuple(encode(examples[torch.zeros(1, dtype=torch.long)]).shape[1:])
    denoiser.train()
    return _steps(run, examples, cond, encode)


def check_batch(batch_size: int, n: int) -> None:
    """Raise `ConfigurationError` for a batch larger than the n examples to train on."""
    if batch_size > n:
        raise ConfigurationError(
            f"got batch_size={batch_size} for {n} training examples, expected at most as many: --batch-size {n} or less"
        )


def _steps(
    run: Run, examples: Tensor | Stream, cond: Tensor | None, encode: Callable[[Tensor], Tensor]
) -> Iterator[Record]:
    order = Batches(len(examples), run.options.seed)
    plan = order.plan(run.seen, run.options.batch_size, run.share)
    read = batches(examples, plan, workers=0)
    try:
        while run.total is None or run.count < run.total:
            rows, raw, _ = next(read)
            yield run.step(encode(raw).to(run.device), None if cond is None else cond[rows].to(run.device))
    finally:
        run.use_averages()


def _examples(
    denoiser: Denoiser, data: Tensor | np.ndarray | Dataset, cond: Tensor | None
) -> tuple[Tensor | Stream, Tensor | None, Callable[[Tensor], Tensor]]:
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
