"""Conditions: None, a tensor, or a dict of tensors, each with leading axis b. What is done with one whatever it is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError

Condition = Tensor | dict[str, Tensor]


def mapped(cond: Condition, change: Callable[[Tensor], Tensor]) -> Condition:
    """The condition with every tensor of it changed."""
    return {name: change(value) for name, value in cond.items()} if isinstance(cond, dict) else change(cond)


def rows_of(cond: Condition | None, rows: Any) -> Condition | None:
    """The condition of some rows: a slice, indices or a mask."""
    return None if cond is None else mapped(cond, lambda value: value[rows])


def moved(cond: Condition | None, device: torch.device | str) -> Condition | None:
    """The condition on a device."""
    return None if cond is None else mapped(cond, lambda value: value.to(device))


def count_of(cond: Condition) -> int:
    """b, the number of rows. Raises `ConfigurationError` where parts of a dict differ in it, or there are none."""
    counts = {len(value) for value in (cond.values() if isinstance(cond, dict) else (cond,))}
    if len(counts) != 1:
        raise ConfigurationError(f"got a condition whose parts have {sorted(counts)} rows, expected one number of rows")
    return counts.pop()
