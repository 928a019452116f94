"""Classifiers of noisy data against closed forms: p_t(y | x_t) of normal classes, its entropy, its gradient."""

import math

import numpy as np
import pytest
import torch
from helpers import Fixed, level
from scipy import integrate, stats
from torch import nn

import ornstein as orn
from ornstein import exact
from ornstein.errors import ConfigurationError
from ornstein.objectives import CrossEntropy

# Two classes on a line, of one variance: log p_t(1 | x) / p_t(0 | x) is a + b x at every t
MEANS, STD, SHARES = (-0.8, 1.1), 0.5, (0.35, 0.65)
SCHEDULES = {"cosine": orn.CosineVP(), "edm": orn.EDM(), "flow": orn.RectifiedFlow()}
T = {"cosine": 0.4, "edm": 0.35, "flow": 0.6}


class At:
    """A law of times that knows one time."""

    def __init__(self, t: float) -> None:
        self.t = t

    def __call__(self, process, u):
        return torch.full_like(u, self.t)


class Line(nn.Module):
    """Logits (0, a + b x)."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.line = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, x, time):
        return torch.cat([torch.zeros_like(x), self.line[0] + self.line[1] * x], dim=1)


def posterior(schedule, t: float) -> tuple[float, float]:
    """(a, b) of the log-odds of class 1 given x_t, by Bayes' rule."""
    alpha, sigma = level(schedule, t)
    variance = (alpha * STD) ** 2 + sigma**2
    low, high = (alpha * mean for mean in MEANS)
    return math.log(SHARES[1] / SHARES[0]) - (high**2 - low**2) / (2 * variance), (high - low) / variance


def entropy(schedule, t: float) -> float:
    """H(y | x_t) in nats, by scipy's quadrature."""
    alpha, sigma = level(schedule, t)
    laws = [stats.norm(alpha * mean, math.hypot(alpha * STD, sigma)) for mean in MEANS]

    def integrand(x: float) -> float:
        joint = [share * law.pdf(x) for share, law in zip(SHARES, laws, strict=True)]
        return -sum(p * math.log(p / sum(joint)) for p in joint if p > 0)

    ends = (min(law.ppf(1e-13) for law in laws), max(law.isf(1e-13) for law in laws))
    return integrate.quad(integrand, *ends, epsabs=1e-12, limit=200)[0]


def expected_loss(schedule, t: float, network: nn.Module):
    """E[-log p_t(y | x_t)] of `CrossEntropy` by Gauss-Hermite quadrature over x_0 and the noise, in each class."""
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    n = len(nodes)
    x0 = torch.cat([(mean + STD * nodes).repeat_interleave(n) for mean in MEANS])[:, None]
    labels = torch.arange(2).repeat_interleave(n * n)
    share = torch.cat([s * (weights[:, None] * weights).flatten() for s in SHARES])
    rng = Fixed(nodes.repeat(2 * n)[:, None], u=torch.full((2 * n * n,), 0.5))
    loss = CrossEntropy(At(t))(orn.Classifier(network, orn.Gaussian(schedule)), x0, labels, rng, None)
    return (share * loss.per_example).sum()


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_posterior_at_x_t_is_the_minimiser_and_the_conditional_entropy_the_least_loss(name):
    schedule, t = SCHEDULES[name], T[name]
    network = Line(*posterior(schedule, t))
    loss = expected_loss(schedule, t, network)
    (gradient,) = torch.autograd.grad(loss, network.line)
    assert loss.item() == pytest.approx(entropy(schedule, t), abs=1e-7)
    assert gradient.abs().max() < 1e-7
    naive = Line(*posterior(orn.RectifiedFlow(), 0.0))  # p(y | x_0) taken at x_0 = x_t
    worse = expected_loss(schedule, t, naive)
    assert worse.item() > loss.item() + 0.02
    assert torch.autograd.grad(worse, naive.line)[0].abs().max() > 0.02


class Bayes(nn.Module):
    """The logits log p(y) p_t(x_t | y) of round normal classes in space, told t itself."""

    def __init__(self, process, means, variances, shares) -> None:
        super().__init__()
        self.laws = [exact.Normal(process, mean, float(v)) for mean, v in zip(means, variances, strict=True)]
        self.shares = shares

    def forward(self, x, time):
        logs = [law.log_density(x, float(time[0])) for law in self.laws]
        return torch.stack(logs, dim=1) + self.shares.log()


def test_the_gradient_is_what_turns_the_score_of_all_into_that_of_a_class():
    """score(x_t | y) = score(x_t) + grad log p_t(y | x_t) (paper 002 eq. 54), with exact scores of normals and their mixture."""
    process = orn.Gaussian(orn.CosineVP())
    means = torch.tensor([[0.0, 1.0], [1.5, -0.5], [-1.0, -1.0]], dtype=torch.float64)
    variances, shares = torch.tensor([0.3, 0.1, 0.5]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    classifier = orn.Classifier(Bayes(process, means, variances, shares), process, time=lambda t: t)
    mixture = exact.Mixture(process, means, variances, shares)
    t = 0.5
    x = torch.tensor([[0.3, -0.2], [2.0, 1.0], [-1.0, 0.7]], dtype=torch.float64, requires_grad=True)
    for y in range(3):
        log_prob = classifier.log_prob(x, t, torch.full((3,), y))
        (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        of_class = exact.Normal(process, means[y], float(variances[y]))(x.detach(), t).score
        torch.testing.assert_close(mixture(x.detach(), t).score + gradient, of_class, rtol=1e-6, atol=1e-7)
    total = torch.stack([classifier.log_prob(x, t, torch.full((3,), y)).exp() for y in range(3)]).sum(0)
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64))


def test_it_is_told_of_x_t_and_t_what_a_denoiser_is_told():
    process, seen = orn.Gaussian(orn.CosineVP()), []

    class Seeing(nn.Module):
        def forward(self, x, time):
            seen.append((x, time))
            return x

    x, t = torch.tensor([[0.5, -2.0], [1.0, 3.0]]), torch.tensor([0.2, 0.9], dtype=torch.float64)
    orn.Classifier(Seeing(), process, sigma_data=0.6)(x, t)
    orn.Denoiser(Seeing(), process, "v", sigma_data=0.6)(x, t)
    for k in (0, 1):
        alpha, sigma = level(process.schedule, float(t[k]))
        expected = x[k] / math.sqrt((0.6 * alpha) ** 2 + sigma**2)
        for found, time in seen:
            torch.testing.assert_close(found[k], expected)
            assert float(time[k]) == pytest.approx(1000 * float(t[k]))


def test_under_a_base_it_sees_whitened_states_and_its_logits_are_its_own():
    mean, variances = torch.tensor([0.5, -1.0]).double(), torch.tensor([4.0, 0.25]).double()
    process, seen = orn.Gaussian(orn.CosineVP(), orn.Normal(mean, variances)), []

    class Seeing(nn.Module):
        def forward(self, x, time):
            seen.append(x)
            return torch.full_like(x, 3.0)

    x = torch.tensor([[0.5, -2.0], [1.0, 3.0]], dtype=torch.float64)
    logits = orn.Classifier(Seeing(), process, sigma_data=1.0)(x, 0.4)
    torch.testing.assert_close(logits, torch.full((2, 2), 3.0, dtype=torch.float64))
    torch.testing.assert_close(seen[0], (x - mean) / variances.sqrt())


def test_training_finds_the_posterior_at_every_level():
    schedule = orn.CosineVP()
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, generator=generator) < SHARES[1]).long()
    x0 = torch.tensor(MEANS)[labels] + STD * torch.randn(4000, generator=generator)
    torch.manual_seed(0)
    classifier = orn.Classifier(orn.networks.MLPEncoder(1, width=32, depth=1, outputs=2), orn.Gaussian(schedule), 1.0)
    options = {"steps": 300, "batch_size": 512, "learning_rate": 5e-3}
    for _ in orn.train(classifier, x0[:, None], CrossEntropy(), cond=labels, **options):
        pass
    assert not classifier.training
    x = torch.linspace(-2, 2, 41)[:, None]
    for t in (0.05, 0.4, 0.8):
        a, b = posterior(schedule, t)
        with torch.no_grad():
            found = classifier.log_prob(x, t, torch.ones(41, dtype=torch.long)).exp()
        assert (found - torch.sigmoid(a + b * x[:, 0])).abs().max() < 0.08


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.tensor([0, 3]), "got classes 0 to 3, expected 0 to 1"),
        (torch.tensor([-1, 0]), "got classes -1 to 0"),
        (torch.tensor([0.0, 1.0]), "torch.float32"),
        (torch.tensor([[0, 1]]), "shape (1, 2)"),
        ({"image": torch.zeros(2)}, "got labels none"),
        (None, "got labels none"),
    ],
)
def test_labels_that_are_none(labels, words):
    classifier = orn.Classifier(Line(0.0, 1.0), orn.Gaussian(orn.CosineVP()))
    with pytest.raises(ConfigurationError) as caught:
        classifier.log_prob(torch.zeros(2, 1, dtype=torch.float64), 0.5, labels)
    assert words in str(caught.value)


def test_what_is_no_classifier_is_refused():
    process, x0 = orn.Gaussian(orn.CosineVP()), torch.zeros(2, 3)
    wrong = orn.Classifier(orn.UNet(1, widths=(8,), blocks=1, attention=0), process)
    with pytest.raises(ConfigurationError, match="expected \\(b, K\\), a number a class: UNetEncoder"):
        wrong(torch.zeros(2, 1, 4, 4), 0.5)
    rng = orn.Noise(0, 2)
    with pytest.raises(ConfigurationError, match="got Denoiser, expected a Classifier"):
        CrossEntropy()(orn.Denoiser(orn.MLP(3), process, "v"), x0, torch.tensor([0, 1]), rng)
    with pytest.raises(ConfigurationError, match="got no classes, expected a Classifier and cond=labels"):
        CrossEntropy()(orn.Classifier(orn.MLPEncoder(3), process), x0, None, rng)
