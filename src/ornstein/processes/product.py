"""A product of processes: a state of named parts, each noised by its own process on one line of time, as in a mixed table.

    q(x_t | x_0) = prod_parts q(x_t^part | x_0^part)

Forward the parts know nothing of each other. Backward they meet in the denoiser, which reads all of x_t: its estimate holds
one for each part, and the law of a step is the product of theirs,

    p(x_s | x_t) = prod_parts p(x_s^part | x_t),

so a bound of log p is the sum of theirs. What this product leaves out falls with the length of the step. A state is a dict of
tensors with one leading axis b. All parts reach their data at t = 0, so that the last step lands on all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ornstein.conditions import Condition, rows_of
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.schedules.base import Time

State = dict[str, Tensor]


@dataclass(frozen=True)
class ProductEstimate:
    """What is held of x_0 given x_t: an estimate for each part."""

    process: "Product"
    x_t: State
    t: Time
    parts: dict[str, Any]

    def rows(self, rows: Any) -> "ProductEstimate":
        """The estimate of some rows of the batch (a slice, numbers or a mask)."""
        t = self.t[rows] if isinstance(self.t, Tensor) and self.t.ndim else self.t
        x_t = rows_of(self.x_t, rows)
        assert isinstance(x_t, dict)
        return replace(self, x_t=x_t, t=t, parts={name: part.rows(rows) for name, part in self.parts.items()})


@dataclass(frozen=True)
class ProductLaw:
    """Independent laws of the parts."""

    parts: dict[str, Any]

    def sample(self, rng: Noise) -> State:
        """A draw of each part, in their order."""
        return {name: law.sample(rng) for name, law in self.parts.items()}

    def log_prob(self, x: State) -> Tensor:
        """The sum over the parts, in nats, (b,)."""
        return total(law.log_prob(x[name]) for name, law in self.parts.items())

    def kl(self, other: "ProductLaw") -> Tensor:
        """The sum over the parts, in nats, (b,)."""
        return total(law.kl(other.parts[name]) for name, law in self.parts.items())


@dataclass(frozen=True, eq=False)
class Product:
    """`Product({name: process})`: the process of a state {name: part}.

    Raises `ConfigurationError` without parts, and where some end at the data at t = 0 and others above them.
    """

    parts: Mapping[str, Any]

    holds = False
    """Whether a place may be at its data at every level."""

    schedule = None
    """It has no one schedule: its parts have theirs."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigurationError("got a Product of no parts, expected {name: process}")
        object.__setattr__(self, "parts", dict(self.parts))
        ends = {name: (part.t_min, part.is_data(part.t_min)) for name, part in self.parts.items()}
        if set(ends.values()) != {(0.0, True)}:
            name = next(name for name, end in ends.items() if end != (0.0, True))
            raise ConfigurationError(
                f"got the part {name!r} under {self.parts[name]!r}, which does not end on the data at t = 0, "
                "where all parts must; "
                "expected a schedule with sigma(0) = 0, such as CosineVP() or RectifiedFlow()"
            )
        tables = {part.steps for part in self.parts.values() if part.steps is not None}
        if len(tables) > 1:
            raise ConfigurationError(f"got parts of {sorted(tables)} steps, expected one number for all")

    @property
    def steps(self) -> int | None:
        """T where a part is known at the times i / T alone."""
        return next((part.steps for part in self.parts.values() if part.steps is not None), None)

    @property
    def t_min(self) -> float:
        """0, where the data are."""
        return 0.0

    def is_data(self, t: float) -> bool:
        """Whether the state at t is the data."""
        return all(part.is_data(t) for part in self.parts.values())

    def describe(self, t: float) -> str:
        """The levels at a time, for messages."""
        return "; ".join(f"{name}: {part.describe(t)}" for name, part in list(self.parts.items())[:2])

    def given(self, cond: Condition | None) -> "Product":
        """The process under a condition, with that of each part."""
        return self._each(lambda part: part.given(cond))

    def rows(self, rows: Any) -> "Product":
        """The process of some rows of the batch whose condition it was given."""
        return self._each(lambda part: part.rows(rows))

    def _each(self, change: Callable[[Any], Any]) -> "Product":
        parts = {name: change(part) for name, part in self.parts.items()}
        return self if all(parts[name] is part for name, part in self.parts.items()) else Product(parts)

    def noise(self, x0: State, t: Time, rng: Noise) -> State:
        """A draw of q(x_t | x_0), part by part."""
        return {name: part.noise(x0[name], t, rng) for name, part in self.parts.items()}

    def prior(self, shape: Mapping[str, tuple[int, ...]], rng: Noise, t: float = 1.0) -> State:
        """A draw of the prior; `shape` holds that of each part, b included."""
        return {name: part.prior(shape[name], rng, t) for name, part in self.parts.items()}

    def log_prior(self, x: State) -> Tensor:
        """The sum over the parts, in nats, (b,)."""
        return total(part.log_prior(x[name]) for name, part in self.parts.items())

    def estimate(self, x_t: State, t: Time, *, parts: dict[str, Any]) -> ProductEstimate:
        """The estimate of one for each part. Raises `ConfigurationError` for other parts."""
        if set(parts) != set(self.parts):
            raise ConfigurationError(f"got estimates of {sorted(parts)}, expected {sorted(self.parts)}")
        return ProductEstimate(self, x_t, t, parts)

    def posterior(self, estimate: ProductEstimate, t: Time, s: Time, eta: float = 1.0) -> ProductLaw:
        """The law of x_s given x_t, for s < t: those of the parts."""
        return ProductLaw({n: part.posterior(estimate.parts[n], t, s, eta) for n, part in self.parts.items()})

    def transition(self, x_s: State, s: Time, t: Time) -> ProductLaw:
        """q(x_t | x_s) for s < t."""
        return ProductLaw({name: part.transition(x_s[name], s, t) for name, part in self.parts.items()})

    def land(self, estimate: ProductEstimate, rng: Noise) -> State:
        """The data, as each part lands on them."""
        return {name: part.land(estimate.parts[name], rng) for name, part in self.parts.items()}


def total(values: Any) -> Tensor:
    """The sum of tensors."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first
