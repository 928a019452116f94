"""The command line: what it prints, where it writes, and how it fails."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ornstein import __version__, experiment, training
from ornstein.cli import COMMANDS, layers, main
from ornstein.config import PRESETS, RunOptions
from ornstein.data import load_dataset
from ornstein.errors import NumericalError

UNET = "UNet(widths=(8,), blocks=1, attention=0)"
TINY = ["--preset", "none", "--steps", "3", "--batch-size", "8", "--save-every", "0", "--grid-every", "0"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Three finished runs: digits, digits with labels, and a toy."""
    folder = tmp_path_factory.mktemp("runs")
    for name, argv in {
        "plain": ["digits", "--network", UNET],
        "labels": ["digits", "--network", UNET, "--condition", "labels"],
        "toy": ["gaussians", "--network", "MLP(width=16, depth=1)"],
    }.items():
        assert main(["train", *argv, *TINY, "--out", str(folder / name)]) == 0
    return folder


# help and version


@pytest.mark.parametrize("argv", [[], ["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_pages(cli, argv):
    page = cli(*argv)
    assert page.status == 0
    assert page.err == ""
    assert "usage: ornstein" in page.out
    for word in COMMANDS if len(argv) < 2 else ["--json"]:
        assert word in page.out
    for option in {
        "train": ["--steps", "--batch-size", "--schedule", "DATA"],
        "sample": ["-n", "--class", "--calls", "RUN"],
    }.get(argv[0] if argv else "", []):
        assert option in page.out


def test_every_option_of_a_run_is_on_the_help_page_with_words(cli):
    page = cli("train", "--help").out
    for name in layers._kinds():
        assert f"--{name.replace('_', '-')}" in page


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["sample", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_no_torch(argv):
    code = f"import sys; from ornstein.cli import main; main({argv}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_and_module(cli):
    assert cli("--version").out.strip() == f"ornstein {__version__}"
    done = subprocess.run([sys.executable, "-m", "ornstein", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout == f"ornstein {__version__}\n"


# options: layers and dry run


def resolved(said):
    return said.json["options"]


def test_options_come_from_defaults_preset_toml_and_command_line_in_this_order(cli, tmp_path):
    Path("run.toml").write_text("learning-rate = 0.5\nseed = 7\n[report]\nkeep = 4\n[training]\nclip = 9\n")
    argv = ["train", "digits", "--preset", "mnist", "--config", "run.toml", "--seed", "8", "--dry-run", "--json"]
    found = resolved(cli(*argv))
    assert found["training"]["weight_decay"] == RunOptions("digits").training.weight_decay
    assert found["model"]["network"] == PRESETS["mnist"]["network"]
    assert found["training"]["learning_rate"] == 0.5 != PRESETS["mnist"]["learning_rate"]
    assert found["training"]["seed"] == 8
    assert (found["report"]["keep"], found["training"]["clip"]) == (4, 9)
    # An option that is given counts even where it says what the default says.
    default = RunOptions("digits").training
    again = resolved(cli(*argv, "--learning-rate", default.learning_rate, "--seed", default.seed))
    assert again["training"]["learning_rate"] == default.learning_rate
    assert again["training"]["seed"] == default.seed


@pytest.mark.parametrize(
    ("data", "preset"), [("digits", "digits"), ("gaussians", "toy2d"), ("rings", "toy2d"), ("x/mnist.npz", "none")]
)
def test_the_preset_made_for_the_data_is_the_default(cli, data, preset):
    said = cli("train", data, "--dry-run", "--json").json
    assert said["preset"] == preset
    for name, value in PRESETS.get(preset, {}).items():
        assert value in [group.get(name) for group in said["options"].values() if isinstance(group, dict)]
    assert cli("train", data, "--preset", "none", "--dry-run", "--json").json["preset"] == "none"


def test_steps_and_budget_undo_each_other_from_layer_to_layer(cli):
    def training(*argv):
        found = resolved(cli("train", "digits", *argv, "--dry-run", "--json"))["training"]
        return found["steps"], found["budget"]

    Path("budget.toml").write_text('budget = "2h"')
    Path("steps.toml").write_text("steps = 11")
    assert training() == (PRESETS["digits"]["steps"], None)
    assert training("--budget", "90s") == (None, "90s")
    assert training("--config", "budget.toml") == (None, "2h")
    assert training("--config", "budget.toml", "--steps", "5") == (5, None)
    assert training("--config", "steps.toml", "--budget", "1m") == (None, "1m")


def test_dry_run_prints_toml_that_resolves_to_the_same_and_writes_nothing(cli, tmp_path):
    argv = ["train", "digits", "--seed", "3", "--network", "MLP(width=8)", "--learning-rate", "1e-5", "--dry-run"]
    said = cli(*argv)
    assert said.status == 0
    assert list(tmp_path.iterdir()) == []
    Path("again.toml").write_text(said.out)
    assert cli("train", "--config", "again.toml", "--dry-run").out == said.out
    assert resolved(cli("train", "--config", "again.toml", "--dry-run", "--json")) == resolved(cli(*argv, "--json"))


def test_toml_text_survives_quoting(tmp_path):
    options = RunOptions('a "b" \\ c/ü.npz')
    (tmp_path / "x.toml").write_text(layers.to_toml(options), encoding="utf-8")
    assert layers.layered(None, "none", layers.read_toml(tmp_path / "x.toml"))[0] == options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 3", "unknown option 'stepz'; did you mean 'steps'?"),
        ("[training]\nlearning-rat = 3", "did you mean 'learning_rate'?"),
        ("[trainin]\nsteps = 3", "unknown option 'trainin'"),
        ('steps = "many"', "got steps = 'many', expected a whole number"),
        ("steps = 3.5", "got steps = 3.5, expected a whole number"),
        ("steps = true", "expected a whole number"),
        ("clip = [1]", "expected a number"),
        ("network = 3", "expected text"),
        ('parametrization = "w"', "expected one of v, edm"),
        ("steps = 3\n[training]\nsteps = 4", "given twice"),
        ('steps = 3\nbudget = "1m"', "got both steps and budget"),
        ('preset = "minst"', "did you mean 'mnist'?"),
        ("steps = ", "is not TOML"),
    ],
)
def test_wrong_toml(fails, text, said):
    Path("run.toml").write_text(text)
    fails("train", "digits", "--config", "run.toml", "--dry-run", said=said)


# train, sample, evaluate, inspect


def test_training_says_what_it_did_in_one_json_object(cli):
    said = cli("train", "digits", "--network", UNET, *TINY, "--json")
    assert said.status == 0
    assert said.json["stopped"] == "finished"
    assert said.json["steps"] == 3
    assert said.json["run"] == "runs/digits-1"
    assert said.json["loss"] > 0
    assert (Path("runs") / "digits-1" / "config.json").exists()


def test_run_folders_are_numbered_and_never_written_over(cli, fails):
    argv = ["train", "gaussians", "--network", "MLP(width=8, depth=1)", *TINY]
    assert "next: ornstein sample runs/gaussians-1" in cli(*argv).out
    before = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file()}
    assert "runs/gaussians-2" in cli(*argv).out
    fails(*argv, "--out", "runs/gaussians-1", said=["exists already", "--resume runs/gaussians-1", "--out"])
    assert {p: p.read_bytes() for p in before} == before


def test_ctrl_c_saves_and_resume_goes_on(cli, monkeypatch):
    argv = ["train", "gaussians", "--network", "MLP(width=8, depth=1)", *TINY, "--steps", "6", "--out", "run"]
    step = training.Run.step

    def press(self, *args):
        record = step(self, *args)
        if record.count == 2:
            signal.raise_signal(signal.SIGINT)
        return record

    monkeypatch.setattr(training.Run, "step", press)
    said = cli(*argv, "--json")
    assert said.status == 130
    assert said.json["stopped"] == "interrupted"
    assert said.json["steps"] == 2
    monkeypatch.setattr(training.Run, "step", step)
    for already in (False, True):
        said = cli("train", "--resume", "run", "--json")
        assert said.status == 0
        assert said.json["steps"] == 6
        assert ("is finished" in said.err) == already


def test_samples_go_where_the_name_says(cli, runs):
    run = runs / "plain"
    said = cli("sample", run, "-n", 3, "--calls", 2, "--out", "a/x.npz", "--json")
    assert said.status == 0
    assert said.json["out"] == "a/x.npz"
    assert said.json["calls"] == 2
    assert said.json["shape"] == [3, 8, 8]
    file = np.load("a/x.npz")
    assert file.files == ["samples"]
    assert (file["samples"].shape, file["samples"].dtype) == ((3, 8, 8), np.uint8)
    assert file["samples"].max() <= 16
    assert cli("sample", run, "-n", 3, "--calls", 2, "--out", "x.png").status == 0
    assert Image.open("x.png").size[0] > 8
    assert cli("sample", run, "-n", 3, "--calls", 2, "--out", "pictures").status == 0
    names = sorted(p.name for p in Path("pictures").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    pixels = np.asarray(Image.open("pictures/000001.png"))
    np.testing.assert_array_equal(pixels, np.round(file["samples"][1] * (255 / 16)))
    assert not list(Path().rglob("*tmp*"))


def test_samples_have_a_name_by_default_and_files_are_kept(cli, fails, runs, tmp_path):
    run = shutil.copytree(runs / "plain", tmp_path / "run")
    argv = ["sample", run, "-n", 2, "--calls", 1]
    assert f"{run}/samples-1.png" in cli(*argv).out
    assert f"{run}/samples-2.png" in cli(*argv).out
    toy = shutil.copytree(runs / "toy", tmp_path / "toy")
    cli("sample", toy, "-n", 2, "--calls", 1)
    assert np.load(toy / "samples-1.npz")["samples"].shape == (2, 2)
    Path("x.npz").write_text("precious")
    fails(*argv, "--out", "x.npz", said=["x.npz exists already", "--overwrite"])
    assert Path("x.npz").read_text() == "precious"
    assert cli(*argv, "--out", "x.npz", "--overwrite").status == 0
    assert len(np.load("x.npz")["samples"]) == 2
    Path("full").mkdir()
    Path("full/file").write_text("precious")
    fails(*argv, "--out", "full", "--overwrite", said="not empty")
    assert Path("full/file").exists()


def test_a_sample_depends_on_the_seed_and_its_number_alone(cli, runs):
    def draw(*argv):
        cli("sample", runs / "toy", "--out", "x.npz", "--overwrite", *argv)
        return np.load("x.npz")["samples"]

    whole = draw("-n", 70, "--seed", 5, "--steps", 3)
    np.testing.assert_allclose(draw("-n", 70, "--seed", 5, "--steps", 3, "--batch-size", 32), whole, atol=1e-5)
    np.testing.assert_allclose(draw("-n", 10, "--seed", 5, "--steps", 3), whole[:10], atol=1e-5)
    assert np.abs(draw("-n", 70, "--seed", 6, "--steps", 3) - whole).min() > 0
    assert np.abs(draw("-n", 70, "--seed", 5, "--steps", 3, "--sampler", "Ancestral") - whole).max() > 0.01


def test_the_grid_and_the_calls_of_a_sampler(cli, runs):
    def calls(*argv):
        return cli("sample", runs / "toy", "-n", 2, "--out", "x.npz", "--overwrite", "--json", *argv).json["calls"]

    assert calls() == 25
    assert calls("--sampler", "Heun", "--calls", 9) == 9
    assert calls("--sampler", "Heun", "--calls", 8) == 7
    assert calls("--sampler", "Heun", "--steps", 4) == 7  # the last step, onto the data, takes one call
    assert calls("--grid", "trailing(chain=10)", "--steps", 5) == 5


def test_classes_are_those_of_the_data_or_one(cli, runs):
    run = runs / "labels"
    cli("sample", run, "-n", 300, "--calls", 1, "--out", "x.npz")
    labels, real = np.load("x.npz")["labels"], load_dataset("digits").train_labels.numpy()
    assert np.abs(np.bincount(labels, minlength=10) / 300 - np.bincount(real) / len(real)).max() < 2 / 300
    cli("sample", run, "-n", 12, "--calls", 1, "--out", "few.npz")
    assert np.load("few.npz")["labels"].tolist() == labels[:12].tolist()
    cli("sample", run, "-n", 3, "--calls", 1, "--class", "7", "--out", "seven.npz")
    assert np.load("seven.npz")["labels"].tolist() == [7, 7, 7]
    assert cli("sample", run, "-n", 3, "--calls", 1, "--class", "7", "--out", "sevens").status == 0
    assert len(list(Path("sevens/7").glob("*.png"))) == 3
    assert cli("sample", run, "-n", 20, "--calls", 1, "--out", "x.png").status == 0
    width, height = Image.open("x.png").size
    assert width > 4 * height  # two rows of ten


def test_evaluate_reports_on_fresh_and_on_given_samples(cli, runs):
    argv = ["evaluate", runs / "plain", "-n", 20, "--calls", 2]
    said = cli(*argv, "--json")
    assert said.status == 0
    assert said.json["samples"] == 20
    assert said.json["calls"] == 2
    assert said.json["same_data_as_trained_on"] is True
    assert {"energy_distance", "sliced_wasserstein", "nearest_training"} <= said.json["measures"].keys()
    cli("sample", runs / "plain", "-n", 20, "--calls", 2, "--out", "x.npz")
    given = cli("evaluate", runs / "plain", "--samples", "x.npz", "--json").json
    # The same samples by another way: the same figures.
    assert given["measures"] == said.json["measures"]
    cli("sample", runs / "toy", "-n", 50, "--calls", 2, "--out", "toy.npz")
    table = cli("evaluate", runs / "toy", "--samples", "toy.npz").out
    assert "energy distance" in table
    assert "samples of toy.npz" in table


def test_evaluate_draws_classes_as_the_held_out_data_has_them(cli, runs, monkeypatch):
    from ornstein.cli import evaluate

    seen = []

    def draw(model, chosen, options, n, labels):
        seen.append(labels.tolist())
        raise NumericalError("enough")

    monkeypatch.setattr(evaluate, "draw", draw)
    for n in ([], ["-n", 30], ["-n", 900]):
        assert "enough" in cli("evaluate", runs / "labels", *n).err
    held_out = load_dataset("digits", seed=0).test_labels
    assert seen[0] == held_out.tolist()
    share = np.bincount(held_out, minlength=10) / len(held_out)
    assert len(seen[2]) == 900
    np.testing.assert_allclose(np.bincount(seen[2], minlength=10) / 900, share, atol=0.01)
    # Sorted by class, as many files are, every class must still be there.
    labels = np.sort(held_out)
    np.savez(
        "sorted.npz",
        x_train=np.eye(64, dtype=np.uint8).reshape(-1, 8, 8).repeat(10, 0),
        y_train=np.arange(640) % 10,
        x_test=np.ones((len(labels), 8, 8), np.uint8),
        y_test=labels,
    )
    cli("evaluate", runs / "labels", "--data", "sorted.npz", "-n", 30)
    assert len(seen[3]) == 30
    assert len(set(seen[3])) == 10


def test_inspect_says_what_a_run_is(cli, runs):
    found = cli("inspect", runs / "plain", "--json").json
    assert found["step"] == found["total_steps"] == 3
    assert found["examples_seen"] == 24
    assert found["checkpoints"] == ["step-00000003"]
    assert found["newest_checkpoint"] == "whole"
    assert found["model"]["parametrization"] == "v"
    assert found["loss"] > 0
    assert found["validation_loss"] > 0
    from safetensors.numpy import load_file

    weights = load_file(runs / "plain" / "checkpoints" / "step-00000003" / "weights.safetensors")
    assert found["parameters"] == sum(v.size for k, v in weights.items() if k.startswith("average."))
    table = cli("inspect", runs / "plain").out
    for words in ("CosineVP", "UNet(", "sigma_data", "3 of 3", "17 levels"):
        assert words in table


def test_a_pipe_that_closes_is_no_error(runs):
    code = "import sys; from ornstein.cli import main; sys.exit(main(sys.argv[1:]))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""


# bad input


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["trian", "digits"],
            "unknown command 'trian', expected train, train-classifier, sample, likelihood, bench, evaluate, watch, inspect; "
            "did you mean 'train'?",
        ),
        (["--steps", "3", "train"], "the command comes first"),
        (["train"], "got neither DATA nor --resume"),
        (["train", "digits", "--resume", "run"], "got DATA"),
        (["train", "--resume", "run", "--clip", "3"], "got --clip with it"),
        (["train", "digits", "--stepz", "3"], "unknown option '--stepz' of ornstein train; did you mean '--steps'?"),
        (["train", "digits", "--batch_sise=3"], "did you mean '--batch-size'?"),
        (["train", "digits", "other"], "'other'"),
        (["train", "digits", "--steps", "ten"], "got 'ten' for --steps, expected a whole number"),
        (["train", "digits", "--seed", "--steps", "3"], "--seed lacks its value"),
        (["train", "digits", "--condition", "label"], "got 'label' for --condition, expected 'none', 'labels'"),
        (["train", "digits", "--steps", "3", "--budget", "3m"], "got both --steps and --budget"),
        (["train", "digits", "--budget", "soon"], "got budget 'soon'"),
        (["train", "digits", "--batch-size", "0"], "batch_size=0"),
        (
            ["train", "digits", "--preset", "minst"],
            "unknown preset 'minst', expected one of digits, mnist, cifar10, text, toy2d, table, mixed, series",
        ),
        (["train", "digits", "--config", "absent.toml"], "absent.toml cannot be read"),
        (["train", "digits", "--schedule", "CosinVP"], "did you mean 'CosineVP'?"),
        (["train", "digits", "--network", "Unet"], "did you mean 'UNet'?"),
        (["train", "digits", "--times", "Uniform"], "unknown name 'Uniform'"),
        (["train", "digits", "--weighting", "MinSNR(gama=3)"], "did you mean 'gamma'?"),
        (["train", "digits", "--parametrization", "eps"], ["'eps'", "CosineVP", "SNR"]),
        (["train", "gaussians", "--condition", "labels"], "gaussians has no labels"),
        (["train", "digts"], "did you mean 'digits'?"),
        (["train", "absent.npy"], "absent.npy does not exist"),
        (["train", "--resume", "absent"], "no config.json in absent"),
        (["sample"], "RUN is missing"),
        (["sample", "absent"], "no config.json in absent"),
        (["evaluate", "absent"], "no config.json in absent"),
        (["inspect", "absent"], "no config.json in absent"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_command_lines_that_cannot_be(fails, tmp_path, argv, said):
    fails(
        *argv, *(["--preset", "none"] if argv[:2] == ["train", "digits"] and "--preset" not in argv else []), said=said
    )
    assert list(tmp_path.iterdir()) == []  # nothing was written


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-n", "0"], "got -n 0"),
        (["--calls", "0"], "got calls=0"),
        (["--steps", "3", "--calls", "3"], "got both --steps and --calls"),
        (["--batch-size", "0"], "got --batch-size 0"),
        (["--sampler", "Heum"], "did you mean 'Heun'?"),
        (["--sampler", "Multistep(readings=7)"], "readings=7"),
        (["--grid", "karas"], "did you mean 'karras'?"),
        (["--grid", "karras(roh=3)"], "karras(roh=3)"),
        (["--class", "3"], "trained without labels"),
        (["--out", "x.jpg"], "expected FILE.npz, FILE.png or a folder"),
        (["--device", "cuda:77"], "got device 'cuda:77'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_samples_that_cannot_be_drawn(fails, runs, tmp_path, argv, said):
    fails("sample", runs / "plain", *argv, said=said)
    assert list(tmp_path.iterdir()) == []


def test_classes_that_are_not_there(fails, runs):
    fails("sample", runs / "labels", "--class", "11", "--out", "x.npz", said=["no class '11'", "the classes are 0, 1"])
    fails("sample", runs / "toy", "--out", "x.png", said=["samples that are arrays", "expected FILE.npz"])


def test_samples_that_cannot_be_evaluated(fails, runs):
    np.savez("other.npz", samples=np.zeros((9, 4, 4), np.uint8))
    np.savez("floats.npz", samples=np.zeros((9, 8, 8), np.float32))
    np.savez("unnamed.npz", np.zeros((9, 8, 8), np.uint8))
    np.savez("few.npz", samples=np.zeros((9, 8, 8), np.uint8))
    Path("text.npz").write_text("no zip")
    run = runs / "plain"
    fails("evaluate", run, "--samples", "other.npz", said=["other.npz", "(4, 4)", "(8, 8)"])
    fails("evaluate", run, "--samples", "floats.npz", said="float32")
    fails("evaluate", run, "--samples", "unnamed.npz", said="no array 'samples'")
    fails("evaluate", run, "--samples", "text.npz", said="text.npz")
    fails("evaluate", run, "--samples", "absent.npz", said="absent.npz")
    fails("evaluate", run, "--samples", "few.npz", "-n", "10", said="at most the 9 samples")
    fails("evaluate", run, "--data", "gaussians", said="of another kind than the data that the run was trained on")
    fails("evaluate", run, "-n", "20", "--features", "absent.safetensors", said="absent.safetensors")
    fails("evaluate", run, "-n", "0", said="got -n 0")


def test_damaged_checkpoints_are_refused_and_left_alone(cli, fails, runs, tmp_path):
    for name, damage in {
        "cut": lambda content: content[: len(content) // 2],
        "altered": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    }.items():
        run = shutil.copytree(runs / "plain", tmp_path / name)
        weights = next(run.rglob("weights.safetensors"))
        weights.write_bytes(damage(weights.read_bytes()))
        before = weights.read_bytes()
        for argv in (["sample", run, "--out", "x.npz"], ["evaluate", run], ["train", "--resume", run]):
            fails(*argv, said="checksum")
        assert "checksum" in cli("inspect", run, "--json").json["newest_checkpoint"]
        assert weights.read_bytes() == before
    run = shutil.copytree(runs / "plain", tmp_path / "config")
    (run / "config.json").write_text('{"options": ')
    fails("sample", run, said="config.json cannot be read")


def picture(path, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 7 if mode == "L" else (1, 2, 3)).save(path)


def test_data_that_cannot_be_trained_on(fails, tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3))
    x[17, 1] = np.nan
    np.save("nan.npy", x)
    Path("empty").mkdir()
    for i in range(6):
        for folder in ("broken", "sizes", "channels"):
            picture(Path(folder) / f"{i}.png")
    Path("broken/3.png").write_bytes(b"no picture")
    picture(Path("sizes/3.png"), (8, 9))
    picture(Path("channels/3.png"), mode="RGB")
    before = sorted(tmp_path.rglob("*"))
    fails("train", "nan.npy", *TINY, said=["nan.npy", "row 17"])
    fails("train", "empty", *TINY, said="empty")
    fails("train", "broken", *TINY, said="broken/3.png")
    fails("train", "sizes", *TINY, said=["sizes/3.png", "9 x 8"])
    fails("train", "channels", *TINY, said=["channels/3.png", "colour"])
    Path("text.doc").write_text("1,2")
    fails("train", "text.doc", *TINY, said="text.doc is of no kind that can be read")
    Path("text.doc").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(fails, cli, monkeypatch):
    step = training.Run.step

    def stumble(self, *args):
        if self.count == 2:
            raise NumericalError("training stopped at step 3: the loss is nan in 1 of 8 examples at t = 0.5")
        return step(self, *args)

    monkeypatch.setattr(training.Run, "step", stumble)
    fails(
        "train",
        "gaussians",
        "--network",
        "MLP(width=8, depth=1)",
        *TINY,
        "--out",
        "run",
        said=["step 3", "t = 0.5", "saved in"],
    )
    assert cli("inspect", "run", "--json").json["step"] == 2


def test_places_that_cannot_be_written_to(fails, runs):
    Path("file").write_text("precious")
    fails("sample", runs / "plain", "-n", "2", "--calls", "1", "--out", "file/x.npz", said="file")
    fails("train", "gaussians", *TINY, "--out", "file", said="file exists already")
    fails("train", "gaussians", *TINY, "--out", "file/run", said="file")
    assert Path("file").read_text() == "precious"


def test_ctrl_c_before_training_is_130_in_one_line(cli, monkeypatch):
    def press(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "create", press)
    said = cli("train", "digits", "--preset", "none")
    assert said.status == 130
    assert said.err == "ornstein: interrupted\n"


def test_bugs_are_not_hidden(cli, monkeypatch):
    def bug(*args, **kwargs):
        raise RuntimeError("index out of range")

    monkeypatch.setattr(experiment, "create", bug)
    with pytest.raises(RuntimeError, match="index"):
        cli("train", "digits", "--preset", "none")
