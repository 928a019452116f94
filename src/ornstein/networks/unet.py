"""A U-Net for series (1-D) and images (2-D) of any size, built to train fast.

Nearly all the time of a U-Net goes into 3x3 convolutions, whose cost is positions x width squared: so the network
works on patches (`patch` = 2 takes each 2x2 square as one position of four times the channels, a quarter of the cost),
and is wide where positions are few. Convolutions want channels-last memory: the input is converted once at entry and
no layer leaves the layout. The rest is memory traffic: so the time enters by one fused multiply-add a block, and a
skip is added after a 1x1 convolution of either branch (the linear map of a concatenation and one convolution, without
the copy and with the coarse half done before upsampling).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError
from ornstein.networks.embeddings import Embedding, check_dropout, modulate
from ornstein.networks.given import beside, check_images, parts_of
from ornstein.networks.patches import (
    Channels,
    check_dims,
    check_input,
    crop,
    depth_to_space,
    in_and_out,
    space_to_depth,
)

GROUP = 8  # channels a normalisation group holds; widths are multiples of it


def convolution(dims: int, channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Conv1d | nn.Conv2d:
    """A zero-padded convolution that keeps the size (or, with stride 2, leaves ceil(size / 2))."""
    kind = nn.Conv1d if dims == 1 else nn.Conv2d
    return kind(channels, out, kernel, stride=stride, padding=kernel // 2)


class Block(nn.Module):
    """`x + conv(dropout(silu(modulate(norm(conv(silu(norm(x))))))))`, all at one width."""

    def __init__(self, dims: int, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(width // GROUP, width)
        self.conv1 = convolution(dims, width, width)
        self.norm2 = nn.GroupNorm(width // GROUP, width, affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(dims, width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = functional.silu(modulate(self.norm2(h), self.modulation(embedding)))
        return x + self.conv2(self.dropout(h))


class Attention(nn.Module):
    """`x + proj(attention(norm(x)))` over all positions; heads of 32 channels, or one head where 32 does not divide."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.heads = width // 32 if width % 32 == 0 else 1
        self.norm = nn.GroupNorm(width // GROUP, width)
        self.query_key_value = convolution(dims, width, 3 * width, kernel=1)
        self.project = convolution(dims, width, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        # (b, 3 c, *space) -> three of (b, heads, n, c / heads): views, for channels-last memory is (b, n, 3 c) already
        packed = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2)
        q, k, v = packed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = functional.scaled_dot_product_attention(q, k, v)
        h = h.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.project(h)


class Stage(nn.Module):
    """Blocks of one width at one resolution, each followed by attention where asked."""

    def __init__(self, dims: int, width: int, embedding: int, dropout: float, blocks: int, attention: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dims, width, embedding, dropout) for _ in range(blocks))
        self.attentions = nn.ModuleList(Attention(dims, width) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, embedding)
            if self.attentions:
                x = self.attentions[i](x)
        return x


class UNet(nn.Module):
    """A U-Net on `x` (b, channels, length) or (b, channels, height, width) of any size; returns the same shape.

    Level i has `widths[i]` channels at 1 / (patch 2^i) of the size, `blocks` residual blocks on the way down and as
    many on the way up. Sizes that do not divide are zero-padded to a multiple of `patch` and rounded up at each
    halving; what was added is cropped. No layer mixes the rows of a batch. Zero output before training.

    Args: `channels` of the data, or (of the input, of the output), twice as many where a variance is learned; `dims`,
    1 or 2; `widths`, multiples of 8, finest level first; `blocks` a level;
    `attention`, on how many of the coarsest levels blocks are followed by self-attention; `classes`, 0 or the number of
    classes (or the length of a float condition); `patch`, 1, 2 or 4: the side of the squares taken as one position;
    `dropout`, the probability in blocks; `images`, 0 or the channels of a condition image of the size of x.
    `network(x, time, cond=None, keep=None)`: see `embeddings.Embedding` for the last three, and `given` for images.
    Raises ConfigurationError for arguments or input that do not fit.
    """

    def __init__(
        self,
        channels: Channels,
        dims: int = 2,
        widths: Sequence[int] = (64, 128),
        blocks: int = 2,
        attention: int = 1,
        classes: int = 0,
        patch: int = 1,
        dropout: float = 0.0,
        images: int = 0,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        entering, leaving = in_and_out(channels)
        check_arguments(min(entering, leaving), dims, widths, blocks, attention, patch)
        check_dropout("UNet", dropout)
        check_images("UNet", images)
        self.spec = (
            f"UNet(channels={channels}, dims={dims}, widths={widths}, blocks={blocks}, attention={attention}, "
            f"classes={classes}, patch={patch}, dropout={dropout}, images={images})"
        )
        self.channels, self.dims, self.patch = entering, dims, patch
        size = 4 * widths[0]
        self.classes, self.images = classes, images
        seen = entering + images + (images > 0)  # one channel tells where the image is
        self.embedding = Embedding(size, classes)
        self.entry = convolution(dims, seen * patch**dims, widths[0])
        levels = list(zip(widths, attends(widths, attention), strict=True))
        stages = [[Stage(dims, w, size, dropout, blocks, a) for w, a in levels] for _ in range(2)]
        steps = list(pairwise(widths))
        self.down_stages, self.up_stages = nn.ModuleList(stages[0]), nn.ModuleList(stages[1])
        self.downs = nn.ModuleList(convolution(dims, fine, coarse, stride=2) for fine, coarse in steps)
        self.ups = nn.ModuleList(convolution(dims, coarse, fine, kernel=1) for fine, coarse in steps)
        self.skips = nn.ModuleList(convolution(dims, fine, fine, kernel=1) for fine, _ in steps)
        self.norm = nn.GroupNorm(widths[0] // GROUP, widths[0])
        self.exit = convolution(dims, widths[0], leaving * patch**dims)
        for parameter in self.exit.parameters():
            nn.init.zeros_(parameter)
        if dims == 2:
            nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, time: Tensor, cond: Condition | None = None, keep: Tensor | None = None) -> Tensor:
        """The output (b, channels, *space) at the noisy states x and what `Embedding` makes of the rest."""
        check_input("UNet", x, self.channels, self.dims)
        embedded, image = parts_of(cond, self.classes, self.images)
        embedding = self.embedding(time, embedded, keep)
        h = space_to_depth(beside("UNet", x, image, keep, self.images), self.patch)
        if self.dims == 2:
            h = h.contiguous(memory_format=torch.channels_last)
        h = self.entry(h)
        skips = []
        for level, stage in enumerate(self.down_stages):
            h = stage(self.downs[level - 1](h) if level else h, embedding)
            skips.append(h)
        for level in reversed(range(len(skips))):
            if level < len(skips) - 1:
                h = self.skips[level](skips[level]) + upsample(self.ups[level](h), skips[level].shape[2:])
            h = self.up_stages[level](h, embedding)
        h = self.exit(functional.silu(self.norm(h)))
        return depth_to_space(h, self.patch, x.shape[2:])


def attends(widths: Sequence[int], attention: int) -> list[bool]:
    """Which levels have attention: the `attention` coarsest."""
    return [level >= len(widths) - attention for level in range(len(widths))]


def upsample(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Each position doubled along every axis of space, cropped to `shape`."""
    x = functional.interpolate(x, scale_factor=2, mode="nearest")
    return crop(x, shape)


def check_arguments(channels: int, dims: int, widths: tuple[int, ...], blocks: int, attention: int, patch: int) -> None:
    """Raise ConfigurationError with got, expected and remedy where the arguments of a U-Net do not fit."""
    check_dims("UNet", dims)
    if patch not in (1, 2, 4):
        raise ConfigurationError(f"UNet: got patch={patch}, expected 1, 2 or 4")
    if channels < 1 or blocks < 1:
        raise ConfigurationError(f"UNet: got channels={channels}, blocks={blocks}; expected at least 1 of each")
    if not widths or any(w < GROUP or w % GROUP for w in widths):
        raise ConfigurationError(f"UNet: got widths={widths}, expected one positive multiple of {GROUP} a level")
    if not 0 <= attention <= len(widths):
        raise ConfigurationError(f"UNet: got attention={attention}, expected 0 to {len(widths)}, the number of levels")
