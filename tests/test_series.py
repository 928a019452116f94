"""Series (n, length, channels): their scaling by numpy, files, the 1-D U-Net, ragged and bad ones."""

import json
import math

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.config import DataOptions
from ornstein.data import Scaling, load_dataset
from ornstein.errors import ConfigurationError, DataError
from ornstein.networks import UNet

RNG = np.random.default_rng(0)
SERIES = (RNG.normal(size=(40, 12, 3)) * [0.1, 1, 50] + [5, 0, -300]).astype(np.float32)


def saved(folder, **arrays):
    np.savez(folder / "s.npz", **arrays)
    return folder / "s.npz"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_channel_is_standardised_and_comes_first(dtype):
    raw = SERIES.astype(dtype)
    scaling = Scaling.measure(torch.from_numpy(raw))
    assert (scaling.layout, scaling.shape, scaling.raw_shape) == ("lc", (3, 12), (12, 3))
    assert (scaling.is_image, scaling.levels, scaling.sigma_data, scaling.dims) == (False, None, 1, 36)
    exact = raw.astype(np.float64)
    expected = (exact - exact.mean((0, 1))) / exact.std((0, 1))
    x = scaling.encode(raw)
    np.testing.assert_allclose(x, expected.transpose(0, 2, 1), atol=1e-4)
    back = scaling.decode(x)
    assert back.is_contiguous()
    assert back.numpy().dtype == dtype
    np.testing.assert_allclose(back, raw, rtol=1e-5, atol=1e-5)


def test_one_scale_for_all_channels_on_demand():
    scaling = Scaling.measure(torch.from_numpy(SERIES), per_feature=False)
    assert len(scaling.shift) == 1
    assert 1 / scaling.scale[0] == pytest.approx(SERIES.astype(np.float64).std(), rel=1e-9)
    np.testing.assert_allclose(scaling.decode(scaling.encode(SERIES)), SERIES, atol=1e-3)


def test_log_det_counts_every_time_of_every_channel():
    scaling = Scaling.measure(torch.from_numpy(SERIES))
    assert scaling.log_det() == pytest.approx(-12 * np.log(SERIES.astype(np.float64).std((0, 1))).sum(), rel=1e-9)


def test_a_scaling_of_series_survives_json():
    scaling = Scaling.measure(torch.from_numpy(SERIES))
    assert Scaling.from_dict(json.loads(json.dumps(scaling.to_dict()))) == scaling
    for change in ({"shape": [36]}, {"shift": [0.0] * 12, "scale": [1.0] * 12}, {"levels": 9, "dtype": "uint8"}):
        with pytest.raises(ConfigurationError):
            Scaling.from_dict({**scaling.to_dict(), **change})


def test_series_of_a_file(tmp_path):
    data = load_dataset(saved(tmp_path, x=SERIES, y=np.arange(40) % 2))
    assert data.scaling.layout == "lc"
    assert tuple(data.train.shape) == (36, 12, 3)
    assert data.classes == ("0", "1")
    # images keep their meaning: three axes of uint8 are grey pictures
    assert load_dataset(saved(tmp_path, x=RNG.integers(0, 9, (40, 12, 3), dtype=np.uint8))).scaling.layout == "hw"


def test_ragged_series_are_refused_by_their_lengths(tmp_path):
    ragged = {f"s{k}": np.zeros((length, 2)) for k, length in enumerate((40, 40, 65))}
    with pytest.raises(
        DataError, match=r"3 series of 2 lengths, 40 to 65 \(s0: 40, s2: 65\); expected one length: cut or pad"
    ):
        load_dataset(saved(tmp_path, **ragged))
    with pytest.raises(DataError, match=r"2 series of 2 lengths, 3 to 4"):
        load_dataset(saved(tmp_path, a=np.zeros(3), b=np.zeros(4)))
    for other in (np.zeros((4, 2)), np.zeros((9, 2, 5)), np.array(44_100)):
        with pytest.raises(DataError, match="expected a single array"):
            load_dataset(saved(tmp_path, a=np.zeros((4, 2)), b=other))
    with pytest.raises(DataError, match="expected a single array"):
        load_dataset(saved(tmp_path, a=np.zeros((4, 2, 5)), b=np.zeros((9, 2, 5))))
    with pytest.raises(DataError, match=r"3 series of 2 lengths, 40 to 65"):
        load_dataset(saved(tmp_path, rate=np.array(44_100), **ragged))
    objects = np.empty(3, dtype=object)
    objects[:] = [np.zeros((length, 2)) for length in (4, 5, 6)]
    with pytest.raises(DataError, match=r"series of different lengths.*unpickling.*cut or pad them"):
        load_dataset(saved(tmp_path, x=objects))


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_a_note_tells_series_from_grey_images(tmp_path, dtype):
    said = "arrays of 3 axes are taken as series (n, length, channels); for grey images store uint8"
    assert load_dataset(saved(tmp_path, x=(9 * SERIES).astype(dtype))).describe().count(said) == 1
    assert said not in load_dataset(saved(tmp_path, x=(9 * SERIES).astype("uint8"))).describe()
    assert said not in load_dataset(saved(tmp_path, x=SERIES[:, :, 0])).describe()


def test_bad_series(tmp_path):
    constant = SERIES.copy()
    constant[..., 1] = 4
    with pytest.raises(
        DataError, match=r"1 of 3 channels are constant \(channel 1, .*x\.std\(\(0, 1\)\) > 0.*for grey"
    ):
        load_dataset(saved(tmp_path, x=constant))
    gaps = SERIES.copy()
    gaps[7, 3, 1] = math.nan
    with pytest.raises(DataError, match=r"1 of 40 examples hold NaN or inf, the first is row 7.*--skip-bad"):
        load_dataset(saved(tmp_path, x=gaps))
    data = load_dataset(saved(tmp_path, x=gaps, y=np.arange(40)), options=DataOptions(skip_bad=True))
    assert (len(data.train) + len(data.test), data.skipped) == (39, 1)
    assert "7" not in data.classes


def test_the_unet_samples_series_in_their_own_layout():
    scaling = Scaling.measure(torch.from_numpy(SERIES))
    network = UNet(channels=3, dims=1, widths=(8,), blocks=1, attention=0)
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.EDM()), parametrization="edm", sigma_data=1.0)
    # before training the network gives 0, so the denoiser is the optimal one of white noise of variance 1
    x = scaling.decode(orn.sample(denoiser, orn.Heun(), n=400, shape=scaling.shape, steps=30, seed=0).x)
    assert tuple(x.shape) == (400, 12, 3)
    np.testing.assert_allclose(x.mean((0, 1)), SERIES.mean((0, 1)), atol=0.1 * SERIES.std((0, 1)).max())
    np.testing.assert_allclose(x.std((0, 1)), SERIES.std((0, 1)), rtol=0.1)
