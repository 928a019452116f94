"""Conditions: None, a tensor, or a dict of tensors, each with leading axis b. What is done with one whatever it is.

A state is a tensor or, of a `Product`, a dict of tensors: the same functions serve it.
"""

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


def joined(parts: list[Any]) -> Any:
    """Parts of a batch as one, at least one part."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: torch.cat([part[name] for part in parts]) for name in first}
    return torch.cat(parts)


def finite_rows(x: Condition) -> Tensor:
    """Which rows hold no NaN or infinity, (b,)."""
    tensors = x.values() if isinstance(x, dict) else (x,)
    rows = [torch.isfinite(part).reshape(len(part), -1).all(1) for part in tensors]
    return torch.stack(rows).all(0)
