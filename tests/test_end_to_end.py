"""Each kind of data through the command line: trained, resumed, sampled, evaluated, inspected; and bad data, once each."""

import json
import shutil
import signal
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file

from ornstein import checkpoints, training
from ornstein.cli import main
from ornstein.cli.against import reading
from ornstein.config import PRESETS, DataOptions
from ornstein.data import load_dataset
from test_pictures import _encoded, _pixels, _write

MLP = ["--network", "MLP(width=8, depth=1)"]
UNET = ["--network", "UNet(widths=(8,), blocks=1, attention=0)"]
FEW = ["--preset", "none", "--steps", "4", "--batch-size", "8", "--save-every", "2", "--grid-every", "0"]
STREAM = ["--stream", "always", "--workers", "0"]
RNG = np.random.default_rng(5)
N = 80
TABLE = pandas.DataFrame(
    {
        "size": RNG.normal(2, 3, N),
        "count": pandas.array(RNG.integers(0, 9, N), dtype="Int64"),
        "colour": RNG.choice(["red", "green", "blue"], N),
        "kind": [("oak", "elm")[k % 2] for k in range(N)],
    }
)
TABLE.loc[::7, "count"] = pandas.NA


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Run a command line in an empty folder: what it printed; `status` is how it must end."""
    monkeypatch.chdir(tmp_path)

    def run(*argv, status=0):
        capsys.readouterr()
        code = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert code == status, err
        assert "Traceback" not in err
        assert (out == "") == (status == 2)
        return out if status == 0 else err

    return run


@pytest.fixture
def fails(cli):
    """Run a command line that must end in status 2, nothing on stdout, and in one line on stderr with these words."""

    def run(*argv, said):
        lines = cli(*argv, status=2).splitlines()
        assert [line for line in lines if line.startswith("ornstein: ")] == lines[-1:]
        for words in said:
            assert words in lines[-1]

    return run


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A folder with the table and two runs on it: all columns, and classes by the column kind."""
    folder = tmp_path_factory.mktemp("table")
    TABLE.to_csv(folder / "trees.csv", index=False)
    argv = ["train", str(folder / "trees.csv"), *MLP, *FEW, "--log-every", "1"]
    assert main([*argv, "--out", str(folder / "plain")]) == 0
    labels = ["--label", "kind", "--condition", "labels"]
    assert main([*argv, *labels, "--out", str(folder / "classes")]) == 0
    return folder


def _read(path):
    return pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_csv(path)


def _state(run):
    """All tensors of the newest checkpoint of a run."""
    newest = checkpoints.checkpoints(Path(run))[-1]
    return {f"{file.name}:{k}": v for file in newest.glob("*.safetensors") for k, v in load_file(file).items()}


def _same(one, other):
    a, b = _state(one), _state(other)
    assert a.keys() == b.keys()
    assert a
    for name in a:
        assert torch.equal(a[name], b[name]), name


# Tables -----------------------------------------------------------------------------------------------------------


def test_samples_of_a_table_are_its_own_columns(cli, table):
    for name in ("s.csv", "s.csv.gz", "s.parquet"):
        cli("sample", table / "plain", "-n", 300, "--calls", 4, "--out", name)
        drawn = _read(Path(name))
        assert list(drawn) == ["size", "count", "colour", "kind"]
        assert drawn.shape == (300, 4)
        count = drawn["count"]
        assert str(count.dtype) == ("Int64" if name == "s.parquet" else "float64")  # a CSV file has no types
        assert 0 < count.isna().sum() < 300
        assert (count.dropna() % 1 == 0).all()
        assert count.dropna().between(0, 8).all()
        assert drawn["size"].dtype == np.float64
        assert set(drawn["colour"]) == {"red", "green", "blue"}
        assert set(drawn["kind"]) == {"oak", "elm"}
    cells = [line.split(",")[1] for line in Path("s.csv").read_text().splitlines()[1:]]
    assert all(cell == "" or cell.isdecimal() for cell in cells)


def test_samples_of_a_table_are_evaluated_from_any_file_they_are_written_to(cli, table):
    found = []
    for name in ("s.npz", "s.csv", "s.csv.gz", "s.parquet"):
        cli("sample", table / "plain", "-n", 40, "--calls", 4, "--out", name)
        said = json.loads(cli("evaluate", table / "plain", "--samples", name, "-n", 40, "--json"))
        assert said["samples_from"] == name
        assert said["same_data_as_trained_on"]
        found.append({key: value for key, value in said.items() if key != "samples_from"})
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.rename(columns={"size": "height"}),
            ["rows of the columns height, count", "expected rows of size, "],
        ),
        (lambda t: t.drop(columns="kind"), ["80 rows of the columns size, count, colour; expected rows of size, "]),
        (lambda t: t.assign(more=1), ["colour, kind, more; expected rows of size, count"]),
        (
            lambda t: t.assign(colour="pink"),
            ["the column 'colour' holds 'pink'; expected one of 'blue', 'green', 'red'"],
        ),
        (lambda t: t.assign(colour=None), ["the column 'colour' holds None; expected one of 'blue'"]),
        (lambda t: t.assign(colour=2), ["holds 2.0; expected one of 'blue'", "sample with --out FILE.parquet"]),
        (lambda t: t.assign(size="tall"), ["the column 'size' holds 'tall'; expected numbers"]),
        (lambda t: t.assign(size=["tall"] + [1.5] * (N - 1)), ["line 2: text in the numeric column 'size': 'tall'; "]),
        (lambda t: t.assign(size=np.inf), ["an infinite value in the column 'size' (80 rows)"]),
        (lambda t: t.assign(size=None), ["the column 'size' lacks a value"]),
        (lambda t: t[:0], ["has 0 rows of the columns size"]),
    ],
)
def test_tables_that_are_no_samples_of_the_run(fails, table, change, said):
    change(TABLE).to_csv("s.csv", index=False)
    fails("evaluate", table / "plain", "--samples", "s.csv", said=said)


def test_samples_in_files_that_do_not_fit(fails, table):
    Path("s.parquet").write_bytes(b"no parquet")
    fails("evaluate", table / "plain", "--samples", "s.parquet", said=["s.parquet"])
    fails("evaluate", table / "plain", "--samples", "none.csv", said=["none.csv"])
    np.savez("x.npz", x=RNG.normal(size=(40, 2)))
    assert main(["train", "x.npz", *MLP, *FEW, "--out", "run"]) == 0
    TABLE.to_csv("s.csv", index=False)
    fails("evaluate", "run", "--samples", "s.csv", said=["s.csv is a table, which this run does not make", ".npz"])


def test_classes_of_a_table(cli, fails, table):
    cli("sample", table / "classes", "-n", 20, "--calls", 2, "--class", "elm", "--out", "elm.parquet")
    drawn = _read(Path("elm.parquet"))
    assert list(drawn) == list(TABLE)
    assert set(drawn["kind"]) == {"elm"}
    cli("sample", table / "classes", "-n", 20, "--calls", 2, "--out", "both.csv")
    assert set(_read(Path("both.csv"))["kind"]) == {"elm", "oak"}
    said = json.loads(cli("evaluate", table / "classes", "--samples", "both.csv", "--json"))
    assert {"energy_distance", "nearest_training"} <= set(str(said).replace("'", " ").split())
    fails("sample", table / "classes", "--class", "eml", said=["no class 'eml'; did you mean 'elm'?"])
    fails(
        *("train", table / "trees.csv", *MLP, *FEW, "--condition", "labels"),
        said=["has no labels", "of a table --label COLUMN"],
    )


def test_other_data_are_evaluated_as_they_are_read_by_themselves(cli, fails, table):
    saved = {"holdout": 0.3, "stream": "always", "workers": 0, "label": "kind", "numeric": "quantile"}
    assert reading(saved, None) == DataOptions(**saved)
    other = str(table / "trees.csv")
    assert reading(saved, other) == DataOptions(workers=0, label="kind")
    assert reading(saved, "hf:x").label == "kind"
    assert reading(saved, "digits") == DataOptions(workers=0)
    fails("evaluate", table / "classes", "--data", "digits", said=["digits is of another kind than the data"])
    TABLE[::-1].to_csv("turned.csv", index=False)
    said = json.loads(cli("evaluate", table / "classes", "--data", "turned.csv", "--json"))
    assert not said["same_data_as_trained_on"]


def test_inspect_and_watch_say_what_a_run_on_a_table_is(cli, table):
    text = cli("inspect", table / "plain")
    assert "trees.csv: 72 training and 8 held-out examples" in text
    assert "a table of 4 columns" in text
    found = json.loads(cli("inspect", table / "plain", "--json"))
    assert [c["name"] for c in found["model"]["scaling"]["columns"]] == list(TABLE)
    assert found["step"] == 4
    assert "loss" in cli("watch", table / "plain")
    assert json.loads(cli("watch", table / "plain", "--json"))


def test_a_changed_table(cli, fails, table):
    argv = ["train", "t.csv", *MLP, *FEW]
    TABLE.to_csv("t.csv", index=False)
    cli(*argv, "--out", "run")
    TABLE.assign(size=TABLE["size"] + 1).to_csv("t.csv", index=False)
    fails("train", "--resume", "run", said=["t.csv are not those of the run run", "--allow-changed-data"])
    cli("train", "--resume", "run", "--allow-changed-data")
    # The same codes by other names, and the same numbers in a column of another name.
    TABLE.replace({"colour": {"red": "ruby"}}).to_csv("t.csv", index=False)
    fails("train", "--resume", "run", said=["t.csv are not those of the run"])
    said = ["the column 'colour' holds categories blue, green, ruby; expected categories blue, green, red"]
    fails("train", "--resume", "run", "--allow-changed-data", said=said)
    TABLE.rename(columns={"size": "height"}).to_csv("t.csv", index=False)
    fails("train", "--resume", "run", said=["t.csv are not those of the run"])
    said = ["columns height, count, colour, kind; expected size, count, colour, kind"]
    fails("train", "--resume", "run", "--allow-changed-data", said=said)


def _interrupted(monkeypatch, at):
    """Send SIGTERM to the run after a step."""
    step = training.Run.step

    def press(self, *args):
        record = step(self, *args)
        if record.count == at:
            signal.raise_signal(signal.SIGTERM)
        return record

    monkeypatch.setattr(training.Run, "step", press)
    return lambda: monkeypatch.setattr(training.Run, "step", step)


def _stops_and_goes_on(cli, monkeypatch, argv, **resumed):
    """Train at once, and with a stop between: both end with the same checkpoint, bit for bit."""
    cli("train", *argv, "--out", "whole")
    undo = _interrupted(monkeypatch, 3)
    cli("train", *argv, "--out", "halves", status=130)
    undo()
    cli("train", "--resume", "halves", *resumed.get("more", []))
    _same("whole", "halves")


def test_a_streamed_folder_of_parquet_goes_on_bit_for_bit(cli, monkeypatch):
    Path("shards").mkdir()
    for k in range(4):
        TABLE[20 * k : 20 * k + 20].to_parquet(f"shards/{k}.parquet", row_group_size=6)
    _stops_and_goes_on(cli, monkeypatch, ["shards", *MLP, *FEW, *STREAM])
    cli("sample", "halves", "-n", 9, "--calls", 2, "--out", "s.parquet")
    drawn = _read(Path("s.parquet"))
    assert drawn.dtypes.astype(str).to_dict() == _read(Path("shards/0.parquet")).dtypes.astype(str).to_dict()
    cli("evaluate", "halves", "--samples", "s.parquet")


# Other kinds ------------------------------------------------------------------------------------------------------


def test_series_and_a_transformer(cli):
    np.savez("waves.npz", x=RNG.normal(size=(40, 16, 2)).astype(np.float32))
    cli("train", "waves.npz", *UNET, *FEW, "--out", "series")
    cli("sample", "series", "-n", 5, "--calls", 2, "--out", "s.npz")
    with np.load("s.npz") as file:
        assert (file["samples"].shape, file["samples"].dtype) == ((5, 16, 2), np.float32)
    np.savez("grey.npz", images=RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    cli("train", "grey.npz", "--network", "DiT(width=32, depth=1)", *FEW, "--out", "dit")
    cli("sample", "dit", "-n", 5, "--calls", 2, "--out", "s.png")
    assert json.loads(cli("inspect", "dit", "--json"))["model"]["network"].startswith("DiT(")


def test_presets_of_tables_and_series(cli, table):
    shutil.copy(table / "trees.csv", "a.CSV")
    Path("shards").mkdir()
    TABLE.to_parquet("shards/0.parquet")
    for data, more, preset in [
        ("a.CSV", [], "table"),
        ("shards", [], "table"),
        ("waves.npz", ["--preset", "series"], "series"),
    ]:
        said = json.loads(cli("train", data, *more, "--dry-run", "--json"))
        assert said["preset"] == preset
        flat = {k: v for group in said["options"].values() if isinstance(group, dict) for k, v in group.items()}
        assert PRESETS[preset].items() <= flat.items()


def test_a_home_folder_is_found(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("shards").mkdir()
    TABLE.to_parquet("shards/0.parquet")
    assert json.loads(cli("train", "~/shards", "--dry-run", "--json"))["preset"] == "table"
    assert len(load_dataset("~/shards").train) == 72


def test_a_streamed_folder_of_pictures_goes_on_bit_for_bit_with_any_workers(cli, monkeypatch):
    files = {f"{'ab'[k % 2]}/{k:02d}.png": _encoded(p) for k, p in enumerate(_pixels(40, 8, 8, 3))}
    _write(Path("pictures"), files)
    argv = ["pictures", *UNET, *FEW, "--condition", "labels", "--stream", "always", "--workers", "1"]
    _stops_and_goes_on(cli, monkeypatch, argv, more=["--workers", "0"])
    cli("sample", "halves", "-n", 4, "--calls", 2, "--out", "grid.png")


def test_a_folder_through_hugging_face(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    Path("folder").mkdir()
    TABLE.to_csv("folder/train.csv", index=False)
    cli("train", "hf:folder", *MLP, *FEW, "--label", "kind", "--condition", "labels", "--out", "run")
    cli("sample", "run", "-n", 9, "--calls", 2, "--out", "s.parquet")
    drawn = _read(Path("s.parquet"))
    assert list(drawn) == list(TABLE)
    assert set(drawn["kind"]) == {"elm", "oak"}


# Bad input --------------------------------------------------------------------------------------------------------


def test_bad_tables(fails):
    TABLE.astype({"size": object}).assign(size=[*TABLE["size"][:40], "tall", *TABLE["size"][41:]]).to_csv("t.csv")
    fails("train", "t.csv", *FEW, said=["t.csv: column 1 of 5 has no name", "index=False"])
    text = TABLE.to_csv(index=False).splitlines()
    text[41] = "tall" + text[41][text[41].index(",") :]
    Path("t.csv").write_text("\n".join(text))
    fails("train", "t.csv", *FEW, said=["t.csv, line 42: text in the numeric column 'size': 'tall'", "--skip-bad"])
    Path("shards").mkdir()
    TABLE.to_parquet("shards/0.parquet")
    TABLE.rename(columns={"size": "height"}).to_parquet("shards/1.parquet")
    fails("train", "shards", *FEW, said=["1.parquet has no column 'size', which 0.parquet has"])


def test_bad_arrays(fails):
    np.savez("ragged.npz", **{f"s{k}": RNG.normal(size=(10 + k, 2)) for k in range(9)})
    fails("train", "ragged.npz", *FEW, said=["ragged.npz holds 9 series of 9 lengths, 10 to 18", "cut or pad them"])
    np.savez("few.npz", x=RNG.normal(size=(6, 2)))
    fails("train", "few.npz", *MLP, *FEW, said=["got batch_size=8 for 5 training examples", "--batch-size 5"])


def test_options_of_columns_are_refused_where_there_are_none(fails):
    images = RNG.integers(0, 256, (20, 4, 4), dtype=np.uint8)
    np.savez("a.npz", images=images)
    files = {f"{k:02d}.png": _encoded(p) for k, p in enumerate(images)}
    _write(Path("folder"), files)
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    for data in ("digits", "rings", "a.npz", "folder", "a.zip"):
        fails("train", data, *FEW, "--label", "kind", said=[f"{data} has no columns of a table, got --label kind"])
    for data in ("rings", "a.npz"):
        said = [f"{data} has no columns of a table, got --numeric quantile"]
        fails("train", data, *FEW, "--numeric", "quantile", said=said)
    fails("train", "nowhere.csv", *FEW, "--label", "kind", said=["nowhere.csv does not exist"])
    fails("train", "~nobody-at-all/a.csv", *FEW, said=["~nobody-at-all/a.csv does not exist"])


def test_a_budget_shorter_than_the_first_checkpoint_is_kept(cli):
    argv = ["--preset", "none", *MLP, "--batch-size", "8", "--budget", "0.3s", "--save-every", "1000000"]
    said = json.loads(cli("train", "rings", *argv, "--out", "run", "--json"))
    assert said["stopped"] == "finished"
    newest = checkpoints.checkpoints(Path("run"))[-1]
    assert newest.name == f"step-{said['steps']:08d}"
    cli("sample", "run", "-n", 4, "--calls", 2)


def test_numbers_of_processes(cli, fails, capsys, monkeypatch):
    fails("train", "rings", *MLP, *FEW, "--accumulate", 9, said=["1 processes x 9 parts for a batch of 8 examples"])
    state = training.Run.state
    monkeypatch.setattr(training.Run, "state", lambda run: (state(run)[0], {**state(run)[1], "processes": 2}))
    cli("train", "rings", *MLP, *FEW, "--out", "run")
    assert main(["train", "--resume", "run"]) == 0
    assert "was saved by 2 processes and goes on with 1" in capsys.readouterr().err


def test_the_ending_of_a_file_counts_in_capitals_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["--network", "MLP(width=8, depth=1)", "--steps", "2", "--batch-size", "8"]
    assert main(["train", "gaussians", "--preset", "none", *tiny, "--out", "run"]) == 0
    assert main(["sample", "run", "-n", "3", "--calls", "1", "--out", "X.NPZ"]) == 0
    with np.load("X.NPZ") as file:
        assert file["samples"].shape == (3, 2)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
