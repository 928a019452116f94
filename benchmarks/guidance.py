"""Classifier-free guidance on MNIST: how often a classifier names the class that was asked for, and the Frechet distance.

python benchmarks/guidance.py ../shared/data/mnist.npz --budget 10m            # trains both models, then measures
python benchmarks/guidance.py ../shared/data/mnist.npz --runs COND UNCOND      # measures runs that are there
python benchmarks/guidance.py ... --classifier CRUN --judged 1 2 4             # also UNCOND, guided by a classifier

The classifier is the one that ornstein ships, trained on real images; the features of the Frechet distance are its own.
Calls are network evaluations per sample: a guided step takes two.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import ornstein as orn
from ornstein.checkpoints import load_classifier
from ornstein.data import load_dataset
from ornstein.metrics import evaluate, load_features
from ornstein.metrics.features import pixels


def train(data: str, folder: Path, budget: str, *more: str) -> Path:
    """A run of the MNIST preset."""
    options = ["--preset", "mnist", "--budget", budget, "--out", str(folder), *more]
    subprocess.run([sys.executable, "-m", "ornstein", "train", data, *options], check=True)
    return folder


def named(x: torch.Tensor, labels: torch.Tensor, scaling) -> float:
    """The share of raw images that the classifier gives their labels."""
    net = load_features().network
    with torch.no_grad():
        parts = [net(part).argmax(1) for part in pixels(x, scaling).split(500)]
    return float((torch.cat(parts) == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--runs", type=Path, nargs=2, metavar=("COND", "UNCOND"))
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=25)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0, 3.0])
    parser.add_argument("--interval", type=float, nargs=2)
    parser.add_argument("--classifier", type=Path, metavar="CRUN", help="a run of ornstein train-classifier UNCOND")
    parser.add_argument(
        "--judged", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="scales of the classifier's guidance"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = given.runs or (
            train(given.data, Path(scratch) / "cond", given.budget),
            train(given.data, Path(scratch) / "uncond", given.budget, "--condition", "none"),
        )
        dataset = load_dataset(given.data, seed=0)
        conditional, unconditional = map(orn.load, runs)
    scaling, labels = dataset.scaling, conditional.labels(given.n)
    print(f"steps: {conditional.step} conditional, {unconditional.step} unconditional")
    print(f"real test images: named {named(dataset.test, dataset.test_labels, scaling):.4f}")
    print(
        f"{'model':22s}{'calls':>6s}{'named':>8s}{'Frechet':>9s}{'(real)':>8s}{'recall':>8s}{'seconds':>9s}", flush=True
    )
    interval = None if given.interval is None else tuple(given.interval)
    rows = [("unconditional", unconditional)]
    rows += [(f"scale {scale:g}", orn.ClassifierFreeGuidance(conditional, scale, interval)) for scale in given.scales]
    if given.classifier is not None:
        judge = load_classifier(given.classifier).log_prob
        rows += [
            (f"classifier, {s:g}", orn.ClassifierGuidance(unconditional, judge, s, interval)) for s in given.judged
        ]
    for name, denoiser in rows:
        cond = None if name == "unconditional" else labels
        drawn = orn.sample(denoiser, n=given.n, calls=given.calls, cond=cond, seed=1)
        report = {m.name: m for m in evaluate(drawn.x, dataset.test, dataset.train, scaling=scaling).measures}
        frechet, recall = report["frechet_distance"], report["recall"]
        share = f"{'':8s}" if cond is None else f"{named(drawn.x, labels, scaling):8.3f}"
        row = f"{name:22s}{drawn.calls:6d}{share}{frechet.value:9.2f}{frechet.reference:8.2f}{recall.value:8.3f}"
        print(f"{row}{drawn.seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
