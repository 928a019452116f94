"""Bases that depend on the condition, N(mu(c), Sigma(c)) (PriorGrad, Lee et al. 2022): bound at entry by `Gaussian.given`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ornstein.conditions import Condition, count_of
from ornstein.errors import ConfigurationError
from ornstein.processes.normal import Normal

_LAW = frozenset(name for name in vars(Normal) if not name.startswith("_")) | {"shape", "covariance"}


class ConditionalNormal:
    """A base whose mean and covariance are functions of the condition.

    of: `of(cond)` gives `Normal.each`, one law for each row of cond, whatever rows are asked for.

    It is no law by itself: `Gaussian.given(cond)` puts in its place the laws of a batch, and samplers, objectives and likelihoods
    do so with the cond that they are given. Raises `ConfigurationError` where there is no condition, or it is used unbound.
    """

    scale = 1.0

    def __init__(self, of: Callable[[Any], Normal]) -> None:
        self.of = of

    def given(self, cond: Condition | None) -> Normal:
        """The laws of the rows of cond."""
        if cond is None:
            raise ConfigurationError(
                "got no condition for a process whose base depends on it; expected cond=, or process.given(cond)"
            )
        laws = self.of(cond)
        if not (isinstance(laws, Normal) and laws.one_a_row and len(laws.mean) == count_of(cond)):
            raise ConfigurationError(
                f"got {type(laws).__name__} from the base's function, expected Normal.each(means, covariance) of "
                f"{count_of(cond)} rows, as the condition has"
            )
        return laws

    def rows(self, index: Any) -> "ConditionalNormal":
        """Itself: rows are those of the condition that it will be given."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name in _LAW:
            raise ConfigurationError(
                f"got use of a base that depends on the condition ({name}) before it was given one; expected "
                "process.given(cond), or cond= where samples, losses or likelihoods are asked for"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")


class ByClass(ConditionalNormal):
    """The base of a class label: laws `Normal.each` over the K classes, cond long (b,), or a dict that has it as "labels"."""

    def __init__(self, laws: Normal) -> None:
        if not laws.one_a_row:
            raise ConfigurationError("got one law for all classes, expected Normal.each(means (K, *d), covariance)")
        super().__init__(self.given)
        self.laws, self.classes, self.scale = laws, len(laws.mean), laws.scale

    def __eq__(self, other: object) -> bool:
        """Whether the laws are the same."""
        return isinstance(other, ByClass) and self.laws == other.laws

    def __hash__(self) -> int:
        return hash((ByClass, self.laws))

    def __repr__(self) -> str:
        return f"ByClass({self.laws!r})"

    def given(self, cond: Condition | None) -> Normal:
        """The laws of the classes in cond."""
        if cond is None:
            return super().given(cond)
        labels = cond.get("labels") if isinstance(cond, dict) else cond
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.dtype not in (torch.int64, torch.int32):
            got = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
            raise ConfigurationError(f"got labels {got} for a base by class, expected class numbers, int64 (b,)")
        if (
            labels.device.type == "cpu"
            and len(labels)
            and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes
        ):
            wrong = labels[(labels < 0) | (labels >= self.classes)][0]
            raise ConfigurationError(
                f"got class {int(wrong)}, expected 0 to {self.classes - 1}: a class the base has no law of"
            )
        return self.laws.rows(labels)
