"""`ornstein inspect`: what a run is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ornstein.cli.common import Outcome, hint, parse
from ornstein.errors import CheckpointError

PROG = "ornstein inspect"


@dataclass(frozen=True)
class Options:
    """Say what a run is: process, parametrisation, scaling, parameters, steps, losses, checkpoints."""

    run: Positional[Path]
    """The run folder."""
    json: Annotated[bool, arg(**hint())] = False
    """Print one JSON object on stdout, and nothing else."""


def main(argv: list[str]) -> Outcome:
    """Inspect as a command line says. Raises `OrnsteinError`."""
    options: Options = parse(Options, argv, PROG)
    from ornstein import checkpoints, logs

    config = checkpoints.read_config(options.run)
    model = config["model"]
    denoiser, _ = checkpoints.rebuild(model, options.run)
    log = logs.read_log(options.run)
    state = "whole"
    counters: dict[str, Any] = {}
    try:
        _, counters = checkpoints.read(options.run)
    except CheckpointError as error:
        state = str(error)
    loss, validation = _last(log, "loss"), _last(log, "validation_loss")
    result = {
        "run": str(options.run),
        "data": config.get("data"),
        "options": config["options"],
        "model": model,
        "parameters": sum(p.numel() for p in denoiser.network.parameters()),
        "step": counters.get("step"),
        "total_steps": counters.get("total", config.get("total")),
        "examples_seen": counters.get("seen"),
        "ema": counters.get("ema"),
        "loss": loss.get("loss"),
        "validation_loss": validation.get("validation_loss"),
        "validation_step": validation.get("step"),
        **_speed(loss),
        "checkpoints": [place.name for place in checkpoints.checkpoints(options.run)],
        "newest_checkpoint": state,
    }
    return Outcome(result, _table(result), options.json)


def _speed(line: dict[str, Any]) -> dict[str, Any]:
    """Examples a second, or tokens of text."""
    return (
        {"tokens_per_s": line["tokens_per_s"]} if "tokens_per_s" in line else {"images_per_s": line.get("images_per_s")}
    )


def _last(log: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return next((line for line in reversed(log) if key in line), {})


def _table(found: dict[str, Any]) -> str:
    model, data, options = found["model"], found["data"] or {}, found["options"]
    training, objective = options["training"], options["objective"]
    rows = {
        "run": found["run"],
        "data": f"{options['data']}: {data.get('train')} training and {data.get('test')} held-out examples",
        "process": _process(model),
        **({} if _discrete(model) else {"prior": options["model"].get("prior", "standard")}),
        "network": f"{model['network']}, {found['parameters']:,} parameters",
        "parametrisation": _says(model) + (f", sigma_data {model['sigma_data']:.4g}" if model["sigma_data"] else ""),
        "condition": f"{options['model']['condition']}{_classes(model['classes'])}",
        "scaling": _scaling(model["scaling"]),
        "objective": ", ".join(filter(None, objective.values())),
        "averages": f"power functions of the steps, windows {', '.join(f'{x:g}' for x in training['ema'])} of them; "
        f"{_or(found['ema'])} is used",
        "steps": f"{_or(found['step'])} of {_or(found['total_steps'])}, batch {training['batch_size']}, "
        f"{_or(found['examples_seen'])} examples seen",
        "loss": f"training {_or(found['loss'])}, validation {_or(found['validation_loss'])} "
        f"(step {_or(found['validation_step'])})",
        "checkpoints": f"{', '.join(found['checkpoints']) or 'none'}; newest: {found['newest_checkpoint']}",
    }
    return "\n".join(f"{name:<16} {value}" for name, value in rows.items())


def _discrete(model: dict[str, Any]) -> bool:
    return "kernel" in model or "parts" in model


def _process(model: dict[str, Any]) -> str:
    """The forward process; of a table those of its parts, each named once."""
    if "parts" not in model:
        if "kernel" not in model:
            return f"Gaussian({model['schedule']})"
        law = f", alpha(t) of {model['schedule']}" if model["schedule"] else ""
        return f"Categorical({model['kernel']}{law})"
    named: dict[str, list[str]] = {}
    for name, part in model["parts"].items():
        named.setdefault(_process(part), []).append(name)
    return "Product: " + "; ".join(f"{', '.join(names)} by {process}" for process, names in named.items())


def _or(value: Any) -> str:
    """A number for reading; a dash where there is none."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _says(model: dict[str, Any]) -> str:
    """What the network says of x_t."""
    classes = len(model["classes"])
    if "kernel" in model:
        return f"{model['parametrization']}, log p(x_0 | x_t) by {model['logits']}"
    if "parts" in model:
        return f"{model['parametrization']} of numbers, {model['logits']} of categories"
    return f"log p_t(y | x_t) of {classes} classes" if model.get("kind") == "classifier" else model["parametrization"]


def _classes(names: list[str]) -> str:
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"; {len(names)} classes in the data: {shown}" if names else ""


def _scaling(scaling: dict[str, Any] | None) -> str:
    if scaling is None:
        return "none"
    if scaling.get("kind") == "codes":
        shape, vocabulary = tuple(scaling["shape"]), scaling["vocabulary"]
        if vocabulary is None:
            return f"codes 0 to {scaling['levels'] - 1} ({scaling['dtype']}), layout {scaling['layout']} -> {shape}"
        symbols = f" {vocabulary['symbols'][:80]!r}" if vocabulary.get("symbols") else ""
        return (
            f"text in windows of {shape[0]} tokens, a vocabulary of {scaling['levels']} {vocabulary['kind']}{symbols}"
        )
    if scaling["layout"] in ("table", "mixed table"):
        return f"a table of {len(scaling['columns'])} columns, each by its own"
    shift, scale = scaling["shift"], scaling["scale"]
    numbers = "per feature" if len(shift) > 1 else f"(raw - {shift[0]:.4g}) * {scale[0]:.4g}"
    values = f"{scaling['levels']} levels" if scaling["levels"] else scaling["dtype"]
    return f"raw {values}, layout {scaling['layout']} -> {tuple(scaling['shape'])}, {numbers}"
