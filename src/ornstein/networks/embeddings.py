"""What a network is told beside the noisy state: the time, and a condition that may be dropped.

Two conventions of time reach a network: `1000 t` in [0, 1000], and `log(sigma / alpha) / 4`, which lives within a few
units of zero. One set of frequencies serves both, geometric from 1e-3 to 8 radians a unit: the slow half tells the
times of [0, 1000] apart, the fast half resolves a quarter log-sigma in a few tenths, and no frequency is so fast that
float32 loses its phase at time 1000 (8000 radians, rounded to 5e-4).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import ConfigurationError
from ornstein.networks.given import check_keep

SLOWEST, FASTEST = 1e-3, 8.0  # radians per unit of time


class TimeFeatures(nn.Module):
    """`(cos(w_1 t), ..., cos(w_m t), sin(w_1 t), ..., sin(w_m t))`, the frequencies w geometric in [1e-3, 8].

    Time is (b,) and the result (b, `size`), both float32; `size` must be even.
    """

    def __init__(self, size: int = 128) -> None:
        super().__init__()
        if size < 2 or size % 2:
            raise ConfigurationError(f"time features: got size {size}, expected an even number of at least 2")
        frequencies = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), size // 2, dtype=torch.float64)
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        phase = time.float()[:, None] * self.frequencies
        return torch.cat((phase.cos(), phase.sin()), dim=1)


class Embedding(nn.Module):
    """`silu(W_2 silu(W_1 features(time) + b_1) + b_2 + condition)`, the (b, size) vector that modulates every block.

    With `classes` = k > 0 the condition is a row of a learned table for class indices, long (b,) in [0, k), or the
    table's weighted sum for a float condition (b, k): a one-hot row is a class. Rows where `keep` is False, and all
    rows where `cond` is None, get the table's last row, the learned null condition: labels are dropped example by
    example.

    Raises ConfigurationError for a condition of another shape, or any condition where `classes` is 0.
    """

    def __init__(self, size: int, classes: int = 0) -> None:
        super().__init__()
        if classes < 0:
            raise ConfigurationError(f"classes: got {classes}, expected 0 (no condition) or the number of classes")
        self.classes = classes
        self.time = nn.Sequential(TimeFeatures(), nn.Linear(128, size), nn.SiLU(), nn.Linear(size, size))
        self.table = nn.Parameter(torch.randn(classes + 1, size) * 0.5) if classes else None

    def forward(self, time: Tensor, cond: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        embedding = self.time(time)
        if cond is not None or self.table is not None:
            embedding = embedding + self.condition(len(time), cond, keep)
        return functional.silu(embedding)

    def condition(self, batch: int, cond: Tensor | None, keep: Tensor | None) -> Tensor:
        """The condition's vectors (b, size), or the null vector (1, size) where nothing is given."""
        if self.table is None:
            raise ConfigurationError("got a condition, but the network has none: build it with classes=k")
        null = self.table[-1:]
        if cond is None:
            return null
        if cond.is_floating_point():
            if cond.shape != (batch, self.classes):
                raise ConfigurationError(
                    f"float condition: got shape {tuple(cond.shape)}, expected {(batch, self.classes)}"
                )
            given = cond.to(null.dtype) @ self.table[:-1]
        else:
            if cond.shape != (batch,):
                raise ConfigurationError(
                    f"class condition: got shape {tuple(cond.shape)}, expected ({batch},) class indices"
                )
            given = functional.embedding(cond, self.table[:-1])
        if keep is None:
            return given
        check_keep(keep, batch)
        return torch.where(keep.bool()[:, None], given, null)


def modulate(x: Tensor, scale_shift: Tensor) -> Tensor:
    """`x (1 + scale) + shift`, channel by channel: x is (b, c, *space), scale_shift (b, 2 c) with the scales first."""
    scale, shift = scale_shift.reshape(*scale_shift.shape, *(1,) * (x.ndim - 2)).chunk(2, dim=1)
    return torch.addcmul(shift, x, scale + 1)


def check_dropout(name: str, dropout: float) -> None:
    """Raise ConfigurationError unless `dropout` is a probability below 1."""
    if not 0 <= dropout < 1:
        raise ConfigurationError(f"{name}: got dropout={dropout}, expected a probability in [0, 1)")
