"""Folders and zips of images: pixels as Pillow wrote them, classes, order, and bad files named."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import load_dataset
from ornstein.errors import DataError

RNG = np.random.default_rng(0)
CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10-jpeg-test.zip"


def _pixels(n, *shape):
    return list(RNG.integers(0, 256, (n, *shape), dtype=np.uint8))


def _encoded(image, suffix=".png", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format=Image.registered_extensions()[suffix], **options)
    return buffer.getvalue()


GREY = [_encoded(p) for p in _pixels(12, 6, 5)]


def _write(place, files):
    """Write files into a folder, or a zip where the name of the place says so."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return place
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


@pytest.fixture(params=["folder", "archive.zip"])
def place(request, tmp_path):
    return tmp_path / request.param


def _labelled(data):
    """{bytes of an image: its class} over both parts."""
    labels = torch.cat([data.train_labels, data.test_labels])
    images = torch.cat([data.train, data.test])
    return {image.numpy().tobytes(): data.classes[label] for image, label in zip(images, labels, strict=True)}


@pytest.mark.parametrize("outer", ["", "outer/", "outer/more/"])
def test_subfolders_are_classes(place, outer):
    pixels = _pixels(12, 6, 5, 3)
    names = [f"{['cat', 'dog', 'eel'][i % 3]}/{i:02d}.png" for i in range(12)]
    files = {outer + name: _encoded(p) for name, p in zip(names, pixels, strict=True)}
    data = load_dataset(_write(place, files))
    assert data.classes == ("cat", "dog", "eel")
    assert data.scaling.layout == "hwc"
    assert _labelled(data) == {p.tobytes(): name[:3] for name, p in zip(names, pixels, strict=True)}


def test_flat_folders_have_no_classes_and_keep_the_order_of_names(place):
    pixels = _pixels(12, 6, 5)
    order = RNG.permutation(12)
    files = {f"{i:02d}.{'png' if i % 2 else 'bmp'}": _encoded(pixels[i], ".png" if i % 2 else ".bmp") for i in order}
    extra = {"README.txt": b"hello", ".hidden.png": b"", "__MACOSX/._01.png": b""}
    data = load_dataset(_write(place, {**files, **extra}))
    assert data.train_labels is None
    assert (data.train.shape, data.test.shape) == ((11, 6, 5), (1, 6, 5))
    kept = [p for p in pixels if not np.array_equal(p, data.test[0])]
    np.testing.assert_array_equal(data.train, np.stack(kept))
    assert "passed over 1 files that are not images, such as README.txt" in data.describe()


@pytest.mark.parametrize("held", ["test", "val"])
@pytest.mark.parametrize("classes", [True, False])
def test_train_and_test_folders_are_parts_and_not_classes(place, held, classes):
    files = {}
    for i, content in enumerate(GREY):
        files[f"{'train' if i < 8 else held}/{'ab'[i % 2] + '/' if classes else ''}{i:02d}.png"] = content
    data = load_dataset(_write(place, files))
    assert (len(data.train), len(data.test)) == (8, 4)
    assert data.classes == (("a", "b") if classes else ())
    for i, content in enumerate(GREY):
        expected = np.asarray(Image.open(io.BytesIO(content)))
        part = data.train if i < 8 else data.test
        matches = [k for k, image in enumerate(part) if np.array_equal(image, expected)]
        assert len(matches) == 1
        if classes:
            assert (data.train_labels if i < 8 else data.test_labels)[matches[0]] == i % 2


def test_edm_layout(place):
    names = [f"{i // 6:05d}/img{i:08d}.png" for i in range(12)]
    labels = [7 - i % 3 for i in range(12)]
    files = dict(zip(names, GREY, strict=True))
    index = json.dumps({"labels": [list(pair) for pair in zip(names[::-1], labels[::-1], strict=True)]})
    data = load_dataset(_write(place, {**files, "dataset.json": index.encode()}))
    assert data.classes == ("5", "6", "7")
    decoded = [np.asarray(Image.open(io.BytesIO(c))).tobytes() for c in GREY]
    assert _labelled(data) == {p: str(label) for p, label in zip(decoded, labels, strict=True)}


def test_edm_layout_without_labels(place):
    files = {f"{i // 6:05d}/img{i:08d}.png": content for i, content in enumerate(GREY)}
    data = load_dataset(_write(place, {**files, "dataset.json": b'{"labels": null}'}))
    assert (data.train_labels, data.classes) == (None, ())


@pytest.mark.skipif(not CIFAR.exists(), reason="needs the CIFAR-10 test images as a zip")
def test_a_real_zip():
    data = load_dataset(CIFAR)
    assert (data.train.shape, data.test.shape) == ((9000, 32, 32, 3), (1000, 32, 32, 3))
    assert data.train_labels.bincount().tolist() == [900] * 10
    assert data.test_labels.bincount().tolist() == [100] * 10
    with zipfile.ZipFile(CIFAR) as archive:
        first = np.asarray(Image.open(io.BytesIO(archive.read("0/0000.jpg"))))
    assert any(np.array_equal(image, first) for image in (data.train[0], data.test[0]))


def _palette(colours=8):
    return Image.fromarray(RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)).quantize(colours)


def _opaque(mode):
    image = Image.fromarray(RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)).convert(mode)
    image.putalpha(255)
    return image


@pytest.mark.parametrize(
    ("make", "suffix", "mode"),
    [
        (_palette, ".png", "RGB"),
        (_palette, ".gif", "RGB"),
        (lambda: _opaque("RGB"), ".png", "RGB"),
        (lambda: _opaque("L"), ".png", "L"),
        (lambda: Image.fromarray(RNG.integers(0, 2, (6, 5), dtype=np.uint8) * 255).convert("1"), ".png", "L"),
    ],
)
def test_what_has_one_obvious_meaning_is_converted(tmp_path, make, suffix, mode):
    images = [make() for _ in range(4)]
    files = {f"{i}{suffix}": _encoded(image, suffix) for i, image in enumerate(images)}
    data = load_dataset(_write(tmp_path / "folder", files))
    expected = [np.asarray(image.convert(mode)) for image in images]
    found = [*data.train.numpy(), *data.test.numpy()]
    assert sorted(a.tobytes() for a in found) == sorted(a.tobytes() for a in expected)


def test_rotation_of_photographs_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    pixels = _pixels(4, 6, 5)
    files = {f"{i}.png": _encoded(p, exif=exif) for i, p in enumerate(pixels)}
    data = load_dataset(_write(tmp_path / "folder", files))
    found = sorted(a.tobytes() for a in [*data.train.numpy(), *data.test.numpy()])
    assert found == sorted(np.rot90(p, -1).tobytes() for p in pixels)


def _transparent():
    image = _opaque("RGB")
    image.putpixel((1, 1), (0, 0, 0, 9))
    return _encoded(image)


def _animation():
    frames = [Image.fromarray(p) for p in _pixels(2, 6, 5)]
    return _encoded(frames[0], ".gif", save_all=True, append_images=frames[1:])


PRINT = _encoded(Image.fromarray(_pixels(1, 6, 5, 3)[0]).convert("CMYK"), ".jpg")
DEEP = _encoded(Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5) * 999))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images; expected files ending in .png"),
        ({"notes.txt": b"x"}, "holds no images"),
        ({"b.png": b""}, "b.png is not an image that Pillow can read"),
        ({"b.png": b"not a picture"}, "b.png is not an image that Pillow can read"),
        ({"a.png": GREY[0], "b.png": GREY[1][:-30]}, "b.png cannot be read"),
        (
            {"a.png": GREY[0], "b.png": _encoded(_pixels(1, 4, 9)[0])},
            r"a.png is 6 x 5 in grey, .*b.png is 4 x 9 in grey",
        ),
        (
            {"a.png": GREY[0], "b.png": _encoded(_pixels(1, 6, 5, 3)[0])},
            "a.png is 6 x 5 in grey, .*b.png is 6 x 5 in colour",
        ),
        ({"b.png": _transparent()}, "b.png is transparent in parts; expected opaque images"),
        ({"b.gif": _animation()}, "b.gif holds several images"),
        ({"b.jpg": PRINT}, r"b.jpg has CMYK \(print\) colours; expected 8-bit grey or RGB"),
        ({"b.png": DEEP}, "b.png has integers of more than 8 bits"),
        ({"a.png": GREY[0], "x/b.png": GREY[1]}, "images beside subfolders of images .a.png beside x/"),
        (
            {"train/a.png": GREY[0], "train/x/b.png": GREY[1], "test/c.png": GREY[2]},
            "train holds images beside subfolders",
        ),
        ({"a.png": GREY[0], "b.png": GREY[1]}, "2 examples, of which 1 would be held out"),
        ({"a.png": GREY[0], "dataset.json": b"{"}, "dataset.json is not JSON"),
        ({"a.png": GREY[0], "dataset.json": b"\xff\xfe\xfa"}, "dataset.json is not JSON"),
        ({"a.png": GREY[0], "dataset.json": b"[]"}, "dataset.json has no entry 'labels'"),
        ({"a.png": GREY[0], "dataset.json": b'{"labels": [["a.png", [0, 1]]]}'}, "labels of another form; expected"),
        ({"a.png": GREY[0], "b.png": GREY[1], "dataset.json": b'{"labels": [["a.png", 0]]}'}, "no class to b.png"),
        ({"a.png": GREY[0], "dataset.json": b'{"labels": [["a.png", 0], ["z.png", 0]]}'}, "names z.png, which is not"),
    ],
)
def test_bad_files_are_named(place, files, message):
    if place.suffix != ".zip":
        place.mkdir()
    with pytest.raises(DataError, match=message):
        load_dataset(_write(place, files))


def test_damaged_zips_are_named(tmp_path):
    path = _write(tmp_path / "a.zip", {f"{i}.png": content for i, content in enumerate(GREY)})
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(GREY[3]) + 50] ^= 0xFF
    for content, message in (
        (b"", "a.zip cannot be read as a zip"),
        (whole[:-40], "a.zip cannot be read as a zip"),
        (b"hello", "a.zip cannot be read as a zip"),
        (bytes(flipped), "a.zip/3.png cannot be read .*CRC"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_dataset(path)
