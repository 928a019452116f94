"""Every error of the core: its type, and a message with what was got, what was expected or the remedy."""

import math

import pytest
import torch

import ornstein as orn
from ornstein import exact, grids
from ornstein.denoisers import Retargeted
from ornstein.errors import ConfigurationError, NumericalError, OrnsteinError, nearest
from ornstein.noise import Noise
from ornstein.objectives import EDMWeighting, LogNormalSigma, MinSNR, Weighting
from ornstein.processes import Normal as Base
from ornstein.samplers import Ancestral, Euler, Heun, Multistep, sample

VP, FLOW = orn.Gaussian(orn.LinearVP()), orn.Gaussian(orn.RectifiedFlow())
TABLE = orn.Gaussian(orn.TableSchedule.linear(100))
X = torch.zeros(2, 3)
NET = torch.nn.Identity()
NORMAL = exact.Normal(VP, torch.zeros(3), 1.0)
ESTIMATE = VP.estimate(X, 0.5, x0=X)
FULL = orn.Gaussian(orn.LinearVP(), Base(torch.zeros(3), torch.eye(3) + 0.1))


class Free:
    """A denoiser whose shape is not known."""

    process = VP

    def __call__(self, x_t, t, cond=None, keep=None):
        return VP.estimate(x_t, t, x0=x_t)


# what is done, and words that the message must hold: the value got, and the expectation or the remedy
CONFIGURATION = {
    "linear": (lambda: orn.LinearVP(0.0), "beta_min=0.0", "expected"),
    "linear order": (lambda: orn.LinearVP(3.0, 1.0), "beta_max=1.0", "beta_min <= beta_max"),
    "linear nan": (lambda: orn.LinearVP(beta_max=math.nan), "beta_max=nan", "expected"),
    "sub-vp": (lambda: orn.SubVP(-1.0, 1.0), "beta_min=-1.0", "expected"),
    "cosine": (lambda: orn.CosineVP(-0.1), "s=-0.1", "expected s >= 0"),
    "ve": (lambda: orn.GeometricVE(0.0, 1.0), "sigma_min=0.0", "0 < sigma_min < sigma_max"),
    "ve order": (lambda: orn.GeometricVE(2.0, 1.0), "sigma_max=1.0", "0 < sigma_min < sigma_max"),
    "edm": (lambda: orn.EDM(rho=0.0), "rho=0.0", "expected rho > 0"),
    "edm sigma": (lambda: orn.EDM(sigma_max=math.inf), "sigma_max=inf", "expected"),
    "rising snr": (lambda: orn.FromAlphaSigma(lambda t: t, lambda t: 1 - t), "must fall", "expected"),
    "flat snr": (
        lambda: orn.FromAlphaSigma(lambda t: t * 0 + 1, lambda t: t.clamp(max=0.5)),
        "got log-SNR",
        "expected",
    ),
    "negative alpha": (lambda: orn.FromAlphaSigma(lambda t: 0.5 - t, lambda t: t), "nan", "alpha >= 0"),
    "snr of an sde": (lambda: orn.FromSDE(lambda t: -t, lambda t: t * 0), "inf", "expected"),
    "table": (lambda: orn.TableSchedule.from_betas([0.1, 1.0]), "beta_2 = 1", "0 < beta < 1"),
    "table nan": (lambda: orn.TableSchedule.from_betas([0.1, math.nan]), "beta_2 = nan", "expected"),
    "table of one": (lambda: orn.TableSchedule.from_betas([0.1]), "(1,)", "at least 2"),
    "short table": (
        lambda: orn.TableSchedule.linear(20),
        "1000/20",
        "use at least 21 steps, or TableSchedule.cosine(20)",
    ),
    "reading": (lambda: ESTIMATE.reading("noise"), "'noise'", "x0, eps, v, score, velocity, edm"),
    "no reading": (lambda: VP.estimate(X, 0.5), "0 readings", "exactly one"),
    "two readings": (lambda: VP.estimate(X, 0.5, x0=X, eps=X), "2 readings", "exactly one"),
    "shape": (lambda: VP.estimate(X, 0.5, v=X[:1]), "v of shape (1, 3)", "(2, 3)"),
    "eta": (lambda: VP.posterior(ESTIMATE, 0.5, 0.4, 1.5), "eta=1.5", "expected 0 (DDIM) to 1 (DDPM)"),
    "base shape": (lambda: Base(torch.zeros(3), torch.eye(2)), "(2, 2)", "(3, 3)"),
    "base variances": (lambda: Base(torch.zeros(2), torch.tensor([1.0, 0.0])), "eigenvalue 0", "positive definite"),
    "base matrix": (
        lambda: Base(torch.zeros(2), torch.ones(2, 2) * 2 - torch.eye(2)),
        "eigenvalue",
        "positive definite",
    ),
    "parametrization": (lambda: orn.Denoiser(NET, VP, "epss"), "'epss'", "did you mean 'eps'?"),
    "far parametrization": (lambda: orn.Denoiser(NET, VP, "zzz"), "'zzz'", "expected one of x0, eps"),
    "variance": (lambda: orn.Denoiser(NET, VP, variance="fixed"), "'fixed'", "None or 'learned'"),
    "variance of an energy": (lambda: orn.Denoiser(NET, VP, "energy", "learned"), "a single number", "variance=None"),
    "sigma_data": (lambda: orn.Denoiser(NET, VP, sigma_data=0.0), "sigma_data=0.0", "positive"),
    "edm without sigma_data": (lambda: orn.Denoiser(NET, VP, "edm"), "'edm'", "needs sigma_data"),
    "eps without signal": (lambda: orn.Denoiser(NET, FLOW), "'eps'", "use 'v', 'x0' or 'edm'"),
    "score without signal": (lambda: orn.Denoiser(NET, FLOW, "score"), "RectifiedFlow()", "LinearVP"),
    "energy without signal": (lambda: orn.Denoiser(NET, FLOW, "energy"), "'energy'", "use 'v'"),
    "two bases": (lambda: Retargeted(NORMAL, FULL), "different bases", "expected one base"),
    "covariance": (lambda: exact.Normal(VP, torch.zeros(3), torch.eye(2)), "(2, 2)", "expected a number"),
    "indefinite": (
        lambda: exact.Normal(VP, torch.zeros(2), torch.tensor([1.0, -1.0])),
        "eigenvalue -1",
        "none below 0",
    ),
    "mixture base": (lambda: exact.Mixture(FULL, X, 1.0), "full covariance", "base=None or a diagonal"),
    "mixture variances": (lambda: exact.Mixture(VP, X, torch.ones(4)), "(4,)", "(2,) or (2, 3)"),
    "mixture weights": (lambda: exact.Mixture(VP, X, 1.0, torch.ones(3)), "(3,)", "expected (2,), all positive"),
    "negative weights": (lambda: exact.Mixture(VP, X, 1.0, torch.tensor([1.0, -1.0])), "weights", "all positive"),
    "smoothing": (lambda: exact.Empirical(VP, X, -0.1), "smoothing=-0.1", "0 or above"),
    "no steps": (lambda: grids.uniform(VP, 0), "steps=0", "at least 1"),
    "no karras steps": (lambda: grids.karras(VP, 0), "steps=0", "at least 1"),
    "rho": (lambda: grids.karras(VP, 5, rho=0.0), "rho=0.0", "positive"),
    "sigma range": (lambda: grids.log_snr(VP, 5, 2.0, 1.0), "sigma_min=2.0", "0 < sigma_min < sigma_max"),
    "too many of a chain": (lambda: grids.trailing(VP, 11, chain=10), "11 steps of a chain of 10", "expected 1 to 10"),
    "none of a chain": (lambda: grids.leading(VP, 0), "0 steps", "expected 1 to 1000"),
    "linspace": (lambda: grids.linspace(VP, -1), "-1 steps", "expected 1 to 1000"),
    "other chain": (lambda: grids.trailing(TABLE, 5), "chain=1000 for a table of 100", "expected chain=100"),
    "ancestral": (lambda: Ancestral(-0.1), "eta=-0.1", "expected 0 (DDIM) to 1 (DDPM)"),
    "ancestral upwards": (
        lambda: sample(NORMAL, Ancestral(), start=X, grid=torch.tensor([0.1, 0.5])),
        "eta",
        "expected",
    ),
    "churn": (lambda: Heun(churn=0.5), "churn=0.5", "S_churn divided by steps"),
    "churn range": (
        lambda: Euler(churn_min=2.0, churn_max=1.0),
        "churn_min=2.0",
        "expected 0 <= churn_min <= churn_max",
    ),
    "churn noise": (lambda: Euler(churn_noise=0.0), "churn_noise=0.0", "churn_noise > 0"),
    "readings": (lambda: Multistep(5), "readings=5", "expected 1 to 4"),
    "steps and calls": (lambda: sample(NORMAL, steps=3, calls=3), "more than one of steps, calls", "at most one"),
    "steps and grid": (lambda: sample(NORMAL, steps=3, grid=torch.tensor([1.0, 0.5])), "grid", "at most one"),
    "calls": (lambda: sample(NORMAL, calls=0), "calls=0", "at least 1"),
    "steps": (lambda: sample(NORMAL, steps=0), "steps=0", "at least 1"),
    "grid axis": (lambda: sample(NORMAL, grid=torch.ones(2, 2)), "shape (2, 2)", "one axis of times from 1"),
    "grid name": (lambda: sample(NORMAL, grid="karras"), "the grid 'karras'", "such as grids.karras(process, steps)"),
    "grid below a table": (
        lambda: sample(exact.Normal(TABLE, torch.zeros(3), 1.0), grid=torch.tensor([1.0, 0.5, 0.005, 0.0])),
        "a time of 0.005, below the schedule's first one, 0.01",
        "at least 0.01, or 0",
    ),
    "grid range": (
        lambda: sample(NORMAL, grid=torch.tensor([1.5, 0.5])),
        "from 0.5 to 1.5",
        "one axis of times from 1",
    ),
    "grid order": (lambda: sample(NORMAL, grid=torch.tensor([1.0, 0.2, 0.5])), "monotone", "expected falling"),
    "grid nan": (lambda: sample(NORMAL, grid=torch.tensor([1.0, math.nan])), "grid", "expected"),
    "unknown shape": (lambda: sample(Free(), n=2), "not known", "pass shape=(...)"),
    "rows of start": (lambda: sample(NORMAL, n=3, start=X), "2 rows of start for n=3", "expected 3"),
    "rows of cond": (lambda: sample(NORMAL, n=3, cond=torch.zeros(2)), "2 rows of cond for n=3", "expected 3"),
    "n": (lambda: sample(NORMAL, n=-1), "n=-1", "0 or more"),
    "batch size": (lambda: sample(NORMAL, n=1, batch_size=-1), "batch_size=-1", "at least 1"),
    "batch size 0": (lambda: sample(NORMAL, n=1, batch_size=0), "batch_size=0", "at least 1"),
    "log-normal": (lambda: LogNormalSigma(std=0.0), "std=0.0", "positive"),
    "uniform steps": (lambda: orn.UniformSteps(0), "steps=0", "at least 1"),
    "edm weighting": (lambda: EDMWeighting(0.0), "sigma_data=0.0", "positive"),
    "min-snr": (lambda: MinSNR(0.0), "gamma=0.0", "positive"),
    "weighting": (lambda: Weighting(torch.exp, "x"), "'x'", "expected one of x0"),
    "no table": (lambda: orn.TableSchedule.linear(0), "0", "at least"),
    "no cosine table": (lambda: orn.TableSchedule.cosine(0), "0", "at least"),
    "brownian": (lambda: Noise(0, 1).brownian(0.0, 1.5, (1,)), "1.5", "expected both in [0, 1]"),
}
NUMERICAL = {
    "f at the end": (lambda: orn.CosineVP().f(1.0), "f of CosineVP is infinite at t = 1", "stop short of that end"),
    "g at the end": (lambda: orn.RectifiedFlow().g(torch.tensor([0.2, 1.0])), "g of RectifiedFlow", "at t = 1"),
    "beta at the end": (
        lambda: orn.RectifiedFlow().beta(1.0),
        "beta of RectifiedFlow is infinite at t = 1",
        "stop short",
    ),
    "slope at the end": (lambda: orn.LinearVP().slopes(0.0), "sigma' of LinearVP", "t = 0"),
    "eps of x0": (
        lambda: FLOW.estimate(X, 0.0, x0=X).eps,
        "eps is not determined by x0 at t = 0",
        "its factor in x_t is 0",
    ),
    "x0 of eps": (
        lambda: FLOW.estimate(X, 1.0, eps=X).x0,
        "x0 is not determined by eps at t = 1",
        "its factor in x_t is 0",
    ),
}


def said(action, kind) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert isinstance(caught.value, OrnsteinError)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("case", CONFIGURATION)
def test_configuration_errors(case):
    action, *words = CONFIGURATION[case]
    message = said(action, ConfigurationError)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("case", NUMERICAL)
def test_numerical_errors(case):
    action, *words = NUMERICAL[case]
    message = said(action, NumericalError)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_network_that_breaks_down_is_named_by_time_and_call(bad):
    class Broken(torch.nn.Module):
        def forward(self, x, time):
            sick = (time < 500)[:, None] & (torch.arange(len(x)) == 1)[:, None]
            return torch.where(sick, bad, 0.1 * x)

    denoiser = orn.Denoiser(Broken(), VP, "x0")
    grid = torch.tensor([1.0, 0.8, 0.45, 0.25, 0.0])
    for sampler, call in ((Ancestral(), 3), (Euler(), 3), (Multistep(), 3), (Heun(), 4)):
        # Heun asks at .45 in the step that ends there, so that step is already lost
        with pytest.raises(NumericalError) as caught:
            sample(denoiser, sampler, n=3, shape=(2,), grid=grid)
        message, last = str(caught.value), caught.value.last
        assert last.t == pytest.approx(0.8 if call == 4 else 0.45)
        assert torch.isfinite(last.x).all()
        step = "step 2, from t = 0.8 to 0.45" if call == 4 else "step 3, from t = 0.45 to 0.25"
        assert step in message, message
        assert f"network call {call})" in message
        assert "1 of 3 samples" in message


def test_nearest():
    assert nearest("epss", ["x0", "eps"]) == "; did you mean 'eps'?"
    assert nearest("COSINEVP", ["CosineVP", "LinearVP"]) == "; did you mean 'CosineVP'?"
    assert nearest("qqq", ["eps"]) == ""
