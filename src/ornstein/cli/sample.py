"""`ornstein sample`: draw samples from a run and write them."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from ornstein.cli.common import Outcome, hint, parse, rank, say
from ornstein.cli.drawing import Chosen, SamplingOptions, Unfinished, choose, draw
from ornstein.cli.guiding import GuidanceOptions, classes_of, guided
from ornstein.cli.outputs import destination, readable, texts_of, write, write_arrays
from ornstein.cli.prompting import PromptingOptions, is_text, prompted, refuse_foreign
from ornstein.cli.steering import SteeringOptions, read_raw, steer
from ornstein.errors import ConfigurationError, NumericalError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.samplers import Samples

PROG = "ornstein sample"
N, POINTS, TEXTS = 64, 8, 4


@dataclass(frozen=True)
class Options:
    """Draw samples from a run, with the averaged weights of its newest checkpoint.

    For example:
    - ornstein sample runs/digits-1
    - ornstein sample runs/digits-1 -n 10000 --calls 15 --out samples.npz
    - ornstein sample runs/digits-1 --class 7 --guidance 2 --out sevens/
    - ornstein sample runs/digits-1 --inpaint digit.png --mask mask.png --resamplings 10
    - ornstein sample runs/digits-1 --reference digit.png --factor 2
    - ornstein sample runs/plays-1 -n 4 --length 400 --prompt "KING:"
    - ornstein sample runs/plays-1 --template "To be, or ______ to be" --temperature 0.8
    """

    run: Positional[Path]
    """The run folder."""
    out: Annotated[
        Path | None, arg(metavar="NAME", **hint("default: RUN/samples-1.png, .csv, .txt or .npz, then -2, ..."))
    ] = None
    """What to write, by its ending: .npz (`samples`, `labels`), .npy, .png (a grid), a folder (PNGs), .csv or .parquet (a table),
    .txt or .jsonl (texts, to read or a JSON string a line)."""
    overwrite: Annotated[bool, arg(**hint())] = False
    """Replace the file where it exists; a folder is never replaced."""
    n: Annotated[
        int | None,
        arg(
            aliases=["-n"],
            **hint(f"default: {N}; {TEXTS} of text; the rows of --cond; {POINTS} with --interpolate"),
        ),
    ] = None
    """How many samples."""
    class_: Annotated[str | None, arg(name="class", metavar="CLASS", **hint("default: as often as in the data"))] = None
    """Name or index of the class to draw, of a model trained with --condition labels; a grid shows all in turn."""
    cond: Annotated[Path | None, arg(metavar="FILE", **hint())] = None
    """The conditions of a model trained with --condition arrays: an .npz with the array `cond`, a row a sample."""
    interpolate: Annotated[tuple[Path, Path] | None, arg(metavar="IMAGE IMAGE", **hint())] = None
    """The way from one image to another through their latents, in -n points, in place of samples."""
    json: Annotated[bool, arg(**hint())] = False
    """Print one JSON object on stdout, and nothing else."""
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    steering: SteeringOptions = field(default_factory=SteeringOptions)
    prompting: PromptingOptions = field(default_factory=PromptingOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


def main(argv: list[str]) -> Outcome:
    """Sample as a command line says. Raises `OrnsteinError`."""
    options: Options = parse(Options, argv, PROG)
    if options.n is not None and options.n < 1:
        raise ConfigurationError(f"got -n {options.n}, expected at least 1")
    from ornstein import checkpoints
    from ornstein.parallel import join, together

    group = join(options.sampling.device)
    model = checkpoints.load(options.run, group.device(options.sampling.device), options.sampling.ema)
    _refuse(options, model)
    path = group.same(destination(options.out, options.run, model, options.overwrite))
    asked = prompted(model, guided(model, options.guidance), steer(model, options.steering), options.prompting)
    model, denoiser, steering = asked.model, asked.denoiser, asked.steering
    cond, n = _condition(options, model, path)
    labels = cond if options.cond is None and classes_of(model, options.guidance) == model.classes else None
    if options.interpolate is not None:
        outcome = _interpolated(options, model, denoiser, path, cond)
        group.leave()
        return outcome
    chosen = choose(model, options.run, options.sampling, denoiser, steering, asked.drawn)
    with together(group, lambda: f"No file was written; start again to have {path}"):
        try:
            drawn = draw(denoiser, chosen, options.sampling, n, cond, group, steering)
        except NumericalError as error:
            raise (_unfinished(path, error) if group.main else error) from None
        if group.main:
            write(path, drawn.x, labels, model)
        group.leave()
    said = {"processes": group.size, "guidance": getattr(denoiser, "scale", None), "strength": steering.begin}
    if is_text(model):
        return _told(options, model, path, drawn, chosen, said)
    return _outcome(options, model.step, path, drawn, chosen, said)


def _refuse(options: Options, model: "Model") -> None:
    """Raise `ConfigurationError` for options of another kind of model."""
    others = {"threshold": options.sampling.threshold, "interpolate": options.interpolate}
    refuse_foreign(model, options.prompting, options.steering, options.guidance.asked, others)


def _told(
    options: Options, model: "Model", path: Path, drawn: "Samples", chosen: Chosen, said: dict[str, Any]
) -> Outcome:
    """Texts are themselves the outcome; where they were written to is a remark."""
    texts, asked = texts_of(model, drawn.x) if rank() == 0 else [], options.prompting
    given = {name: getattr(asked, name) for name in ("prompt", "template", "temperature", "top_p")}
    outcome = _outcome(options, model.step, path, drawn, chosen, {**said, **given, "texts": texts})
    if not options.json:
        say(outcome.text)
    return Outcome(outcome.result, readable(texts), options.json)


def _outcome(
    options: Options, step: int, path: Path, drawn: "Samples", chosen: Chosen, said: dict[str, Any]
) -> Outcome:
    """What was drawn and how, in words and as JSON."""
    result = {
        "run": str(options.run),
        "out": str(path),
        "n": len(drawn.x),
        "shape": list(drawn.x.shape),
        "dtype": str(drawn.x.dtype).removeprefix("torch."),
        "step": step,
        "sampler": str(chosen.sampler),
        "origin": chosen.origin,
        "grid": options.sampling.grid,
        "calls": drawn.calls,
        "seed": options.sampling.seed,
        "class": options.class_,
        **said,
        "seconds": round(drawn.seconds, 3),
    }
    most = "at most " if math.isinf(chosen.sampler.stages) else ""
    text = f"{path}: {len(drawn.x)} samples of step {step}, {most}{drawn.calls} calls each, {drawn.seconds:.1f} s"
    if chosen.origin.startswith("bench"):
        text += f" ({chosen.origin})"
    return Outcome(result, text, options.json)


def _condition(options: Options, model: "Model", path: Path) -> "tuple[Tensor | None, int]":
    """The condition of each sample, and how many there are.

    Of classes: that of --class, else as in the data (in turn, in a grid). Of arrays: those of --cond.
    """
    import torch

    from ornstein.data import class_index

    usual = POINTS if options.interpolate else TEXTS if is_text(model) else N
    kind, n = model.config["options"]["model"]["condition"], options.n or usual
    if options.cond is not None and kind != "arrays":
        raise ConfigurationError(
            f"got --cond {options.cond} for a model trained without; train with --condition arrays"
        )
    if kind == "arrays":
        return _given(options, model)
    if kind != "labels" and options.guidance.classifier is None:
        if options.class_ is not None:
            raise ConfigurationError(
                f"got --class {options.class_} for a model trained without labels; leave it out, or train with "
                "--condition labels, or give a --classifier"
            )
        return None, n
    classes, counts, name = classes_of(model, options.guidance), model.config["data"]["class_counts"], options.class_
    own = classes == model.classes and len(counts) == len(classes)
    if name is None:
        in_turn = path.suffix.lower() == ".png" or not own
        return torch.arange(n) % len(classes) if in_turn else model.labels(n), n
    by_number = name not in classes and name.isdecimal() and int(name) < len(classes)
    index = int(name) if by_number else class_index(classes, name)
    if own and counts[index] == 0:
        raise ConfigurationError(f"got --class {name}, a class that the model never saw: training had no example of it")
    return torch.full((n,), index), n


def _given(options: Options, model: "Model") -> "tuple[Tensor, int]":
    """The conditions of --cond, the first -n of them."""
    if options.cond is None or options.class_ is not None:
        raise ConfigurationError(
            "the model was trained with --condition arrays, expected --cond FILE, the conditions of the samples, without --class"
        )
    assert model.conditioning is not None
    cond = model.conditioning.read(options.cond)
    if options.n is not None and options.n > len(cond):
        raise ConfigurationError(f"got -n {options.n} for {len(cond)} rows in {options.cond}, expected at most as many")
    n = len(cond) if options.n is None else options.n
    return cond[:n], n


def _interpolated(options: Options, model: "Model", denoiser: Any, path: Path, cond: "Tensor | None") -> Outcome:
    """Write the way between two images. Of several processes each finds it, and the first one writes."""
    import time

    from ornstein.editing import interpolate
    from ornstein.processes import ByClass

    assert options.interpolate is not None
    if options.steering != SteeringOptions():
        raise ConfigurationError("got --interpolate with --inpaint, --init or the like, expected one of them")
    for name in ("sampler", "steps", "calls", "grid", "threshold"):
        if getattr(options.sampling, name) is not None:
            raise ConfigurationError(f"got --{name} with --interpolate, which goes along the ODE in steps of its own")
    n, chosen = options.n or POINTS, options.class_ is not None or options.cond is not None
    if not chosen and (denoiser is not model or isinstance(model.process.base, ByClass)):
        raise ConfigurationError("got --interpolate of a model that needs a class, expected --class with it")
    a, b = (read_raw(model, end)[:1] for end in options.interpolate)
    began = time.perf_counter()
    given = cond[:1] if cond is not None and chosen else None
    x = interpolate(denoiser, a, b, n, cond=given)[0]
    if rank() == 0:
        write(path, x, None, model)
    seconds = time.perf_counter() - began
    result = {"run": str(options.run), "out": str(path), "n": n, "step": model.step, "seconds": round(seconds, 3)}
    ends = " to ".join(map(str, options.interpolate))
    return Outcome(result, f"{path}: {n} points from {ends}, {seconds:.1f} s", options.json)


def _unfinished(path: Path, error: NumericalError) -> NumericalError:
    """The error, what was drawn before it and the last good state of the batch being kept beside `path`."""
    import numpy as np

    found: Unfinished = error.last
    arrays = {} if found.samples is None else {"samples": found.samples.numpy()}
    parts = [] if found.samples is None else [f"the {len(found.samples)} samples finished before (samples)"]
    if found.state is not None:
        state = found.state.x
        states = {f"state {key}": x for key, x in state.items()} if isinstance(state, dict) else {"state": state}
        arrays |= {key: x.float().cpu().numpy() for key, x in states.items()} | {"t": np.float64(found.state.t)}
        parts.append("the last good state of the others, in model units (state, t)")
    if not arrays:
        return error
    kept = path.with_name(f"{path.name}.unfinished.npz")
    write_arrays(kept, arrays)
    return NumericalError(f"{error}; {kept} holds {' and '.join(parts)}")
