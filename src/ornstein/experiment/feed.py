"""`Feed`: the examples of a run and their conditions, in model units on its device."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ornstein.conditions import moved
from ornstein.data import Codes, Conditioning, Dataset, MixedScaling, placed
from ornstein.data.codes import tokens_under
from ornstein.data.streaming import Stream


class Feed:
    """What a run trains on, and what it is held against.

    `examples` are those of training as they are kept: encoded once where that takes no more room, raw else, or a stream.
    condition: none, labels or arrays; `conditioning` then says how arrays are encoded.
    """

    def __init__(
        self, dataset: Dataset, condition: str, conditioning: Conditioning | None, device: torch.device
    ) -> None:
        self.dataset, self.device = dataset, device
        self.examples, self._encoded = _ready(dataset, device)
        self._encode_cond: Callable[[Tensor], Tensor] | None = None if conditioning is None else conditioning.encode
        pairs = {
            "labels": (dataset.train_labels, dataset.test_labels),
            "arrays": (dataset.train_cond, dataset.test_cond),
        }
        self._cond, self._test_cond = pairs.get(condition, (None, None))
        if self._cond is not None and isinstance(self.examples, Tensor):
            self._cond = self._cond.to(self.examples.device)

    def batch(self, rows: Tensor, raw: Tensor) -> tuple[Any, Tensor | None]:
        """Training examples of some rows, as `examples` holds them, in model units with their conditions."""
        return raw.to(self.device) if self._encoded else self._encode(raw), self._given(self._cond, rows)

    def held_out(self, rows: Tensor) -> tuple[Any, Tensor | None]:
        """Held-out examples by their rows, in model units with their conditions."""
        return self._encode(self.dataset.test[rows]), self._given(self._test_cond, rows)

    def shown(self, n: int, condition: str) -> Tensor | None:
        """The conditions of a grid of n samples: classes in turn, or those of the first held-out examples, in turn."""
        if condition == "labels":
            return torch.arange(n) % len(self.dataset.classes)
        return self._given(self._test_cond, torch.arange(n) % len(self.dataset.test))

    def _given(self, cond: Tensor | None, rows: Tensor) -> Tensor | None:
        if cond is None:
            return None
        given = cond[rows.to(cond.device)].to(self.device)
        return given if self._encode_cond is None else self._encode_cond(given)

    def _encode(self, raw: Tensor) -> Any:
        """Raw examples in model units on the device: moved as bytes where they are bytes."""
        raw = raw.to(self.device, non_blocking=self.device.type == "cuda") if raw.dtype == torch.uint8 else raw
        return moved(self.dataset.scaling.encode(raw), self.device)


def _ready(dataset: Dataset, device: torch.device) -> tuple[Tensor | Stream, bool]:
    """The training examples, ready for batches, and whether they are in model units already.

    A stream stays as it is, and so does what would grow: bytes, a quarter of floats; categories, one number each. All else is
    encoded once. It lies in the memory of a GPU where it takes at most a quarter of what is free there.
    """
    examples = dataset.train
    if not isinstance(examples, Tensor):
        return examples, False
    codes = isinstance(dataset.scaling, Codes | MixedScaling)  # they would grow, and windows of a text be copied out
    encoded = not codes and 4 * dataset.scaling.dims <= examples[0].nbytes
    if encoded:
        examples = dataset.scaling.encode(examples)
    if device.type == "cuda" and 4 * tokens_under(examples).nbytes <= torch.cuda.mem_get_info(device)[0]:
        examples = placed(examples, device)
    return examples, encoded
