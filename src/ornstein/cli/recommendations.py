"""Samplers and grids as the command line names them, and those that `ornstein bench` found for a run: RUN/sampling.json."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ornstein.errors import CheckpointError, ConfigurationError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.processes.gaussian import Gaussian
    from ornstein.samplers import Sampler

FILE = "sampling.json"


@dataclass(frozen=True)
class Recommendation:
    """The sampler and the times that served a run best at this many calls, and their error: median and root mean square."""

    calls: int
    name: str
    sampler: str
    times: list[float]
    median: float
    rms: float

    def objects(self) -> "tuple[Sampler, Tensor]":
        """The sampler and the grid."""
        import torch

        from ornstein import specs
        from ornstein.samplers import Sampler

        return specs.construct(self.sampler, Sampler), torch.tensor(self.times, dtype=torch.float64)

    def check(self) -> None:
        """Raise ValueError where this is none."""
        times = self.times
        if not (isinstance(self.calls, int) and self.calls >= 1 and isinstance(self.name, str)):
            raise ValueError(f"calls {self.calls!r} of {self.name!r}, expected a number of at least 1 and a name")
        numbers = isinstance(times, list) and all(isinstance(t, float) and 0 <= t <= 1 for t in times)
        if not numbers or not times or not all(s < t for t, s in pairwise(times)):
            raise ValueError(f"times {str(times)[:60]} of {self.calls} calls, expected numbers that fall from 1 to 0")
        self.objects()


@dataclass(frozen=True)
class Recommendations:
    """What `ornstein bench` found for the weights of a run: at training step `step`, of the average of length `ema`.

    best: by the number of calls. calls: the number to make where none is asked for, None for the usual one.
    """

    step: int
    ema: float | None
    calls: int | None
    best: list[Recommendation]

    def at(self, calls: int) -> Recommendation | None:
        """The recommendation for exactly this many calls."""
        return next((found for found in self.best if found.calls == calls), None)


def write(run: Path, found: Recommendations) -> Path:
    """Write RUN/sampling.json, whole or not at all."""
    from ornstein.files import atomic_write

    with atomic_write(run / FILE) as temporary:
        temporary.write_text(json.dumps(asdict(found), indent=1))
    return run / FILE


def read(run: Path) -> Recommendations | None:
    """What was found for a run, None where it was not benched. Raises `CheckpointError` on a damaged file."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        body = json.loads(path.read_text())
        found = Recommendations(**{**body, "best": [Recommendation(**each) for each in body["best"]]})
        if not isinstance(found.step, int) or not isinstance(found.calls, int | None):
            raise ValueError(f"step {found.step!r} and calls {found.calls!r}, expected whole numbers")
        for each in found.best:
            each.check()
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not as `ornstein bench` wrote it ({type(error).__name__}: {error}); remove it to sample by the usual "
            "sampler, or run `ornstein bench` again"
        ) from None


def grid_law(text: str, others: tuple[str, ...] = ()) -> "Callable[[Gaussian, int], Tensor]":
    """The grid that --grid names: a function of process and steps. Raises `ConfigurationError` on a name that is none.

    `others` are names that the caller knows itself."""
    from ornstein import grids, specs

    spec = specs.parse(text)
    laws: dict[str, Any] = {
        law.__name__: law
        for law in (
            grids.focused,
            grids.karras,
            grids.log_snr,
            grids.uniform,
            grids.trailing,
            grids.leading,
            grids.linspace,
        )
    }
    if spec.name not in laws:
        known = [*laws, *others]
        hint = "; optimal is made for one network: `ornstein bench RUN` keeps it" if spec.name == "optimal" else ""
        hint = hint or nearest(spec.name, known)
        raise ConfigurationError(f"unknown grid '{spec.name}', expected {', '.join(known)}{hint}")

    def law(process: "Gaussian", steps: int) -> "Tensor":
        try:
            return laws[spec.name](process, steps, *spec.args, **spec.kwargs)
        except TypeError as error:
            raise ConfigurationError(f"got --grid '{text}', which does not fit: {error}") from None

    return law
