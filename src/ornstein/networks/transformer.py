"""A bidirectional transformer on codes: text, and any sequence of symbols, of any length.

A model of discrete data reads a sequence in which some symbols are noise (masked or replaced) and says at every place how
likely each clean symbol is: `logits[i] = f(x_1, ..., x_L)[i]`. Nothing is hidden from a place, left or right, for the
noise alone decides what there is to guess. The blocks are those of `dit`: time and class shift, scale and gate what a
block does (adaLN-zero), so an untrained block is the identity.

Positions are rotary (Su et al. 2021, arXiv:2104.09864). Text has no frame: a word means the same wherever it stands. So
what attention compares depends on places by their difference only. The pairs (q_2j-1, q_2j) of a query are taken as complex
numbers z_j, and likewise those of a key; at place i both are turned by an angle that grows with i,

    z_j -> z_j exp(sqrt(-1) i w_j),   w_j = 10000^(-(j - 1) / m),   j = 1 .. m,

whose products `Re(z_j conj(z'_j))` hold `exp(sqrt(-1) (i - i') w_j)` alone. A turn has no length it was trained for.

Attention needs long to discover that neighbours matter most, which in text is most of the truth. So what a block's two
halves read is first mixed with its neighbours by a short depthwise convolution (`mixing` places wide). In
attention such convolutions are known (So et al. 2021, arXiv:2109.08668, of queries, keys and values); before the perceptron,
each of its units is a small detector of strings from the first step.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError
from ornstein.networks.dit import HEAD, LONGEST, DiTBlock, first_weights
from ornstein.networks.embeddings import Embedding, check_dropout
from ornstein.networks.given import parts_of


class NearLinear(nn.Linear):
    """`W (h_i + sum_{|j| <= r} w_j h_{i+j}) + b` at each place i of h (b, n, width), with w_j h channel by channel.

    Zeros stand outside the sequence; `mixing` = 2 r + 1. The w_j start normal of variance 1 / mixing: channels that read
    neighbours from the first step learn faster than from w = 0.
    """

    def __init__(self, width: int, outputs: int, mixing: int) -> None:
        super().__init__(width, outputs)
        self.near = nn.Parameter(torch.randn(mixing, width) / mixing**0.5)

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h + mixed(h, self.near))


class TokenBlock(DiTBlock):
    """A `DiTBlock` on tokens in a row (b, n, width): queries and keys turned by place.

    With `mixing` > 0 attention and perceptron read their neighbourhoods, by a `NearLinear` each.
    """

    def __init__(self, width: int, dropout: float, mixing: int) -> None:
        super().__init__(width, dropout)
        if mixing:
            self.query_key_value = NearLinear(width, 3 * width, mixing)
            self.widen = NearLinear(width, 4 * width, mixing)
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies(width // self.heads), persistent=False)

    def attention(self, h: Tensor) -> Tensor:
        """Self-attention among the tokens (b, n, width) of each example, by differences of place."""
        paired, v = self.query_key_value(h).unflatten(2, (3, self.heads, -1)).split((2, 1), dim=2)
        q, k = turn(paired, self.frequencies).permute(2, 0, 3, 1, 4)
        h = functional.scaled_dot_product_attention(q, k, v[:, :, 0].transpose(1, 2))
        return self.project(h.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """A transformer on codes `x`, int64 (b, L) in [0, states), any L; returns logits (b, L, categories).

    Attention costs the square of L. No layer mixes the rows of a batch. All logits are zero before training: the first loss
    is log(categories).

    Args: `states`, how many codes the input has, with the mask where the noise is masks; `categories`, how many the data
    have; `width` of a token, a multiple of 32 (heads have 64 channels, or 32 where 64 does not divide it); `depth`, the number
    of blocks; `classes`, 0 or the number of classes (or the length of a float condition); `dropout`, the probability in
    the perceptrons; `mixing`, 0 or the odd number of neighbouring places mixed before each half of a block; `timed`, False
    to leave the time out, which masks need not, for they can be counted.
    `network(x, time, cond=None, keep=None)`: see `embeddings.Embedding` for the last three.
    Raises ConfigurationError for arguments or input that do not fit.
    """

    images = 0

    def __init__(
        self,
        states: int,
        categories: int,
        width: int = 256,
        depth: int = 6,
        classes: int = 0,
        dropout: float = 0.0,
        mixing: int = 5,
        timed: bool = True,
    ) -> None:
        super().__init__()
        check_arguments(states, categories, width, depth, mixing)
        check_dropout("Transformer", dropout)
        self.spec = (
            f"Transformer(states={states}, categories={categories}, width={width}, depth={depth}, classes={classes}, "
            f"dropout={dropout}, mixing={mixing}, timed={timed})"
        )
        self.states, self.classes, self.timed = states, classes, timed
        self.embedding = Embedding(width, classes)
        self.entry = nn.Embedding(states, width)
        self.blocks = nn.ModuleList(TokenBlock(width, dropout, mixing) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.exit = nn.Linear(width, categories)
        first_weights(self)

    def forward(self, x: Tensor, time: Tensor, cond: Condition | None = None, keep: Tensor | None = None) -> Tensor:
        """The logits (b, L, categories) at the noisy codes x and what `Embedding` makes of the rest."""
        if x.ndim != 2 or x.is_floating_point():
            raise ConfigurationError(
                f"Transformer: got {x.dtype} codes of shape {tuple(x.shape)}, expected int64 (batch, length)"
            )
        embedded, _ = parts_of(cond, self.classes)
        embedding = self.embedding(time if self.timed else torch.zeros_like(time), embedded, keep)
        h = self.entry(x)
        for block in self.blocks:
            h = block(h, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        return self.exit(torch.addcmul(shift, self.norm(h), scale + 1))


def frequencies(size: int) -> Tensor:
    """The m = size / 2 rates of turning, `w_j = 10000^(-(j - 1) / m)` radians a place."""
    half = size // 2
    return LONGEST ** (-torch.arange(half) / half)


def turn(x: Tensor, rates: Tensor) -> Tensor:
    """x (b, n, ..., 2 m) with the complex pair j at place i times `exp(sqrt(-1) i rates_j)`, i = 0 .. n - 1."""
    phase = torch.arange(x.shape[1], device=x.device)[:, None] * rates
    turns = torch.polar(torch.ones_like(phase), phase).reshape(len(phase), *(1,) * (x.ndim - 3), len(rates))
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def mixed(h: Tensor, weights: Tensor) -> Tensor:
    """`sum_j weights_j h_{i + j - r}` for j = 0 .. 2 r, channel by channel: h (b, n, c), weights (2 r + 1, c)."""
    # as an image of one row: two-dimensional depthwise kernels are several times faster than one-dimensional ones on a CPU
    kernel = weights.T[:, None, None]
    rows = h.transpose(1, 2)[:, :, None]
    return functional.conv2d(rows, kernel, padding=(0, len(weights) // 2), groups=len(kernel))[:, :, 0].transpose(1, 2)


def check_arguments(states: int, categories: int, width: int, depth: int, mixing: int) -> None:
    """Raise ConfigurationError with got, expected and remedy where the arguments of a Transformer do not fit."""
    if not 2 <= categories <= states:
        raise ConfigurationError(
            f"Transformer: got states={states}, categories={categories}; expected at least 2 categories and as many "
            "states, or one more for a mask"
        )
    if depth < 1:
        raise ConfigurationError(f"Transformer: got depth={depth}, expected at least 1 block")
    if width < HEAD or width % HEAD:
        raise ConfigurationError(f"Transformer: got width={width}, expected a positive multiple of {HEAD}")
    if mixing < 0 or (mixing and mixing % 2 == 0):
        raise ConfigurationError(f"Transformer: got mixing={mixing}, expected 0 or an odd number of places")
