"""SDEdit and interpolation against closed forms on normal laws."""

import math

import pytest
import torch
from helpers import SCHEDULES, check_refusal, level, numbers

import ornstein as orn
from ornstein import exact
from ornstein.editing import noised_start
from ornstein.processes import Normal as Base
from ornstein.samplers import recipe


@pytest.mark.parametrize("name", ["linear", "edm", "flow", "table-cosine"])
def test_sdedit_begins_at_the_noised_example(name):
    """Of N(0, v): x_0 = slope x_t by the ODE, with slope^2 = v / (alpha^2 v + sigma^2), so that the examples' mark is known."""
    process, v = orn.Gaussian(SCHEDULES[name]), 0.5
    denoiser = exact.Normal(process, torch.zeros(2).double(), v)
    x = torch.tensor([[4.0, -2.0], [0.0, 1.0]]).double()
    for strength in (0.3, 0.7):
        found = orn.sdedit(denoiser, x, strength, orn.Heun(), n=400, steps=40, seed=3)
        (alpha, sigma), (alpha_0, sigma_0) = level(process.schedule, strength), level(process.schedule, 0.0)
        if sigma_0 == 0:
            slope = math.sqrt(v / (alpha**2 * v + sigma**2))
        else:  # it lands from the first level
            slope = math.sqrt((alpha_0**2 * v + sigma_0**2) / (alpha**2 * v + sigma**2)) * alpha_0 * v
            slope /= alpha_0**2 * v + sigma_0**2
        rest = found.x - alpha * slope * x.repeat(200, 1)  # what the noise made
        assert rest.reshape(200, 4).mean(0).abs().max() < 4 * sigma * slope / math.sqrt(200)
        assert rest.std() == pytest.approx(sigma * slope, rel=0.12)
        assert found.calls == 79
        start = noised_start(denoiser, x, strength, 4, seed=3, first=1)
        assert torch.equal(start[:1], noised_start(denoiser, x, strength, 2, seed=3)[1:])
        own = process.prior((2, 2), orn.Noise(3, 2), dtype=torch.float64) / level(process.schedule, 1.0)[1]
        assert (
            noised_start(denoiser, 0 * x, strength, 2, seed=3) / sigma - own
        ).abs().min() > 1e-3  # other noise than the loop's
        assert recipe(denoiser, steps=5, begin=strength)[1][0] == strength
        again = orn.sdedit(denoiser, x, strength, orn.Heun(), n=3, steps=40, seed=3, batch_size=2)
        assert torch.allclose(again.x, found.x[:3], atol=1e-5)


def test_interpolation_of_a_guided_model(tmp_path):
    """Raw data in and out, through a wrapper that changes nothing."""
    scaling = orn.Scaling((2,), "plain", (5.0, -3.0), (0.1, 2.0), None, "float64", 1.0)
    denoiser = exact.Normal(orn.Gaussian(orn.LinearVP()), torch.zeros(2).double(), 1.0)
    model = orn.Model(denoiser, scaling, (), {}, 1)
    raw = torch.tensor([[8.0, -2.5]]).double(), torch.tensor([[1.0, -3.3]]).double()
    same = orn.ClassifierGuidance(model, lambda x, t, y: (0 * x).sum(1))
    ways = [orn.interpolate(m, *raw, n=3) for m in (model, same)]
    assert torch.allclose(*ways, atol=1e-6)
    assert torch.allclose(ways[0][:, 0], raw[0], atol=0.05)
    z = orn.encode(same, raw[0]).x
    assert torch.allclose(orn.decode(same, z).x, raw[0], atol=0.05)


def test_weak_edits_stay_and_strong_ones_forget():
    denoiser = exact.Normal(orn.Gaussian(SCHEDULES["linear"]), torch.zeros(4).double(), 1.0)
    x = 3 * torch.ones(1, 4).double()
    assert (orn.sdedit(denoiser, x, 0.02, calls=5).x - x).abs().max() < 0.3
    assert orn.sdedit(denoiser, x, 1.0, n=50).x.mean().abs() < 0.3


@pytest.mark.parametrize("schedule", [orn.GeometricVE(0.01, 200.0), orn.RectifiedFlow()])
def test_strength_one_begins_at_noise(schedule):
    denoiser = exact.Normal(orn.Gaussian(schedule), torch.zeros(2).double(), 1.0)
    x = orn.sdedit(denoiser, torch.zeros(1, 2).double(), 1.0, orn.Heun(), n=500, steps=60).x
    assert x.std() == pytest.approx(1.0, abs=0.1)


def test_a_strength_is_a_time_with_noise():
    denoiser = exact.Normal(orn.Gaussian(SCHEDULES["linear"]), torch.zeros(4).double(), 1.0)
    x = torch.ones(1, 4).double()
    for strength in (0.0, -1.0, 1.2):
        check_refusal(lambda s=strength: orn.sdedit(denoiser, x, s), f"strength={strength}", "above 0")
    check_refusal(lambda: orn.sdedit(denoiser, x, 1e-9), "1e-09", "noise to take away")


@pytest.mark.parametrize(
    "base", [None, Base(torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 2.0, 1.0]).double())]
)
def test_interpolation_is_the_great_circle(base):
    """Data of the law of the base: the ODE leaves whitened coordinates as they are, so the way is slerp's in them."""
    process = orn.Gaussian(orn.LinearVP(), base)
    mean, variances = (torch.zeros(3).double(), 1.0) if base is None else (base.mean, base.matrix())
    denoiser = exact.Normal(process, mean, variances)
    white = numbers(2, 2, 3)
    a, b = white if base is None else (base.mean + base.colour(z) for z in white)
    way = orn.interpolate(denoiser, a, b, n=5)
    assert way.shape == (2, 5, 3)
    assert torch.allclose(way[:, 0], a, atol=1e-3)
    assert torch.allclose(way[:, -1], b, atol=1e-3)
    u, v = white.unbind(0)
    angle = torch.acos((u * v).sum(1) / u.norm(dim=1) / v.norm(dim=1))[:, None]
    middle = (torch.sin(angle / 2) / torch.sin(angle)) * (u + v)
    assert torch.allclose(way[:, 2], middle if base is None else base.mean + base.colour(middle), atol=1e-3)
    same = orn.interpolate(denoiser, a, a, n=2)
    assert torch.allclose(same[:, 1], a, atol=1e-3)
    check_refusal(lambda: orn.interpolate(denoiser, a, b[:1]), "(1, 3)", "one shape")
    check_refusal(lambda: orn.interpolate(denoiser, a, b, n=1), "n=1", "at least 2")
