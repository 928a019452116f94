"""A classifier of noisy data: p_t(y | x_t), at every noise level of a process.

    p_t(y | x_t) = p(y) p_t(x_t | y) / p_t(x_t) = E[p(y | x_0) | x_t]

is what guides a sampler towards y (paper 002 eq. 53-54): the gradient of its log, added to the score, gives that of
p_t(x_t | y). It is not p(y | x_0) at x_0 = x_t: a noisy x_t says less of y than a clean one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.conditions import Condition
from ornstein.denoisers import Denoiser
from ornstein.errors import ConfigurationError
from ornstein.processes.gaussian import Gaussian
from ornstein.schedules.base import Time


class Classifier(Denoiser):
    """log p_t(y | x_t) of K classes y: the log-softmax of a network's K outputs.

    It sees x_t and t as a `Denoiser` does, and so is one in all but what it says of them. It cannot be sampled from.

    Args:
        network: `network(x, time) -> (b, K)`, such as `UNetEncoder` or `MLPEncoder`; x (b, *d), time (b,).
        process: the forward process, that of the model to be guided.
        sigma_data: the standard deviation of the data in model units; given, the input is scaled to unit variance.
        time: what the network is told, a function of a float64 time tensor; by default 1000 t.
    """

    classes: tuple[str, ...] = ()
    """The names of the classes, where they are known: `load_classifier` sets them."""
    scaling: Any = None
    """The scaling of the data, where it is known: `load_classifier` sets it."""

    def __init__(
        self,
        network: nn.Module,
        process: Gaussian,
        sigma_data: float | None = None,
        time: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(network, process, "v", sigma_data=sigma_data, time=time)
        self.parametrization = "logits"  # no reading of x_0, so what the network says is left as it is

    def forward(self, x_t: Tensor, t: Time) -> Tensor:  # type: ignore[override]
        """The logits (b, K) at x_t (b, *d) and time t, a float or (b,). Raises `ConfigurationError` for another shape."""
        logits = super().forward(x_t, t).value
        if logits.ndim != 2:
            raise ConfigurationError(
                f"got a network that returns {tuple(logits.shape)}, expected (b, K), a number a class: UNetEncoder or MLPEncoder"
            )
        return logits

    def log_prob(self, x_t: Tensor, t: Time, labels: Condition | None) -> Tensor:
        """log p_t(labels | x_t) in nats, (b,), differentiable in x_t; labels (b,) are integers, or {"labels": (b,)}.

        Raises `ConfigurationError` for labels of another kind, and on the CPU for classes that there are not.
        """
        labels = labels.get("labels") if isinstance(labels, dict) else labels
        if labels is None or labels.is_floating_point() or labels.shape != (len(x_t),):
            got = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ConfigurationError(f"got labels {got}, expected integers of shape ({len(x_t)},), a class an example")
        logs = torch.log_softmax(self(x_t, t), dim=1)
        if not labels.is_cuda and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logs.shape[1]:
            raise ConfigurationError(
                f"got classes {int(labels.min())} to {int(labels.max())}, expected 0 to {logs.shape[1] - 1}: the classifier "
                "never saw others"
            )
        return logs.gather(1, labels[:, None].long())[:, 0]
