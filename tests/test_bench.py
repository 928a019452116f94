"""`ornstein bench`: what it prints, writes and keeps with a run; `ornstein sample` after it; samples that fail half-way."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

import ornstein as orn
from ornstein import checkpoints, cli, experiment, grids
from ornstein.cli import drawing, recommendations
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
    for words in ("normal, EDM(", "mixture, EDM(", "usual, optimal", "stochastic Heun", "declared", "us/step"):
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
    kept = recommendations.read(folder)
    model = checkpoints.load(folder)
    assert (kept.step, kept.ema, kept.calls) == (8, model.ema, 4)
    assert "now makes 4 calls" in run("bench", folder, *BENCH, "--error", 1e9)
    kept = recommendations.read(folder)
    assert [best.calls for best in kept.best] == [4, 8]
    for best in kept.best:
        assert best.median == min(s["median"] for s in found["scores"] if s["asked"] == best.calls)
    drawn = json.loads(run("sample", folder, "-n", 5, "--out", "x.npz", "--json"))
    assert drawn["calls"] == 4
    assert drawn["origin"] == f"bench: {kept.best[0].name}"
    model = checkpoints.load(folder)
    sampler, grid = kept.best[0].objects()
    labels = model.labels(5) if name == "labels" else None
    truth = orn.sample(model, sampler, n=5, grid=grid, cond=labels).x
    with np.load("x.npz") as file:
        np.testing.assert_allclose(file["samples"], truth.numpy(), atol=1e-5)
    named = json.loads(run("sample", folder, "-n", 5, "--sampler", "Heun", "--out", "y.npz", "--json"))
    assert named["origin"] == "named"
    for calls, origin in ((3, "usual"), (8, f"bench: {kept.best[1].name}"), (9, "usual"), (30, "usual")):
        said = json.loads(run("sample", folder, "-n", 2, "--calls", calls, "--json"))
        assert said["origin"] == origin
        assert said["calls"] in (calls, calls - 1)
    own = json.loads(run("sample", folder, "-n", 2, "--ema", model.ema, "--json"))
    assert own["origin"] == drawn["origin"]  # the average that is used anyway
    assert "calls each" in run("evaluate", folder, "-n", 20)


def test_without_an_error_wanted_the_calls_stay_and_an_old_bench_is_noted(run, runs, tmp_path, capsys):
    folder = tmp_path / "toy"
    shutil.copytree(runs / "toy", folder)
    out = run("bench", folder, *BENCH, "--sampler", "Multistep(2)", "--grid", "optimal")
    assert "Multistep(2), optimal" in out
    assert recommendations.read(folder) is None  # samplers of one's own are compared, not kept
    assert "best at each number of calls" in run("bench", folder, "--calls", 8, 4, "-n", 3)
    kept = recommendations.read(folder)
    assert kept.calls is None
    assert [best.calls for best in kept.best] == [4, 8]
    assert json.loads(run("sample", folder, "-n", 2, "--json"))["origin"] == "usual"  # 25 calls were not benched
    capsys.readouterr()
    assert cli.main(["sample", str(folder), "-n", "2"]) == 0
    assert "is not used: it knows 4 8 calls, not 25" in capsys.readouterr().err
    assert "no sampler reached an error of 1e-12" in run("bench", folder, *BENCH, "--error", 1e-12)
    for step, ema, said in (
        (5, kept.ema, "is used, but it is of step 5"),
        (8, 0.7, "is not used: it is of the average 0.7"),
    ):
        recommendations.write(folder, recommendations.Recommendations(step, ema, 4, kept.best))
        capsys.readouterr()
        assert cli.main(["sample", str(folder), "-n", "2"]) == 0
        assert said in capsys.readouterr().err


def test_what_cannot_be_benched(refused, run, runs, tmp_path):
    for words, said in (
        (["--calls", 1], "got --calls 1"),
        (["--calls", "a"], "got 'a' for --calls, expected a whole number"),
        (["-n", 0], "got -n 0"),
        (["--calls", 161], "got --calls 161, expected numbers of 2 to 160"),
        (["--grid", "karras"], "got --grid with no --sampler"),
        (["-n", 100_000], "expected 1 to 10000"),
        ([runs / "toy", "--calls", 101], "expected numbers of 2 to 100"),
        (["--error", 0.1], "got --error with no RUN"),
        (["--ema", 0.1], "got --ema with no RUN"),
        (["--grid", "uniform"], "got --grid with no --sampler"),
        (["--targets"], "--targets"),
        ([runs / "toy", "--targets", "normal"], "got --targets with RUN"),
        ([runs / "toy", "--error", 0.1, "--sampler", "Heun"], "with which nothing is kept"),
        ([runs / "toy", "--sampler", "Heun", "--calls", 2], "no sampler makes two steps"),
        ([runs / "toy", "--sampler", "Heun", "--grid", "karras(roh=2)"], "karras(roh=2)"),
        (["--sampler", "Heum"], "did you mean 'Heun'"),
        (["--sampler", "Ancestral", "--targets", "normal"], "expected a deterministic sampler"),
        (["--sampler", "RK45", "--targets", "normal"], "expected a deterministic sampler"),
        (["--sampler", "Heun", "--grid", "karas"], "did you mean 'karras'"),
        (["--sampler", "Heun", "--grid", "optimum"], "did you mean 'optimal'"),
        (["--schedule", "LinearVPP"], "did you mean 'LinearVP'"),
        (["--targets", "moons"], "expected"),
        ([tmp_path / "absent"], "no config.json"),
        ([runs / "toy", "--error", -1], "got --error -1"),
        ([runs / "toy", "--schedule", "EDM"], "got --schedule with RUN"),
        ([runs / "toy", "--ema", 0.77], "got ema=0.77"),
    ):
        assert said in refused("bench", *words), words
    assert list(tmp_path.iterdir()) == []
    for name in ("mine-0.1.csv", "mine-0.1-normal.png", "mine-0.1-normal-law.png"):
        (tmp_path / name).write_text("mine")
        assert f"{name} exists already" in refused("bench", "--out", "mine-0.1")
        (tmp_path / name).unlink()
    assert recommendations.read(runs / "toy") is None


GOOD = {"calls": 4, "name": "x", "sampler": "Heun()", "times": [1.0, 0.0], "median": 0.1, "rms": 0.1}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"step": 1, "ema": None, "calls": None, "best": [{"calls": 3}]},
        {"step": 1, "ema": None, "calls": 2, "best": 7},
        {"step": 1, "ema": None, "calls": "2", "best": []},
        *(
            {"step": 1, "ema": None, "calls": 4, "best": [{**GOOD, key: value}]}
            for key, value in (
                ("calls", "20"),
                ("times", 0.5),
                ("times", []),
                ("times", [2.0, 1.0]),
                ("times", [0.1, 0.9]),
                ("sampler", "Heum()"),
            )
        ),
    ],
)
def test_a_damaged_recommendation_is_refused_with_its_remedy(refused, runs, tmp_path, body):
    folder = tmp_path / "toy"
    shutil.copytree(runs / "toy", folder)
    (folder / recommendations.FILE).write_text(json.dumps(body))
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
    assert "whose steps are its own" in refused("sample", runs / "alone", "--sampler", "RK45", "--grid", "karras")
    assert "at most" in run("sample", runs / "alone", "-n", 2, "--sampler", "RK45")


def test_calls_that_make_no_step(refused, runs):
    assert "expected at least calls=101" in refused("sample", runs / "alone", "--sampler", "AnnealedLangevin")
    assert "optimal is made for one network" in refused("sample", runs / "alone", "--grid", "optimal")


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
    assert "out.npz.unfinished.npz holds the 4 samples finished before (samples) and the last good state" in said
    assert not (tmp_path / "out.npz").exists()
    monkeypatch.setattr(orn.MLP, "forward", forward)
    with np.load(tmp_path / "out.npz.unfinished.npz") as file:
        whole = orn.sample(model, orn.Euler(), n=6, grid=grid, trajectory=1)
        np.testing.assert_allclose(file["samples"], whole.x[:4].numpy(), atol=1e-5)
        np.testing.assert_allclose(file["state"], whole.trajectory[2][1][4:].numpy(), atol=1e-5)
        assert float(file["t"]) == whole.trajectory[2][0]


def test_the_usual_number_of_calls_is_one():
    assert drawing.CALLS == orn.samplers.recipes.CALLS


def test_the_sampler_and_the_grid_of_a_bench_are_not_those_of_a_thresholded_run(run, runs, tmp_path):
    folder = tmp_path / "labels"
    shutil.copytree(runs / "labels", folder)
    found = recommendations.Recommendation(25, "x", "Heun()", [1.0, 0.5, 0.0], 0.1, 0.1)
    ema = checkpoints.load(folder).ema
    recommendations.write(folder, recommendations.Recommendations(8, ema, None, [found]))
    assert json.loads(run("sample", folder, "-n", 2, "--json"))["calls"] == 2
    assert json.loads(run("sample", folder, "-n", 2, "--threshold", 1, "--json"))["calls"] == 25
