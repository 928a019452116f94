"""Weights put in the place of others, checked by name and shape."""

import torch
from torch import Tensor

from ornstein.errors import CheckpointError


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
def copy_over(targets: list[Tensor] | tuple[Tensor, ...], sources: list[Tensor]) -> None:
    """Give each target the values of its source, in place."""
    torch._foreach_copy_(list(targets), sources)
