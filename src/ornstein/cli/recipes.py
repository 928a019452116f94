"""Samplers and grids as the command line names them, and those that `ornstein bench` found for a run: RUN/sampling.json."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ornstein.errors import CheckpointError, ConfigurationError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.processes.gaussian import Gaussian
    from ornstein.samplers import Sampler

FILE = "sampling.json"


@dataclass(frozen=True)
class Recipe:
    """The sampler and the times that served a run best at this many calls, and its error: median and root mean square."""

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


@dataclass(frozen=True)
class Recommended:
    """What `ornstein bench` found for a run at training step `step`: by number of calls, and the number to take, where asked."""

    step: int
    calls: int | None
    recipes: list[Recipe]

    def within(self, calls: int) -> Recipe | None:
        """The recipe of most calls that makes at most `calls`."""
        fits = [recipe for recipe in self.recipes if recipe.calls <= calls]
        return max(fits, key=lambda recipe: recipe.calls, default=None)


def write(run: Path, found: Recommended) -> Path:
    """Write RUN/sampling.json, whole or not at all."""
    from ornstein.files import atomic_write

    with atomic_write(run / FILE) as temporary:
        temporary.write_text(json.dumps(asdict(found), indent=1))
    return run / FILE


def read(run: Path) -> Recommended | None:
    """What was found for a run, None where it was not benched. Raises `CheckpointError` on a damaged file."""
    path = run / FILE
    if not path.exists():
        return None
    try:
        body = json.loads(path.read_text())
        recipes = [Recipe(**recipe) for recipe in body.pop("recipes")]
        found = Recommended(recipes=recipes, **body)
        for recipe in recipes:
            recipe.objects()
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not as `ornstein bench` wrote it ({type(error).__name__}: {error}); remove it to sample by the usual "
            "sampler, or run `ornstein bench` again"
        ) from None


def grid_law(text: str) -> "Callable[[Gaussian, int], Tensor]":
    """The grid that --grid names: a function of process and steps. Raises `ConfigurationError` on a name that is none."""
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
        raise ConfigurationError(f"unknown grid '{spec.name}', expected {', '.join(laws)}{nearest(spec.name, laws)}")

    def law(process: "Gaussian", steps: int) -> "Tensor":
        try:
            return laws[spec.name](process, steps, *spec.args, **spec.kwargs)
        except TypeError as error:
            raise ConfigurationError(f"got --grid '{text}', which does not fit: {error}") from None

    return law
