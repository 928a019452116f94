"""Tables: columns against pandas, scipy and scikit-learn; CSV and Parquet, whole and streamed; bad input."""

import gzip
import json
import math
import pickle
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from scipy import stats

from ornstein.config import DataOptions
from ornstein.data import Scaling, load_dataset
from ornstein.data.columns import TableScaling
from ornstein.data.kinds import Category, Numeric
from ornstein.data.mixed import read_scaling
from ornstein.data.parquet import ParquetSource, TableStream
from ornstein.data.survey import Field, Survey
from ornstein.data.tables import from_frame, load_table
from ornstein.errors import ConfigurationError, DataError, NumericalError
from ornstein.metrics import correlation_error, evaluate

N = 120


def mixed(n: int = N, seed: int = 0) -> pandas.DataFrame:
    """Floats, integers, gaps in both, text, booleans, a constant, and classes."""
    r = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {
            "height": r.normal(170, 9, n),
            "visits": r.integers(0, 9, n),
            "income": np.where(r.random(n) < 0.2, np.nan, r.gamma(2, 900, n)),
            "town": r.choice(["Ulm", "Köln", "Bonn, am Rhein"], n),
            "member": r.random(n) < 0.3,
            "year": 2024,
            "sort": r.choice(["no", "yes"], n),
        }
    )
    frame["children"] = pandas.array(np.where(r.random(n) < 0.3, None, r.integers(0, 4, n)), dtype="Int64")
    frame["colour"] = pandas.Series(np.where(r.random(n) < 0.25, None, r.choice(["red", "blue"], n)), dtype="str")
    return frame


def written(folder: Path, frame: pandas.DataFrame, kind: str = "csv") -> Path:
    path = folder / f"table.{kind}"
    if kind == "parquet":
        frame.to_parquet(path, index=False, row_group_size=13)
    else:
        frame.to_csv(path, index=False)
    return path


def text(folder: Path, content: str) -> Path:
    path = folder / "t.csv"
    path.write_text(content, encoding="utf-8")
    return path


def load(path: Path, **options) -> "object":
    return load_table(path, 0, DataOptions(**options))


def rows_of(data) -> pandas.DataFrame:
    """Training and held-out rows as the table, in an order that does not depend on the split."""
    raw = torch.cat([data.train, data.test])
    frame = data.scaling.frame(data.scaling.decode(data.scaling.encode(raw)))
    return frame.sort_values("height").reset_index(drop=True)


# --- There and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numeric", ["standardise", "quantile"])
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_a_table_comes_back_from_model_units_as_it_was(tmp_path, kind, numeric):
    frame = mixed()
    data = load(written(tmp_path, frame, kind), numeric=numeric)
    assert (len(data.train), len(data.test)) == (108, 12)
    back, expected = rows_of(data), frame.sort_values("height").reset_index(drop=True)
    # Quantiles are measured on the training part, so held-out values beyond it come back as its ends.
    tolerance = {"rtol": 1e-5} if numeric == "standardise" else {"rtol": 0.05}
    pandas.testing.assert_frame_equal(back, expected, check_exact=False, **tolerance)
    for name in ("visits", "children", "town", "member", "year", "sort", "colour"):
        pandas.testing.assert_series_equal(back[name], expected[name], check_exact=True)


@pytest.mark.parametrize("numeric", ["standardise", "quantile"])
def test_model_values_have_mean_0_and_the_measured_sigma_data(tmp_path, numeric):
    data = load(written(tmp_path, mixed()), numeric=numeric)
    x = data.scaling.encode(data.train)
    assert x.dtype == torch.float32
    assert x.shape[1:] == data.scaling.shape == (data.scaling.dims,)
    np.testing.assert_allclose(x.double().mean(0), 0, atol=1e-6)
    assert data.scaling.sigma_data == pytest.approx(float(x.double().square().mean().sqrt()), rel=1e-6)


def test_model_values_are_those_of_the_definition(tmp_path):
    frame = mixed()
    data = load(written(tmp_path, frame))
    table, x = data.scaling.frame(data.train), data.scaling.encode(data.train).double().numpy()
    at = 0
    for name in data.scaling.names:
        column = table[name]
        if name == "year":
            continue
        if name in ("height", "visits", "income", "children"):
            value = column.astype("Float64").to_numpy(dtype=float, na_value=np.nan)
            standard = (value - np.nanmean(value)) / np.nanstd(value)
            np.testing.assert_allclose(x[:, at], np.nan_to_num(standard), atol=1e-5)
            at += 1
            if name in ("income", "children"):
                missing = np.isnan(value)
                np.testing.assert_allclose(x[:, at], 2 * (missing - missing.mean()), atol=1e-6)
                at += 1
            continue
        dummies = pandas.get_dummies(column, dummy_na=bool(column.isna().any())).to_numpy(dtype=float)
        k = dummies.shape[1]
        centred = dummies - dummies.mean(0)
        np.testing.assert_allclose(x[:, at : at + k], centred / math.sqrt(centred.var(0).mean()), atol=1e-5)
        at += k
    assert at == x.shape[1]


def test_integers_are_rounded_and_kept_within_the_observed_range():
    scaling = TableScaling((Numeric("k", "int64", 0, 5, True, 2.0, 0.5),), 1.0)
    raw = scaling.decode(torch.tensor([[-9.0], [-0.3], [0.2], [0.26], [9.0]]))
    assert raw.flatten().tolist() == [0, 1, 2, 3, 5]
    assert scaling.frame(raw)["k"].dtype == "int64"
    free = TableScaling((replace(scaling.columns[0], whole=False, dtype="float64"),), 1.0)
    assert free.decode(torch.tensor([[-9.0], [0.26]])).flatten().tolist() == pytest.approx([-16, 2.52], rel=1e-6)


def test_floats_that_are_whole_numbers_come_back_whole_and_floats(tmp_path):
    data = load(text(tmp_path, "a,b\n" + "".join(f"{i}.0,{i / 7}\n" for i in range(30))))
    raw = data.scaling.decode(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    frame = data.scaling.frame(raw)
    assert (frame["a"].dtype, frame["b"].dtype) == ("float64", "float64")
    assert (frame["a"] % 1 == 0).all()
    assert (frame["b"] % 1 != 0).any()


def test_the_largest_category_wins_and_missing_is_one_of_them():
    column = Category("c", "text", ("a", "b", None), (0.7, 0.2, 0.1))
    scaling = TableScaling((column,), 1.0)
    logits = np.array([[0.4, 0.35, 0.1], [0.2, 0.5, 0.1], [0.1, 0.2, 0.25]])
    x = torch.tensor((logits - [0.7, 0.2, 0.1]) * column.scale)
    assert scaling.decode(x).flatten().tolist() == [0, 1, 2]
    assert scaling.frame(scaling.decode(x))["c"].tolist()[:2] == ["a", "b"]
    assert scaling.frame(scaling.decode(x))["c"].isna().tolist() == [False, False, True]


def test_a_mask_value_past_the_middle_is_a_missing_number():
    scaling = TableScaling((Numeric("a", "float64", 0.5, 9.5, False, 0.0, 1.0, missing=0.2),), 1.0)
    # p = 0.2: observed is -0.4, missing 1.6, the middle 0.6
    raw = scaling.decode(torch.tensor([[3.0, -0.4], [3.0, 0.59], [3.0, 0.61], [3.0, 1.6]]))
    assert raw.isnan().flatten().tolist() == [False, False, True, True]
    np.testing.assert_allclose(scaling.encode(torch.tensor([[1.0], [math.nan]])), [[1, -0.4], [0, 1.6]], atol=1e-6)


def test_columns_of_one_value_take_no_part_and_come_back():
    frame = pandas.DataFrame(
        {"a": np.arange(20.0), "one": 0.1, "word": "same", "none": np.nan, "gaps": [3, None] * 10}
    ).astype({"gaps": "Int64"})
    data = from_frame(frame, "t", 0, DataOptions())
    assert [column.width for column in data.scaling.columns] == [1, 0, 0, 0, 1]
    back = data.scaling.frame(data.scaling.decode(data.scaling.encode(torch.cat([data.train, data.test]))))
    back = back.sort_values("a").reset_index(drop=True)
    pandas.testing.assert_frame_equal(back.drop(columns="a"), frame.drop(columns="a"), check_exact=True)
    assert "2 constant" not in data.describe()
    assert "3 constant" in data.describe()


def test_a_column_that_is_constant_in_training_only_keeps_held_out_values():
    found = Survey([Field("a", "number", "float64"), Field("b", "number", "float64"), Field("c", "text")], 4, False)
    values = {
        "a": np.array([1.0, 1, 1, 5]),
        "b": np.arange(4.0),
        "c": np.array(["x", "x", "x", "y"], dtype=object),
    }
    train = np.array([True, True, True, False])
    found.add(values, 0, np.ones(4, dtype=bool), train)
    scaling = found.scaling(None, 0)
    raw = torch.tensor([[1.0, 0, 0], [5, 3, 1]])
    assert torch.allclose(scaling.decode(scaling.encode(raw)), raw.double(), atol=1e-5)
    x = scaling.encode(torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 2, 0]]))
    assert scaling.sigma_data == pytest.approx(float(x.square().mean().sqrt()), rel=1e-5)


def test_equal_training_values_are_constant_whatever_their_mean_rounds_to():
    n = 1001
    assert np.mean(np.full(n, 0.1)) != 0.1
    frame, test = (
        pandas.DataFrame({"a": value, "b": np.arange(len(value))}) for value in (np.full(n, 0.1), [0.5, 0.1])
    )
    data = from_frame(frame, "t", 0, DataOptions(), test=test)
    column = data.scaling.columns[0]
    assert isinstance(column, Numeric)
    assert (column.shift, column.scale, column.varies) == (0.1, 1, True)
    np.testing.assert_allclose(data.scaling.encode(data.test)[:, 0], [0.4, 0], atol=1e-7)


# --- Quantiles --------------------------------------------------------------------------------------------------------


def test_quantiles_give_scipys_normal_scores():
    r = np.random.default_rng(1)
    value = np.round(r.gamma(0.5, 3, 400), 1)  # with ties
    data = from_frame(pandas.DataFrame({"a": value}), "t", 0, DataOptions(numeric="quantile"))
    x, raw = data.scaling.encode(data.train).flatten().double().numpy(), data.train.flatten().numpy()
    scores = stats.norm.ppf((stats.rankdata(raw) - 0.5) / len(raw))
    np.testing.assert_allclose(x, (scores - scores.mean()) / scores.std(), atol=1e-5)
    np.testing.assert_allclose(data.scaling.decode(torch.from_numpy(x)[:, None]).flatten(), raw, atol=1e-5)


def test_quantiles_of_many_values_are_nearly_scikit_learns():
    from sklearn.preprocessing import QuantileTransformer

    value = np.random.default_rng(2).lognormal(size=20_000)
    data = from_frame(pandas.DataFrame({"a": value}), "t", 0, DataOptions(numeric="quantile"))
    column = data.scaling.columns[0]
    assert isinstance(column, Numeric)
    assert 900 <= len(column.knots) <= 1002
    raw = data.train.numpy()
    theirs = QuantileTransformer(n_quantiles=1000, output_distribution="normal", subsample=100_000)
    expected = theirs.fit(raw).transform(raw)
    inner = np.abs(expected) < 2.5  # further out scikit-learn's ranks begin at 0, ours at 1/2
    np.testing.assert_allclose(data.scaling.encode(data.train).numpy()[inner], expected[inner], atol=0.02)
    # exact at knots and at the ends; constant beyond them
    knots, scores = (torch.tensor(numbers, dtype=torch.float64) for numbers in (column.knots, column.scores))
    assert torch.equal(column.decode(scores[:, None]), knots)
    ends = data.scaling.decode(torch.tensor([[-50.0], [50.0]])).flatten()
    assert ends.tolist() == [raw.min(), raw.max()]


def test_a_value_that_many_rows_have_is_given_by_as_many_of_a_normal_law():
    r = np.random.default_rng(4)
    value = np.concatenate([np.zeros(400), np.full(150, 0.3), r.uniform(-1, 5, 450)])
    data = from_frame(
        pandas.DataFrame({"a": value, "b": r.integers(0, 3, 1000)}), "t", 0, DataOptions(numeric="quantile")
    )
    raw, n = data.train.numpy(), 100_000
    uniform = (np.arange(n) + 0.5) / n
    for i in range(2):
        scores = stats.norm.ppf((stats.rankdata(raw[:, i]) - 0.5) / len(raw))
        x = torch.from_numpy((stats.norm.ppf(uniform) - scores.mean()) / scores.std())[:, None]
        back = data.scaling.columns[i].decode(x).numpy()
        assert np.isfinite(back).all()
        assert (np.diff(back) >= 0).all()
        for tied in (0, 0.3) if i == 0 else (0, 1, 2):
            assert (back == tied).mean() == pytest.approx((raw[:, i] == tied).mean(), abs=2e-4)
        # elsewhere the quantile function of the data, within the gap of two neighbours
        expected = np.sort(raw[:, i])[np.minimum((uniform * len(raw)).astype(int), len(raw) - 1)]
        assert np.abs(back - expected).max() < (0.2 if i == 0 else 1e-9)
        np.testing.assert_allclose(
            data.scaling.encode(data.train)[:, i], (scores - scores.mean()) / scores.std(), atol=1e-5
        )
    assert torch.equal(data.scaling.decode(data.scaling.encode(data.train))[:, 1], data.train[:, 1])


def test_rows_are_kept_for_quantiles_only():
    for quantile in (False, True):
        found = Survey([Field("a", "number", "float64")], 9, quantile)
        found.add({"a": np.arange(9.0)}, 0, np.ones(9, dtype=bool), np.ones(9, dtype=bool))
        assert sum(map(len, found._found[0].kept)) == 9 * quantile


def test_quantiles_of_a_stream_are_those_of_evenly_spread_rows(monkeypatch):
    monkeypatch.setattr("ornstein.data.survey.KEPT", 100)
    value = np.random.default_rng(3).normal(size=1000)
    found, everyone = Survey([Field("a", "number", "float64")], 1000, True), np.ones(125, dtype=bool)
    for first in range(0, 1000, 125):
        found.add({"a": value[first : first + 125]}, first, everyone, everyone)
    column = found.scaling(None, 0).columns[0]
    assert isinstance(column, Numeric)
    assert column.knots == tuple(np.sort(value[::10]))


# --- Density, JSON, writing -------------------------------------------------------------------------------------------


def test_log_det_is_that_of_standardisation_and_refused_elsewhere():
    frame = mixed()[["height", "visits", "year"]]
    data = from_frame(frame, "t", 0, DataOptions())
    train = data.scaling.frame(data.train)
    assert data.scaling.log_det() == pytest.approx(-math.log(train["height"].std(ddof=0) * train["visits"].std(ddof=0)))
    for columns, numeric, said in (
        (["height", "town"], "standardise", "'town' is a column of categories"),
        (["height", "income"], "standardise", "'income' has missing values"),
        (["height"], "quantile", "'height' is transformed by quantiles"),
    ):
        other = from_frame(mixed()[columns], "t", 0, DataOptions(numeric=numeric)).scaling
        with pytest.raises(ConfigurationError, match=said):
            other.log_det()


@pytest.mark.parametrize("numeric", ["standardise", "quantile"])
def test_a_scaling_survives_json(numeric):
    frame = mixed()
    frame["colour"] = frame["colour"].astype("category")
    frame["none"] = np.nan
    data = from_frame(frame, "t", 0, DataOptions(numeric=numeric, label="sort"))
    values = json.loads(json.dumps(data.scaling.to_dict(), allow_nan=False))
    assert read_scaling(values) == data.scaling
    affine = Scaling.measure(torch.randn(9, 3))
    assert read_scaling(json.loads(json.dumps(affine.to_dict()))) == affine
    for change in ({"more": 1}, {"columns": [{"name": "a"}]}, {"columns": []}, {"columns": 2 * values["columns"]}):
        with pytest.raises(ConfigurationError, match="expected"):
            read_scaling({**values, **change})


def test_a_column_written_without_newer_fields_is_read():
    for column in (Numeric("a", "float64", 0.0, 1.0, False, 0.0, 1.0), Category("c", "text", ("a", "b"), (0.5, 0.5))):
        values = TableScaling((column,), 1.0).to_dict()
        for name in ("lower", "upper", "dtype", "members", "ordered"):
            if not (name == "dtype" and isinstance(column, Numeric)):
                values["columns"][0].pop(name, None)
        assert read_scaling(values).columns == (column,)


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.parquet"])
def test_samples_are_written_as_the_tables_own_columns(tmp_path, name):
    frame = mixed()
    data = load(written(tmp_path, frame), label="sort")
    raw = torch.cat([data.train, data.test])
    data.scaling.write(tmp_path / name, raw, torch.cat([data.train_labels, data.test_labels]))
    back = pandas.read_parquet(tmp_path / name) if name.endswith("parquet") else pandas.read_csv(tmp_path / name)
    assert list(back) == list(frame)  # the label in its place
    back = back.sort_values("height").reset_index(drop=True).astype({"children": "Int64"})
    pandas.testing.assert_frame_equal(back, frame.sort_values("height").reset_index(drop=True))
    if name.endswith("gz"):
        assert gzip.decompress((tmp_path / name).read_bytes()).startswith(b"height,visits")
    with pytest.raises(ConfigurationError, match=r"expected a name in \.csv"):
        data.scaling.write(tmp_path / "s.xlsx", raw)


def test_types_of_parquet_come_back(tmp_path):
    r = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "a": r.integers(0, 200, 40).astype("uint8"),
            "b": r.normal(size=40).astype("float32"),
            "c": pandas.Categorical(r.choice(["s", "m", "l"], 40)),
            "d": pandas.array(r.choice([True, False, None], 40), dtype="boolean"),
        },
        index=np.arange(40) * 2,
    )
    frame.to_parquet(tmp_path / "t.parquet")  # with its row index, which is no column
    data = load(tmp_path / "t.parquet")
    back = data.scaling.frame(torch.cat([data.train, data.test]))
    assert back.dtypes.to_dict() == frame.dtypes.to_dict()
    assert sorted(back["c"]) == sorted(frame["c"])


def categories(n: int = 60) -> pandas.DataFrame:
    r = np.random.default_rng(5)
    sizes = pandas.CategoricalDtype(["small", "mid", "big", "huge"], ordered=True)
    return pandas.DataFrame(
        {
            "a": r.normal(size=n),
            "size": pandas.Categorical(r.choice(["small", "big"], n), dtype=sizes),
            "sort": pandas.Categorical(r.choice(["s", "m"], n), categories=["s", "m", "l"]),
            "number": pandas.Categorical(r.choice([30, 4], n), categories=pandas.Index([30, 4, 1], dtype="int8")),
            "half": pandas.Categorical(np.where(r.random(n) < 0.3, None, r.choice([0.5, 2.5], n))),
            "grade": r.integers(2, 5, n).astype("int8"),
            "mark": r.integers(2, 5, n).astype("float32"),
        }
    )


@pytest.mark.parametrize("label", ["", "size", "number", "half", "grade", "mark"])
def test_types_of_categories_and_classes_come_back(label):
    frame = categories().dropna(subset=["half"] if label == "half" else None).reset_index(drop=True)
    data = from_frame(frame.iloc[:0:-1], "t", 0, DataOptions(label=label), test=frame.iloc[:1])
    labels = torch.cat([data.train_labels, data.test_labels]) if label else None
    scaling = read_scaling(json.loads(json.dumps(data.scaling.to_dict())))
    back = scaling.frame(torch.cat([data.train, data.test]), labels)
    pandas.testing.assert_frame_equal(back, frame.iloc[::-1].reset_index(drop=True), check_categorical=True)
    classes = {"size": ("small", "big"), "number": ("30", "4"), "half": ("0.5", "2.5")}
    assert data.classes == ({**classes, "": ()}.get(label, ("2", "3", "4")))


def test_categories_of_parquet_keep_their_order_and_members(tmp_path):
    frame = categories()[["a", "size", "sort", "grade"]]
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=17)
    for label in ("", "grade"):
        data = load(tmp_path / "t.parquet", label=label)
        labels = torch.cat([data.train_labels, data.test_labels]) if label else None
        back = data.scaling.frame(torch.cat([data.train, data.test]), labels)
        for name in ("size", "sort"):
            assert list(back[name].cat.categories) == list(frame[name].cat.categories)
            assert back[name].cat.ordered == frame[name].cat.ordered
        assert back["grade"].dtype == "int8"
    column = data.scaling.columns[1]
    assert (column.values, column.width) == (("small", "big"), 2)  # those that no row has cost nothing


def test_a_dictionary_of_integers_with_gaps_holds_integers(tmp_path, monkeypatch):
    table = pyarrow.table({"a": pyarrow.array([7, None, 2]).dictionary_encode(), "b": [1.0, 2.0, 3.0]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    source = ParquetSource(tmp_path / "t.parquet", False)
    # pyarrow 26 reads such columns as plain integers
    source.fields = (Field("a", "category", "int64"), source.fields[1])
    monkeypatch.setattr(ParquetSource, "_table", lambda self, chunk, names: table)
    found = source.read(0, ["a"])["a"].tolist()
    assert found == [7, None, 2]
    assert [type(value) for value in found] == [int, type(None), int]


# --- Splits and classes -----------------------------------------------------------------------------------------------


def test_the_held_out_part_is_a_function_of_the_seed(tmp_path):
    path = written(tmp_path, mixed())
    prints = [load_table(path, seed, DataOptions()).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert len(load(path, holdout=0.5).test) == 60
    assert load_dataset(path).fingerprint == prints[0]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_label_becomes_the_classes(tmp_path, kind):
    frame = mixed()
    frame["grade"] = np.random.default_rng(1).choice([2, 10, 30], N)
    path = written(tmp_path, frame, kind)
    for label, classes in (("sort", ("no", "yes")), ("grade", ("2", "10", "30")), ("member", ("False", "True"))):
        data = load(path, label=label)
        assert data.classes == classes
        assert label not in data.scaling.names
        raw, labels = torch.cat([data.train, data.test]), torch.cat([data.train_labels, data.test_labels])
        back = data.scaling.frame(raw, labels).sort_values("height").reset_index(drop=True)
        expected = frame.sort_values("height").reset_index(drop=True)
        pandas.testing.assert_series_equal(back[label], expected[label])
        assert list(back) == list(frame)
        counts = np.bincount(data.test_labels, minlength=len(classes))
        assert np.abs(counts - 0.1 * frame[label].value_counts().sort_index().to_numpy()).max() <= 1


def test_frames_with_a_held_out_part_of_their_own():
    data = from_frame(mixed(30), "t", 0, DataOptions(), test=mixed(7, seed=1))
    assert (len(data.train), len(data.test)) == (30, 7)
    pandas.testing.assert_series_equal(data.scaling.frame(data.train)["height"], mixed(30)["height"])
    with pytest.raises(ConfigurationError, match="held-out data of its own"):
        from_frame(mixed(30), "t", 0, DataOptions(holdout=0.3), test=mixed(7))
    with pytest.raises(DataError, match="held-out columns"):
        from_frame(mixed(30), "t", 0, DataOptions(), test=mixed(7).drop(columns="town"))


# --- Parquet shards and streams ---------------------------------------------------------------------------------------


def shards(folder: Path, frame: pandas.DataFrame, pieces: int = 3) -> Path:
    folder.mkdir()
    for k, rows in enumerate(np.array_split(np.arange(len(frame)), pieces)):
        frame.iloc[rows].to_parquet(folder / f"part-{k}.parquet", index=False, row_group_size=9)
    (folder / "notes.txt").write_text("no table")
    return folder


@pytest.mark.parametrize("numeric", ["standardise", "quantile"])
def test_a_stream_of_shards_is_the_table_in_memory(tmp_path, numeric):
    frame = mixed()
    folder = shards(tmp_path / "shards", frame)
    stream, whole = (load(folder, stream=mode, numeric=numeric, label="sort") for mode in ("always", "never"))
    assert isinstance(stream.train, TableStream)
    for name in ("train_labels", "test_labels"):
        assert torch.equal(getattr(stream, name), getattr(whole, name))
    assert stream.scaling == whole.scaling
    one = from_frame(frame, "t", 0, DataOptions(numeric=numeric, label="sort"))
    for own, its in zip(stream.scaling.columns, one.scaling.columns, strict=True):
        assert own == replace(its, shift=own.shift, scale=own.scale) if isinstance(own, Numeric) else own == its
        for moment in ("shift", "scale"):
            assert getattr(own, moment, 0) == pytest.approx(getattr(its, moment, 0), rel=1e-12)
    rows = torch.randperm(len(stream.train), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(stream.train[rows], whole.train[rows], rtol=0, atol=0, equal_nan=True)
    part = stream.train.take(torch.tensor([5, 2, 7]))
    assert (part.shape, part.dtype, len(part)) == ((3, 8), torch.float64, 3)
    torch.testing.assert_close(part.read(torch.tensor([2, 0]))[0], whole.train[[7, 5]], rtol=0, atol=0, equal_nan=True)


def test_a_stream_reads_each_row_group_once_a_batch_and_keeps_few(tmp_path, monkeypatch):
    data = load(shards(tmp_path / "shards", mixed()), stream="always")
    read = []
    real = ParquetSource.read
    monkeypatch.setattr(ParquetSource, "read", lambda self, g, names: read.append(g) or real(self, g, names))
    monkeypatch.setattr("ornstein.data.parquet.CACHE", 9 * 9 * 8 * 2)  # two row groups of 9 rows and 9 columns
    x = data.train.read(torch.arange(len(data.train)))[0]
    assert sorted(read) == list(range(15))
    assert len(data.train._kept) == 2
    read.clear()
    last = torch.arange(len(data.train) - 3, len(data.train))
    torch.testing.assert_close(data.train[last], x[last], equal_nan=True)
    assert read == []
    assert len(pickle.loads(pickle.dumps(data.train))._kept) == 0


def test_the_digest_tells_changed_shards_and_rows_apart(tmp_path):
    frame = mixed()
    folder = shards(tmp_path / "shards", frame)
    first = load(folder, stream="always")
    assert load(folder, stream="always").fingerprint == first.fingerprint
    assert first.train.digest() != first.test.digest()
    changed = frame.copy()
    changed.loc[0, "height"] += 20
    assert load(shards(tmp_path / "other", changed), stream="always").train.digest() != first.train.digest()


def test_the_digest_tells_changes_within_row_groups(tmp_path):
    """Of values that are not the extremes of their row group, in files of the same size and the same footer."""
    frame = pandas.DataFrame({"a": np.arange(400.0), "b": np.arange(400.0)})
    digests = set()
    for k, change in enumerate(({}, {(150, "a"): 150.5}, {(350, "b"): 350.5})):
        for (row, column), value in change.items():
            frame.loc[row, column] = value
        path = tmp_path / f"{k}" / "t.parquet"
        path.parent.mkdir()
        frame.to_parquet(path, index=False, row_group_size=100, compression=None, use_dictionary=False)
        digests.add(ParquetSource(path, False).digest())
        frame = pandas.DataFrame({"a": np.arange(400.0), "b": np.arange(400.0)})
    assert len({(path.stat().st_size, path.read_bytes()[-400:]) for path in tmp_path.glob("*/*.parquet")}) == 1
    assert len(digests) == 3


def test_the_footer_is_parsed_once_and_travels_to_readers(tmp_path):
    path = written(tmp_path, mixed(), "parquet")
    source = ParquetSource(path, False)
    expected = [source.read(chunk, ["height"])["height"] for chunk in range(len(source.sizes))]
    whole = path.read_bytes()
    path.write_bytes(whole[:-300] + bytes(300))  # as if there were no footer
    source = pickle.loads(pickle.dumps(source))
    for chunk, values in enumerate(expected):
        np.testing.assert_array_equal(source.read(chunk, ["height"])["height"], values)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("block", [1, 150, 1 << 24])
def test_examples_taken_in_by_blocks_of_columns_are_the_table(tmp_path, monkeypatch, kind, block):
    path = written(tmp_path, mixed(), kind)
    monkeypatch.setattr("ornstein.data.tables.BLOCK", block)
    data = load(path)
    expected = mixed().sort_values("height").reset_index(drop=True)
    pandas.testing.assert_frame_equal(rows_of(data), expected, check_exact=False, rtol=1e-5)


def test_columns_are_read_by_blocks_which_are_let_go(tmp_path, monkeypatch):
    alive, most = [], []
    real = ParquetSource.read

    def read(self, chunk, names):
        found = {name: values.copy() for name, values in real(self, chunk, names).items()}
        alive.extend(map(weakref.ref, found.values()))
        most.append(sum(array.nbytes for ref in alive if (array := ref()) is not None))
        return found

    monkeypatch.setattr(ParquetSource, "read", read)
    monkeypatch.setattr("ornstein.data.tables.BLOCK", 8 * 13 * 2)  # two columns of a row group
    path = written(tmp_path, mixed(), "parquet")
    assert len(load(path).train) == 108
    assert max(most) <= 2 * 8 * 13 * 2  # the block that is worked on and the next
    assert len(most) == 2 * (9 * 5 + 2)  # twice; the last row group has 3 rows


@pytest.mark.parametrize("block", [1, 1 << 24])
def test_rows_that_a_late_column_makes_unusable_are_measured_in_none(monkeypatch, block):
    monkeypatch.setattr("ornstein.data.tables.BLOCK", block)
    frame = pandas.DataFrame({"a": [*range(20), 1e6], "b": [*np.arange(20.0), np.inf]})
    data = from_frame(frame, "t", 0, DataOptions(skip_bad=True))
    assert (data.scaling.columns[0].high, data.scaling.columns[1].high, data.skipped) == (19, 19, 1)


def test_streaming_is_chosen_by_the_memory_of_the_table(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr("ornstein.data.tables.too_large", lambda size, mode: sizes.append((size, mode)) or False)
    load(shards(tmp_path / "shards", mixed()))
    assert sizes == [(8 * 9 * N, "auto")]
    with pytest.raises(ConfigurationError, match="convert it to Parquet"):
        load(written(tmp_path, mixed()), stream="always")


# --- Bad input --------------------------------------------------------------------------------------------------------

GOOD = "".join(f"{i},{i * 0.5},w{i % 3}\n" for i in range(20))


def test_text_in_a_numeric_column_names_column_line_and_value(tmp_path):
    # an empty line, and a field over two lines, come before it
    path = text(tmp_path, 'a,b,c\n\n1,2.0,"two\nlines"\n3,oops,w\n' + GOOD + "5,bad,w1\n")
    with pytest.raises(
        DataError, match=r"line 5: text in the numeric column 'b': 'oops' \(and 1 more rows\); expected"
    ):
        load(path)
    data = load(path, skip_bad=True)
    assert (len(data.train) + len(data.test), data.skipped) == (21, 2)
    assert "passed over 2 of 23 rows: text in the numeric column 'b' (2)" in data.describe()
    assert data.scaling.columns[0].dtype == "int64"
    assert data.scaling.columns[1].dtype == "float64"


def test_a_column_that_is_text_for_the_most_part_is_categories(tmp_path):
    data = load(text(tmp_path, "a,b\n" + "1,7\n2,x\n3,y\n" * 9))
    assert isinstance(data.scaling.columns[1], Category)
    assert data.scaling.columns[1].values == ("7", "x", "y")


def test_text_late_in_a_long_file_is_named(tmp_path):
    """pandas reads files by pieces of some 2^18 lines of two fields, and would tell the type of each on its own."""
    path = text(tmp_path, "a,b\n" + "1,2.5\n" * 300_000 + "1,oops\n")
    with pytest.raises(DataError, match=r"line 300002: text in the numeric column 'b': 'oops'; expected"):
        load(path)


def test_all_digits_of_a_file_count(tmp_path):
    value = np.random.default_rng(0).normal(size=999) * 10.0 ** np.random.default_rng(1).integers(-20, 20, 999)
    data = load(text(tmp_path, pandas.DataFrame({"a": value}).to_csv(index=False)))
    assert sorted(torch.cat([data.train, data.test]).flatten().tolist()) == sorted(value)


def test_the_columns_of_an_array_are_named_by_numbers(tmp_path):
    value = np.random.default_rng(0).normal(size=(20, 3))
    pandas.DataFrame(value).to_csv(tmp_path / "t.csv", index=False)
    data = load(tmp_path / "t.csv")
    assert data.scaling.names == ("0", "1", "2")
    np.testing.assert_array_equal(np.sort(torch.cat([data.train, data.test]), 0), np.sort(value, 0))


def test_blank_lines_are_no_rows(tmp_path):
    data = load(text(tmp_path, "\na,b\n \n" + GOOD.replace(",w0", "").replace(",w1", "").replace(",w2", "") + "\n\n"))
    assert (len(data.train) + len(data.test), data.skipped) == (20, 0)
    # a missing value of a single column is a line of ""
    data = load(text(tmp_path, "a\n" + '1\n""\n2\n\n' * 5))
    assert (len(data.train) + len(data.test), data.scaling.columns[0].missing) == (15, pytest.approx(1 / 3, abs=0.1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty; expected a line of column names"),
        ("a,b\n", "has the columns a, b and no rows"),
        ("a,b,a\n1,2,3\n", r"1 column names more than once \(a\)"),
        (",b\n0,2\n", r"column 1 of 2 has no name.*index=False"),
        ("1,2\n3,4\n", "begins with numbers, 1, 2; expected a line of column names"),
        ("1,0\n3,4\n", "begins with numbers"),
        ("a;b\n1,5;2,5\n", r"separated by ';'; expected commas: convert it.*sep=';'"),
        ("a,b\n" + '"1,5",2\n"-2,25",3\n7,4\n' * 9, r"t\.csv: the column 'a' holds numbers with decimal commas.*'1,5'"),
        ("a,b\n" + '1,"2\n3"\n' * 5 + "1,2,3\n", r"line 12 has 3 fields for 2 names"),
        ('a,b\n1,2\n1,"2\n', r"cannot be read \(.*EOF inside string"),
        ("a,b,c\n" + GOOD + "1,2.0\n", r"line 22: too few fields: 2 for 3 names; expected as many.*cut short"),
        ("a,b,c\n" + GOOD + "1\n1,2.0\n", r"line 22: too few fields: 1 for 3 names \(and 1 more rows\)"),
        ("a,b\n1,2,3\n1,2\n", "line 2 has 3 fields for 2 names"),
        ("a,b\n" + "1,2\n" * 5 + "1,2,3\n", r"line 7 has 3 fields for 2 names.*--skip-bad"),
        ("a,b\n" + "1,2\n" * 9, "all 2 columns are constant"),
        ("a\n1\n2\n", "2 examples, of which 1 would be held out"),
        ("a,b\n1,2\n3,inf\n" + "5,6\n" * 9, r"line 3: an infinite value in the column 'b'"),
        (
            "a\n" + "".join(f"name {i}\n" for i in range(300)),
            r"t\.csv: the column 'a' has more than 200 categories.*--label",
        ),
        ("a\n" + "".join(f"{2**53 + 2 * i}\n" for i in range(1, 30)), "integers beyond 2.53"),
        ("a\n" + "".join(f"{s}1e300\n" for s in ("", "-") * 9), "beyond float64"),
    ],
)
def test_bad_csv(tmp_path, content, said):
    with pytest.raises(DataError, match=said) as caught:
        load(text(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_lines_that_cannot_be_read_and_infinite_values_are_passed_over_on_demand(tmp_path):
    bad = '1,2,3,4\n\n7,inf,w1\n9,9\n1,"2,5",3,4\n8,-inf,w1\n'
    data = load(text(tmp_path, "a,b,c\n" + GOOD + bad + GOOD + "1,2"), skip_bad=True)
    assert (len(data.train) + len(data.test), data.skipped) == (40, 6)
    said = (
        "passed over 2 lines with more fields than names; passed over 4 of 44 rows: too few fields (2), an infinite value "
        "in the column 'b' (2)"
    )
    assert said in data.describe()
    assert torch.isfinite(data.scaling.encode(data.train)).all()
    with pytest.raises(DataError, match="line 2 has 4 fields for 3 names"):  # so have all lines, probably
        load(text(tmp_path, "a,b,c\n1,2,3,4\n" + GOOD), skip_bad=True)


def test_quotes_that_are_read_in_two_ways_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("ornstein.data.frames._check_lines", lambda path, width, skip_bad: (21, 0, None))
    with pytest.raises(DataError, match=r"21 rows by its commas and quotes, of which pandas reads 20"):
        load(text(tmp_path, "a,b,c\n" + GOOD), skip_bad=True)


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("a,b\nä,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="no text in UTF-8"):
        load(path)
    broken = tmp_path / "t.csv.gz"
    broken.write_bytes(gzip.compress(b"a,b\n" + bytes(range(48, 58)) * 999)[:-40])
    with pytest.raises(DataError, match="cannot be read"):
        load(broken)
    broken.write_bytes(b"plain")
    with pytest.raises(DataError, match="cannot be read"):
        load(broken)


def test_bad_labels(tmp_path):
    path = text(
        tmp_path, "a,b,grade,share\n" + "".join(f"{i},{i % 5},{'' if i == 3 else 'x'},{i / 7}\n" for i in range(30))
    )
    with pytest.raises(
        ConfigurationError, match=r"no column 'grad' for --label; did you mean 'grade'.*a, b, grade, share"
    ):
        load(path, label="grad")
    with pytest.raises(DataError, match="line 5: no class in the label column 'grade'; expected a class in every row"):
        load(path, label="grade")
    with pytest.raises(DataError, match=r"line 3: 0\.142857 in the label column 'share'.*; expected whole numbers"):
        load(path, label="share")
    skipped = load(path, label="grade", skip_bad=True)
    assert (len(skipped.train_labels) + len(skipped.test_labels), skipped.skipped) == (29, 1)
    with pytest.raises(DataError, match="no column beside the label"):
        load(text(tmp_path, "a\n1\n2\n3\n"), label="a")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: f.astype({"visits": "float64"}),
            r"part-1.parquet: the column 'visits' is of type double, in part-0",
        ),
        (lambda f: f.drop(columns="town"), r"part-1.parquet has no column 'town', which part-0.parquet has"),
        (lambda f: f.assign(extra=1), r"part-1.parquet has a column 'extra', which part-0.parquet has not"),
    ],
)
def test_a_shard_of_another_schema(tmp_path, change, said):
    folder = shards(tmp_path / "shards", mixed())
    path = folder / "part-1.parquet"
    change(pandas.read_parquet(path)).to_parquet(path, index=False)
    with pytest.raises(DataError, match=said):
        load(folder)


def test_damaged_parquet(tmp_path):
    folder = shards(tmp_path / "shards", mixed())
    whole = (folder / "part-1.parquet").read_bytes()
    (folder / "part-1.parquet").write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"part-1\.parquet is damaged or no Parquet file.*--skip-bad") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    data = load(folder, skip_bad=True)
    assert len(data.train) + len(data.test) == 80
    assert "passed over a shard" in data.describe()
    assert data.skipped == 1  # nobody knows of how many rows
    # the footer whole, the data of the first row group not: with and without a label, which is read first
    second = pyarrow.parquet.ParquetFile(folder / "part-0.parquet").metadata.row_group(1).column(0)
    end = second.dictionary_page_offset or second.data_page_offset  # much the same in all shards
    (folder / "part-1.parquet").write_bytes(whole[:4] + bytes(end - 99) + whole[end - 95 :])
    with pytest.raises(DataError, match=r"part-1\.parquet is damaged"):
        load(folder)
    for label in ("", "sort"):
        data = load(folder, skip_bad=True, label=label)
        assert (len(data.train) + len(data.test), data.skipped) == (111, 9)
        assert "passed over 9 of 120 rows: damaged row groups (9)" in data.describe()
    for path in folder.glob("*.parquet"):
        path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"none of its 3 \.parquet files"):
        load(folder, skip_bad=True)


def test_columns_of_types_that_are_none_of_a_table(tmp_path):
    frame = mixed(20).assign(when=pandas.date_range("2024-01-01", periods=20))
    with pytest.raises(DataError, match=r"'when' is of type timestamp\[.*days since"):
        load(written(tmp_path, frame, "parquet"))
    with pytest.raises(DataError, match="'when' is of type datetime64; expected numbers"):
        from_frame(frame, "t", 0, DataOptions())
    with pytest.raises(DataError, match="'when' is of type date; expected numbers"):
        from_frame(frame.assign(when=frame["when"].dt.date), "t", 0, DataOptions())


def test_members_of_categories_that_are_none_of_a_table():
    frame = pandas.DataFrame({"a": np.arange(20.0), "c": pandas.cut(np.arange(20), 3)})
    for label in ("", "c"):
        with pytest.raises(DataError, match=r"^t: the column 'c' holds Interval.*expected numbers, booleans or text"):
            from_frame(frame, "t", 0, DataOptions(label=label))


def test_values_and_tables_that_are_not_those_of_the_scaling():
    data = from_frame(mixed()[["height", "town"]], "t", 0, DataOptions())
    with pytest.raises(DataError, match="'height' lacks a value"):
        data.scaling.encode(torch.tensor([[math.nan, 0]]))
    quantiles = from_frame(mixed()[["height", "town"]], "t", 0, DataOptions(numeric="quantile"))
    with pytest.raises(DataError, match="'height' lacks a value"):
        quantiles.scaling.encode(torch.tensor([[math.nan, 0]]))
    with pytest.raises(DataError, match=r"'town' has codes outside 0 \.\. 2"):
        data.scaling.encode(torch.tensor([[1.0, 3]]))
    with pytest.raises(DataError, match="expected"):
        data.scaling.encode(torch.zeros(2, 3))
    with pytest.raises(NumericalError, match="1 of 2 samples hold NaN or inf"):
        data.scaling.decode(torch.tensor([[0.0] * 4, [math.inf] * 4]))
    data.scaling.require_same(from_frame(mixed(60, 1)[["height", "town"]], "u", 0, DataOptions()).scaling)
    other = from_frame(mixed()[["height", "sort"]].rename(columns={"sort": "town"}), "u", 0, DataOptions()).scaling
    with pytest.raises(DataError, match="'town' holds categories no, yes; expected categories Bonn"):
        data.scaling.require_same(other)
    with pytest.raises(DataError, match="with the columns no table; expected height, town"):
        data.scaling.require_same(Scaling.measure(torch.randn(9, 2)))


# --- Correlations -----------------------------------------------------------------------------------------------------


def test_correlation_error_is_that_of_numpy():
    r = np.random.default_rng(0)
    x, y = r.normal(size=(50, 4)) @ r.normal(size=(4, 4)), r.normal(size=(31, 4))
    difference = np.abs(np.corrcoef(x.T) - np.corrcoef(y.T))[np.triu_indices(4, 1)]
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    assert correlation_error(x, y) == pytest.approx(difference.mean(), rel=1e-12)
    assert correlation_error(1e3 * x + 5, y) == pytest.approx(difference.mean(), rel=1e-9)
    assert correlation_error(x, x) == 0


def test_a_constant_column_correlates_with_none():
    x = torch.tensor([[1.0, 2, 0.1], [2, 4, 0.1], [3, 6, 0.1]]).double()
    assert correlation_error(x, x) == 0
    # only the pair of the first two columns has a correlation, 1 in x and -1 in y
    y = torch.tensor([[1.0, 6, 0.7], [2, 4, 0.7], [3, 2, 0.7]]).double()
    assert correlation_error(x, y) == pytest.approx(2 / 3)
    # two constant columns, whose means are not exactly their values
    constant = torch.tensor([[0.1, 0.7]], dtype=torch.float64).expand(11, 2)
    x = torch.cat([torch.arange(11.0, dtype=torch.float64)[:, None], constant], 1)
    assert (x.mean(0)[1:] != x[0, 1:]).all()
    y = torch.randn(5000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert correlation_error(x, y) < 0.05
    with pytest.raises(DataError, match="at least 2 columns"):
        correlation_error(x[:, :1], y[:, :1])
    with pytest.raises(DataError, match="at least 2"):
        correlation_error(x[:1], y)


def test_correlation_error_of_two_sets_of_one_law():
    r = torch.Generator().manual_seed(0)
    x, y = torch.randn(500, 40, generator=r), torch.randn(500, 40, generator=r)
    assert correlation_error(x, y) == pytest.approx(2 / math.sqrt(math.pi * 500), rel=0.05)


def test_evaluate_shows_correlations_of_tables():
    frame = mixed(600)
    frame["double"] = 2 * frame["height"] + np.random.default_rng(0).normal(size=600)
    data = from_frame(frame[["height", "visits", "double"]], "t", 0, DataOptions(holdout=0.3))
    broken = data.train.clone()
    broken[:, 2] = broken[torch.randperm(len(broken), generator=torch.Generator().manual_seed(0)), 2]
    good, bad = (evaluate(x, data.test, data.train, scaling=data.scaling) for x in (data.train, broken))
    assert good["correlation_error"].ratio == pytest.approx(1, abs=0.4)
    assert bad["correlation_error"].ratio > 5
    assert "correlation error" in str(bad)
    series = torch.randn(30, 6, 2)
    names = {m.name for m in evaluate(series, series.flip(0), series.roll(1)).measures}
    assert "correlation_error" not in names
