"""Image networks on codes: a `UNet` or `DiT` of numbers reads one-hot pixels and writes the logits of each.

    x (b, c, *space) of S states  ->  one-hot sqrt(S), and 2 x / (K - 1) - 1 (0 for a mask)  ->  network  ->  (b, c, *space, K)

The one-hot vectors, scaled to unit mean square, tell categories apart; the number beside them says that levels have an order,
which a network would else have to learn. `embed` > 0 has a learned vector of so many numbers in place of the one-hot, for
many states.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError


class Pixels(nn.Module):
    """An image network on codes x, int64 (b, c, *space) in [0, states); returns logits (b, c, *space, outputs).

    Args: `network`, a `UNet` or `DiT` of c (states + 1) channels, c (embed + 1) where `embed` > 0, that leaves c outputs;
    `states`, with the mask where the noise is masks; `categories`, of the data; `outputs`, of each pixel: the categories
    where None, 2 for a logistic head. `network(x, time, cond=None, keep=None)`. Raises ConfigurationError where channels do
    not fit.
    """

    def __init__(
        self, network: nn.Module, states: int, categories: int, outputs: int | None = None, embed: int = 0
    ) -> None:
        super().__init__()
        if not 2 <= categories <= states or embed < 0:
            raise ConfigurationError(
                f"Pixels: got states={states}, categories={categories}, embed={embed}; expected at least 2 categories, as many "
                "states or more, and embed of 0 (one-hot) or more"
            )
        self.states, self.categories = states, categories
        self.outputs, self.embed = outputs or categories, embed
        size = (embed or states) + 1
        self.channels, odd = divmod(int(getattr(network, "channels", 0)), size)
        if odd or not self.channels:
            raise ConfigurationError(
                f"Pixels: got a network of {getattr(network, 'channels', 'unknown')} channels, expected c times {size}: a number "
                f"and {embed or states} values of each of c channels of codes"
            )
        self.network: Any = network
        self.classes, self.images = self.network.classes, self.network.images
        self.spec = (
            f"Pixels({self.network.spec}, states={states}, categories={categories}, "
            f"outputs={self.outputs}, embed={embed})"
        )
        self.table = nn.Embedding(states, embed) if embed else None

    def forward(self, x: Tensor, time: Tensor, cond: Condition | None = None, keep: Tensor | None = None) -> Tensor:
        """The logits at the codes x."""
        if x.is_floating_point() or x.ndim < 3 or x.shape[1] != self.channels:
            raise ConfigurationError(
                f"Pixels: got {x.dtype} codes of shape {tuple(x.shape)}, expected int64 (b, {self.channels}, *space)"
            )
        space = tuple(range(2, x.ndim))
        vectors = functional.one_hot(x, self.states) * math.sqrt(self.states) if self.table is None else self.table(x)
        number = torch.where(x < self.categories, 2 * x / (self.categories - 1) - 1, 0.0)[..., None]
        seen = torch.cat((number, vectors.to(number)), -1).permute(0, 1, -1, *space).flatten(1, 2)
        out = self.network(seen, time) if cond is None else self.network(seen, time, cond, keep)
        return out.unflatten(1, (self.channels, self.outputs)).permute(0, 1, *(axis + 1 for axis in space), 2)
