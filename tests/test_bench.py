"""`ornstein bench`: what it prints, writes and keeps with a run; `ornstein sample` after it; samples that fail half-way."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein import checkpoints, cli, experiment, grids
from ornstein.cli import drawing, recipes
from ornstein.config import RunOptions, with_options

TINY = {"steps": 8, "batch_size": 32, "validate_every": 0, "grid_every": 0, "log_every": 8}
BENCH = ("--calls", "4", "8", "-n", "3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A benched run on a toy, one on labelled images, and one that is left alone."""
    folder = tmp_path_factory.mktemp("runs")
    mlp, unet = "MLP(width=16, depth=1)", "UNet(widths=(8,), blocks=1, attention=0)"
    for name, data, changes in (
        ("toy", "rings", {"network": mlp}),
        ("labels", "digits", {"network": unet, "condition": "labels", "schedule": "CosineVP", "parametrization": "v"}),
        ("alone", "rings", {"network": mlp}),
    ):
        experiment.create(with_options(RunOptions(data), {**TINY, **changes}), folder / name).train(progress=False)
    return folder


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """A command line in an empty folder, which must end well: its stdout."""
    monkeypatch.chdir(tmp_path)

    def call(*words) -> str:
        assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return call


@pytest.fixture
def refused(capsys, monkeypatch, tmp_path):
    """A command line that must fail: its last line on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words) -> str:
        capsys.readouterr()
        assert cli.main([str(word) for word in words]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        assert said.err.splitlines()[-1].startswith("ornstein: ")
        return said.err.splitlines()[-1]

    return call


def test_exact_targets(run, tmp_path):
    out = run("bench", "--targets", "normal", "mixture", "--calls", 6, 12, "-n", 4, "--schedule", "EDM")
    for words in ("normal, EDM(", "mixture, EDM(", "usual, optimal", "stochastic Heun", "declared", "us/call"):
        assert words in out
    rows = list(csv.DictReader((tmp_path / "bench-1.csv").open()))
    assert {row["target"] for row in rows} == {"normal", "normal, law", "mixture"}
    assert all(int(row["calls"]) <= int(row["asked"]) and math.isfinite(float(row["rms"])) for row in rows)
    euler = [float(row["median"]) for row in rows if row["name"].startswith("Euler (") and row["target"] == "normal"]
    assert math.log2(euler[0] / euler[1]) == pytest.approx(1, abs=0.4)
    for name in ("normal", "normal-law", "mixture"):
        with Image.open(tmp_path / f"bench-1-{name}.png") as picture:
            assert picture.size == (1152, 600)
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    own = json.loads(run("bench", "--targets", "normal", "--calls", 9, "-n", 2, "--sampler", "RK4", "Heun", "--json"))
    assert [(s["name"], s["calls"]) for s in own["scores"]] == [("RK4, karras", 9), ("Heun, karras", 9)]
    assert own["written"][0] == "bench-2.csv"


@pytest.mark.parametrize("name", ["toy", "labels"])
def test_a_run_keeps_the_best_and_samples_by_it(run, runs, tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(runs / name, folder)
    found = json.loads(run("bench", folder, *BENCH, "--error", 1e9, "--json"))
    assert found["calls"] == 4
    assert {s["asked"] for s in found["scores"]} == {4, 8}
    kept = recipes.read(folder)
    assert (kept.step, kept.calls) == (8, 4)
    for recipe in kept.recipes:
        here = [s for s in found["scores"] if s["asked"] == recipe.calls]
        assert recipe.median == min(s["median"] for s in here)
    assert [r.median for r in kept.recipes] == sorted((r.median for r in kept.recipes), reverse=True)
    drawn = json.loads(run("sample", folder, "-n", 5, "--out", "x.npz", "--json"))
    assert drawn["calls"] == 4
    assert drawn["origin"] == f"bench: {kept.recipes[0].name}"
    model = checkpoints.load(folder)
    sampler, grid = kept.recipes[0].objects()
    labels = model.labels(5) if name == "labels" else None
    truth = orn.sample(model, sampler, n=5, grid=grid, cond=labels).x
    with np.load("x.npz") as file:
        np.testing.assert_allclose(file["samples"], truth.numpy(), atol=1e-5)
    named = json.loads(run("sample", folder, "-n", 5, "--sampler", "Heun", "--out", "y.npz", "--json"))
    assert named["origin"] == "named"
    fewer = json.loads(run("sample", folder, "-n", 5, "--calls", 3, "--out", "z.npz", "--json"))
    assert (fewer["origin"], fewer["calls"]) == ("usual", 3)
    assert "calls each" in run("evaluate", folder, "-n", 20)


def test_without_an_error_wanted_the_calls_stay_and_an_old_bench_is_noted(run, runs, tmp_path, capsys):
    folder = tmp_path / "toy"
    shutil.copytree(runs / "toy", folder)
    out = run("bench", folder, *BENCH, "--sampler", "Multistep(2)", "--grid", "optimal")
    assert "best at each number of calls" in out
    kept = recipes.read(folder)
    assert kept.calls is None
    assert {recipe.name for recipe in kept.recipes} == {"Multistep(2), optimal"}
    assert json.loads(run("sample", folder, "-n", 2, "--json"))["calls"] == kept.recipes[-1].calls
    assert "no sampler reached an error of 1e-12" in run("bench", folder, *BENCH, "--error", 1e-12)
    recipes.write(folder, recipes.Recommended(5, None, recipes.read(folder).recipes))
    capsys.readouterr()
    assert cli.main(["sample", str(folder), "-n", "2"]) == 0
    assert "is of step 5" in capsys.readouterr().err


def test_what_cannot_be_benched(refused, run, runs, tmp_path):
    for words, said in (
        (["--calls", 1], "got --calls 1"),
        (["-n", 0], "got -n 0"),
        (["--error", 0.1], "--error without RUN"),
        (["--sampler", "Heum"], "did you mean 'Heun'"),
        (["--sampler", "Ancestral", "--targets", "normal"], "expected a deterministic sampler"),
        (["--sampler", "RK45", "--targets", "normal"], "expected a deterministic sampler"),
        (["--grid", "karas"], "did you mean 'karras'"),
        (["--schedule", "LinearVPP"], "did you mean 'LinearVP'"),
        (["--targets", "moons"], "expected"),
        ([tmp_path / "absent"], "no config.json"),
        ([runs / "toy", "--error", -1], "got --error -1"),
        ([runs / "toy", "--schedule", "EDM"], "--schedule with RUN"),
        ([runs / "toy", "--ema", 0.77], "got ema=0.77"),
    ):
        assert said in refused("bench", *words), words
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.csv").write_text("mine")
    assert "mine.csv exists already" in refused("bench", "--out", "mine")


@pytest.mark.parametrize(
    "text", ["", "{}", '{"step": 1, "calls": null, "recipes": [{"calls": 3}]}', '{"step": 1, "calls": 2, "recipes": 7}']
)
def test_a_damaged_recommendation_is_refused_with_its_remedy(refused, runs, tmp_path, text):
    folder = tmp_path / "toy"
    shutil.copytree(runs / "toy", folder)
    (folder / recipes.FILE).write_text(text)
    assert "remove it to sample by the usual sampler" in refused("sample", folder)


# what else drawing does


def test_a_threshold_keeps_estimates_within_the_range(run, refused, runs):
    ends = []
    for options in ([], ["--threshold", 1], ["--threshold", 0.9]):
        run("sample", runs / "labels", "-n", 4, "--calls", 5, "--out", f"{len(ends)}.npz", *options)
        with np.load(f"{len(ends)}.npz") as file:
            ends.append(file["samples"])
    assert len({end.tobytes() for end in ends}) == 3
    model = checkpoints.load(runs / "labels")
    clipped = orn.Clipped(model, quantile=0.9)
    truth = orn.sample(clipped, n=4, calls=5, cond=model.labels(4)).x
    np.testing.assert_array_equal(ends[2], truth.numpy())
    assert "got --threshold 1.5" in refused("sample", runs / "labels", "--threshold", 1.5)
    assert "data without a range" in refused("sample", runs / "alone", "--threshold", 1)


def test_adaptive_steps_from_the_command_line(run, refused, runs):
    found = json.loads(run("sample", runs / "alone", "-n", 3, "--sampler", "RK45(rtol=1e-2, atol=1e-2)", "--json"))
    assert 6 < found["calls"] < 200
    assert "as its tolerances ask for" in refused("sample", runs / "alone", "--sampler", "RK45", "--calls", 20)


def test_what_was_drawn_before_a_failure_is_kept(refused, runs, tmp_path, monkeypatch):
    """The network returns NaN in the third call of the third batch: two batches, and two steps of the third, are kept."""
    forward, calls, model = orn.MLP.forward, [], checkpoints.load(runs / "alone")
    grid = grids.karras(model.process, 5)

    def failing(self, x, time, cond=None, keep=None):
        calls.append(len(x))
        bad = len(calls) > 10 and float(time[0]) < float(model.denoiser.time(grid[1:3]).mean())
        return forward(self, x, time, cond, keep) * (math.nan if bad else 1.0)

    monkeypatch.setattr(orn.MLP, "forward", failing)
    options = ("-n", 6, "--batch-size", 2, "--steps", 5, "--sampler", "Euler", "--out", "out.npz")
    said = refused("sample", runs / "alone", *options)
    assert "sampling left the finite numbers in step 3" in said
    assert "(network call 3)" in said
    assert "out.npz.unfinished.npz holds the 4 samples finished before" in said
    assert not (tmp_path / "out.npz").exists()
    monkeypatch.setattr(orn.MLP, "forward", forward)
    with np.load(tmp_path / "out.npz.unfinished.npz") as file:
        whole = orn.sample(model, orn.Euler(), n=6, grid=grid, trajectory=1)
        np.testing.assert_allclose(file["samples"], whole.x[:4].numpy(), atol=1e-5)
        np.testing.assert_allclose(file["state"], whole.trajectory[2][1][4:].numpy(), atol=1e-5)
        assert float(file["t"]) == whole.trajectory[2][0]


def test_help_says_what_sampling_options_are_without_torch():
    assert drawing.CALLS == orn.samplers.recipes.CALLS
    assert torch.is_tensor(recipes.grid_law("karras(rho=5)")(orn.Gaussian(orn.EDM()), 4))
