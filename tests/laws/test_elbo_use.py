"""What `elbo` takes and gives: steps with their errors, batches and seeds, conditions, raw data, and what it refuses."""

import math

import pytest
import torch
from helpers import numbers

import ornstein as orn
from ornstein import exact
from ornstein.checkpoints import Model
from ornstein.data import Scaling, TableScaling
from ornstein.data.kinds import Category, Numeric
from ornstein.errors import ConfigurationError, DataError, NumericalError
from ornstein.likelihood.elbo import elbo


def test_each_step_is_reported_with_its_error():
    denoiser = exact.Mixture(orn.Gaussian(orn.LinearVP()), numbers(3, 2, seed=1), 0.1)
    x = numbers(50, 2, seed=2)
    for form in ("denoising", "path"):
        bound = elbo(denoiser, x, steps=7, form=form)
        assert torch.allclose(bound.steps.nats[:-1].sum(), bound.diffusion.mean(), rtol=1e-10)
        assert float(bound.steps.nats[-1]) == pytest.approx(float(bound.reconstruction.mean()))
        assert float(bound.steps.errors[-1]) == pytest.approx(float(bound.reconstruction.std()) / math.sqrt(50))
        assert torch.allclose(bound.steps.t, torch.arange(7, 0, -1).double() / 7)
        assert torch.allclose(bound.steps.s, torch.arange(6, -1, -1).double() / 7)


@pytest.mark.parametrize("options", [{}, {"terms": 3}, {"form": "path"}, {"steps": math.inf, "terms": 4}])
def test_a_value_belongs_to_its_example_and_seed(options):
    """Not to the batch it sits in."""
    denoiser = exact.Mixture(orn.Gaussian(orn.LinearVP()), numbers(3, 2, seed=1), 0.1)
    options, x = {"steps": 8, **options}, numbers(7, 2, seed=2)
    whole = elbo(denoiser, x, **options)
    assert torch.allclose(elbo(denoiser, x, batch_size=3, **options).total, whole.total, rtol=1e-12)
    assert torch.allclose(elbo(denoiser, x[:4], **options).total, whole.total[:4], rtol=1e-12)
    assert not torch.allclose(elbo(denoiser, x, seed=1, **options).total, whole.total, rtol=1e-3)


def test_conditions_reach_the_denoiser_in_their_rows():
    seen = []

    class Spy:
        process = orn.Gaussian(orn.LinearVP())

        def __call__(self, x_t, t, cond=None, keep=None):
            seen.append(cond)
            return self.process.estimate(x_t, t, x0=0 * x_t)

    cond = torch.arange(5)
    elbo(Spy(), numbers(5, 2), steps=2, cond=cond, batch_size=3)
    assert [c.tolist() for c in seen] == [[0, 1, 2]] * 2 + [[3, 4]] * 2
    with pytest.raises(ConfigurationError, match="5 rows of cond for 4 examples"):
        elbo(Spy(), numbers(4, 2), cond=cond)


def model(process, scaling, size: int) -> Model:
    denoiser = exact.Normal(process, torch.zeros(size), 0.5)
    denoiser.parameters = lambda: iter(())
    return Model(denoiser, scaling, (), {}, 0)


def test_raw_data_are_answered_in_their_own_units():
    """log p(raw) = log p(model units) + log |d model / d raw|, for arrays and for tables of numbers."""
    process, raw = orn.Gaussian(orn.LinearVP()), numbers(40, 3, seed=1) * torch.tensor([0.1, 2.0, 30.0]) + 5
    scaling = Scaling.measure(raw)
    plain = elbo(model(process, scaling, 3).denoiser, scaling.encode(raw), steps=5)
    bound = elbo(model(process, scaling, 3), raw, steps=5)
    log_det = -float(raw.std(0, correction=0).log().sum())
    assert torch.allclose(bound.total, plain.total + log_det, rtol=1e-10)
    assert torch.allclose(bound.steps.nats.sum(), (bound.diffusion + bound.reconstruction).mean(), rtol=1e-9)
    assert bound.levels is None
    columns = tuple(
        Numeric(str(i), "float64", 0.0, 1.0, False, float(m), float(1 / s))
        for i, (m, s) in enumerate(zip(raw.mean(0), raw.std(0), strict=True))
    )
    table = TableScaling(columns, 1.0)
    got = elbo(model(process, table, 3), raw, steps=5)
    plain = elbo(model(process, table, 3).denoiser, table.encode(raw), steps=5)
    assert torch.allclose(got.total, plain.total - float(raw.std(0).log().sum()), rtol=1e-6)
    mixed = TableScaling((*columns, Category("kind", "text", ("a", "b"), (0.5, 0.5))), 1.0)
    with pytest.raises(ConfigurationError, match="categories"):
        elbo(model(process, mixed, 5), torch.cat([raw, raw[:, :1] * 0], 1), steps=5)


def test_a_network_in_float32_with_a_learned_variance():
    """A U-shaped state, a fraction per component, and the type of the result."""

    class Halves(torch.nn.Module):
        def forward(self, x, time):
            return torch.cat([0.5 * x, torch.tanh(x)], dim=1)

    denoiser = orn.Denoiser(Halves(), orn.Gaussian(orn.CosineVP()), "v", variance="learned")
    bound = elbo(denoiser, numbers(3, 2, 4, 4, dtype=torch.float32), steps=6)
    assert bound.total.dtype == torch.float64
    assert bound.dims == 32
    assert torch.isfinite(bound.total).all()
    other = elbo(denoiser, numbers(3, 2, 4, 4, dtype=torch.float32), steps=6, fixed=0.0)
    assert torch.equal(bound.total, other.total)  # `fixed` plays no part where the variance is learned


BAD = {
    "form": ({"form": "both"}, "expected one of denoising, path"),
    "fixed": ({"fixed": 1.5}, "expected 0"),
    "terms": ({"terms": 0}, "terms=0"),
    "path": ({"form": "path", "terms": 3}, "expected terms=None"),
    "path in the limit": ({"form": "path", "steps": math.inf}, "finite number of steps"),
    "grid and limit": ({"steps": math.inf, "grid": torch.tensor([1.0, 0.5])}, "one of them"),
    "fractional steps": ({"steps": 2.5}, "whole number"),
    "no number": ({"steps": math.nan}, "whole number"),
    "no steps": ({"steps": 0}, "whole number"),
    "rising": ({"grid": torch.tensor([0.5, 1.0])}, "falling times"),
    "outside": ({"grid": torch.tensor([1.5, 1.0])}, "falling times"),
    "only data": ({"grid": torch.tensor([0.0])}, "data alone"),
    "batch size": ({"batch_size": 0}, "batch_size=0"),
}


@pytest.mark.parametrize("case", BAD)
def test_options_that_do_not_fit_are_refused(case):
    options, message = BAD[case]
    denoiser = exact.Normal(orn.Gaussian(orn.LinearVP()), torch.zeros(2), 1.0)
    with pytest.raises(ConfigurationError, match=message):
        elbo(denoiser, numbers(3, 2), **options)


def test_data_that_cannot_be_the_denoisers_are_refused():
    denoiser = exact.Normal(orn.Gaussian(orn.LinearVP()), torch.zeros(2), 1.0)
    for x, message in [
        (numbers(3, 5), r"shape \(3, 5\), expected \(n, 2\)"),
        (torch.empty(0, 2), "at least one example"),
        (torch.ones(2), "at least one example"),
        (torch.ones(3, 2, dtype=torch.uint8), "pass the loaded Model"),
        (torch.full((3, 2), math.nan), "NaN or infinity"),
    ]:
        with pytest.raises(DataError, match=message):
            elbo(denoiser, x, steps=2)
    raw = model(orn.Gaussian(orn.LinearVP()), Scaling.measure(numbers(20, 2)), 2)
    with pytest.raises(DataError, match="NaN or infinity"):
        elbo(raw, torch.full((3, 2), math.nan, dtype=torch.float64), steps=2)


def test_a_term_that_is_not_finite_is_named():
    class Broken:
        process = orn.Gaussian(orn.LinearVP())

        def __call__(self, x_t, t, cond=None, keep=None):
            x0 = x_t.clone()
            x0[-1] = math.nan if t == 1.0 and len(x_t) == 2 else 0
            return self.process.estimate(x_t, t, x0=x0)

    with pytest.raises(
        NumericalError, match=r"diffusion part of the bound is NaN or infinite for 1 of 2 examples.* is 4"
    ):
        elbo(Broken(), numbers(5, 2), steps=3, batch_size=3)
