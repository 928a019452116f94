"""Denoisers: `(x_t, t, cond) -> Estimate`, each knowing its process. A trained one is a network with a parametrisation.

What the network sees and says, with N^2 = alpha^2 sigma_data^2 + sigma^2:

    input   x_t, or x_t / N where sigma_data is given (unit variance at every noise level)
    time    1000 t, so that a 1000-step net sees its index; for "edm" log(sigma / alpha) / 4 (paper 000 eq. 203)
    output  the reading named by `parametrization`; for "energy" a number E(x_t, t) with score = -grad E

Under a base N(mu, L L^T) it sees z = L^-1 (x_t - mu) in place of x_t, and what it says is said of z: x_0 = mu + L u, eps = L u,
score = L^-T u. So training it there is training the standard process in whitened coordinates, where sigma_data is 1.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError, nearest
from ornstein.processes.gaussian import READINGS, Estimate, Gaussian, spread
from ornstein.schedules.base import Time, as_time

PARAMETRIZATIONS = (*READINGS, "energy")
UNDEFINED_WITHOUT_SIGNAL = ("eps", "score", "energy")


class DenoiserLike(Protocol):
    """What samplers and objectives need: a process, and a call that returns an `Estimate`."""

    @property
    def process(self) -> Any:
        """The forward process: a `Gaussian`, a `Categorical` or a `Product`, whose estimate and state are of one kind."""

    def __call__(self, x_t: Any, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Any: ...


class Wrapper:
    """Base of the denoisers that wrap others: in all but the estimate they are what they wrap, a `Model` too.

    A guidance of your own is a subclass with a `__call__`, which asks `self.denoiser`, and others whose attributes it names in
    `holds`, as often as it likes: samplers count the network evaluations in them, on copies of the wrapper, so it keeps no state.
    """

    holds: tuple[str, ...] = ("denoiser",)

    def __init__(self, denoiser: DenoiserLike) -> None:
        self.denoiser = denoiser

    @property
    def process(self) -> Any:
        """The forward process."""
        return self.denoiser.process

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape d of one example, where it is known."""
        return getattr(self.denoiser, "shape", None)

    @property
    def scaling(self) -> Any:
        """The scaling of a `Model`; None for a denoiser."""
        return getattr(self.denoiser, "scaling", None)

    @property
    def evaluations(self) -> int:
        """Network evaluations in a call, at most: how many calls fit into a number of them. What was made is counted."""
        return getattr(self.denoiser, "evaluations", 1)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the network, where there is one."""
        return getattr(self.denoiser, "parameters", lambda: iter(()))()


def innermost(denoiser: object, name: str) -> Any:
    """The attribute `name` of a denoiser or, where it has none or None, of what it wraps; None where none has it."""
    while denoiser is not None:
        found = getattr(denoiser, name, None)
        if found is not None:
            return found
        denoiser = getattr(denoiser, "denoiser", None)
    return None


def check_condition(denoiser: DenoiserLike, cond: Condition | None) -> None:
    """Raise `ConfigurationError` where class labels of a condition are none of those that the denoiser's network knows."""
    classes = getattr(innermost(denoiser, "network"), "classes", None)
    labels = cond.get("labels") if isinstance(cond, dict) else cond
    if not classes or labels is None or labels.is_floating_point() or not labels.numel():
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ConfigurationError(
            f"got class {low if low < 0 else high}, which the model never saw, expected 0 to {classes - 1}"
        )


class TrainedDenoiser(nn.Module):
    """Base of the denoisers that are a network read as an estimate under a process: what training, saving and loading need."""

    network: nn.Module
    process: Any
    parametrization: str
    time: Callable[[Tensor], Tensor]
    variance: str | None = None
    sigma_data: float | None = None

    shape: Any = None
    """The shape d of one example, where it is known (of a state of parts a dict of shapes): `train` and `load` set it."""

    label_dropout: float | None = None
    """The share of examples trained without their condition, where it is known: `train` and `load` set it, guidance reads it."""

    @property
    def conditional(self) -> bool | None:
        """Whether the network takes a condition; None for one that does not say."""
        classes = getattr(self.network, "classes", None)
        return None if classes is None else bool(classes or getattr(self.network, "images", 0))

    def answered(self, x: Any, t: Time, cond: Condition | None, keep: Tensor | None) -> Any:
        """What the network says of x, a tensor (b, *d) or a dict of parts, at time t."""
        first = next(iter(x.values())) if isinstance(x, dict) else x
        time = self.time(as_time(t)).expand(len(first)).to(first.device, torch.float32)
        return self.network(x, time) if cond is None else self.network(x, time, cond, keep)


class Denoiser(TrainedDenoiser):
    """A network read as an estimate of x_0 under a process.

    Args:
        network: `network(x, time)`, or `network(x, time, cond, keep)` where a condition is given; x (b, *d), time (b,).
        process: the forward process.
        parametrization: the reading that the network predicts: eps, x0, v, score, velocity, edm or energy.
        variance: "learned" where the network's output has twice the channels (axis 1), the second half v in [-1, 1]
            being read as `fraction = (v + 1) / 2`.
        sigma_data: standard deviation of the data in model units; needed for edm. Given, the input is scaled by 1 / N.
        time: what the network is told, a function of a float64 time tensor; None for the default above.

    Raises `ConfigurationError` where schedule and parametrisation cannot work together: eps, score and energy say
    nothing about x_0 at t = 1 under a schedule of zero terminal SNR.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Gaussian,
        parametrization: str = "eps",
        variance: str | None = None,
        sigma_data: float | None = None,
        time: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        _check(process, parametrization, variance, sigma_data)
        self.network, self.process, self.parametrization = network, process, parametrization
        self.variance, self.sigma_data = variance, sigma_data
        self.time = time or (self._log_sigma if parametrization == "edm" else partial(torch.mul, 1000))

    def _log_sigma(self, t: Tensor) -> Tensor:
        return -self.process.schedule.log_snr(t) / 8

    def forward(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        """The estimate at x_t (b, *d) and time t, a float or (b,).

        `cond` has leading axis b; rows where `keep` (b,) is False are treated as unconditional.
        """
        energy = self.parametrization == "energy"
        process = self.process if self.process.base is None else self.process.given(cond)
        base = process.base
        # A score by autograd is differentiated again, which attention's fused kernels do not allow.
        attention = sdpa_kernel(SDPBackend.MATH) if energy else nullcontext()
        with torch.set_grad_enabled(energy or torch.is_grad_enabled()), attention:
            seen = x = x_t.detach().requires_grad_() if energy and not x_t.requires_grad else x_t
            if base is not None:
                x = base.whiten(x - base.centre(x))
            if self.sigma_data is not None:
                alpha, sigma, _ = process.level(t, x_t)
                x = x / ((alpha * self.sigma_data) ** 2 + sigma**2) ** 0.5
            time = (
                self.time(torch.as_tensor(t, dtype=torch.float64))
                .expand(len(x))
                .to(x.device, torch.float32, non_blocking=x.is_cuda)
            )
            output = self.network(x, time) if cond is None else self.network(x, time, cond, keep)
            if energy:
                output = -torch.autograd.grad(output.sum(), seen, create_graph=self.training or x_t.requires_grad)[0]
        output, fraction = output.to(x_t.dtype), None
        if self.variance == "learned":
            output, logit = output.chunk(2, dim=1)
            fraction = (logit + 1) / 2
        if energy:
            return process.estimate(x_t, t, score=output)
        kind = self.parametrization
        if kind == "score":
            kind, output = "eps", -spread(process.level(t).sigma, output) * output
        if base is not None and kind in READINGS:
            output = base.colour(output) + base.centre(output) if kind == "x0" else base.colour(output)
        return Estimate(process, x_t, t, kind, output, self.sigma_data or 1.0, fraction)


class Retargeted(Wrapper):
    """A denoiser trained under one schedule, used under another (paper 000 s5: samplers and models interchange).

    At time t of the new schedule the old one is asked at the time t' of equal SNR, at the state scaled by
    alpha'(t') / alpha(t) = sigma'(t') / sigma(t). Where the new schedule reaches beyond the old one's range of noise,
    the nearest level is used: with the ratio of sigmas at the noise end and of alphas at the data end.
    """

    def __init__(self, denoiser: DenoiserLike, process: Gaussian) -> None:
        if denoiser.process.base != process.base:
            raise ConfigurationError(
                "got processes with different bases, expected one base: only schedules are exchanged"
            )
        super().__init__(denoiser)
        self._process = process

    @property
    def process(self) -> Gaussian:
        """The new forward process."""
        return self._process

    def __call__(self, x_t: Tensor, t: Time, cond: Condition | None = None, keep: Tensor | None = None) -> Estimate:
        process, old = self.process.given(cond), self.denoiser.process.given(cond)
        matched = old.schedule.time_at(process.schedule.log_snr(t))
        old_t = matched if isinstance(t, Tensor) else float(matched)
        ours, theirs = process.level(t), old.level(old_t)
        by_sigma = as_time(ours.log_snr) < 0
        ratio = torch.where(
            by_sigma, as_time(theirs.sigma) / as_time(ours.sigma), as_time(theirs.alpha) / as_time(ours.alpha)
        )
        mu = old.centre(x_t)
        x0 = self.denoiser(mu + spread(ratio, x_t) * (x_t - mu), old_t, cond, keep).x0
        return process.estimate(x_t, t, x0=x0)


def _check(process: Any, parametrization: str, variance: str | None, sigma_data: float | None) -> None:
    if not isinstance(process, Gaussian):
        raise ConfigurationError(
            f"got {process!r} for a Denoiser, expected a Gaussian process; for categories DiscreteDenoiser"
        )
    if parametrization not in PARAMETRIZATIONS:
        known = ", ".join(PARAMETRIZATIONS)
        raise ConfigurationError(
            f"got parametrization '{parametrization}', expected one of {known}{nearest(parametrization, PARAMETRIZATIONS)}"
        )
    if variance not in (None, "learned"):
        raise ConfigurationError(f"got variance {variance!r}, expected None or 'learned'")
    if variance is not None and parametrization == "energy":
        raise ConfigurationError("got variance 'learned' for an energy, a single number; expected variance=None")
    if sigma_data is not None and not sigma_data > 0:
        raise ConfigurationError(
            f"got sigma_data={sigma_data}, expected a positive number: the data's standard deviation"
        )
    if parametrization == "edm" and sigma_data is None:
        raise ConfigurationError("parametrization 'edm' needs sigma_data, the standard deviation of the data")
    if parametrization in UNDEFINED_WITHOUT_SIGNAL and process.level(1.0).alpha == 0:
        raise ConfigurationError(
            f"parametrization '{parametrization}' says nothing about x_0 at t = 1 under {process.schedule!r}, whose SNR "
            "is 0 there; use 'v', 'x0' or 'edm', or a schedule that keeps some signal (LinearVP)"
        )
