"""The variational bound as an objective, alone (`VLB`) and beside the squared error (`Hybrid`).

Of the chain's T levels t_1 < ... < t_T = 1 (`variational.chain`, for quantised data from half the width of a level on) one is
drawn for each example; its term

    L_{i-1} = KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)),  i > 1,     L_0 = -log p(x_0 | x_1)

counts T / (T p_i) times, so that the mean is the sum over the chain (paper 001 eq. 45 corrected: the whole KL, and L_0; the
prior's term L_T depends on no weight). Losses are in nats per component; with `bins` they come to the code length of quantised
data less L_T, and so they do under a process of categories, for which `VLB` is L_vb of D3PM.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ornstein.conditions import Condition, count_of, rows_of
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.objectives.squared import EDGE, Loss, TimeLaw, whitened
from ornstein.objectives.times import UniformSteps, index_of, steps_of, weight_of
from ornstein.processes.gaussian import READINGS
from ornstein.terms import terms_of
from ornstein.variational import Bins, chain, resolution


@dataclass(frozen=True)
class VLB:
    """T L_{i-1} / D at a step i of the law: an unbiased estimate of the bound's sum over the chain, nats per component.

    times: the law of a chain of at least 2 steps, `UniformSteps` or `Importance`, whose draw t = i/T says the step. bins: the
    bins of quantised data, `Bins.of(scaling)`, for the discretised decoder; None for a density. fixed: where the denoiser
    learns no variance, the place of its log between those of beta-tilde (0) and of beta (1). Needs no learned variance.
    """

    times: TimeLaw = field(default_factory=UniformSteps)
    bins: Bins | None = None
    fixed: float = 1.0

    def __post_init__(self) -> None:
        steps_of(self.times, least=2)
        if not 0 <= self.fixed <= 1:
            raise ConfigurationError(f"got fixed={self.fixed}, expected 0 (beta-tilde) to 1 (beta)")

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) under the condition cond (b, ...), with draws from rng, as of `Objective`.

        Its parts are `diffusion` (i > 1) and `reconstruction` (i = 1). `Loss.t` is i/T.
        """
        process = denoiser.process.given(cond)
        t, index, levels = drawn(self.times, denoiser.process, rng, self.bins)
        at = levels[index - 1]
        estimate = denoiser(process.noise(x0, at, rng), at, cond, keep)
        terms = bound_terms(estimate, x0, index, levels, self.bins, self.fixed)
        first = (index == 1).to(terms.device)
        return summed(
            {"diffusion": terms.masked_fill(first, 0.0), "reconstruction": terms.masked_fill(~first, 0.0)},
            self.times,
            t,
        )


@dataclass(frozen=True)
class Hybrid:
    """The squared error for the mean plus `weight` times the bound for the variance (paper 001 eq. 45 corrected):

        mean_d (r_hat - r)^2 + weight T L_{i-1} / D       (whitened under a base, as of `Objective`)

    at one step i of the law. The estimate of x_0 is detached in the second part, so that the bound trains the learned variance
    alone; `weight` stands before the sum over the chain, and so before T times a term.

    weight: paper 001's lambda. times, bins: as of `VLB`. reading: what the squared error compares, the denoiser's own where None.
    """

    weight: float = 0.001
    times: TimeLaw = field(default_factory=UniformSteps)
    bins: Bins | None = None
    reading: str | None = None

    def __post_init__(self) -> None:
        steps_of(self.times, least=2)
        if not self.weight > 0:
            raise ConfigurationError(f"got weight={self.weight}, expected a positive number")
        if self.reading is not None and self.reading not in READINGS:
            raise ConfigurationError(f"got reading '{self.reading}', expected one of {', '.join(READINGS)}")

    def __call__(
        self, denoiser: DenoiserLike, x0: Tensor, cond: Condition | None, rng: Noise, keep: Tensor | None = None
    ) -> Loss:
        """The losses of the examples x0 (b, *d) under the condition cond (b, ...), with draws from rng, as of `Objective`.

        Its parts are `squared` and `vlb`. `Loss.t` is i/T. Raises `ConfigurationError` where no variance is learned.
        """
        process = denoiser.process.given(cond)
        t, index, levels = drawn(self.times, denoiser.process, rng, self.bins)
        truth = process.noised(x0, levels[index - 1], rng)
        estimate = denoiser(truth.x_t, truth.t, cond, keep)
        if estimate.fraction is None:
            raise ConfigurationError(
                'got a denoiser without a learned variance, expected Denoiser(..., variance="learned"): the bound of the '
                "hybrid loss trains nothing else"
            )
        reading = self.reading or estimate.kind
        error = estimate.reading(reading) - replace(truth, sigma_data=estimate.sigma_data).reading(reading)
        error = error if process.base is None else whitened(error, process.base, reading)
        frozen = replace(estimate, value=estimate.value.detach())
        terms = bound_terms(frozen, x0, index, levels, self.bins, fixed=1.0)
        return summed({"squared": error.square().flatten(1).mean(1), "vlb": self.weight * terms}, self.times, t)


def drawn(times: TimeLaw, process: Any, rng: Noise, bins: Bins | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The times t = i/T of this part of the batch (b,), their steps i (b,), and the levels of the chain (T,)."""
    t = times(process, rng.shared().clamp(EDGE, 1 - EDGE))[rng.rows]
    steps = steps_of(times, least=2)
    return t, index_of(t, steps), chain(process, steps, resolution(process, bins))


def bound_terms(
    estimate: Any, x0: Any, index: Tensor, levels: Tensor, bins: Bins | None = None, fixed: float = 1.0
) -> Tensor:
    """T L_{i-1} / D of each row at its step, nats per component, (b,): the first step's rows by the decoder, others by the KL."""
    each = terms_of(estimate.process, (float(levels[0]), float(levels[1])), bins, fixed, precise=False)
    terms, places = [], []
    for decoded in (False, True):
        rows = ((index == 1) == decoded).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        part, data, i = _rows(estimate, rows), rows_of(x0, rows), index[rows]
        t = levels[i - 1]
        if decoded:
            terms.append(-each.last(part, data, t))
        else:
            terms.append(each.step(part, data, t, levels[i - 2]))
        places.append(rows)
    found = torch.cat(terms)[torch.cat(places).argsort()]
    each_part = list(x0.values()) if isinstance(x0, dict) else [x0]
    dims, dtype = sum(part[0].numel() for part in each_part), each_part[0].dtype
    return (found * (len(levels) / dims)).to(dtype if dtype.is_floating_point else torch.float32)


def _rows(estimate: Any, rows: Tensor) -> Any:
    """The estimate of some rows of the batch."""
    if len(rows) == count_of(estimate.x_t):
        return estimate
    return estimate.rows(rows)


def summed(parts: dict[str, Tensor], times: TimeLaw, t: Tensor) -> Loss:
    """The sum of the parts as a `Loss`, with the weights of the law."""
    weight = weight_of(times, t)
    if weight is not None:
        weight = weight.to(next(iter(parts.values())))
        parts = {name: part * weight for name, part in parts.items()}
    return Loss(torch.stack(list(parts.values())).sum(0), t, parts, weight)
