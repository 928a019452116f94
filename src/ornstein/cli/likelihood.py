"""`ornstein likelihood`: how probable held-out data are under a run, in nats and bits/dim."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from ornstein.cli.against import against, condition_of, held_out_conditions
from ornstein.cli.common import Outcome, hint, parse, say
from ornstein.cli.prompting import is_categorical, is_text
from ornstein.cli.quotes import figures_of, of_text, table, write_steps
from ornstein.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.likelihood import Bound, Likelihood

PROG = "ornstein likelihood"
USUAL = 256
TOKENS = 65_536
"""Of text, in held-out windows of this many by default: 256 of 256, whose standard error is some .02 bits a character."""
STEPS = 1000
TERMS, FEW_TERMS = 32, 8
"""Of categories more terms add little: examples differ more than the draws of one."""


@dataclass(frozen=True)
class Options:
    """Say how probable held-out data are under a run: a lower bound of log p (ELBO) and the density of its ODE.

    Quantised data (images) have a probability, quoted in bits per dimension too; the ELBO decodes their levels, the ODE needs
    noise within them and is then a bound as well. Continuous data have a density in their own units, in nats. Models of
    categories have an ELBO alone, in continuous time: of text in bits per token and per character.

    For example:
    - ornstein likelihood runs/digits-1
    - ornstein likelihood runs/digits-1 --bound elbo --per-step
    - ornstein likelihood runs/digits-1 --bound ode --dequantise importance --draws 8
    - ornstein likelihood runs/plays-1 --data other.txt --unknown skip
    """

    run: Positional[Path]
    """The run folder."""
    data: Annotated[str | None, arg(metavar="DATA", **hint("default: the data of the run"))] = None
    """Whose held-out examples, named as in training."""
    n: Annotated[
        int | None,
        arg(
            aliases=["-n"], **hint(f"default: as many as held out, at most {USUAL}; windows of {TOKENS} tokens of text")
        ),
    ] = None
    """How many held-out examples, evenly spread."""
    unknown: Annotated[Literal["error", "skip"] | None, arg(**hint("default: as in training"))] = None
    """Characters of --data that the vocabulary of the run lacks: stop and name the first, or leave them out."""
    bound: Literal["both", "elbo", "ode"] = "both"
    """What to compute; of categories both is the ELBO alone."""
    steps: Annotated[
        int | None, arg(**hint(f"default: {STEPS}; of categories none, continuous time, or {STEPS} with --per-step"))
    ] = None
    """ELBO: steps of the chain; a run on a table, of betas or of matrices, has its own number."""
    terms: Annotated[int | None, arg(**hint(f"default: {TERMS}; of categories {FEW_TERMS}"))] = None
    """ELBO: terms drawn for each example, of all its steps, an unbiased estimate; 0 sums all of them."""
    per_step: Annotated[bool, arg(**hint())] = False
    """ELBO: sum all terms, and write them step by step: RUN/bound-1.csv and a picture, RUN/bound-1.png."""
    dequantise: Literal["auto", "uniform", "importance"] = "auto"
    """ODE: noise that fills the levels: uniform is a bound; importance, with some --draws, a tighter one, in up to 256 dims."""
    draws: int = 1
    """ODE: draws of that noise for each example."""
    trace: Literal["auto", "exact", "hutchinson"] = "auto"
    """ODE: the divergence, exact (dear) or by random probes; auto is exact up to 32 dimensions."""
    probes: int = 1
    """ODE: probes of the trace for each example; two or more give its error."""
    tolerance: float = 1e-4
    """ODE: relative and absolute tolerance of a step."""
    seed: int = 0
    """What is drawn for example i is a function of the seed and i alone."""
    batch_size: int = 256
    """Examples at once: memory against speed."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1."""
    ema: Annotated[float | None, arg(**hint("default: the one of least validation loss"))] = None
    """Which of the run's averages of the weights, by its length."""
    json: Annotated[bool, arg(**hint())] = False
    """Print one JSON object on stdout, and nothing else."""


def main(argv: list[str]) -> Outcome:
    """Measure as a command line says. Raises `OrnsteinError`."""
    options: Options = parse(Options, argv, PROG)
    _check(options)
    from ornstein import checkpoints
    from ornstein.devices import pick_device

    model = checkpoints.load(options.run, pick_device(options.device), options.ema)
    options = _fitting(options, model)
    x, cond, source, own = _examples(options, model)
    found: dict[str, Bound | Likelihood] = {}
    if options.bound != "elbo":  # first, for it refuses what does not fit before it begins
        say(f"the density of the ODE, {len(x)} examples")
        found["ode"] = _density(options, model, x, cond)
    if options.bound != "ode":
        say(f"the bound, {len(x)} examples")
        found = {"elbo": _bound(options, model, x, cond), **found}
    written = write_steps(options.run, found["elbo"]) if options.per_step else []
    result = {
        "run": str(options.run),
        "step": model.step,
        "data": source,
        "same_data_as_trained_on": own,
        "n": len(x),
        "given_labels": condition_of(model) == "labels",
        "condition": condition_of(model),
        **{name: figures_of(value) for name, value in found.items()},
        **(of_text(_elbo(found), x, model.scaling) if is_text(model) else {}),
        "settings": _settings(options, model, found),
        "written": [str(path) for path in written],
    }
    return Outcome(result, table(found, result), options.json)


def _check(options: Options) -> None:
    least = {"n": 1, "steps": 1, "terms": 0, "draws": 1, "probes": 1, "batch_size": 1}
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise ConfigurationError(f"got --{name.replace('_', '-')} {value}, expected at least {low}")
    if options.bound == "elbo":
        for name in ("dequantise", "draws", "trace", "probes", "tolerance"):
            if getattr(options, name) != getattr(Options, name):
                raise ConfigurationError(
                    f"got --{name} with --bound elbo, which has none; expected --bound ode or both"
                )
    if options.trace == "exact" and options.probes > 1:
        raise ConfigurationError("got --trace exact with --probes, which are random ones; expected --trace hutchinson")
    if not 0 < options.tolerance < 1:
        raise ConfigurationError(f"got --tolerance {options.tolerance:g}, expected a number between 0 and 1")
    if options.dequantise == "importance" and (options.trace == "hutchinson" or options.probes > 1):
        raise ConfigurationError(
            "got --dequantise importance with random probes, whose noise would raise it above the bound; expected --trace "
            "exact, or --dequantise uniform"
        )
    if options.dequantise == "importance" and options.draws < 2:
        raise ConfigurationError(
            "got --dequantise importance with one draw, which tightens nothing; expected --draws 8, say"
        )
    if options.per_step and options.bound == "ode":
        raise ConfigurationError("got --per-step with --bound ode, which has no steps; expected --bound elbo or both")
    if options.per_step:
        from ornstein.plots.curves import require_matplotlib

        require_matplotlib()


def _elbo(found: "dict[str, Bound | Likelihood]") -> "Bound":
    from ornstein.likelihood import Bound

    bound = found["elbo"]
    assert isinstance(bound, Bound)
    return bound


def _fitting(options: Options, model: "Model") -> Options:
    """The options for this model: of categories the bound alone. Raises `ConfigurationError` where they do not fit it."""
    if options.unknown is not None and not is_text(model):
        raise ConfigurationError(
            "got --unknown for a model that is not of text, expected one of a .txt file: leave it out"
        )
    if not is_categorical(model):
        return options
    if options.bound == "ode":
        raise ConfigurationError("got --bound ode for a model of categories, which have no ODE; expected --bound elbo")
    options = replace(options, bound="elbo")
    _check(options)
    return options


def _examples(options: Options, model: "Model") -> "tuple[Tensor, Tensor | None, str, bool]":
    """Held-out examples in raw units, evenly spread, with their conditions where the model was trained on such."""
    import torch

    dataset, source, own = against(model, options.data, options.unknown)
    for note in dataset.notes if is_text(model) else ():
        say(f"note: {note}")
    held = len(dataset.test)
    usual = max(USUAL, math.ceil(TOKENS / model.shape[0])) if is_text(model) else USUAL
    n = min(usual, held) if options.n is None else options.n
    if n > held:
        raise ConfigurationError(f"got -n {n}, expected at most the {held} held-out examples of {source}")
    rows = torch.arange(n) * held // n  # held-out data may be sorted by class
    cond = held_out_conditions(model, dataset, rows)
    levels, known = getattr(dataset.scaling, "levels", None), getattr(model.scaling, "levels", None)
    if levels != known:
        raise DataError(
            f"got {source}, whose data have {levels or 'no'} levels, for a run on data of {known or 'no'} levels; expected "
            "data of the same levels, for probabilities of others do not compare"
        )
    return dataset.test[rows], cond, source, own


def _bound(options: Options, model: "Model", x: "Tensor", cond: "Tensor | None") -> "Bound":
    from ornstein.likelihood import elbo

    few = FEW_TERMS if is_categorical(model) else TERMS
    terms = None if options.per_step or options.terms == 0 else few if options.terms is None else options.terms
    steps = _steps(options, model)
    if steps == math.inf and terms is None:
        raise ConfigurationError(
            "got --terms 0 in continuous time, which has no last term; expected --steps with it, or --terms 128"
        )
    return elbo(model, x, steps=steps, terms=terms, cond=cond, seed=options.seed, batch_size=options.batch_size)


def _density(options: Options, model: "Model", x: "Tensor", cond: "Tensor | None") -> "Likelihood":
    from ornstein.likelihood import Dequantise, Exact, Hutchinson, RungeKutta, log_likelihood

    traces = {"auto": None, "exact": Exact(), "hutchinson": Hutchinson(options.probes)}
    trace = Hutchinson(options.probes) if options.probes > 1 else traces[options.trace]
    dequantise = None
    if options.dequantise != "auto" or options.draws > 1:
        dequantise = Dequantise(options.draws, tighten=options.dequantise == "importance")
    return log_likelihood(
        model,
        x,
        trace=trace,
        solver=RungeKutta(rtol=options.tolerance, atol=options.tolerance),
        dequantise=dequantise,
        cond=cond,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def _steps(options: Options, model: "Model") -> float:
    """The length of the chain: a table has its own; of categories it is infinite where nothing asks for steps."""
    from ornstein.processes import Product

    if is_categorical(model):
        whole = options.per_step or isinstance(model.process, Product)  # whose parts share no clock
        usual = STEPS if whole else math.inf
        return model.process.steps or (usual if options.steps is None else options.steps)
    return int(getattr(model.process.schedule, "steps", STEPS if options.steps is None else options.steps))


def _settings(options: Options, model: "Model", found: dict[str, Any]) -> dict[str, Any]:
    """What the figures were computed with."""
    used: dict[str, Any] = {"seed": options.seed}
    if "elbo" in found:
        steps, terms = _steps(options, model), round(found["elbo"].calls) - 1
        used |= {
            "steps": "continuous time" if steps == math.inf else steps,
            "terms": terms if terms < steps - 1 else "all",
        }
    if "ode" in found:
        probes = options.probes if options.trace == "hutchinson" or options.probes > 1 else None
        used |= {
            "tolerance": options.tolerance,
            "trace": options.trace if probes is None else f"hutchinson, {probes} probes",
        }
        if found["ode"].levels is not None:
            way = "importance" if options.dequantise == "importance" else "uniform"
            used |= {"dequantise": way, "draws": options.draws}
    averages = {} if options.ema is None else {"ema": options.ema}
    return {**used, **averages, "batch_size": options.batch_size, "device": options.device}
