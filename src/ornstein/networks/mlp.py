"""A residual multilayer perceptron: vectors, toys, tables of numbers, and any small array taken as one long vector."""

import math

from torch import Tensor, nn
from torch.nn import functional

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError
from ornstein.networks.embeddings import Embedding, check_dropout, modulate
from ornstein.networks.given import parts_of


class MLPBlock(nn.Module):
    """`x + W_2 dropout(silu(modulate(norm(W_1 x))))`, the modulation a linear function of the embedding."""

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.widen = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(width, width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = modulate(self.norm(self.widen(x)), self.modulation(embedding))
        return x + self.narrow(self.dropout(functional.silu(h)))


class MLP(nn.Module):
    """A residual perceptron on `x` of shape (b, *shape), flattened. Returns (b, outputs * shape[0], ...); zero before training.

    Args: `shape`, an example's shape (7 stands for (7,)); `width` and `depth`, units and residual blocks; `classes`, 0
    or the number of classes (or the length of a float condition); `dropout`, the probability within blocks; `outputs`,
    2 where a variance is learned.
    `network(x, time, cond=None, keep=None)`: see `embeddings.Embedding` for the last three.
    Raises ConfigurationError for input of another shape.
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        width: int = 256,
        depth: int = 4,
        classes: int = 0,
        dropout: float = 0.0,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not shape or min(*shape, width, depth, outputs) < 1:
            raise ConfigurationError(
                f"MLP: got shape {shape}, width {width}, depth {depth}, outputs {outputs}; expected positive numbers"
            )
        check_dropout("MLP", dropout)
        self.spec = (
            f"MLP(shape={shape}, width={width}, depth={depth}, classes={classes}, dropout={dropout}, outputs={outputs})"
        )
        self.shape, self.leaving = shape, (outputs * shape[0], *shape[1:])
        self.classes = classes
        self.embedding = Embedding(width, classes)
        self.entry = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(MLPBlock(width, width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, outputs * math.prod(shape))
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(self, x: Tensor, time: Tensor, cond: Condition | None = None, keep: Tensor | None = None) -> Tensor:
        """The output at the noisy states x and what `Embedding` makes of the rest."""
        if tuple(x.shape[1:]) != self.shape:
            raise ConfigurationError(f"MLP: got examples of shape {tuple(x.shape[1:])}, expected {self.shape}")
        embedding = self.embedding(time, parts_of(cond, self.classes)[0], keep)
        h = self.entry(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.exit(functional.silu(self.norm(h))).reshape(len(x), *self.leaving)
