"""Grids: the times a sampler visits, as plain descending float64 tensors: laws of time alone, and `optimal`, for one denoiser.

A grid of `steps` steps ends at t = 0 where sigma(0) = 0: steps + 1 times, the last step landing on the data. Where
sigma(0) > 0 (VE, EDM, tables) it has `steps` times and ends at the schedule's first time; the last step is then
`x = estimate.x0`, made by the loop. So either way a sampler that calls the network once a step makes `steps` calls.
A subset of a chain that does not visit the chain's first step ends at t = 0: the data, for a table.
"""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import ConfigurationError
from ornstein.processes.gaussian import Gaussian

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
Law = Callable[[float, float, Tensor], Tensor]


def uniform(process: Gaussian, steps: int, begin: float = 1.0) -> Tensor:
    """Times in equal steps from `begin` to the first time of the schedule; for categories of a table, the nearest of its own."""
    if not process.t_min < begin <= 1:
        raise ConfigurationError(f"got {begin:g} for the time to begin at, expected above {process.t_min:g}, at most 1")
    times = torch.linspace(begin, process.t_min, _points(process, steps), dtype=torch.float64)
    if isinstance(process, Gaussian) or process.steps is None:
        return times
    most = round(begin * process.steps)
    if steps > most:
        raise ConfigurationError(f"got {steps} steps of a table of {most}, expected at most as many")
    return (times * process.steps).round() / process.steps


def log_snr(process: Gaussian, steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX) -> Tensor:
    """Times in equal steps of log-SNR, sigma / alpha falling geometrically from sigma_max to sigma_min, then 0.

    The range is cut to the schedule's own where that is narrower.
    """
    return _between(process, steps, sigma_min, sigma_max, lambda low, high, u: high * (low / high) ** u)


def karras(
    process: Gaussian, steps: int, rho: float = 7.0, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX
) -> Tensor:
    """Times where (sigma / alpha)^(1/rho) falls in equal steps from sigma_max to sigma_min, then 0 (Karras et al. 2022, eq. 5).

    The range is cut to the schedule's own where that is narrower. rho = 7 is EDM's; larger values crowd the data end.
    """
    if not rho > 0:
        raise ConfigurationError(f"got rho={rho}, expected a positive number")
    root = 1 / rho
    return _between(
        process, steps, sigma_min, sigma_max, lambda low, high, u: (high**root + u * (low**root - high**root)) ** rho
    )


def focused(
    process: Gaussian,
    steps: int,
    centre: float = 1.0,
    width: float = 3.5,
    sigma_min: float = SIGMA_MIN,
    sigma_max: float = 160.0,
) -> Tensor:
    """Times that crowd where sigma / alpha is near `centre`, the size of the data, then 0:

        log(sigma / alpha) = log(centre) + width tan(phi),   phi falling in equal steps,

    so that their density in log(sigma / alpha) is Cauchy's, of that width. The noisy end, where estimates hardly change, has few
    of them. The range is cut to the schedule's own where that is narrower. Centre and width were chosen by exact targets
    (benchmarks/solvers.py), with data of standard deviation near 1.
    """
    if not (centre > 0 and width > 0):
        raise ConfigurationError(f"got centre={centre}, width={width}, expected positive numbers")

    def law(low: float, high: float, u: Tensor) -> Tensor:
        first, last = (math.atan(math.log(end / centre) / width) for end in (high, low))
        return centre * torch.exp(width * torch.tan(first + u * (last - first)))

    return _between(process, steps, sigma_min, sigma_max, law)


def trailing(process: Gaussian, steps: int, chain: int = 1000) -> Tensor:
    """The subset T, T - T/steps, ... of a chain of T = `chain` steps, rounded: it visits the noisiest step."""
    _check(steps, chain)
    return _subset(process, [round(chain - k * chain / steps) for k in range(steps)], chain)


def leading(process: Gaussian, steps: int, chain: int = 1000) -> Tensor:
    """The subset 1, 1 + T // steps, ... of a chain of T = `chain` steps (DDIM's): it visits the cleanest step."""
    _check(steps, chain)
    return _subset(process, [1 + k * (chain // steps) for k in reversed(range(steps))], chain)


def linspace(process: Gaussian, steps: int, chain: int = 1000) -> Tensor:
    """`steps` members of a chain of T = `chain` steps, equally spaced from T to 1, both visited."""
    _check(steps, chain)
    return _subset(
        process, [round(v) + 1 for v in torch.linspace(chain - 1, 0, steps, dtype=torch.float64).tolist()], chain
    )


def lands_on_data(process: Gaussian) -> bool:
    """Whether sigma is 0 at the first time of the schedule, so that the last step of a grid lands on the data."""
    return process.is_data(process.t_min)


def _points(process: Gaussian, steps: int) -> int:
    if steps < 1:
        raise ConfigurationError(f"got steps={steps}, expected at least 1")
    return steps + 1 if lands_on_data(process) else steps


def _between(process: Gaussian, steps: int, sigma_min: float, sigma_max: float, law: Law) -> Tensor:
    _points(process, steps)
    if not 0 < sigma_min < sigma_max:
        raise ConfigurationError(
            f"got sigma_min={sigma_min}, sigma_max={sigma_max}, expected 0 < sigma_min < sigma_max"
        )
    schedule = process.schedule
    low, high = (math.exp(-end / 2) for end in schedule.cut(sigma_min, sigma_max))
    sigmas = law(low, high, torch.linspace(0, 1, steps, dtype=torch.float64))
    times = schedule.time_at(-2 * torch.log(sigmas))
    if lands_on_data(process):
        return torch.cat([times, times.new_zeros(1)])
    if steps > 1:
        times[-1] = schedule.t_min
    return times


def _check(steps: int, chain: int) -> None:
    if not 1 <= steps <= chain:
        raise ConfigurationError(f"got {steps} steps of a chain of {chain}, expected 1 to {chain}")


def _subset(process: Gaussian, members: list[int], chain: int) -> Tensor:
    table = getattr(process.schedule, "steps", chain)
    if table != chain:
        raise ConfigurationError(f"got chain={chain} for a table of {table} steps, expected chain={table}")
    times = torch.tensor(members, dtype=torch.float64) / chain
    ended = times[-1] <= process.schedule.t_min and not lands_on_data(process)
    return times if ended else torch.cat([times, times.new_zeros(1)])


def __getattr__(name: str) -> Any:
    """`optimal` and `Linearised`, imported when first used: they run samplers, which take their grids from here."""
    if name not in ("Linearised", "optimal"):
        raise AttributeError(f"module 'ornstein.grids' has no attribute '{name}'")
    return getattr(import_module("ornstein.linearised"), name)
