"""The denoiser of categories: a network's logits read as log p(x_0 | x_t), a law of each site.

    x0      p(x_0 | x_t) = softmax(logits) over the x_0 that x_t does not rule out
    d3pm    p(x_0 | x_t) proportional to q(x_t | x_0) softmax(logits)

D3PM's network says what the *other* sites tell of x_0 (their law sum q(x_s, x_t | x_0) p~(x_0 | x_t), normalised, is the
mixture of the posteriors under this product; with p(x_0 | x_t) in the place of p~ it would count x_t twice). At low noise it
need not learn to copy x_t. Under an absorbing kernel the two are one: a site that is not the mask is as it was.

The logistic head of ordered categories (D3PM, appendix A.8): the network gives a place and a width for each site, and the
categories have the mass of a logistic law on equal bins of [-1, 1], normalised; the place is counted from that of x_t.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ornstein.conditions import Condition
from ornstein.denoisers import TrainedDenoiser
from ornstein.errors import ConfigurationError, nearest
from ornstein.processes.categorical import Categorical, CategoricalEstimate
from ornstein.schedules.base import Time

PARAMETRIZATIONS = ("x0", "d3pm")
HEADS = ("logits", "logistic")
NARROW = 2.0
"""log of how much narrower than its unit a logistic law is where the network says 0."""


class DiscreteDenoiser(TrainedDenoiser):
    """A network read as the law of x_0 under a `Categorical` process.

    Args:
        network: `network(x, time)`, or `network(x, time, cond, keep)` where a condition is given; x int64 (b, *d) of states, time
            (b,); it returns logits (b, *d, K), or (b, *d, 2), place and log width, for the logistic head.
        process: the forward process.
        parametrization: x0 or d3pm; see the module.
        head: logits or logistic.
        time: what the network is told, a function of a float64 time tensor; 1000 t where None.

    Raises `ConfigurationError` on others.
    """

    process: Categorical

    def __init__(
        self,
        network: nn.Module,
        process: Categorical,
        parametrization: str = "x0",
        head: str = "logits",
        time: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(process, Categorical):
            raise ConfigurationError(
                f"got {process!r} for a DiscreteDenoiser, expected a Categorical process; for numbers Denoiser"
            )
        for name, value, known in (("parametrization", parametrization, PARAMETRIZATIONS), ("head", head, HEADS)):
            if value not in known:
                raise ConfigurationError(
                    f"got {name} '{value}' for categories, expected {' or '.join(known)}{nearest(value, known)}"
                )
        self.network, self.process, self.parametrization, self.logits = network, process, parametrization, head
        self.time = time or partial(torch.mul, 1000)

    def forward(
        self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None
    ) -> CategoricalEstimate:
        """The estimate at states x_t (b, *d) and time t, a float or (b,); `cond` and `keep` as of `Denoiser`."""
        return self.read(self.answered(x_t, t, cond, keep), x_t, t)

    def read(self, output: Tensor, x_t: Tensor, t: Time) -> CategoricalEstimate:
        """The estimate that a network's output makes at x_t. Raises `ConfigurationError` on an output of another shape."""
        size = self.process.categories if self.logits == "logits" else 2
        if output.shape != (*x_t.shape, size):
            raise ConfigurationError(
                f"got a network whose output is {tuple(output.shape)} for states {tuple(x_t.shape)}, "
                f"expected {(*x_t.shape, size)}"
            )
        logits = output.to(torch.promote_types(output.dtype, torch.float32))
        if self.logits == "logistic":
            logits = logistic_logits(logits, x_t, self.process.categories)
        evidence = self.process.evidence(x_t, t, logits.dtype)
        logits = (
            logits + evidence
            if self.parametrization == "d3pm"
            else logits.masked_fill(evidence == -torch.inf, -torch.inf)
        )
        return CategoricalEstimate(self.process, x_t, t, logits.log_softmax(-1))


def logistic_logits(output: Tensor, x_t: Tensor, categories: int) -> Tensor:
    """log of the mass of a logistic law on K equal bins of [-1, 1], (b, *d, K), up to a number for each site.

    output (b, *d, 2): the place from that of x_t on, and log width. The mass between b < a is s(a) s(-b) (1 - exp(b - a)), with s
    the logistic function; the last factor is the same for all bins.
    """
    half = 1 / (categories - 1)
    middles = torch.linspace(-1, 1, categories, device=output.device, dtype=output.dtype)
    place = torch.where(x_t < categories, middles[x_t.clamp(max=categories - 1)], 0.0) + output[..., 0]
    sharpness = torch.exp(NARROW - output[..., 1])[..., None]
    apart = middles - place[..., None]
    return logsigmoid((apart + half) * sharpness) + logsigmoid((half - apart) * sharpness)
