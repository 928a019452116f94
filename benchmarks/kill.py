"""Kill a training run by SIGKILL at random moments, resume it, and compare it with one that was left alone, byte for byte.

python benchmarks/kill.py               # 20 runs, each killed once, about 5 minutes
python benchmarks/kill.py --streaming   # the same, with pictures read from disk by two worker processes
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ornstein import checkpoints
from ornstein.data import load_dataset
from ornstein.plots.grids import image_folder

NETWORK = "UNet(widths=(16,), blocks=1, attention=0, dropout=0.1)"
OFTEN = ["--save-every", "3", "--validate-every", "10", "--log-every", "1", "--grid-every", "25"]


def command(data: str, folder: Path, steps: int) -> list[str]:
    """A run that is nearly always writing something."""
    options = ["--preset", "none", "--steps", str(steps), "--batch-size", "16", "--network", NETWORK, *OFTEN]
    return [sys.executable, "-m", "ornstein", "train", data, "--out", str(folder), *options]


def result(folder: Path) -> tuple[bytes, list[str]]:
    """The weights of the newest checkpoint, and the log without its timings."""
    tensors, counters = checkpoints.read(folder)
    lines = (folder / "log.jsonl").read_text().splitlines()
    kept = [",".join(part for part in line.split(",") if "images_per_s" not in part) for line in lines]
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors)) + str(counters).encode(), kept


def killed(train: list[str], folder: Path, moments: random.Random, took: float) -> float:
    """Start a run and kill it at a random moment of its life; returns the moment. One that had not begun is tried again."""
    while True:
        with subprocess.Popen(train, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            moment = moments.uniform(0.0, took)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
        if (folder / "config.json").exists():
            return moment
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=20, help="runs that are killed")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--streaming", action="store_true")
    given = parser.parse_args()
    moments, quiet = random.Random(given.seed), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as scratch:
        data, extra = "digits", []
        if given.streaming:
            pixels = load_dataset("digits").train.numpy() * np.uint8(15)
            data, extra = str(image_folder(pixels, Path(scratch) / "pictures")), ["--stream", "always"]
        began = time.perf_counter()
        subprocess.run([*command(data, Path(scratch) / "whole", given.steps), *extra], check=True, **quiet)
        took = time.perf_counter() - began
        truth = result(Path(scratch) / "whole")
        same = 0
        for i in range(given.n):
            folder = Path(scratch) / f"killed-{i}"
            moment = killed([*command(data, folder, given.steps), *extra], folder, moments, took)
            saved = [place.name for place in checkpoints.checkpoints(folder)]
            resume = [sys.executable, "-m", "ornstein", "train", "--resume", str(folder)]
            done = subprocess.run(resume, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            equal = done.returncode == 0 and result(folder) == truth
            same += equal
            state = f"after {saved[-1]}" if saved else "before its first checkpoint"
            print(f"{i:3}: killed at {moment:5.2f} s, {state}: {'identical' if equal else 'DIFFERS'}", flush=True)
            if not equal:
                print(done.stderr)
    print(
        f"{same} of {given.n} killed runs, resumed, are bit-identical to the run left alone (weights, optimiser, log)"
    )
    sys.exit(same < given.n)


if __name__ == "__main__":
    main()
