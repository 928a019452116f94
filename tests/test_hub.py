"""hf: data through `datasets`: small data sets on disk in the forms that the Hub takes, read by the real loader."""

import sys

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from ornstein.config import DataOptions
from ornstein.data import load_dataset
from ornstein.data.streaming import batches
from ornstein.errors import ConfigurationError, DataError
from test_pictures import _encoded, _pixels, _write

PIXELS = _pixels(24, 6, 5, 3)
KINDS = ["dog", "cat", "eel"]
ALWAYS = DataOptions(stream="always")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Data are kept within the test's own folder, and nothing is asked of the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def _cells(pixels):
    return [{"bytes": p if isinstance(p, bytes) else _encoded(p), "path": None} for p in pixels]


def _save(folder, features, **splits):
    """A data set as Parquet files, one for each split."""
    folder.mkdir(parents=True)
    for name, columns in splits.items():
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(
            str(folder / f"{name}-00000-of-00001.parquet")
        )
    return f"hf:{folder}"


def _pictures(folder, labels=("label",), images=("image",), **splits):
    features = {column: datasets.Image() for column in images}
    features |= {column: datasets.ClassLabel(names=KINDS) for column in labels}
    for name, rows in splits.items():
        columns = {column: _cells([PIXELS[k] for k in rows]) for column in images}
        splits[name] = columns | {column: [k % 3 for k in rows] for column in labels}
    return _save(folder, features, **splits)


@pytest.mark.parametrize("options", [DataOptions(), ALWAYS])
@pytest.mark.parametrize("held", ["test", "validation"])
def test_images_with_classes_and_splits(tmp_path, options, held):
    source = _pictures(tmp_path / "shapes", train=range(16), **{held: range(16, 24)})
    data = load_dataset(source, options=options)
    every = {"train": torch.arange(16), "test": torch.arange(8)}
    np.testing.assert_array_equal(data.train[every["train"]], np.stack(PIXELS[:16]))
    np.testing.assert_array_equal(data.test[every["test"]], np.stack(PIXELS[16:]))
    assert [data.classes[k] for k in data.train_labels] == [KINDS[k % 3] for k in range(16)]
    assert [data.classes[k] for k in data.test_labels] == [KINDS[k % 3] for k in range(16, 24)]
    assert data.classes == ("cat", "dog", "eel")
    assert data.name == "shapes"
    assert isinstance(data.train, torch.Tensor) == (options is not ALWAYS)
    with pytest.raises(ConfigurationError, match="held-out data of its own"):
        load_dataset(source, holdout=0.1)


def test_streams_are_read_by_processes_and_have_a_fingerprint(tmp_path):
    source = _pictures(tmp_path / "shapes", train=range(24))
    memory, stream = load_dataset(source), load_dataset(source, options=ALWAYS)
    plan = list(torch.randperm(len(memory.train), generator=torch.Generator().manual_seed(2)).split(5))
    for (rows, x, bad), expected in zip(batches(stream.train, iter(plan), 2), plan, strict=True):
        assert torch.equal(rows, expected)
        assert torch.equal(x, memory.train[expected])
        assert bad == 0
    assert stream.fingerprint == load_dataset(source, options=ALWAYS).fingerprint
    PIXELS[0], PIXELS[1] = PIXELS[1], PIXELS[0]
    swapped = _pictures(tmp_path / "swapped", train=range(24))
    PIXELS[0], PIXELS[1] = PIXELS[1], PIXELS[0]
    assert stream.fingerprint != load_dataset(swapped, options=ALWAYS).fingerprint
    again = _pictures(tmp_path / "again", train=range(24))
    assert stream.fingerprint == load_dataset(again, options=ALWAYS).fingerprint


@pytest.mark.parametrize("stream", ["always", "never"])
def test_bad_rows(tmp_path, stream):
    images = [_encoded(p) for p in PIXELS[:12]]
    images[4], images[7] = images[4][:-30], b"x"
    cells = _cells(images)
    cells[9] = None
    source = _save(tmp_path / "a", {"image": datasets.Image()}, train={"image": cells}, test={"image": cells[2:6]})
    with pytest.raises(DataError, match=r"a \[train\] row 4 cannot be read .*--skip-bad"):
        load_dataset(source, options=DataOptions(stream=stream))
    data = load_dataset(source, options=DataOptions(stream=stream, skip_bad=True))
    if stream == "never":
        np.testing.assert_array_equal(data.train, np.stack([PIXELS[k] for k in range(12) if k not in (4, 7, 9)]))
        assert data.skipped == 3 + 1
    else:
        x, bad = data.train.read(torch.arange(12))
        np.testing.assert_array_equal(x, np.stack([PIXELS[{4: 5, 7: 8, 9: 10}.get(k, k)] for k in range(12)]))
        assert bad == 3
        assert len(data.fingerprint) == 64


def test_a_folder_of_image_files(tmp_path):
    files = {f"{'train' if k < 16 else 'test'}/{KINDS[k % 3]}/{k:02d}.png": _encoded(PIXELS[k]) for k in range(24)}
    own, through = (
        load_dataset(f"{prefix}{_write(tmp_path / 'folder', files)}", options=ALWAYS) for prefix in ("", "hf:")
    )
    assert torch.equal(own.train[torch.arange(16)], through.train[torch.arange(16)])
    assert torch.equal(own.train_labels, through.train_labels)
    assert own.classes == through.classes
    file, zeros, whole = tmp_path / "folder/train/cat/01.png", bytes(5000), files["train/cat/01.png"]
    for prefix, before in (("", own.fingerprint), ("hf:", through.fingerprint)):
        found = {before}
        # Other pixels; and bytes after the end, beyond those that are looked into.
        for content in (_encoded(PIXELS[1] ^ np.uint8(1)), whole + zeros, whole + zeros * 2):
            file.write_bytes(content)
            found.add(load_dataset(f"{prefix}{tmp_path / 'folder'}", options=ALWAYS).fingerprint)
        assert len(found) == 4
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("columns", "options", "classes", "note"),
    [
        (("coarse", "fine"), DataOptions(), (), "choose one of the columns coarse, fine by --label"),
        (("coarse", "fine"), DataOptions(label="fine"), ("cat", "dog", "eel"), ""),
        ((), DataOptions(), (), ""),
    ],
)
def test_which_column_holds_the_classes(tmp_path, columns, options, classes, note):
    data = load_dataset(_pictures(tmp_path / "a", columns, train=range(20)), options=options)
    assert data.classes == classes
    assert note in data.describe()
    assert ("no classes are read" in data.describe()) == bool(note)


def test_classes_that_are_not_told(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=KINDS)}
    cells = _cells(PIXELS[:12])
    columns = {"train": {"image": cells, "label": [0, 1] * 6}, "test": {"image": cells, "label": [-1, None] * 6}}
    source = _save(tmp_path / "a", features, **columns)
    data = load_dataset(source)
    assert (data.train_labels, data.classes) == (None, ())
    assert "no classes are read: column label lacks the class of 12 of 12 rows of split test" in data.describe()
    with pytest.raises(DataError, match="lacks the class of 12 of 12 rows of split test; expected a class for each"):
        load_dataset(source, options=DataOptions(label="label"))
    with pytest.raises(ConfigurationError, match=r"no column 'labl'; did you mean 'label'\?; its columns are image, l"):
        load_dataset(source, options=DataOptions(label="labl"))


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        (datasets.List(datasets.Value("int64")), [[k] * (1 + k % 2) for k in range(12)]),
        (datasets.Value("binary"), [b"\xff"] * 12),
        (datasets.Value("timestamp[s]"), [7] * 12),
    ],
)
def test_columns_that_cannot_be_the_classes(tmp_path, kind, cells):
    features = {"image": datasets.Image(), "tags": kind, "n": datasets.Value("int8")}
    columns = {"image": _cells(PIXELS[:12]), "tags": cells, "n": [0, 1] * 6}
    source = _save(tmp_path / "a", features, train=columns)
    with pytest.raises(ConfigurationError, match=r"the column 'tags' for --label is of type .*; such columns: n$"):
        load_dataset(source, options=DataOptions(label="tags"))
    assert load_dataset(source, options=DataOptions(label="n")).classes == ("0", "1")
    with pytest.raises(
        ConfigurationError, match="a, data of images, has no columns of a table, got --numeric quantile"
    ):
        load_dataset(source, options=DataOptions(numeric="quantile"))


def test_integers_stay_integers_where_some_are_missing(tmp_path):
    features = {name: datasets.Value(name) for name in ("int8", "int64", "uint16", "bool", "float32")}
    columns = {name: [None, *[k % 2 for k in range(1, 20)]] for name in features}
    columns["int64"] = [None, 2**53, *range(18)]
    data = load_dataset(_save(tmp_path / "a", features, train=columns, test=columns))
    frame = data.scaling.frame(data.train)
    assert [str(frame[n].dtype) for n in ("int8", "int64", "uint16", "float32")] == [
        "Int8",
        "Int64",
        "UInt16",
        "float32",
    ]
    assert frame["int64"][1:].tolist() == columns["int64"][1:]
    assert frame.isna().sum().tolist() == [1] * 5


def test_configurations(tmp_path):
    _pictures(tmp_path / "a" / "one", train=range(20))
    _pictures(tmp_path / "a" / "two", (), train=range(12))
    (tmp_path / "a" / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: one/*.parquet\n"
        "- config_name: two\n  data_files: two/*.parquet\n---\n"
    )
    assert len(load_dataset(f"hf:{tmp_path}/a:one").train) == 18
    assert len(load_dataset(f"hf:{tmp_path}/a:two").train) == 11
    with pytest.raises(DataError, match=r"cannot be loaded \(Config name is missing.*'one', 'two'.*hf:NAME:CONFIG"):
        load_dataset(f"hf:{tmp_path}/a")
    with pytest.raises(DataError, match=r"BuilderConfig 'three' not found. Available: \['one', 'two'\]"):
        load_dataset(f"hf:{tmp_path}/a:three")


def test_splits(tmp_path):
    data = load_dataset(_pictures(tmp_path / "a", train=range(12), validation=range(6), test=range(4)))
    assert (len(data.train), len(data.test)) == (12, 4)
    assert "ignored the splits validation" in data.describe()
    data = load_dataset(_pictures(tmp_path / "b:2", test=range(20)))
    assert (len(data.train), len(data.test)) == (18, 2)
    source = _pictures(tmp_path / "c", one=range(12), two=range(6))
    (tmp_path / "c" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: one\n    path: one-*.parquet\n  - split: two\n    path: two-*.parquet\n---\n"
    )
    with pytest.raises(DataError, match="has the splits one, two; expected one called train"):
        load_dataset(source)


def test_what_cannot_be_found_or_used(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    _write(tmp_path / "broken", {"a.parquet": b"no parquet"})
    two = _pictures(tmp_path / "two", images=("image", "mask"), train=range(12))
    words = _save(tmp_path / "words", {"tokens": datasets.List(datasets.Value("int64"))}, train={"tokens": [[1], [2]]})
    for source, message in {
        "hf:": "'hf:' names no data; expected hf:NAME, hf:NAME:CONFIG or hf:FOLDER",
        f"hf:{tmp_path}/nope": r"nope cannot be loaded \(Couldn't find any data file",
        f"hf:{tmp_path}/empty": r"empty cannot be loaded \(The directory at .* doesn't contain any data files",
        f"hf:{tmp_path}/broken": r"broken cannot be loaded \(Parquet magic bytes not found",
        "hf:nobody/nothing": r"nobody/nothing cannot be loaded \(.*expected the name of a data set on huggingface.co",
        two: r"several columns of images \(image, mask\); expected one",
        words: "has the columns tokens, none of images, numbers or classes",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            load_dataset(source)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match=r'pip install "ornstein\[hub\]"'):
        load_dataset("hf:anything")


def test_a_folder_of_csv_files_is_a_table(tmp_path):
    rng, lines = np.random.default_rng(0), {}
    for name, n in (("train", 30), ("test", 6)):
        rows = zip(rng.normal(size=n), rng.integers(0, 9, n), rng.choice(["u", "v"], n), strict=True)
        lines[name] = "x,count,kind\n" + "".join(f"{x:.4f},{count},{kind}\n" for x, count, kind in rows)
    source = f"hf:{_write(tmp_path / 'table', {f'{name}.csv': text.encode() for name, text in lines.items()})}"
    data, labelled = load_dataset(source), load_dataset(source, options=DataOptions(label="kind"))
    for name, found, labels in (
        ("train", data.train, labelled.train_labels),
        ("test", data.test, labelled.test_labels),
    ):
        frame = pandas.read_csv(tmp_path / "table" / f"{name}.csv")
        pandas.testing.assert_frame_equal(data.scaling.frame(found), frame, check_dtype=False)
        assert [labelled.classes[k] for k in labels] == frame["kind"].tolist()
    assert data.name == "table"
    with pytest.raises(ConfigurationError, match=r"table cannot be streamed.*leave out --stream always"):
        load_dataset(source, options=ALWAYS)


def test_tables_have_their_classes_by_name_and_no_lists(tmp_path):
    features = {
        "x": datasets.Value("float32"),
        "kind": datasets.ClassLabel(names=KINDS),
        "words": datasets.List(datasets.Value("int64")),
    }
    columns = {
        "x": [k / 7 for k in range(12)],
        "kind": [-1] + [k % 3 for k in range(1, 12)],
        "words": [[k] for k in range(12)],
    }
    data = load_dataset(_save(tmp_path / "a", features, train=columns, test=columns))
    frame = data.scaling.frame(data.train)
    assert frame["kind"][1:].tolist() == [KINDS[k % 3] for k in range(1, 12)]
    assert pandas.isna(frame["kind"][0])
    np.testing.assert_array_equal(frame["x"], np.float32(columns["x"]))
    assert "ignored the columns words, whose entries are not single values" in data.describe()


def test_grey_pictures_stay_grey(tmp_path):
    grey = _pixels(12, 6, 5)
    cells = _cells([_encoded(Image.fromarray(p)) for p in grey])
    data = load_dataset(
        _save(tmp_path / "a", {"image": datasets.Image()}, train={"image": cells}, test={"image": cells})
    )
    np.testing.assert_array_equal(data.train, np.stack(grey))
