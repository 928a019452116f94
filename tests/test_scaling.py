"""Scaling: round trips, moments by numpy, log_det by autograd and finite differences."""

import json
import math

import numpy as np
import pytest
import torch

from ornstein.data import Scaling, to_uint8_images
from ornstein.errors import ConfigurationError, DataError, NumericalError

RNG = np.random.default_rng(0)


def _tensor(array):
    return torch.from_numpy(np.array(array))


@pytest.mark.parametrize(
    ("shape", "layout", "model"),
    [
        ((5, 4, 6), "hw", (1, 4, 6)),
        ((5, 4, 6, 3), "hwc", (3, 4, 6)),
        ((5, 4, 6, 1), "hwc", (1, 4, 6)),
        ((5, 3, 4, 6), "chw", (3, 4, 6)),
        ((5, 7), "plain", (7,)),
        ((5, 2, 4, 6), "plain", (2, 4, 6)),
    ],
)
@pytest.mark.parametrize("levels", [256, 17, 2])
def test_levels_round_trip_exactly(shape, layout, model, levels):
    raw = RNG.integers(0, levels, shape).astype(np.uint8)
    scaling = Scaling.measure(_tensor(raw), levels=levels)
    assert (scaling.layout, scaling.shape, scaling.raw_shape) == (layout, model, shape[1:])
    x = scaling.encode(_tensor(raw))
    expected = 2.0 * (raw - raw.mean()) / (levels - 1)
    if layout == "hw":
        expected = expected[:, None]
    elif layout == "hwc":
        expected = expected.transpose(0, 3, 1, 2)
    assert x.dtype == torch.float32
    assert x.shape == (5, *model)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)
    back = scaling.decode(x)
    assert back.dtype == torch.uint8
    assert back.is_contiguous()
    np.testing.assert_array_equal(back.numpy(), raw)
    assert abs(expected.mean()) < 1e-12
    # sigma_data, from its definition
    assert scaling.sigma_data == pytest.approx(expected.std(), rel=1e-12)


def test_decode_rounds_to_the_nearest_level_and_clamps():
    scaling = Scaling.measure(_tensor(np.arange(17, dtype=np.uint8).reshape(17, 1, 1)), levels=17)
    step = 2 / 16
    x = torch.tensor([-5.0, -1 + 0.49 * step, -1 + 0.51 * step, 0.0, 1 + 3 * step]).reshape(5, 1, 1, 1)
    assert scaling.decode(x).flatten().tolist() == [0, 0, 1, 8, 16]


def test_images_with_channels_last_stay_so_in_memory():
    raw = _tensor(RNG.integers(0, 256, (4, 8, 6, 3), dtype=np.uint8))
    assert Scaling.measure(raw).encode(raw).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_are_standardised_per_feature(dtype):
    raw = (RNG.normal(size=(200, 3)) * [0.01, 1, 500] + [100, 0, -3]).astype(dtype)
    scaling = Scaling.measure(_tensor(raw))
    x = scaling.encode(_tensor(raw)).numpy()
    exact = raw.astype(np.float64)
    np.testing.assert_allclose(x, (exact - exact.mean(0)) / exact.std(0), atol=1e-3 if dtype == np.float32 else 1e-6)
    back = scaling.decode(torch.from_numpy(x))
    assert back.numpy().dtype == dtype
    np.testing.assert_allclose(back.numpy(), raw, rtol=1e-6, atol=1e-4)
    assert scaling.sigma_data == 1
    assert len(scaling.shift) == 3


def test_small_variation_on_a_large_offset_survives_in_float64():
    raw = RNG.normal(size=(500, 2)) * 1e-3 + 1e6
    x = Scaling.measure(_tensor(raw)).encode(_tensor(raw)).double().numpy()
    np.testing.assert_allclose(x.std(0), 1, atol=1e-5)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)


@pytest.mark.parametrize("shape", [(50, 3, 9, 14), (50, 2, 3, 4, 5)])
def test_arrays_of_more_axes_have_one_mean_and_std(shape):
    raw = (RNG.gamma(2.0, size=shape) * 7 + 3).astype(np.float32)
    scaling = Scaling.measure(_tensor(raw))
    assert scaling.shape == scaling.raw_shape == shape[1:]
    assert scaling.shift[0] == pytest.approx(raw.astype(np.float64).mean(), rel=1e-10)
    assert 1 / scaling.scale[0] == pytest.approx(raw.astype(np.float64).std(), rel=1e-10)


def test_statistics_do_not_depend_on_the_size_of_the_chunks(monkeypatch):
    raw = _tensor(RNG.normal(size=(97, 5)) * [1, 2, 3, 4, 5] + 10)
    images = _tensor(RNG.integers(0, 256, (97, 4, 3), dtype=np.uint8))
    whole = Scaling.measure(raw), Scaling.measure(images)
    monkeypatch.setattr("ornstein.data.scaling._CHUNK", 32)
    small = Scaling.measure(raw), Scaling.measure(images)
    np.testing.assert_allclose(whole[0].scale, small[0].scale, rtol=1e-13)
    np.testing.assert_allclose(whole[0].shift, small[0].shift, rtol=1e-13)
    assert whole[1] == small[1]


def test_log_det_is_the_jacobians_by_autograd():
    cases = [
        _tensor(RNG.normal(size=(40, 4)) * [1, 2, 30, 0.1]),
        _tensor(RNG.normal(size=(40, 3, 2)) * 5),
    ]
    for raw in cases:
        scaling = Scaling.measure(raw)
        jacobian = torch.autograd.functional.jacobian(
            lambda r, s=scaling: s.encode(r[None])[0].double().flatten(), raw[0]
        )
        _, expected = np.linalg.slogdet(jacobian.reshape(scaling.dims, scaling.dims).numpy())
        assert scaling.log_det() == pytest.approx(expected, rel=1e-6)


def test_log_det_of_images_is_the_slope_between_levels():
    raw = _tensor(RNG.integers(0, 17, (9, 3, 5), dtype=np.uint8))
    scaling = Scaling.measure(raw, levels=17)
    dark, light = (scaling.encode(torch.full((1, 3, 5), v, dtype=torch.uint8)).double() for v in (3, 4))
    assert scaling.log_det() == pytest.approx(float((light - dark).log().sum()), rel=1e-5)
    assert scaling.log_det() == pytest.approx(15 * math.log(2 / 16))


def test_json_round_trip_is_exact():
    for raw in (_tensor(RNG.normal(size=(9, 3)) / 3), _tensor(RNG.integers(0, 255, (9, 3, 2), dtype=np.uint8))):
        scaling = Scaling.measure(raw)
        again = Scaling.from_dict(json.loads(json.dumps(scaling.to_dict())))
        assert again == scaling
        assert torch.equal(again.encode(raw), scaling.encode(raw))


def test_pictures_run_from_black_to_white():
    raw = _tensor(np.arange(17, dtype=np.uint8).reshape(1, 1, 17).repeat(2, 0))
    scaling = Scaling.measure(raw, levels=17)
    expected = np.round(np.arange(17) * 255 / 16)
    np.testing.assert_array_equal(to_uint8_images(scaling, raw)[0, 0].numpy(), expected)
    colour = _tensor(RNG.integers(0, 256, (2, 3, 4, 5), dtype=np.uint8))
    np.testing.assert_array_equal(to_uint8_images(Scaling.measure(colour), colour), colour.movedim(1, -1))
    assert to_uint8_images(Scaling.measure(colour[:, :1]), colour[:, :1]).shape == (2, 4, 5)
    plain = _tensor(RNG.normal(size=(3, 4)))
    with pytest.raises(DataError, match="not images"):
        to_uint8_images(Scaling.measure(plain), plain)


def test_encode_takes_numpy_read_only_too():
    raw = RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    scaling = Scaling.measure(_tensor(raw))
    raw.flags.writeable = False
    assert torch.equal(scaling.encode(raw), scaling.encode(_tensor(raw)))


def test_bad_input_is_refused():
    with pytest.raises(DataError, match=r"2 of 4 columns are constant \(column 1, 3.*remove them"):
        Scaling.measure(_tensor(RNG.normal(size=(9, 4)) * [1, 0, 1, 0] + 0.1))
    with pytest.raises(DataError, match=r"all training values are 0\.5"):
        Scaling.measure(torch.full((4, 3, 2, 2), 0.5))
    with pytest.raises(DataError, match="all training values are 7"):
        Scaling.measure(torch.full((4, 3, 2), 7, dtype=torch.uint8))
    with pytest.raises(DataError, match="beyond float64"):
        Scaling.measure(_tensor([[1e300], [-1e300]]))
    with pytest.raises(DataError, match="up to 20; expected at most 16"):
        Scaling.measure(_tensor(np.arange(21, dtype=np.uint8).reshape(21, 1, 1)), levels=17)
    with pytest.raises(ConfigurationError, match="int64"):
        Scaling.measure(torch.arange(6).reshape(3, 2))
    with pytest.raises(ConfigurationError, match="levels are for uint8"):
        Scaling.measure(torch.rand(3, 2), levels=17)
    scaling = Scaling.measure(torch.rand(5, 3))
    with pytest.raises(DataError, match=r"shape \(2, 4\); expected \(n, 3\)"):
        scaling.encode(torch.rand(2, 4))
    with pytest.raises(DataError, match="expected"):
        scaling.decode(torch.rand(2, 4))
    with pytest.raises(NumericalError, match="1 of 2 samples hold NaN or inf, the first is row 1"):
        scaling.decode(torch.tensor([[0.0, 1, 2], [0, math.nan, math.inf]]))
    values = scaling.to_dict()
    with pytest.raises(ConfigurationError, match="expected"):
        Scaling.from_dict({k: v for k, v in values.items() if k != "shift"})
    for change in (
        {"scale": [0.0] * 3},
        {"scale": [1.0]},
        {"levels": 9},
        {"layout": "hw"},
        {"dtype": "int8"},
        {"sigma_data": 0.0},
        {"shift": [math.nan] * 3},
    ):
        with pytest.raises(ConfigurationError):
            Scaling.from_dict({**values, **change})
