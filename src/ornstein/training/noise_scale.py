"""The gradient noise scale B = tr(S) / |G|^2 (McCandlish et al. 2018): the batch at which noise and gradient are of one size.

G is the gradient of the whole loss and S the covariance of one example's. From gradients of batches of b and of B examples,

    |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b),   tr S = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)

are unbiased; each is averaged before the quotient is taken. Well below B a doubled batch halves the steps that are needed, well
above it gains nothing. It rises as training goes on, and tells objectives apart: that of the bound is noisier than the simple
loss, the claim of paper 001 section 3.2.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ornstein.conditions import Condition, rows_of
from ornstein.noise import Noise, fold
from ornstein.training.run import Run

BATCHES, PARTS = 4, 4
STREAM = 6  # of the seed


@dataclass(frozen=True)
class NoiseScale:
    """What was found: |G|^2, tr(S), and their quotient in examples (None where |G|^2 is lost in the noise)."""

    gradient_square: float
    variance: float

    @property
    def examples(self) -> float | None:
        """B = tr(S) / |G|^2."""
        return self.variance / self.gradient_square if self.gradient_square > 0 else None


def noise_scale(run: Run, data: Iterable[tuple[Tensor, Condition | None]]) -> NoiseScale:
    """Measure it on the next four batches of `data`, (x0, cond) as `Run.step` takes them, at the weights as they are.

    Each is taken in four parts, with times and noise of their own (stratified times of a whole batch would make parts of it
    unlike batches). Leaves the weights, the draws of training and the gradients alone. All processes must ask together.
    """
    squares, total, examples, parts = 0.0, None, 0, 0
    for k, (x0, cond) in enumerate(islice(data, BATCHES)):
        length = max(1, len(x0) // PARTS)
        for j, first in enumerate(range(0, length * min(PARTS, len(x0)), length)):
            rows = slice(first, first + length)
            seed = fold(run.options.seed, STREAM, run.count, run.group.rank, k * PARTS + j)
            gradient = _gradient(run, x0[rows], rows_of(cond, rows), seed)
            squares += float(gradient @ gradient)
            total = gradient if total is None else total + gradient
            examples, parts = examples + length, parts + 1
    assert total is not None
    squares, whole, parts = run.group.sum(torch.tensor([squares, examples, parts], device=run.device)).tolist()
    mean = run.group.sum(total) / parts
    small, large, b = squares / parts, float(mean @ mean), whole / parts
    return NoiseScale(
        gradient_square=(whole * large - b * small) / (whole - b), variance=(small - large) / (1 / b - 1 / whole)
    )


def _gradient(run: Run, x0: Tensor, cond: Condition | None, seed: int) -> Tensor:
    """The gradient of the mean loss of these examples, as one long vector."""
    rng = Noise(seed, len(x0), run.device)
    keep = None if cond is None else rng.uniform((len(x0),), torch.float32) >= run.options.label_dropout
    loss = run.aim(run.denoiser, x0, cond, rng, keep).mean
    found = torch.autograd.grad(loss, run.parameters, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for g, p in zip(found, run.parameters, strict=True)
        ]
    )
