"""Conditions that reach the network and the trainer: labels, vectors, images, several at once; their dropout; their data."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import awake
from torch import nn

import ornstein as orn
from ornstein import checkpoints, experiment
from ornstein.cli import main
from ornstein.config import RunOptions, TrainingOptions, with_options
from ornstein.data import Conditioning, load_dataset
from ornstein.errors import ConfigurationError, DataError
from ornstein.networks import MLP, DiT, UNet
from ornstein.noise import Noise
from ornstein.objectives import Objective
from ornstein.specs import construct
from ornstein.training import Run
from ornstein.training.noise_scale import noise_scale

SMALL = {"widths": (8, 16), "blocks": 1, "attention": 1}
TIMES = torch.tensor([0.3, 700.0, -1.2])
QUIET = {"validate_every": 0, "grid_every": 0, "save_every": 0}
V = {"parametrization": "v"}


def networks() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return [
        ("unet", UNet(1, images=2, **SMALL), (1, 8, 6)),
        ("unet-patch", UNet(3, images=1, patch=2, **SMALL), (3, 9, 14)),
        ("unet-series", UNet(2, dims=1, images=3, patch=2, **SMALL), (2, 17)),
        ("unet-both", UNet(1, images=1, classes=4, **SMALL), (1, 8, 6)),
        ("dit", DiT(1, width=32, depth=1, images=2, patch=2), (1, 9, 6)),
        ("dit-both", DiT(1, width=32, depth=1, images=1, classes=4), (1, 8, 6)),
    ]


CASES = [pytest.param(network, shape, id=name) for name, network, shape in networks()]


def given(network: nn.Module, shape: tuple[int, ...], scale: float = 1.0):
    """A condition for three rows, as the network takes it."""
    image = scale * torch.randn(3, network.images, *shape[1:], generator=torch.Generator().manual_seed(1))
    return {"labels": torch.tensor([2, 0, 1]), "image": image} if network.classes else image


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_an_image_is_shown_row_by_row_and_a_black_one_is_not_none(network, shape):
    again = construct(network.spec, nn.Module)
    again.load_state_dict(network.state_dict())
    network = awake(network)
    x, cond = torch.randn(3, *shape), given(network, shape)
    with torch.no_grad():
        none, full, black = network(x, TIMES), network(x, TIMES, cond), network(x, TIMES, given(network, shape, 0.0))
        mixed = network(x, TIMES, cond, torch.tensor([False, True, False]))
    torch.testing.assert_close(mixed, torch.stack((none[0], full[1], none[2])), rtol=1e-4, atol=1e-5)
    for one, other in ((full, none), (black, none), (full, black)):
        assert ((one - other).flatten(1).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_what_is_dropped_does_not_count_and_what_is_kept_has_a_gradient(network, shape):
    network = awake(network)
    cond, keep = given(network, shape), torch.tensor([True, False, True])
    image = cond["image"] if isinstance(cond, dict) else cond
    image[1] = torch.nan
    image.requires_grad_()
    out = network(torch.randn(3, *shape), TIMES, cond, keep)
    assert torch.isfinite(out).all()
    (out * torch.randn_like(out)).sum().backward()
    assert [bool(row.abs().max() > 0) for row in image.grad] == [True, False, True]


BOTH, IMAGE, CLASSES = UNet(1, images=1, classes=4, **SMALL), UNet(1, images=1, **SMALL), UNet(1, classes=4, **SMALL)
PICTURE, LABELS, VECTOR = torch.zeros(3, 1, 8, 6), torch.tensor([0, 1, 2]), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("network", "cond", "words"),
    [
        (
            BOTH,
            PICTURE,
            'one tensor, expected a dict of "labels": (b,) class indices or "vector": (b, 4) floats and "image"',
        ),
        (BOTH, {"labels": LABELS}, "got a condition of ['labels'], expected a dict of"),
        (BOTH, {"image": PICTURE}, "got a condition of ['image'], expected"),
        (BOTH, {"labels": LABELS, "vector": VECTOR, "image": PICTURE}, "['image', 'labels', 'vector'], expected"),
        (BOTH, {"labels": LABELS, "picture": PICTURE}, "['labels', 'picture'], expected"),
        (BOTH, {"labels": VECTOR, "image": PICTURE}, "got labels of type torch.float32, expected labels of integers"),
        (BOTH, {"vector": LABELS, "image": PICTURE}, "got vector of type torch.int64"),
        (IMAGE, {"labels": LABELS}, """expected a dict of "image": (b, 1, *space) floats"""),
        (IMAGE, PICTURE[:, :, :4], "got an image of shape (3, 1, 4, 6) as condition, expected (3, 1, 8, 6)"),
        (IMAGE, LABELS, "got an image of shape (3,) as condition"),
        (CLASSES, {"image": PICTURE}, "got a condition of ['image']"),
        (MLP((1, 8, 6), width=8, depth=1, classes=4), {"image": PICTURE}, "got a condition of ['image']"),
        (MLP((1, 8, 6), width=8, depth=1), {"labels": LABELS}, "the network has none: build it with classes=k"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(network, cond, words):
    with pytest.raises(ConfigurationError) as caught:
        network(torch.zeros(3, 1, 8, 6), TIMES, cond)
    assert words in str(caught.value)
    with pytest.raises(ConfigurationError, match="keep: got shape"):
        IMAGE(torch.zeros(3, 1, 8, 6), TIMES, PICTURE, torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("make", [UNet, DiT])
def test_images_are_counted(make):
    with pytest.raises(ConfigurationError, match="got images=-1, expected 0"):
        make(1, images=-1)


def test_either_name_stands_for_its_tensor():
    network, x = awake(CLASSES), torch.randn(3, 1, 8, 6)
    one_hot = nn.functional.one_hot(LABELS, 4).float()
    with torch.no_grad():
        assert torch.equal(network(x, TIMES, {"labels": LABELS}), network(x, TIMES, LABELS))
        assert torch.equal(network(x, TIMES, {"vector": one_hot}), network(x, TIMES, one_hot))


# A class that the model never saw

PROCESS = orn.Gaussian(orn.CosineVP())


@pytest.mark.parametrize(("label", "words"), [(12, "got class 12"), (-1, "got class -1")])
def test_a_class_the_model_never_saw(label, words):
    denoiser = orn.Denoiser(MLP(2, width=8, depth=1, classes=3), PROCESS, **V)
    cond, x = torch.tensor([0, label]), torch.zeros(2, 2)
    for ask in (
        lambda: orn.sample(denoiser, shape=(2,), cond=cond),
        lambda: orn.sample(denoiser, shape=(2,), cond={"labels": cond}),
        lambda: orn.log_likelihood(denoiser, x, cond=cond),
        lambda: orn.elbo(denoiser, x, steps=3, cond=cond),
        lambda: orn.train(denoiser, x, cond=cond, batch_size=2),
    ):
        with pytest.raises(ConfigurationError) as caught:
            ask()
        assert words in str(caught.value)
        assert "never saw, expected 0 to 2" in str(caught.value)


# Conditions of several parts, in all that takes rows of them


def conditional(n: int = 6):
    torch.manual_seed(0)
    network = awake(UNet(1, images=1, classes=3, widths=(8,), blocks=1, attention=0))
    with torch.no_grad():
        network.exit.weight.mul_(0.1)  # a gentle field, whose flow is not stiff
    denoiser = orn.Denoiser(network, PROCESS, **V)
    denoiser.shape = (1, 4, 4)
    generator = torch.Generator().manual_seed(2)
    cond = {"labels": torch.arange(n) % 3, "image": torch.randn(n, 1, 4, 4, generator=generator)}
    return denoiser, cond, torch.randn(n, 1, 4, 4, generator=generator)


def test_samples_and_likelihoods_of_several_parts_do_not_depend_on_the_batch():
    denoiser, cond, x = conditional()
    row = {name: value[4:5] for name, value in cond.items()}
    whole, batched = (orn.sample(denoiser, steps=3, cond=cond, batch_size=size).x for size in (6, 4))
    torch.testing.assert_close(batched, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(orn.sample(denoiser, steps=3, cond=row, first=4).x, whole[4:5], rtol=1e-4, atol=1e-5)
    bounds = [orn.elbo(denoiser, x, steps=4, cond=cond, batch_size=size).total for size in (6, 4)]
    torch.testing.assert_close(*bounds, rtol=1e-4, atol=1e-4)
    few = {name: value[:3] for name, value in cond.items()}
    found = [orn.log_likelihood(denoiser, x[:3], cond=few, batch_size=size).per_example for size in (3, 2)]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    with pytest.raises(ConfigurationError, match="whose parts have \\[1, 6\\] rows"):
        orn.sample(denoiser, steps=3, cond={**cond, "labels": row["labels"]})


def test_training_on_several_parts_does_not_depend_on_the_parts_of_a_batch():
    records = []
    for accumulate in (1, 3):
        denoiser, cond, x = conditional()
        options = TrainingOptions(steps=2, batch_size=6, accumulate=accumulate, label_dropout=0.5, precision="float32")
        records.append([record.loss for record in orn.train(denoiser, x, cond=cond, options=options)])
        assert denoiser.label_dropout == 0.5
    assert records[0] == pytest.approx(records[1], rel=1e-4)
    run = Run(denoiser, Objective(), options)
    assert noise_scale(run, [(x, cond)] * 4).variance > 0
    with pytest.raises(DataError, match="got 5 conditions for 6 examples"):
        orn.train(denoiser, x, cond={name: value[:5] for name, value in cond.items()}, options=options)


# Label dropout


class Watched(nn.Module):
    """A network that keeps what it was told of labels."""

    classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.line, self.kept = nn.Linear(2, 2), []

    def forward(self, x, time, cond=None, keep=None):
        self.kept.append(keep)
        return self.line(x)


def test_labels_are_dropped_example_by_example_in_the_share_asked_for():
    network = Watched()
    denoiser = orn.Denoiser(network, PROCESS, **V)
    steps = orn.train(
        denoiser,
        torch.randn(1000, 2),
        cond=torch.arange(1000) % 3,
        options=TrainingOptions(steps=20, batch_size=500, label_dropout=0.3),
    )
    assert len(list(steps)) == 20
    kept = torch.stack(network.kept).double()
    share, error = 1 - float(kept.mean()), (0.3 * 0.7 / kept.numel()) ** 0.5
    assert abs(share - 0.3) < 4 * error
    assert ((kept.mean(1) > 0.55) & (kept.mean(1) < 0.85)).all()  # some of each batch, never all or none
    # Whether a row is dropped says nothing of its neighbours, nor of the same row in the next batch.
    centred = kept - 0.7
    for product in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert abs(float(product.mean())) < 4 * 0.21 / product.numel() ** 0.5


def test_the_loss_of_a_dropped_row_is_the_unconditional_one():
    torch.manual_seed(0)
    denoiser = orn.Denoiser(awake(MLP(2, width=16, depth=1, classes=3)), PROCESS, **V)
    x0, cond, keep = torch.randn(6, 2), torch.arange(6) % 3, torch.tensor([True, False] * 3)
    losses = [
        Objective()(denoiser, x0, c, Noise(0, 6), k).per_example for c, k in ((cond, keep), (None, None), (cond, None))
    ]
    mixed, without, with_labels = (loss.detach() for loss in losses)
    torch.testing.assert_close(mixed[~keep], without[~keep])
    torch.testing.assert_close(mixed[keep], with_labels[keep])
    assert ((with_labels - without).abs() > 1e-4).all()


def test_the_share_of_dropped_labels_is_known_of_a_model(tmp_path):
    data, settings = torch.randn(8, 2), {"steps": 1, "batch_size": 8, **QUIET, "network": "MLP(width=8, depth=1)"}
    for condition, expected in (("labels", 0.25), ("none", None)):
        options = with_options(RunOptions("digits"), {**settings, "condition": condition, "label_dropout": 0.25})
        options = with_options(options, {"network": "UNet(widths=(8,), blocks=1, attention=0)"})
        experiment.create(options, tmp_path / condition).train(progress=False)
        assert checkpoints.load(tmp_path / condition).denoiser.label_dropout == expected
    denoiser = orn.Denoiser(MLP(2, width=8, depth=1, classes=2), PROCESS, **V)
    list(orn.train(denoiser, data, steps=1, batch_size=8))
    assert denoiser.label_dropout is None
    list(orn.train(denoiser, data, cond=torch.arange(8) % 2, steps=1, batch_size=8))
    assert denoiser.label_dropout == TrainingOptions().label_dropout


# Conditions in files


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def vectors(n: int = 60) -> dict[str, np.ndarray]:
    """Examples that tell which condition is theirs."""
    rng = np.random.default_rng(0)
    cond = np.stack([rng.normal(50, 9, n), rng.normal(-1, 0.01, n)], axis=1).astype(np.float32)
    return {"x": np.stack([cond[:, 0] * 2, rng.normal(size=n)], axis=1).astype(np.float32), "cond": cond}


def pictures(n: int = 60, channels: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 8, 6), dtype=np.uint8)
    cond = np.repeat(images[..., None] // 2, channels, axis=3)
    return {"images": images, "cond": cond}


def test_conditions_stay_with_their_examples_and_are_standardised(tmp_path):
    path = save(tmp_path / "d.npz", **vectors())
    data = load_dataset(path)
    assert data.train_cond.shape == (54, 2)
    for x, cond in ((data.train, data.train_cond), (data.test, data.test_cond)):
        torch.testing.assert_close(x[:, 0], 2 * cond[:, 0])
    conditioning = Conditioning.measure(data)
    encoded = conditioning.encode(data.train_cond)
    torch.testing.assert_close(encoded.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(encoded.std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)
    assert Conditioning.from_dict(json.loads(json.dumps(conditioning.to_dict()))) == conditioning
    assert (conditioning.vector, conditioning.images) == (2, 0)
    torch.testing.assert_close(conditioning.read(path), conditioning.encode(vectors()["cond"]))
    changed = vectors()
    changed["cond"][3, 0] += 1
    assert load_dataset(save(tmp_path / "e.npz", **changed)).fingerprint != data.fingerprint


@pytest.mark.parametrize("names", [("train_cond", "test_cond"), ("cond_train", "cond_test")])
def test_held_out_conditions_of_their_own(tmp_path, names):
    d = vectors()
    arrays = {"x_train": d["x"][:40], "x_test": d["x"][40:], names[0]: d["cond"][:40], names[1]: d["cond"][40:]}
    data = load_dataset(save(tmp_path / "d.npz", **arrays))
    torch.testing.assert_close(data.test_cond, torch.from_numpy(d["cond"][40:]))
    del arrays[names[1]]
    with pytest.raises(DataError, match="held-out examples without conditions; expected train_cond/test_cond or"):
        load_dataset(save(tmp_path / "d.npz", **arrays))


def test_images_are_scaled_to_the_range_and_series_by_channel(tmp_path):
    data = load_dataset(save(tmp_path / "d.npz", **pictures()))
    conditioning = Conditioning.measure(data)
    assert (conditioning.vector, conditioning.images) == (0, 3)
    ends = conditioning.encode(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 8, 6, 3))
    torch.testing.assert_close(ends, torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 3, 8, 6))
    rng = np.random.default_rng(0)
    series = {"x": rng.normal(size=(20, 16, 2)), "cond": 7 + rng.normal(size=(20, 16, 1))}
    conditioning = Conditioning.measure(load_dataset(save(tmp_path / "s.npz", **series)))
    assert conditioning.images == 1
    assert conditioning.encode(series["cond"]).shape == (20, 1, 16)
    assert abs(float(conditioning.encode(series["cond"]).mean())) < 0.2


@pytest.mark.parametrize(
    ("cond", "words"),
    [
        (None, "has no conditions; expected an .npz file with an array 'cond' beside the examples"),
        (np.arange(40), "classes are labels: --condition labels"),
        (
            np.zeros((40, 9, 6), np.uint8),
            "expected floats (n, k), which are vectors, or uint8 images of the examples' own 8 x 6",
        ),
        (np.zeros((40, 8, 6), np.float32), "type float32 and shape (n, 8, 6)"),
        (np.ones((40, 2)), "constant"),
        (np.full((40, 2), np.nan), "hold NaN or inf"),
        (np.zeros((39, 2)), "39 conditions for 40 examples"),
        (np.array(["a"] * 40), "expected numbers"),
    ],
)
def test_conditions_that_cannot_be_trained_on(tmp_path, capsys, cond, words):
    arrays = {"images": pictures(40)["images"], **({} if cond is None else {"cond": cond})}
    path = save(tmp_path / "d.npz", **arrays)
    assert main(["train", str(path), "--condition", "arrays", "--out", str(tmp_path / "run"), "--batch-size", "8"]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_conditions_of_another_kind_than_in_training(tmp_path):
    data = load_dataset(save(tmp_path / "d.npz", **vectors()))
    conditioning = Conditioning.measure(data)
    for wrong in (np.zeros((3, 3), np.float32), np.zeros((3, 2), np.uint8), np.zeros((3, 2), np.int64)):
        with pytest.raises(DataError, match=r"conditions of type .* expected floats of shape \(n, 2\), as in training"):
            conditioning.encode(wrong)
    with pytest.raises(DataError, match="holds a, b; expected an array 'cond'"):
        conditioning.read(save(tmp_path / "w.npz", a=np.zeros(3), b=np.zeros(3)))
    with pytest.raises(DataError, match="cannot be read as a numpy file"):
        conditioning.read(tmp_path / "none.npz")
    fewer = replace(data, test_cond=data.test_cond[:, :1])
    with pytest.raises(DataError, match="expected the same for both"):
        Conditioning.measure(fewer)


UNET = "UNet(widths=(8,), blocks=1, attention=0)"
TINY = ["--condition", "arrays", "--steps", "3", "--batch-size", "8", "--validate-every", "3", "--preset", "none"]


def test_a_run_on_conditions_is_validated_drawn_evaluated_and_likely(tmp_path, capsys):
    path, run = save(tmp_path / "d.npz", **pictures()), tmp_path / "run"
    assert main(["train", str(path), *TINY, "--network", UNET, "--grid-every", "3", "--out", str(run)]) == 0
    assert capsys.readouterr().out.endswith(f"next: ornstein sample {run} --cond FILE.npz\n")
    assert list((run / "samples").iterdir())
    model = checkpoints.load(run)
    assert model.denoiser.network.images == 3
    assert model.conditioning.images == 3
    assert any("validation_loss" in json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    capsys.readouterr()
    assert main(["evaluate", str(run), "-n", "6", "--calls", "3", "--json"]) == 0
    assert main(["likelihood", str(run), "-n", "3", "--steps", "4", "--bound", "elbo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["condition"], found["given_labels"]) == ("arrays", False)
    other = save(tmp_path / "bare.npz", images=pictures()["images"])
    assert main(["evaluate", str(run), "--data", str(other), "-n", "3"]) == 2
    assert "bare.npz has no conditions, which the model needs" in capsys.readouterr().err


def test_the_condition_of_a_run_counts(tmp_path, capsys):
    """Of the same noise, samples of two conditions differ; those of held-out ones are what validation sees."""
    path, run = save(tmp_path / "d.npz", **vectors()), tmp_path / "run"
    network = ["--network", "MLP(width=8, depth=1)"]
    assert main(["train", str(path), *TINY, *network, "--learning-rate", "0.1", "--out", str(run)]) == 0
    model = checkpoints.load(run)
    low, high = (orn.sample(model, n=4, calls=3, cond=torch.full((4, 2), value)).x for value in (-2.0, 2.0))
    assert (low - high).abs().max() > 1e-3
    made = experiment.resume(run)
    x0, cond = made.feed.held_out(torch.arange(3))
    expected = model.conditioning.encode(made.dataset.test_cond[:3])
    assert torch.equal(cond, expected)
    assert torch.equal(x0, made.dataset.scaling.encode(made.dataset.test[:3]))
    rows, batch = made.data(), None
    batch = next(rows)
    # x is twice the first condition, so both standardise to one number (the held-out part has no say in either)
    torch.testing.assert_close(batch[0][:, 0], batch[1][:, 0], rtol=1e-4, atol=1e-4)
    mlp = save(tmp_path / "p.npz", **pictures())
    assert main(["train", str(mlp), *TINY, *network, "--out", str(tmp_path / "no")]) == 2
    assert "got images as conditions for MLP, which takes none; expected UNet or DiT" in capsys.readouterr().err
