"""Likelihoods as `ornstein likelihood` shows them: a record for JSON, a table to read, files of the steps."""

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ornstein.cli.train import free_name

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.likelihood import Bound, Likelihood

LOOSE = 1e-2
"""The tolerance from which on the solver's error is no longer small beside a tenth of a nat an example."""


def figures_of(value: "Bound | Likelihood") -> dict[str, Any]:
    """One result for JSON."""
    from ornstein.likelihood import Bound

    alone = len(value.per_example) == 1  # JSON has no NaN
    error = None if alone else value.standard_error
    figures: dict[str, Any] = {"nats": value.mean, "standard_error": error, "dims": value.dims}
    if value.levels is not None:
        bits_error = None if alone else value.bits_error
        figures |= {"bits_per_dim": value.bits_per_dim, "bits_error": bits_error, "levels": value.levels}
    if isinstance(value, Bound):
        names = ("prior", "diffusion", "reconstruction")
        figures["parts"] = {name: float(getattr(value, name).mean()) for name in names}
    else:
        probes = value.probe_error
        figures["probe_error"] = None if probes is None else float(probes.square().mean().sqrt())
        figures["mismatch"] = None if value.mismatch is None else float(value.mismatch.mean())
        figures["sigma"] = value.sigma
    return {**figures, "calls": value.calls, "seconds": round(value.seconds, 2), "doubts": value.doubts()}


def of_text(bound: "Bound", x: "Tensor", scaling: Any) -> dict[str, Any]:
    """The bound of windows x (n, length) of text in bits: per token, and per character, of which they hold so many.

    Both are ratios of sums over the windows, sum b_i / sum c_i = r; the standard error is that of the mean of b_i - r c_i over
    the mean of c_i. None for one window.
    """
    import torch

    bits = -bound.total / math.log(2)
    tokens = torch.full_like(bits, x.shape[1])
    characters = torch.tensor([scaling.vocabulary.characters(row[None]) for row in x], dtype=bits.dtype)
    found: dict[str, Any] = {}
    for unit, count in (("token", tokens), ("character", characters)):
        ratio = float(bits.sum() / count.sum())
        spread = float((bits - ratio * count).std() / (count.mean() * len(bits) ** 0.5)) if len(bits) > 1 else None
        found |= {f"bits_per_{unit}": ratio, f"bits_per_{unit}_error": spread}
    return {**found, "tokens": int(tokens.sum()), "characters": int(characters.sum())}


def _in_bits(result: dict[str, Any]) -> list[str]:
    """What `of_text` found, to read."""
    if "bits_per_token" not in result:
        return []
    told = []
    for unit in ("token", "character"):
        error = result[f"bits_per_{unit}_error"]
        told.append(f"{result[f'bits_per_{unit}']:.4f}{'' if error is None else f' +- {error:.2g}'} bits per {unit}")
    counted = f"{result['tokens']} tokens, {result['characters']} characters"
    return [f"at most {', '.join(told)} ({counted})"]


def table(found: "dict[str, Bound | Likelihood]", result: dict[str, Any]) -> str:
    """The figures found, and what is to be said of them; `result` is the record for JSON."""
    rows: list[tuple[str, ...]] = [("log p(x)", "nats", "+-", "bits/dim", "+-", "calls", "seconds")]
    for name, value in found.items():
        bits = [f"{value.bits_per_dim:.4f}", f"{value.bits_error:.2g}"] if value.levels else ["-", "-"]
        label = {"elbo": "at least (ELBO)", "ode": "ODE, dequantised: at least" if value.levels else "ODE"}[name]
        nats = f"{value.mean:.3f}", f"{value.standard_error:.2g}"
        rows.append((label, *nats, *bits, f"{value.calls:.0f}", f"{value.seconds:.1f}"))
        for part, mean in result[name].get("parts", {}).items():
            each = f"{-mean / (value.dims * math.log(2)):.4f}" if value.levels else "-"
            rows.append((f"  {part}", f"{mean:.3f}", "", each, "", "", ""))
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
    given = {"labels": ", given their labels", "arrays": ", given their conditions"}.get(result["condition"], "")
    whose = f"{result['n']} held-out examples of {result['data']}{given}, {some.dims} dimensions, {what}"
    head = f"{result['run']}, step {result['step']}: {whose}"
    notes = _in_bits(result)
    notes += [f"settings: {', '.join(f'{name} {value}' for name, value in result['settings'].items())}"]
    notes += [f"note: {doubt}" for value in found.values() for doubt in value.doubts()]
    if result["settings"].get("tolerance", 0) > LOOSE:
        notes.append(
            f"note: --tolerance {result['settings']['tolerance']:g} is loose: its error may be above the standard error"
        )
    notes += [] if result["same_data_as_trained_on"] else ["note: these are not the data of the run"]
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
        parts.append(f"the density is that of the data with noise of sigma / alpha = {figures['sigma']:.3g}")
    return f"ODE: {'; '.join(parts)}"


def write_steps(run: Path, bound: Any) -> list[Path]:
    """The terms of the bound as a table and as a picture, L_{t-1} against t."""
    from ornstein.files import atomic_write
    from ornstein.plots.curves import curve_picture

    steps, table = bound.steps, free_name(run, "bound", ".csv")
    t, s, nats, errors = (v.tolist() for v in (steps.t, steps.s, -steps.nats, steps.errors))
    with atomic_write(table) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("t", "s", "nats", "standard_error"))
        writer.writerows(zip(t, s, nats, errors, strict=True))
    title = f"terms of the bound, {len(t)} steps (t = {t[-1]:.3g}: reconstruction)"
    picture = curve_picture(t, nats, errors, table.with_suffix(".png"), ("t", "nats an example"), title)
    return [table, picture]
