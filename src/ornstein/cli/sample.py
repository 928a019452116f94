"""`ornstein sample`: draw samples from a run and write them."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ornstein.cli.common import Outcome, hint, parse
from ornstein.cli.drawing import SamplingOptions, Unfinished, choose, draw, is_conditional
from ornstein.cli.outputs import destination, write, write_arrays
from ornstein.errors import ConfigurationError, NumericalError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model

PROG = "ornstein sample"


@dataclass(frozen=True)
class Options:
    """Draw samples from a run, with the averaged weights of its newest checkpoint.

    For example:
    - ornstein sample runs/digits-1
    - ornstein sample runs/digits-1 -n 10000 --calls 15 --out samples.npz
    - ornstein sample runs/digits-1 --class 7 --out sevens/
    """

    run: Positional[Path]
    """The run folder."""
    out: Annotated[
        Path | None, arg(metavar="NAME", **hint("default: RUN/samples-1.png, .csv or .npz, then -2, ..."))
    ] = None
    """What to write, by its ending: .npz (`samples`, `labels`), .png (a grid), a folder (PNGs), .csv or .parquet (a table)."""
    overwrite: Annotated[bool, arg(**hint())] = False
    """Replace the file where it exists; a folder is never replaced."""
    n: Annotated[int, arg(aliases=["-n"])] = 64
    """How many samples."""
    class_: Annotated[str | None, arg(name="class", metavar="CLASS", **hint("default: as often as in the data"))] = None
    """Name or index of the class to draw, of a model trained with --condition labels; a grid shows all in turn."""
    json: Annotated[bool, arg(**hint())] = False
    """Print one JSON object on stdout, and nothing else."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


def main(argv: list[str]) -> Outcome:
    """Sample as a command line says. Raises `OrnsteinError`."""
    options: Options = parse(Options, argv, PROG)
    if options.n < 1:
        raise ConfigurationError(f"got -n {options.n}, expected at least 1")
    from ornstein import checkpoints
    from ornstein.parallel import join, together

    group = join(options.sampling.device)
    model = checkpoints.load(options.run, group.device(options.sampling.device), options.sampling.ema)
    path = group.same(destination(options.out, options.run, model, options.overwrite))
    labels, chosen = _labels(options, model, path), choose(model, options.run, options.sampling)
    with together(group, lambda: f"No file was written; start again to have {path}"):
        try:
            drawn = draw(model, chosen, options.sampling, options.n, labels, group)
        except NumericalError as error:
            raise (_unfinished(path, error) if group.main else error) from None
        if group.main:
            write(path, drawn.x, labels, model)
        group.leave()
    result = {
        "run": str(options.run),
        "out": str(path),
        "n": options.n,
        "shape": list(drawn.x.shape),
        "dtype": str(drawn.x.dtype).removeprefix("torch."),
        "step": model.step,
        "sampler": str(chosen.sampler),
        "origin": chosen.origin,
        "grid": options.sampling.grid,
        "calls": drawn.calls,
        "seed": options.sampling.seed,
        "class": options.class_,
        "processes": group.size,
        "seconds": round(drawn.seconds, 3),
    }
    most = "at most " if math.isinf(chosen.sampler.stages) else ""
    text = f"{path}: {options.n} samples of step {model.step}, {most}{drawn.calls} calls each, {drawn.seconds:.1f} s"
    if chosen.origin.startswith("bench"):
        text += f" ({chosen.origin})"
    return Outcome(result, text, options.json)


def _labels(options: Options, model: "Model", path: Path) -> "Tensor | None":
    """The class of each sample: that of --class, else as in the data (in turn, in a grid); None without classes."""
    import torch

    from ornstein.data import class_index

    if not is_conditional(model):
        if options.class_ is not None:
            raise ConfigurationError(
                f"got --class {options.class_} for a model trained without labels; leave it out, or train with "
                "--condition labels"
            )
        return None
    count, name = len(model.classes), options.class_
    if name is None:
        in_turn = path.suffix.lower() == ".png"
        return torch.arange(options.n) % count if in_turn else model.labels(options.n)
    by_number = name not in model.classes and name.isdecimal() and int(name) < count
    return torch.full((options.n,), int(name) if by_number else class_index(model.classes, name))


def _unfinished(path: Path, error: NumericalError) -> NumericalError:
    """The error, what was drawn before it and the last good state of the batch being kept beside `path`."""
    import numpy as np

    found: Unfinished = error.last
    arrays = {} if found.samples is None else {"samples": found.samples.numpy()}
    parts = [] if found.samples is None else [f"the {len(found.samples)} samples finished before (samples)"]
    if found.state is not None:
        arrays |= {"state": found.state.x.float().cpu().numpy(), "t": np.float64(found.state.t)}
        parts.append("the last good state of the others, in model units (state, t)")
    if not arrays:
        return error
    kept = path.with_name(f"{path.name}.unfinished.npz")
    write_arrays(kept, arrays)
    return NumericalError(f"{error}; {kept} holds {' and '.join(parts)}")
