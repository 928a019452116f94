"""The examples run, on tiny runs, and each makes its picture."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"
TRAINED = {"priorgrad", "conditional_vector", "mixed_table"}  # by themselves
UNET = ["--network", "UNet(widths=(8,), blocks=1, attention=0)"]
TINY = ["--preset", "none", "--steps", "3", "--batch-size", "8", "--save-every", "0", "--grid-every", "0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    assert main(["train", "digits", *UNET, *TINY, "--condition", "labels", "--out", str(folder / "run")]) == 0
    argv = ["--steps", "3", "--network", "UNetEncoder(widths=(8,), blocks=1, attention=0)"]
    assert main(["train-classifier", str(folder / "run"), *argv, "--out", str(folder / "judge")]) == 0
    return folder


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_example(name, runs, tmp_path, capsys):
    assert (EXAMPLES / f"{name}.py").read_text().count("\n") <= 60
    module, out = loaded(name), tmp_path / "picture.png"
    if name in TRAINED:
        module.STEPS = 5
        arguments = [str(out)]
    else:
        arguments = [str(runs / "run"), *([str(runs / "judge")] if name == "classifier" else []), str(out)]
    torch.manual_seed(0)
    module.main(*arguments)
    assert capsys.readouterr().out.strip()
    with Image.open(out) as picture:
        assert len(np.unique(np.asarray(picture))) > 2
