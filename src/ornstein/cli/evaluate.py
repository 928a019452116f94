"""`ornstein evaluate`: draw samples from a run, or read them, and measure them against held-out data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ornstein.cli.against import against, held_out_conditions, held_out_labels
from ornstein.cli.common import Outcome, hint, parse, say
from ornstein.cli.drawing import SamplingOptions, choose, draw
from ornstein.cli.guiding import GuidanceOptions, guided
from ornstein.cli.samples import read
from ornstein.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.data import Dataset
    from ornstein.data.streaming import Stream

PROG = "ornstein evaluate"
LARGEST = 2000
IN_MEMORY = 20_000  # examples of streamed data that are compared with


@dataclass(frozen=True)
class Options:
    """Measure samples of a run against held-out data, each figure beside the same figure of real data.

    - images: Frechet distance, precision, recall, density and coverage on features of a classifier
    - any data: energy distance, sliced Wasserstein distance, median distance to the nearest training example
    - tables and vectors: also the error of the correlations between columns

    For example:
    - ornstein evaluate runs/digits-1
    - ornstein evaluate runs/digits-1 --samples samples.npz --json
    """

    run: Positional[Path]
    """The run folder."""
    n: Annotated[int | None, arg(aliases=["-n"], **hint(f"default: as many as held out, at most {LARGEST}"))] = None
    """How many samples."""
    data: Annotated[str | None, arg(metavar="DATA", **hint("default: the data of the run"))] = None
    """What to compare with, named as in training."""
    samples: Annotated[Path | None, arg(metavar="FILE", **hint())] = None
    """Measure what `ornstein sample` wrote to this file (.npz, or a table), in place of fresh samples."""
    features: Annotated[Path | None, arg(metavar="FILE", **hint("default: the one shipped, for grey images"))] = None
    """The classifier in whose features images are compared, a .safetensors file of benchmarks/train_classifier.py."""
    json: Annotated[bool, arg(**hint())] = False
    """Print one JSON object on stdout, and nothing else."""
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


def main(argv: list[str]) -> Outcome:
    """Evaluate as a command line says. Raises `OrnsteinError`."""
    options: Options = parse(Options, argv, PROG)
    from ornstein import checkpoints
    from ornstein.devices import pick_device
    from ornstein.metrics import evaluate, load_features

    model = checkpoints.load(options.run, pick_device(options.sampling.device), options.sampling.ema)
    features = None if options.features is None else load_features(options.features)
    dataset, source, own = against(model, options.data)
    if not own:
        say("note: these are not the data of the run, so the distance to the nearest training example says little")
    drawn, calls, sampler = _samples(options, model, dataset)
    test, train = _whole(dataset.test, "held-out"), _whole(dataset.train, "training")
    report = evaluate(drawn, test, train, scaling=model.scaling, features=features, seed=options.sampling.seed)
    result = {
        "run": str(options.run),
        "step": model.step,
        "data": source,
        "same_data_as_trained_on": own,
        "samples_from": None if options.samples is None else str(options.samples),
        "sampler": sampler,
        "calls": calls,
        **report.to_dict(),
    }
    how = f"samples of {options.samples}" if options.samples else f"samples by {sampler}, {calls} calls each"
    return Outcome(result, f"{options.run}, step {model.step}, against {source}; {how}\n{report}", options.json)


def _samples(options: Options, model: "Model", dataset: "Dataset") -> "tuple[Tensor, int | None, str | None]":
    """The samples in raw units, the network calls for each and the sampler (None where they come from a file)."""
    import torch

    held = len(dataset.test)
    if options.samples is not None:
        assert model.scaling is not None
        x = read(options.samples, model.scaling)
        if options.n is not None and options.n > len(x):
            raise ConfigurationError(f"got -n {options.n}, expected at most the {len(x)} samples of {options.samples}")
        return x[: options.n], None, None
    n = min(LARGEST, held) if options.n is None else options.n
    if n < 1:
        raise ConfigurationError(f"got -n {n}, expected at least 1")
    # Classes in the proportions of the held-out data, which may be sorted by class: rows spread evenly over them.
    rows = torch.arange(n) * held // n
    of_classes = options.guidance.classifier is not None  # which needs them even where the model does not
    cond = held_out_labels(model, dataset)[rows] if of_classes else held_out_conditions(model, dataset, rows)
    denoiser = guided(model, options.guidance)
    chosen = choose(model, options.run, options.sampling, denoiser)
    drawn = draw(denoiser, chosen, options.sampling, n, cond)
    return drawn.x, drawn.calls, str(chosen.sampler)


def _whole(part: "Tensor | Stream", called: str) -> "Tensor":
    """A part of the data in memory: of one that is streamed, an even spread of it."""
    import torch

    from ornstein.data.streaming import spread

    if isinstance(part, torch.Tensor):
        return part
    if len(part) > IN_MEMORY:
        say(f"note: {IN_MEMORY} of the {len(part)} {called} examples, evenly spread, stand for all of them")
    return part[spread(len(part), IN_MEMORY)]
