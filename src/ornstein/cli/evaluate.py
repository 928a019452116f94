"""`ornstein evaluate`: draw samples from a run, or read them, and measure them against held-out data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ornstein.cli.against import against, held_out_conditions, held_out_labels
from ornstein.cli.common import Outcome, hint, parse, say
from ornstein.cli.drawing import SamplingOptions, choose, draw
from ornstein.cli.guiding import GuidanceOptions, guided
from ornstein.cli.prompting import PromptingOptions, is_text, refuse_foreign
from ornstein.cli.samples import read
from ornstein.cli.steering import SteeringOptions
from ornstein.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.data import Dataset
    from ornstein.data.streaming import Stream
    from ornstein.metrics import FeatureNet, Report

PROG = "ornstein evaluate"
LARGEST = 2000
TOKENS, FEWEST = 16_384, 16  # of text that is drawn, and texts at least
IN_MEMORY = 20_000  # examples of streamed data that are compared with


@dataclass(frozen=True)
class Options:
    """Measure samples of a run against held-out data, each figure beside the same figure of real data.

    - images: Frechet distance, precision, recall, density and coverage on features of a classifier
    - any data: energy distance, sliced Wasserstein distance, median distance to the nearest training example
    - tables and vectors: also the error of the correlations between columns; of mixed ones total variation of columns and pairs
    - text: total variation of the frequencies of 1, 2 and 3 tokens, known words, the longest run copied from the training text
    - arrays of codes: total variation of places and of pairs of places

    For example:
    - ornstein evaluate runs/digits-1
    - ornstein evaluate runs/digits-1 --samples samples.npz --json
    """

    run: Positional[Path]
    """The run folder."""
    n: Annotated[
        int | None,
        arg(aliases=["-n"], **hint(f"default: as many as held out, at most {LARGEST}; of text {TOKENS} tokens")),
    ] = None
    """How many samples."""
    data: Annotated[str | None, arg(metavar="DATA", **hint("default: the data of the run"))] = None
    """What to compare with, named as in training."""
    samples: Annotated[Path | None, arg(metavar="FILE", **hint())] = None
    """Measure what `ornstein sample` wrote to this file (.npz, .jsonl of text, or a table), in place of fresh samples."""
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
    from ornstein.metrics import load_features

    model = checkpoints.load(options.run, pick_device(options.sampling.device), options.sampling.ema)
    others = {"threshold": options.sampling.threshold}
    refuse_foreign(model, PromptingOptions(), SteeringOptions(), options.guidance.asked, others)
    features = None if options.features is None else load_features(options.features)
    dataset, source, own = against(model, options.data)
    if not own:
        say("note: these are not the data of the run, so the distance to the nearest training example says little")
    drawn, calls, sampler = _samples(options, model, dataset)
    test, train = _whole(dataset.test, "held-out"), _whole(dataset.train, "training")
    report = _measured(model, drawn, test, train, features, options.sampling.seed)
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


def _measured(
    model: "Model", drawn: "Tensor", test: "Tensor", train: "Tensor", features: "FeatureNet | None", seed: int
) -> "Report":
    """Samples against real data by what their kind is measured by. Raises `ConfigurationError` for features of no images."""
    from ornstein.data import Codes
    from ornstein.metrics import evaluate, evaluate_codes, evaluate_text

    scaling = model.scaling
    if not isinstance(scaling, Codes) or scaling.is_image:
        return evaluate(drawn, test, train, scaling=scaling, features=features, seed=seed)
    if features is not None:
        raise ConfigurationError(
            "got --features for a model that makes no images, expected one of images; leave it out"
        )
    if scaling.vocabulary is None:
        return evaluate_codes(drawn, test, train, levels=scaling.levels, seed=seed)
    return evaluate_text(drawn, test, train, vocabulary=scaling.vocabulary, seed=seed)


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
    most = max(FEWEST, TOKENS // model.shape[0]) if is_text(model) else LARGEST
    n = min(most, held) if options.n is None else options.n
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
