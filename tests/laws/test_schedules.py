"""Schedules against closed forms at 50 digits, quadrature, scipy's monotone spline and published end values."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from helpers import CLOSED, SCHEDULES, T_VALUES
from scipy.integrate import quad
from scipy.interpolate import PchipInterpolator

import ornstein as orn


def close(got: float, truth, rtol: float = 1e-12, atol: float = 0.0) -> None:
    truth = float(truth)
    assert abs(got - truth) <= rtol * abs(truth) + atol, f"{got!r} against {truth!r}"


@pytest.mark.parametrize("t", T_VALUES)
@pytest.mark.parametrize("name", CLOSED)
def test_values_at_both_ends(name, t):
    schedule, alpha, sigma = CLOSED[name]
    a, s = alpha(mp.mpf(t)), sigma(mp.mpf(t))
    close(float(schedule.alpha(t)), a)
    close(float(schedule.sigma(t)), s)
    close(float(schedule.log_alpha(t)), mp.log(a), atol=1e-16)
    close(float(schedule.log_sigma(t)), mp.log(s), atol=1e-15)
    close(float(schedule.log_snr(t)), 2 * mp.log(a / s), atol=1e-12)
    batch = schedule.log_snr(torch.tensor([[t, 0.5]], dtype=torch.float32))
    assert batch.shape == (1, 2)
    assert batch.dtype == torch.float64


@pytest.mark.parametrize("t", T_VALUES)
@pytest.mark.parametrize("name", CLOSED)
def test_drift_and_diffusion_are_derivatives(name, t):
    schedule, alpha, sigma = CLOSED[name]
    t_mp = mp.mpf(t)
    slope_alpha, slope_sigma = mp.diff(alpha, t_mp, h=mp.mpf(10) ** -20), mp.diff(sigma, t_mp, h=mp.mpf(10) ** -20)
    f = slope_alpha / alpha(t_mp)
    g2 = 2 * sigma(t_mp) * (slope_sigma - f * sigma(t_mp))  # paper 004 eq. 24
    close(float(schedule.f(t)), f, 1e-11)
    close(float(schedule.beta(t)), -2 * f, 1e-11)
    close(float(schedule.g(t)), mp.sqrt(g2), 1e-11)
    got = schedule.slopes(t)
    close(float(got[0]), slope_alpha, 1e-10, 1e-14)
    close(float(got[1]), slope_sigma, 1e-10, 1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_derivatives_agree_with_autograd_of_the_values(name):
    schedule = SCHEDULES[name]
    t = torch.linspace(max(schedule.t_min, 0.01) + 0.0003, 0.98, 40, dtype=torch.float64, requires_grad=True)
    f = torch.autograd.grad(schedule.log_alpha(t).sum(), t)[0] if name not in ("ve", "edm") else torch.zeros(40)
    variance_slope = torch.autograd.grad((schedule.sigma(t) ** 2).sum(), t)[0]
    variance = schedule.sigma(t).detach() ** 2
    assert torch.allclose(schedule.f(t).detach(), f.double(), rtol=1e-9, atol=1e-12)
    assert torch.allclose(schedule.g(t).detach() ** 2, variance_slope - 2 * f * variance, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("name", SCHEDULES)
def test_quadrature_of_beta_and_g_gives_the_level(name, t):
    schedule = SCHEDULES[name]
    first = max(schedule.t_min, 1e-9)
    settings = {"epsabs": 1e-13, "epsrel": 1e-12, "limit": 400}
    if name.startswith("table"):  # the integrand has kinks at the nodes
        t = round(t * 20) / 20
        nodes = np.arange(round(first * schedule.steps), round(t * schedule.steps) + 1) / schedule.steps
        pieces, weights = np.polynomial.legendre.leggauss(12)

        def integral(law):
            half = 0.5 / schedule.steps
            at = (nodes[:-1, None] + half * (1 + pieces)).ravel()
            return float((law(at).reshape(-1, len(weights)) * weights).sum() * half)
    else:

        def integral(law):
            return quad(lambda r: float(law(r)), first, t, **settings)[0]

    assert integral(lambda r: schedule.beta(r).numpy()) == pytest.approx(
        2 * float(schedule.log_alpha(first) - schedule.log_alpha(t)), rel=1e-9, abs=1e-12
    )
    noise = integral(lambda r: (schedule.g(r) ** 2 / schedule.alpha(r) ** 2).numpy())
    rise = math.exp(-float(schedule.log_snr(t))) - math.exp(-float(schedule.log_snr(first)))
    assert noise == pytest.approx(rise, rel=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_inverse_of_log_snr(name):
    schedule = SCHEDULES[name]
    t = torch.cat([torch.tensor(T_VALUES, dtype=torch.float64), torch.linspace(0.02, 0.98, 25, dtype=torch.float64)])
    t = t.clamp(min=schedule.t_min)
    back = schedule.time_at(schedule.log_snr(t))
    assert torch.allclose(back, t, rtol=1e-11, atol=1e-11)
    if name != "sde":
        small = torch.tensor([1e-6, 1e-5], dtype=torch.float64)
        if schedule.t_min == 0 and name not in ("ve", "edm"):
            assert torch.allclose(schedule.time_at(schedule.log_snr(small)), small, rtol=1e-8, atol=0)
    ends = schedule.time_at(torch.tensor([math.inf, -math.inf, 1e4, -1e4], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([schedule.t_min, 1, schedule.t_min, 1], abs=1e-12)


def test_ends_are_finite_levels():
    for name, schedule in SCHEDULES.items():
        t = torch.tensor([0.0, 1.0], dtype=torch.float64)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        assert torch.isfinite(alpha).all(), name
        assert torch.isfinite(sigma).all(), name
        assert (schedule.log_snr(t)[0] > schedule.log_snr(t)[1]).item()
    assert float(orn.RectifiedFlow().alpha(1.0)) == 0
    assert float(orn.CosineVP().alpha(1.0)) == pytest.approx(0, abs=1e-16)
    assert float(orn.EDM().sigma(0.0)) == pytest.approx(0.002)
    assert float(orn.EDM().sigma(1.0)) == pytest.approx(80.0)


# --- tables


@pytest.mark.parametrize("steps", [1000, 100, 25])
def test_linear_table_at_the_nodes(steps):
    schedule = orn.TableSchedule.linear(steps)
    betas = np.linspace(1e-4, 0.02, steps, dtype=np.longdouble) * 1000 / steps
    abar = np.cumprod(1 - betas)
    nodes = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    assert np.allclose(schedule.alpha(nodes).numpy() ** 2, abar.astype(float), rtol=1e-11, atol=0)
    assert np.allclose(schedule.sigma(nodes).numpy() ** 2, (1 - abar).astype(float), rtol=1e-11, atol=0)
    assert schedule.steps == steps
    assert schedule.t_min == 1 / steps
    assert float(schedule.sigma(0.0)) == float(schedule.sigma(1 / steps))
    if steps == 1000:
        assert float(schedule.alpha(1.0)) ** 2 == pytest.approx(4.036e-5, rel=1e-3)  # paper 000 after eq. 107


def test_cosine_table_is_clipped_and_recomputed():
    schedule = orn.TableSchedule.cosine(1000)
    angle = [mp.cos((mp.mpf(i) / 1000 + mp.mpf(0.008)) / (1 + mp.mpf(0.008)) * mp.pi / 2) ** 2 for i in range(1001)]
    assert float(schedule.alpha(0.5)) ** 2 == pytest.approx(0.494, abs=5e-4)  # not .810: the cosine is squared, [A19]
    for i in (1, 10, 500, 990, 999):
        assert float(schedule.alpha(i / 1000)) ** 2 == pytest.approx(float(angle[i] / angle[0]), rel=1e-9)
    assert float(schedule.alpha(1.0)) ** 2 == pytest.approx(2.4e-9, rel=0.02)  # [A20]: 0 without the clip
    assert schedule.betas[-1] == 0.999
    assert max(schedule.betas[:-1]) < 0.999


def test_spline_between_nodes_is_pchip():
    betas = [0.01, 0.011, 0.3, 0.02, 0.02, 0.5, 0.9, 0.1, 0.05, 0.6]
    schedule = orn.TableSchedule.from_betas(betas)
    abar = np.cumprod(1 - np.array(betas))
    spline = PchipInterpolator(np.arange(1, 11) / 10, np.log(abar / (1 - abar)))
    t = np.linspace(0.1, 1, 301)
    assert np.allclose(schedule.log_snr(torch.from_numpy(t)).numpy(), spline(t), rtol=1e-12, atol=1e-12)
    inside = t[1:-1] + 1e-4
    f_truth = spline.derivative()(inside) / 2 / (1 + np.exp(spline(inside)))  # log alpha = logsigmoid(l) / 2
    assert np.allclose(schedule.f(torch.from_numpy(inside)).numpy(), f_truth, rtol=1e-9)
    assert np.all(np.diff(schedule.log_snr(torch.linspace(0.1, 1, 2001)).numpy()) < 0)


def test_two_step_table():
    schedule = orn.TableSchedule.from_betas([0.1, 0.4])
    assert float(schedule.alpha(0.5)) ** 2 == pytest.approx(0.9)
    assert float(schedule.alpha(1.0)) ** 2 == pytest.approx(0.54)
    middle = (math.log(0.9 / 0.1) + math.log(0.54 / 0.46)) / 2
    assert float(schedule.log_snr(0.75)) == pytest.approx(middle, rel=1e-12)


# --- schedules of the user


def test_f_g_to_alpha_sigma_and_back():
    first = SCHEDULES["sde"]
    second = orn.FromAlphaSigma(first.alpha, first.sigma)
    t = torch.tensor([1e-3, 0.1, 0.5, 0.77, 1.0], dtype=torch.float64)
    assert torch.allclose(second.f(t), -0.5 * (0.3 + 9 * t), rtol=1e-9)
    assert torch.allclose(second.g(t), (0.3 + 9 * t) ** 0.5, rtol=1e-8)


def test_alpha_sigma_to_f_g_and_back():
    first = orn.FromAlphaSigma(lambda t: 1 - 0.9 * t**2, lambda t: 0.01 + t + t**2)
    second = orn.FromSDE(first.f, first.g)
    t = torch.tensor([1e-6, 1e-3, 0.1, 0.5, 0.77, 1.0], dtype=torch.float64)
    assert torch.allclose(second.alpha(t), 1 - 0.9 * t**2, rtol=1e-12)
    added = (0.01 + t + t**2) ** 2 - (0.01 * (1 - 0.9 * t**2)) ** 2  # the equation starts from a point: noise since 0
    assert torch.allclose(second.sigma(t) ** 2, added, rtol=1e-10)
    assert torch.allclose(second.f(t), first.f(t), rtol=1e-12)


def test_alpha_sigma_from_zero_noise_to_f_g_and_back():
    first = orn.FromAlphaSigma(lambda t: 1 - 0.9 * t**2, lambda t: t + t**2)
    second = orn.FromSDE(first.f, first.g)
    t = torch.tensor([1e-6, 1e-3, 0.1, 0.5, 0.77, 1.0], dtype=torch.float64)
    assert torch.allclose(second.alpha(t), 1 - 0.9 * t**2, rtol=1e-12)
    assert torch.allclose(second.sigma(t), t + t**2, rtol=1e-9)


@pytest.mark.parametrize("name", ["linear", "subvp"])
def test_from_sde_finds_the_closed_form(name):
    schedule, alpha, sigma = CLOSED[name]
    built = orn.FromSDE(schedule.f, schedule.g)
    for t in T_VALUES:
        close(float(built.alpha(t)), alpha(mp.mpf(t)), 1e-12)
        close(float(built.sigma(t)), sigma(mp.mpf(t)), 1e-11)
        close(float(built.beta(t)), float(schedule.beta(t)))


def test_constant_coefficients_are_ornstein_uhlenbeck():
    built = orn.FromSDE(lambda t: torch.tensor(-1.5), lambda t: torch.tensor(2.0))
    for t in (1e-5, 0.2, 1.0):
        assert float(built.alpha(t)) == pytest.approx(math.exp(-1.5 * t), rel=1e-13)
        assert float(built.sigma(t)) ** 2 == pytest.approx(4 * -math.expm1(-3 * t) / 3, rel=1e-12)


def test_repr_is_a_constructor_call():
    for schedule in [
        orn.LinearVP(0.2, 9.0),
        orn.CosineVP(),
        orn.GeometricVE(),
        orn.EDM(),
        orn.SubVP(),
        orn.RectifiedFlow(),
    ]:
        assert eval(repr(schedule), vars(orn.schedules)) == schedule
    table = orn.TableSchedule.linear(30)
    copy = eval(repr(table), vars(orn.schedules))
    assert torch.equal(copy.log_snr(torch.linspace(0, 1, 7)), table.log_snr(torch.linspace(0, 1, 7)))
