"""Two processes of one core each beside one process of two cores: images a second of `ornstein train`, in turn.

python benchmarks/processes.py ../shared/data/mnist.npz --preset mnist
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

OFF = ["--validate-every", "0", "--grid-every", "0", "--save-every", "0", "--json"]
LAUNCHERS = {
    1: [sys.executable],
    2: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
}


def speed(processes: int, threads: int, options: list[str], folder: Path) -> float:
    """Images a second, all processes together."""
    command = [*LAUNCHERS[processes], "-m", "ornstein", "train", *options, *OFF, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    return json.loads(done.stdout)["images_per_s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--preset", default="mnist")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    options, ratios = [given.data, "--preset", given.preset, "--steps", str(given.steps)], []
    with tempfile.TemporaryDirectory() as scratch:
        for k in range(given.rounds):
            one = speed(1, 2, options, Path(scratch) / f"one-{k}")
            two = speed(2, 1, options, Path(scratch) / f"two-{k}")
            ratios.append(two / one)
            print(f"round {k}: one process {one:.1f}, two processes {two:.1f} images/s", flush=True)
    print(f"two processes of one core: {median(ratios):.3f} of one process of two cores (median)")


if __name__ == "__main__":
    main()
