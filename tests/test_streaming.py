"""Streams: the same examples, split and order as in memory, for any number of processes; bad pictures; what is held."""

import itertools
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.config import DataOptions
from ornstein.data import Scaling, dataset, load_dataset, pictures, streaming
from ornstein.data.dataset import Part
from ornstein.data.stores import FolderStore, ZipStore
from ornstein.data.streaming import PREFETCH, batches, killed_readers_named, spread, too_large
from ornstein.errors import DataError
from test_pictures import _encoded, _pixels, _write

ALWAYS = DataOptions(stream="always", holdout=0.2)
SKIP = DataOptions(stream="always", holdout=0.2, skip_bad=True)
PIXELS = _pixels(60, 8, 7, 3)
FILES = {f"{'abc'[i % 3]}/{i:02d}.png": _encoded(p) for i, p in enumerate(PIXELS)}


@pytest.fixture(scope="module", params=["folder", "archive.zip"])
def place(request, tmp_path_factory):
    return _write(tmp_path_factory.mktemp("data") / request.param, FILES)


def _plan(n, batch=4, seed=3):
    """An endless plan: batches of a fresh permutation each epoch."""
    for epoch in itertools.count():
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + epoch))
        yield from order[: n // batch * batch].split(batch)


def test_a_stream_is_the_data_in_memory(place):
    memory, stream = load_dataset(place, holdout=0.2), load_dataset(place, options=ALWAYS)
    assert isinstance(memory.train, torch.Tensor)
    assert not isinstance(stream.train, torch.Tensor)
    for name in ("train", "test"):
        held, read = getattr(memory, name), getattr(stream, name)
        assert (read.shape, read.dtype, len(read)) == (tuple(held.shape), held.dtype, len(held))
        rows = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))
        assert torch.equal(read[rows], held[rows])
        assert torch.equal(read.take(rows[:5])[torch.tensor([3, 0])], held[rows[[3, 0]]])
    assert torch.equal(stream.train_labels, memory.train_labels)
    assert torch.equal(stream.test_labels, memory.test_labels)
    assert (stream.classes, stream.scaling) == (memory.classes, memory.scaling)
    assert "streamed from disk, the scaling measured on 48 of 48 training examples" in stream.describe()
    assert (memory.skipped, stream.skipped) == (0, 0)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_follow_the_plan_from_any_point_on(place, workers):
    memory, stream = load_dataset(place, holdout=0.2).train, load_dataset(place, options=ALWAYS).train
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for start in (0, 7):
        plan = list(itertools.islice(_plan(len(memory)), 20))
        read = list(itertools.islice(batches(stream, itertools.islice(_plan(len(memory)), start, None), workers), 13))
        for (rows, x, bad), expected in zip(read, plan[start : start + 13], strict=True):
            assert torch.equal(rows, expected)
            assert torch.equal(x, memory[expected])
            assert bad == 0
    assert len(list(batches(stream, iter(plan), workers))) == 20
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_a_tensor_is_indexed_where_it_lies():
    x = torch.arange(30).reshape(10, 3)
    rows, read, bad = next(batches(x, iter([torch.tensor([4, 1])]), workers=2))
    assert (rows.tolist(), read.tolist(), bad) == ([4, 1], [[12, 13, 14], [3, 4, 5]], 0)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_plan_is_drawn_ahead_by_the_prefetch_only_and_closing_ends_the_processes(place, workers):
    stream, drawn = load_dataset(place, options=ALWAYS).train, []

    def plan():
        for rows in _plan(len(stream)):
            drawn.append(rows)
            yield rows

    reading = batches(stream, plan(), workers)
    for consumed in range(1, 7):
        next(reading)
        assert len(drawn) <= consumed + PREFETCH * workers
    assert len(multiprocessing.active_children()) == workers
    reading.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("pin", [False, True])
def test_memory_is_pinned_only_where_wanted(monkeypatch, pin):
    """Pinning starts CUDA, also for who trains on the CPU of a machine that has a GPU."""
    loader, asked = torch.utils.data.DataLoader, []

    def record(*args, pin_memory, **options):
        asked.append(pin_memory)
        return loader(*args, **options)

    monkeypatch.setattr(torch.utils.data, "DataLoader", record)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not pin)
    stream = load_dataset("digits").train
    monkeypatch.setattr(streaming, "Tensor", type(None))  # so that the examples pass for a stream
    monkeypatch.setattr(streaming._Reader, "__getitem__", lambda reader, rows: (rows, stream[rows], 0))
    assert next(batches(stream, iter([torch.arange(2)]), 0, *[pin] * pin))[1].shape == (2, 8, 8)
    assert asked == [pin]


def test_processes_read_a_zip_through_files_of_their_own(tmp_path):
    stream = load_dataset(_write(tmp_path / "a.zip", FILES), options=ALWAYS).train
    expected, rows = stream[torch.arange(9)], torch.arange(9)
    assert torch.equal(pickle.loads(pickle.dumps(stream))[rows], expected)
    descriptor = stream.store._archive().fp.fileno()
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    child = os.fork()
    if not child:
        os._exit(0 if torch.equal(stream[rows.flip(0)].flip(0), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == before
    assert stream.store._archive() is stream.store._archive()


# Bad pictures -----------------------------------------------------------------------------------------------------

BAD = {
    "a/00.png": FILES["a/00.png"][:-30],
    "a/03.png": b"no picture",
    "a/57.png": b"",
    "b/31.png": _encoded(_pixels(1, 5, 5, 3)[0]),
    "c/59.png": _encoded(_pixels(1, 8, 7)[0]),
}


@pytest.fixture(scope="module", params=["folder", "archive.zip"])
def spoilt(request, tmp_path_factory):
    return _write(tmp_path_factory.mktemp("spoilt") / request.param, {**FILES, **BAD})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_an_error_of_one_line_when_its_batch_is_due(tmp_path, workers):
    stream = load_dataset(_write(tmp_path / "folder", FILES), options=ALWAYS).train
    row = 30
    name = stream.store.called(stream.numbers[row])
    others = torch.tensor([k for k in range(len(stream)) if k != row])
    with open(name, "wb") as file:  # it was good when the scaling was measured
        file.write(BAD["b/31.png"])
    reading = batches(stream, iter([others[:4], others[4:8], torch.tensor([row]), others[:4]]), workers)
    next(reading), next(reading)
    with pytest.raises(DataError) as caught:
        next(reading)
    assert caught.type is DataError
    message = str(caught.value)
    assert message.startswith("images differ: ")
    assert message.endswith("or pass over such images by --skip-bad")
    assert f"{name} is 5 x 5 in colour" in message
    assert "\n" not in message
    reading.close()
    assert not multiprocessing.active_children()


def _readable(name):
    """Whether a picture is good, by what was written."""
    return name not in BAD


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_of_its_class_stands_in_for_a_bad_picture(spoilt, workers):
    loaded = load_dataset(spoilt, options=SKIP)
    for stream, labels in ((loaded.train, loaded.train_labels), (loaded.test, loaded.test_labels)):
        names = [stream.store.called(n).removeprefix(f"{spoilt}/") for n in stream.numbers.tolist()]
        assert [loaded.classes[k] for k in labels] == [name[0] for name in names]
        expected = []
        for k, name in enumerate(names):
            cycle = [other for other in names[k:] + names[:k] if other[0] == name[0] and _readable(other)]
            expected.append(PIXELS[int(cycle[0][2:4])])
        plan = list(torch.randperm(len(names), generator=torch.Generator().manual_seed(1)).split(5))
        for rows, x, bad in batches(stream, iter(plan), workers):
            np.testing.assert_array_equal(x, np.stack([expected[row] for row in rows]))
            assert bad == sum(not _readable(names[row]) for row in rows)
    everywhere = [loaded.train.read(torch.arange(48))[1], loaded.test.read(torch.arange(12))[1]]
    assert sum(everywhere) == len(BAD)
    assert (f", {everywhere[0]} of which could not be read" in loaded.describe()) == (everywhere[0] > 0)


def test_in_memory_bad_pictures_are_passed_over_and_counted(spoilt):
    loaded = load_dataset(spoilt, options=DataOptions(skip_bad=True, holdout=0.2))
    assert loaded.skipped == len(BAD)
    images, labels = torch.cat([loaded.train, loaded.test]), torch.cat([loaded.train_labels, loaded.test_labels])
    found = sorted((x.numpy().tobytes(), loaded.classes[k]) for x, k in zip(images, labels, strict=True))
    good = [(PIXELS[int(name[2:4])].tobytes(), name[0]) for name in FILES if _readable(name)]
    assert found == sorted(good)
    assert f"passed over 5 of 60 images; the first: {spoilt}/a/00.png cannot be read (" in loaded.describe()
    message = r"a/00\.png cannot be read .*; or pass over such images by --skip-bad$"
    with pytest.raises(DataError, match=message):
        load_dataset(spoilt)
    store = FolderStore(spoilt) if spoilt.is_dir() else ZipStore(spoilt)
    with pytest.raises(DataError, match=message):
        pictures.PictureStream.of(store, np.arange(60))


@pytest.mark.parametrize("stream", ["always", "never"])
def test_nothing_readable(tmp_path, stream):
    options = DataOptions(stream=stream, skip_bad=True, holdout=0.2)
    bad = dict.fromkeys(FILES, b"x")
    with pytest.raises(DataError, match=r"none of 60 pictures can be read; the first: .*a/00\.png is not an image"):
        load_dataset(_write(tmp_path / "all", bad), options=options)
    one_class = {name: content if name[0] == "a" else b"x" for name, content in FILES.items()}
    if stream == "always":
        with pytest.raises(DataError, match="none of the pictures of class b can be read"):
            load_dataset(_write(tmp_path / "most", one_class), options=options)
    else:
        assert load_dataset(_write(tmp_path / "most", one_class), options=options).classes == ("a",)


def test_rows_with_nan_are_passed_over():
    x, labels = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), np.arange(20)
    x[3, 1], x[17, 0], x[17, 2] = float("nan"), float("inf"), float("-inf")
    part = Part(x, labels, "a.npz [x]").finite(skip_bad=True)
    assert torch.equal(part.x, torch.cat([x[:3], x[4:17], x[18:]]))
    assert part.labels.tolist() == [k for k in range(20) if k not in (3, 17)]
    loaded = dataset.assemble("a", part)
    assert loaded.skipped == 2
    assert "a.npz [x]: passed over 2 of 20 examples, which hold NaN or inf" in loaded.describe()
    with pytest.raises(DataError, match=r"2 of 20 examples hold NaN or inf, the first is row 3 .* by --skip-bad"):
        Part(x, labels, "a.npz [x]").finite(skip_bad=False)
    assert Part(x[4:9], labels[4:9], "a").finite(skip_bad=True).skipped == 0


# When and what is held --------------------------------------------------------------------------------------------


def test_auto_streams_beyond_a_quarter_of_memory(place, monkeypatch):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 4}.__getitem__)
    assert (too_large(100, "auto"), too_large(101, "auto")) == (False, True)
    assert (too_large(1 << 50, "never"), too_large(1, "always")) == (False, True)
    size = len(FILES) * 8 * 7 * 3
    for pages, streamed in ((4 * size, False), (4 * size - 1, True)):
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": pages}.__getitem__)
        assert isinstance(load_dataset(place).train, torch.Tensor) != streamed


def test_spread():
    assert spread(7, 10).tolist() == list(range(7))
    assert spread(10, 5).tolist() == [1, 3, 5, 7, 9]
    rows = spread(1003, 10).diff()
    assert rows.min() >= 100
    assert rows.max() <= 101


def test_decoded_pictures_are_not_held(tmp_path, monkeypatch):
    """500 pictures of 48 x 48 take 3.5 MB: loading decodes the measured ones and four more, and holds far less."""
    contents = [_encoded(p, ".jpg") for p in _pixels(5, 48, 48, 3)]
    place = _write(tmp_path / "a.zip", {f"{i:03d}.jpg": contents[i % 5] for i in range(500)})
    memory = load_dataset(place)
    monkeypatch.setattr(dataset, "_MEASURED_ROWS", 50)
    decoded, decode = [], pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda store, number: decoded.append(number) or decode(store, number))
    tracemalloc.start()
    stream = load_dataset(place, options=DataOptions(stream="always"))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(decoded) <= 50 + 1
    assert peak < memory.train.nbytes / 3
    assert held < memory.train.nbytes / 5
    assert stream.scaling == Scaling.measure(memory.train[[(2 * k + 1) * 450 // 100 for k in range(50)]])
    assert "measured on 50 of 450 training examples" in stream.describe()
    monkeypatch.setattr(dataset, "_MEASURED_BYTES", 7 * 48 * 48 * 3)
    assert "measured on 7 of 450 " in load_dataset(place, options=DataOptions(stream="always")).describe()


def test_fingerprints_of_streams(place, tmp_path):
    def streamed(path):
        return load_dataset(path, options=ALWAYS).fingerprint

    own = streamed(place)
    assert own == streamed(place)
    assert own != load_dataset(place, options=ALWAYS, seed=1).fingerprint
    for k in range(4):
        (tmp_path / str(k)).mkdir()
    moved = tmp_path / place.name
    shutil.copytree(place, moved) if place.is_dir() else shutil.copy(place, moved)
    assert streamed(moved) == own
    stream = load_dataset(place, options=ALWAYS).train
    name = stream.store.names[stream.numbers[5]]
    number = int(name[2:4])
    brighter = _encoded(PIXELS[number] ^ np.uint8(1))
    other = f"{'b' if name[0] == 'a' else 'a'}{name[1:]}"
    changed = (
        {**FILES, name: brighter},
        {n: content for n, content in FILES.items() if n != name},
        {other if n == name else n: content for n, content in FILES.items()},
        {f"{n[:-4]}-.png" if n == name else n: content for n, content in FILES.items()},
    )
    assert len(brighter) == len(FILES[name])
    prints = [streamed(_write(tmp_path / str(k) / place.name, files)) for k, files in enumerate(changed)]
    assert len({own, *prints}) == 5


# Processes that die -----------------------------------------------------------------------------------------------


class Fatal:
    """A stream whose reading kills the process."""

    def read(self, rows):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_while_it_is_waited_for_is_named():
    reading = batches(Fatal(), iter([torch.arange(2)]), 1)
    with pytest.raises(DataError, match=r"a process that reads the data is gone .*try --workers 0"):
        next(reading)
    assert not multiprocessing.active_children()


def test_a_process_killed_at_another_time_is_named(place):
    stream = load_dataset(place, options=ALWAYS).train
    reading = batches(stream, _plan(len(stream)), 1)

    def kill_the_reader():
        with killed_readers_named():
            next(reading)
            (child,) = multiprocessing.active_children()
            os.kill(child.pid, signal.SIGKILL)
            time.sleep(10)

    with pytest.raises(DataError, match=r"a process that reads the data is gone .*is killed by signal: Killed"):
        kill_the_reader()
    reading.close()
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="of another kind"), killed_readers_named():
        raise RuntimeError("of another kind")


@pytest.fixture
def usual_interrupts():
    """SIGINT as a program in a terminal has it: in the background of a shell script it is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_all_processes_are_left_to_the_one_that_is_read_for(place, sent, usual_interrupts):
    stream = load_dataset(place, options=ALWAYS).train
    reading, plan = batches(stream, _plan(len(stream)), 2), list(itertools.islice(_plan(len(stream)), 30))
    for _ in range(4):  # both processes have read
        next(reading)
    children = multiprocessing.active_children()
    assert len(children) == 2
    for child in children:
        os.kill(child.pid, sent)
    time.sleep(0.1)
    for expected in plan[4:30]:
        rows, x, _ = next(reading)
        assert torch.equal(rows, expected)
        assert torch.equal(x, stream[expected])
    assert all(child.is_alive() for child in children)
    reading.close()
    assert not multiprocessing.active_children()


def test_the_digest_passes_over_files_that_are_gone(tmp_path):
    folder = _write(tmp_path / "folder", FILES)
    os.remove(folder / "a/03.png")
    os.symlink(tmp_path / "nowhere.png", folder / "a/03.png")
    stream = load_dataset(folder, options=SKIP).train.take(torch.arange(0))
    store = stream.store
    found = {store.digest(np.arange(60))}
    os.remove(folder / "b/31.png")  # since the folder was read
    found.add(store.digest(np.arange(60)))
    os.remove(folder / "a/03.png")
    assert store.digest(np.arange(60)) in found
    (folder / "a/03.png").write_bytes(FILES["a/03.png"])
    found.add(store.digest(np.arange(60)))
    assert len(found) == 3
    assert len(load_dataset(folder, options=SKIP).fingerprint) == 64


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    folder = _write(tmp_path / "folder", FILES)
    os.rename(folder / "b", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / "b")
    names = list(FolderStore(folder).names)
    assert names == sorted(FILES)
    os.symlink(folder, folder / "a" / "up")
    os.symlink(tmp_path, folder / "a" / "further")
    os.symlink(folder, tmp_path / "elsewhere" / "back")  # above it by the way taken, not by its own path
    assert list(FolderStore(folder).names) == names
    os.symlink("a", folder / "again")  # twice, and no circle
    assert len(list(FolderStore(folder).names)) == len(names) + 20


def test_a_picture_has_the_rotation_that_its_camera_noted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {f"{i}.png": _encoded(p, exif=exif) for i, p in enumerate(PIXELS[:9])}
    stream = load_dataset(_write(tmp_path / "folder", files), options=ALWAYS).train
    assert stream.shape == (7, 7, 8, 3)
