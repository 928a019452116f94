"""`ornstein likelihood`: how probable held-out data are under a run, in nats and bits/dim."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from ornstein.cli.against import against, held_out_labels
from ornstein.cli.common import Outcome, hint, parse, say
from ornstein.cli.sample import is_conditional
from ornstein.cli.train import free_name
from ornstein.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.likelihood import Bound, Likelihood

PROG = "ornstein likelihood"
USUAL = 256


@dataclass(frozen=True)
class Options:
    """Say how probable held-out data are under a run: a lower bound of log p (ELBO) and the density of its ODE.

    Quantised data (images) have a probability, quoted in bits per dimension too; the ELBO decodes their levels, the ODE needs
    noise within them and is then a bound as well. Continuous data have a density in their own units, in nats.

    For example:
    - ornstein likelihood runs/digits-1
    - ornstein likelihood runs/digits-1 --bound elbo --per-step
    - ornstein likelihood runs/digits-1 --bound ode --dequantise importance --draws 8
    """

    run: Positional[Path]
    """The run folder."""
    data: Annotated[str | None, arg(metavar="DATA", **hint("default: the data of the run"))] = None
    """Whose held-out examples, named as in training."""
    n: Annotated[int | None, arg(aliases=["-n"], **hint(f"default: as many as held out, at most {USUAL}"))] = None
    """How many held-out examples, evenly spread."""
    bound: Literal["both", "elbo", "ode"] = "both"
    """What to compute."""
    steps: int = 1000
    """ELBO: steps of the chain; a run on a table of betas has its own number."""
    terms: int = 32
    """ELBO: terms drawn for each example, of all its steps, an unbiased estimate; 0 sums all of them."""
    per_step: Annotated[bool, arg(**hint())] = False
    """ELBO: sum all terms, and write them step by step: RUN/bound-1.csv and a picture, RUN/bound-1.png."""
    dequantise: Literal["auto", "uniform", "importance"] = "auto"
    """ODE: noise that fills the levels: uniform is a bound, importance a tighter one, the more so the more --draws."""
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
    x, labels, source, own = _examples(options, model)
    found: dict[str, Bound | Likelihood] = {}
    if options.bound != "ode":
        say(f"the bound, {len(x)} examples")
        found["elbo"] = _bound(options, model, x, labels)
    if options.bound != "elbo":
        say(f"the density of the ODE, {len(x)} examples")
        found["ode"] = _density(options, model, x, labels)
    written = _write_steps(options, found["elbo"]) if options.per_step else []
    result = {
        "run": str(options.run),
        "step": model.step,
        "data": source,
        "same_data_as_trained_on": own,
        "n": len(x),
        "given_labels": labels is not None,
        **{name: _figures(value) for name, value in found.items()},
        "settings": {name: getattr(options, name) for name in ("steps", "terms", "draws", "tolerance", "seed")},
        "written": [str(path) for path in written],
    }
    return Outcome(result, _text(options, model, source, found, result, own), options.json)


def _check(options: Options) -> None:
    least = {"n": 1, "steps": 1, "terms": 0, "draws": 1, "probes": 1, "batch_size": 1}
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise ConfigurationError(f"got --{name.replace('_', '-')} {value}, expected at least {low}")
    if not 0 < options.tolerance < 1:
        raise ConfigurationError(f"got --tolerance {options.tolerance:g}, expected a number between 0 and 1")
    if options.dequantise == "importance" and (options.trace == "hutchinson" or options.probes > 1):
        raise ConfigurationError(
            "got --dequantise importance with random probes, whose noise would raise it above the bound; expected --trace "
            "exact, or --dequantise uniform"
        )
    if options.per_step and options.bound == "ode":
        raise ConfigurationError("got --per-step with --bound ode, which has no steps; expected --bound elbo or both")
    if options.per_step:
        from ornstein.plots.curves import require_matplotlib

        require_matplotlib()


def _examples(options: Options, model: "Model") -> "tuple[Tensor, Tensor | None, str, bool]":
    """Held-out examples in raw units, evenly spread, with their labels where the model was trained on labels."""
    import torch

    dataset, source, own = against(model, options.data)
    held = len(dataset.test)
    n = min(USUAL, held) if options.n is None else options.n
    if n > held:
        raise ConfigurationError(f"got -n {n}, expected at most the {held} held-out examples of {source}")
    rows = torch.arange(n) * held // n  # held-out data may be sorted by class
    labels = held_out_labels(model, dataset)[rows] if is_conditional(model) else None
    return dataset.test[rows], labels, source, own


def _bound(options: Options, model: "Model", x: "Tensor", labels: "Tensor | None") -> "Bound":
    from ornstein.likelihood import elbo

    steps = getattr(model.process.schedule, "steps", options.steps)
    terms = None if options.per_step or not options.terms else min(options.terms, steps)
    return elbo(model, x, steps=steps, terms=terms, cond=labels, seed=options.seed, batch_size=options.batch_size)


def _density(options: Options, model: "Model", x: "Tensor", labels: "Tensor | None") -> "Likelihood":
    from ornstein.likelihood import Dequantise, Exact, Hutchinson, RungeKutta, log_likelihood

    traces = {"auto": None, "exact": Exact(), "hutchinson": Hutchinson(options.probes)}
    trace = traces[options.trace]
    if trace is None and options.probes > 1:
        trace = Hutchinson(options.probes)
    dequantise = None
    if options.dequantise != "auto" or options.draws > 1:
        dequantise = Dequantise(options.draws, tighten=options.dequantise == "importance")
    return log_likelihood(
        model,
        x,
        trace=trace,
        solver=RungeKutta(rtol=options.tolerance, atol=options.tolerance),
        dequantise=dequantise,
        cond=labels,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def _figures(value: "Bound | Likelihood") -> dict[str, Any]:
    """One result for JSON."""
    from ornstein.likelihood import Bound

    figures: dict[str, Any] = {"nats": value.mean, "standard_error": value.standard_error, "dims": value.dims}
    if value.levels is not None:
        figures |= {"bits_per_dim": value.bits_per_dim, "bits_error": value.bits_error, "levels": value.levels}
    if isinstance(value, Bound):
        names = ("prior", "diffusion", "reconstruction")
        figures["parts"] = {name: float(getattr(value, name).mean()) for name in names}
    else:
        probes = value.probe_error
        figures["probe_error"] = None if probes is None else float(probes.square().mean().sqrt())
        figures["mismatch"] = None if value.mismatch is None else float(value.mismatch.mean())
        figures["sigma"] = value.sigma
    return {**figures, "calls": value.calls, "seconds": round(value.seconds, 2), "doubts": value.doubts()}


def _text(
    options: Options,
    model: "Model",
    source: str,
    found: "dict[str, Bound | Likelihood]",
    result: dict[str, Any],
    own: bool,
) -> str:
    rows: list[tuple[str, ...]] = [("log p(x)", "nats", "+-", "bits/dim", "+-", "calls", "seconds")]
    for name, value in found.items():
        figures = result[name]
        bits = [f"{figures['bits_per_dim']:.4f}", f"{figures['bits_error']:.2g}"] if value.levels else ["-", "-"]
        label = {"elbo": "at least (ELBO)", "ode": "ODE, dequantised: at least" if value.levels else "ODE"}[name]
        rows.append(
            (
                label,
                f"{figures['nats']:.3f}",
                f"{figures['standard_error']:.2g}",
                *bits,
                f"{value.calls:.0f}",
                f"{value.seconds:.1f}",
            )
        )
        for part, nats in figures.get("parts", {}).items():
            each = f"{-nats / (value.dims * math.log(2)):.4f}" if value.levels else "-"
            rows.append((f"  {part}", f"{nats:.3f}", "", each, "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    some = next(iter(found.values()))
    what = (
        f"{some.levels} levels: log-probabilities"
        if some.levels
        else "continuous data: log-densities in their own units"
    )
    given = ", given their labels" if result["given_labels"] else ""
    head = f"{options.run}, step {model.step}: {result['n']} held-out examples of {source}{given}, {some.dims} dimensions, {what}"
    notes = [f"note: {doubt}" for value in found.values() for doubt in value.doubts()]
    notes += [] if own else ["note: these are not the data of the run"]
    if "ode" in result:
        notes.append(_about_ode(result["ode"]))
    notes += [f"written: {path}" for path in result["written"]]
    return "\n".join([head, *lines, *notes])


def _about_ode(figures: dict[str, Any]) -> str:
    parts = []
    if figures["mismatch"] is not None:
        parts.append(f"prior for the law at t = 1: at most {figures['mismatch']:.2g} nats")
    if figures["probe_error"] is not None:
        parts.append(f"error of the trace {figures['probe_error']:.2g} nats an example")
    if figures["sigma"]:
        parts.append(f"the density is that of the data with noise of {figures['sigma']:.3g}")
    return f"ODE: {'; '.join(parts)}"


def _write_steps(options: Options, bound: "Any") -> list[Path]:
    """The terms of the bound as a table and as a picture, L_{t-1} against t."""
    from ornstein.files import atomic_write
    from ornstein.plots.curves import curve_picture

    steps, table = bound.steps, free_name(options.run, "bound", ".csv")
    t, s, nats, errors = (v.tolist() for v in (steps.t, steps.s, -steps.nats, steps.errors))
    with atomic_write(table) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("t", "s", "nats", "standard_error"))
        writer.writerows(zip(t, s, nats, errors, strict=True))
    title = f"terms of the bound, {len(t)} steps (t = {t[-1]:.3g}: reconstruction)"
    picture = curve_picture(t, nats, errors, table.with_suffix(".png"), ("t", "nats an example"), title)
    return [table, picture]
