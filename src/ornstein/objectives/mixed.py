"""The objective of a state of parts: squared errors of numbers and cross-entropies of categories, at one time for each example.

    loss_i = (1 / D) [ sum_numbers (r_hat - r)^2 + balance sum_columns w(t) (-log p(x_0 | x_t)) ]

with r the reading that the network predicts of numbers, D the number of model values, a category being one of them. The
factor w is 1, or, `weighted`, that of the bound of masks, -alpha' / (1 - alpha): the optimum is the same, the noise of the
gradient larger. So is the optimum for any `balance`, which is a matter of what a network of finite size learns first.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.objectives.discrete import check_even, reveal_rate, uniform_times
from ornstein.objectives.squared import EDGE, Loss, TimeLaw
from ornstein.processes.categorical import Categorical
from ornstein.processes.product import Product, State


@dataclass(frozen=True)
class MixedObjective:
    """The sum over the parts of a `Product`; see the module.

    balance: the factor of the categories' cross-entropies, in nats, beside squared errors of numbers of variance 1.
    weighted: whether they have the weight of the bound; for absorbing kernels alone.
    times: uniform on [0, 1], one for each example and all of its parts.

    Of a process that is known at the times i / T alone, the time is the next one of them. Raises `ConfigurationError` on other
    times, and unless balance > 0.
    """

    balance: float = 1.0
    weighted: bool = False
    times: TimeLaw = field(default_factory=uniform_times)

    def __post_init__(self) -> None:
        check_even(self.times)
        if not self.balance > 0:
            raise ConfigurationError(f"got balance={self.balance}, expected a positive number")

    def __call__(
        self, denoiser: DenoiserLike, x0: State, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0, a dict of parts, under the condition cond (b, ...), with draws from rng.

        Its parts are `numbers` and `categories`. Raises `ConfigurationError` for a process that is no product.
        """
        process = denoiser.process
        if not isinstance(process, Product):
            raise ConfigurationError(
                f"got {type(process).__name__}, expected a Product; for one state space its own objective"
            )
        t = self.times(process, rng.shared().clamp(EDGE, 1 - EDGE))[rng.rows]
        t = t if process.steps is None else torch.ceil(t * process.steps) / process.steps
        x_t, truths = {}, {}
        for name, part in process.parts.items():
            if isinstance(part, Categorical):
                x_t[name] = part.noise(x0[name], t, rng)
            else:
                truths[name] = part.noised(x0[name], t, rng)
                x_t[name] = truths[name].x_t
        estimate = denoiser(x_t, t, cond, keep)
        dims = sum(part[0].numel() for part in x0.values())
        losses: dict[str, list[Tensor]] = {"numbers": [], "categories": []}
        for name, held in estimate.parts.items():
            if name in truths:
                error = held.value - truths[name].like(held.kind, held.sigma_data).value
                losses["numbers"].append(error.square().flatten(1).sum(1))
            else:
                costs = -held.log_prob(x0[name])
                losses["categories"].append(self.balance * self._factor(held.process, t, costs) * costs)
        parts = {name: torch.stack(found).sum(0) / dims for name, found in losses.items() if found}
        return Loss(torch.stack(list(parts.values())).sum(0), t, parts)

    def _factor(self, process: Categorical, t: Tensor, costs: Tensor) -> Tensor | float:
        """The weights of a part of categories. Raises `ConfigurationError` for those of the bound where the noise is no masks."""
        if not self.weighted:
            return 1.0
        if not process.kernel.absorbing:
            raise ConfigurationError(
                f"got weighted=True for {process.kernel!r}, expected an Absorbing kernel, or weighted=False"
            )
        return reveal_rate(process, t).to(costs)
