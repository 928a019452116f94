"""`ornstein train`: make a run, or go on with one."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ornstein.cli.common import Outcome, hint, parse, say
from ornstein.cli.layers import layered, read_toml, to_toml
from ornstein.config import (
    GROUPS,
    DataOptions,
    ModelOptions,
    ObjectiveOptions,
    ReportOptions,
    RunOptions,
    TrainingOptions,
)
from ornstein.errors import ConfigurationError

PROG = "ornstein train"


@dataclass(frozen=True)
class Options:
    """Train a diffusion model on DATA and keep all of it in a run folder. Ctrl-C saves; --resume goes on bit for bit.

    An option has its value from the command line, else from the TOML file, else from the preset, else as shown below.

    For example:
    - ornstein train digits
    - ornstein train photos/ --budget 2h --condition labels
    - ornstein train table.npy --steps 20000 --schedule "LinearVP(beta_max=18)"
    - ornstein train --resume runs/digits-1
    """

    data: Annotated[Positional[str | None], arg(**hint("left out with --resume"))] = None
    """What to train on: digits, a toy (rings, ...), an .npz, .csv or .parquet file, a folder or .zip of images, hf:NAME."""
    out: Annotated[Path | None, arg(metavar="RUN", **hint("default: runs/DATA-1, runs/DATA-2, ..."))] = None
    """The run folder to make; one that exists is never written over."""
    resume: Annotated[Path | None, arg(metavar="RUN", **hint())] = None
    """Go on with this run, as configured, from its newest checkpoint; may be given --workers and --skip-bad."""
    allow_changed_data: Annotated[bool, arg(**hint())] = False
    """With --resume: go on even where the data are no longer those that the run began with."""
    preset: Annotated[str | None, arg(metavar="NAME", **hint("default: the one made for DATA, else none"))] = None
    """Named settings: digits, mnist, cifar10, table, mixed, text, series, toy2d, or none."""
    config: Annotated[Path | None, arg(metavar="FILE.toml", **hint())] = None
    """Options by the names below, flat or in the tables [model], [objective], ...; --dry-run prints such a file."""
    dry_run: Annotated[bool, arg(**hint())] = False
    """Check the options, print all of them as TOML, and write nothing."""
    profile: Annotated[bool, arg(**hint())] = False
    """Time the parts of a training step (data, forward, backward, optimiser, average), print them, and write nothing."""
    json: Annotated[bool, arg(**hint())] = False
    """Print one JSON object on stdout, and nothing else."""
    reading: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    report: ReportOptions = field(default_factory=ReportOptions)


def main(argv: list[str]) -> Outcome:
    """Train as a command line says. Raises `OrnsteinError`."""
    options: Options = parse(Options, argv, PROG)
    if options.resume is not None:
        return _resume(options, options.resume)
    run, preset = resolve(options, argv)
    folder = options.out or free_name(Path("runs"), run.data)
    if options.dry_run:
        _check(run)
        result = {"out": str(folder), "preset": preset, "options": asdict(run)}
        return Outcome(result, f"# {PROG}, preset {preset}, run folder {folder}\n{to_toml(run)}", options.json)
    from ornstein import experiment
    from ornstein.parallel import join

    if options.preset is None and preset != "none":
        say(f"preset {preset}, made for these data (--preset none for the defaults)")
    _check(run)
    group = join(run.training.device)
    if options.profile:
        return _profile(experiment.prepare(run, folder, group), options.json)
    return trained(experiment.create(run, group.same(folder), group), options.json)


def resolve(options: Options, argv: list[str]) -> tuple[RunOptions, str]:
    """The options of the run and the name of its preset: the command line read once more, over preset and TOML file."""
    toml = {} if options.config is None else read_toml(options.config)
    base, preset = layered(options.data, options.preset, toml, options.model.process)
    if not base.data:
        raise ConfigurationError(
            f"got neither DATA nor --resume, expected one of them, such as {PROG} digits or {PROG} --resume RUN"
        )
    # steps and budget exclude each other, so those below count only where the command line gives neither.
    below = base.training
    groups = {group: getattr(base, group) for group in GROUPS}
    groups["training"] = replace(below, steps=None, budget=None)
    given: Options = parse(Options, argv, PROG, default=Options(**groups))
    training = given.training
    if training.steps is None and training.budget is None:
        training = replace(training, steps=below.steps, budget=below.budget)
    if training.steps is not None and training.budget is not None:
        raise ConfigurationError("got both --steps and --budget, expected one of them")
    return RunOptions(base.data, given.reading, given.model, given.objective, training, given.report), preset


def free_name(folder: Path, source: str, suffix: str = "") -> Path:
    """The first of folder/NAME-1, folder/NAME-2, ... that is free, with NAME the last part of a data source."""
    path = Path(source)
    name = re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else path.resolve().name) or "run"
    count = 1
    while (found := folder / f"{name}-{count}{suffix}").exists():
        count += 1
    return found


def _check(run: RunOptions) -> None:
    """Raise `ConfigurationError` on wrong options, before the data are read, which may take long."""
    from ornstein import experiment, priors, specs
    from ornstein.config import seconds
    from ornstein.schedules import Schedule

    specs.parse(run.model.network)
    specs.construct(run.model.schedule, Schedule)
    priors.check(run.model.prior, experiment.aims.condition_of(run))
    experiment.objective(run)
    if run.training.budget is not None:
        seconds(run.training.budget)


def _resume(options: Options, folder: Path) -> Outcome:
    usual, reading = Options(), options.reading
    # Neither changes what is read of data that can be read, so a run may go on with them.
    taken = {
        name: value
        for name in ("skip_bad", "workers")
        if (value := getattr(reading, name)) != getattr(usual.reading, name)
    }
    plain = replace(reading, skip_bad=usual.reading.skip_bad, workers=usual.reading.workers)
    others = list(_given(replace(options, resume=None, json=False, allow_changed_data=False, reading=plain), usual))
    if others:
        raise ConfigurationError(
            f"--resume goes on with a run as it was configured, got {', '.join(others)} with it; leave that out, or "
            "start another run without --resume"
        )
    from ornstein import checkpoints, experiment
    from ornstein.parallel import join

    device = checkpoints.read_config(folder)["options"]["training"]["device"]
    return trained(experiment.resume(folder, join(device), options.allow_changed_data, taken), options.json)


def _given(options: Any, default: Any) -> Iterator[str]:
    """The options that differ from the default, by their names on the command line."""
    for name in (f.name for f in fields(options)):
        value, usual = getattr(options, name), getattr(default, name)
        if is_dataclass(usual):
            yield from _given(value, usual)
        elif value != usual:
            yield "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def _profile(made: Any, json: bool) -> Outcome:
    """The parts of a training step of an `Experiment`, in a table."""
    from ornstein.profiling import profile

    say(made.dataset.describe())
    found = profile(made.run, made.data())
    made.run.group.leave()
    return Outcome(found.to_dict(), f"{made.describe()}\n{found}", json)


def _next(made: Any) -> str:
    """The command that uses what was trained: a classifier guides the run it was made for."""
    if made.config["model"].get("kind") == "classifier":
        return (
            f"ornstein sample {made.config.get('guides', 'RUN')} --classifier {made.folder} --guidance 2 --class NAME"
        )
    return f"ornstein sample {made.folder}{' --cond FILE.npz' if made.condition == 'arrays' else ''}"


def trained(made: Any, json: bool) -> Outcome:
    """Train an `Experiment` and put its summary into words."""
    say(made.dataset.describe())
    say(made.describe())
    for note in made.notes:
        say(f"note: {note}")
    if made.run.count == made.run.total:
        say(f"{made.folder} is finished: all its {made.run.total} steps are made")
    else:
        say(f"training {made.folder} from step {made.run.count}; Ctrl-C saves and stops")
    summary = made.train(progress=True)
    made.run.group.leave()
    losses = [
        f"{name.replace('_', ' ')} {summary[name]:.4f}" for name in ("loss", "validation_loss") if summary.get(name)
    ]
    unit = "tokens" if "tokens_per_s" in summary else "images"
    speed = f"{summary['steps']} steps, {summary['seconds']:.0f} s, {summary[f'{unit}_per_s']:.0f} {unit}/s"
    interrupted = summary["stopped"] == "interrupted"
    follow = f"{PROG} --resume {made.folder}" if interrupted else _next(made)
    text = f"{made.folder}: {', '.join([summary['stopped'], speed, *losses])}\nnext: {follow}"
    return Outcome(summary, text, json, 130 if interrupted else 0)
