"""Runs of categories go on bit for bit: text, images of levels under a table of matrices, a mixed table."""

import shutil

import pandas
import pytest
import torch

from ornstein import experiment
from ornstein.config import RunOptions, preset, with_options

OFF = {"validate_every": 0, "grid_every": 0, "budget": None, "precision": "float32", "save_every": 3, "keep": 9}
UNET = "UNet(widths=(8,), blocks=1, attention=0, dropout=0.1)"
KINDS = {
    "text": {**preset("text"), "network": "Transformer(width=32, depth=1, dropout=0.1)", "length": 16},
    "levels": {"process": "ordinal", "levels": 8, "network": UNET, "batch_size": 8, "condition": "labels"},
    "mixed": {**preset("mixed"), "network": "TabularMLP(width=32, depth=1, dropout=0.1)", "batch_size": 16},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, kind):
    data = "digits"
    if kind == "text":
        data = str(tmp_path / "a.txt")
        (tmp_path / "a.txt").write_text("to be, or not to be, that is the question. " * 20)
    elif kind == "mixed":
        data = str(tmp_path / "a.csv")
        frame = pandas.DataFrame(
            {"x": [0.5 * i for i in range(60)], "kind": ["a", "b", "c"] * 20, "on": [True, False] * 30}
        )
        frame.to_csv(data, index=False)
    options = with_options(RunOptions(data), {**KINDS[kind], **OFF, "steps": 6})
    whole = experiment.create(options, tmp_path / "run")
    whole.train(progress=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    again = experiment.resume(tmp_path / "run")
    assert again.run.count == 3
    again.train(progress=False)
    ours, theirs = whole.run.state()[0], again.run.state()[0]
    assert set(ours) == set(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
