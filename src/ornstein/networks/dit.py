"""A diffusion transformer (Peebles and Xie 2023, arXiv:2212.09748) for series (1-D) and images (2-D) of any size.

Patches become tokens, tokens pass through transformer blocks, and time and condition act on every block by adaLN-zero:
they shift and scale what a block reads and gate what it adds. The gates start at zero, so an untrained block is the
identity and the depth grows in training.

Positions are the sines and cosines of the paper, added once at the entry. They are computed from the coordinates, not
learned, so any size has them, sizes not seen in training too. They are absolute, not rotary, because the data of
diffusion are placed in their frame (a digit in the middle, a sky above), which attention that knows only differences
of position cannot tell; and they cost one addition where rotation costs two copies a block.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError
from ornstein.networks.embeddings import Embedding, check_dropout
from ornstein.networks.given import beside, check_images, parts_of
from ornstein.networks.patches import Channels, check_dims, check_input, depth_to_space, in_and_out, space_to_depth

HEAD = 32  # widths are multiples of it; heads have 64 channels, or 32 where 64 does not divide the width
LONGEST = 10_000.0  # wavelengths run from 2 pi to 2 pi times this, in positions


class DiTBlock(nn.Module):
    """`x += gate_1 attention(m_1(norm(x)))`, `x += gate_2 W_2 dropout(gelu(W_1 m_2(norm(x))))` on tokens (b, n, width).

    `m(h) = h (1 + scale) + shift`; the two shifts, scales and gates are one linear function of the embedding, zero
    before training.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = width // 64 if width % 64 == 0 else width // HEAD
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.widen = nn.Linear(width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        x = torch.addcmul(x, gate_1, self.attention(torch.addcmul(shift_1, self.norm(x), scale_1 + 1)))
        h = functional.gelu(self.widen(torch.addcmul(shift_2, self.norm(x), scale_2 + 1)), approximate="tanh")
        return torch.addcmul(x, gate_2, self.narrow(self.dropout(h)))

    def attention(self, h: Tensor) -> Tensor:
        """Self-attention among the tokens (b, n, width) of each example."""
        q, k, v = self.query_key_value(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.project(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DiT(nn.Module):
    """A diffusion transformer on `x` (b, channels, length) or (b, channels, height, width); returns the same shape.

    Sizes that `patch` does not divide are zero-padded to a multiple of it, and what was added is cropped. Attention
    costs the square of the number of patches. No layer mixes the rows of a batch. Zero output before training.

    Args: `channels` of the data, or (of the input, of the output), twice as many where a variance is learned; `dims`,
    1 or 2; `width` of a token, a multiple of 32 (heads have 64 channels, or 32 where 64 does not divide it); `depth`, the
    number of blocks; `patch`, the side of the squares that are tokens; `classes`, 0 or the number of classes (or the length
    of a float condition); `dropout`, the probability in the perceptrons; `images`, 0 or the channels of a condition image of
    the size of x. The paper's S, B, L are (width, depth) = (384, 12), (768, 12), (1024, 24).
    `network(x, time, cond=None, keep=None)`: see `embeddings.Embedding` for the last three, and `given` for images.
    Raises ConfigurationError for arguments or input that do not fit.
    """

    def __init__(
        self,
        channels: Channels,
        dims: int = 2,
        width: int = 384,
        depth: int = 12,
        patch: int = 2,
        classes: int = 0,
        dropout: float = 0.0,
        images: int = 0,
    ) -> None:
        super().__init__()
        entering, leaving = in_and_out(channels)
        check_arguments(min(entering, leaving), dims, width, depth, patch)
        check_dropout("DiT", dropout)
        check_images("DiT", images)
        self.spec = (
            f"DiT(channels={channels}, dims={dims}, width={width}, depth={depth}, patch={patch}, "
            f"classes={classes}, dropout={dropout}, images={images})"
        )
        self.channels, self.dims, self.width, self.patch = entering, dims, width, patch
        self.classes, self.images = classes, images
        seen = entering + images + (images > 0)  # one channel tells where the image is
        self.embedding = Embedding(width, classes)
        self.entry = nn.Linear(seen * patch**dims, width)
        self.blocks = nn.ModuleList(DiTBlock(width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.exit = nn.Linear(width, leaving * patch**dims)
        first_weights(self)

    def forward(self, x: Tensor, time: Tensor, cond: Condition | None = None, keep: Tensor | None = None) -> Tensor:
        """The output (b, channels, *space) at the noisy states x and what `Embedding` makes of the rest."""
        check_input("DiT", x, self.channels, self.dims)
        embedded, image = parts_of(cond, self.classes, self.images)
        embedding = self.embedding(time, embedded, keep)
        packed = space_to_depth(beside("DiT", x, image, keep, self.images), self.patch)
        grid = packed.shape[2:]
        h = self.entry(packed.flatten(2).transpose(1, 2)) + positions(grid, self.width, x.device)
        for block in self.blocks:
            h = block(h, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        h = self.exit(torch.addcmul(shift, self.norm(h), scale + 1))
        return depth_to_space(h.transpose(1, 2).unflatten(2, grid), self.patch, x.shape[2:])


def first_weights(network: nn.Module) -> None:
    """Before training: no biases, modulations and exit zero, other linear layers by Glorot; the embedding's stay as they are."""
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Linear) or name.startswith("embedding"):
            continue
        nn.init.zeros_(layer.bias)
        if name.endswith(("modulation", "exit")):
            nn.init.zeros_(layer.weight)
        else:
            nn.init.xavier_uniform_(layer.weight)


def positions(grid: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """Features (n, width) of the n positions of a grid in row-major order, `width / len(grid)` = 2 m for each axis.

    `(sin(w_1 i), ..., sin(w_m i), cos(w_1 i), ..., cos(w_m i))` at index i, with `w_j = 10000^(-(j - 1) / m)`.
    """
    half = width // (2 * len(grid))
    frequencies = torch.exp(torch.arange(half, device=device) * (-math.log(LONGEST) / half))
    axes = []
    for axis, size in enumerate(grid):
        phase = torch.arange(size, device=device)[:, None] * frequencies
        features = torch.cat((phase.sin(), phase.cos()), dim=1)
        shape = [size if other == axis else 1 for other in range(len(grid))]
        axes.append(features.reshape(*shape, 2 * half).expand(*grid, 2 * half))
    return torch.cat(axes, dim=-1).flatten(0, -2)


def check_arguments(channels: int, dims: int, width: int, depth: int, patch: int) -> None:
    """Raise ConfigurationError with got, expected and remedy where the arguments of a DiT do not fit."""
    check_dims("DiT", dims)
    if channels < 1 or depth < 1 or patch < 1:
        raise ConfigurationError(
            f"DiT: got channels={channels}, depth={depth}, patch={patch}; expected at least 1 of each"
        )
    if width < HEAD or width % HEAD:
        raise ConfigurationError(f"DiT: got width={width}, expected a positive multiple of {HEAD}")
