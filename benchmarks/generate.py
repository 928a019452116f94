"""Train by the command line, sample, and measure: the rows of the README's table.

python benchmarks/generate.py digits                       # what `make demo` does, over several seeds
python benchmarks/generate.py ../shared/data/mnist.npz --preset mnist --budget 10m -n 2000 --calls 25
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def ornstein(*arguments: str) -> tuple[dict, float]:
    """Run a command with --json; its result and its wall-clock seconds."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "ornstein", *arguments, "--json"], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--preset")
    parser.add_argument("--budget", help="wall-clock time of training, such as 10m; the preset's steps where not given")
    parser.add_argument("-n", help="samples; the default of `ornstein evaluate`")
    parser.add_argument("--calls", default="25", help="network calls per sample")
    parser.add_argument("--seeds", type=int, default=1, help="runs, with seeds 0, 1, ...")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(given.seeds):
            run = str((given.keep or Path(scratch)) / f"seed-{seed}")
            options = [f"--{k}={v}" for k, v in (("preset", given.preset), ("budget", given.budget)) if v]
            trained, took = ornstein("train", given.data, "--out", run, "--seed", str(seed), *options)
            print(
                f"seed {seed}: {trained['steps']} steps, {trained['images_per_s']} images/s, {took:.0f} s in all,",
                end=" ",
            )
            print(f"{trained['precision']}, validation loss {trained['validation_loss']:.4f}", flush=True)
            report, took = ornstein("evaluate", run, "--calls", given.calls, *(["-n", given.n] if given.n else []))
            print(f"sampled and measured in {took:.0f} s\n{json.dumps(report, indent=1)}", flush=True)


if __name__ == "__main__":
    main()
