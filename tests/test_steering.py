"""`ornstein sample` and `evaluate` with guidance, constraints, SDEdit and interpolation, and their bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ornstein as orn
from ornstein.checkpoints import load_classifier
from ornstein.cli import main
from ornstein.data import load_dataset

UNET = "UNet(widths=(8,), blocks=1, attention=0)"
TINY = [
    "--network",
    UNET,
    "--preset",
    "none",
    "--steps",
    "3",
    "--batch-size",
    "8",
    "--save-every",
    "0",
    "--grid-every",
    "0",
]
FEW = ["--calls", "8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs on digits (16 levels above black, 8 x 8): plain, with labels, and with labels that were never dropped; images."""
    folder = tmp_path_factory.mktemp("steering")
    for name, more in {
        "plain": [],
        "labels": ["--condition", "labels"],
        "never": ["--condition", "labels", "--label-dropout", "0"],
        "toy": ["--network", "MLP(width=16, depth=1)"],
    }.items():
        data = "gaussians" if name == "toy" else "digits"
        assert main(["train", data, *TINY, *more, "--out", str(folder / name)]) == 0
    argv = [
        "--steps",
        "3",
        "--network",
        "UNetEncoder(widths=(8,), blocks=1, attention=0)",
        "--out",
        str(folder / "judge"),
    ]
    assert main(["train-classifier", str(folder / "plain"), *argv]) == 0
    digit = load_dataset("digits", seed=0).test[0].numpy()
    np.save(folder / "digit.npy", digit)
    Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8)).save(folder / "digit.png")
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[::2, ::2]).save(folder / "small.png")
    Image.fromarray(mask[:4]).save(folder / "flat.png")
    return folder


@pytest.fixture
def sample(place, capsys, tmp_path):
    """The samples that a command line draws, and its JSON."""

    def run(run, *argv):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        capsys.readouterr()
        few = [] if "--interpolate" in argv else FEW
        assert main(["sample", str(place / run), "-n", "3", *few, *map(str, argv), "--out", str(out), "--json"]) == 0
        said, err = capsys.readouterr()
        with np.load(out) as file:
            return file["samples"], json.loads(said), err

    return run


@pytest.fixture
def refused(place, capsys, tmp_path):
    """That a command line ends in one line that says these words."""

    def run(argv, *said):
        capsys.readouterr()
        argv = [str(place / a) if (place / str(a)).exists() else str(a) for a in argv]
        assert main(["sample", *argv, "--out", str(tmp_path / "no.npz")]) == 2
        out, err = capsys.readouterr()
        last = err.splitlines()[-1]
        assert out == ""
        assert last.startswith("ornstein: ")
        assert "Traceback" not in err
        for words in said:
            assert words in last
        assert not (tmp_path / "no.npz").exists()

    return run


def test_guidance_is_that_of_the_library(place, sample):
    x, result, _ = sample("labels", "--class", 3, "--guidance", 2.5, "--guidance-interval", 0.5, 100, "--seed", 4)
    model, cond = orn.load(place / "labels"), torch.full((3,), 3)
    wanted = orn.sample(orn.ClassifierFreeGuidance(model, 2.5, (0.5, 100.0)), n=3, calls=8, cond=cond, seed=4)
    assert np.array_equal(x, wanted.x)
    assert result["calls"] == wanted.calls <= 8
    assert result["guidance"] == 2.5
    plain = sample("labels", "--class", 3, "--seed", 4)[0]
    assert np.array_equal(sample("labels", "--class", 3, "--guidance", 1, "--seed", 4)[0], plain)
    assert not np.array_equal(x, plain)
    guided = sample("labels", "--class", 3, "--guide", place / "never", "--seed", 4)
    assert guided[1]["guidance"] == 2.0
    assert guided[1]["calls"] == 8


def test_a_classifier_guides_a_model_without_labels(place, sample):
    x, result, _ = sample("plain", "--classifier", place / "judge", "--guidance", 1e4, "--class", 2, "--seed", 5)
    model, judge = orn.load(place / "plain"), load_classifier(place / "judge")
    guided = orn.ClassifierGuidance(model, judge.log_prob, 1e4)  # three steps taught it little
    assert np.array_equal(x, orn.sample(guided, n=3, calls=8, cond=torch.full((3,), 2), seed=5).x)
    assert result["calls"] == 8
    assert result["guidance"] == 1e4
    assert not np.array_equal(x, sample("plain", "--seed", 5)[0])
    both = sample("labels", "--classifier", place / "judge", "--class", 2)[1]
    assert both["guidance"] == 1.0


def test_evaluation_of_guided_samples(place, capsys):
    for run, more in (("labels", ["--guidance", "1.5"]), ("plain", ["--classifier", str(place / "judge")])):
        capsys.readouterr()
        assert main(["evaluate", str(place / run), "-n", "40", "--calls", "4", *more, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["calls"] == 4


def test_inpainting_keeps_what_is_black(place, sample, tmp_path, capsys):
    digit = np.load(place / "digit.npy")
    x, result, err = sample("plain", "--inpaint", place / "digit.png", "--mask", place / "mask.png")
    assert (x[:, :, :4] == digit[:, :4]).all()
    assert len(np.unique(x[:, :, 4:], axis=0)) == 3
    assert "Inpainting(sampler=Ancestral(" in result["sampler"]
    assert result["calls"] == 8
    assert "rounded to the model's 17 levels" in err
    again = sample(
        "plain",
        "--inpaint",
        place / "digit.npy",
        "--mask",
        place / "mask.png",
        "--resamplings",
        3,
        "--sampler",
        "Euler",
    )
    assert again[1]["calls"] == 7  # of the 8 asked: two steps of three, and the landing
    assert (again[0][:, :, :4] == digit[:, :4]).all()
    usual = [
        "sample",
        str(place / "plain"),
        "-n",
        "1",
        "--inpaint",
        str(place / "digit.npy"),
        "--mask",
        str(place / "mask.png"),
    ]
    assert main([*usual, "--resamplings", "2", "--out", str(tmp_path / "usual.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] == 2 * 24 + 1


def test_references_and_small_images(place, sample):
    digit = np.load(place / "digit.npy").astype(float)
    found = sample("plain", "--reference", place / "digit.npy", "--factor", 2, "--filter", "fourier")[1]
    assert "Fourier(factor=2)" in found["sampler"]
    model = orn.load(place / "plain")
    y = model.scaling.encode(np.load(place / "digit.npy")[None])
    x = sample("plain", "--reference", place / "digit.npy", "--factor", 2, "--until", 0.1, "--seed", 2)[0]
    wanted = orn.sample(model, orn.ILVR(orn.Ancestral(), y, 2, stop=0.1), n=3, calls=8, seed=2)
    assert np.array_equal(x, wanted.x)
    whole = sample("plain", "--reference", place / "digit.npy", "--factor", 1)[0]
    assert (whole == digit).all()
    assert "ILVR" in sample("plain", "--upscale", place / "small.png", "--factor", 2)[1]["sampler"]


def test_beginning_from_an_image(place, sample):
    x, result, _ = sample("plain", "--init", place / "digit.npy", "--strength", 0.3, "--seed", 1)
    model = orn.load(place / "plain")
    digit = torch.from_numpy(np.load(place / "digit.npy"))[None]
    assert np.array_equal(x, orn.sdedit(model, digit, 0.3, n=3, calls=8, seed=1).x)
    assert result["strength"] == 0.3
    split = sample("plain", "--init", place / "digit.npy", "--strength", 0.3, "--seed", 1, "--batch-size", 2)[0]
    assert np.abs(split.astype(int) - x.astype(int)).max() <= 1
    both = sample(
        "plain", "--init", place / "digit.npy", "--inpaint", place / "digit.npy", "--mask", place / "mask.png"
    )
    assert (both[0][:, :, :4] == digit.numpy()[:, :, :4]).all()


def test_interpolation(place, sample):
    x, result, _ = sample("labels", "--interpolate", place / "digit.npy", place / "digit.npy", "--class", 1)
    assert x.shape == (3, 8, 8)
    assert np.abs(x.astype(int) - np.load(place / "digit.npy").astype(int)).max() <= 1
    assert result["n"] == 3
    guided = ["--interpolate", place / "digit.npy", place / "digit.npy", "--class", 1, "--guidance", 3]
    assert np.abs(sample("labels", *guided)[0].astype(int) - np.load(place / "digit.npy").astype(int)).max() <= 1


def test_a_classifier_names_the_classes_of_a_model_without_labels(place, capsys, tmp_path):
    """The same images without labels: the classes are those of the classifier."""
    data = load_dataset("digits", seed=0)
    arrays = {"x_train": data.train.numpy(), "x_test": data.test.numpy()}
    np.savez(tmp_path / "bare.npz", **arrays)
    labels = {"y_train": data.train_labels.numpy() % 3, "y_test": data.test_labels.numpy() % 3}
    np.savez(tmp_path / "named.npz", **arrays, **labels)
    for name in ("bare", "named"):
        assert main(["train", str(tmp_path / f"{name}.npz"), *TINY, "--out", str(tmp_path / name)]) == 0
    encoder = "UNetEncoder(widths=(8,), blocks=1, attention=0)"
    argv = ["--steps", "3", "--network", encoder, "--out", str(tmp_path / "judge")]
    assert main(["train-classifier", str(tmp_path / "named"), *argv]) == 0
    argv = ["sample", str(tmp_path / "bare"), "-n", "4", "--calls", "4", "--classifier", str(tmp_path / "judge")]
    for more in (["--out", "a.png"], ["--out", "a.npz"], ["--out", "folder"], ["--class", "2", "--out", "b.npz"]):
        assert main([*argv, *more[:-1], str(tmp_path / more[-1])]) == 0
    capsys.readouterr()
    assert main([*argv, "--class", "7", "--out", str(tmp_path / "c.npz")]) == 2
    assert "no class '7'; the classes are 0, 1, 2" in capsys.readouterr().err
    based = ["train", str(tmp_path / "named.npz"), *TINY, "--prior", "data-diagonal", "--out", str(tmp_path / "based")]
    assert main(based) == 0
    argv[1] = str(tmp_path / "based")
    assert main([*argv, "--out", str(tmp_path / "d.npz")]) == 2
    assert "trained on other noise" in capsys.readouterr().err


def test_a_model_of_arrays_takes_no_classifier(place, capsys, tmp_path):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=draw.normal(size=(60, 2)), y=np.arange(60) % 2, cond=draw.normal(size=(60, 3)))
    argv = [
        "train",
        str(tmp_path / "x.npz"),
        "--preset",
        "none",
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--condition",
        "arrays",
    ]
    assert main([*argv, "--network", "MLP(width=8, depth=1)", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["train-classifier", str(tmp_path / "run")]) == 2
    assert "takes those and no class" in capsys.readouterr().err


def test_guidance_that_cannot_be(refused):
    refused(["plain", "--guidance", 2], "unconditional model", "--condition labels")
    refused(["never", "--guidance", 2], "label dropout 0", "--label-dropout 0.1")
    refused(["labels", "--guidance-interval", 0.2, 3], "--guidance-interval without guidance", "--guidance SCALE")
    refused(["labels", "--guidance", 2, "--guidance-interval", 3, 0.2], "interval=(3.0, 0.2)", "low < high")
    refused(["labels", "--guidance", 2, "--calls", 1], "got 1 calls", "2 each")
    refused(["labels", "--guide", "plain", "--classifier", "plain"], "both --guide and --classifier")
    refused(["labels", "--class", "eleven"], "no class 'eleven'", "the classes are 0, 1, 2")
    refused(["labels", "--class", 12], "no class '12'", "the classes are")
    refused(["labels", "--guide", "toy"], "trained on other", "same")
    refused(["plain", "--cond", "digit.npy"], "--cond", "--condition arrays")
    refused(["plain", "--class", 3], "without labels", "--classifier")
    refused(["plain", "--guide", "judge"], "judge", "classifier")
    refused(["plain", "--classifier", "labels"], "labels", "train-classifier")
    refused(["toy", "--classifier", "judge"], "trained on other data")
    refused(["plain", "--classifier", "judge", "--guidance-rescale", 0.5], "--guidance-rescale with --classifier")


def test_steering_that_cannot_be(refused):
    refused(["plain", "--inpaint", "digit.png"], "without --mask", "white where")
    refused(["plain", "--mask", "mask.png"], "--mask without --inpaint")
    refused(["plain", "--strength", 0.3], "--strength without --init")
    refused(["plain", "--inpaint", "digit.png", "--mask", "flat.png"], "4 x 8, expected 8 x 8")
    refused(
        ["plain", "--inpaint", "digit.png", "--mask", "mask.png", "--reference", "digit.png"],
        "--inpaint and --reference",
    )
    refused(["plain", "--reference", "digit.png", "--factor", 3], "factor=3 for 8 x 8", "1, 2, 4, 8")
    refused(["plain", "--reference", "digit.png", "--sampler", "Langevin"], "Langevin", "PredictorCorrector")
    refused(["plain", "--init", "digit.png", "--strength", 1.5], "--strength 1.5", "at most 1")
    refused(["plain", "--init", "digit.png", "--grid", "karras"], "--grid with --init")
    refused(["plain", "--init", "nowhere.png"], "nowhere.png does not exist")
    refused(["plain", "--interpolate", "digit.npy", "digit.npy", "--init", "digit.npy"], "--interpolate with")
    refused(["plain", "--interpolate", "digit.npy", "digit.npy", "-n", 1], "n=1", "at least 2")
    refused(["plain", "--interpolate", "digit.npy", "digit.npy", "--calls", 3], "--calls with --interpolate")
    refused(["labels", "--interpolate", "digit.npy", "digit.npy", "--guidance", 2], "--class with it")
    refused(["toy", "--upscale", "digit.png"], "model of vectors", "images or series")
    refused(["toy", "--reference", "digit.png"], "digit.png", ".npy")
