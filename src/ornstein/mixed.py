"""The denoiser of a state of parts, numbers and categories: one network call, read part by part.

Numbers enter as they are, or over N with N^2 = alpha^2 sigma_data^2 + sigma^2, and are read as a `Denoiser` reads them;
categories enter as their codes, and are read as a `DiscreteDenoiser` reads them. The network sees all of x_t for each part:
that is how numbers and categories come to depend on each other, though each is noised, and drawn in a step, by itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.conditions import Condition
from ornstein.denoisers import Denoiser, TrainedDenoiser
from ornstein.discrete import DiscreteDenoiser
from ornstein.errors import ConfigurationError, nearest
from ornstein.processes.categorical import Categorical
from ornstein.processes.gaussian import Estimate, Gaussian, spread
from ornstein.processes.product import Product, ProductEstimate, State
from ornstein.schedules.base import Time

PARAMETRIZATIONS = ("v", "x0", "eps", "velocity", "edm")


class MixedDenoiser(TrainedDenoiser):
    """A network read as an estimate of each part under a `Product`.

    Args:
        network: `network(x, time)`, or `network(x, time, cond, keep)` where a condition is given; x a dict of parts, time
            (b,); it returns a dict of the same parts: of numbers the reading, of their shape; of categories logits, one axis
            more.
        process: the forward process, of parts that are `Gaussian` (without a base) or `Categorical`.
        parametrization: of numbers: v, x0, velocity, edm, or eps where the schedule leaves some signal at t = 1.
        logits: of categories: x0 or d3pm, as of `DiscreteDenoiser`.
        sigma_data: standard deviation of the numbers; given, they enter over N. Needed for edm.
        time: what the network is told, a function of a float64 time tensor; 1000 t where None.

    Raises `ConfigurationError` on others, and for a network that returns other parts.
    """

    process: Product

    def __init__(
        self,
        network: nn.Module,
        process: Product,
        parametrization: str = "v",
        logits: str = "x0",
        sigma_data: float | None = None,
        time: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(process, Product):
            raise ConfigurationError(f"got {process!r} for a MixedDenoiser, expected a Product of processes")
        if parametrization not in PARAMETRIZATIONS:
            raise ConfigurationError(
                f"got parametrization '{parametrization}' for the numbers of a mixed state, expected one of "
                f"{', '.join(PARAMETRIZATIONS)}{nearest(parametrization, PARAMETRIZATIONS)}"
            )
        self._readers: dict[str, DiscreteDenoiser] = {}
        for name, part in process.parts.items():
            if isinstance(part, Categorical):
                self._readers[name] = DiscreteDenoiser(nn.Identity(), part, logits)
            elif isinstance(part, Gaussian) and part.base is None:
                Denoiser(nn.Identity(), part, parametrization, None, sigma_data)  # what it refuses
            else:
                raise ConfigurationError(
                    f"got {part!r} for {name!r}, expected a Categorical process, or a Gaussian one without a base"
                )
        self.network, self.process, self.parametrization, self.logits = network, process, parametrization, logits
        self.sigma_data = sigma_data
        self.time = time or partial(torch.mul, 1000)

    def forward(
        self, x_t: State, t: Time, cond: Condition | None = None, keep: Tensor | None = None
    ) -> ProductEstimate:
        """The estimate at the state x_t and time t, a float or (b,); `cond` and `keep` as of `Denoiser`."""
        output = self.answered({name: self._seen(name, x, t) for name, x in x_t.items()}, t, cond, keep)
        if set(output) != set(self.process.parts):
            raise ConfigurationError(
                f"got a network that returns {sorted(output)}, expected {sorted(self.process.parts)}, as the process has them"
            )
        parts: dict[str, Any] = {}
        for name, process in self.process.parts.items():
            if name in self._readers:
                parts[name] = self._readers[name].read(output[name], x_t[name], t)
            else:
                value = output[name].to(x_t[name].dtype)
                parts[name] = Estimate(process, x_t[name], t, self.parametrization, value, self.sigma_data or 1.0)
        return ProductEstimate(self.process, x_t, t, parts)

    def _seen(self, name: str, x: Tensor, t: Time) -> Tensor:
        """What the network sees of a part."""
        if name in self._readers or self.sigma_data is None:
            return x
        alpha, sigma, _ = self.process.parts[name].level(t)
        return x / spread(((alpha * self.sigma_data) ** 2 + sigma**2) ** 0.5, x)
