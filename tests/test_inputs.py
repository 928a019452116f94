"""Images and masks that samples are asked to resemble: what is converted, what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import Scaling
from ornstein.data.inputs import read_examples, read_mask
from ornstein.errors import DataError

GREY = Scaling((1, 8, 8), "hw", (100.0,), (2 / 255,), 256, "uint8", 0.6)
COLOUR = Scaling((3, 8, 8), "hwc", (100.0,), (2 / 255,), 256, "uint8", 0.6)
FIRST = Scaling((3, 8, 8), "chw", (100.0,), (2 / 255,), 256, "uint8", 0.6)
COARSE = Scaling((1, 8, 8), "hw", (8.0,), (2 / 16,), 17, "uint8", 0.6)
SERIES = Scaling((2, 5), "lc", (0.0, 0.0), (1.0, 1.0), None, "float32", 1.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def saved(folder, pixels, name="x.png"):
    path = folder / name
    np.save(path, pixels) if name.endswith(".npy") else Image.fromarray(pixels).save(path)
    return path


def test_an_image_of_the_model_is_taken_as_it_is(tmp_path):
    for scaling, pixels in ((GREY, PIXELS[..., 0]), (COLOUR, PIXELS), (FIRST, PIXELS)):
        found, notes = read_examples(saved(tmp_path, pixels), scaling)
        wanted = pixels.transpose(2, 0, 1) if scaling is FIRST else pixels
        assert np.array_equal(found, wanted[None])
        assert notes == []


def test_conversions_are_said(tmp_path):
    found, notes = read_examples(saved(tmp_path, PIXELS), GREY)
    assert np.array_equal(found[0], np.asarray(Image.fromarray(PIXELS).convert("L")))
    assert "taken in grey" in notes[0]
    found, notes = read_examples(saved(tmp_path, PIXELS[..., 0]), COLOUR)
    assert np.array_equal(found[0], PIXELS[..., :1].repeat(3, 2))
    assert "three colours" in notes[0]
    large = PIXELS[..., 0].repeat(3, 0).repeat(3, 1)
    found, notes = read_examples(saved(tmp_path, large), GREY)
    assert np.array_equal(found[0], PIXELS[..., 0])  # means of equal pixels
    assert "resized from 24 x 24 to 8 x 8" in notes[0]
    found, notes = read_examples(saved(tmp_path, PIXELS[..., 0]), COARSE)
    assert np.array_equal(found[0], np.round(PIXELS[..., 0] * (16 / 255.0)))
    assert "17 levels" in notes[0]


def test_a_folder_gives_its_images_by_name(tmp_path):
    for i, name in enumerate(("b.png", "a.png")):
        saved(tmp_path, PIXELS[..., i], name)
    (tmp_path / "notes.txt").write_text("no image")
    found, _ = read_examples(tmp_path, GREY)
    assert np.array_equal(found, PIXELS[..., 1::-1].transpose(2, 0, 1))


def test_arrays(tmp_path):
    series = np.arange(10, dtype=np.float32).reshape(5, 2)
    for array in (series, series[None], series[None].astype(np.float64)):
        found, notes = read_examples(saved(tmp_path, array, "x.npy"), SERIES)
        assert found.shape == (1, 5, 2)
        assert found.dtype == torch.float32
        assert notes == []
    np.savez(tmp_path / "x.npz", samples=series[None], labels=np.zeros(1))
    assert np.array_equal(read_examples(tmp_path / "x.npz", SERIES)[0], series[None])
    np.savez(tmp_path / "x.npz", a=series, b=series)
    for path, scaling, said in (
        (tmp_path / "x.npz", SERIES, "arrays a, b, expected one"),
        (saved(tmp_path, series[:4], "x.npy"), SERIES, "(4, 2), expected examples of the model, (k, 5, 2)"),
        (saved(tmp_path, series * np.nan, "y.npy"), SERIES, "NaN"),
        (saved(tmp_path, np.full((1, 8, 8), 17), "z.npy"), COARSE, "17 to 17, expected the model's levels"),
        (saved(tmp_path, np.full((1, 8, 8), 0.5), "w.npy"), COARSE, "0.5 to 0.5"),
    ):
        with pytest.raises(DataError, match=said.replace("(", r"\(").replace(")", r"\)")):
            read_examples(path, scaling)


def test_what_has_no_obvious_way_is_refused(tmp_path):
    for pixels, name, scaling, said in (
        (PIXELS[:4], "x.png", COLOUR, "4 x 8, expected 8 x 8 or the same proportions"),
        (PIXELS, "x.png", SERIES, "expected a .npy or .npz"),
        (np.dstack([PIXELS, PIXELS[..., 0]]), "x.png", COLOUR, "transparent in parts"),
    ):
        with pytest.raises(DataError, match=said):
            read_examples(saved(tmp_path, pixels, name), scaling)
    with pytest.raises(DataError, match=r"nowhere.png does not exist"):
        read_examples(tmp_path / "nowhere.png", GREY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        read_examples(tmp_path / "empty", GREY)


def test_masks(tmp_path):
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[4:] = 255
    for scaling in (GREY, COLOUR):
        missing, notes = read_mask(saved(tmp_path, mask), scaling)
        assert missing.shape == (1, *scaling.shape)
        assert np.array_equal(missing[0, -1], mask > 0)
        assert notes == []
    fine = mask.repeat(3, 0).repeat(3, 1)
    fine[11, :] = 255  # of three rows that become one, the middle one counts
    assert not read_mask(saved(tmp_path, fine), GREY)[0][0, 0, 3].any()
    soft = mask.copy()
    soft[0, :2] = 127, 128
    missing, notes = read_mask(saved(tmp_path, soft), GREY)
    assert missing[0, 0, 0, :2].tolist() == [False, True]
    assert "2 values between black and white" in notes[0]
    missing, notes = read_mask(saved(tmp_path, mask.repeat(2, 0).repeat(2, 1)), GREY)
    assert np.array_equal(missing[0, 0], mask > 0)
    assert "resized" in notes[0]
    held = np.zeros((5, 2), dtype=bool)
    held[2:] = True
    assert np.array_equal(read_mask(saved(tmp_path, held, "m.npy"), SERIES)[0][0], held.T)
    for pixels, name, scaling, said in (
        (mask * 0, "x.png", GREY, "marks nothing"),
        (mask * 0 + 255, "x.png", GREY, "marks everything"),
        (mask[:4], "x.png", GREY, "4 x 8, expected 8 x 8"),
        (held.astype(float), "m.npy", SERIES, "expected truth values"),
        (mask, "x.png", SERIES, "expected a .npy or .npz file of truth values"),
    ):
        with pytest.raises(DataError, match=said):
            read_mask(saved(tmp_path, pixels, name), scaling)
