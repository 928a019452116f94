"""A residual perceptron on a state of parts: the numbers of a row beside its categories, as a mixed table has them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError
from ornstein.networks.embeddings import Embedding, check_dropout
from ornstein.networks.given import parts_of
from ornstein.networks.mlp import MLPBlock

NUMBERS = "numbers"


class TabularMLP(nn.Module):
    """A perceptron on {"numbers": float (b, numbers), column: int64 (b,), ...}; returns {"numbers": (b, numbers), column: (b,
    K)}.

    Categories enter as one-hot vectors of unit mean square. Zero output before training.

    Args: `numbers`, how many, 0 where there are none; `categories`, {column: (states, categories)}, states with the mask
    where the noise is masks; `width` and `depth`, units and residual blocks; `classes`, 0 or the number of classes;
    `dropout`, the probability within blocks. `network(x, time, cond=None, keep=None)`: see `embeddings.Embedding` for the
    last three. Raises ConfigurationError for arguments or a state that do not fit.
    """

    images = 0

    def __init__(
        self,
        numbers: int,
        categories: dict[str, tuple[int, int]],
        width: int = 256,
        depth: int = 3,
        classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        columns = {str(name): (int(states), int(k)) for name, (states, k) in categories.items()}
        if numbers < 0 or not (numbers or columns) or NUMBERS in columns or min(width, depth) < 1:
            raise ConfigurationError(
                f"TabularMLP: got numbers={numbers}, columns {sorted(columns)}, width={width}, "
                f"depth={depth}; expected some numbers "
                f"or columns, none of which is called {NUMBERS!r}, and positive sizes"
            )
        if any(not 2 <= k <= states for states, k in columns.values()):
            raise ConfigurationError(
                f"TabularMLP: got categories={columns}, expected (states, categories), 2 <= categories <= states"
            )
        check_dropout("TabularMLP", dropout)
        self.spec = (
            f"TabularMLP(numbers={numbers}, categories={columns}, width={width}, depth={depth}, classes={classes}, "
            f"dropout={dropout})"
        )
        self.numbers, self.columns, self.classes = numbers, columns, classes
        self.names = [*([NUMBERS] if numbers else []), *columns]
        self.sizes = [*([numbers] if numbers else []), *(k for _, k in columns.values())]
        self.embedding = Embedding(width, classes)
        self.entry = nn.Linear(numbers + sum(states for states, _ in columns.values()), width)
        self.blocks = nn.ModuleList(MLPBlock(width, width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, sum(self.sizes))
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def forward(
        self, x: dict[str, Tensor], time: Tensor, cond: Condition | None = None, keep: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The outputs at the state x and what `Embedding` makes of the rest."""
        if set(x) != set(self.names):
            raise ConfigurationError(f"TabularMLP: got a state of {sorted(x)}, expected {sorted(self.names)}")
        parts = [x[NUMBERS].float()] if self.numbers else []
        if parts and parts[0].shape[1:] != (self.numbers,):
            raise ConfigurationError(
                f"TabularMLP: got numbers of shape {tuple(parts[0].shape)}, expected (b, {self.numbers})"
            )
        for name, (states, _) in self.columns.items():
            if x[name].ndim != 1 or x[name].is_floating_point():
                raise ConfigurationError(
                    f"TabularMLP: got {x[name].dtype} of shape {tuple(x[name].shape)} for {name!r}, expected int64 (b,)"
                )
            parts.append(functional.one_hot(x[name], states).float() * math.sqrt(states))
        embedding = self.embedding(time, parts_of(cond, self.classes)[0], keep)
        h = self.entry(torch.cat(parts, 1))
        for block in self.blocks:
            h = block(h, embedding)
        outputs = self.exit(functional.silu(self.norm(h))).split(self.sizes, 1)
        return dict(zip(self.names, outputs, strict=True))
