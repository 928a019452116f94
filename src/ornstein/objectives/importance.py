"""Importance-sampled times: steps of a chain whose losses are large are drawn more often (paper 001 section 3.2).

    E_{i ~ p} [ L_i / (T p_i) ] = (1/T) sum_i L_i   for every p,  with the least variance where  p_i ~ sqrt(E L_i^2),

the expectation taken over the last `keep` losses of each step (Nichol and Dhariwal 2021). `Importance` is the law, a frozen
record; `History` is what changes in training: it is saved with the run, and what it holds is a function of what it was told.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.errors import CheckpointError, ConfigurationError
from ornstein.objectives.times import index_of, strata, without_density
from ornstein.processes.gaussian import Gaussian


@dataclass(frozen=True)
class Importance:
    """t = i / steps with i drawn by `probabilities` (steps,), stratified over the batch; uniform while they are None.

    keep, mix: what a `History` of this law keeps of each step, and the share of the uniform law in its probabilities.
    """

    steps: int = 1000
    keep: int = 10
    mix: float = 0.001
    probabilities: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.keep < 1:
            raise ConfigurationError(f"got steps={self.steps}, keep={self.keep}, expected at least 1 of each")
        if not 0 < self.mix <= 1:
            raise ConfigurationError(
                f"got mix={self.mix}, expected a number in (0, 1]: a step of probability 0 would be left out of the sum"
            )
        p = self.probabilities
        if p is not None and (p.shape != (self.steps,) or not (p > 0).all() or abs(float(p.sum()) - 1) > 1e-6):
            raise ConfigurationError(
                f"got probabilities of shape {tuple(p.shape)}, sum {float(p.sum()):g} and least {float(p.min()):g}; "
                f"expected ({self.steps},), all positive, of sum 1"
            )

    def __call__(self, process: Gaussian, u: Tensor) -> Tensor:
        """The times of uniform numbers u (b,)."""
        u = strata(u)
        if self.probabilities is None:
            index = torch.ceil(u * self.steps)
        else:
            index = torch.searchsorted(self.probabilities.to(u).cumsum(0), u) + 1.0
        return index.clamp(1, self.steps) / self.steps

    def weight(self, t: Tensor) -> Tensor:
        """1 / (T p_i), which keeps the mean over the steps unbiased: (b,), float64."""
        if self.probabilities is None:
            return torch.ones_like(t, dtype=torch.float64)
        return 1 / (self.steps * self.probabilities.to(t.device, torch.float64)[index_of(t, self.steps) - 1])

    def density(self, process: Gaussian, t: Tensor) -> Tensor:
        """Raises `ConfigurationError`: the times are those of a chain."""
        raise without_density(self)


class History:
    """The last `keep` losses of each step under a law: `values` (T, keep), and how many each step had, `count` (T,)."""

    def __init__(self, law: Importance) -> None:
        self.law = law
        self.values = torch.zeros(law.steps, law.keep, dtype=torch.float64)
        self.count = torch.zeros(law.steps, dtype=torch.long)

    def update(self, t: Tensor, terms: Tensor) -> None:
        """Take in unweighted losses (n,) at times t = i/T (n,), in the order of the rows: the oldest give way to them."""
        keep, step = self.law.keep, index_of(t.cpu(), self.law.steps) - 1
        order = torch.argsort(step, stable=True)
        step, terms = step[order], terms.detach().cpu().double()[order]
        drawn = torch.bincount(step, minlength=self.law.steps)
        rank = torch.arange(len(step)) - (drawn.cumsum(0) - drawn)[step]  # among the rows of the same step
        last = rank >= drawn[step] - keep  # more rows of a step than are kept would overwrite each other
        place = (self.count[step] + rank) % keep
        self.values[step[last], place[last]] = terms[last]
        self.count += drawn

    def probabilities(self) -> Tensor | None:
        """p_i ~ sqrt(mean of L_i^2), mixed with the uniform law, (T,); None until every step has `keep` losses."""
        if (self.count < self.law.keep).any():
            return None
        size = self.values.square().mean(1).sqrt()
        size = size / size.sum() if size.sum() > 0 else torch.full_like(size, 1 / self.law.steps)
        return (1 - self.law.mix) * size + self.law.mix / self.law.steps

    def state(self) -> dict[str, Tensor]:
        """The tensors from which `restore` makes the same history."""
        return {"values": self.values.clone(), "count": self.count.clone()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over the tensors of `state`. Raises `CheckpointError` where they are of another law."""
        for name, own in self.state().items():
            if tensors[name].shape != own.shape:
                raise CheckpointError(
                    f"got a history '{name}' of shape {tuple(tensors[name].shape)}, expected {tuple(own.shape)}: this is "
                    f"that of another law than {self.law!r}"
                )
        self.values.copy_(tensors["values"])
        self.count.copy_(tensors["count"])
