"""The route of a batch: how much of the library one steady step of training and of sampling runs through (DESIGN.md).

Counted by sys.settrace on a steady step: unique lines, named functions, files of the library; networks and training/
stay out. Steady is, in training, the objective's third call; in sampling, the third step of a second batch on the same
grid, whose levels are known by then. A limit that a change breaks asks that change: is there a second path?
"""

import sys
from pathlib import Path

import torch

import ornstein as orn
from ornstein.noise import Noise
from ornstein.objectives import Objective
from ornstein.samplers import Multistep, sample_steps

LIBRARY = Path(orn.__file__).parent


def route(step) -> tuple[set[str], set[tuple[str, str]], set[tuple[str, int]]]:
    """The files, named functions and lines of the library that a call runs through."""
    files, functions, lines = set(), set(), set()

    def ours(code) -> str | None:
        path = Path(code.co_filename)
        if LIBRARY not in path.parents:
            return None
        name = path.relative_to(LIBRARY).as_posix()
        return None if name.startswith(("networks/", "training/")) else name

    def local(frame, event, argument):
        if event == "line":
            lines.add((ours(frame.f_code), frame.f_lineno))
        return local

    def begin(frame, event, argument):
        name = ours(frame.f_code)
        if name is None:
            return None
        files.add(name)
        if not frame.f_code.co_name.startswith("<"):
            functions.add((name, frame.f_code.co_name))
        return local

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        step()
    finally:
        sys.settrace(before)
    return files, functions, lines


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)

    def forward(self, x, time):
        return self.two(torch.relu(self.one(torch.cat([x, time[:, None] / 1000], dim=1))))


def report(kind, files, functions, lines) -> str:
    parts = (
        f"{len(found)} {name}"
        for name, found in zip(("files", "functions", "lines"), (files, functions, lines), strict=True)
    )
    return f"{kind}: {', '.join(parts)}: {sorted(functions)}"


def test_one_step_of_training():
    denoiser = orn.Denoiser(Net(), orn.Gaussian(orn.CosineVP()), parametrization="v")
    objective, x0, optimiser = Objective(), torch.randn(64, 2), torch.optim.SGD(denoiser.parameters(), 1e-3)
    rng = Noise(0, 64)

    def step():
        optimiser.zero_grad()
        objective(denoiser, x0, None, rng).mean.backward()
        optimiser.step()

    step(), step()
    files, functions, lines = route(lambda: objective(denoiser, x0, None, rng))
    said = report("training", files, functions, lines)
    assert "objectives/squared.py" in files, said
    assert "denoisers.py" in files, said
    assert "processes/gaussian.py" in files, said
    assert len(files) <= 5, said
    assert len(functions) <= 10, said
    assert 20 <= len(lines) <= 70, said


def test_one_step_of_sampling():
    denoiser = orn.Denoiser(Net(), orn.Gaussian(orn.CosineVP()), parametrization="v")
    grid = orn.grids.karras(denoiser.process, 6)

    def batch():
        return sample_steps(denoiser, Multistep(), torch.randn(64, 2), grid, Noise(0, 64))

    assert len(list(batch())) == len(grid)
    states = batch()
    next(states), next(states), next(states)
    files, functions, lines = route(lambda: next(states))
    said = report("sampling", files, functions, lines)
    assert "samplers/base.py" in files, said
    assert "samplers/multistep.py" in files, said
    assert "denoisers.py" in files, said
    assert len(files) <= 5, said
    assert len(functions) <= 10, said
    assert 20 <= len(lines) <= 90, said
