"""Codes: integer arrays, images of levels, and what is no discrete data."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.config import DataOptions
from ornstein.data import (
    Codes,
    Scaling,
    TableScaling,
    Vocabulary,
    discrete,
    load_dataset,
    read_scaling,
    to_uint8_images,
)
from ornstein.data.kinds import Numeric
from ornstein.errors import ConfigurationError, DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 6, 5), dtype=np.uint8)
CODES = DataOptions(integers="codes")
TEXT = Codes((4,), "plain", 3, "uint8", Vocabulary("characters", "abc"))


def saved(folder, *array, name="a", **arrays):
    """The path of a .npy or .npz file."""
    path = folder / f"{name}.{'npy' if array else 'npz'}"
    if array:
        np.save(path, array[0])
    else:
        np.savez(path, **arrays)
    return path


# The map ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "shape", "raw", "move"),
    [
        ("hw", (1, 6, 5), (6, 5), lambda x: x[:, None]),
        ("hwc", (3, 6, 5), (6, 5, 3), lambda x: x.transpose(0, 3, 1, 2)),
        ("chw", (3, 6, 5), (3, 6, 5), lambda x: x),
        ("plain", (7,), (7,), lambda x: x),
        ("plain", (2, 3, 4), (2, 3, 4), lambda x: x),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64"])
def test_codes_are_the_raw_integers_with_channels_first(layout, shape, raw, move, dtype):
    codes = Codes(shape, layout, 11, dtype)
    x = RNG.integers(0, 11, (4, *raw)).astype(dtype)
    encoded = codes.encode(x)
    assert encoded.dtype == torch.int64
    assert np.array_equal(encoded, move(x))
    back = codes.decode(encoded)
    assert str(back.dtype) == f"torch.{dtype}"
    assert back.is_contiguous()
    assert np.array_equal(back, x)
    assert codes.raw_shape == raw
    assert codes.dims == np.prod(raw)
    assert codes.is_image == (layout != "plain")
    assert (codes.sigma_data, codes.log_det()) == (1.0, 0.0)
    assert read_scaling(json.loads(json.dumps(codes.to_dict()))) == codes


def test_the_first_value_outside_is_named_with_its_place():
    codes = Codes((2, 3), "plain", 5, "int64")
    x = torch.zeros(4, 2, 3, dtype=torch.int64)
    for value in (5, -1):
        wrong = x.clone()
        wrong[1, 1, 2], wrong[3, 0, 0] = value, 99
        with pytest.raises(DataError, match=rf"got the raw value {value} at \[1, 1, 2\] .*expected 0 to 4"):
            codes.encode(wrong)
        with pytest.raises(DataError, match=rf"got the code {value} at \[1, 1, 2\]"):
            codes.decode(wrong)
    bytes_of_all = Codes((3,), "plain", 256, "uint8")
    assert bytes_of_all.encode(torch.tensor([[0, 255, 7]], dtype=torch.uint8)).tolist() == [[0, 255, 7]]
    with pytest.raises(DataError, match=r"got the code 256 at \[0, 1\]"):  # a mask that is left
        bytes_of_all.decode(torch.tensor([[0, 256, 7]]))
    for bad, said in (
        (x[:, :1], r"shape \(4, 1, 3\), expected \(n, 2, 3\)"),
        (x.double(), "float64, expected the integ"),
    ):
        with pytest.raises(DataError, match=said):
            codes.encode(bad)
    for bad in (x[:, :1], x.double()):
        with pytest.raises(DataError, match=r"expected integers \(n, 2, 3\)"):
            codes.decode(bad)


def test_texts_of_rows():
    assert TEXT.text(torch.tensor([[0, 1, 2, 0], [2, 2, 2, 2]])) == ["abca", "cccc"]
    with pytest.raises(DataError, match=r"without a vocabulary, expected those of a text"):
        Codes((4,), "plain", 3, "uint8").text(torch.zeros(1, 4, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layout": "lc"}, "layout 'lc'"),
        ({"dtype": "float32"}, "float32"),
        ({"levels": 1}, "got levels=1 for uint8 codes, expected 2 to 256"),
        ({"levels": 257, "vocabulary": None}, "levels=257"),
        ({"layout": "hw"}, r"\(channels, height, width\)"),
        ({"levels": 4}, "a vocabulary of 3 for 4 codes"),
        ({"shape": (2, 2)}, r"shape \(2, 2\)"),
    ],
)
def test_fields_that_do_not_go_together(changes, said):
    with pytest.raises(ConfigurationError, match=said):
        replace(TEXT, **changes)


def test_json_that_is_not_of_codes():
    assert read_scaling(TEXT.to_dict()) == TEXT
    scaling = load_dataset("digits").scaling
    assert read_scaling(scaling.to_dict()) == scaling
    with pytest.raises(ConfigurationError, match=r"got codes with the fields .*expected"):
        read_scaling({"kind": "codes", "shape": [3]})


def test_codes_that_mean_the_same():
    TEXT.require_same(replace(TEXT))
    other = replace(TEXT, vocabulary=Vocabulary("characters", "abd"))
    with pytest.raises(
        DataError, match=r"got a vocabulary of 3 characters 'abd', expected a vocabulary of 3 characters 'abc'"
    ):
        TEXT.require_same(other)
    with pytest.raises(DataError, match=r"got codes without a vocabulary, expected a vocabulary of 3"):
        TEXT.require_same(replace(TEXT, vocabulary=None))
    with pytest.raises(DataError, match=r"\(5,\), .*expected \(\(4,\)"):
        TEXT.require_same(replace(TEXT, shape=(5,)))
    with pytest.raises(DataError, match="expected codes 0 to 2"):
        TEXT.require_same(load_dataset("digits").scaling)
    array = replace(TEXT, vocabulary=None)
    array.require_same(replace(array, levels=2))  # an array that lacks the largest code
    with pytest.raises(DataError):
        array.require_same(replace(array, levels=4))
    image = Codes((1, 6, 5), "hw", 16, "uint8")
    with pytest.raises(DataError):  # 8 levels are other greys
        image.require_same(replace(image, levels=8))


# Integer arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("int8", "int32"),
        ("uint8", "uint8"),
        ("uint16", "int32"),
        (">i4", "int32"),
        ("int64", "int64"),
        ("uint64", "int64"),
    ],
)
def test_integers_as_codes(tmp_path, kind, dtype):
    x = RNG.integers(0, 12, (30, 7))
    x[3, 2] = 12
    data = load_dataset(saved(tmp_path, x.astype(kind)), options=CODES)
    assert data.scaling == Codes((7,), "plain", 13, dtype)
    assert str(data.train.dtype) == f"torch.{dtype}"
    rows = torch.cat([data.train, data.test]).tolist()
    assert sorted(rows) == sorted(x.tolist())
    assert data.describe() == "a.npy: 27 training + 3 held-out examples, 7 codes of 13 levels, no classes"
    assert discrete(data) is data
    assert load_dataset(tmp_path / "a.npy").scaling.levels in (None, 256)  # numbers, unless told


def test_integers_of_more_axes_and_with_labels(tmp_path):
    x, y = RNG.integers(0, 4, (30, 3, 5)), np.arange(30) % 2
    data = load_dataset(saved(tmp_path, x=x, y=y), options=CODES)
    assert data.scaling.shape == data.scaling.raw_shape == (3, 5)
    assert data.classes == ("0", "1")
    for example, label in zip(data.train, data.train_labels, strict=True):
        assert any(np.array_equal(example, row) and label == at for row, at in zip(x, y, strict=True))


def test_the_split_of_one_array_never_fails_on_a_rare_code(tmp_path):
    x = np.zeros((30, 2), dtype=np.int64)
    x[:, 1] = np.arange(30)  # each largest code once, so some seed holds it out
    for seed in range(12):
        assert load_dataset(saved(tmp_path, x), options=CODES, seed=seed).scaling.levels == 30


def test_images_and_booleans_stay_what_they_are(tmp_path):
    for x, levels, layout in ((PIXELS, 256, "hw"), (PIXELS > 99, 2, "hw"), (PIXELS.reshape(40, 30) > 99, 2, "plain")):
        data = load_dataset(saved(tmp_path, x), options=CODES)
        assert isinstance(data.scaling, Scaling)
        coded = discrete(data)
        assert coded.scaling == Codes(data.scaling.shape, layout, levels, "uint8")
        assert coded.fingerprint == data.fingerprint
        assert coded.train is data.train


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.array([[0, 1], [2, -3]] * 9)}, r"a.npz \[x\]: got the value -3 at \[1, 1\] .*expected codes 0 to"),
        ({"x_train": np.eye(9, dtype=int), "x_test": np.full((2, 9), 2)},
         r"\[x_test\]: got the value 2 at \[0, 0\] .*expected codes 0 to 1 \(the largest of .*\[x_train\]\)"),
        ({"x_train": np.eye(9, dtype=int), "x_test": -np.eye(9, dtype=int)}, r"\[x_test\]: got the value -1 at \[0, 0\]"),
        ({"x_train": np.eye(9, dtype=int), "x_test": np.eye(9)}, r"\[x_test\]: got values of type float64"),
        ({"x": np.eye(9)}, "got values of type float64, expected integers"),
        ({"x": np.zeros((9, 2), dtype=int)}, "codes that are all 0"),
        ({"x": np.full((9, 2), 2**63, dtype=np.uint64)}, "got the value 9223372036854775808"),
        ({"x": np.arange(9)}, r"array of shape \(9,\)"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_codes(tmp_path, arrays, said):
    with pytest.raises(DataError, match=said):
        load_dataset(saved(tmp_path, **arrays), options=CODES)


# Levels -----------------------------------------------------------------------------------------------------------


def whole(data):
    """All images of a data set, in no order."""
    parts = [x[torch.arange(len(x))].reshape(len(x), -1).tolist() for x in (data.train, data.test)]
    return sorted(parts[0] + parts[1])


@pytest.mark.parametrize("levels", [2, 3, 16, 100, 255])
def test_levels_of_arrays(tmp_path, levels):
    path = saved(tmp_path, x=PIXELS, y=np.arange(40) % 2)
    data = load_dataset(path, options=DataOptions(levels=levels))
    wanted = (PIXELS.astype(int) * levels // 256).reshape(40, -1)
    assert whole(data) == sorted(wanted.tolist())
    assert data.scaling.levels == levels
    assert (data.scaling.layout, data.classes, len(data.test)) == ("hw", ("0", "1"), 4)
    x0 = data.scaling.encode(data.train).double()
    assert float(x0.std(correction=0)) == pytest.approx(data.scaling.sigma_data, rel=1e-5)
    assert float(x0.mean()) == pytest.approx(0, abs=1e-6)
    assert torch.equal(data.scaling.decode(x0), data.train)
    assert f"images of {levels} levels" in data.describe()
    assert discrete(data).scaling == Codes((1, 6, 5), "hw", levels, "uint8")
    # Pictures span black to white again, by the nearest of 256 greys.
    for scaling in (data.scaling, discrete(data).scaling):
        shown = to_uint8_images(scaling, data.test).numpy()
        assert np.array_equal(shown, np.round(data.test.numpy() * 255.0 / (levels - 1)).astype(np.uint8))


def test_levels_of_the_other_sources(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(PIXELS):
        Image.fromarray(image).save(folder / f"{i}.png")
    wanted = sorted((PIXELS.astype(int) // 16).reshape(40, -1).tolist())
    options = DataOptions(levels=16)
    memory = load_dataset(folder, options=options)
    stream = load_dataset(folder, options=replace(options, stream="always"))
    assert whole(memory) == whole(stream) == wanted
    assert not isinstance(stream.train, torch.Tensor)
    assert stream.train.shape == memory.train.shape
    assert stream.scaling == memory.scaling
    rows = torch.tensor([5, 0])
    assert torch.equal(stream.train.take(rows)[torch.tensor([1])], memory.train[:1])
    finer = load_dataset(folder, options=replace(options, stream="always", levels=17))
    plain = load_dataset(folder, options=replace(options, stream="always", levels=None))
    assert len({data.fingerprint for data in (memory, stream, finer, plain)}) == 4
    digits, coarse = load_dataset("digits"), load_dataset("digits", options=DataOptions(levels=4))
    assert torch.equal(coarse.train, digits.train.int() * 4 // 17)  # of the 17 levels that they have
    same = load_dataset(folder, options=DataOptions(levels=256))
    assert torch.equal(same.train, load_dataset(folder).train)


def test_levels_that_cannot_be(tmp_path):
    path = saved(tmp_path, PIXELS)
    for levels in (-1, 0, 1, 257):
        with pytest.raises(ConfigurationError, match=f"got levels={levels}, expected 2 to 256"):
            load_dataset(path, options=DataOptions(levels=levels))
    with pytest.raises(ConfigurationError, match="got levels=18, expected at most 17, which its images have"):
        load_dataset("digits", options=DataOptions(levels=18))
    with pytest.raises(DataError, match=r"in 2 levels: all training values are 0; .*try more levels"):
        load_dataset(saved(tmp_path, PIXELS // 2), options=DataOptions(levels=2))
    for data in (RNG.normal(size=(20, 3)), PIXELS.reshape(40, 30)):
        with pytest.raises(ConfigurationError, match=r"got levels=4 for .* data, expected images: leave out --levels"):
            load_dataset(saved(tmp_path, data), options=DataOptions(levels=4))


# What is discrete -------------------------------------------------------------------------------------------------


def test_what_is_continuous_is_refused_with_a_way_out(tmp_path):
    floats = load_dataset(saved(tmp_path, RNG.normal(size=(20, 3))))
    with pytest.raises(
        DataError, match=r"a.npy: got float64 values of shape \(3,\), expected text, .*--levels.*--integers codes"
    ):
        discrete(floats)
    table = replace(floats, scaling=TableScaling((Numeric("x", "float64", 0.0, 1.0, False, 0.0, 1.0),), 1.0))
    with pytest.raises(DataError, match=r"got a table of columns.*--process gaussian"):
        discrete(table)
    with pytest.raises(ConfigurationError, match=r"digits: got --integers codes, expected a .npy or .npz"):
        load_dataset("digits", options=CODES)
