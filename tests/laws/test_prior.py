"""PriorGrad: a base N(mu, Sigma), fixed or by the condition, through noise, samplers, losses, bounds and the ODE."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import MU, SIGMA, D, awake, check_refusal, level, numbers, root_of, spd, unit_noise
from torch.distributions import MultivariateNormal

import ornstein as orn
from ornstein import exact
from ornstein.curve import Curve
from ornstein.errors import DataError
from ornstein.likelihood import Exact, RungeKutta
from ornstein.noise import Noise
from ornstein.objectives import Objective
from ornstein.processes import ByClass, ConditionalNormal, GaussianLaw, LowRank
from ornstein.processes import Normal as Base
from ornstein.samplers import sample_steps

V, U = torch.tensor([0.4, 1.5, 0.7], dtype=torch.float64), numbers(D, 2, seed=21)
B = 4
MEANS = MU + numbers(B, D, seed=22)
VARIANCES = numbers(B, D, seed=23).exp()
MATRICES = torch.stack([spd(D, seed=30 + k) for k in range(B)])
FACTORS = numbers(B, D, 2, seed=24)
BASES = {
    "diagonal": Base(MU, SIGMA["diagonal"].diagonal()),
    "full": Base(MU, SIGMA["full"]),
    "rank": Base(MU, LowRank(V, U)),
    "each-diagonal": Base.each(MEANS, VARIANCES),
    "each-full": Base.each(MEANS, MATRICES),
    "each-rank": Base.each(MEANS, LowRank(VARIANCES, FACTORS)),
}


def thin(variances: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return torch.diag(variances) + factors @ factors.T


COVARIANCES = {
    "diagonal": SIGMA["diagonal"].expand(B, D, D),
    "full": SIGMA["full"].expand(B, D, D),
    "rank": thin(V, U).expand(B, D, D),
    "each-diagonal": torch.diag_embed(VARIANCES),
    "each-full": MATRICES,
    "each-rank": torch.stack([thin(v, u) for v, u in zip(VARIANCES, FACTORS, strict=True)]),
}


def root(name: str) -> torch.Tensor:
    """L of each row (B, D, D), by scipy: the symmetric root, in a low rank V^(1/2) times that of V^(-1/2) Sigma V^(-1/2)."""
    if not name.endswith("rank"):
        return torch.stack([root_of(matrix) for matrix in COVARIANCES[name]])
    std = (VARIANCES if name.startswith("each") else V.expand(B, D)).sqrt()
    inner = COVARIANCES[name] / (std[:, :, None] * std[:, None, :])
    return std[:, :, None] * torch.stack([root_of(matrix) for matrix in inner])


def apply(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (matrix @ x.double()[:, :, None])[:, :, 0]


def there(name: str, y: torch.Tensor) -> torch.Tensor:
    """mu + L y."""
    return (MEANS if name.startswith("each") else MU) + apply(root(name), y)


def given(schedule, name: str) -> tuple[orn.Gaussian, torch.Tensor | None]:
    """A process of the base, and the condition that gives each row its own law."""
    each = name.startswith("each")
    return orn.Gaussian(schedule, ByClass(BASES[name]) if each else BASES[name]), torch.arange(B) if each else None


# --- the three kinds of covariance


@pytest.mark.parametrize("name", BASES)
def test_products_are_those_of_the_matrices(name):
    base, cov, x = BASES[name], COVARIANCES[name], numbers(B, D, seed=1)
    factor = root(name)
    assert torch.allclose(factor @ factor.mT, cov)
    found = base.matrix() if base.one_a_row else base.matrix().expand(B, D, D)
    truths = {
        "colour": factor, "whiten": torch.linalg.inv(factor), "colour_score": torch.linalg.inv(factor.mT),
        "whiten_score": factor.mT, "covary": cov, "precision": torch.linalg.inv(cov),
    }  # fmt: skip
    assert torch.allclose(found, cov)
    for product, matrix in truths.items():
        assert torch.allclose(getattr(base, product)(x), apply(matrix, x)), product
        assert torch.allclose(getattr(base, product)(x.float()), apply(matrix, x).float(), rtol=1e-4, atol=1e-5), (
            product
        )
    assert torch.allclose(base.variances(x).expand(B, D), cov.diagonal(dim1=1, dim2=2))
    assert torch.allclose(torch.as_tensor(base.log_det).double().expand(B), torch.logdet(cov))
    scale = numbers(B, D, seed=2).exp()
    r = torch.diag_embed(scale)
    traces = (torch.linalg.inv(cov) @ r @ cov @ r).diagonal(dim1=1, dim2=2).sum(1)
    assert torch.allclose(base.trace(scale), traces)
    mean = MEANS if base.one_a_row else MU.expand(B, D)
    assert torch.allclose(base.log_prob(x), MultivariateNormal(mean, cov).log_prob(x))


@pytest.mark.parametrize("name", BASES)
def test_laws_of_steps_against_torch(name):
    base, cov = BASES[name], COVARIANCES[name]
    means, x = (numbers(B, D, seed=1), numbers(B, D, seed=2)), numbers(B, D, seed=3)
    for stds in ((0.7, 1.3), (numbers(B, D, seed=4).exp(), numbers(B, D, seed=5).exp())):
        scales = [torch.diag_embed(torch.as_tensor(s).double().expand(B, D)) for s in stds]
        ours = [GaussianLaw(m, s, base) for m, s in zip(means, stds, strict=True)]
        theirs = [MultivariateNormal(m, s @ cov @ s) for m, s in zip(means, scales, strict=True)]
        assert torch.allclose(ours[0].log_prob(x), theirs[0].log_prob(x))
        assert torch.allclose(ours[0].kl(ours[1]), torch.distributions.kl_divergence(*theirs))


def test_the_kl_is_in_the_norm_of_the_covariance():
    """A26: 1.7303, where the identity's norm would give 0.8095."""
    c = torch.tensor([[1.0, 0.8], [0.8, 1.5]], dtype=torch.float64)
    base, zero, gap = Base(torch.zeros(2).double(), c), torch.zeros(1, 2).double(), torch.tensor([[0.3, -0.5]]).double()
    std = math.sqrt(0.21)
    assert float(GaussianLaw(zero, std, base).kl(GaussianLaw(gap, std, base))) == pytest.approx(1.7303, abs=5e-5)


def test_rows_of_laws_and_of_one_law():
    base = BASES["full"]
    assert base.rows([1, 2]) is base
    x = numbers(B, D, seed=1)
    for name in ("each-diagonal", "each-full", "each-rank"):
        for rows in (slice(1, 3), torch.tensor([3, 0]), [2], torch.tensor([True, False, False, True])):
            part = BASES[name].rows(rows)
            for product in ("colour", "whiten", "covary", "precision", "colour_score"):
                assert torch.allclose(getattr(part, product)(x[rows]), getattr(BASES[name], product)(x)[rows])
            assert torch.allclose(part.log_prob(x[rows]), BASES[name].log_prob(x)[rows])
            assert torch.equal(part.mean, MEANS[rows])
    twice = BASES["each-full"].rows([3, 2, 1]).rows([2, 0])
    assert torch.equal(twice.matrix(), MATRICES[[1, 3]])


def test_a_low_rank_of_images_makes_no_matrix():
    """20,000 dimensions: a (D, D) matrix would take 3 GB."""
    variances, factors = torch.rand(2, 100, 100).double() + 0.5, numbers(2, 100, 100, 3)
    base, x = Base(torch.zeros(2, 100, 100).double(), LowRank(variances, factors)), numbers(2, 2, 100, 100, seed=4)
    truth = variances * x + torch.einsum("chwr,nr->nchw", factors, torch.tensordot(x, factors, 3))
    assert torch.allclose(base.covary(x), truth)
    assert torch.allclose(base.colour(base.whiten(x)), x)
    assert torch.allclose(base.precision(base.covary(x)), x)


def test_noise_keeps_its_precision_under_autocast():
    base, z = Base(torch.zeros(64), torch.diag(torch.linspace(0.01, 100, 64))), numbers(8, 64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(base.whiten(base.colour(z)), z, atol=1e-4)


# --- measured


def test_measured_laws_are_the_moments():
    x = numbers(500, 6, seed=1) @ numbers(6, 6, seed=2) + numbers(6, seed=3)
    cov = torch.from_numpy(np.cov(x.numpy().T, bias=True))
    for kind in ("diagonal", "full", 6):
        base = Base.measure(x.view(500, 2, 3), kind)
        assert base.shape == (2, 3)
        assert torch.allclose(base.mean.flatten(), x.mean(0))
        assert torch.allclose(
            base.matrix(), torch.diag(cov.diagonal()) if kind == "diagonal" else cov, atol=1e-2 * cov.max()
        )
    low = Base.measure(x, 2).matrix()
    assert torch.allclose(low.diagonal(), cov.diagonal())  # what the factors leave of the variances is kept
    values, vectors = torch.linalg.eigh(cov)
    top = (vectors[:, -2:] * (values[-2:] - values[:-2].mean())) @ vectors[:, -2:].T
    off = ~torch.eye(6, dtype=torch.bool)
    assert torch.allclose(low[off], top[off], atol=1e-6 * float(cov.max()))


def test_what_does_not_vary_has_the_floor():
    x = torch.cat([numbers(50, 3, seed=1), torch.ones(50, 1)], 1)
    mean_variance = float(x.var(0, unbiased=False).mean())
    for kind in ("diagonal", "full", 2):
        least = torch.linalg.eigvalsh(Base.measure(x, kind, floor=0.01).matrix())[0]
        assert float(least) == pytest.approx(0.01 * mean_variance, rel=1e-6)
    with pytest.raises(DataError, match="do not vary"):
        Base.measure(torch.ones(5, 2))
    with pytest.raises(DataError, match="more than that"):
        Base.measure(numbers(4, 4), "full")
    check_refusal(lambda: Base.measure(numbers(9, 4), "diag"), "'diag'", "'diagonal', 'full' or a rank of 1 to 4")
    check_refusal(lambda: Base.measure(numbers(9, 4), 5), "5", "a rank of 1 to 4")


# --- every sampler: the standard process in whitened coordinates


class Coloured:
    """An exact denoiser of white data z as that of x = mu + L z, the matrices being scipy's."""

    def __init__(self, white, process: orn.Gaussian, name: str) -> None:
        self.white, self.process, self.name, self.shape = white, process, name, (D,)
        self.root = root(name)

    def _of(self, x, cond):
        rows = torch.arange(len(x)) % B if cond is None else cond
        mean = (MEANS if self.name.startswith("each") else MU.expand(B, D))[rows]
        return mean, self.root[rows], apply(torch.linalg.inv(self.root[rows]), x - mean)

    def __call__(self, x_t, t, cond=None, keep=None):
        mean, factor, z = self._of(x_t, cond)
        x0 = mean + apply(factor, self.white(z, t).x0)
        return self.process.given(cond).estimate(x_t, t, x0=x0.to(x_t))

    def log_density(self, x_t, t):
        _, factor, z = self._of(x_t, None)
        return self.white.log_density(z, t) - torch.linalg.slogdet(factor)[1]


def white_data(schedule) -> exact.Mixture:
    return exact.Mixture(orn.Gaussian(schedule), numbers(3, D, seed=40), torch.tensor([0.1, 0.3, 0.2]))


SAMPLERS = [
    orn.Ancestral(), orn.Ancestral(0.5), orn.Ancestral(variance="beta"), orn.Euler(), orn.Euler(churn=0.2), orn.Heun(),
    orn.Heun(churn=0.1), orn.Midpoint(), orn.RK4(), orn.RK45(1e-5, 1e-5), orn.EulerMaruyama(), orn.EulerMaruyama(brownian=True),
    orn.StochasticHeun(), orn.StochasticHeun(0.5), orn.Multistep(), orn.Multistep(3, corrector=True),
    orn.Multistep(4, variable="sigma"), orn.Multistep(2, "x0", exact=False, noise=1.0), orn.Singlestep(2),
    orn.Singlestep(3, "eps"),
    orn.PredictorCorrector(orn.Ancestral(), orn.Langevin()), orn.PredictorCorrector(orn.Heun(), orn.Langevin(snr=0.16, steps=2)),
    orn.PredictorCorrector(orn.Multistep(), orn.UnderdampedLangevin()),
    orn.PredictorCorrector(orn.Euler(), orn.Langevin(0.5, adjust=True)),
    orn.AnnealedLangevin(steps=2), orn.AnnealedLangevin(steps=2, adjust=True),
]  # fmt: skip


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_every_sampler_is_the_standard_one_in_whitened_coordinates(sampler, name):
    """Sample by sample, with the same noise."""
    white = white_data(orn.LinearVP())
    adjusted = "adjust=True" in repr(
        sampler
    )  # a log-density has no condition, so the laws of its rows are bound before
    process, cond = (orn.Gaussian(orn.LinearVP(), BASES[name]), None) if adjusted else given(orn.LinearVP(), name)
    y = numbers(B, D, seed=5)
    one = orn.sample(white, sampler, start=y, steps=5, seed=2).x
    two = orn.sample(Coloured(white, process, name), sampler, start=there(name, y), steps=5, seed=2, cond=cond).x
    assert torch.allclose(two, there(name, one), rtol=1e-5, atol=1e-5)


LABELS = torch.tensor([2, 0, 3, 3, 1])


@pytest.mark.parametrize("sampler", SAMPLERS[:-1], ids=repr)
def test_every_sampler_binds_a_base_by_class(sampler):
    """From the prior, in batches: each sample is drawn under its own law."""
    if "adjust=True" in repr(sampler):
        return  # a log-density has no condition
    white = white_data(orn.LinearVP())
    based = Coloured(white, orn.Gaussian(orn.LinearVP(), ByClass(BASES["each-full"])), "each-full")
    one = orn.sample(white, sampler, n=5, shape=(D,), steps=4, seed=3).x
    two = orn.sample(based, sampler, n=5, cond=LABELS, steps=4, seed=3, batch_size=2).x
    truth = MEANS[LABELS] + apply(root("each-full")[LABELS], one)
    assert torch.allclose(two.double(), truth, rtol=1e-4, atol=1e-4)


def test_the_output_of_ancestral_sampling_has_the_covariance():
    """A24, by the exact recursion of data N(mu, Sigma): Cov(x_i) = Sigma at every step, with noise of Sigma."""
    for name in ("diagonal", "full", "rank"):
        process = orn.Gaussian(orn.TableSchedule.linear(50), BASES[name])
        denoiser = exact.Normal(process, MU, COVARIANCES[name][0])
        grid, zero = orn.grids.uniform(process, 50), torch.zeros(1, D).double()
        sampler, draws = orn.Ancestral(variance="beta"), len(grid)
        rows = (draws + 1) * D
        noise = unit_noise(draws + 1, D)
        sigma = level(process.schedule, 1.0)[1]
        start = MU + sigma * BASES[name].colour(noise.normal((rows, D), torch.float64))
        silent = unit_noise(1, D)
        silent.normals = [zero] * (draws + 1)
        states = (sample_steps(denoiser, sampler, x, grid, rng) for x, rng in ((start, noise), (zero + MU, silent)))
        for state, rest in itertools.islice(zip(*states, strict=True), 50):
            off = state.x - rest.x
            scale = 1.0 if state.count else sigma**2
            assert torch.allclose(off.T @ off, scale * COVARIANCES[name][0], rtol=1e-4, atol=1e-4), (name, state.count)
            assert torch.allclose(rest.x, zero + MU)


# --- a network: training there is training the standard process in whitened coordinates


class Net(torch.nn.Module):
    def __init__(self, energy: bool = False, doubled: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.one, self.two = torch.nn.Linear(D + 1, 16), torch.nn.Linear(16, 1 if energy else D * (1 + doubled))

    def forward(self, x, time, cond=None, keep=None):
        return self.two(torch.tanh(self.one(torch.cat([x, time[:, None] / 1000], 1))))


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "velocity", "edm", "score", "energy"])
@pytest.mark.parametrize("name", BASES)
def test_a_network_works_in_whitened_coordinates(kind, name):
    nets = [
        orn.Denoiser(Net(kind == "energy").double(), process, kind, sigma_data=None if kind == "score" else 1.0)
        for process in (orn.Gaussian(orn.LinearVP()), orn.Gaussian(orn.LinearVP(), BASES[name]))
    ]
    y, t = numbers(B, D, seed=6), torch.tensor([0.1, 0.5, 0.9, 0.3]).double()
    white, here = nets[0](y, t), nets[1](there(name, y), t)
    assert torch.allclose(here.x0, there(name, white.x0))
    for reading in ("eps", "v", "velocity", "edm"):
        assert torch.allclose(here.reading(reading), apply(root(name), white.reading(reading)), rtol=1e-5, atol=1e-9), (
            reading
        )
    assert torch.allclose(apply(root(name).mT, here.score), white.score)
    if kind != "energy":  # what the network says is the reading of its name
        network = nets[0].network.double()
        alpha, sigma, _ = nets[0].process.level(t, y)
        z = y if kind == "score" else y / (alpha**2 + sigma**2) ** 0.5
        time = nets[0].time(t).float()
        assert torch.allclose(white.reading(kind), network(z, time))


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("v", orn.Objective()), ("edm", orn.Objective(orn.Stratified(orn.LogNormalSigma()))),
        ("eps", orn.Objective(orn.UniformTime(), orn.LikelihoodWeighting())),
        ("x0", orn.Objective(orn.UniformSteps(50), orn.ELBOWeighting("x0"))),
        ("eps", orn.Objective(orn.UniformSteps(50), orn.ELBOWeighting("score"))), ("v", orn.VLB(orn.UniformSteps(50))),
        ("v", orn.Hybrid(times=orn.UniformSteps(50))),
    ],
    ids=["v", "edm", "likelihood", "elbo-x0", "elbo-score", "vlb", "hybrid"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["full", "rank", "each-diagonal", "each-full"])
def test_training_has_the_losses_of_the_standard_process(kind, objective, name):
    """Three steps of gradient descent, the same draws; the third loss rests on two updates."""
    x0, losses = numbers(B, D, seed=7), []
    learned = "learned" if isinstance(objective, orn.Hybrid) else None
    for based in (False, True):
        process = orn.Gaussian(orn.LinearVP(), BASES[name] if based else None)
        denoiser = orn.Denoiser(Net(doubled=learned is not None).double(), process, kind, learned, sigma_data=1.0)
        optimiser = torch.optim.SGD(denoiser.parameters(), 0.05)
        data = there(name, x0) if based else x0
        for step in range(3):
            loss = objective(denoiser, data, None, Noise(step, B))
            losses.append(loss)
            optimiser.zero_grad()
            loss.mean.backward()
            optimiser.step()
    if isinstance(objective, orn.Hybrid) and not BASES[name].diagonal:  # a learned std is one of components of x
        assert torch.allclose(losses[0].parts["squared"], losses[3].parts["squared"])
        return
    bound = isinstance(
        objective, orn.VLB | orn.Hybrid
    )  # whose decoder's density, at the chain's first step, is that of x
    later = torch.stack([loss.t > 0.03 * bound for loss in losses[:3]])
    assert later.float().mean() > 0.8
    white, here = (torch.stack([loss.per_example for loss in part])[later] for part in (losses[:3], losses[3:]))
    assert torch.allclose(here, white, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("fixed", [0.0, 1.0])
@pytest.mark.parametrize("name", BASES)
def test_the_bound_by_a_weighting_is_the_bound(name, fixed):
    """ELBOWeighting's loss is VLB's, less that of one who knows x_0 and so is right about all but the variance."""
    process, cond = given(orn.CosineVP(), name)
    x0, bound = there(name, numbers(B, D, seed=8)), orn.VLB(orn.UniformSteps(4), fixed=fixed)
    network, seen = orn.Denoiser(Net().double(), process, "v"), set()
    for seed, reading in itertools.product((1, 3), ("x0", "v")):
        squared = Objective(orn.UniformSteps(4), orn.ELBOWeighting(reading, fixed))(network, x0, cond, Noise(seed, B))
        found, least = (bound(of, x0, cond, Noise(seed, B)).per_example for of in (network, Known(process, x0)))
        assert torch.allclose(squared.per_example, found - least, rtol=1e-5)
        seen |= set(squared.t.tolist())
    assert seen >= {0.25, 0.5}  # the decoder's step, and another


def test_the_likelihood_weighting_is_the_limit_of_the_bound():
    """1/2 ||eps_hat - eps||^2 in the norm of Sigma^-1 over the density of log-SNR (Kingma et al. 2021)."""
    times = orn.UniformLogSNR(0.1, 10.0)
    for name in BASES:
        process, cond = given(orn.LinearVP(), name)
        x0 = there(name, numbers(B, D, seed=8))
        mean = MEANS if cond is not None else MU.expand(B, D)
        found = Objective(times, orn.LikelihoodWeighting())(
            Known(process, MEANS if cond is not None else MU.expand(B, D)), x0, cond, Noise(3, B)
        )
        off = (x0 - mean) * torch.exp(process.schedule.log_snr(found.t) / 2)[:, None]
        square = (off * apply(torch.linalg.inv(COVARIANCES[name]), off)).sum(1)
        assert torch.allclose(found.per_example, 0.5 * square * 2 * math.log(100) / D)


class Known:
    """A denoiser that is told x_0."""

    def __init__(self, process, x0) -> None:
        self.process, self.x0 = process, x0

    def __call__(self, x_t, t, cond=None, keep=None):
        return self.process.given(cond).estimate(x_t, t, x0=self.x0)


def test_denoising_score_matching_is_in_the_coordinates_of_x():
    """Its target is the gradient of log q(x_t | x_0), by autograd."""
    objective = orn.DenoisingScoreMatching(power=0.0)
    for name in ("full", "rank", "each-full"):
        process, cond = given(orn.LinearVP(), name)
        mean, x0 = (MEANS if cond is not None else MU), there(name, numbers(B, D, seed=9))
        found = objective(Known(process, mean.expand(B, D)), x0, cond, Noise(1, B))
        for row in range(B):
            alpha, sigma = level(process.schedule, float(found.t[row]))
            x_t = process.given(cond).noise(x0, found.t, Noise(1, B))[row].detach().requires_grad_()
            mu = mean.expand(B, D)[row]
            laws = [MultivariateNormal(mu + alpha * (c - mu), sigma**2 * COVARIANCES[name][row]) for c in (x0[row], mu)]
            target, score = (torch.autograd.grad(law.log_prob(x_t), x_t)[0] for law in laws)
            assert float(found.per_example[row]) == pytest.approx(
                float(((score - target) ** 2).sum()) / (2 * D), rel=1e-8
            )


# --- likelihoods


SMALL = 0.3


def closed_form(name: str, x: torch.Tensor) -> torch.Tensor:
    mean = MEANS if name.startswith("each") else MU.expand(B, D)
    return MultivariateNormal(mean, SMALL * COVARIANCES[name]).log_prob(x)


@pytest.mark.parametrize("name", BASES)
def test_the_ode_likelihood_is_the_closed_form(name):
    white = exact.Normal(orn.Gaussian(orn.CosineVP()), torch.zeros(D).double(), SMALL)
    process, cond = given(orn.CosineVP(), name)
    based = Coloured(white, process, name)
    x, solver = there(name, math.sqrt(SMALL) * numbers(B, D, seed=10)), RungeKutta(1e-7, 1e-7)
    found = orn.log_likelihood(based, x, trace=Exact(), solver=solver, cond=cond)
    assert torch.allclose(found.per_example, closed_form(name, x), atol=2e-5)
    encoded = orn.encode(based, x, solver=solver, round_trip=True, cond=cond)
    assert encoded.round_trip.max() < 1e-5
    truth = there(name, torch.linalg.solve(root(name), (x - there(name, torch.zeros(B, D)))) / math.sqrt(SMALL))
    assert torch.allclose(encoded.x, truth, atol=1e-4)  # the flow of a normal is affine
    assert torch.allclose(orn.decode(based, encoded.x, solver=solver, cond=cond).x, x, atol=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_the_elbo_is_the_closed_form(name):
    """Data of the base's own law: the reverse steps are exact, and so is the bound on average; term by term it is that of the
    standard process, less log |L|."""
    white = exact.Normal(orn.Gaussian(orn.LinearVP()), torch.zeros(D).double(), 1.0)
    process, cond = given(orn.LinearVP(), name)
    based, x = Coloured(white, process, name), there(name, numbers(B, D, seed=10))
    ours = orn.elbo(based, x, steps=20, seed=4, cond=cond)
    plain = orn.elbo(white, numbers(B, D, seed=10), steps=20, seed=4)
    shift = 0.5 * torch.logdet(COVARIANCES[name])
    assert torch.allclose(ours.prior, plain.prior)
    assert torch.allclose(ours.diffusion, plain.diffusion, atol=1e-8)
    assert torch.allclose(ours.reconstruction, plain.reconstruction - shift)
    path = orn.elbo(based, x, steps=20, form="path", seed=4, cond=cond).total
    assert torch.allclose(path, orn.elbo(white, numbers(B, D, seed=10), steps=20, form="path", seed=4).total - shift)
    mean = MEANS if cond is not None else MU.expand(B, D)
    many = orn.elbo(
        based, x.repeat(500, 1), steps=20, form="path", cond=None if cond is None else cond.repeat(500)
    ).total
    off = many.view(500, B) - MultivariateNormal(mean, COVARIANCES[name]).log_prob(x)
    assert (off.mean(0).abs() < 4 * off.std(0) / math.sqrt(500)).all()
    assert off.std(0).max() < 1.5


def test_likelihoods_bind_a_base_by_class_batch_by_batch():
    white = exact.Normal(orn.Gaussian(orn.CosineVP()), torch.zeros(D).double(), SMALL)
    based = Coloured(white, orn.Gaussian(orn.CosineVP(), ByClass(BASES["each-rank"])), "each-rank")
    x = MEANS[LABELS] + apply(root("each-rank")[LABELS], math.sqrt(SMALL) * numbers(5, D, seed=11))
    truth = MultivariateNormal(MEANS[LABELS], SMALL * COVARIANCES["each-rank"][LABELS]).log_prob(x)
    options = {"cond": LABELS, "batch_size": 2}
    found = orn.log_likelihood(based, x, trace=Exact(), solver=RungeKutta(1e-7, 1e-7), **options)
    assert torch.allclose(found.per_example, truth, atol=2e-5)
    there = orn.encode(based, x, **options).x
    assert (orn.decode(based, there, **options).x - x).abs().max() < 1e-3
    one = orn.elbo(based, x, steps=10, **options).total
    assert torch.allclose(one, orn.elbo(based, x, steps=10, cond=LABELS).total)
    curve = Curve.of(based, LABELS)
    z = curve.at(x, 1.0)
    assert torch.allclose(curve.to(z, 1.0), x)


def test_a_prior_on_levels_has_a_bound_below_their_probability():
    """Two levels of two correlated components, a base of full covariance: the ELBO is below the log-probability."""
    from ornstein.data import Scaling
    from ornstein.variational import Bins, resolution

    raw = torch.tensor([[0, 0], [0, 0], [0, 1], [3, 3], [3, 3], [3, 2]], dtype=torch.uint8)
    scaling = Scaling.measure(raw, levels=4)
    data = scaling.encode(raw).double()
    bins = Bins.of(scaling)
    base = Base.measure(data, "full", floor=0.01)
    assert resolution(orn.Gaussian(orn.LinearVP(), base), bins) == pytest.approx(bins.resolution / base.scale)
    process = orn.Gaussian(orn.LinearVP(), base)
    white = exact.Empirical(orn.Gaussian(orn.LinearVP()), base.whiten(data - base.mean), 0.0)

    class There:
        shape = (2,)

        def __init__(self) -> None:
            self.process, self.scaling = process, scaling

        def __call__(self, x_t, t, cond=None, keep=None):
            z = base.whiten(x_t - base.centre(x_t))
            return process.estimate(x_t, t, x0=base.centre(x_t) + base.colour(white(z, t).x0))

    values, counts = raw.unique(dim=0, return_counts=True)
    truth = (counts.double() / len(raw)).log()
    bound = orn.elbo(There(), values.repeat_interleave(40, 0), steps=200, seed=1).total.view(len(values), 40).mean(1)
    assert (bound < truth + 0.05).all()
    assert (bound > truth - 1.5).all()


# --- what does not fit


def singular() -> torch.Tensor:
    return torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "got", "remedy"),
    [
        (lambda: Base(torch.zeros(2), singular()), "smallest eigenvalue -1", "positive definite"),
        (lambda: Base(torch.zeros(2), torch.ones(2, 2)), "smallest eigenvalue", "positive definite"),
        (lambda: Base(torch.zeros(2), torch.tensor([1.0, 0.0])), "smallest eigenvalue 0", "positive definite"),
        (lambda: Base(torch.zeros(2), torch.tensor([1.0, math.nan])), "smallest eigenvalue nan", "positive definite"),
        (
            lambda: Base(torch.zeros(2), LowRank(torch.tensor([1.0, -0.5]), torch.ones(2, 1))),
            "eigenvalue -0.5",
            "definite",
        ),
        (lambda: Base(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.1, 1.0]])), "not symmetric", "Sigma^T"),
        (lambda: Base(torch.zeros(3), torch.ones(2)), "(2,) for a mean of shape (3,)", "(3, 3) (full)"),
        (lambda: Base(torch.zeros(3), LowRank(torch.ones(2), torch.ones(2, 1))), "(2,)", "LowRank of such variances"),
        (lambda: Base(torch.full((2,), math.nan), torch.ones(2)), "mean with NaN", "finite"),
        (lambda: LowRank(torch.ones(3), torch.ones(2, 1)), "factors of shape (2, 1)", "(3, r)"),
        (
            lambda: Base.each(torch.zeros(2, 2), torch.stack([torch.eye(2).double(), singular()])),
            "smallest eigenvalue -1 in row 1",
            "positive definite",
        ),
        (lambda: Base.each(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [1.0, -2.0]])), "-2 in row 1", "definite"),
        (lambda: ByClass(BASES["full"]), "one law", "Normal.each"),
        (lambda: CONDITIONAL.given(None), "no condition", "cond="),
        (lambda: CONDITIONAL.prior((2, D), Noise(0, 2)), "(colour) before it was given one", "process.given(cond)"),
        (lambda: orn.sample(Known(CONDITIONAL, MEANS), n=B, shape=(D,), calls=2), "no condition", "cond="),
        (lambda: orn.log_likelihood(Known(CONDITIONAL, MEANS), MEANS), "no condition", "cond="),
        (lambda: orn.elbo(Known(CONDITIONAL, MEANS), MEANS, steps=2), "no condition", "cond="),
        (lambda: CONDITIONAL.given(torch.tensor([0, B])), f"class {B}", f"0 to {B - 1}"),
        (lambda: CONDITIONAL.given(torch.ones(2)), "torch.float32", "int64"),
        (lambda: CONDITIONAL.given({"image": torch.ones(2)}), "labels none", "int64"),
        (
            lambda: orn.Gaussian(orn.LinearVP(), ConditionalNormal(lambda c: BASES["full"])).given(LABELS),
            "Normal",
            "Normal.each",
        ),
        (lambda: exact.Normal(CONDITIONAL, MU, 1.0), "depends on the condition", "one base for all rows"),
        (
            lambda: exact.Mixture(CONDITIONAL.given(LABELS), MEANS, 1.0),
            "depends on the condition",
            "one base for all rows",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_refused(call, got, remedy):
    check_refusal(call, got, remedy)


CONDITIONAL = orn.Gaussian(orn.LinearVP(), ByClass(BASES["each-full"]))


def test_a_function_of_the_condition_and_a_dict():
    base = ConditionalNormal(
        lambda cond: Base.each(cond["scale"][:, None].expand(-1, D), cond["scale"][:, None].expand(-1, D) ** 2)
    )
    process, scale = orn.Gaussian(orn.LinearVP(), base), torch.tensor([0.1, 2.0, 7.0]).double()
    bound = process.given({"scale": scale})
    drawn = bound.prior((3, D), Noise(0, 3), dtype=torch.float64)
    plain = orn.Gaussian(orn.LinearVP()).prior((3, D), Noise(0, 3), dtype=torch.float64)
    assert torch.allclose(drawn, scale[:, None] * (1 + plain))
    assert process.base is base
    assert bound.given({"scale": scale[:1]}) is bound
    labels = orn.Gaussian(orn.LinearVP(), ByClass(BASES["each-full"])).given({"labels": LABELS, "image": LABELS})
    assert torch.equal(labels.base.mean, MEANS[LABELS])
    assert torch.equal(labels.rows(slice(1, 3)).base.mean, MEANS[LABELS[1:3]])
    estimate = labels.estimate(MEANS[LABELS], 0.3, x0=MEANS[LABELS])
    assert estimate.rows(slice(0, 2)).process.base.mean.shape == (2, D)


def test_a_retargeted_model_keeps_the_base_of_the_condition():
    """Under another schedule: the standard one in whitened coordinates."""
    white = exact.Normal(orn.Gaussian(orn.LinearVP()), torch.ones(D).double(), 0.4)
    process, cond = given(orn.LinearVP(), "each-full")
    other = orn.Retargeted(Coloured(white, process, "each-full"), orn.Gaussian(orn.EDM(), process.base))
    y = numbers(B, D, seed=5)
    plain = orn.Retargeted(white, orn.Gaussian(orn.EDM()))(y, 0.6).x0
    assert torch.allclose(other(there("each-full", y), 0.6, cond).x0, there("each-full", plain))


def test_explicit_score_matching_takes_an_exact_denoiser_of_the_same_conditional_base():
    process, cond = given(orn.LinearVP(), "each-full")
    white = exact.Normal(orn.Gaussian(orn.LinearVP()), torch.ones(D).double(), 0.4)
    truth, x0 = Coloured(white, process, "each-full"), there("each-full", numbers(B, D, seed=9))
    assert orn.ExplicitScoreMatching(truth)(truth, x0, cond, Noise(1, B)).per_example.abs().max() < 1e-12
    check_refusal(
        lambda: orn.ExplicitScoreMatching(truth)(Known(orn.Gaussian(orn.LinearVP()), x0), x0, cond, Noise(1, B)),
        "exact",
        "one process",
    )


def test_guidance_and_constraints_work_on_a_base_by_class():
    """A doubled batch has the laws of its rows twice; what is replaced is noised by the law of its row."""
    torch.manual_seed(0)
    network = awake(orn.MLP(shape=(D,), width=16, depth=1, classes=B)).double()
    process, cond = given(orn.LinearVP(), "each-full")
    one, two = (orn.Denoiser(network, p, "v", sigma_data=1.0) for p in (orn.Gaussian(orn.LinearVP()), process))
    y, options = numbers(B, D, seed=5), {"steps": 4, "seed": 2, "cond": cond}
    for guide in (orn.ClassifierFreeGuidance, lambda inner, scale: orn.Autoguidance(inner, inner, scale)):
        plain = orn.sample(guide(one, scale=2.5), orn.Ancestral(), start=y, **options).x
        found = orn.sample(guide(two, scale=2.5), orn.Ancestral(), start=there("each-full", y), **options).x
        assert torch.allclose(found, there("each-full", plain), atol=1e-5)
    reference = there("each-full", torch.zeros(B, D).double())
    known = orn.Inpainting(orn.Ancestral(), reference, missing=torch.zeros(D, dtype=torch.bool))
    grid = torch.tensor([1.0, 0.5], dtype=torch.float64)
    drawn = orn.sample(two, known, start=there("each-full", y), grid=grid, seed=2, cond=cond).x
    sigma = level(process.schedule, 0.5)[1]
    white = torch.linalg.solve(root("each-full"), drawn - reference) / sigma
    again = orn.sample(
        one,
        known.__class__(orn.Ancestral(), torch.zeros(B, D).double(), missing=known.missing),
        start=y,
        grid=grid,
        seed=2,
        cond=cond,
    ).x
    assert torch.allclose(white, again / sigma, atol=1e-6)
