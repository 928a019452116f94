"""ODE likelihood of digits: network calls, error and seconds, beside the recipe of score_sde with the same probe.

python benchmarks/ode.py [--steps 300] [--images 64] [--threads 2]

A small U-Net (EDM's preconditioning, so that one network serves every schedule) is trained on digits with uniform noise in
their levels. score_sde's recipe is scipy's RK45 at rtol = atol = 1e-5 on the whole batch and its log-determinants as one
vector, in t from 1e-5 to 1. The error of either is the root mean square over images of the difference to its own result at
1e-9, with the same probe, from the same level on, all in float64; "ours at equal error" are our calls at the tolerance where
the errors meet, by interpolation of logarithms. Seconds are those of `log_likelihood` as users call it, in float32.
"""

import argparse
import math
import time

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import ornstein as orn
from ornstein.data import load_dataset
from ornstein.integrate import RungeKutta
from ornstein.likelihood.ode import log_likelihood
from ornstein.likelihood.trace import Hutchinson, divergence
from ornstein.noise import Noise
from ornstein.objectives import LogNormalSigma, Objective, Stratified
from ornstein.processes.gaussian import Gaussian

SCHEDULES = {"LinearVP (VPSDE)": orn.LinearVP(), "GeometricVE (VESDE)": orn.GeometricVE(), "EDM": orn.EDM()}
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
START = 1e-5  # of their time
COPIES = 8  # of the training images, each with its own noise in the levels


def noisy(raw: Tensor, scaling: orn.Scaling, seed: int) -> Tensor:
    """Images in model units with uniform noise in their levels."""
    u = torch.rand(raw[:, None].shape, generator=torch.Generator().manual_seed(seed))
    return scaling.encode(raw) + (u - 0.5) * scaling.scale[0]


def trained(steps: int) -> tuple[torch.nn.Module, float, Tensor]:
    """A network, its sigma_data, and held-out images."""
    data = load_dataset("digits")
    x = torch.cat([noisy(data.train, data.scaling, seed) for seed in range(COPIES)])
    torch.manual_seed(0)
    denoiser = orn.Denoiser(
        orn.UNet(1, widths=(32, 64), blocks=1), Gaussian(orn.EDM()), "edm", sigma_data=float(x.std())
    )
    objective, began = Objective(Stratified(LogNormalSigma(-1.2, 2.0))), time.perf_counter()
    for record in orn.train(denoiser, x, objective, steps=steps, batch_size=64, learning_rate=2e-3):
        loss = record.loss
    print(f"trained {steps} steps in {time.perf_counter() - began:.0f} s, last loss {loss:.3f}")
    return denoiser.network, float(x.std()), noisy(data.test, data.scaling, COPIES)


def theirs(denoiser: orn.Denoiser, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """log p by the recipe of score_sde, with the first probe of `Hutchinson()`, and its network calls."""
    process, n, calls = denoiser.process, x.numel(), 0
    probes = Hutchinson().draw(x, Noise(0, len(x)))

    def field(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        x_t = torch.from_numpy(state[:n]).view_as(x)
        drift, products = divergence(
            lambda x: process.drift(denoiser(x, float(t)), float(t)), x_t, Hutchinson(), probes
        )
        return np.concatenate([drift.flatten().numpy(), products[:, 0].numpy()])

    start = np.concatenate([x.flatten().numpy(), np.zeros(len(x))])
    state = solve_ivp(field, (START, 1.0), start, method="RK45", rtol=tolerance, atol=tolerance).y[:, -1]
    return process.log_prior(torch.from_numpy(state[:n]).view_as(x)) + torch.from_numpy(state[n:]), calls


def ours(denoiser: orn.Denoiser, x: Tensor, tolerance: float) -> tuple[Tensor, float]:
    """log p by this library with the same probe, and its calls per image."""
    sigma = math.exp(-denoiser.process.level(START).log_snr / 2)  # where theirs begins
    solver = RungeKutta(tolerance, tolerance)
    found = log_likelihood(denoiser, x, trace=Hutchinson(), solver=solver, sigma=sigma, batch_size=len(x))
    return found.values, found.calls


def error(values: Tensor, truth: Tensor) -> float:
    """The root mean square over images, in nats."""
    return float((values - truth).square().mean().sqrt())


def compare(name: str, denoiser: orn.Denoiser, x: Tensor) -> None:
    """Print the errors and calls of both on one schedule."""
    truth, _ = ours(denoiser, x, 1e-9)
    rows = [(tolerance, *ours(denoiser, x, tolerance)) for tolerance in TOLERANCES]
    errors, calls = [error(values, truth) for _, values, _ in rows], [made for _, _, made in rows]
    for (tolerance, _, made), off in zip(rows, errors, strict=True):
        print(f"{name:20} ornstein   {tolerance:7.0e} {made:7.0f} calls  {off:9.1e} nats")
    reference, _ = theirs(denoiser, x, 1e-9)
    values, made = theirs(denoiser, x, 1e-5)
    off = error(values, reference)
    equal = math.exp(np.interp(-math.log(off), [-math.log(e) for e in errors], [math.log(c) for c in calls]))
    print(
        f"{name:20} score_sde  {1e-5:7.0e} {made:7.0f} calls  {off:9.1e} nats; ours at equal error {equal:.0f}, ",
        end="",
    )
    print(f"{equal / made:.2f} of theirs (asked: 0.5)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--images", type=int, default=64, help="timed")
    parser.add_argument("--compared", type=int, default=8, help="images of the comparison, which has 1e-9 as its truth")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network, sigma_data, x = trained(options.steps)
    for name, schedule in SCHEDULES.items():
        denoiser = orn.Denoiser(network.float(), Gaussian(schedule), "edm", sigma_data=sigma_data).eval()
        found = log_likelihood(denoiser, x[: options.images])
        print(
            f"{name:20} {len(found.values)} images by the defaults: {found.mean:.2f} +- {found.standard_error:.2f} nats in "
            f"model units, {found.calls:.0f} calls, {found.seconds:.1f} s"
        )
        network.double()
        compare(name, denoiser, x[: options.compared].double())


if __name__ == "__main__":
    main()
