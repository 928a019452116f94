"""What `evaluate` found: one `Measure` a figure, in a `Report` that prints as a table and turns into JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any


@dataclass(frozen=True)
class Measure:
    """One figure: of the samples (`value`), of real data in their place (`reference`), and of what."""

    name: str
    value: float
    reference: float  # mean over splits
    reference_std: float  # standard deviation over splits; 0 where only one split was possible
    ratio: float | None  # value / reference; None where the reference is 0
    n: int  # samples, and real examples in their place
    against: int  # held-out examples (training examples for the nearest distance)
    better: str  # "lower", "higher" or "near 1": where the ratio should be


def measure(name: str, model: Sequence[float], real: Sequence[float], n: int, against: int, better: str) -> Measure:
    """The figure of samples beside that of real data, means over splits of each."""
    value, reference = fmean(model), fmean(real)
    spread = stdev(real) if len(real) > 1 else 0.0
    return Measure(name, value, reference, spread, value / reference if reference > 0 else None, n, against, better)


@dataclass(frozen=True)
class Report:
    """What `evaluate` found, in the order computed, and of what. Print it, or `to_dict()` for JSON."""

    measures: tuple[Measure, ...]
    features: str | None  # the feature net, in words
    unit: str  # of the distances between examples
    samples: int
    held_out: int
    training: int
    seed: int
    splits: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Measure:
        """The measure of this name; `KeyError` where it was not computed."""
        return {measure.name: measure for measure in self.measures}[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for JSON, the measures by name."""
        rest = asdict(self)
        measures = {row.pop("name"): row for row in rest.pop("measures")}
        return {"measures": measures, **rest, "notes": list(self.notes)}

    def __str__(self) -> str:
        head = ("figure", "samples", "real", "+-", "ratio", "better", "n", "against")
        rows = [
            (
                m.name.replace("_", " "),
                f"{m.value:.4g}",
                f"{m.reference:.4g}",
                f"{m.reference_std:.2g}",
                "-" if m.ratio is None else f"{m.ratio:.2f}",
                m.better,
                str(m.n),
                str(m.against),
            )
            for m in self.measures
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in (head, *rows)
        ]
        lines += [
            f"{self.samples} samples, {self.held_out} held-out and {self.training} training examples; "
            f"real: mean of {self.splits} splits (one where all examples are taken: +- 0); seed {self.seed}",
            f"distances in {self.unit}; features: {self.features or 'none'}",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
