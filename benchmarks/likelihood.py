"""Test likelihoods of trained models: objectives beside each other, and beside the best Gaussian mixture.

python benchmarks/likelihood.py digits --steps 2000
python benchmarks/likelihood.py ../shared/data/mnist.npz --objectives hybrid --budget 15m -n 512

Each objective trains the same network on the same schedule for the same number of steps (or the same time), without classes.
The ELBO decodes the levels, over all 1000 steps; the ODE and the mixture have the uniform noise in the levels, which makes theirs
bounds as well. The mixture is scikit-learn's, its components and kind of covariance chosen on a part of the training data.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.mixture import GaussianMixture

from ornstein.config import RunOptions
from ornstein.data import load_dataset

COMPONENTS = (1, 2, 3, 5, 8, 12, 16, 20, 25, 30, 40, 50, 75, 100)
KINDS = ("full", "tied", "diag", "spherical")


def ornstein(*words: str) -> dict:
    """The JSON that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "ornstein", *words, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def mixture(data: str) -> tuple[str, float, float]:
    """Name, nats and standard error of the best mixture on held-out examples with uniform noise in their levels."""
    dataset = load_dataset(data, seed=RunOptions(data).training.seed)
    rng = np.random.default_rng(0)

    def noised(raw: np.ndarray) -> np.ndarray:
        return raw.reshape(len(raw), -1) + rng.uniform(-0.5, 0.5, (len(raw), raw[0].size))

    train, test = (part.numpy().astype(np.float64) for part in (dataset.train, dataset.test))
    order = rng.permutation(len(train))
    kept, chosen = noised(train[order[len(train) // 6 :]]), noised(train[order[: len(train) // 6]])
    scores = {}
    for kind in KINDS:
        for k in COMPONENTS:
            fitted = GaussianMixture(k, covariance_type=kind, reg_covar=1e-3, random_state=0).fit(kept)
            scores[kind, k] = fitted.score(chosen)
    kind, k = max(scores, key=scores.get)
    best = GaussianMixture(k, covariance_type=kind, reg_covar=1e-3, random_state=0).fit(noised(train))
    values = best.score_samples(noised(test))
    return f"mixture of {k}, {kind}", float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--objectives", nargs="+", default=["simple", "hybrid", "vlb"], help="vlb, vlb+importance, ...")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--budget")
    parser.add_argument("-n", type=int, default=256, help="test examples")
    parser.add_argument(
        "--terms", type=int, default=0, help="of the 1000 of the ELBO, drawn for each example; 0 for all"
    )
    parser.add_argument("--keep", help="a folder for the runs, kept")
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="further options of `ornstein train`")
    given = parser.parse_args()
    length = ["--budget", given.budget] if given.budget else ["--steps", str(given.steps or 2000)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for named in given.objectives:
            objective, _, times = named.partition("+")
            run = str(Path(given.keep or folder) / named)
            choice = ["--objective", objective, *(["--times", times] if times else [])]
            plain = ["--condition", "none", "--grid-every", "0"]
            made = ornstein("train", given.data, *choice, "--out", run, *length, *plain, *given.train)
            found = ornstein("likelihood", run, "-n", str(given.n), "--terms", str(given.terms))
            print(named, made["steps"], "steps,", made["seconds"], "s", json.dumps(found), file=sys.stderr, flush=True)
            rows += [(named, bound, found[bound]) for bound in ("elbo", "ode")]
    print(f"{'model':28}{'figure':8}{'bits/dim':>10}{'+-':>9}{'nats':>11}{'calls':>8}{'seconds':>9}")
    for name, bound, f in rows:
        print(
            f"{name:28}{bound:8}{f['bits_per_dim']:10.4f}{f['bits_error']:9.4f}{f['nats']:11.2f}{f['calls']:8.0f}{f['seconds']:9.1f}"
        )
    if given.data == "digits":
        name, nats, error = mixture(given.data)
        bit = load_dataset(given.data).scaling.dims * np.log(2)
        print(f"{name:28}{'density':8}{-nats / bit:10.4f}{error / bit:9.4f}{nats:11.2f}")


if __name__ == "__main__":
    main()
