"""The samplers of diffusers, azula and k-diffusion and EDM's Heun, behind one signature for `solvers.py`.

`PEERS[name](net, x, steps)` carries states x, of DDPM's noisiest level in its scaling alpha x_0 + sigma eps, to the data in
`steps` steps of the peer's own counting. `net(y, sigma)` is E[x_0 | y = x_0 + sigma eps]: each adapter asks it at the exact
level that the peer has reached (not at a rounded index of DDPM's table) and hands it over in the reading that the peer
expects. A grid that ends above 0 is followed by one more call that lands on the data. Peers that are not installed are left
out; modules that azula and k-diffusion import but samplers never touch are replaced by empty stand-ins.
"""

import importlib
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from unittest.mock import MagicMock

import torch
from torch import Tensor

Net = Callable[[Tensor, float], Tensor]
Peer = Callable[[Net, Tensor, int], Tensor]
Grid = Callable[[int], list[float]]  # n -> n levels, falling from HIGH to LOW

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
LEVELS = torch.sqrt(1 / torch.cumprod(1 - BETAS, 0) - 1)  # sigma / alpha of DDPM's table
LOW, HIGH = float(LEVELS[0]), float(LEVELS[-1])


def alpha(sigma: float) -> float:
    """The scale of x_0 where the variance is preserved, at the level sigma / alpha."""
    return 1 / math.sqrt(1 + sigma**2)


def present(name: str) -> ModuleType | None:
    """The module, with stand-ins for what it imports in vain; None where it is not installed itself."""
    missing: list[str] = []
    try:
        while True:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name is None or error.name in missing or name.startswith(error.name):
                    return None
                missing.append(error.name)
                sys.modules[error.name] = MagicMock()
    finally:
        for stand_in in missing:
            del sys.modules[stand_in]


diffusers, azula, k_diffusion = present("diffusers"), present("azula.sample"), present("k_diffusion.sampling")


def karras(rho: float) -> Grid:
    """Equal steps of sigma^(1/rho) (Karras et al. 2022, eq. 5)."""

    def grid(n: int) -> list[float]:
        u = torch.linspace(0, 1, n, dtype=torch.float64)
        return ((HIGH ** (1 / rho) + u * (LOW ** (1 / rho) - HIGH ** (1 / rho))) ** rho).tolist()

    return grid


def exponential(n: int) -> list[float]:
    """Equal steps of log sigma."""
    return torch.linspace(math.log(HIGH), math.log(LOW), n, dtype=torch.float64).exp().tolist()


def uniform(n: int) -> list[float]:
    """Equal steps of DDPM's index, by linear interpolation of log sigma."""
    place = torch.linspace(len(LEVELS) - 1, 0, n, dtype=torch.float64)
    left = place.floor().clamp(max=len(LEVELS) - 2).long()
    logs = LEVELS.log()
    return torch.lerp(logs[left], logs[left + 1], place - left).exp().tolist()


GRIDS: dict[str, Grid] = {
    "karras7": karras(7.0),
    "karras10": karras(10.0),
    "exponential": exponential,
    "uniform": uniform,
}


TABLE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def preserving(kind: str, options: dict) -> Peer:
    """Schedulers whose state is alpha x_0 + sigma eps and whose levels lie in `sigmas`: DPM-Solver, UniPC, DEIS."""

    def run(net: Net, x: Tensor, steps: int) -> Tensor:
        scheduler = getattr(diffusers, kind)(**TABLE, prediction_type="sample", **options)
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        sigmas = scheduler.sigmas.double().tolist()
        for i, t in enumerate(scheduler.timesteps):
            x0 = net(x / alpha(sigmas[i]), sigmas[i])
            if math.isclose(sigmas[i], sigmas[i + 1], rel_tol=1e-4):  # a grid that holds its last level twice
                return x0
            x = scheduler.step(x0, t, x).prev_sample
        return x if sigmas[-1] == 0 else net(x / alpha(sigmas[-1]), sigmas[-1])

    return run


def exploding(kind: str, options: dict) -> Peer:
    """Schedulers whose state is x_0 + sigma eps: Euler, Heun, KDPM2, LMS."""

    def run(net: Net, x: Tensor, steps: int) -> Tensor:
        scheduler = getattr(diffusers, kind)(**TABLE, prediction_type="epsilon", **options)
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        y = x / alpha(HIGH)
        for t in scheduler.timesteps:
            scheduler.scale_model_input(y, t)  # sets its index
            first = getattr(scheduler, "state_in_first_order", True) or kind != "KDPM2DiscreteScheduler"
            sigma = float((scheduler.sigmas if first else scheduler.sigmas_interpol)[scheduler.step_index])
            y = scheduler.step((y - net(y, sigma)) / sigma, t, y).prev_sample
        return y

    return run


def indexed(kind: str, options: dict) -> Peer:
    """Schedulers that know DDPM's table alone: DDIM, PNDM."""

    def run(net: Net, x: Tensor, steps: int) -> Tensor:
        scheduler = getattr(diffusers, kind)(**TABLE, prediction_type="epsilon", set_alpha_to_one=True, **options)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            sigma = float(LEVELS[int(t)])
            eps = (x - alpha(sigma) * net(x / alpha(sigma), sigma)) / (alpha(sigma) * sigma)
            x = scheduler.step(eps, t, x).prev_sample
        return x

    return run


def edm_scheduler(kind: str, options: dict) -> Peer:
    """Schedulers that ask for EDM's network F: x_0 = c_skip y + c_out F."""

    def run(net: Net, x: Tensor, steps: int) -> Tensor:
        ends = {"sigma_min": LOW, "sigma_max": HIGH, "sigma_data": 0.5}
        scheduler = getattr(diffusers, kind)(**ends, prediction_type="epsilon", **options)
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        y = x / alpha(HIGH)
        for i, t in enumerate(scheduler.timesteps):
            sigma = float(scheduler.sigmas[i])
            c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
            y = scheduler.step((net(y, sigma) - c_skip * y) / c_out, t, y).prev_sample
        return y

    return run


def of_diffusers() -> dict[str, Peer]:
    """The schedulers of diffusers by their spacings and options."""
    levels = {name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")}
    spaced = {name: {"timestep_spacing": name} for name in ("linspace", "trailing", "leading")}
    lu, even = {"lu": {"use_lu_lambdas": True}}, {name: spaced[name] for name in ("linspace", "trailing")}
    usual = {name: levels[name] for name in ("karras", "exponential")}
    many, one, unipc = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"
    peers: dict[str, Peer] = {}

    def add(make: Callable, kind: str, name: str, spacings: dict[str, dict], **options: object) -> None:
        for spacing, spaced_by in spacings.items():
            peers[f"diffusers {name} {spacing}"] = make(kind, {**spaced_by, **options})

    for order in (2, 3):
        at, ends = {"solver_order": order}, {"final_sigmas_type": "sigma_min"}
        add(preserving, many, f"DPM++{order}M", levels | lu | spaced, **at)
        add(preserving, many, f"DPM{order}M", levels | lu, algorithm_type="dpmsolver", **ends, **at)
        add(preserving, "DEISMultistepScheduler", f"DEIS{order}", levels | even, **at)
        add(preserving, unipc, f"UniPC{order} bh2", levels | even, **at)
        add(preserving, unipc, f"UniPC{order} bh1", usual, solver_type="bh1", lower_order_final=False, **ends, **at)
        add(preserving, unipc, f"UniPC{order} eps", levels, predict_x0=False, lower_order_final=False, **ends, **at)
        add(preserving, one, f"DPM++{order}S", levels, lower_order_final=True, **at)
    add(preserving, many, "DPM++3M full order", usual, solver_order=3, lower_order_final=False)
    add(preserving, many, "DPM++2M heun", usual, solver_order=2, solver_type="heun")
    add(edm_scheduler, "EDMDPMSolverMultistepScheduler", "EDM-DPM++2M", {"karras": {"sigma_schedule": "karras"}})
    for kind in ("Heun", "KDPM2", "LMS"):
        add(exploding, f"{kind}DiscreteScheduler", kind, usual | even)
    add(indexed, "DDIMScheduler", "DDIM", spaced, clip_sample=False)
    for name, skip in (("PLMS", True), ("PNDM", False)):
        add(indexed, "PNDMScheduler", name, spaced, skip_prk_steps=skip)
    return peers


def azula_sampler(kind: str, grid: Grid, to_zero: bool, **options: int) -> Peer:
    """A sampler of azula on the levels of a grid, in float64; `to_zero`: it takes the last step, to 0, itself."""

    def run(net: Net, x: Tensor, steps: int) -> Tensor:
        levels = torch.tensor([*grid(steps), 0.0] if to_zero else grid(steps + 1), dtype=torch.float64)
        last = len(levels) - 1

        def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
            sigma = levels[((1 - t) * last).round().long()]
            return torch.rsqrt(1 + sigma**2), sigma * torch.rsqrt(1 + sigma**2)

        def denoiser(x_t: Tensor, t: Tensor) -> MagicMock:
            sigma = float(levels[int(((1 - t) * last).round())])
            return Posterior(net(x_t / alpha(sigma), sigma))

        denoiser.schedule = schedule
        sampler = getattr(azula, kind)(denoiser, steps=last, silent=True, dtype=torch.float64, **options)
        x = sampler(x)
        return x if to_zero else net(x / alpha(float(levels[-1])), float(levels[-1]))

    return run


class Posterior:
    """What azula's denoisers return."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean


def of_azula() -> dict[str, Peer]:
    """azula's deterministic samplers by grid; those that take the logarithm of sigma are landed by one more call."""
    peers: dict[str, Peer] = {}
    for grid, levels in GRIDS.items():
        for kind in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
            for order in (2, 3) if kind == "REAB" else (2, 3, 4):
                lands = kind in ("zAB", "vAB")
                peers[f"azula {kind}{order} {grid}"] = azula_sampler(f"{kind}Sampler", levels, lands, order=order)
    return peers


def k_sampler(kind: str, grid: Callable[[int], Tensor], **options: object) -> Peer:
    """A function of k-diffusion on one of its own grids, which end at 0."""

    def run(net: Net, x: Tensor, steps: int) -> Tensor:
        sample = getattr(k_diffusion, f"sample_{kind}")
        return sample(lambda y, sigma: net(y, float(sigma[0])), x / alpha(HIGH), grid(steps), disable=True, **options)

    return run


def k_fast(net: Net, x: Tensor, steps: int) -> Tensor:
    """sample_dpm_fast in `steps` calls to the last level, then landed."""
    y = k_diffusion.sample_dpm_fast(
        lambda y, sigma: net(y, float(sigma[0])), x / alpha(HIGH), LOW, HIGH, steps, disable=True
    )
    return net(y, LOW)


def of_k_diffusion() -> dict[str, Peer]:
    """k-diffusion's deterministic samplers by its grids."""
    k = k_diffusion
    grids: dict[str, Callable[[int], Tensor]] = {
        "karras7": lambda n: k.get_sigmas_karras(n, LOW, HIGH, 7.0).double(),
        "exponential": lambda n: k.get_sigmas_exponential(n, LOW, HIGH).double(),
        "polyexponential": lambda n: k.get_sigmas_polyexponential(n, LOW, HIGH, 1.5).double(),
        "vp": lambda n: k.get_sigmas_vp(n, beta_d=2 * (math.log1p(HIGH**2) - 0.1)).double(),
    }
    peers: dict[str, Peer] = {"k-diffusion dpm_fast": k_fast}
    kinds = {kind: {} for kind in ("euler", "heun", "dpm_2", "lms", "dpmpp_2m")} | {"dpmpp_2s_ancestral": {"eta": 0.0}}
    for kind, options in kinds.items():
        for name, grid in grids.items():
            peers[f"k-diffusion {kind} {name}"] = k_sampler(kind, grid, **options)
    return peers


def edm(grid: Grid, at: float) -> Peer:
    """Karras et al. 2022, algorithm 3 without churn: two stages, the second after `at` of the step (1: Heun's)."""

    def run(net: Net, x: Tensor, steps: int) -> Tensor:
        y, levels = x / alpha(HIGH), [*grid(steps), 0.0]
        for t, s in pairwise(levels):
            slope = (y - net(y, t)) / t
            middle, moved = t + at * (s - t), y + at * (s - t) * slope
            if s > 0:
                slope = (1 - 0.5 / at) * slope + 0.5 / at * (moved - net(moved, middle)) / middle
            y = y + (s - t) * slope
        return y

    return run


def peers() -> dict[str, Peer]:
    """Every configuration that runs here, by name."""
    found: dict[str, Peer] = {}
    for module, configurations in ((diffusers, of_diffusers), (azula, of_azula), (k_diffusion, of_k_diffusion)):
        if module is not None:
            found |= configurations()
    for name, grid in GRIDS.items():
        for at in (1.0, 0.5):
            found[f"EDM {'Heun' if at == 1 else 'midpoint'} {name}"] = edm(grid, at)
    return found
