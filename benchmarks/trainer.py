"""What the trainer costs over a bare loop of the same network: images a second, and the peak of memory.

python benchmarks/trainer.py ../shared/data/mnist.npz --preset mnist
python benchmarks/trainer.py ../shared/data/tinyshakespeare.txt --preset text

The trainer runs as `ornstein train` does (data, noise, averages, clipping, log; validation, grids and checkpoints off); the
bare loop does forward, backward and AdamW on one batch held ready (of codes with the cross-entropy, else the squared error).
Blocks of a few steps of either alternate in one process, for speed on a shared machine drifts; the ratio is the median over
neighbouring blocks. Memory is the largest resident size, once the data are read, of a process of its own for each (Linux).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from ornstein import experiment
from ornstein.config import RunOptions, preset, with_options
from ornstein.devices import autocast
from ornstein.experiment import Experiment

OFF = {"validate_every": 0, "grid_every": 0, "save_every": 0, "log_every": 50, "budget": None}


def prepare(data: str, name: str, steps: int, folder: Path) -> Experiment:
    """An experiment of a preset that only trains."""
    options = with_options(RunOptions(data), {**preset(name), **OFF, "steps": steps})
    return experiment.create(options, folder)


def bare_step(made: Experiment) -> Callable[[], None]:
    """A step of forward, backward and optimiser alone, with an experiment's network, batch size and precision."""
    run, size = made.run, made.options.training.batch_size
    network = run.denoiser.network.train()
    x0, cond = next(made.data())
    codes = not x0.is_floating_point()
    x_t, target = (x0, x0) if codes else (torch.randn_like(x0), torch.randn_like(x0))
    seen = torch.randn(size, device=run.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with autocast(run.precision, run.device):
            output = network(x_t, seen) if cond is None else network(x_t, seen, cond)
        if codes:
            loss = torch.nn.functional.cross_entropy(output.float().flatten(0, -2), target.flatten())
        else:
            loss = (output.float() - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def compare(made: Experiment, bare: Callable[[], None], block: int) -> tuple[list[float], list[float]]:
    """Seconds of blocks of the trainer's steps, reports between them included, and of blocks of bare steps after each."""
    step, ours, theirs = made.run.step, [], []
    clock = time.perf_counter()

    def timed(*args):
        nonlocal clock
        record = step(*args)
        if record.count % block == 0:
            ours.append(time.perf_counter() - clock)
            clock = time.perf_counter()
            for _ in range(block):
                bare()
            theirs.append(time.perf_counter() - clock)
            clock = time.perf_counter()
        return record

    made.run.step = timed
    made.train(progress=False)
    return ours[1:], theirs[1:]  # the first ones prepare kernels


def peak(data: str, name: str, which: str) -> float:
    """MiB of the largest resident size of a process that runs one of the two."""
    command = [sys.executable, __file__, data, "--preset", name, "--peak-of", which]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--preset", default="mnist")
    parser.add_argument("--block", type=int, default=8, help="steps in a block")
    parser.add_argument("--rounds", type=int, default=40, help="blocks of each")
    parser.add_argument("--peak-of", choices=["trainer", "bare"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.peak_of:
            made = prepare(given.data, given.preset, 10, Path(scratch) / "run")
            Path("/proc/self/clear_refs").write_text("5")  # the peak of reading the data does not count
            if given.peak_of == "trainer":
                made.train(progress=False)
            else:
                step = bare_step(made)
                for _ in range(10):
                    step()
            print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
            return
        made = prepare(given.data, given.preset, given.block * (given.rounds + 1), Path(scratch) / "run")
        other = prepare(given.data, given.preset, given.block, Path(scratch) / "other")
        ours, theirs = compare(made, bare_step(other), given.block)
        length = made.dataset.scaling.dims if made.dataset.scaling.layout == "plain" and given.preset == "text" else 1
        images, unit = given.block * made.options.training.batch_size * length, "images" if length == 1 else "tokens"
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        print(made.describe())
        print(f"trainer {images / median(ours):.1f} {unit}/s, bare loop {images / median(theirs):.1f} (medians)")
        middle = sorted(ratios)[len(ratios) // 4], sorted(ratios)[-1 - len(ratios) // 4]
        print(
            f"trainer / bare loop: {median(ratios):.3f} (median of {len(ratios)}; quartiles {middle[0]:.3f}, {middle[1]:.3f})"
        )
        a, b = (peak(given.data, given.preset, which) for which in ("trainer", "bare"))
        print(f"peak memory: trainer {a:.0f} MiB, bare loop {b:.0f} MiB; ratio {a / b:.3f}")


if __name__ == "__main__":
    main()
