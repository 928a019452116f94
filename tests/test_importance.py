"""Importance-sampled times within a run: a history that is saved with it; and the gradient noise scale."""

from dataclasses import replace

import pytest
import torch

import ornstein as orn
from ornstein import experiment
from ornstein.config import TrainingOptions
from ornstein.objectives import Importance, Loss
from ornstein.training import Run
from ornstein.training.noise_scale import noise_scale
from test_training import after_step, lines, options, states_equal

IMPORTANCE = {"objective": "hybrid", "times": "Importance(steps=4, keep=2)", "log_every": 1}


def test_a_run_resumed_with_its_history_is_bit_identical(tmp_path):
    whole = experiment.create(options(steps=10, **IMPORTANCE), tmp_path / "whole")
    whole.train(progress=False)
    part = experiment.create(options(steps=10, **IMPORTANCE), tmp_path / "part")
    after_step(part, lambda count: setattr(part.run, "stopped", count == 6))
    part.train(progress=False)
    again = experiment.resume(tmp_path / "part")
    assert again.run.aim.times.probabilities is not None
    assert torch.equal(again.run.aim.times.probabilities, part.run.aim.times.probabilities)
    again.train(progress=False)
    assert states_equal(whole.run, again.run)
    assert {"history.values", "history.count"} <= whole.run.state()[0].keys()


def test_the_history_holds_the_plain_losses_of_the_last_steps(tmp_path):
    """Against the definition: what each step's rows had, without their weights, the last two of each time."""
    made, seen = experiment.create(options(steps=8, **IMPORTANCE), tmp_path / "run"), {i: [] for i in range(1, 5)}
    watch = made.run._watch

    def watched(loss: Loss) -> None:
        weight = torch.ones_like(loss.per_example) if loss.weight is None else loss.weight
        for t, value in zip(loss.t, (loss.per_example / weight).detach(), strict=True):
            seen[round(4 * float(t))].append(float(value))
        watch(loss)

    made.run._watch = watched
    made.train(progress=False)
    for i in range(1, 5):
        assert sorted(made.run.history.values[i - 1].tolist()) == pytest.approx(sorted(seen[i][-2:]), rel=1e-6)
    sizes = torch.tensor([(sum(v**2 for v in seen[i][-2:]) / 2) ** 0.5 for i in range(1, 5)], dtype=torch.float64)
    expected = 0.999 * sizes / sizes.sum() + 0.001 / 4
    assert torch.allclose(made.run.aim.times.probabilities, expected, rtol=1e-6)


def test_validation_draws_the_same_times_whatever_the_history(tmp_path):
    made = experiment.create(options(steps=6, **IMPORTANCE), tmp_path / "run")
    before = made._held_out_loss(0.05)
    made.run._watch(Loss(torch.ones(4), torch.rand(4)))
    made.run.history.update(torch.arange(1, 9) % 4 / 4 + 0.25, torch.rand(8))
    made.run._take_aim()
    assert made.run.aim.times.probabilities is not None
    assert made._held_out_loss(0.05) == before


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, time):
        return x * self.w


class Known:
    """Losses <w, x_i>: the gradient of an example is the example itself."""

    times = orn.UniformTime()

    def __call__(self, denoiser, x0, cond, rng, keep=None) -> Loss:
        return Loss(x0 @ denoiser.network.w, torch.zeros(len(x0)))


def test_noise_scale_of_a_known_gradient_and_covariance():
    """Paper check E15: G = (.5, -.3), S = diag(2, 1), so tr(S) / |G|^2 = 3 / .34 = 8.82."""
    run = Run(
        orn.Denoiser(Linear(), orn.Gaussian(orn.CosineVP()), "v"), Known(), TrainingOptions(steps=1, batch_size=32)
    )
    generator = torch.Generator().manual_seed(0)
    g, std = torch.tensor([0.5, -0.3]), torch.tensor([2.0, 1.0]).sqrt()
    squares, variances = 0.0, 0.0
    for _ in range(600):
        found = noise_scale(run, ((g + std * torch.randn(32, 2, generator=generator), None) for _ in range(4)))
        squares, variances = squares + found.gradient_square / 600, variances + found.variance / 600
    assert squares == pytest.approx(0.34, rel=0.03)
    assert variances == pytest.approx(3.0, rel=0.03)
    assert replace(found, gradient_square=0.34, variance=3.0).examples == pytest.approx(8.82, abs=0.01)
    assert replace(found, gradient_square=-0.1).examples is None


def test_the_noise_scale_is_logged_and_changes_nothing(tmp_path):
    plain = experiment.create(options(steps=4), tmp_path / "plain")
    plain.train(progress=False)
    watched = experiment.create(options(steps=4, noise_scale_every=2), tmp_path / "watched")
    watched.train(progress=False)
    assert states_equal(plain.run, watched.run)
    logged = [line for line in lines(tmp_path / "watched") if "gradient_noise_scale" in line]
    assert [line["step"] for line in logged] == [2, 4]
    assert all(line["gradient_variance"] > 0 for line in logged)


def test_importance_is_uniform_until_every_step_has_its_losses(tmp_path):
    made = experiment.create(options(steps=2, objective="vlb", times="importance"), tmp_path / "run")
    made.train(progress=False)
    assert isinstance(made.run.aim.times, Importance)
    assert made.run.aim.times.probabilities is None
    assert int(made.run.history.count.sum()) == 32
