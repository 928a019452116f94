"""`ornstein bench`: how exact every sampler is at a number of calls, on exact targets or on a trained run."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from ornstein.cli import recommendations, scores
from ornstein.cli.common import Outcome, hint, parse, say
from ornstein.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.accuracy import Contender, Score
    from ornstein.checkpoints import Model
    from ornstein.linearised import Linearised
    from ornstein.processes import Gaussian

PROG = "ornstein bench"
EXACT_CALLS, RUN_CALLS = (5, 8, 12, 20, 30, 50), (5, 6, 8, 10, 12, 15, 20, 25)
EXACT_POINTS, RUN_POINTS, MOST_POINTS = 64, 32, 10_000
LAW = "normal, law"
EXACT_MOST, RUN_MOST = 160, 100  # calls: of the fine times of `optimal`; half of those of the fine solution


@dataclass(frozen=True)
class Options:
    """Measure the error of every sampler at a number of network calls.

    Without RUN on exact targets, where the end of every path is known: a normal law, a mixture of eight in the plane, and the
    ideal denoiser of the embedded digits smoothed by 0.1. With RUN on its network, against a fine solution of 200 calls: the
    best sampler and grid for each number of calls are then kept in RUN/sampling.json, and `ornstein sample RUN` uses them.

    For example:
    - ornstein bench
    - ornstein bench runs/digits-1 --error 0.01
    - ornstein bench --targets mixture --sampler "Singlestep(3)" "Heun" --grid "karras(rho=5)"
    """

    run: Annotated[Positional[Path | None], arg(**hint("default: exact targets"))] = None
    """The run folder."""
    calls: Annotated[
        tuple[int, ...] | None,
        arg(
            metavar="INT ...",
            **hint(f"default: {' '.join(map(str, EXACT_CALLS))}; of a run {' '.join(map(str, RUN_CALLS))}"),
        ),
    ] = None
    """Numbers of network calls, at most that many being made."""
    error: Annotated[float | None, arg(**hint())] = None
    """With RUN: the error wanted, in units of the model; `ornstein sample` then makes the least calls that reach it."""
    targets: Annotated[
        tuple[Literal["normal", "mixture", "digits"], ...],
        arg(metavar="NAME ...", **hint("default: normal mixture digits")),
    ] = ("normal", "mixture", "digits")
    """Without RUN: which exact targets."""
    schedule: str = "LinearVP()"
    """Without RUN: the schedule of the exact targets."""
    sampler: Annotated[tuple[str, ...], arg(metavar="CALL ...", **hint("default: all"))] = ()
    """These samplers in place of all, named as for `ornstein sample`; nothing is then kept with a run."""
    grid: Annotated[str | None, arg(metavar="CALL", **hint("default: karras"))] = None
    """The grid of those of --sampler, its first time moved to the start of the paths; optimal is made for the denoiser."""
    n: Annotated[int | None, arg(aliases=["-n"], **hint(f"default: {EXACT_POINTS}; of a run {RUN_POINTS}"))] = None
    """How many starting points."""
    seed: int = 0
    """Of the starting points."""
    device: str = "auto"
    """Where a run's network runs: auto, cpu, cuda, cuda:1, mps."""
    ema: Annotated[float | None, arg(**hint("default: the one of least validation loss"))] = None
    """Which of a run's averages of the weights, by its length."""
    out: Annotated[Path | None, arg(metavar="NAME", **hint("default: RUN/bench-1 or ./bench-1, then -2, ..."))] = None
    """What to write: NAME.csv, and NAME.png where matplotlib is installed."""
    json: Annotated[bool, arg(**hint())] = False
    """Print one JSON object on stdout, and nothing else."""


def main(argv: list[str]) -> Outcome:
    """Bench as a command line says. Raises `OrnsteinError`."""
    options: Options = parse(Options, argv, PROG)
    name = _checked(options)
    return _of_targets(options, name) if options.run is None else _of_run(options, options.run, name)


def _checked(options: Options) -> Path:
    """The name of what to write. Raises `ConfigurationError` on options that do not fit, before anything is computed."""
    from ornstein import specs
    from ornstein.cli.train import free_name
    from ornstein.processes import Gaussian
    from ornstein.schedules import EDM, Schedule

    most, calls = EXACT_MOST if options.run is None else RUN_MOST, options.calls or EXACT_CALLS
    if options.calls is not None and not (options.calls and min(calls) >= 2 and max(calls) <= most):
        raise ConfigurationError(
            f"got --calls {' '.join(map(str, options.calls))}, expected numbers of 2 to {most}: beyond that "
            f"{'no grid is made' if options.run is None else 'a fine solution is not known well enough'}"
        )
    if options.n is not None and not 1 <= options.n <= MOST_POINTS:
        raise ConfigurationError(f"got -n {options.n}, expected 1 to {MOST_POINTS}")
    if options.error is not None and not options.error > 0:
        raise ConfigurationError(f"got --error {options.error:g}, expected a positive number")
    _refuse_idle(options)
    specs.construct(options.schedule, Schedule)
    for sampler in _samplers(options):
        if sampler.stochastic or math.isinf(sampler.stages):
            raise ConfigurationError(
                f"got --sampler {sampler}, expected a deterministic sampler of a fixed number of calls a step: a path to keep to"
            )
    if options.grid not in (None, "optimal"):
        recommendations.grid_law(options.grid, ("optimal",))(Gaussian(EDM()), 4)
    folder = Path() if options.run is None else options.run
    name = options.out or free_name(folder, "bench", ".csv").with_suffix("")
    name = name.with_suffix("") if name.suffix in (".csv", ".png") else name
    scores.refuse_existing(name, () if options.run is not None else (*options.targets, LAW))
    if name.parent.exists() and not os.access(name.parent, os.W_OK):
        raise ConfigurationError(f"{name.parent} cannot be written to; give another place: --out NAME")
    return name


def _refuse_idle(options: Options) -> None:
    """Raise `ConfigurationError` on an option that would do nothing."""
    usual, of_run, exact = Options(), options.run is not None, options.run is None
    for name, idle, why in (
        ("schedule", of_run, "RUN, which has its own"),
        ("targets", of_run, "RUN, whose network is benched"),
        ("error", exact, "no RUN, which it is for"),
        ("device", exact, "no RUN, whose network it is for"),
        ("ema", exact, "no RUN, whose weights it is for"),
        ("grid", not options.sampler, "no --sampler, whose grid it is"),
        ("error", bool(options.sampler), "--sampler, with which nothing is kept"),
    ):
        if idle and getattr(options, name) != getattr(usual, name):
            raise ConfigurationError(f"got --{name} with {why}; leave it out")
    if not options.targets:
        raise ConfigurationError("got --targets without a name, expected normal, mixture or digits")


def _samplers(options: Options) -> list[Any]:
    from ornstein import specs
    from ornstein.samplers import Sampler

    return [specs.construct(text, Sampler) for text in options.sampler]


def _of_targets(options: Options, name: Path) -> Outcome:
    """Every sampler on exact targets."""
    import torch

    from ornstein import accuracy, specs
    from ornstein.linearised import Linearised
    from ornstein.processes import Gaussian
    from ornstein.schedules import Schedule

    process = Gaussian(specs.construct(options.schedule, Schedule))
    calls, texts = sorted(set(options.calls or EXACT_CALLS)), []
    rows: list[tuple[str, Score]] = []
    for target in options.targets:
        denoiser = accuracy.target(target, process)
        begin, start = accuracy.begun(
            process, (options.n or EXACT_POINTS, *denoiser.shape), options.seed, torch.float64
        )
        say(f"{target}: the exact ends of {len(start)} paths")
        truth = accuracy.solved(target, process, begin, start)
        measured = Linearised(denoiser)
        contenders = _own(options, process, measured) or accuracy.ode_contenders(process, measured)
        runs = accuracy.path_scores(denoiser, contenders, calls, begin, start, truth)
        found = _followed(runs, len(contenders) * len(calls))
        rows += [(target, score) for score in found]
        what = f"the median over {len(start)} points of the distance to the exact end"
        texts.append(scores.table(f"{target}, {process.schedule!r}: {what}", found, calls))
        if target == "normal" and not options.sampler:
            law = list(accuracy.law_scores(process, accuracy.sde_contenders(process), calls))
            rows += [(LAW, score) for score in law]
            texts.append(
                scores.table(
                    "normal, stochastic samplers: the error of the standard deviation, carried exactly", law, calls
                )
            )
    written = scores.write(name, rows, f"error against calls, {process.schedule!r}")
    result = {
        "schedule": repr(process.schedule),
        "scores": [scores.record(where, score) for where, score in rows],
        "written": written,
    }
    return Outcome(result, "\n\n".join([*texts, f"written: {', '.join(written)}"]), options.json)


def _of_run(options: Options, run: Path, name: Path) -> Outcome:
    """Samplers on a run's network, and the best of them kept with it."""
    import torch

    from ornstein import accuracy, checkpoints, linearised
    from ornstein.cli.against import typical_conditions
    from ornstein.conditions import moved
    from ornstein.devices import pick_device

    model = checkpoints.load(run, pick_device(options.device), options.ema)
    _check_numbers(run, model)
    denoiser, n, calls = model.denoiser, options.n or RUN_POINTS, sorted(set(options.calls or RUN_CALLS))
    device = next(iter(model.parameters())).device
    cond = moved(typical_conditions(model, n), device)
    process, shape = denoiser.process.given(cond), (n, *(denoiser.shape or ()))
    begin, start = accuracy.begun(process, shape, options.seed, torch.float32)
    start = start.to(device)
    say(f"{run}, step {model.step}: a fine solution of {accuracy.FINE} calls for {n} starting points")
    truth, known = accuracy.finely(denoiser, begin, start, cond)
    say(f"grids made for the network: {linearised.CALLS} calls")
    measured = linearised.Linearised(denoiser, n=n, cond=cond, seed=options.seed + 1)
    contenders = _own(options, denoiser.process, measured) or accuracy.network_contenders(denoiser.process, measured)
    runs = accuracy.path_scores(denoiser, contenders, calls, begin, start, truth, cond)
    found = _followed(runs, len(contenders) * len(calls))
    written = scores.write(name, [("", score) for score in found], f"{run}, step {model.step}")
    kept = _recommendations(model, options, found)
    if not options.sampler:
        written.append(str(recommendations.write(run, kept)))
    result = {
        "run": str(run),
        "step": model.step,
        "n": n,
        "fine_solution_known_to": known,
        "scores": [scores.record(None, score) for score in found],
        "best": [{k: v for k, v in vars(best).items() if k != "times"} for best in kept.best],
        "error_wanted": options.error,
        "calls": kept.calls,
        "written": written,
    }
    head = (
        f"{run}, step {model.step}: the median over {n} points of the distance to a fine solution, known to {known:.1g}"
    )
    lines = [scores.table(head, found, calls), "", *_advice(kept, options), f"written: {', '.join(written)}"]
    return Outcome(result, "\n".join(lines), options.json)


def _check_numbers(run: Path, model: "Model") -> None:
    """Raise `ConfigurationError` for a model of categories."""
    from ornstein.cli.prompting import is_categorical

    if is_categorical(model):
        raise ConfigurationError(
            f"got {run}, a model of categories, whose samplers follow no path of an ODE that they could keep to; expected one of "
            "numbers: compare samplers by ornstein evaluate RUN --sampler CALL --calls N"
        )


def _own(options: Options, process: "Gaussian", measured: "Linearised") -> "list[Contender]":
    """The contenders that --sampler and --grid name."""
    from ornstein.accuracy import Contender

    def times(sampler: Any, steps: int) -> "Tensor":
        return measured.grid(sampler, steps) if grid == "optimal" else recommendations.grid_law(grid)(process, steps)

    grid, named = options.grid or "karras", zip(options.sampler, _samplers(options), strict=True)
    return [Contender(f"{text}, {grid}", sampler, times) for text, sampler in named]


def _followed(runs: "Iterator[Score]", total: int) -> "list[Score]":
    """The scores, with a bar. Raises `ConfigurationError` where there is none."""
    from tqdm import tqdm

    found = list(tqdm(runs, total=total, unit="run", leave=False))
    if not found:
        raise ConfigurationError(
            "got no score: no sampler makes two steps within --calls, or all leave the finite numbers"
        )
    return found


def _recommendations(model: "Model", options: Options, found: "Sequence[Score]") -> recommendations.Recommendations:
    """The best at each number of calls, and the least calls that reach the error."""
    kept: list[recommendations.Recommendation] = []
    for calls in sorted({score.asked for score in found}):
        best = min((score for score in found if score.asked == calls), key=lambda score: score.median)
        times = best.times.tolist()
        kept.append(recommendations.Recommendation(calls, best.name, str(best.sampler), times, best.median, best.rms))
    enough = [best.calls for best in kept if options.error is not None and best.median <= options.error]
    return recommendations.Recommendations(model.step, model.ema, min(enough, default=None), kept)


def _advice(kept: recommendations.Recommendations, options: Options) -> Iterator[str]:
    from ornstein.cli.drawing import CALLS
    from ornstein.samplers.recipes import MANY

    yield f"the usual sampler is Multistep(3), focused, corrected from {MANY} calls on"
    yield "best at each number of calls (median, root mean square):"
    for best in kept.best:
        yield f"  {best.calls:3} calls  {best.median:.2g}  {best.rms:.2g}  {best.name}"
    if options.sampler:
        return
    if options.error is not None and kept.calls is None:
        least = min(best.median for best in kept.best)
        yield f"no sampler reached an error of {options.error:g}, the least is {least:.2g}: try more --calls"
    elif options.error is not None:
        yield f"an error of {options.error:g} takes {kept.calls} calls"
    calls = kept.calls or CALLS
    known = kept.at(calls)
    yield f"`ornstein sample {options.run}` now makes {calls} calls by {'the usual sampler' if known is None else known.name}"
