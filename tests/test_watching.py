"""What is told while a run trains: its log, TensorBoard events read back, Weights & Biases calls, curves in a terminal."""

import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pandas as pd
import pytest
import torch

from ornstein import logs
from ornstein.cli import COMMANDS, main
from ornstein.cli import watch as command
from ornstein.config import GROUPS
from ornstein.errors import CheckpointError, ConfigurationError
from ornstein.plots.terminal import Style, chart, moving_mean, table
from ornstein.watching import Quiet, TensorBoard, WeightsAndBiases, open_watchers

TENSORBOARD = "tensorboard.summary.writer.record_writer"  # a module that only a watcher imports
BRAILLE, ASCII = Style(unicode=True), Style(unicode=False)
RUN = (
    "import sys; from ornstein.cli import COMMANDS, main; COMMANDS['watch'] = ''; s = main(['watch', *sys.argv[1:]]); "
)


# the log


def test_lines_come_back_and_damaged_ones_are_passed_over(tmp_path):
    assert logs.read_log(tmp_path) == []
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "losses_by_level": {"t<1": 1.0}}]
    for line in lines:
        logs.append(tmp_path, line)
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b'[1]\n\x00\xff\x00\n{"loss": 3}\n{"step": "9"}\n{"step": 3, "lo')
    logs.append(tmp_path, {"step": 4})  # not swallowed by the line that was cut short
    assert logs.read_log(tmp_path) == [*lines, {"step": 4}]


def test_cut_drops_the_lines_beyond_a_step_whole_or_not_at_all(tmp_path, monkeypatch):
    logs.cut(tmp_path, 3)
    assert not list(tmp_path.iterdir())
    for step in (1, 2, 3, 4):
        logs.append(tmp_path, {"step": step})
    before = (tmp_path / "log.jsonl").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="full"):
        logs.cut(tmp_path, 3)
    monkeypatch.undo()
    assert (tmp_path / "log.jsonl").read_bytes() == before
    logs.cut(tmp_path, 3)
    assert [line["step"] for line in logs.read_log(tmp_path)] == [1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_numbers_are_named_by_group():
    line = {
        "step": 5,
        "total": 9,
        "loss": 1,
        "ok": True,
        "note": "x",
        "none": None,
        "losses_by_level": {"t<0.125": 0.5},
        "validation_loss": 0.25,
        "validation_losses": {"0.05": 0.25, "0.1": 2},
    }
    expected = {"loss": 1.0, "loss_by_level/t<0.125": 0.5, "validation_loss": 0.25}
    assert logs.scalars(line) == expected | {"validation_loss/0.05": 0.25, "validation_loss/0.1": 2.0}
    curves = logs.series([line, {"step": 6, "loss": 2.0}])
    assert curves["loss"] == [(5, 1.0), (6, 2.0)]
    assert curves["validation_loss/0.1"] == [(5, 2.0)]


def test_the_total_comes_from_the_newest_place_that_says_it(tmp_path):
    assert logs.total_steps(tmp_path, [{"step": 1}], {"total": None}) is None
    assert logs.total_steps(tmp_path, [{"step": 1}], {"total": 10}) == 10
    for step, text in ((1, '{"counters": {"total": 20}}'), (2, '{"counters": {"total": 30}}'), (3, "{")):
        place = tmp_path / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True)
        (place / "state.json").write_text(text)
    assert logs.total_steps(tmp_path, [{"step": 1}], {"total": 10}) == 30
    lines = [{"step": 1, "total": 50}, {"step": 2, "total": 40}, {"step": 3}]
    assert logs.total_steps(tmp_path, lines, {"total": 10}) == 40


# curves drawn with characters


def dots(lines, height):
    """The dots of a Braille chart as rows of booleans, from the Unicode standard's numbering of the dots."""
    columns = max(len(line.split("│")[1]) for line in lines[1 : height + 1])
    picture = np.zeros((4 * height, 2 * columns), bool)
    numbered = {(0, 0): 1, (1, 0): 2, (2, 0): 3, (0, 1): 4, (1, 1): 5, (2, 1): 6, (3, 0): 7, (3, 1): 8}
    for row, line in enumerate(lines[1 : height + 1]):
        for column, char in enumerate(line.split("│")[1]):
            for (y, x), number in numbered.items():
                if char != " " and (ord(char) - 0x2800) >> (number - 1) & 1:
                    picture[4 * row + y, 2 * column + x] = True
    return picture


def test_dots_of_a_straight_line_and_of_given_points():
    lines = chart({"": [(0, 2.0), (100, 12.0)]}, "title", 60, 5, BRAILLE)
    assert [len(line) for line in lines] == [60] * 7
    picture = dots(lines, 5)
    rows, columns = picture.shape
    for column in range(columns):
        lit = np.flatnonzero(picture[:, column])
        assert len(lit)
        expected = (1 - column / (columns - 1)) * (rows - 1)
        assert np.abs(lit - expected).max() <= 0.5 + 1e-9
    assert lines[0].startswith("title ")
    assert [float(lines[i].split("│")[0]) for i in (1, 3, 5)] == [12.0, 7.0, 2.0]
    assert lines[-1].split() == ["0", "100"]
    values = np.random.default_rng(0).normal(size=40)
    picture = dots(chart({"": [(7 * i, v) for i, v in enumerate(values)]}, "", 80, 6, BRAILLE), 6)
    rows, columns = picture.shape
    for i, value in enumerate(values):
        row = np.rint((values.max() - value) / np.ptp(values) * (rows - 1)).astype(int)
        assert picture[row, np.rint(i / 39 * (columns - 1)).astype(int)]


def test_the_middle_number_belongs_to_its_row():
    for height in (3, 8, 12):
        for log in (False, True):
            points = [(i, float(np.exp(-i / 200)) if log else float(i)) for i in range(1001)]
            lines = chart({"": points}, "t", 60, height, BRAILLE, logarithmic=log)
            row = height // 2
            lit = dots(lines, height)[4 * row : 4 * row + 4]
            columns = np.flatnonzero(lit.any(axis=0))
            inside = np.interp(columns / (lit.shape[1] - 1) * 1000, *np.transpose(points))
            assert inside.min() * 0.98 <= float(lines[row + 1].split("│")[0]) <= inside.max() * 1.02
            assert ("log" in lines[0]) == log


def test_a_logarithmic_axis_makes_an_exponential_straight():
    decay = {"": [(i, math.exp(-i / 10)) for i in range(101)]}
    straight = dots(chart({"": [(i, -float(i)) for i in range(101)]}, "", 70, 6, BRAILLE), 6)
    assert (dots(chart(decay, "", 70, 6, BRAILLE, logarithmic=True), 6) == straight).all()
    assert not (dots(chart(decay, "", 70, 6, BRAILLE), 6) == straight).all()
    for values in ([1.0, 9.0], [0.0, 100.0], [-1.0, 100.0]):
        assert "log" not in chart({"": list(enumerate(values))}, "", 70, 6, BRAILLE, logarithmic=True)[0]


def test_curves_are_told_apart_by_marks_or_by_colours():
    curves = {"first": [(0, 0.0), (9, 0.0)], "second": [(0, 1.0), (9, 1.0)]}
    plain = chart(curves, "loss", 50, 4, ASCII)
    assert "".join(plain).isascii()
    assert plain[0].split() == ["loss", "*", "first", "o", "second"]
    assert set(plain[4].split("|")[1]) == {"*"}
    assert set(plain[1].split("|")[1]) == {"o"}
    piped = chart(curves, "loss", 50, 4, BRAILLE)
    assert [line.replace("│", "|") for line in piped] == plain
    coloured = chart(curves, "loss", 50, 4, Style(unicode=True, colour=True))
    assert "\x1b[36m" in coloured[4]
    assert "\x1b[33m" in coloured[1]
    assert {len(re.sub(r"\x1b\[\d+m", "", line)) for line in coloured} == {50}
    assert "second" not in chart(curves, "loss", 20, 4, ASCII)[0]


@pytest.mark.parametrize("style", [BRAILLE, ASCII])
@pytest.mark.parametrize(
    "values", [[], [math.nan], [1.0], [0.0, 0.0], [1e308, -1e308], [1.0, math.inf, 2.0], [5e-324, 1e308]]
)
def test_any_values_are_drawn(style, values):
    for log in (False, True):
        lines = chart({"": list(enumerate(values))}, "t", 40, 3, style, logarithmic=log)
        assert [len(line) for line in lines] == [40] * 5
        drawn = any(c == "*" or ord(c) >= 0x2800 for line in lines[1:4] for c in line[11:])
        assert drawn == any(map(math.isfinite, values))
        assert drawn != ("nothing yet" in " ".join(lines))


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_smoothing_is_a_moving_mean(count):
    values = np.random.default_rng(1).normal(size=50)
    values[3] = 1e12
    points = [(3 * i, v) for i, v in enumerate(values)]
    smooth = moving_mean([*points[:20], (58, math.nan), *points[20:]], count)
    assert [step for step, _ in smooth] == [step for step, _ in points]
    exact = pd.Series(values).rolling(count, min_periods=1).apply(lambda v: math.fsum(v) / len(v))
    np.testing.assert_allclose([v for _, v in smooth], exact, rtol=1e-9)


def test_a_long_table_stands_in_two_halves():
    rows = [[f"t<{i}", f"{i}.5"] for i in range(1, 8)]
    assert table(rows, "title", 20, 6)[1:4] == ["  t<1  1.5".ljust(20), "  t<2  2.5".ljust(20), "  t<3  3.5".ljust(20)]
    short = table(rows, "title", 30, 4)
    assert len(short) == 6
    assert short[1].split() == ["t<1", "1.5", "t<5", "5.5"]
    assert short[4].split() == ["t<4", "4.5"]
    assert "nothing yet" in table([], "title", 20, 3)[1]


@pytest.mark.parametrize(
    ("encoding", "environment", "unicode"),
    [
        ("utf-8", {}, True),
        ("utf-8", {"LANG": "de_DE.UTF-8"}, True),
        ("utf-8", {"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),
        ("utf-8", {"LANG": "de_DE.UTF-8", "LC_ALL": "POSIX"}, False),
        ("ascii", {}, False),
        ("cp1252", {}, False),
    ],
)
def test_the_style_is_what_the_output_can_show(monkeypatch, encoding, environment, unicode):
    for name in ("LC_ALL", "LANG", "LC_CTYPE", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for tty in (False, True):
        stream = types.SimpleNamespace(encoding=encoding, isatty=lambda tty=tty: tty)
        assert Style.of(stream) == Style(unicode, tty)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Style.of(stream).colour


# TensorBoard


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return accumulator.Reload()


def test_tensorboard_events_read_back(tmp_path):
    import io

    from PIL import Image
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    rng = np.random.default_rng(0)
    pictures = {k: rng.integers(0, 256, (5, 7, *c), np.uint8) for k, c in ((1, ()), (2, (3,)), (3, (1,)))}
    (watcher,) = open_watchers(("tensorboard", "tensorboard"), tmp_path, {})
    for step in (1, 2, 3):
        watcher.scalars(step, {"loss": 2.0**-step, "loss_by_level/t<0.125": step + 0.5})
        watcher.images(step, "samples", torch.from_numpy(pictures[step]))
    read = events(tmp_path)  # before it is closed: a run killed now has lost nothing
    assert read.Tags()["scalars"] == ["loss", "loss_by_level/t<0.125"]
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert [(e.step, e.value) for e in read.Scalars("loss_by_level/t<0.125")] == [(1, 1.5), (2, 2.5), (3, 3.5)]
    for event in read.Images("samples"):
        pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
        np.testing.assert_array_equal(pixels, np.broadcast_to(pictures[event.step].reshape(5, 7, -1), (5, 7, 3)))
        assert (event.height, event.width) == (5, 7)
    assert [e.step for e in read.Images("samples")] == [1, 2, 3]
    (path,) = (tmp_path / "tensorboard").iterdir()
    written = [value for event in LegacyEventFileLoader(str(path)).Load() for value in event.summary.value]
    assert [value.image.colorspace for value in written if value.tag == "samples"] == [1, 3, 1]
    watcher.close()


def test_a_resumed_run_replaces_the_events_beyond_its_checkpoint(tmp_path):
    watcher = TensorBoard(tmp_path)
    for step in range(1, 6):
        watcher.scalars(step, {"loss": 10.0 + step})
    watcher.close()
    (old,) = (tmp_path / "tensorboard").iterdir()
    old.write_bytes(old.read_bytes()[:-3])  # killed while it wrote the last one
    old.rename(old.with_name("events.out.tfevents.0000000001.host"))  # files are read in the order of their seconds
    watcher = TensorBoard(tmp_path, step=3)
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("loss")] == [(1, 11.0), (2, 12.0), (3, 13.0)]
    watcher.scalars(4, {"loss": 20.0})
    watcher.close()
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("loss")][2:] == [(3, 13.0), (4, 20.0)]


def test_a_disk_that_fills_up_switches_tensorboard_off_in_one_line(tmp_path, capfd):
    (watcher,) = open_watchers(("tensorboard",), tmp_path, {})
    watcher._watcher._records._writer = open("/dev/full", "wb")  # noqa: SIM115
    for step in (1, 2):
        watcher.scalars(step, {"loss": 1.0})
    watcher.close()
    said = "ornstein: tensorboard is switched off, the training goes on ([Errno 28] No space left on device); log.jsonl has"
    assert capfd.readouterr().err == f"{said} all numbers\n"


# Weights & Biases: the calls that were tried by hand on wandb 0.31.0


OPTIONS: dict[str, dict] = {group: {} for group in GROUPS}


@pytest.fixture
def wandb(monkeypatch):
    """A module that takes the calls of wandb and notes them."""
    module = types.ModuleType("wandb")
    module.calls = calls = []

    class Fake:
        def define_metric(self, *args, **named):
            calls.append(("define_metric", args, named))

        def log(self, *args, **named):
            calls.append(("log", args, named))

        def finish(self):
            calls.append(("finish", (), {}))

    def init(**named):
        calls.append(("init", (), named))
        return Fake()

    module.init, module.Settings, module.Image = init, lambda **named: named, lambda pixels: ("image", pixels.tolist())
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return module


def test_weights_and_biases_stays_offline_and_keeps_its_id(tmp_path, wandb, monkeypatch):
    run = tmp_path / "digits-1"
    (watcher,) = open_watchers(("wandb",), run, {"seed": 3})
    name = (run / "wandb" / "run-id").read_text()
    assert re.fullmatch("[0-9a-f]{16}", name)
    watcher.scalars(50, {"loss": 0.5, "validation_loss/0.05": 0.25})
    watcher.images(50, "samples", torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8))
    watcher.close()
    given = {"dir": str(run), "id": name, "name": "digits-1", "config": {"seed": 3}, "project": "ornstein"}
    quiet = {"settings": {"console": "off", "silent": True}}
    assert wandb.calls == [
        ("init", (), {**given, **quiet, "mode": "offline", "resume": None}),
        ("define_metric", ("step",), {"hidden": True}),
        ("define_metric", ("*",), {"step_metric": "step"}),
        ("log", ({"step": 50, "loss": 0.5, "validation_loss/0.05": 0.25},), {}),
        ("log", ({"step": 50, "samples": ("image", [[1, 2], [3, 4]])},), {}),
        ("finish", (), {}),
    ]
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    wandb.calls.clear()
    WeightsAndBiases(run, {}, "other")
    assert wandb.calls[0][2]["id"] == name
    assert wandb.calls[0][2]["mode"] == "online"
    assert wandb.calls[0][2]["resume"] == "allow"
    assert wandb.calls[0][2]["project"] == "mine"
    assert "WANDB_ERROR_REPORTING" not in os.environ


def test_what_cannot_be_opened_is_said_before_training(tmp_path, wandb, monkeypatch):
    with pytest.raises(
        ConfigurationError, match=r"'tensorbord', expected tensorboard or wandb; did you mean 'tensorboard'"
    ):
        open_watchers(("wandb", "tensorbord"), tmp_path, {})
    assert wandb.calls == []
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no\nkey")))
    with pytest.raises(ConfigurationError, match="did not start \\(no key\\); expected WANDB_MODE=offline"):
        open_watchers(("wandb",), tmp_path, {})
    for package, module in (("wandb", "wandb"), ("tensorboard", TENSORBOARD)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigurationError, match=rf'{package} is missing.* pip install "ornstein\[{package}\]"'):
            open_watchers((package,), tmp_path, {})
    monkeypatch.undo()
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(ConfigurationError, match="tensorboard cannot write to"):
        open_watchers(("tensorboard",), tmp_path, {})


def test_those_opened_before_a_failure_are_closed(tmp_path, wandb, monkeypatch):
    monkeypatch.setitem(sys.modules, TENSORBOARD, None)
    with pytest.raises(ConfigurationError, match="tensorboard is missing"):
        open_watchers(("wandb", "tensorboard"), tmp_path, {})
    assert wandb.calls[-1][0] == "finish"


@pytest.mark.parametrize("method", ["scalars", "images", "close"])
def test_a_watcher_that_fails_is_switched_off_with_one_line(capsys, method):
    told = []

    class Failing:
        def scalars(self, *args):
            told.append("scalars")
            if method == "scalars":
                raise OSError(28, "No space left\non device")

        def images(self, *args):
            told.append("images")
            if method == "images":
                raise ValueError("bad")

        def close(self):
            told.append("close")
            raise RuntimeError

    watcher = Quiet(Failing(), "tensorboard")
    for step in (1, 2):
        watcher.scalars(step, {"loss": 1.0})
        watcher.images(step, "samples", np.zeros((2, 2), np.uint8))
    watcher.close()
    watcher.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ornstein: tensorboard is switched off, the training goes on (")
    assert err.count("\n") == 1
    assert (
        told
        == {
            "scalars": ["scalars"],
            "images": ["scalars", "images"],
            "close": ["scalars", "images", "scalars", "images", "close"],
        }[method]
    )


def test_an_interrupt_is_no_failure():
    class Interrupted:
        def close(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Quiet(Interrupted(), "x").close()


# ornstein watch


def line(step):
    return {
        "step": step,
        "loss": 1 / step,
        "gradient_norm": 2.0,
        "learning_rate": 1e-3,
        "images_per_s": 100.0,
        "losses_by_level": {"t<1": 0.25, "t<0.125": 0.5 + step},
    }


@pytest.fixture
def run(tmp_path):
    """The folder of a run of 1000 steps of 20 examples, of which 100 are made."""
    folder = tmp_path / "digits-1"
    folder.mkdir()
    config = {"options": {**OPTIONS, "training": {"batch_size": 20}}, "model": {}, "total": 1000}
    (folder / "config.json").write_text(json.dumps(config))
    for step in range(5, 101, 5):
        logs.append(folder, line(step))
    logs.append(folder, {"step": 100, "validation_loss": 0.75, "validation_losses": {"0.05": 0.75, "0.1": 0.8}})
    return folder


@pytest.fixture
def watch(monkeypatch, capsys):
    """Run `ornstein watch` in this process: status, stdout, stderr."""
    monkeypatch.setitem(COMMANDS, "watch", "")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("COLUMNS", "100")

    def call(*argv):
        capsys.readouterr()
        return main(["watch", *map(str, argv)]), *capsys.readouterr()

    return call


def test_watch_prints_the_curves_and_how_far_it_is(watch, run):
    os.utime(run / "log.jsonl", (time.time() - 300, time.time() - 300))
    status, out, err = watch(run)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    for title in ("training loss, log", "validation loss", "gradient norm", "learning rate", "images/s"):
        assert title in out
    assert "validation loss by average  * 0.05  o 0.1" in out
    assert out.index("t<0.125") < out.index("t<1 ")
    assert max(map(len, lines)) <= 100
    assert re.search(r"t<0.125 +78\b", out)  # mean of steps 55 .. 100, and 0.5
    assert lines[-1] == "step 100 of 1000 (10 %), 100 images/s, 3 min left, last line 5 min ago"
    _, out, _ = watch(run, "--smooth", 4)
    assert "training loss, mean of 4, log" in out


def test_watch_gives_the_curves_as_json(watch, run):
    status, out, _ = watch(run, "--json")
    (found,) = json.loads(out)["runs"]
    assert status == 0
    assert found["series"]["loss"] == {"steps": list(range(5, 101, 5)), "values": [1 / s for s in range(5, 101, 5)]}
    assert found["series"]["validation_loss/0.1"] == {"steps": [100], "values": [0.8]}
    assert (found["step"], found["total_steps"], found["finished"]) == (100, 1000, False)
    assert found["seconds_left"] == 900 * 20 / 100
    assert found["run"] == str(run)


def test_several_runs_share_the_charts(watch, run, tmp_path):
    other = tmp_path / "digits-2"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"options": OPTIONS, "model": {}, "total": 40}))
    status, out, _ = watch(run, other)
    assert status == 0
    assert out.splitlines()[-1].startswith("digits-2: nothing in log.jsonl yet")
    logs.append(other, {"step": 40, "loss": 3.0, "losses_by_level": {"t<0.5": 7.5}})
    _, out, _ = watch(run, other)
    assert "* digits-1  o digits-2" in out
    assert re.search(r"t<0.5 +- +7.5", out)
    assert out.splitlines()[-1] == "digits-2: step 40 of 40 (100 %), finished"
    assert out.splitlines()[-2].startswith("digits-1: step 100 of 1000")
    assert watch(run, run)[1].splitlines()[-1].startswith(f"{run}: step 100")


def test_a_run_without_a_log_is_no_error(watch, run):
    (run / "log.jsonl").unlink()
    status, out, err = watch(run)
    assert (status, err) == (0, "")
    assert out == "nothing in log.jsonl yet; ornstein train writes a line every --log-every steps\n"
    status, out, _ = watch(run, "--json")
    assert json.loads(out)["runs"][0]["series"] == {}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "got no run, expected at least one"),
        (["missing"], "no config.json in missing; expected the folder of a run"),
        (["RUN", "missing"], "no config.json in missing"),
        (["RUN", "--follow", "--json"], "got both --follow and --json"),
        (["RUN", "--every", "0"], "got --every 0, expected a number above 0"),
        (["RUN", "--smooth", "0"], "got --smooth 0, expected a number above 0"),
        (["RUN", "--folow"], "did you mean '--follow'"),
    ],
)
def test_watch_says_what_is_wrong(watch, run, argv, said):
    status, out, err = watch(*[run if a == "RUN" else a for a in argv])
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"options": 1}'])
def test_a_damaged_configuration_is_named(run, text):
    (run / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        logs.read_config(run)


def test_follow_without_a_terminal_says_each_change_and_ends_with_the_run(watch, run, monkeypatch):
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            logs.append(run, line(1000))

    monkeypatch.setattr(command.time, "sleep", sleep)
    status, out, err = watch(run, "--follow", "--every", "0.5")
    assert (status, waits) == (0, [0.5, 0.5])
    assert [said.partition(",")[0] for said in err.splitlines()] == [
        "step 100 of 1000 (10 %)",
        "step 1000 of 1000 (100 %)",
    ]
    assert "training loss" in out
    assert out.splitlines()[-1].endswith("finished")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (50, 12)])
def test_follow_in_a_terminal_draws_anew_until_interrupted(run, width, height):
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(width), "LINES": str(height), "LC_ALL": "C.UTF-8", "TERM": "xterm"}
    argv = [sys.executable, "-c", RUN + "sys.exit(s)", str(run), "--follow", "--every", "0.05"]
    child = subprocess.Popen(argv, stdout=slave, stderr=subprocess.PIPE, env=environment)
    os.close(slave)
    shown = b""

    def read(until):
        nonlocal shown
        limit = time.monotonic() + 20
        while until not in shown:
            assert time.monotonic() < limit, shown
            if select.select([master], [], [], 0.1)[0]:
                shown += os.read(master, 65536)

    try:
        read(b"step 100 of 1000")
        logs.append(run, line(200))
        read(b"step 200 of 1000")
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0
        assert child.stderr.read() == b""
    finally:
        child.kill()
        child.stderr.close()
        os.close(master)
    screen = shown.split(b"\x1b[H")[1].decode()
    assert "\x1b[36m" in screen
    lines = re.sub(r"\x1b\[\d*\w", "", screen).splitlines()
    assert len(lines) <= height
    assert height < 24 or "loss by noise level" in screen
    assert max(map(len, lines)) <= width


def test_watch_needs_no_torch_and_is_plain_in_a_pipe_in_the_c_locale(run):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))} | {"LANG": "C"}
    code = RUN + "sys.exit(10 + s if 'torch' in sys.modules else s)"
    argv = [sys.executable, "-c", code, str(run)]
    done = subprocess.run(argv, capture_output=True, env=environment, check=False)
    assert done.returncode == 0
    assert done.stderr == b""
    assert done.stdout.isascii()
    assert b"\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3540, "59 min"),
        (3599, "1 h 0 min"),
        (11100, "3 h 5 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert command.duration(seconds) == text
