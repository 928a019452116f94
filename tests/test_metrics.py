"""Metrics against scipy, scikit-learn, closed forms and small cases worked by hand."""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein.data import Scaling
from ornstein.errors import CheckpointError, ConfigurationError, DataError
from ornstein.metrics import (
    FeatureNet,
    LeNet,
    Report,
    energy_distance,
    evaluate,
    frechet_distance,
    load_features,
    nearest_distances,
    precision_recall,
    save_features,
    sliced_wasserstein,
)
from ornstein.metrics import distances as module
from ornstein.metrics.features import SHIPPED

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist.npz"
needs_mnist = pytest.mark.skipif(not MNIST.exists(), reason=f"{MNIST} is not there")


def normal(*shape: int, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(*shape, generator=generator, dtype=torch.float64)


@cache
def mnist() -> dict[str, torch.Tensor]:
    """MNIST in random order: in its own order the writers change along the file."""
    with np.load(MNIST) as arrays:
        found = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    order = {n: torch.randperm(n, generator=torch.Generator().manual_seed(0)) for n in map(len, found.values())}
    return {name: array[order[len(array)]] for name, array in found.items()}


# --- Frechet distance -------------------------------------------------------------------------------------------------


def with_moments(mean: torch.Tensor, covariance: torch.Tensor, n: int) -> torch.Tensor:
    """Points whose sample mean and covariance (divisor n - 1) are exactly the given ones."""
    x = normal(n, len(mean), seed=3)
    x = x - x.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T)))
    return mean + x @ whiten.T @ torch.linalg.cholesky(covariance).T


def test_frechet_distance_is_scipys_matrix_root_formula():
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    x = normal(400, 6) @ normal(6, 6, seed=1)
    y = normal(300, 6, seed=2) @ normal(6, 6, seed=4) + 0.7
    cov_x, cov_y = np.cov(x.numpy().T), np.cov(y.numpy().T)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    expected = gap + np.trace(cov_x + cov_y - 2 * sqrtm(cov_x @ cov_y).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_diagonal_normals_in_closed_form():
    mean_x, mean_y = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    std_x, std_y = torch.tensor([1.0, 3.0, 0.2]).double(), torch.tensor([2.0, 0.5, 0.2]).double()
    x = with_moments(mean_x, torch.diag(std_x**2), 50)
    y = with_moments(mean_y, torch.diag(std_y**2), 80)
    expected = ((mean_x - mean_y) ** 2 + (std_x - std_y) ** 2).sum().item()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_with_singular_covariances():
    # 10 points in 40 dimensions, and the same points moved: equal covariances of rank 9, so only the means count.
    x = normal(10, 40)
    shift = torch.linspace(-1, 1, 40, dtype=torch.float64)
    assert frechet_distance(x, x + shift) == pytest.approx((shift**2).sum().item(), rel=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


# --- precision, recall, density, coverage -----------------------------------------------------------------------------


def test_precision_recall_of_a_case_worked_by_hand():
    # k = 1. Real 0, 1, 3, 10: reach 1, 1, 2, 7, so balls [-1, 1], [0, 2], [1, 5], [3, 17].
    # Samples 0.5, 4, 30, 31.5: reach 3.5, 3.5, 1.5, 1.5, so balls [-3, 4], [0.5, 7.5], [28.5, 31.5], [30, 33].
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    samples = torch.tensor([[0.5], [4.0], [30.0], [31.5]])
    got = precision_recall(samples, real, k=1)
    assert got.precision == 2 / 4  # 0.5 and 4 lie in real balls
    assert got.recall == 3 / 4  # 0, 1, 3 lie in sample balls; 10 in none
    assert got.density == (2 + 2 + 0 + 0) / 4  # 0.5 lies in the first two balls, 4 in the last two
    assert got.coverage == 4 / 4  # every real ball holds 0.5 or 4
    # k = 2: real balls [-3, 3], [-1, 3], [0, 6], [1, 19]; 0.5 lies in the first three, 4 in the last two.
    assert precision_recall(samples, real, k=2).density == (3 + 2 + 0 + 0) / 2 / 4


def test_precision_and_recall_tell_lost_modes_from_bad_samples():
    both = torch.cat([normal(200, 2), normal(200, 2, seed=1, mean=50)])
    one_mode = precision_recall(normal(200, 2, seed=2), both)
    assert one_mode.precision > 0.9
    assert one_mode.recall < 0.52
    assert one_mode.coverage < 0.52
    half_bad = precision_recall(torch.cat([normal(200, 2, seed=2), normal(200, 2, seed=3, mean=-80)]), normal(200, 2))
    assert half_bad.precision < 0.52
    assert half_bad.recall > 0.9


def test_precision_recall_in_blocks_is_the_same(monkeypatch):
    samples, real = normal(57, 3, mean=0.5), normal(83, 3, seed=1)
    whole = precision_recall(samples, real)
    monkeypatch.setattr(module, "BLOCK", 200)
    assert precision_recall(samples, real) == whole


# --- sliced Wasserstein -----------------------------------------------------------------------------------------------


def test_sliced_wasserstein_in_one_dimension_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    x, y = normal(70, 1), normal(45, 1, seed=1, mean=0.4, std=2)
    expected = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, order=1) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_order_2_is_the_best_matching():
    # Each point of either set repeated so that both have 12: then W_2 is an assignment, which scipy solves.
    assign = pytest.importorskip("scipy.optimize").linear_sum_assignment
    x, y = normal(4, 1), normal(6, 1, seed=1, mean=1)
    cost = (x.repeat(3, 1) - y.repeat(2, 1).T).numpy() ** 2
    expected = math.sqrt(cost[assign(cost)].mean())
    assert sliced_wasserstein(x, y) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_isotropic_normals_in_closed_form():
    # Along any direction u: W_2^2 = (u . shift)^2 + (std_x - std_y)^2, and the mean of (u . shift)^2 is |shift|^2 / d.
    x, y = normal(5000, 5), normal(5000, 5, seed=1, std=1.6)
    shift = torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0]).double()
    expected = math.sqrt((shift**2).sum().item() / 5 + 0.6**2)
    assert sliced_wasserstein(x, y + shift, projections=300) == pytest.approx(expected, rel=0.04)
    assert sliced_wasserstein(x, y, projections=50) == pytest.approx(0.6, rel=0.04)


def test_sliced_wasserstein_is_a_function_of_the_seed():
    x, y = normal(50, 4), normal(60, 4, seed=1, std=2)
    assert sliced_wasserstein(x, y, projections=5, seed=7) == sliced_wasserstein(x, y, projections=5, seed=7)
    assert sliced_wasserstein(x, y, projections=5, seed=7) != sliced_wasserstein(x, y, projections=5, seed=8)


# --- energy distance --------------------------------------------------------------------------------------------------


def test_energy_distance_in_one_dimension_is_scipys_squared():
    stats = pytest.importorskip("scipy.stats")
    x, y = normal(70, 1), normal(45, 1, seed=1, mean=0.4, std=2)
    expected = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("width", [9, 200])
def test_energy_distance_is_the_sum_over_all_pairs(width, monkeypatch):
    spatial = pytest.importorskip("scipy.spatial")
    monkeypatch.setattr(module, "BLOCK", 100)
    x, y = normal(31, width, mean=1000), normal(23, width, seed=1, mean=1000.3)
    cross, own_x, own_y = (spatial.distance.cdist(a, b).mean() for a, b in ((x, y), (x, x), (y, y)))
    tolerance = {9: 1e-10, 200: 1e-4}[width]  # float32 beyond 128 numbers
    assert energy_distance(x, y) == pytest.approx(2 * cross - own_x - own_y, rel=tolerance)
    assert energy_distance(x, x) == pytest.approx(0, abs={9: 1e-8, 200: 1e-3}[width])  # of about 4 and 20


# --- nearest distances ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (3, 5, 4), (300,)])
def test_nearest_distances_are_scikit_learns(shape, monkeypatch):
    neighbors = pytest.importorskip("sklearn.neighbors")
    monkeypatch.setattr(module, "BLOCK", 500)
    x, reference = normal(40, *shape, mean=100).float(), normal(150, *shape, seed=1, mean=100).float()
    search = neighbors.NearestNeighbors(n_neighbors=1, algorithm="brute").fit(reference.double().flatten(1).numpy())
    expected = search.kneighbors(x.double().flatten(1).numpy())[0][:, 0]
    np.testing.assert_allclose(nearest_distances(x, reference).numpy(), expected, rtol=1e-6)


def test_nearest_distance_of_copies_is_exactly_zero():
    reference = normal(500, 784, mean=1000).float()
    assert (nearest_distances(reference[[3, 400]], reference) == 0).all()


# --- the classifier ---------------------------------------------------------------------------------------------------


@needs_mnist
def test_shipped_classifier_reads_mnist():
    net = load_features()
    images = mnist()["test_images"][:, None] / 255
    logits = net.network.out(net(images))
    share = (logits.argmax(1) == mnist()["test_labels"]).double().mean().item()
    assert share >= 0.985
    assert share == pytest.approx(net.about["accuracy"], abs=2e-4)  # what the file's header says
    assert SHIPPED.stat().st_size < 2_000_000


def test_shipped_classifier_says_what_it_is():
    net = load_features()
    assert (net.network.channels, net.network.height, net.network.width, net.network.classes) == (1, 28, 28, 10)
    assert net.about["data"] == "mnist.npz"
    assert net.about["epochs"] == 3
    assert "mnist" in str(net)
    assert net.sha256[:12] in str(net)
    features = net(torch.rand(3, 1, 28, 28))
    assert features.shape == (3, 128)
    assert (features >= 0).all()  # after the ReLU


def test_classifier_file_of_any_size_and_channels_round_trips(tmp_path):
    network = LeNet(channels=3, height=9, width=14, classes=4)
    save_features(network, tmp_path / "a.safetensors", {"data": "own", "seed": 5})
    save_features(network, tmp_path / "b.safetensors", {"seed": 5, "data": "own"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    images = torch.rand(5, 3, 9, 14)
    state = torch.get_rng_state()
    net = load_features(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(net(images), network.features(images))
    assert net.about["seed"] == 5


def test_classifier_resizes_images_as_pillow_enlarges_them():
    image = pytest.importorskip("PIL.Image")
    small = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    large = image.fromarray(small[0, 0].numpy()).resize((28, 28), image.Resampling.BILINEAR)
    net = load_features()
    torch.testing.assert_close(net(small), net(torch.from_numpy(np.array(large))[None, None]), rtol=1e-4, atol=1e-4)


def test_classifier_files_that_cannot_be_read(tmp_path):
    raw = SHIPPED.read_bytes()
    cut, other, text = (tmp_path / name for name in ("cut.safetensors", "other.safetensors", "text"))
    cut.write_bytes(raw[:-1000])
    other.write_bytes(raw.replace(b'\\"height\\": 28', b'\\"height\\": 32'))
    text.write_text("not a classifier")
    with pytest.raises(CheckpointError, match=r"missing.*train_classifier\.py"):
        load_features(tmp_path / "missing")
    for path in (cut, text):
        with pytest.raises(CheckpointError, match=f"{path.name} is not a classifier"):
            load_features(path)
    with pytest.raises(CheckpointError, match=r"dense\.weight do not fit .*got \(128, 3136\), expected \(128, 3584\)"):
        load_features(other)


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_real_against_real_is_the_known_bias_of_the_energy_distance():
    # For independent sets of n, the mean of the V-statistic is 2 E|X - X'| / n; for normals of d dimensions
    # E|X - X'| = 2 Gamma((d + 1) / 2) / Gamma(d / 2). The held-out examples are shared by the splits.
    n, d = 400, 3
    report = evaluate(normal(n, d), normal(4 * n, d, seed=1), normal(20 * n, d, seed=2), splits=20)
    energy = report["energy_distance"]
    mean_distance = 2 * math.gamma((d + 1) / 2) / math.gamma(d / 2)
    assert energy.reference == pytest.approx(2 * mean_distance / n, rel=0.15)
    assert (energy.n, energy.against) == (n, n)
    assert energy.ratio == energy.value / energy.reference
    assert {measure.name for measure in report.measures} == {
        "energy_distance",
        "sliced_wasserstein",
        "correlation_error",
        "nearest_training",
    }
    assert all(measure.ratio == pytest.approx(1, abs=0.3) for measure in report.measures)


def test_evaluate_shows_a_shift_and_memorising():
    test, train = normal(300, 4, seed=1), normal(1200, 4, seed=2)
    shifted = evaluate(normal(300, 4, mean=0.5), test, train)
    assert shifted["energy_distance"].ratio > 5
    assert shifted["sliced_wasserstein"].ratio > 2
    copies = evaluate(train[100:400], test, train)
    assert copies["nearest_training"].value == 0
    assert copies["nearest_training"].ratio == 0
    assert copies["energy_distance"].ratio == pytest.approx(1, abs=0.3)


def test_evaluate_measures_in_model_units():
    x, test, train = (normal(200, 2, seed=seed).float() for seed in range(3))
    units = torch.tensor([1000.0, 0.01])  # metres and, say, radians: neither may drown the other
    report = evaluate(x * units, test * units, train * units, scaling=Scaling.measure(train * units))
    plain = evaluate(x, test, train, scaling=Scaling.measure(train))
    for a, b in zip(report.measures, plain.measures, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-4)
    assert "standardised" in report.unit


@cache
def mnist_report() -> Report:
    data = mnist()
    samples = data["train_images"][-500:]
    return evaluate(
        samples, data["test_images"][:1000], data["train_images"][:2500], scaling=Scaling.measure(samples), seed=3
    )


@needs_mnist
def test_evaluate_of_real_mnist_images():
    report = mnist_report()
    frechet = report["frechet_distance"]
    assert (frechet.n, frechet.against) == (500, 1000)
    assert frechet.ratio == pytest.approx(1, abs=0.4)
    assert frechet.reference_std > 0
    # The value again by hand: what the classifier sees is raw / 255, whatever the scaling.
    images, test = (mnist()[name][:, None] / 255 for name in ("train_images", "test_images"))
    net = load_features()
    by_hand = frechet_distance(net(images[-500:]), net(test[:1000]))
    assert frechet.value == pytest.approx(by_hand, rel=1e-4)
    for name in ("precision", "recall", "coverage", "density", "energy_distance", "nearest_training"):
        assert report[name].ratio == pytest.approx(1, abs=0.15)
    assert (report["precision"].n, report["precision"].against) == (500, 500)


@needs_mnist
def test_evaluate_is_a_function_of_the_seed():
    data = mnist()
    arguments = data["train_images"][-200:], data["test_images"][:100], data["train_images"][:400]
    scaling = Scaling.measure(arguments[2])
    one, same, other = (evaluate(*arguments, scaling=scaling, seed=seed, splits=2) for seed in (1, 1, 2))
    assert one == same
    assert one["energy_distance"] != other["energy_distance"]


@needs_mnist
def test_evaluate_gives_a_table_and_json():
    report = mnist_report()
    loaded = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert loaded["measures"]["frechet_distance"]["value"] == report["frechet_distance"].value
    assert (loaded["samples"], loaded["held_out"], loaded["training"], loaded["seed"]) == (500, 1000, 2500, 3)
    table = str(report)
    assert f"{report['frechet_distance'].value:.4g}" in table
    for said in ("frechet distance", "mnist_lenet.safetensors", "10 splits", "seed 3", "black to white is 2"):
        assert said in table


def image_sets(*shape: int, n: int = 30) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8) for _ in range(3)]


def test_evaluate_notes_what_limits_the_figures():
    sets = image_sets(8, 8)
    report = evaluate(*sets, scaling=Scaling.measure(sets[2]), splits=2)
    notes = " ".join(report.notes)
    assert "resized from (8, 8) to (28, 28)" in notes
    assert "singular" in notes
    # As many training examples as samples: the reference is one figure, known exactly.
    net = load_features()
    _, test, train = (net(images[:, None] / 255) for images in sets)
    assert report["frechet_distance"].n == 30
    assert report["frechet_distance"].reference == pytest.approx(frechet_distance(train, test), rel=1e-4)
    assert report["recall"].reference == precision_recall(train, test).recall


def test_evaluate_of_colour_images_needs_a_classifier_of_their_own(tmp_path):
    sets = image_sets(9, 14, 3)
    scaling = Scaling.measure(sets[2])
    report = evaluate(*sets, scaling=scaling, splits=2)
    assert report.features is None
    assert "train_classifier.py" in report.notes[0]
    with pytest.raises(KeyError):
        report["frechet_distance"]
    with pytest.raises(ConfigurationError, match=r"reads images of 1 channel.*got shape \(30, 3, 9, 14\).*train one"):
        evaluate(*sets, scaling=scaling, features=load_features())
    own = FeatureNet(LeNet(channels=3, height=9, width=14, classes=4), "own", "")
    assert evaluate(*sets, scaling=scaling, features=own, splits=2)["frechet_distance"].value > 0


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("figure", [frechet_distance, precision_recall, sliced_wasserstein, energy_distance])
def test_distances_refuse_bad_input(figure):
    good = normal(20, 3)
    bad = good.clone()
    bad[7, 1] = math.nan
    with pytest.raises(DataError, match=r"\(3,\) with examples of shape \(2,\)"):
        figure(good, normal(20, 2))
    with pytest.raises(DataError, match="NaN or infinite values, first in row 7"):
        figure(good, bad)
    with pytest.raises(DataError, match="has 0 examples; expected at least"):
        figure(good, good[:0])


def test_evaluate_refuses_bad_input():
    x, test, train = normal(20, 3), normal(20, 3, seed=1), normal(20, 3, seed=2)
    bad = x.clone()
    bad[4, 2] = math.inf
    with pytest.raises(DataError, match=r"samples \(2,\), held-out data \(3,\), training data \(3,\)"):
        evaluate(x[:, :2], test, train)
    with pytest.raises(DataError, match="samples has NaN or infinite values, first in row 4"):
        evaluate(bad, test, train)
    with pytest.raises(DataError, match="samples has 5 examples; expected at least 6"):
        evaluate(x[:5], test, train)
    with pytest.raises(ConfigurationError, match="splits=0"):
        evaluate(x, test, train, splits=0)
    with pytest.raises(ConfigurationError, match="compares images"):
        evaluate(x, test, train, features=load_features())
