"""Samples of small tables against real data: diabetes, wine and breast-cancer of scikit-learn, by the command line.

python benchmarks/tables.py [--seeds 5] [--train "--steps 2000"]

For each table and seed: write it as CSV, its target among the columns; `ornstein train FILE --preset table`;
`ornstein evaluate` 1000 samples against the tenth that was held out. Printed are the ratios to the same figure of real data
(training examples in the place of samples; for the nearest distance held-out ones): the sliced Wasserstein distance and
the mean error of pairwise correlations, at most 1.5, and the median distance to the nearest training example, at least
0.9. The last line is the worst of each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sklearn.datasets

TABLES = ("diabetes", "wine", "breast_cancer")
MEASURES = ("sliced_wasserstein", "correlation_error", "nearest_training")
BOUNDS = {"sliced_wasserstein": 1.5, "correlation_error": 1.5, "nearest_training": 0.9}
LIMIT = 120  # seconds of training


def write(name: str, folder: Path) -> Path:
    """A table of scikit-learn as CSV, in its own units."""
    own = {"scaled": False} if name == "diabetes" else {}
    path = folder / f"{name}.csv"
    getattr(sklearn.datasets, f"load_{name}")(as_frame=True, **own).frame.to_csv(path, index=False)
    return path


def ornstein(*args: str) -> dict:
    """The JSON that a command of ornstein prints."""
    done = subprocess.run([sys.executable, "-m", "ornstein", *args, "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"ornstein {' '.join(args)} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def measure(path: Path, seed: int, folder: Path, extra: list[str]) -> tuple[list[float], float]:
    """The ratios of one run, and the seconds that training took."""
    run, began = folder / f"{path.stem}-{seed}", time.perf_counter()
    ornstein("train", str(path), "--preset", "table", "--seed", str(seed), "--out", str(run), *extra)
    took = time.perf_counter() - began
    found = ornstein("evaluate", str(run), "-n", "1000", "--seed", str(seed))["measures"]
    return [found[name]["ratio"] for name in MEASURES], took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each table, 5")
    parser.add_argument("--train", default="", help="options of ornstein train, over those of the preset")
    options = parser.parse_args()
    print(f"{'table':<14} seed  seconds  {'  '.join(MEASURES)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in TABLES:
            path = write(name, Path(folder))
            for seed in range(options.seeds):
                ratios, took = measure(path, seed, Path(folder), options.train.split())
                rows.append((*ratios, took))
                line(name, str(seed), took, ratios)
    columns = list(zip(*rows, strict=True))
    worst = [max(columns[0]), max(columns[1]), min(columns[2])]
    line("worst", "", max(columns[3]), worst)
    fits = worst[0] <= BOUNDS[MEASURES[0]] and worst[1] <= BOUNDS[MEASURES[1]] and worst[2] >= BOUNDS[MEASURES[2]]
    print("all within bounds" if fits and max(columns[3]) <= LIMIT else "NOT all within bounds")


def line(name: str, seed: str, took: float, ratios: list[float]) -> None:
    """Print a row of the table."""
    figures = "  ".join(f"{ratio:>{len(m)}.2f}" for ratio, m in zip(ratios, MEASURES, strict=True))
    print(f"{name:<14} {seed:>4} {took:>8.0f}  {figures}", flush=True)


if __name__ == "__main__":
    main()
