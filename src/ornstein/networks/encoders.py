"""Encoders: `network(x, time) -> (b, outputs)`, the halves of the denoising networks that say what x is and not what to make
of it. For classifiers of noisy data: the time enters each block, as the noise decides what can be seen."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.errors import ConfigurationError
from ornstein.networks.embeddings import Embedding, check_dropout
from ornstein.networks.mlp import MLPBlock
from ornstein.networks.patches import check_input, space_to_depth
from ornstein.networks.unet import GROUP, Stage, attends, check_arguments, convolution


class UNetEncoder(nn.Module):
    """The way down of a `UNet` on x (b, channels, *space), then the mean over space and a linear layer: (b, outputs).

    Args: `channels`, `dims`, `widths`, `blocks`, `attention`, `patch`, `dropout` as of `UNet`; `outputs`, how many numbers an
    example gets. No layer mixes the rows of a batch. Zero output before training.
    `network(x, time)`: see `embeddings.Embedding` for the time.
    Raises ConfigurationError for arguments or input that do not fit.
    """

    def __init__(
        self,
        channels: int,
        dims: int = 2,
        widths: Sequence[int] = (64, 128),
        blocks: int = 1,
        attention: int = 1,
        outputs: int = 10,
        patch: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        check_arguments(channels, dims, widths, blocks, attention, patch)
        check_dropout("UNetEncoder", dropout)
        check_outputs("UNetEncoder", outputs)
        self.spec = (
            f"UNetEncoder(channels={channels}, dims={dims}, widths={widths}, blocks={blocks}, attention={attention}, "
            f"outputs={outputs}, patch={patch}, dropout={dropout})"
        )
        self.channels, self.dims, self.patch, self.outputs = channels, dims, patch, outputs
        size = 4 * widths[0]
        self.embedding = Embedding(size)
        self.entry = convolution(dims, channels * patch**dims, widths[0])
        self.stages = nn.ModuleList(
            Stage(dims, width, size, dropout, blocks, attend)
            for width, attend in zip(widths, attends(widths, attention), strict=True)
        )
        self.downs = nn.ModuleList(convolution(dims, fine, coarse, stride=2) for fine, coarse in pairwise(widths))
        self.norm = nn.GroupNorm(widths[-1] // GROUP, widths[-1])
        self.dropout = nn.Dropout(dropout)
        self.exit = zero_linear(widths[-1], outputs)
        if dims == 2:
            nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The output (b, outputs) at the noisy states x and the time (b,)."""
        check_input("UNetEncoder", x, self.channels, self.dims)
        embedding, h = self.embedding(time), space_to_depth(x, self.patch)
        if self.dims == 2:
            h = h.contiguous(memory_format=torch.channels_last)
        h = self.entry(h)
        for level, stage in enumerate(self.stages):
            h = stage(self.downs[level - 1](h) if level else h, embedding)
        return self.exit(self.dropout(functional.silu(self.norm(h)).flatten(2).mean(2)))


class MLPEncoder(nn.Module):
    """An `MLP` on x of shape (b, *shape), flattened, that ends in (b, outputs); zero before training.

    Args: `shape`, `width`, `depth`, `dropout` as of `MLP`; `outputs`, how many numbers an example gets.
    `network(x, time)`: see `embeddings.Embedding` for the time.
    Raises ConfigurationError for input of another shape.
    """

    def __init__(
        self, shape: int | tuple[int, ...], width: int = 256, depth: int = 3, outputs: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not shape or min(*shape, width, depth) < 1:
            raise ConfigurationError(
                f"MLPEncoder: got shape {shape}, width {width}, depth {depth}; expected positive numbers"
            )
        check_dropout("MLPEncoder", dropout)
        check_outputs("MLPEncoder", outputs)
        self.spec = f"MLPEncoder(shape={shape}, width={width}, depth={depth}, outputs={outputs}, dropout={dropout})"
        self.shape, self.outputs = shape, outputs
        self.embedding = Embedding(width)
        self.entry = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(MLPBlock(width, width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.exit = zero_linear(width, outputs)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The output (b, outputs) at the noisy states x and the time (b,)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ConfigurationError(f"MLPEncoder: got examples of shape {tuple(x.shape[1:])}, expected {self.shape}")
        embedding, h = self.embedding(time), self.entry(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.exit(functional.silu(self.norm(h)))


def zero_linear(width: int, outputs: int) -> nn.Linear:
    """A linear layer that says 0 before training: of a classifier, that all classes are as likely."""
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def check_outputs(network: str, outputs: int) -> None:
    """Raise ConfigurationError unless `outputs` is a number of them."""
    if outputs < 1:
        raise ConfigurationError(f"{network}: got outputs={outputs}, expected at least 1")
