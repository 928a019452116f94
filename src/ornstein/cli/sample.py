"""`ornstein sample`: draw samples from a run and write them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from ornstein.cli.common import Outcome, hint, parse
from ornstein.cli.outputs import destination, write
from ornstein.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.parallel import Group
    from ornstein.samplers import Samples

PROG = "ornstein sample"
CALLS = 25


@dataclass(frozen=True)
class SamplingOptions:
    """How samples are drawn."""

    seed: int = 0
    """Sample i is a function of the seed and i alone, whatever the batch size."""
    batch_size: int = 256
    """Samples drawn at once: memory against speed."""
    sampler: Annotated[str | None, arg(metavar="CALL", **hint("default: Multistep(3), corrected from 12 calls on"))] = (
        None
    )
    """Recipe of a step: Heun, "Heun(churn=0.1)", Euler, RK4, Ancestral, "Ancestral(eta=0)", "Singlestep(2)", StochasticHeun,
    "PredictorCorrector(Ancestral(), Langevin())", or Multistep, of which "Multistep(2, 'x0', exact=False)" is DPM-Solver++(2M)
    and "Multistep(3, 'x0', corrector=True)" UniPC."""
    steps: Annotated[int | None, arg(**hint())] = None
    """Steps of the sampler; this or --calls."""
    calls: Annotated[int | None, arg(**hint(f"default: {CALLS}"))] = None
    """Network evaluations per sample, at most: one a step, two with Heun."""
    grid: Annotated[str | None, arg(metavar="CALL", **hint("default: focused; karras with --sampler"))] = None
    """Times to visit: focused, karras, "karras(rho=5)", log_snr, uniform, "trailing(chain=1000)", leading, linspace."""
    precision: Literal["float32", "auto", "bfloat16"] = "float32"
    """Arithmetic of the network; auto is bfloat16 where the hardware has it, and then batch sizes agree less exactly."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, mps."""
    ema: Annotated[float | None, arg(**hint("default: the one of least validation loss"))] = None
    """Which of the run's averages of the weights, by its length."""


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
    labels = _labels(options, model, path)
    with together(group, lambda: f"No file was written; start again to have {path}"):
        drawn = draw(model, options.sampling, options.n, labels, group)
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
        "sampler": options.sampling.sampler,
        "grid": options.sampling.grid,
        "calls": drawn.calls,
        "seed": options.sampling.seed,
        "class": options.class_,
        "processes": group.size,
        "seconds": round(drawn.seconds, 3),
    }
    text = f"{path}: {options.n} samples of step {model.step}, {drawn.calls} calls each, {drawn.seconds:.1f} s"
    return Outcome(result, text, options.json)


def draw(
    model: "Model", options: SamplingOptions, n: int, labels: "Tensor | None", group: "Group | None" = None
) -> "Samples":
    """`n` samples in raw units, on the CPU. Raises `ConfigurationError` on options that do not fit the model.

    The processes of a group take batches in turn, the same batches as one process would: so the samples are the same. The
    main process returns all of them, the others some.
    """
    import time

    import torch
    from tqdm import tqdm

    from ornstein.devices import autocast, resolve_precision
    from ornstein.parallel import Group
    from ornstein.samplers import Samples

    sampler, grid = _recipe(model, options)
    group, size = group or Group(), options.batch_size
    device, began, parts, calls = next(iter(model.parameters())).device, time.perf_counter(), [], 0
    rounds = range(0, n, size * group.size)
    with (
        tqdm(total=len(rounds) * len(grid), unit="step", leave=False, disable=None if group.main else True) as bar,
        autocast(resolve_precision(options.precision, device), device),
    ):
        for begin in rounds:
            first = min(n, begin + size * group.rank)
            rows = range(first, min(n, first + size))
            drawn = _batch(model, sampler, grid, options.seed, rows, labels, bar.update)
            calls = max(calls, drawn.calls)
            parts += [part for part in group.all(drawn.x.cpu()) if len(part) and group.main]
    return Samples(torch.cat(parts) if parts else drawn.x.cpu(), calls, time.perf_counter() - began)


def _batch(
    model: "Model",
    sampler: Any,
    grid: "Tensor",
    seed: int,
    rows: range,
    labels: "Tensor | None",
    advance: Callable[[int], Any],
) -> "Samples":
    """Some of the samples of a seed, in one batch; `advance` is told of each state of the loop."""
    from ornstein.samplers import sample

    def follow(t: float, x: "Tensor") -> "Tensor":
        advance(1)
        return x.new_empty(0)  # the hook is meant for trajectories: one empty row a state weighs nothing

    cond = None if labels is None else labels[rows.start : rows.stop]
    size = max(1, len(rows))
    return sample(
        model,
        sampler,
        n=len(rows),
        grid=grid,
        cond=cond,
        seed=seed,
        first=rows.start,
        batch_size=size,
        trajectory=follow,
    )


def is_conditional(model: "Model") -> bool:
    """Whether the model was trained on labels."""
    return model.config["options"]["model"]["condition"] == "labels"


def _recipe(model: "Model", options: SamplingOptions) -> "tuple[Any, Tensor]":
    """The sampler, and the times to visit, for --sampler, --grid and --steps or --calls."""
    from ornstein import grids, specs
    from ornstein.samplers import Sampler, recipe

    if options.steps is not None and options.calls is not None:
        raise ConfigurationError("got both --steps and --calls, expected one of them")
    if options.batch_size < 1:
        raise ConfigurationError(f"got --batch-size {options.batch_size}, expected at least 1")
    named = None if options.sampler is None else specs.construct(options.sampler, Sampler)
    sampler, grid = recipe(model.process, named, options.steps, options.calls)
    if options.grid is None:
        return sampler, grid
    spec, steps = specs.parse(options.grid), len(grid) - grids.lands_on_data(model.process)
    laws = {
        f.__name__: f
        for f in (
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
    try:
        return sampler, laws[spec.name](model.process, steps, *spec.args, **spec.kwargs)
    except TypeError as error:
        raise ConfigurationError(f"got --grid '{options.grid}', which does not fit: {error}") from None


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
