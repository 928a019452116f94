"""The options of the command line and of a run, as frozen dataclasses, and the presets, in one table. Imports no torch.

An option that names an object of the library (a schedule, a network, a sampler) is written as a constructor call with
literal arguments: `CosineVP`, `LinearVP(beta_max=18.)`, `UNet(patch=2)`; `ornstein.specs` reads it, without
executing anything.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ornstein.errors import ConfigurationError, nearest


@dataclass(frozen=True)
class DataOptions:
    """How the data are read."""

    holdout: float | None = None
    """Share of the data held out of training, between 0 and 1; refused for data that bring a held-out part."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Read examples as they are needed, in place of all at the start; auto does so for data beyond a quarter of memory."""
    workers: int = 2
    """Processes that read streamed data ahead of training; they do not change what is read, nor its order."""
    skip_bad: bool = False
    """Pass over examples that cannot be read, and count them, in place of stopping."""
    numeric: Literal["standardise", "quantile"] = "standardise"
    """Numeric columns of a table: to mean 0 and variance 1, or by their quantiles to a normal law."""
    label: str = ""
    """The column of a table that holds the classes for --condition labels; it is then not generated."""
    length: int = 256
    """Tokens of an example of text: training takes all windows of so many, at every offset."""
    vocabulary: str = "characters"
    """Symbols of text: characters (those of the training part), bytes, or a tokenizer.json file of Hugging Face tokenizers."""
    unknown: Literal["error", "skip"] = "error"
    """What to do about characters that the vocabulary lacks: stop and name the first, or leave them out and count them."""
    integers: Literal["numbers", "codes"] = "numbers"
    """Integers in .npy and .npz files, other than images: continuous numbers, or codes 0 to their maximum, for --process."""
    levels: int | None = None
    """Grey levels that images are reduced to, 2 to 256, floor(x levels / 256); by default those they have."""


@dataclass(frozen=True)
class ModelOptions:
    """What is trained."""

    network: str = "auto"
    """auto (UNet for images and series, Transformer for text and codes, MLP else), "UNet(widths=(64, 128), patch=2)", DiT,
    "MLP(width=256, depth=4)", "Transformer(width=256, depth=4)"; of a classifier UNetEncoder, MLPEncoder."""
    process: str = "gaussian"
    """How data are noised: gaussian, of numbers; or as categories (text, images of --levels, columns of tables that hold some):
    absorbing (masks), uniform, ordinal (a discretised Gaussian), or a call: BirthDeath, "DiscretisedGaussian(length=500)"."""
    alpha: str = "RectifiedFlow"
    """Of categories: the law of time whose alpha(t) is the share that is kept; RectifiedFlow is 1 - t."""
    logits: Literal["d3pm", "x0", "logistic"] = "d3pm"
    """Of categories: how a network's output is read: d3pm, beside what x_t tells; x0, alone; logistic, for ordered ones."""
    schedule: str = "CosineVP"
    """Law of time of numbers: CosineVP, LinearVP, RectifiedFlow, EDM, GeometricVE, SubVP, "TableSchedule.linear(steps=1000)"."""
    parametrization: Literal["v", "edm", "x0", "eps", "velocity", "score"] = "v"
    """What the network predicts; eps and score need a schedule that leaves some signal at t = 1, such as LinearVP."""
    variance: Literal["auto", "fixed", "learned"] = "auto"
    """Of a step of the reverse chain; learned doubles the network's outputs. auto: learned for --objective hybrid and vlb."""
    prior: str = "standard"
    """Law of the noise: standard, N(0, I); or measured: data-diagonal, data-full, data-rank16, class-diagonal."""
    condition: Literal["none", "labels", "arrays"] = "none"
    """labels: a class-conditional model, on the labels of the data; arrays: on the array cond of an .npz, vectors or images."""


@dataclass(frozen=True)
class ObjectiveOptions:
    """What is minimised."""

    objective: str = "simple"
    """simple, edm, likelihood, vlb, hybrid, dsm, ssm, classifier; of categories simple, vlb, hybrid, masked, rate, campbell; or a
    call, such as "Hybrid(weight=0.01)"."""
    times: str = ""
    """Law of training times, where not the objective's own: uniform, importance, lognormal, "UniformSteps(steps=100)"."""
    weighting: str = ""
    """Weight of a squared error, where not the objective's own: "EDMWeighting(sigma_data=0.5)", "MinSNR(gamma=5)"."""


@dataclass(frozen=True)
class TrainingOptions:
    """How it is trained."""

    steps: int | None = None
    """Optimiser steps in all; 5000 where neither preset nor --budget says otherwise."""
    budget: str | None = None
    """Wall-clock time in place of --steps: 90s, 10m, 2h; the speed of the first 50 steps fixes how many are made."""
    batch_size: int = 128
    """Examples per step, over all processes, 1 or more."""
    accumulate: int = 1
    """Parts in which each process takes its share of a batch: less memory, the same gradient."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; it falls to zero at the last step."""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises from zero, 0 to 1."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, 0 or more."""
    clip: float = 1.0
    """Largest norm of the gradient; longer ones are scaled down."""
    ema: tuple[float, ...] = (0.05,)
    """Windows of the averaged weights, shares of the steps so far, 0 (none) to below 1; the best by validation is used."""
    label_dropout: float = 0.1
    """Share of examples trained without their label or condition, 0 to 1; guidance needs some."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; auto is bfloat16 where the hardware has it."""
    compile: bool = False
    """Compile the network by torch.compile: minutes at the start; it gains nothing on a CPU."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, cuda:1, mps."""
    seed: int = 0
    """Every random draw of training is a function of it, and so is the held-out part of the data."""


@dataclass(frozen=True)
class ReportOptions:
    """What is written on the way, counted in steps; 0 switches a thing off."""

    log_every: int = 50
    """A line in log.jsonl every so many steps."""
    validate_every: int = 500
    """The loss on held-out data, at noise that is the same every time."""
    noise_scale_every: int = 0
    """The gradient noise scale: the batch size beyond which a larger batch gains little; costs two steps."""
    grid_every: int = 1000
    """A picture grid of samples (images only)."""
    save_every: int = 1000
    """A checkpoint; the last step is always saved."""
    keep: int = 2
    """How many checkpoints are kept, the newest."""
    watch: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where the curves and grids go beside log.jsonl: tensorboard (RUN/tensorboard), wandb (offline unless WANDB_MODE=online)."""


@dataclass(frozen=True)
class RunOptions:
    """Everything a run is made from, saved in its config.json."""

    data: str
    """What to train on: digits, a toy (rings, ...), an .npz, .csv, .parquet or .txt file, a folder or .zip of images, hf:NAME."""
    reading: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    report: ReportOptions = field(default_factory=ReportOptions)


_EDM = {"schedule": "EDM", "parametrization": "edm"}
_PICTURES = {
    **_EDM,
    "condition": "labels",
    "objective": "Objective(Stratified(LogNormalSigma(mean=-0.2, std=1.3)))",
    "learning_rate": 2e-3,
}
_SMALL_PICTURES = {
    **_PICTURES,
    "network": "UNet(widths=(64, 96, 128), blocks=1, attention=1, patch=2)",
    "batch_size": 32,
}
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        **_PICTURES,
        "network": "UNet(widths=(64, 96), blocks=1, attention=1, dropout=0.1)",
        "batch_size": 64,
        "steps": 1000,
    },
    "mnist": _SMALL_PICTURES,
    "cifar10": _SMALL_PICTURES,
    "text": {
        "process": "absorbing",
        "network": "Transformer(width=128, depth=4, timed=False)",
        "objective": "MaskedCrossEntropy(weighted=False)",
        "batch_size": 4,
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "warmup": 0.05,
    },
    "toy2d": {
        "network": "MLP(width=256, depth=4)",
        "steps": 4000,
        "batch_size": 512,
    },
    "table": {
        **_EDM,
        "network": "MLP(width=128, depth=2, dropout=0.2)",
        "objective": "Objective(Stratified(LogNormalSigma(mean=-0.4, std=1.2)))",
        "steps": 600,
    },
    "mixed": {
        "process": "absorbing",
        "network": "TabularMLP(width=256, depth=3)",
        "numeric": "quantile",
        "batch_size": 256,
        "learning_rate": 2e-3,
        "steps": 3000,
    },
    "series": {
        **_EDM,
        "network": "UNet(widths=(32, 64), blocks=1, attention=1, patch=2)",
        "objective": "Objective(Stratified(LogNormalSigma(mean=-0.5, std=1.4)))",
        "batch_size": 32,
        "learning_rate": 2e-3,
        "steps": 2500,
    },
}
"""Named settings: the options in which each differs from the defaults."""

OF_NUMBERS = ("schedule", "parametrization", "variance", "prior", "objective", "times", "weighting")
"""What a preset for numbers says that is of no use to a process of categories."""

TABLES = (".csv", ".csv.gz", ".parquet")
"""What the names of tables end in."""

TEXTS = (".txt", ".txt.gz")
"""What the names of texts end in."""

OBJECTIVES = {
    "simple": "Objective",
    "edm": "Objective(Stratified(LogNormalSigma), EDMWeighting)",
    "likelihood": "Objective(Stratified(UniformLogSNR), LikelihoodWeighting)",
    "vlb": "VLB",
    "hybrid": "Hybrid",
    "dsm": "DenoisingScoreMatching",
    "ssm": "SlicedScoreMatching",
    "classifier": "CrossEntropy",
}
"""What the short names of objectives stand for."""

PROCESSES = {"absorbing": "Absorbing", "uniform": "Uniform", "ordinal": "DiscretisedGaussian"}
"""What the short names of processes of categories stand for."""

DISCRETE_OBJECTIVES = {
    "vlb": "VLB",
    "hybrid": "DiscreteHybrid",
    "masked": "MaskedCrossEntropy",
    "rate": "RateVLB",
    "campbell": "CampbellELBO",
}
"""What the short names of objectives of categories stand for; simple is masked for masks, and hybrid for other kernels."""

TIMES = {"uniform": "Stratified", "importance": "Importance", "lognormal": "Stratified(LogNormalSigma)"}
"""What the short names of laws of training times stand for."""

GROUPS = ("reading", "model", "objective", "training", "report")


def with_options(options: RunOptions, changes: dict[str, Any]) -> RunOptions:
    """`options` with the named fields of its groups replaced: `with_options(o, {"steps": 100, "schedule": "EDM"})`.

    Raises `ConfigurationError` on an unknown name, with the nearest known one.
    """
    homes = {f.name: group for group in GROUPS for f in fields(getattr(options, group))}
    for name, value in changes.items():
        key = name.replace("-", "_")
        if key not in homes:
            raise ConfigurationError(
                f"unknown option '{name}', expected one of the options of training{nearest(key, homes)}"
            )
        group, value = (
            homes[key],
            tuple(value) if isinstance(value, list) else value,
        )  # lists are how files write tuples
        options = replace(options, **{group: replace(getattr(options, group), **{key: value})})
    return options


def restored(saved: dict[str, Any]) -> RunOptions:
    """The options of a run as its config.json holds them."""
    return with_options(RunOptions(saved["data"]), {k: v for group in GROUPS for k, v in saved[group].items()})


def preset(name: str) -> dict[str, Any]:
    """The options of a preset. Raises `ConfigurationError` on an unknown name, with the nearest known one."""
    if name not in PRESETS:
        raise ConfigurationError(
            f"unknown preset '{name}', expected one of {', '.join(PRESETS)}{nearest(name, PRESETS)}"
        )
    return PRESETS[name]


def seconds(text: str) -> float:
    """The seconds of a duration: `90`, `90s`, `10m`, `1.5h`. Raises `ConfigurationError` on anything else."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in ("s", "m", "h") else (text, "s")
    try:
        value = float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ConfigurationError(f"got budget '{text}', expected a positive duration such as 90s, 10m or 2h")
    return value
