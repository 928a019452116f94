"""The discretised decoder: a probability on the levels, against scipy's normal law and 50 digits."""

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from helpers import BASES, MU, SCHEDULES, SIGMA, D, numbers
from scipy.integrate import simpson
from scipy.stats import norm

import ornstein as orn
from ornstein.checkpoints import Model
from ornstein.data import Scaling
from ornstein.errors import DataError
from ornstein.exact import Mixture
from ornstein.likelihood.elbo import elbo
from ornstein.processes import Estimate, GaussianLaw
from ornstein.variational import Bins, chain, floor, reconstruction


def bins_of(levels: int) -> Bins:
    """Levels spread over two units, as `Scaling.measure` does, off centre."""
    return Bins(levels, (-0.8,), (2 / (levels - 1),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_probabilities_sum_to_one_at_every_noise_level(levels, dtype):
    """With a law of any width about any mean; and as a model's estimate gives it, at the times of every schedule."""
    bins, means = bins_of(levels), torch.tensor([-30.0, -0.8, -0.1, 0.1234, 1.2, 1.3, 50.0], dtype=dtype)
    x = torch.tensor([-0.8 + k * 2 / (levels - 1) for k in range(levels)], dtype=dtype).repeat(7)[:, None]
    mean, fraction = (v.repeat_interleave(levels)[:, None] for v in (means, torch.linspace(0, 1, 7, dtype=dtype)))

    def check(log_prob: torch.Tensor) -> None:
        assert torch.allclose(log_prob.exp().reshape(7, levels).sum(1), torch.ones(7).double(), atol=1e-6)

    for std in (1e-6, 1e-4, 0.01, 0.3, 1.0, 80.0):
        check(bins.log_prob(GaussianLaw(mean, std), x))
        check(bins.log_prob(GaussianLaw(mean, torch.full_like(mean, std)), x))
    for schedule in SCHEDULES.values():
        process = orn.Gaussian(schedule)
        for t in (max(schedule.t_min, 1e-3), 0.05, 0.5, 1.0):
            estimate = Estimate(process, mean, t, "x0", mean, fraction=fraction)
            least = floor(process, t, t + 1e-3) if t < 1 else 0.1
            check(reconstruction(estimate, x, t, least, bins))


def test_mass_of_each_bin_is_that_of_scipy():
    """Inner bins between their edges, open ends, a level's own width for each channel; sums over the components."""
    bins = Bins(5, (-1.0, -0.4), (0.5, 0.2))
    mean, std = numbers(6, 2, 3), 0.2 + numbers(6, 2, 3, seed=4).abs()
    k = torch.randint(0, 5, (6, 2, 3), generator=torch.Generator().manual_seed(1))
    lowest, width = (torch.tensor(v, dtype=torch.float64).reshape(1, 2, 1) for v in (bins.lowest, bins.width))
    centre = (lowest + k * width).numpy()
    upper = np.where(k == 4, np.inf, centre + width.numpy() / 2)
    lower = np.where(k == 0, -np.inf, centre - width.numpy() / 2)
    low, high = ((edge - mean.numpy()) / std.numpy() for edge in (lower, upper))
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)  # the tail where the cdf is not near 1
    truth = np.log(norm.cdf(high) - norm.cdf(low))
    got = bins.log_prob(GaussianLaw(mean, std), torch.from_numpy(centre) + 0.05)  # a value off its level goes to it
    assert np.allclose(got, truth.sum((1, 2)), rtol=1e-9)


def test_tails_are_exact_and_finite():
    """Where Phi(b) - Phi(a) would be 0 - 0 or 1 - 1; against mpmath, to 1e4 standard deviations on both sides."""
    bins = bins_of(256)

    def truth(k: int, mean: float, std: float) -> float:
        centre = mp.mpf(bins.lowest[0]) + k * mp.mpf(bins.width[0])
        low, high = ((centre + sign * mp.mpf(bins.width[0]) / 2 - mean) / mp.mpf(std) for sign in (-1, 1))
        low, high = (-high, -low) if low > 0 else (low, high)  # the tail that erfc resolves
        return float(mp.log((mp.erfc(-high / mp.sqrt(2)) - mp.erfc(-low / mp.sqrt(2))) / 2))

    for k, mean, std in [(3, 0.9, 1e-4), (250, -0.5, 0.01), (100, -0.7, 1e-3), (100, 60.0, 0.3), (77, -0.19, 50.0)]:
        x = torch.full((1, 1), bins.lowest[0] + k * bins.width[0], dtype=torch.float64)
        law = GaussianLaw(torch.full((1, 1), mean, dtype=torch.float64), std)
        assert float(bins.log_prob(law, x)) == pytest.approx(truth(k, mean, std), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_everywhere(dtype):
    """Also at the open ends and far away, where a mask over infinities would leave NaN behind; there it is -z / std."""
    mean = torch.tensor([-300.0, -0.8, 0.1, 1.2, 300.0], dtype=dtype).repeat_interleave(3)[:, None].requires_grad_()
    log_std = torch.tensor([-7.0, 0.0, 5.0], dtype=dtype).repeat(5)[:, None].requires_grad_()
    for value in (-0.8, 0.2, 1.2):
        got = bins_of(17).log_prob(GaussianLaw(mean, log_std.exp()), torch.full_like(mean.detach(), value))
        assert torch.isfinite(got).all()
        gradients = torch.autograd.grad(got.sum(), (mean, log_std))
        assert all(torch.isfinite(g).all() for g in gradients)
        slope = (value + 1 / 16 - 300) * math.exp(14) if value < 1.2 else 0.0  # 300 is within the last bin
        assert float(gradients[0][12]) == pytest.approx(slope, rel=1e-3)
    inner = torch.tensor([[0.13]], dtype=torch.float64, requires_grad=True)
    x = torch.full((1, 1), 0.2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: bins_of(17).log_prob(GaussianLaw(m, 0.1), x), (inner,))


def test_a_base_widens_each_component_by_its_own_variance():
    bins, mean, x = bins_of(9), numbers(4, D, seed=1), torch.full((4, D), 0.2, dtype=torch.float64)
    for base in ("diagonal", "full"):
        std = 0.3 * SIGMA[base].diagonal().sqrt()
        truth = bins.log_prob(GaussianLaw(mean, std.expand_as(mean)), x)
        assert torch.allclose(bins.log_prob(GaussianLaw(mean, 0.3, BASES[base]), x), truth, rtol=1e-12)
    assert MU.abs().min() > 0  # the base's mean must play no part: the law holds its own


def test_bins_of_a_scaling():
    """Each raw level is the centre of its bin; continuous data have none."""
    raw = torch.tensor([0, 3, 7, 12, 16, 16, 1, 5], dtype=torch.uint8).reshape(2, 2, 2)
    scaling = Scaling.measure(raw, levels=17)
    bins = Bins.of(scaling)
    values = scaling.encode(torch.arange(16, dtype=torch.uint8).reshape(4, 2, 2)).flatten()
    assert bins.levels == 17
    assert np.allclose(values, bins.lowest[0] + bins.width[0] * np.arange(16), atol=1e-6)
    assert bins.width == scaling.scale
    assert Bins.of(None) is None
    assert Bins.of(Scaling.measure(numbers(8, 2))) is None


def quantised_model(schedule=None) -> tuple[Model, torch.Tensor]:
    """A model that knows its data, levels 0 .. 3 of one component with known probabilities; and those."""
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    scaling = Scaling((1,), "plain", (1.7,), (2 / 3,), 4, "uint8", 0.6)
    centres = (torch.arange(4.0, dtype=torch.float64)[:, None] - 1.7) * 2 / 3
    denoiser = Mixture(orn.Gaussian(schedule or orn.LinearVP()), centres, 0.0, weights)
    denoiser.parameters = lambda: iter(())
    return Model(denoiser, scaling, (), {}, 0), weights


def test_the_bound_of_levels_lies_below_their_probability_and_comes_near():
    """E over the data of log p(k) is minus the entropy; the bound of the exact denoiser falls short by O(1 / T)."""
    model, weights = quantised_model()
    raw = torch.arange(4, dtype=torch.uint8).repeat_interleave(1000)[:, None]
    gaps = []
    for steps in (25, 100, 400):
        whole = orn.grids.uniform(model.process, steps)
        bound = elbo(model, raw, grid=whole, fixed=0.0, batch_size=4000)
        each = bound.total.reshape(4, 1000)
        gaps.append(float((weights * (weights.log() - each.mean(1))).sum()))
        error = float(((weights**2) * each.var(1) / 1000).sum().sqrt())
    assert gaps[0] > gaps[1] > gaps[2] > -3 * error
    assert gaps[2] < 0.06
    assert bound.levels == 4
    assert bound.dims == 1
    assert bound.bits_per_dim == pytest.approx(-bound.mean / math.log(2))


def test_the_chain_of_levels_begins_at_half_the_width_of_one():
    """And the bound is far above that of a chain which goes on to the schedule's first level, .01 of DDPM's 1000 steps."""
    model, _ = quantised_model()
    raw = torch.arange(4, dtype=torch.uint8).repeat_interleave(50)[:, None]
    found = elbo(model, raw, steps=50)
    first = float(found.steps.t[-1])
    assert math.exp(-float(model.process.level(first).log_snr) / 2) == pytest.approx(1 / 3)
    assert torch.allclose(-found.steps.t.diff(), torch.tensor((1 - first) / 49, dtype=torch.float64))
    assert float(found.steps.t[0]) == 1
    assert found.mean > elbo(model, raw, grid=orn.grids.uniform(model.process, 50)).mean + 0.1
    assert chain(model.process, 50, 1e-3).tolist() == chain(model.process, 50).tolist()
    assert chain(model.process, 1, 0.5).tolist() == [1.0]


@pytest.mark.parametrize("name", ["linear", "edm", "ve", "table-linear"])
def test_the_limit_of_levels_begins_at_half_the_width_of_one(name):
    """1/2 int E (x_0 - x_0_hat)^2 d SNR from 80^-2 to 3^2, under every schedule: by Gauss-Hermite, and Simpson's rule."""
    model, weights = quantised_model(SCHEDULES[name])
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    centres, w = (np.arange(4.0) - 1.7) * 2 / 3, weights.numpy()

    def error(log_snr):
        root = np.exp(log_snr / 2)
        y = root * centres[:, None] + nodes
        share = w * np.exp(-((y[..., None] - root * centres) ** 2) / 2)
        mean = (share * centres).sum(-1) / share.sum(-1)
        square = ((mean - centres[:, None]) ** 2 * masses).sum(1) / masses.sum()
        return float((w * square).sum() * root**2)

    high = max(80.0**-2, math.exp(float(model.process.level(1.0).log_snr)))
    places = np.linspace(math.log(high), math.log(9.0), 401)
    truth = -0.5 * simpson([error(place) for place in places], x=places)
    raw = torch.arange(4, dtype=torch.uint8).repeat_interleave(500)[:, None]
    found = elbo(model, raw, steps=math.inf, terms=60, batch_size=2000).diffusion.reshape(4, 500)
    spread = float(((weights**2) * found.var(1) / 500).sum().sqrt())
    assert float((weights * found.mean(1)).sum()) == pytest.approx(truth, abs=4 * spread)
    assert 4 * spread < 0.05 * abs(truth)


def test_levels_that_do_not_match_are_refused():
    model, _ = quantised_model()
    with pytest.raises(DataError, match="from 0 to 4, expected the whole numbers 0 to 3"):
        elbo(model, torch.tensor([[0], [4]], dtype=torch.uint8), steps=2)
    with pytest.raises(DataError, match="fractional values from 0 to 0"):
        elbo(model, torch.tensor([[0.0], [0.5]]), steps=2)
    with pytest.raises(DataError, match="raw data of shape"):
        elbo(model, torch.zeros(2, 3, dtype=torch.uint8), steps=2)
