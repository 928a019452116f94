"""Data to data: samples that begin from an example (SDEdit), and the way from one example to another through latents."""

import math
from typing import Any

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.curve import coloured, white
from ornstein.denoisers import DenoiserLike
from ornstein.errors import ConfigurationError
from ornstein.likelihood.encoding import decode, encode
from ornstein.noise import Noise, fold
from ornstein.samplers.base import Sampler, Samples, device_of, sample
from ornstein.samplers.recipes import recipe

START = 6  # a stream of the seed


def noised_start(
    denoiser: DenoiserLike,
    x: Tensor,
    strength: float,
    n: int,
    cond: Condition | None = None,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """q(x_t | x_0 = x) at t = strength, (n, *d) in model units, for samples first .. first + n - 1: sample i has x[i mod k].

    x (k, *d) is in model units, or raw data of a loaded `Model`.
    """
    scaling: Any = getattr(denoiser, "scaling", None)
    x = (x if scaling is None else scaling.encode(x)).to(device_of(denoiser))
    rows = torch.arange(first, first + n, device=x.device) % len(x)
    rng = Noise(fold(seed, START), range(first, first + n), x.device)
    return denoiser.process.given(cond).noise(x[rows], strength, rng)


def sdedit(
    denoiser: DenoiserLike,
    x: Tensor,
    strength: float = 0.6,
    sampler: Sampler | None = None,
    *,
    n: int | None = None,
    steps: int | None = None,
    calls: int | None = None,
    cond: Condition | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Samples:
    """Samples that begin from examples noised to t = `strength`, in place of the prior (SDEdit, Meng et al. 2022).

    Args:
        denoiser: a denoiser, and x (k, *d) in model units; or a loaded `Model`, and x raw data.
        strength: the time t to begin at, above 0 and at most 1: what of x is coarser than sigma(t) / alpha(t) stays. It is a
            time, not a share of steps: how much noise there is at a t depends on the schedule.
        n: how many samples, k by default; sample i begins from x[i mod k].
        sampler, steps, calls, cond, seed, batch_size: as of `sample`; all steps or calls are made between t and 0.

    Raises `ConfigurationError` on a strength at which there is no noise, or beyond 1.
    """
    if not 0 < strength <= 1:
        raise ConfigurationError(f"got strength={strength}, expected a time above 0 (nothing changes) and at most 1")
    n = len(x) if n is None else n
    sampler, grid = recipe(denoiser, sampler, steps, calls, begin=strength)
    start = noised_start(denoiser, x, strength, n, cond, seed)
    return sample(denoiser, sampler, start=start, grid=grid, cond=cond, seed=seed, batch_size=batch_size)


def interpolate(
    denoiser: DenoiserLike,
    a: Tensor,
    b: Tensor,
    n: int = 8,
    *,
    cond: Condition | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The way from examples a to b (k, *d) in n points, both ends included, (k, n, *d), through the latents of the ODE.

    Latents are joined by the great circle (slerp), on which normal numbers keep their length:

        z(w) = (sin((1 - w) theta) z_a + sin(w theta) z_b) / sin(theta),   theta the angle between z_a and z_b,

    in whitened coordinates about the base's mean. The ends are a and b as the ODE gives them back. `cond` (k, ...) is that of
    both.
    """
    if a.shape != b.shape or n < 2:
        raise ConfigurationError(
            f"got examples of shapes {tuple(a.shape)} and {tuple(b.shape)} and n={n}, expected one shape and at least 2 points"
        )
    process = denoiser.process.given(cond)
    z_a, z_b = (white(process, encode(denoiser, x, cond=cond, batch_size=batch_size).x) for x in (a, b))
    weights, points = torch.linspace(0, 1, n, dtype=torch.float64).tolist(), []
    for weight in weights:
        z = coloured(process, _slerp(z_a, z_b, weight))
        points.append(decode(denoiser, z, cond=cond, batch_size=batch_size).x)
    return torch.stack(points, dim=1)


def _slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point of the great circle; on the line where a and b point the same way."""
    u, v = (x.flatten(1).double() for x in (a, b))
    theta = torch.acos(torch.nn.functional.cosine_similarity(u, v, dim=1).clamp(-1, 1))[:, None]
    straight = theta.sin() < 1e-6 * math.pi
    sine = torch.where(straight, 1.0, theta.sin())
    shares = [torch.where(straight, share, torch.sin(share * theta) / sine) for share in (1 - weight, weight)]
    return (shares[0] * u + shares[1] * v).to(a.dtype).view_as(a)
