"""What the trainer costs over a bare loop of the same network: images a second, and the peak of memory.

python benchmarks/trainer.py ../shared/data/mnist.npz --preset mnist

The trainer runs as `ornstein train` does (data, noise, averages, clipping, log; validation, grids and checkpoints off); the
bare loop does forward, backward and AdamW on one batch held ready. Rounds alternate in one process; figures are medians.
Memory is the largest resident size, once the data are read, of a process of its own for each (Linux).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from ornstein import experiment
from ornstein.config import RunOptions, preset, with_options
from ornstein.devices import autocast
from ornstein.experiment import Experiment

OFF = {"validate_every": 0, "grid_every": 0, "save_every": 0, "log_every": 50, "budget": None}
WARMUP = 5


def prepare(data: str, name: str, steps: int, folder: Path) -> Experiment:
    """An experiment of a preset that only trains."""
    options = with_options(RunOptions(data), {**preset(name), **OFF, "steps": steps})
    return experiment.create(options, folder)


def trainer(made: Experiment) -> float:
    """Images a second of the trainer, from the end of one step to the end of the last."""
    step, ends = made.run.step, []

    def timed(*args):
        record = step(*args)
        ends.append(time.perf_counter())
        return record

    made.run.step = timed
    made.train(progress=False)
    return made.options.training.batch_size * (len(ends) - WARMUP) / (ends[-1] - ends[WARMUP - 1])


def bare(made: Experiment, steps: int) -> float:
    """Images a second of forward, backward and optimiser alone."""
    run, size = made.run, made.options.training.batch_size
    network = run.denoiser.network
    x0, cond = next(made.data())
    x_t, time_seen, target = torch.randn_like(x0), torch.randn(size, device=run.device), torch.randn_like(x0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    network.train()
    for k in range(steps):
        if k == WARMUP:
            began = time.perf_counter()
        with autocast(run.precision, run.device):
            output = network(x_t, time_seen) if cond is None else network(x_t, time_seen, cond)
        loss = (output.float() - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()
    return size * (steps - WARMUP) / (time.perf_counter() - began)


def peak(data: str, name: str, steps: int, which: str) -> float:
    """MiB of the largest resident size of a process that runs one of the two."""
    command = [sys.executable, __file__, data, "--preset", name, "--steps", str(steps), "--peak-of", which]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--preset", default="mnist")
    parser.add_argument("--steps", type=int, default=40, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", choices=["trainer", "bare"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.peak_of:
            made = prepare(given.data, given.preset, given.steps, Path(scratch) / "run")
            Path("/proc/self/clear_refs").write_text("5")  # the peak of reading the data does not count
            _ = trainer(made) if given.peak_of == "trainer" else bare(made, given.steps)
            status = Path("/proc/self/status").read_text()
            print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)
            return
        ours, theirs = [], []
        for k in range(given.rounds):
            made = prepare(given.data, given.preset, given.steps, Path(scratch) / f"run-{k}")
            theirs.append(bare(made, given.steps))
            ours.append(trainer(prepare(given.data, given.preset, given.steps, Path(scratch) / f"trained-{k}")))
            print(f"round {k}: trainer {ours[-1]:.1f}, bare loop {theirs[-1]:.1f} images/s", flush=True)
        print(f"{made.describe()}")
        ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"trainer {median(ours):.1f} images/s, bare loop {median(theirs):.1f}; median ratio {ratio:.3f}")
        a, b = (peak(given.data, given.preset, 10, which) for which in ("trainer", "bare"))
        print(f"peak memory: trainer {a:.0f} MiB, bare loop {b:.0f} MiB; ratio {a / b:.3f}")


if __name__ == "__main__":
    main()
