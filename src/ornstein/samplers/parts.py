"""A sampler for each part of a state, on one grid, with one network call a step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.noise import Noise
from ornstein.processes.product import State

if TYPE_CHECKING:
    from ornstein.samplers.base import Sampler


class _Part:
    """A part of a denoiser at one state: it gives the part of an estimate that is there already."""

    def __init__(self, process: Any, estimate: Any) -> None:
        self.process, self.estimate = process, estimate

    def __call__(self, x_t: Any, t: Any, cond: Any = None, keep: Any = None) -> Any:
        return self.estimate


@dataclass(frozen=True, eq=False)
class Parts:
    """`Parts({name: sampler})`: each part of the state makes its own step, under the joint estimate of one network call.

    So numbers can go by `Multistep()` while categories go by `Ancestral()`. Each sampler makes one call a step, at the state
    it is given; the memory holds that of each. Raises `ConfigurationError` for one that makes more, and on other parts than
    the state's.
    """

    samplers: "Mapping[str, Sampler]"

    needs = "any"
    stages = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "samplers", dict(self.samplers))
        for name, sampler in self.samplers.items():
            if sampler.stages != 1 or getattr(sampler, "constrains", False):
                raise ConfigurationError(
                    f"got {sampler} for {name!r}, which calls the network {sampler.stages} times a step; expected "
                    "one call, which all parts share: Ancestral(), Euler(), Multistep()"
                )

    @property
    def order(self) -> int:
        """The least of theirs."""
        return min(sampler.order for sampler in self.samplers.values())

    @property
    def stochastic(self) -> bool:
        """Whether one of them draws noise."""
        return any(sampler.stochastic for sampler in self.samplers.values())

    def step(
        self, denoiser: DenoiserLike, x: State, t: float, s: float, memory: Any, rng: Noise
    ) -> tuple[State, dict[str, Any]]:
        """One step from time t to time s of every part."""
        if set(x) != set(self.samplers):
            raise ConfigurationError(f"got samplers for {sorted(self.samplers)}, expected them for {sorted(x)}")
        estimate, memory = denoiser(x, t), memory or {}
        moved, kept = {}, {}
        for name, sampler in self.samplers.items():
            part = _Part(denoiser.process.parts[name], estimate.parts[name])
            moved[name], kept[name] = sampler.step(part, x[name], t, s, memory.get(name), rng)
        return moved, kept
