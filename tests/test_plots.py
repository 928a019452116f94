"""Pictures, read back by Pillow pixel by pixel, and files written whole or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.data import load_dataset
from ornstein.errors import ConfigurationError, DataError
from ornstein.files import atomic_write
from ornstein.plots.grids import image_folder, image_grid

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_grid_pixel_by_pixel(tmp_path, channels):
    images = RNG.integers(0, 256, (7, 3, 5, *channels), dtype=np.uint8)
    path = image_grid(torch.from_numpy(images), tmp_path / "grid.png", columns=3, scale=4)
    picture = np.asarray(Image.open(path))
    assert picture.shape[:2] == (3 * (12 + 2) + 2, 3 * (20 + 2) + 2)
    covered = np.zeros(picture.shape[:2], dtype=bool)
    for i in range(7):
        for y in range(12):
            for x in range(20):
                row, column = 2 + (i // 3) * 14 + y, 2 + (i % 3) * 22 + x
                np.testing.assert_array_equal(picture[row, column], np.squeeze(images[i, y // 4, x // 4]))
                covered[row, column] = True
    assert (picture[~covered] == 255).all()
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_small_images_are_enlarged_and_large_ones_are_not(tmp_path):
    image_grid(np.zeros((4, 8, 8), np.uint8), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (102, 102)
    image_grid(np.zeros((1, 64, 80), np.uint8), tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").size == (84, 68)


def test_folder_reads_back_as_data(tmp_path):
    images = RNG.integers(0, 256, (12, 4, 6, 3), dtype=np.uint8)
    labels = [i % 3 for i in range(12)]
    image_folder(images, tmp_path / "classes", torch.tensor(labels))
    data = load_dataset(tmp_path / "classes")
    assert data.classes == ("0", "1", "2")
    for i in (0, 7, 11):
        stored = np.asarray(Image.open(tmp_path / "classes" / str(i % 3) / f"{i:06d}.png"))
        np.testing.assert_array_equal(stored, images[i])
    image_folder(images[..., 0], tmp_path / "flat")
    assert sorted(p.name for p in (tmp_path / "flat").iterdir())[:2] == ["000000.png", "000001.png"]
    assert load_dataset(tmp_path / "flat").train.shape == (11, 4, 6)


def test_bad_images_are_refused_and_nothing_is_written(tmp_path):
    good = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(DataError, match="float32; expected uint8"):
        image_grid(torch.rand(2, 3, 3), tmp_path / "x.png")
    with pytest.raises(DataError, match=r"\(2, 3, 3, 2\); expected"):
        image_grid(np.zeros((2, 3, 3, 2), np.uint8), tmp_path / "x.png")
    with pytest.raises(DataError, match="expected"):
        image_grid(np.zeros((0, 3, 3), np.uint8), tmp_path / "x.png")
    with pytest.raises(ConfigurationError, match="at least 1"):
        image_grid(good, tmp_path / "x.png", columns=0)
    with pytest.raises(DataError, match="1 labels for 2 images"):
        image_folder(good, tmp_path / "y", [1])
    for label in ("../up", "a/b", "", "."):
        with pytest.raises(ConfigurationError, match="cannot be the name"):
            image_folder(good, tmp_path / "y", ["ok", label])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("keep")
    for write in (image_folder, image_grid):
        with pytest.raises(ConfigurationError, match="exists already"):
            write(np.zeros((2, 3, 3), np.uint8), tmp_path / "there")
    assert (tmp_path / "there" / "mine.txt").read_text() == "keep"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_write(target) as temporary:  # noqa: PT012
        temporary.write_text("half of the ne")
        assert target.read_text() == "old"
        raise error
    assert target.read_text() == "old"
    with pytest.raises(error), atomic_write(tmp_path / "folder") as temporary:  # noqa: PT012
        temporary.mkdir()
        (temporary / "a").write_text("a")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_write_that_ends_replaces_the_file(tmp_path):
    target = tmp_path / "new" / "arrays.npz"
    for value in (1, 2):
        with atomic_write(target) as temporary:
            assert temporary.parent == target.parent
            np.savez(temporary, x=np.full(3, value))
    assert np.load(target)["x"].tolist() == [2, 2, 2]
    assert [p.name for p in target.parent.iterdir()] == ["arrays.npz"]
