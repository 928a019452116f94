"""How the commands draw samples of a run: their common options, the choice of sampler and grid, the batches."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from ornstein.cli import recommendations
from ornstein.cli.common import hint, say
from ornstein.cli.prompting import is_categorical
from ornstein.cli.steering import Steering
from ornstein.errors import ConfigurationError, NumericalError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.conditions import Condition
    from ornstein.parallel import Group
    from ornstein.samplers import Sampler, Samples, State

CALLS = 25
MANY_CALLS = 128
"""Of categories, which are drawn site by site as if the others were known: what few calls get wrong is how sites go together."""


@dataclass(frozen=True)
class SamplingOptions:
    """How samples are drawn."""

    seed: int = 0
    """Sample i is a function of the seed and i alone, whatever the batch size."""
    batch_size: int = 256
    """Samples drawn at once: memory against speed."""
    sampler: Annotated[
        str | None,
        arg(
            metavar="CALL",
            **hint(
                "default: what `ornstein bench RUN` found, else Multistep(3), corrected from 12 calls on; Ancestral of categories"
            ),
        ),
    ] = None
    """Recipe of a step: Heun, "Heun(churn=0.1)", Euler, RK4, "RK45(rtol=1e-4)" (adaptive), Ancestral, "Ancestral(eta=0)",
    "Singlestep(2)", StochasticHeun, "PredictorCorrector(Ancestral(), Langevin())", or Multistep, of which
    "Multistep(2, 'x0', exact=False)" is DPM-Solver++(2M) and "Multistep(3, 'x0', corrector=True)" UniPC. Of categories:
    Ancestral, TauLeaping, CTMCEuler, "PredictorCorrector(TauLeaping(), CTMCCorrector())"; of masks FirstHitting too."""
    steps: Annotated[
        int | None, arg(**hint(f"default: as --calls has it; {CALLS} with --inpaint, --reference, --upscale"))
    ] = None
    """Steps of the sampler; this or --calls."""
    calls: Annotated[
        int | None,
        arg(
            **hint(
                f"default: as `ornstein bench RUN --error` found, else {CALLS}; of categories {MANY_CALLS}, or the tokens to "
                "draw where they are fewer"
            )
        ),
    ] = None
    """Network evaluations per sample, at most: one a step, two with Heun."""
    grid: Annotated[
        str | None, arg(metavar="CALL", **hint("default: focused; karras with --sampler; of categories uniform"))
    ] = None
    """Times to visit: focused, karras, "karras(rho=5)", log_snr, uniform, "trailing(chain=1000)", leading, linspace."""
    threshold: Annotated[float | None, arg(**hint("default: off"))] = None
    """Keep estimates of x_0 within the range of the data, images of levels alone: 1 clamps them, a number below 1, such as 0.995,
    is the quantile of dynamic thresholding (Saharia et al. 2022)."""
    precision: Literal["float32", "auto", "bfloat16"] = "float32"
    """Arithmetic of the network; auto is bfloat16 where the hardware has it, and then batch sizes agree less exactly."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1, mps."""
    ema: Annotated[float | None, arg(**hint("default: the one of least validation loss"))] = None
    """Which of the run's averages of the weights, by its length."""


@dataclass(frozen=True)
class Chosen:
    """The sampler and the times to visit; `origin` says where they come from: the command line, a bench, or the usual rule."""

    sampler: "Sampler"
    grid: "Tensor"
    origin: str


@dataclass(frozen=True)
class Unfinished:
    """What there is when drawing fails: the samples finished before, in raw units, and the last good state of this process's
    batch, in model units; None where there is none."""

    samples: "Tensor | None"
    state: "State | None"


def choose(
    model: "Model",
    run: Path,
    options: SamplingOptions,
    denoiser: Any = None,
    steering: "Steering | None" = None,
    drawn: int | None = None,
) -> Chosen:
    """The sampler and the times for --sampler, --grid and --steps or --calls, of the guided `denoiser`, constrained as steered.

    Where none of the first three is given, they are those that `ornstein bench` found for the run and this number of calls, if
    it did. drawn: of categories, the sites of a sample that are drawn. Raises `ConfigurationError` on options that do not fit.
    """
    denoiser, steering = model if denoiser is None else denoiser, steering or Steering()
    _check(options)
    if is_categorical(model):
        return _of_categories(model, options, denoiser, steering, drawn)
    return _of_numbers(model, run, options, denoiser, steering)


def _check(options: SamplingOptions) -> None:
    """Raise `ConfigurationError` on options that fit no model."""
    if options.steps is not None and options.calls is not None:
        raise ConfigurationError("got both --steps and --calls, expected one of them")
    if options.batch_size < 1:
        raise ConfigurationError(f"got --batch-size {options.batch_size}, expected at least 1")
    if options.threshold is not None and not 0 < options.threshold <= 1:
        raise ConfigurationError(
            f"got --threshold {options.threshold:g}, expected a quantile below 1, such as 0.995, or 1 to clamp"
        )


def _of_categories(
    model: "Model", options: SamplingOptions, denoiser: Any, steering: Steering, drawn: int | None
) -> Chosen:
    """The sampler and the times for a model of categories, or with parts that are: equal steps."""
    from ornstein import specs
    from ornstein.samplers import Ancestral, Sampler, recipe

    if options.threshold is not None:
        raise ConfigurationError("got --threshold for a model of categories, whose samples are in range; leave it out")
    if options.grid not in (None, "uniform"):
        raise ConfigurationError(f"got --grid {options.grid} for a model of categories, expected uniform: leave it out")
    named = None if options.sampler is None else specs.construct(options.sampler, Sampler)
    own = named is not None and math.isinf(named.stages)  # its steps are its own
    calls = options.calls
    if calls is None and options.steps is None and not own:
        sites = (drawn or getattr(model.scaling, "dims", None)) if model.process.holds else None
        calls = min(MANY_CALLS, sites or MANY_CALLS, model.process.steps or MANY_CALLS)
    sampler = named if steering.wrap is None else steering.wrap(named or Ancestral())
    return Chosen(*recipe(denoiser, sampler, options.steps, calls), "usual" if named is None else "named")


def _of_numbers(model: "Model", run: Path, options: SamplingOptions, denoiser: Any, steering: Steering) -> Chosen:
    """The sampler and the times for a model of numbers; see `choose`."""
    from ornstein import grids, specs
    from ornstein.samplers import Ancestral, Sampler, recipe

    plain = denoiser is model and steering == Steering()
    if plain and all(given is None for given in (options.sampler, options.grid, options.steps)):
        found = _recommended(model, run, options)
        if found is not None:
            return found
    named = None if options.sampler is None else specs.construct(options.sampler, Sampler)
    if steering.wrap is not None:  # which drops a multistep sampler's memory
        named = steering.wrap(named or Ancestral())
    if options.grid is not None and steering.init is not None:
        raise ConfigurationError("got --grid with --init, whose times begin at --strength; leave --grid out")
    sampler, grid = recipe(denoiser, named, options.steps, options.calls, begin=steering.begin)
    if options.grid is not None and math.isinf(sampler.stages):
        raise ConfigurationError(f"got --grid with {sampler}, whose steps are its own; leave it out")
    if options.grid is not None:
        grid = recommendations.grid_law(options.grid)(model.process, len(grid) - grids.lands_on_data(model.process))
    return Chosen(sampler, grid, "usual" if named is None else "named")


def _recommended(model: "Model", run: Path, options: SamplingOptions) -> Chosen | None:
    found = recommendations.read(run)
    if found is None:
        return None
    path, calls = run / recommendations.FILE, next(c for c in (options.calls, found.calls, CALLS) if c is not None)
    best = found.at(calls)
    if options.threshold is not None:
        why = "it was made without --threshold"
    elif found.ema != model.ema:
        why = f"it is of the average {found.ema}"
    elif best is None:
        why = f"it knows {' '.join(str(each.calls) for each in found.best)} calls, not {calls}"
    else:
        if found.step != model.step:
            anew = f"`ornstein bench {run}` makes it anew for step {model.step}"
            say(f"note: {path} is used, but it is of step {found.step}; {anew}")
        return Chosen(*best.objects(), f"bench: {best.name}")
    say(f"note: {path} is not used: {why}")
    return None


def draw(
    denoiser: Any,
    chosen: Chosen,
    options: SamplingOptions,
    n: int,
    cond: "Condition | None",
    group: "Group | None" = None,
    steering: "Steering | None" = None,
) -> "Samples":
    """`n` samples of a `Model`, guided or not, in raw units, on the CPU.

    Raises `ConfigurationError` on options that do not fit the model, `NumericalError` on NaN: its `last` is then an `Unfinished`.

    The processes of a group take batches in turn, the same batches as one process would: so the samples are the same. The
    main process returns all of them, the others some.
    """
    import time

    import torch
    from tqdm import tqdm

    from ornstein.clipping import Clipped
    from ornstein.devices import autocast, resolve_precision
    from ornstein.parallel import Group
    from ornstein.samplers import Samples

    if options.threshold is not None:
        denoiser = Clipped(denoiser, quantile=None if options.threshold == 1 else options.threshold)
    group, size = group or Group(), options.batch_size
    device, began = next(iter(denoiser.parameters())).device, time.perf_counter()
    parts: list[Tensor] = []
    calls, rounds = 0, range(0, n, size * group.size)
    silent = None if group.main else True
    with (
        tqdm(total=len(rounds) * len(chosen.grid), unit="step", leave=False, disable=silent) as bar,
        autocast(resolve_precision(options.precision, device), device),
    ):
        for begin in rounds:
            first = min(n, begin + size * group.rank)
            rows, failed = range(first, min(n, first + size)), None
            try:
                drawn = _batch(denoiser, chosen, options.seed, rows, cond, bar.update, steering or Steering())
                calls, x = max(calls, drawn.calls), drawn.x.cpu()
            except NumericalError as error:
                failed, x = error, torch.empty(0)
            shared = group.all(
                (x, None if failed is None else str(failed))
            )  # so that no process waits for one that failed
            parts += [part for part, _ in shared if len(part) and group.main]
            for said in (said for _, said in shared if said is not None):
                state = None if failed is None else failed.last
                raise NumericalError(said, last=Unfinished(torch.cat(parts) if parts else None, state))
    return Samples(torch.cat(parts) if parts else x, calls, time.perf_counter() - began)


def _batch(
    denoiser: Any,
    chosen: Chosen,
    seed: int,
    rows: range,
    cond: "Condition | None",
    advance: Callable[[int], Any],
    steering: Steering,
) -> "Samples":
    """Some of the samples of a seed, in one batch; `advance` is told of each state of the loop."""
    import torch

    from ornstein.conditions import rows_of
    from ornstein.editing import noised_start
    from ornstein.samplers import sample

    def follow(t: float, x: Any) -> "Tensor":
        advance(1)
        return torch.empty(0)  # the hook is meant for trajectories: one empty row a state weighs nothing

    cond, size, start = rows_of(cond, slice(rows.start, rows.stop)), max(1, len(rows)), None
    if steering.init is not None and steering.begin is not None:
        start = noised_start(denoiser, steering.init, steering.begin, len(rows), cond, seed, rows.start)
    return sample(
        denoiser,
        chosen.sampler,
        n=len(rows),
        start=start,
        grid=chosen.grid,
        cond=cond,
        seed=seed,
        first=rows.start,
        batch_size=size,
        trajectory=follow,
    )


def is_conditional(model: "Model") -> bool:
    """Whether the model was trained on labels."""
    return model.config["options"]["model"]["condition"] == "labels"
