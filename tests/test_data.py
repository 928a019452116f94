"""Data sets from names, arrays, folders and zips: what is read, how it is split, and that bad input is named."""

import hashlib

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from ornstein.config import DataOptions
from ornstein.data import class_index, load_dataset, require_labels
from ornstein.errors import ConfigurationError, DataError

RNG = np.random.default_rng(0)


def _images(n=20, shape=(6, 5)):
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def _whole(data):
    """All examples, sorted, to compare as a set."""
    rows = torch.cat([data.train, data.test]).flatten(1).tolist()
    return sorted(rows)


# Built in ---------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.datasets")
    data, truth = load_dataset("digits"), sklearn.load_digits()
    order = {
        image.astype(np.uint8).tobytes(): int(label) for image, label in zip(truth.images, truth.target, strict=True)
    }
    found = [
        (image.numpy().tobytes(), int(label))
        for images, labels in ((data.train, data.train_labels), (data.test, data.test_labels))
        for image, label in zip(images, labels, strict=True)
    ]
    assert sorted(found) == sorted(
        (i.astype(np.uint8).tobytes(), int(t)) for i, t in zip(truth.images, truth.target, strict=True)
    )
    # Rows keep their order within each part.
    positions = {key: i for i, key in enumerate(order)}
    ranks = [positions[key] for key, _ in found[: len(data.train)]]
    assert ranks == sorted(ranks)
    mean = (2.0 * data.train.numpy() / 16 - 1).std()
    assert data.scaling.sigma_data == pytest.approx(mean, rel=1e-12)


def test_digits_split_is_fixed_and_in_proportion():
    data, again, other = load_dataset("digits"), load_dataset("digits"), load_dataset("digits", seed=1)
    assert (len(data.train), len(data.test), data.scaling.levels) == (1438, 359, 17)
    assert torch.equal(data.test, again.test)
    assert not torch.equal(data.test, other.test)
    share = data.test_labels.bincount() / (data.test_labels.bincount() + data.train_labels.bincount())
    assert ((share - 0.2).abs() < 0.01).all()
    assert len(load_dataset("digits", holdout=0.5).test) == 898
    held = {x.numpy().tobytes() for x in data.test}
    assert not any(x.numpy().tobytes() in held for x in data.train)
    assert data.describe().startswith("digits: 1438 training + 359 held-out examples, 8 x 8 images of 17 levels, 10 cl")


def test_fingerprint_tells_data_apart(tmp_path):
    x = RNG.normal(size=(30, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:3])
    np.savez(tmp_path / "b.npz", x_train=x, x_test=x[:4])
    np.savez(tmp_path / "c.npz", x_train=x[::-1], x_test=x[:3])
    prints = [load_dataset(tmp_path / f"{name}.npz").fingerprint for name in "abc"]
    assert prints[0] == prints[1] != prints[2]
    assert prints[0] == hashlib.sha256(b"torch.float32 (30, 3);" + x.tobytes()).hexdigest()


def test_fingerprint_tells_what_codes_mean(tmp_path):
    """Renamed classes, columns and categories leave all numbers as they are, and are other data all the same."""

    def table(frame, **options):
        frame.to_csv(tmp_path / "a.csv", index=False)
        return load_dataset(tmp_path / "a.csv", options=DataOptions(**options))

    frame = pandas.DataFrame({"x": np.linspace(-1, 1, 20), "kind": list("ab") * 10, "made": list("uvuvv") * 4})
    renamed = frame.replace({"kind": {"a": "c", "b": "d"}})
    tables = [table(f) for f in (frame, renamed, frame.rename(columns={"x": "z"}))]
    for label, f in (("kind", frame), ("kind", renamed), ("sort", frame.rename(columns={"kind": "sort"}))):
        tables.append(table(f, label=label))
    assert tables[0].fingerprint == table(frame).fingerprint
    assert len({data.fingerprint for data in tables}) == 6
    for data in tables:
        assert torch.equal(data.train, tables[0 if data.train_labels is None else 3].train)
    names = []
    for classes in ("ab", "cd"):
        np.savez(tmp_path / "a.npz", images=np.arange(80, dtype=np.uint8).reshape(20, 2, 2), labels=list(classes) * 10)
        names.append(load_dataset(tmp_path / "a.npz"))
    assert torch.equal(names[0].train_labels, names[1].train_labels)
    assert names[0].fingerprint != names[1].fingerprint


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "shards"])
def test_tables_are_recognised(tmp_path, name):
    frame = pandas.DataFrame({"x": np.linspace(-1, 1, 20), "count": np.arange(20)})
    if "csv" in name:
        frame.to_csv(tmp_path / name, index=False)
    else:
        place = tmp_path / name if name == "a.parquet" else tmp_path / name / "0.parquet"
        place.parent.mkdir(exist_ok=True)
        frame.to_parquet(place)
    assert _whole(load_dataset(tmp_path / name)) == sorted(frame.to_numpy().tolist())


# Arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "dtype", "layout", "levels"),
    [
        (_images(), torch.uint8, "hw", 256),
        (_images(shape=(6, 5, 3)), torch.uint8, "hwc", 256),
        (_images(shape=(3, 6, 5)), torch.uint8, "chw", 256),
        (_images(shape=(8,)), torch.uint8, "plain", 256),
        (_images() > 99, torch.uint8, "hw", 2),
        (RNG.normal(size=(20, 3)).astype(np.float16), torch.float32, "plain", None),
        (RNG.normal(size=(20, 3, 6, 5)).astype(np.float32), torch.float32, "plain", None),
        (np.asfortranarray(RNG.normal(size=(20, 16, 5))), torch.float64, "lc", None),
        (RNG.normal(size=(20, 3)).astype(">f8"), torch.float64, "plain", None),
        (RNG.integers(-9, 99, (20, 3)), torch.float64, "plain", None),
        (RNG.integers(0, 999, (20, 3), dtype=np.uint16), torch.float32, "plain", None),
    ],
)
def test_npy(tmp_path, array, dtype, layout, levels):
    np.save(tmp_path / "a.npy", array)
    data = load_dataset(tmp_path / "a.npy")
    assert (data.train.dtype, data.scaling.layout, data.scaling.levels) == (dtype, layout, levels)
    assert (len(data.train), len(data.test), data.classes, data.train_labels) == (18, 2, (), None)
    assert _whole(data) == sorted(array.reshape(20, -1).astype(np.float64).tolist())
    torch.testing.assert_close(data.scaling.decode(data.scaling.encode(data.train)), data.train, rtol=1e-6, atol=1e-4)
    assert ("continuous" in data.describe()) == (array.dtype.kind in "ui" and array.dtype != np.uint8)


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
    ],
)
def test_npz_with_its_own_test_part(tmp_path, names):
    x, y = _images(24), np.arange(24, dtype=np.uint8) % 3
    np.savez(tmp_path / "a.npz", **dict(zip(names, (x[:16], y[:16], x[16:], y[16:]), strict=True)), extra=np.zeros(3))
    data = load_dataset(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.train, x[:16])
    np.testing.assert_array_equal(data.test, x[16:])
    np.testing.assert_array_equal(data.train_labels, y[:16])
    np.testing.assert_array_equal(data.test_labels, y[16:])
    assert data.train_labels.dtype == torch.int64
    assert "ignored the arrays extra" in data.describe()
    with pytest.raises(ConfigurationError, match="held-out data of its own"):
        load_dataset(tmp_path / "a.npz", holdout=0.1)


@pytest.mark.parametrize("names", [("images", "labels"), ("samples", "labels"), ("x", "y")])
@pytest.mark.parametrize(
    ("kind", "classes"),
    [
        (lambda i: 5 * (i % 3) + 1, ("1", "6", "11")),
        (lambda i: float(i % 2), ("0", "1")),
        (lambda i: ["dog", "cat"][i % 2], ("cat", "dog")),
        (lambda i: ["10", "9", "2"][i % 3], ("2", "9", "10")),
    ],
)
def test_npz_labels_follow_their_examples(tmp_path, names, kind, classes):
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    labels = np.array([kind(i) for i in range(20)])
    np.savez(tmp_path / "a.npz", **dict(zip(names, (x, labels), strict=True)))
    data = load_dataset(tmp_path / "a.npz")
    require_labels(data)
    assert data.classes == classes
    for part, numbers in ((data.train, data.train_labels), (data.test, data.test_labels)):
        for row, number in zip(part, numbers, strict=True):
            assert data.classes[number] == str(kind(int(row[0]) // 2)).removesuffix(".0")


def test_npz_with_a_single_array_of_any_name(tmp_path):
    np.savez(tmp_path / "a.npz", whatever=_images())
    assert load_dataset(str(tmp_path / "a.npz")).scaling.is_image


def test_class_index():
    assert class_index(("cat", "dog"), "dog") == 1
    assert class_index(("1", "6"), 6) == 1
    with pytest.raises(ConfigurationError, match="did you mean 'dog'"):
        class_index(("cat", "dog"), "dgo")
    with pytest.raises(ConfigurationError, match="without classes"):
        class_index((), 3)


def _nan(rows):
    x = RNG.normal(size=(20, 4)).astype(np.float32)
    x[rows, 1] = np.nan
    x[rows[-1], 2] = -np.inf
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": _nan([7, 12])}, r"a.npz \[x\]: 2 of 20 examples hold NaN or inf, the first is row 7 "),
        ({"x_train": _images(), "x_test": np.full((3, 6, 5), np.inf)}, r"\[x_test\]: 3 of 3 examples hold NaN or inf"),
        ({"foo": _images(), "bar": _images()}, "holds the arrays bar, foo; expected a single array, or train_images/"),
        ({"images": _images(), "labels": np.arange(19)}, r"labels of shape \(19,\) for 20 examples"),
        ({"images": _images(), "labels": np.zeros((20, 3))}, r"labels of shape \(20, 3\).*argmax"),
        ({"images": _images(), "labels": np.full(20, 0.5)}, "label 0.5 in row 0; expected class numbers"),
        ({"images": _images(), "labels": np.full(20, 1j)}, "labels of type complex128"),
        ({"x_train": _images(), "y_train": np.arange(20), "x_test": _images()}, "has labels and .* has none"),
        ({"x_train": _images(), "y_test": np.arange(20)}, "holds y_test but no examples.*add x_test"),
        ({"x_train": _images(), "x_test": _images(shape=(6, 6))}, "expected the same for both"),
        ({"x_train": _images(1), "x_test": _images()}, "1 training and 20 held-out examples; expected at least 2"),
        ({"x": _images(1)}, "1 examples, of which 1 would be held out"),
        ({"x": _images(0)}, "0 examples"),
        ({"x": np.arange(9.0)}, r"shape \(9,\); expected .*reshape\(-1, 1\)"),
        ({"x": np.zeros((9, 0))}, r"shape \(9, 0\)"),
        ({"x": np.zeros((9, 2), complex)}, "type complex128; expected numbers"),
        ({"x": np.array([["a", "b"]] * 9)}, "type <U1; expected numbers"),
        ({"x": RNG.normal(size=(20, 4)) * [1, 0, 1, 1]}, r"a.npz \[x\]: 1 of 4 columns are constant \(column 1"),
        ({"x": np.array([[1, None]] * 9)}, "unpickling"),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_numpy_files_are_named(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    x = RNG.normal(size=(200, 4))
    np.save(path, x) if suffix == ".npy" else np.savez_compressed(path, x=x)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    damaged = {"empty": b"", "text": b"1,2,3\n4,5,6\n", "short": whole[:-100], "head": whole[:40]}
    if suffix == ".npz":  # a .npy has no checksum
        damaged["flipped"] = bytes(flipped)
    for content in damaged.values():
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"a{suffix} cannot be read as a numpy file"):
            load_dataset(path)
    np.save(path.with_suffix(".npy"), np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(DataError, match="unpickling"):
        load_dataset(path.with_suffix(".npy"))


def test_unknown_names_and_kinds(tmp_path):
    with pytest.raises(
        DataError, match=r"no data called 'digitz'; did you mean 'digits'\?; expected digits, gaussians"
    ):
        load_dataset("digitz")
    with pytest.raises(DataError, match=r"mnist\.npz does not exist"):
        load_dataset(tmp_path / "mnist.npz")
    (tmp_path / "a.doc").write_text("hello")
    with pytest.raises(DataError, match=r"a\.doc is of no kind that can be read; expected digits"):
        load_dataset(tmp_path / "a.doc")
    Image.fromarray(_images(1)[0]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a single image; expected a folder"):
        load_dataset(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", _images())
    for source in ("digits", "rings", tmp_path / "a.npy"):
        with pytest.raises(ConfigurationError, match="cannot be streamed, as it is read as a whole"):
            load_dataset(source, options=DataOptions(stream="always"))
    for holdout in (0, 1, -0.5, float("nan")):
        with pytest.raises(ConfigurationError, match="between 0 and 1"):
            load_dataset("digits", holdout=holdout)
    with pytest.raises(DataError, match=r"rings has no labels, which a conditional model needs; .*of a table --label "):
        require_labels(load_dataset("rings"))
