"""Step by step agreement with diffusers: DDIM of any eta, DDPM, DPM-Solver++(2M), on one network and noise."""

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.noise import Noise
from ornstein.samplers import Ancestral, Multistep, sample_steps

diffusers = pytest.importorskip("diffusers")

STEPS = 10
TABLES = {"linear": orn.TableSchedule.linear(1000), "squaredcos_cap_v2": orn.TableSchedule.cosine(1000)}


class Network(torch.nn.Module):
    """A smooth function of x and the step's index i = 0 .. 999 as diffusers counts; ours is told 1000 t = i + 1."""

    def forward(self, x, time):
        phase = ((time - 1) / 1000).to(x).reshape(-1, 1)
        return torch.sin(2 * x + phase) + 0.3 * x.roll(1, 1) * torch.cos(3 * phase)


class Recorded:
    """Noise that keeps what it drew."""

    def __init__(self) -> None:
        self.inner, self.drawn = Noise(5, 4), []

    def normal(self, shape, dtype=torch.float32):
        self.drawn.append(self.inner.normal(shape, dtype))
        return self.drawn[-1]


def ours(table: str, kind: str, sampler, grid):
    denoiser = orn.Denoiser(Network(), orn.Gaussian(TABLES[table]), kind)
    x, rng = Noise(1, 4).normal((4, 3), torch.float64), Recorded()
    return [state.x for state in sample_steps(denoiser, sampler, x, grid, rng)], rng.drawn


def theirs(scheduler, kind: str, states, **options):
    """Their step from each of our states, so that no difference can build up or hide."""
    network = Network()
    for x, index in zip(states[:-1], scheduler.timesteps, strict=True):
        with torch.no_grad():
            output = network(x, torch.full((4,), float(index) + 1))
        yield scheduler.step(
            output, int(index), x, **{k: v.pop(0) if isinstance(v, list) else v for k, v in options.items()}
        )


def agree(a, b, tolerance=1e-4):  # diffusers keeps its table in float32
    assert torch.allclose(a, b.to(a), rtol=tolerance, atol=tolerance), float((a - b).abs().max())


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(table, kind, eta, spacing):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=table,
        beta_start=1e-4,
        beta_end=0.02,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[kind],
    )
    scheduler.set_timesteps(STEPS)
    process = orn.Gaussian(TABLES[table])
    grid = getattr(orn.grids, spacing)(process, STEPS)
    assert np.allclose(grid.numpy()[:STEPS] * 1000 - 1, scheduler.timesteps.numpy())
    states, drawn = ours(table, kind, Ancestral(eta), grid)
    assert len(states) == STEPS + 1
    noise = [*drawn, torch.zeros(4, 3)] if eta else None
    options = {"eta": eta, "variance_noise": noise} if eta else {"eta": 0.0}
    for i, result in enumerate(theirs(scheduler, kind, states, **options)):
        last = i == STEPS - 1
        step = 1000 // STEPS
        if spacing == "linspace" and not last:  # there DDIM's previous step is i - T/steps, not the next on the grid
            s = max(float(grid[i]) - step / 1000, 0.0)
            estimate = orn.Denoiser(Network(), process, kind)(states[i], float(grid[i]))
            law = process.posterior(estimate, float(grid[i]), s, eta)
            agree(law.mean + (law.std * drawn[i] if eta else 0.0), result.prev_sample)
        else:
            agree(states[i + 1], result.prev_sample if not last else result.pred_original_sample)


@pytest.mark.parametrize("table", TABLES)
def test_ddpm_over_the_last_and_first_steps(table):
    """DDPM's own step over neighbours of the chain, with the variance beta-tilde, by mean and spread."""
    scheduler = diffusers.DDPMScheduler(
        beta_schedule=table, beta_start=1e-4, beta_end=0.02, clip_sample=False, variance_type="fixed_small"
    )
    process = orn.Gaussian(TABLES[table])
    denoiser, x = orn.Denoiser(Network(), process), Noise(1, 4).normal((4, 3), torch.float64)
    for i in (1, 2, 17, 500, 998):  # their index; our time is (i + 1) / 1000
        law = process.posterior(denoiser(x, (i + 1) / 1000), (i + 1) / 1000, i / 1000)
        output = Network()(x, torch.full((4,), float(i + 1)))
        result = scheduler.step(output, i, x, generator=torch.Generator().manual_seed(i))
        z = torch.randn(4, 3, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        assert float(law.std) ** 2 == pytest.approx(float(scheduler._get_variance(i)), rel=2e-3)
        agree(law.mean + float(scheduler._get_variance(i)) ** 0.5 * z, result.prev_sample, 5e-5)
        agree(denoiser(x, (i + 1) / 1000).x0, result.pred_original_sample, 3e-4)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver(table, kind, order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule=table,
        beta_start=1e-4,
        beta_end=0.02,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        solver_order=order,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        prediction_type={"eps": "epsilon", "v": "v_prediction", "x0": "sample"}[kind],
    )
    scheduler.set_timesteps(STEPS)
    grid = orn.grids.trailing(orn.Gaussian(TABLES[table]), STEPS)
    assert np.allclose(grid.numpy()[:STEPS] * 1000 - 1, scheduler.timesteps.numpy())
    states, _ = ours(table, kind, Multistep(order), grid)
    assert len(states) == STEPS + 1
    for i, result in enumerate(theirs(scheduler, kind, states)):
        agree(states[i + 1], result.prev_sample, 2e-4)
