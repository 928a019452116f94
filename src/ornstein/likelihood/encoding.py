"""`encode` and `decode`: data to latents and back by the probability-flow ODE, which joins every x_0 to one x_1.

    z_1 = z_0 + int dz/dtheta dtheta     along the curve of `ornstein.curve`, in either direction

The way back undoes the way there up to the error of the integration, so `round_trip` is a measure of that error. Where the
schedule's first level is above 0, the data end is at that level: nothing is denoised there, which could not be undone.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.curve import Curve
from ornstein.denoisers import DenoiserLike
from ornstein.integrate import Solution, Solver, State, integrate
from ornstein.likelihood.examples import Examples, usual_solver


@dataclass(frozen=True)
class Encoding:
    """What `encode` and `decode` return.

    x: latents (n, *d), or data. calls: network evaluations per example, on average, of the way there. seconds: wall-clock
    time. round_trip: (n,) root mean square of decode(encode(x)) - x in model units, where asked.
    """

    x: Tensor
    calls: float
    seconds: float
    round_trip: Tensor | None = None


def encode(
    denoiser: DenoiserLike,
    x: Tensor,
    *,
    solver: Solver | None = None,
    cond: Condition | None = None,
    batch_size: int | None = None,
    round_trip: bool = False,
) -> Encoding:
    """The latents x_1 (n, *d) of examples x, distributed nearly as the process's prior where x is as the data.

    Args:
        denoiser: a denoiser, and x in model units; or a loaded `Model`, and x raw data. Latents are in the units of x_1.
        solver: by default that of `log_likelihood`.
        cond: the condition, (n, ...).
        batch_size: examples per network call (256).
        round_trip: decode the latents as well, and measure how far from x they come.

    Raises `DataError` on x that the denoiser does not know, `NumericalError` where the ODE cannot be solved.
    """
    began = time.perf_counter()
    examples = Examples.of(denoiser, x, cond)
    solver = solver or usual_solver(examples)
    latents, calls, errors = [], [], []
    for batch in examples.batches(batch_size):
        curve = Curve.of(denoiser, batch.cond)
        found = _carried(curve, curve.at_data(batch.x0), curve.first, curve.last, solver)
        latents.append(curve.to(found.state[0], 1.0))
        calls.append(found.calls)
        if round_trip:
            back = _carried(curve, found.state[0], curve.last, curve.first, solver).state[0]
            errors.append((curve.to_data(back) - batch.x0).square().flatten(1).mean(1).sqrt())
    return Encoding(
        torch.cat(latents),
        float(torch.cat(calls).double().mean()),
        time.perf_counter() - began,
        torch.cat(errors) if round_trip else None,
    )


def decode(
    denoiser: DenoiserLike,
    z: Tensor,
    *,
    solver: Solver | None = None,
    cond: Condition | None = None,
    batch_size: int | None = None,
) -> Encoding:
    """The examples of latents z = x_1 (n, *d): in model units, or raw data from a `Model`. The inverse of `encode`."""
    began = time.perf_counter()
    scaling: Any = getattr(denoiser, "scaling", None)
    examples = Examples.of(denoiser, z, cond, in_model_units=True)
    solver = solver or usual_solver(examples)
    decoded, calls = [], []
    for batch in examples.batches(batch_size):
        curve = Curve.of(denoiser, batch.cond)
        found = _carried(curve, curve.at(batch.x0, 1.0), curve.last, curve.first, solver)
        decoded.append(curve.to_data(found.state[0]))
        calls.append(found.calls)
    x = torch.cat(decoded)
    mean = float(torch.cat(calls).double().mean())
    return Encoding(x if scaling is None else scaling.decode(x), mean, time.perf_counter() - began)


def _carried(curve: Curve, z: Tensor, start: float, stop: float, solver: Solver) -> Solution:
    def field(theta: Tensor, state: State, rows: Tensor) -> State:
        return (curve.slope(theta, state[0], rows),)

    first = curve.first_step if start < stop else math.inf
    with torch.no_grad():
        return integrate(field, (z,), start, stop, solver, first=first)
