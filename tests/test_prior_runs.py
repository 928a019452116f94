"""Runs with a prior: trained, saved, loaded, resumed, sampled and measured from the command line."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein import checkpoints, experiment, priors
from ornstein.cli import main
from ornstein.config import RunOptions, with_options
from ornstein.data import load_dataset
from ornstein.errors import CheckpointError, ConfigurationError
from ornstein.processes import ByClass, Normal

TINY = ["--preset", "none", "--steps", "3", "--batch-size", "8", "--save-every", "0", "--grid-every", "2"]
NETWORK = "UNet(widths=(8,), blocks=1, attention=0)"
PRIORS = ("data-diagonal", "data-full", "data-rank3", "class-diagonal")


def train(folder: Path, prior: str, *words: str) -> int:
    argv = [
        "train",
        "digits",
        "--network",
        NETWORK,
        "--prior",
        prior,
        "--condition",
        "labels",
        *TINY,
        "--out",
        str(folder),
    ]
    return main([*argv, *words])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("priors")
    for prior in PRIORS:
        assert train(folder / prior, prior) == 0
    return folder


def model_units() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_dataset("digits", seed=0)
    return data.scaling.encode(data.train).double(), data.train_labels


@pytest.mark.parametrize("prior", PRIORS)
def test_a_run_is_trained_saved_and_used(runs, prior, capsys):
    run = runs / prior
    x, labels = model_units()
    model = checkpoints.load(run)
    base = model.process.base
    assert model.denoiser.sigma_data == 1.0
    if prior == "class-diagonal":
        assert isinstance(base, ByClass)
        for label in range(10):
            mean = x[labels == label].mean(0)
            assert torch.allclose(base.laws.mean[label], mean)
        base = base.given(labels[:5])
    else:
        assert torch.allclose(base.mean, x.mean(0))
    assert list((run / "samples").glob("*.png"))  # grids are drawn on the way
    white = base.whiten(x[:5] - base.mean)
    assert float(white.square().mean()) < 3  # in its own coordinates the data are of size 1
    out = run / "drawn.npz"
    assert main(["sample", str(run), "-n", "3", "--calls", "2", "--out", str(out), "--overwrite"]) == 0
    assert np.load(out)["samples"].shape == (3, 8, 8)
    capsys.readouterr()
    argv = ["likelihood", str(run), "-n", "2", "--steps", "20", "--terms", "2", "--tolerance", "1e-2", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert np.isfinite([found["elbo"]["nats"], found["ode"]["nats"]]).all()
    assert main(["inspect", str(run)]) == 0
    assert prior in capsys.readouterr().out
    assert main(["evaluate", str(run), "-n", "6", "--calls", "2", "--json"]) == 0


def test_a_bench_binds_the_base(runs, capsys):
    assert main(["bench", str(runs / "class-diagonal"), "-n", "2", "--calls", "4", "--json"]) == 0


def test_loaded_bases_are_bit_for_bit_those_of_training(runs):
    for prior in PRIORS:
        options = RunOptions("digits")
        options = with_options(options, {"prior": prior, "condition": "labels", "network": NETWORK})
        made = experiment.build(options, load_dataset("digits", seed=0)).process.base
        loaded = checkpoints.load(runs / prior).process.base
        x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        one, two = (base.given(torch.tensor([3, 1, 4, 1])) for base in (made, loaded))
        assert torch.equal(one.colour(x), two.colour(x))
        assert torch.equal(one.whiten(x), two.whiten(x))


@pytest.mark.parametrize("prior", ["data-full", "class-diagonal"])
def test_a_resumed_run_is_the_uninterrupted_one(runs, tmp_path, prior, monkeypatch):
    """Six steps at once, and three that go on to six: the same weights, bit for bit; also from a folder without a checkpoint."""
    long = tmp_path / "long"
    assert train(long, prior, "--steps", "6", "--save-every", "3", "--keep", "5") == 0
    truth = checkpoints.read(long)[0]
    cut = shutil.copytree(long, tmp_path / "cut")
    shutil.rmtree(checkpoints.checkpoints(cut)[-1])
    none = shutil.copytree(long, tmp_path / "none")
    shutil.rmtree(none / "checkpoints")
    monkeypatch.setattr(priors, "measured", None)  # the saved one counts, whatever has become of the data
    for folder in (cut, none):
        assert main(["train", "--resume", str(folder)]) == 0
        found = checkpoints.read(folder)[0]
        assert all(torch.equal(found[name], value) for name, value in truth.items())


def test_a_damaged_prior_is_refused(runs, tmp_path, capsys):
    run = shutil.copytree(runs / "data-diagonal", tmp_path / "run")
    place = run / priors.FILE
    content = place.read_bytes()
    for damage in (content[:-8], content[:-1] + bytes([content[-1] ^ 1]), b""):
        place.write_bytes(damage)
        with pytest.raises(CheckpointError, match="checksum does not match"):
            checkpoints.load(run)
        for argv in (["sample", run], ["train", "--resume", run], ["inspect", run]):
            assert main([str(word) for word in argv]) == 2
            assert "checksum" in capsys.readouterr().err
    place.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.load(run)


def test_a_run_from_before_priors_is_loaded(tmp_path):
    folder = tmp_path / "old"
    assert train(folder, "standard") == 0
    assert not (folder / priors.FILE).exists()
    config = json.loads((folder / "config.json").read_text())
    del config["options"]["model"]["prior"], config["model"]["base"]
    (folder / "config.json").write_text(json.dumps(config))
    assert checkpoints.load(folder).process.base is None
    assert main(["inspect", str(folder)]) == 0
    assert main(["train", "--resume", str(folder)]) == 0


def test_a_classifier_sees_the_data_of_its_run(runs, tmp_path, capsys):
    argv = [
        "train-classifier",
        str(runs / "data-full"),
        "--steps",
        "2",
        "--network",
        "UNetEncoder(widths=(8,), blocks=1, attention=0)",
    ]
    assert main([*argv, "--out", str(tmp_path / "classifier")]) == 0
    classifier = checkpoints.load_classifier(tmp_path / "classifier")
    base = checkpoints.load(runs / "data-full").process.base
    assert torch.equal(classifier.process.base.matrix(), base.matrix())
    assert classifier(torch.zeros(2, 1, 8, 8), 0.3).shape == (2, 10)
    capsys.readouterr()
    assert (
        main(["train-classifier", str(runs / "class-diagonal"), "--steps", "2", "--out", str(tmp_path / "none")]) == 2
    )
    assert "is not told one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prior", "data-diag"], "got prior 'data-diag', expected one of standard, data-diagonal"),
        (["--prior", "data-rank0"], "got prior 'data-rank0'"),
        (["--prior", "class-diagonal"], "expected --condition labels"),
        (["--prior", "data-rank65"], "a rank of 1 to 64"),
    ],
)
def test_priors_that_cannot_be(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", *TINY, *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_prior_of_large_data_is_refused():
    data = load_dataset("digits", seed=0)

    class Large:
        shape = (1, 65, 64)

    fake = type("Data", (), {"scaling": Large(), "train": data.train, "classes": ()})()
    with pytest.raises(ConfigurationError, match=r"4160 dimensions.*--prior data-rank64, or data-diagonal"):
        priors.measured("data-full", "none", fake)


def test_a_class_without_examples_has_the_law_of_all():
    x = torch.cat([torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.ones(3, 2)])
    labels = torch.tensor([0] * 19 + [1] + [2] * 3)
    found, whole = priors._by_class(x, labels, 4).laws, Normal.measure(x)
    for label in (1, 2, 3):  # one example, examples that do not vary, none
        assert torch.equal(found.mean[label], whole.mean)
    assert torch.allclose(found.mean[0], x[:19].double().mean(0))


def test_the_docs_run_as_printed():
    text, names = (Path(__file__).parent.parent / "docs" / "priors.md").read_text(), {}
    exec(compile(re.search(r"```python\n(.*?)```", text, re.S)[1], "priors.md", "exec"), names)
    assert names["drawn"].shape == (100, 2)
    assert names["start"].shape == (3, 2)
    assert np.isfinite(names["nats"].mean)
