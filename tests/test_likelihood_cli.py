"""`ornstein likelihood`: what it prints and writes, and what it refuses."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein import cli, experiment
from ornstein.config import RunOptions, with_options
from ornstein.errors import ConfigurationError
from ornstein.likelihood import Bound, Dequantise, RungeKutta
from ornstein.objectives import UniformSteps
from ornstein.variational import Bins

TINY = {"steps": 8, "batch_size": 32, "validate_every": 0, "grid_every": 0, "log_every": 8}
UNET, MLP = "UNet(widths=(8,), blocks=1, attention=0)", "MLP(width=16, depth=1)"


def trained(folder, data: str, **changes) -> str:
    experiment.create(with_options(RunOptions(data), {**TINY, **changes}), folder).train(progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on images of levels, on continuous data, and on a table that has no density."""
    folder = tmp_path_factory.mktemp("runs")
    table = folder / "table.csv"
    table.write_text("a,b\n" + "".join(f"{i * 0.37 % 1:.3f},{'xyz'[i % 3]}\n" for i in range(200)))
    return {
        "digits": trained(folder / "digits", "digits", network=UNET, objective="hybrid", condition="labels"),
        "rings": trained(folder / "rings", "rings", network=MLP),
        "table": trained(folder / "table", str(table), network=MLP),
        "unlabelled": trained(folder / "unlabelled", "digits", network=UNET),
        "blurred": trained(folder / "blurred", "digits", network=UNET, schedule="GeometricVE(sigma_min=0.5)"),
    }


def run(capsys, *words: str) -> dict:
    assert cli.main(["likelihood", *words, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    assert cli.main(["likelihood", *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("ornstein: ")
    return said[-1]


def test_images_are_quoted_in_nats_and_bits_per_dimension(runs, capsys):
    found = run(
        capsys, runs["digits"], "-n", "12", "--steps", "20", "--terms", "0", "--tolerance", "1e-2", "--probes", "2"
    )
    assert found["n"] == 12
    assert found["given_labels"] is True
    for name in ("elbo", "ode"):
        figures = found[name]
        assert figures["dims"] == 64
        assert figures["levels"] == 17
        assert figures["bits_per_dim"] == pytest.approx(-figures["nats"] / 64 / math.log(2))
        assert figures["bits_error"] == pytest.approx(figures["standard_error"] / 64 / math.log(2))
    assert sum(found["elbo"]["parts"].values()) == pytest.approx(found["elbo"]["nats"])
    assert found["elbo"]["calls"] == 20
    assert found["ode"]["probe_error"] > 0
    model, data = orn.load(runs["digits"]), orn.load_dataset("digits")
    rows = torch.arange(12) * len(data.test) // 12
    bound = orn.elbo(model, data.test[rows], steps=20, cond=data.test_labels[rows])
    assert bound.mean == pytest.approx(found["elbo"]["nats"], rel=1e-6)


def test_the_table_names_what_it_holds(runs, capsys):
    assert cli.main(["likelihood", runs["digits"], "-n", "4", "--steps", "10", "--bound", "elbo"]) == 0
    text = capsys.readouterr().out
    assert "4 held-out examples of digits, given their labels, 64 dimensions, 17 levels: log-probabilities" in text
    for part in ("prior", "diffusion", "reconstruction", "bits/dim", "calls"):
        assert part in text


def test_steps_are_written_as_a_table_and_a_picture(runs, capsys):
    found = run(capsys, runs["digits"], "-n", "4", "--steps", "10", "--bound", "elbo", "--per-step")
    table, picture = found["written"]
    with open(table) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert float(rows[0]["t"]) == 1
    assert [row["s"] for row in rows[:-1]] == [row["t"] for row in rows[1:]]
    parts = found["elbo"]["parts"]
    assert sum(float(row["nats"]) for row in rows) == pytest.approx(-parts["diffusion"] - parts["reconstruction"])
    assert found["settings"]["terms"] == "all"
    with Image.open(picture) as image:
        assert len(set(np.asarray(image.convert("L")).flatten().tolist())) > 20
    again = run(capsys, runs["digits"], "-n", "4", "--steps", "10", "--bound", "elbo", "--per-step")
    assert not set(again["written"]) & set(found["written"])


def test_continuous_data_have_a_density_and_no_bits(runs, capsys):
    found = run(capsys, runs["rings"], "-n", "32", "--steps", "20")
    assert "bits_per_dim" not in found["ode"]
    assert found["ode"]["mismatch"] >= 0
    assert cli.main(["likelihood", runs["rings"], "-n", "4", "--bound", "ode"]) == 0
    assert "continuous data: log-densities in their own units" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("rings", ["--dequantise", "uniform", "--bound", "ode"], r"continuous data, which have a density as they are"),
        ("rings", ["-n", "0"], r"got --n 0, expected at least 1"),
        ("digits", ["-n", "4000"], r"at most the 359 held-out examples"),
        ("digits", ["--tolerance", "2"], r"got --tolerance 2, expected a number between 0 and 1"),
        ("digits", ["--per-step", "--bound", "ode"], r"--per-step with --bound ode"),
        ("digits", ["--dequantise", "importance", "--probes", "3"], r"--dequantise importance with random probes"),
        ("digits", ["--dequantise", "importance"], r"importance with one draw, which tightens nothing"),
        ("digits", ["--trace", "exact", "--probes", "3"], r"--trace exact with --probes"),
        ("rings", ["--dequantise", "uniform", "--bound", "elbo"], r"got --dequantise with --bound elbo"),
        ("rings", ["--dequantise", "uniform"], r"continuous data, which have a density as they are"),
        ("digits", ["--data", "rings"], r"rings is of another kind"),
        ("table", [], r"categor"),
        ("blurred", ["--bound", "ode"], r"noise does not reach down to the data.* sigma_min is at most"),
        ("nowhere", [], r"nowhere"),
    ],
)
def test_what_cannot_be_said_is_refused_in_one_line(runs, capsys, name, words, expected):
    assert re.search(expected, refused(capsys, runs.get(name, name), *words))


def test_data_of_other_levels_are_refused(runs, capsys, tmp_path):
    np.savez(tmp_path / "other.npz", images=np.random.default_rng(0).integers(0, 200, (40, 8, 8), dtype=np.uint8))
    for bound in ("elbo", "ode"):
        said = refused(capsys, runs["unlabelled"], "--data", str(tmp_path / "other.npz"), "--bound", bound, "-n", "4")
        assert "data have 256 levels, for a run on data of 17 levels" in said


def test_a_result_lost_in_its_error_is_marked():
    def bound(*nats: float) -> Bound:
        zero = torch.zeros(len(nats))
        return Bound(2, 1.0, 0.0, None, zero, zero, torch.tensor(nats))

    assert bound(-10.0, -10.1, -9.9).doubts() == []
    assert "above a tenth of the result: take more examples" in bound(-10.0, 10.0, 1.0).doubts()[0]


def test_bits_of_continuous_data_are_refused_and_errors_are_those_of_the_mean():
    nats = torch.tensor([1.0, 2.0, 4.0])
    found = Bound(2, 1.0, 0.0, None, nats * 0, nats * 0, nats)
    with pytest.raises(ConfigurationError, match="quantised data for bits/dim"):
        _ = found.bits_per_dim
    assert found.standard_error == pytest.approx(np.std([1, 2, 4], ddof=1) / 3**0.5)


def test_the_density_is_that_of_python_with_the_same_options(runs, capsys):
    """Draws, importance, raw units: the command passes on what it was told."""
    model, data = orn.load(runs["digits"]), orn.load_dataset("digits")
    rows = torch.arange(2) * len(data.test) // 2
    x, cond = data.test[rows], data.test_labels[rows]
    words = ["-n", "2", "--bound", "ode", "--tolerance", "1e-2", "--draws", "3", "--seed", "5"]
    recipe = {"solver": RungeKutta(1e-2, 1e-2), "cond": cond, "seed": 5}
    for extra, dequantise in (([], Dequantise(3)), (["--dequantise", "importance"], Dequantise(3, tighten=True))):
        found = run(capsys, runs["digits"], *words, *extra)
        truth = orn.log_likelihood(model, x, dequantise=dequantise, **recipe)
        assert found["ode"]["nats"] == pytest.approx(truth.mean, rel=1e-6)
        assert found["settings"]["dequantise"] == ("importance" if extra else "uniform")
    once = orn.log_likelihood(model, x, dequantise=Dequantise(1), **recipe)
    assert once.mean != pytest.approx(truth.mean, rel=1e-6)
    rings = run(capsys, runs["rings"], "-n", "4", "--bound", "ode", "--tolerance", "1e-2")
    data = orn.load_dataset("rings", seed=0)
    model = orn.load(runs["rings"])
    raw = data.test[torch.arange(4) * len(data.test) // 4]
    inner = orn.log_likelihood(model.denoiser, model.scaling.encode(raw), solver=RungeKutta(1e-2, 1e-2))
    (scale,) = model.scaling.scale
    stretch = 2 * math.log(scale)  # |d model units / d raw units|, of two components
    assert rings["ode"]["nats"] == pytest.approx(inner.mean + stretch, abs=1e-4)


def test_settings_are_those_that_were_used(runs, capsys):
    found = run(
        capsys, runs["digits"], "-n", "2", "--steps", "7", "--terms", "50", "--tolerance", "0.05", "--probes", "2"
    )
    assert found["settings"]["steps"] == 7
    assert found["settings"]["terms"] == "all"
    assert found["elbo"]["calls"] == 7
    assert found["settings"]["trace"] == "hutchinson, 2 probes"
    assert cli.main(["likelihood", runs["digits"], "-n", "1", "--steps", "7", "--tolerance", "0.05"]) == 0
    said = capsys.readouterr()
    assert "settings: seed 0, steps 7, terms all, tolerance 0.05, trace auto, dequantise uniform, draws 1" in said.out
    assert "note: one example has no standard error" in said.out
    assert "note: --tolerance 0.05 is loose" in said.out
    assert "Warning" not in said.err
    alone = run(capsys, runs["digits"], "-n", "1", "--steps", "7", "--bound", "elbo")
    assert alone["elbo"]["standard_error"] is None


def test_doubts_reach_the_page(runs, capsys, monkeypatch):
    monkeypatch.setattr("ornstein.likelihood.records.LOOSE", 1e-9)
    assert (
        cli.main(["likelihood", runs["rings"], "-n", "4", "--bound", "ode", "--probes", "2", "--tolerance", "1e-2"])
        == 0
    )
    said = capsys.readouterr().out
    assert "note: the standard error" in said
    assert "is above a tenth: take more probes" in said


def test_bounds_are_trained_on_the_bins_and_the_chain_of_the_data(runs, tmp_path):
    """Levels are decoded, not taken for a density; a table's bound is that of its own steps."""
    made = experiment.prepare(
        with_options(RunOptions("digits"), {**TINY, "network": UNET, "objective": "vlb"}), tmp_path / "a"
    )
    assert made.run.objective.bins == Bins.of(made.dataset.scaling)
    assert made.run.objective.times == UniformSteps(1000)
    table = {"schedule": "TableSchedule.linear(50)", "network": UNET, "objective": "hybrid"}
    made = experiment.prepare(with_options(RunOptions("digits"), {**TINY, **table}), tmp_path / "b")
    assert made.run.objective.times == UniformSteps(50)
    made = experiment.prepare(
        with_options(RunOptions("digits"), {**TINY, **table, "times": "importance"}), tmp_path / "c"
    )
    assert made.run.objective.times.steps == 50
