"""Step by step agreement with diffusers where it is right: DDIM of any eta, DDPM, the multistep solvers and Heun, on one network
and noise. Its DPM-Solver++ of order 3 is not: see `test_their_third_order_has_half_the_second_difference`."""

import math

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.noise import Noise
from ornstein.samplers import Ancestral, Heun, Multistep, sample_steps
from ornstein.samplers.multistep import Memory

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
    states, _ = ours(table, kind, Multistep(order, "x0", exact=False), grid)
    assert len(states) == STEPS + 1
    for i, result in enumerate(theirs(scheduler, kind, states)):
        agree(states[i + 1], result.prev_sample, 2e-4)


BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
LINEAR = orn.Gaussian(TABLES["linear"])


def compare(scheduler, sampler, skipped: int, last: int = STEPS - 1):
    """Their steps beside ours on the same grid, from the first that has all its readings; not the last, which lands."""
    scheduler.set_timesteps(STEPS)
    times = (torch.as_tensor(scheduler.timesteps).double() + 1) / 1000
    states, _ = ours("linear", "eps", sampler, torch.cat([times, times.new_zeros(1)]))
    compared = 0
    for i, result in enumerate(theirs(scheduler, "eps", states)):
        if skipped <= i < last:
            agree(states[i + 1], result.prev_sample, 5e-4)
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("order", [2, 3])
def test_deis(order):
    compare(
        diffusers.DEISMultistepScheduler(
            **BETAS, solver_order=order, lower_order_final=False, timestep_spacing="trailing"
        ),
        Multistep(order),
        skipped=order - 1,
    )


@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_unipc(prediction, kind):
    """Of order 3, from a full history: their orders 1 and 2, met on the way there, replace the integral by one half."""
    scheduler = diffusers.UniPCMultistepScheduler(
        **BETAS,
        solver_order=3,
        solver_type=kind,
        predict_x0=prediction == "x0",
        lower_order_final=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(STEPS)
    network, denoiser, sampler = Network(), orn.Denoiser(Network(), LINEAR), Multistep(3, prediction, corrector=True)
    times = orn.grids.trailing(LINEAR, STEPS).tolist()
    x, places, values = Noise(1, 4).normal((4, 3), torch.float64), [], []
    for i in (0, 1):  # readings that both begin with, newest first
        places.insert(0, LINEAR.level(times[i]).log_snr / 2)
        values.insert(0, denoiser(x + i, times[i]).reading(prediction))
    scheduler.model_outputs, scheduler.lower_order_nums = [None, values[1], values[0]], 3
    scheduler.timestep_list = [None, scheduler.timesteps[0], scheduler.timesteps[1]]
    scheduler._step_index, memory, theirs_x = 2, Memory(tuple(places), tuple(values)), x
    for i in range(2, 8):
        index = scheduler.timesteps[i]
        assert float(index) + 1 == pytest.approx(1000 * times[i])
        theirs_x = scheduler.step(network(x, torch.full((4,), float(index) + 1)), index, x).prev_sample
        x, memory = sampler.step(denoiser, x, times[i], times[i + 1], memory, Noise(0, 4))
        agree(x, theirs_x, 5e-4)


def test_plms():
    """From a full history: their first step is made twice, which is no longer one call a step."""
    scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    states, _ = ours("linear", "eps", Multistep(4, variable="t", exact=False), orn.grids.trailing(LINEAR, STEPS))
    network, scheduler.counter = Network(), 5
    for i in range(STEPS - 1):
        index = 999 - 100 * i
        output = network(states[i], torch.full((4,), float(index) + 1))
        if i < 3:
            scheduler.ets.append(output)
        else:
            agree(states[i + 1], scheduler.step(output, index, states[i]).prev_sample, 5e-4)


def in_sigmas(scheduler, sampler, skipped: int):
    """Their samplers in sigma / alpha keep y = x / alpha."""
    scheduler.set_timesteps(STEPS)
    index = torch.unique_consecutive(torch.as_tensor(scheduler.timesteps)).double()
    grid = torch.cat([(index + 1) / 1000, index.new_zeros(1)])
    denoiser, x = orn.Denoiser(Network(), LINEAR), Noise(1, 4).normal((4, 3), torch.float64)
    states = [state.x for state in sample_steps(denoiser, sampler, x, grid, Noise(0, 4))]
    alphas = [LINEAR.level(float(t)).alpha for t in grid]
    for i in range(STEPS - 1):
        y = states[i] / alphas[i]
        for stage in range(sampler.stages):
            step = scheduler.timesteps[sampler.stages * i + stage]
            seen = scheduler.scale_model_input(y, step)
            y = scheduler.step(Network()(seen, torch.full((4,), float(step) + 1)), step, y).prev_sample
        if i >= skipped:
            agree(states[i + 1] / alphas[i + 1], y, 2e-3)


def test_lms():
    in_sigmas(diffusers.LMSDiscreteScheduler(**BETAS, timestep_spacing="trailing"), Multistep(4, variable="sigma"), 3)


def test_heun():
    in_sigmas(diffusers.HeunDiscreteScheduler(**BETAS, timestep_spacing="trailing"), Heun(), 0)


def test_their_third_order_has_half_the_second_difference():
    """DPM-Solver++ of order 3: the integral of u^2 over the step, for their D2 = h^2 x_0'' / 2, is 2 phi_3; they have phi_3.

    With half of that difference the steps agree; the integral itself is held against quadrature in tests/laws.
    """
    from ornstein.samplers.exponential import moments

    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="dpmsolver++", solver_order=3, lower_order_final=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(STEPS)
    grid = orn.grids.trailing(LINEAR, STEPS)
    states, _ = ours("linear", "eps", Multistep(3, "x0"), grid)
    found = [result.prev_sample for result in theirs(scheduler, "eps", states)]
    denoiser = orn.Denoiser(Network(), LINEAR)
    for i in range(2, STEPS - 1):
        times = [float(t) for t in grid[i - 2 : i + 2]]
        levels = [LINEAR.level(t) for t in times]
        l = [level.log_snr / 2 for level in levels]  # noqa: E741
        x0 = [denoiser(states[i - 2 + k], times[k]).x0 for k in range(3)]
        h = l[3] - l[2]
        slopes = [(x0[1] - x0[0]) / (l[1] - l[0]), (x0[2] - x0[1]) / (l[2] - l[1])]
        bend = (slopes[1] - slopes[0]) / (l[2] - l[0])
        half = -levels[3].alpha * math.expm1(-h) * moments(-h, 3)[2] * h**2 * bend / 2
        agree(states[i + 1] - half, found[i], 5e-4)
        assert float(half.abs().max()) > 1e-3
