"""Classifiers of noisy data: their networks, their runs, and the command that trains them for a run."""

import json

import numpy as np
import pytest
import torch
from helpers import awake
from torch import nn

import ornstein as orn
from ornstein import checkpoints, experiment
from ornstein.cli import main
from ornstein.config import RunOptions, with_options
from ornstein.errors import CheckpointError, ConfigurationError
from ornstein.networks import MLPEncoder, UNetEncoder
from ornstein.specs import construct

SMALL = {"widths": (8, 16), "blocks": 1, "attention": 1}
TIMES = torch.tensor([0.3, 700.0, -1.2])
ENCODER = "UNetEncoder(widths=(8,), blocks=1, attention=0, dropout=0.1)"
SETTINGS = {"objective": "classifier", "network": ENCODER, "batch_size": 16, "grid_every": 2, "save_every": 0}


def networks() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return [
        ("images", UNetEncoder(1, outputs=5, **SMALL), (1, 8, 8)),
        ("patches", UNetEncoder(3, outputs=5, patch=2, **SMALL), (3, 9, 14)),
        ("series", UNetEncoder(2, dims=1, outputs=5, patch=2, **SMALL), (2, 17)),
        ("vectors", MLPEncoder((7,), width=16, depth=2, outputs=5), (7,)),
        ("arrays", MLPEncoder((2, 3), width=16, depth=1, outputs=5), (2, 3)),
    ]


CASES = [pytest.param(network, shape, id=name) for name, network, shape in networks()]


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_an_encoder_gives_each_example_its_numbers(network, shape):
    x = torch.randn(3, *shape, requires_grad=True)
    assert torch.equal(network(x, TIMES), torch.zeros(3, 5))  # all classes as likely
    again = construct(network.spec, nn.Module)
    assert again.spec == network.spec
    again.load_state_dict(network.state_dict())
    network = awake(network)
    out = network(x, TIMES)
    assert out.shape == (3, 5)
    alone = torch.cat([network(x[i : i + 1], TIMES[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(out, alone, rtol=1e-4, atol=1e-5)
    later = network(x, TIMES + 3)
    assert ((later - out).abs().amax(1) > 1e-4).all()
    (out * torch.randn(3, 5)).sum().backward()
    assert (x.grad != 0).flatten(1).any(1).all()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNetEncoder(1, outputs=0), "UNetEncoder: got outputs=0"),
        (lambda: MLPEncoder(3, outputs=0), "MLPEncoder: got outputs=0"),
        (lambda: MLPEncoder(3, width=0), "got shape (3,), width 0"),
        (lambda: UNetEncoder(1, widths=(7,)), "widths=(7,)"),
        (lambda: UNetEncoder(1, dropout=1.0), "UNetEncoder: got dropout=1.0"),
        (lambda: UNetEncoder(1, **SMALL)(torch.zeros(3, 2, 8, 8), TIMES), "got input of shape (3, 2, 8, 8)"),
        (lambda: MLPEncoder(3)(torch.zeros(3, 4), TIMES), "got examples of shape (4,), expected (3,)"),
    ],
)
def test_encoders_that_do_not_fit(make, words):
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert words in str(caught.value)


# Runs


def made(folder, **changes: object):
    return experiment.create(with_options(RunOptions("digits"), {**SETTINGS, **changes}), folder)


def test_a_resumed_classifier_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = made(tmp_path / "whole", steps=6, validate_every=3)
    whole.train(progress=False)
    part = made(tmp_path / "part", steps=6, validate_every=3)
    step = part.run.step

    def stepped(*batch):
        record = step(*batch)
        part.run.stopped = record.count == 4
        return record

    part.run.step = stepped
    assert part.train(progress=False)["stopped"] == "interrupted"
    again = experiment.resume(tmp_path / "part")
    again.train(progress=False)
    first, second = whole.run.state(), again.run.state()
    assert first[1] == second[1]
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0].keys() | second[0].keys())
    assert not (tmp_path / "whole" / "samples").exists()  # there is nothing to draw
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert 0 < log[-1]["validation_loss"] < 10

    found = checkpoints.load_classifier(tmp_path / "whole")
    assert not found.training
    assert found.classes == tuple("0123456789")
    assert found.scaling == whole.dataset.scaling
    assert found.process == whole.run.denoiser.process
    assert found.shape == (1, 8, 8)
    x, labels = whole.feed.held_out(torch.arange(4))
    with whole.run.averaged() as averaged, torch.no_grad():
        assert torch.equal(found.log_prob(x, 0.3, labels), averaged.log_prob(x, 0.3, labels))
    with pytest.raises(ConfigurationError, match="is a classifier, which draws nothing; expected the run of a model"):
        orn.load(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "UNet(widths=(8,))"}, "got network UNet for a classifier, expected UNetEncoder or MLPEncoder"),
        ({"objective": "simple"}, "got network UNetEncoder for a model to be sampled, expected UNet, DiT or MLP"),
        ({"condition": "arrays"}, "got --condition arrays for a classifier, expected labels"),
        ({"weighting": "MinSNR"}, "got weighting 'MinSNR' for objective 'classifier'"),
    ],
)
def test_options_that_no_classifier_has(tmp_path, changes, words):
    with pytest.raises(ConfigurationError) as caught:
        made(tmp_path / "run", steps=1, **changes)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


# The command


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A model of digits without labels and one of a toy, which has none."""
    folder = tmp_path_factory.mktemp("runs")
    tiny = ["--steps", "1", "--batch-size", "16", "--preset", "none", "--grid-every", "0"]
    digits = ["--network", "UNet(widths=(8, 16), blocks=1, attention=1, patch=2)", "--schedule", "EDM"]
    assert main(["train", "digits", *tiny, *digits, "--out", str(folder / "digits")]) == 0
    assert main(["train", "rings", *tiny, "--network", "MLP(width=8, depth=1)", "--out", str(folder / "rings")]) == 0
    return folder


def test_a_classifier_for_a_run_has_its_data_scaling_process_and_size(runs, capsys):
    capsys.readouterr()
    assert main(["train-classifier", str(runs / "digits"), "--steps", "30", "--learning-rate", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = runs / "digits-classifier-1"
    assert lines[-1] == f"next: ornstein sample {runs / 'digits'} --classifier {place} --guidance 2 --class NAME"
    assert "held-out examples named right, by sigma / alpha: " in lines[-2]
    classifier, model = orn.load_classifier(place), orn.load(runs / "digits")
    assert classifier.scaling == model.scaling
    assert classifier.process == model.process
    assert classifier.sigma_data == model.denoiser.sigma_data
    network = "UNetEncoder(channels=1, dims=2, widths=(8, 16), blocks=1, attention=1, outputs=10, patch=2, dropout=0.2)"
    assert classifier.network.spec == network
    options = checkpoints.read_config(place)["options"]
    assert options["training"]["batch_size"] == 16
    assert options["training"]["seed"] == checkpoints.read_config(runs / "digits")["options"]["training"]["seed"]
    assert main(["inspect", str(place)]) == 0
    assert "log p_t(y | x_t) of 10 classes" in capsys.readouterr().out
    # It learned something: the share of right names, as the command says it, by counting here what it names.
    command = ["train-classifier", str(runs / "digits"), "--steps", "300", "--learning-rate", "0.01", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == str(runs / "digits-classifier-2")
    assert list(found["accuracy"]) == ["0", "0.5", "1", "2"]
    assert found["accuracy"]["0"] > 0.7 > found["accuracy"]["2"] > 0.1
    classifier, data = orn.load_classifier(runs / "digits-classifier-2"), orn.load_dataset("digits")
    with torch.no_grad():
        named = classifier(data.scaling.encode(data.test), 0.002).argmax(1)
    assert found["accuracy"]["0"] == pytest.approx(float((named == data.test_labels).double().mean()), abs=0.02)


def test_what_no_classifier_is_trained_for(runs, tmp_path, capsys, monkeypatch):
    def refused(*argv, said):
        capsys.readouterr()
        assert main(["train-classifier", *map(str, argv)]) == 2
        assert said in capsys.readouterr().err

    refused(runs / "rings", said="whose data (rings) have no labels to tell apart; expected a run on data with labels")
    refused(tmp_path, said="no config.json in")
    refused(runs / "digits", "--steps", "3", "--budget", "1m", said="got both --steps and --budget")
    refused(runs / "digits", "--network", "DiT(width=32, depth=1)", said="got network DiT for a classifier")
    refused(runs / "digits", "--out", runs / "rings", said="exists already")
    made(tmp_path / "classifier", steps=1, validate_every=0).train(progress=False)
    refused(tmp_path / "classifier", said="which is a classifier, expected the run of the model")
    with pytest.raises(ConfigurationError, match="is a model to be sampled, expected a classifier: train one by"):
        orn.load_classifier(runs / "digits")
    for command in ("sample", "evaluate", "likelihood"):
        assert main([command, str(tmp_path / "classifier")]) == 2
        assert "is a classifier, which draws nothing" in capsys.readouterr().err


def test_data_that_have_changed_are_refused(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(60, 2)).astype(np.float32), "y": np.arange(60) % 2}
    np.savez(tmp_path / "d.npz", **arrays)
    tiny = ["--steps", "1", "--batch-size", "8", "--network", "MLP(width=8, depth=1)", "--out", str(tmp_path / "run")]
    assert main(["train", str(tmp_path / "d.npz"), *tiny]) == 0
    np.savez(tmp_path / "d.npz", **{**arrays, "y": 1 - arrays["y"]})
    assert main(["train-classifier", str(tmp_path / "run")]) == 2
    assert "their fingerprint differs; expected the data it was trained on" in capsys.readouterr().err
    assert not (tmp_path / "run-classifier-1").exists()


def test_a_damaged_classifier_is_named(tmp_path):
    made(tmp_path / "run", steps=1, validate_every=0).train(progress=False)
    weights = next((tmp_path / "run" / "checkpoints").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short or altered"):
        orn.load_classifier(tmp_path / "run")
