"""Categories: text by masks, quantised images under three kernels, the trainer's cost, and the cost of sampling by length.

python benchmarks/discrete.py text ../shared/data/tinyshakespeare.txt --budget 15m     # or --run RUN for one that is there
python benchmarks/discrete.py images ../shared/data/mnist.npz --budget 10m             # or --runs ORDINAL ABSORBING UNIFORM
python benchmarks/discrete.py cost                                                     # memory and time of a step, attention
apart python benchmarks/trainer.py ../shared/data/tinyshakespeare.txt --preset text          # the trainer beside a bare loop
python benchmarks/discrete.py table                                                    # a mixed table of a known law

The figures of n-grams are Witten and Bell's, interpolated, of the same split: what counts of characters come to.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

import ornstein as orn
from ornstein.config import DataOptions
from ornstein.data import load_dataset
from ornstein.likelihood import elbo
from ornstein.metrics import column_distances, evaluate
from ornstein.noise import Noise

KERNELS = ("ordinal", "absorbing", "uniform")


def train(data: str, folder: Path, *more: str) -> Path:
    """A run of the command line."""
    subprocess.run([sys.executable, "-m", "ornstein", "train", data, "--out", str(folder), *more], check=True)
    return folder


def witten_bell(train_text: str, test_text: str, order: int) -> float:
    """Bits per character of the test text by interpolated counts of up to `order` characters before (Witten and Bell 1991)."""
    counts: list[dict[str, dict[str, int]]] = [defaultdict(lambda: defaultdict(int)) for _ in range(order + 1)]
    for n in range(order + 1):
        for i in range(n, len(train_text)):
            counts[n][train_text[i - n : i]][train_text[i]] += 1
    totals = [{context: sum(c.values()) for context, c in level.items()} for level in counts]
    vocabulary, bits = len(set(train_text)), 0.0
    for i, symbol in enumerate(test_text):
        p = 1 / vocabulary
        for n in range(min(order, i) + 1):
            context = test_text[i - n : i]
            if context in totals[n]:
                kinds, total = len(counts[n][context]), totals[n][context]
                p = (counts[n][context].get(symbol, 0) + kinds * p) / (total + kinds)
        bits -= math.log2(p)
    return bits / len(test_text)


def text(given: argparse.Namespace) -> None:
    """The bound of held-out text beside n-grams, and samples at several numbers of calls."""
    whole = Path(given.data).read_text(encoding="utf-8")
    cut = len(whole) - round(0.1 * len(whole))
    for order in range(5):
        print(f"Witten-Bell, order {order}: {witten_bell(whole[:cut], whole[cut:], order):.2f} bits/char", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        run = given.run or train(given.data, Path(scratch) / "run", "--budget", given.budget)
        model = orn.load(run)
    held = load_dataset(given.data).test
    bound = elbo(model, held, steps=math.inf, terms=given.terms)
    print(
        f"step {model.step}: at most {bound.bits_per_dim:.3f} +- {bound.bits_error:.3f} bits/char, {len(held)} windows",
        flush=True,
    )
    for calls in (64, 128, 256):
        drawn = orn.sample(model, n=1, shape=(400,), calls=calls, seed=1)
        print(f"\n--- {calls} calls, {drawn.seconds:.1f} s ---\n{model.scaling.text(drawn.x)[0]}", flush=True)


def images(given: argparse.Namespace) -> None:
    """Bits/dim and Frechet distance of quantised images under each kernel."""
    scratch = Path(tempfile.mkdtemp())
    plain = "--preset mnist --condition none --objective hybrid --learning-rate 1e-3 --grid-every 0"
    common = [*plain.split(), "--levels", str(given.levels), "--budget", given.budget, *given.options]
    runs = given.runs or [train(given.data, scratch / k, "--process", k, *common) for k in KERNELS]
    print(
        f"{'kernel':12s}{'steps':>8s}{'bits/dim':>10s}{'+-':>8s}{'L_T':>9s}{'L_0':>9s}{'Frechet':>9s}{'(real)':>8s}{'calls':>7s}",
        flush=True,
    )
    for run in runs:
        model = orn.load(run)
        data = load_dataset(given.data, options=DataOptions(levels=given.levels))
        rows = torch.arange(given.held) * len(data.test) // given.held
        steps = model.process.steps or 1000
        bound = elbo(model, data.test[rows], steps=steps, terms=given.terms)
        bit = bound.dims * math.log(2)
        drawn = orn.sample(model, n=given.n, calls=given.calls, seed=1)
        found = {m.name: m for m in evaluate(drawn.x, data.test, data.train, scaling=data.scaling).measures}
        frechet = found["frechet_distance"]
        name = type(model.process.kernel).__name__[:11]
        ends = [-float(part.mean()) / bit for part in (bound.prior, bound.reconstruction)]
        print(
            f"{name:12s}{model.step:8d}{bound.bits_per_dim:10.4f}{bound.bits_error:8.4f}{ends[0]:9.4f}{ends[1]:9.4f}"
            f"{frechet.value:9.1f}{frechet.reference:8.1f}{drawn.calls:7d}",
            flush=True,
        )


class Nothing(torch.nn.Module):
    """A network that costs next to nothing, so that what is left is the sampler."""

    def __init__(self, states: int, categories: int) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(states, categories)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.table(x)


def cost(given: argparse.Namespace) -> None:
    """Seconds a step and the growth of the resident size, by batch, length and categories."""
    print(
        f"{'kernel':10s}{'batch':>6s}{'length':>8s}{'K':>8s}{'ms/step':>9s}{'ns/(b L K)':>12s}{'MiB':>8s}", flush=True
    )
    shapes = [
        (8, 256, 65),
        (8, 1024, 65),
        (8, 4096, 65),
        (32, 1024, 65),
        (128, 1024, 65),
        (2, 256, 8192),
        (2, 256, 50_000),
    ]
    for make in (orn.Absorbing, orn.Uniform):
        for batch, length, k in shapes:
            process = orn.Categorical(orn.RectifiedFlow(), make(k))
            denoiser, rng = orn.DiscreteDenoiser(Nothing(process.states, k), process), Noise(0, batch)
            x, sampler = process.prior((batch, length), rng), orn.Ancestral()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            times = []
            with torch.no_grad():
                for i in range(given.repeats):
                    began = time.perf_counter()
                    x, _ = sampler.step(denoiser, x, 1 - i / 32, 1 - (i + 1) / 32, None, rng)
                    times.append(time.perf_counter() - began)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            middle = sorted(times)[len(times) // 2]
            each = middle / (batch * length * k) * 1e9
            print(
                f"{make.__name__:10s}{batch:6d}{length:8d}{k:8d}{middle * 1e3:9.1f}{each:12.2f}{grown:8.0f}", flush=True
            )


def table(given: argparse.Namespace) -> None:
    """A mixed table of the command line's preset: mean total variation over columns and pairs, beside real rows, by seed."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from mixed_table import table as made

    scratch = Path(tempfile.mkdtemp())
    made().to_csv(scratch / "adult.csv", index=False)
    options = ["--process", "absorbing", "--budget", given.budget, *given.options]
    run = given.run or train(str(scratch / "adult.csv"), scratch / "run", *options)
    model = orn.load(run)
    data = load_dataset(str(scratch / "adult.csv"), options=DataOptions(numeric="quantile"))
    held = data.test[: given.n]
    print(
        f"step {model.step}; {'seed':>4s}{'columns':>9s}{'(real)':>8s}{'ratio':>7s}{'pairs':>9s}{'(real)':>8s}{'ratio':>7s}",
        flush=True,
    )
    for seed in range(given.seeds):
        drawn = orn.sample(model, n=given.n, calls=given.calls, seed=seed).x
        real = data.train[seed * given.n : (seed + 1) * given.n]
        ours, theirs = (column_distances(rows, held, data.scaling) for rows in (drawn, real))
        cells = [(ours.column_mean, theirs.column_mean), (ours.pair_mean, theirs.pair_mean)]
        print(f"{'':12s}{seed:4d}" + "".join(f"{a:9.4f}{b:8.4f}{a / b:7.2f}" for a, b in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("text")
    one.add_argument("data")
    one.add_argument("--budget", default="15m")
    one.add_argument("--run", type=Path)
    one.add_argument("--terms", type=int, default=32)
    one.set_defaults(run_it=text)
    one = commands.add_parser("images")
    one.add_argument("data")
    one.add_argument("--budget", default="10m")
    one.add_argument("--levels", type=int, default=16)
    one.add_argument("--runs", type=Path, nargs=3)
    one.add_argument("--held", type=int, default=256)
    one.add_argument("--terms", type=int, default=64)
    one.add_argument("-n", type=int, default=1000)
    one.add_argument("--calls", type=int, default=50)
    one.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options of ornstein train")
    one.set_defaults(run_it=images)
    one = commands.add_parser("table")
    one.add_argument("--budget", default="3m")
    one.add_argument("--run", type=Path)
    one.add_argument("--seeds", type=int, default=3)
    one.add_argument("-n", type=int, default=2000)
    one.add_argument("--calls", type=int, default=25)
    one.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="more options of ornstein train")
    one.set_defaults(run_it=table)
    one = commands.add_parser("cost")
    one.add_argument("--repeats", type=int, default=9)
    one.set_defaults(run_it=cost)
    given = parser.parse_args()
    given.run_it(given)


if __name__ == "__main__":
    main()
