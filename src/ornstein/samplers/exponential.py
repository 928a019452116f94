"""The average of a reading over a step, from its values at a few nodes: what all exponential integrators share.

With l = log(alpha / sigma) and h = l_s - l_t the probability-flow ODE from t to s is solved exactly by either

    x_s = (alpha_s / alpha_t) x_t + (sigma_s - sigma_t alpha_s / alpha_t) <eps>
    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) <x_0>

where < > is the average over the step with the weight e^(z (1 - u)), u = (l - l_t) / h from 0 to 1: z = h for eps and z = -h
for x_0 (differentiate x / alpha and x / sigma by l; Lu et al. 2022). The readings are known at nodes u_j, and the average of
the polynomial through them is a sum of weights times values. Multistep methods have their nodes behind the step, single-step
ones inside it, correctors at its end; plain averages, z = 0, are those of Adams.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from ornstein.processes.gaussian import Gaussian
from ornstein.schedules.base import Level

SERIES = 1.0
"""Below this |z| the moments come from their series, above from their recursion, which would cancel there."""


class Transfer(NamedTuple):
    """x_s = a x_t + c <D> + std noise for a step of length h in l, < > having the weight e^(z (1 - u))."""

    a: float
    c: float
    std: float
    h: float
    z: float


def transfer(begin: Level, end: Level, prediction: str, noise: float = 0.0) -> Transfer:
    """The step between two levels for D = "eps" or "x0", of which x0 allows the noise of the reverse SDE (see `Multistep`)."""
    alpha_t, sigma_t, log_snr_t = map(float, begin)
    alpha_s, sigma_s, log_snr_s = map(float, end)
    h, extra = (log_snr_s - log_snr_t) / 2, noise**2
    if prediction == "eps":
        a = alpha_s / alpha_t
        return Transfer(a, -sigma_s * math.expm1(h) if sigma_s else -sigma_t * a, 0.0, h, h)
    a, z = (sigma_s / sigma_t * math.exp(-extra * h) if sigma_s else 0.0), -(1 + extra) * h
    c = -alpha_s * math.expm1(z) if alpha_s else -alpha_t * a
    return Transfer(a, c, sigma_s * math.sqrt(-math.expm1(-2 * extra * h)) if extra else 0.0, h, z)


def carried(
    process: Gaussian, x: Tensor, step: Transfer, factors: Sequence[float], values: Sequence[Tensor], prediction: str
) -> Tensor:
    """a x_t + sum_j f_j D_j, where the factors sum to c. The mean of a base is no part of what is scaled:
    a (x_t - mu) + sum_j f_j (D_j - mu) + mu for x_0."""
    moved = step.a * x
    for factor, value in zip(factors, values, strict=True):
        moved.add_(value, alpha=factor)
    if process.base is not None:
        moved += (1 - step.a - (step.c if prediction == "x0" else 0.0)) * process.base.centre(x)
    return moved


def weights(nodes: Sequence[float], z: float = 0.0) -> list[float]:
    """w with sum_j w_j D(u_j) = int_0^1 e^(z (1 - u)) D(u) du / int_0^1 e^(z (1 - u)) du for polynomials D through the nodes."""
    return list(_weights(tuple(nodes), z))


@lru_cache(maxsize=4096)
def _weights(nodes: tuple[float, ...], z: float) -> tuple[float, ...]:
    if len(nodes) == 1:
        return (1.0,)
    mean = moments(z, len(nodes))
    result = []
    for j, node in enumerate(nodes):
        basis = [1.0]  # the coefficients of Lagrange's polynomial of this node, lowest first
        for other in nodes[:j] + nodes[j + 1 :]:
            scale = node - other
            below = [0.0, *basis]
            basis = [(low - other * c) / scale for low, c in zip(below, [*basis, 0.0], strict=True)]
        result.append(sum(c * m for c, m in zip(basis, mean, strict=True)))
    return tuple(result)


def moments(z: float, count: int) -> list[float]:
    """The averages of u^k, k = 0 .. count - 1, with the weight e^(z (1 - u)) on [0, 1]: k! phi_{k+1}(z) / phi_1(z)."""
    phi = [_phi(k + 1, z) for k in range(count)]
    return [math.factorial(k) * value / phi[0] for k, value in enumerate(phi)]


def _phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^(z (1 - u)) u^(k-1) / (k-1)! du, k >= 1: (phi_{k-1}(z) - 1 / (k-1)!) / z with phi_0 = exp."""
    if abs(z) < SERIES * k:
        term, total = 1 / math.factorial(k), 0.0
        for j in range(1, 40):
            total += term
            term *= z / (k + j)
        return total
    value = math.expm1(z) / z
    for i in range(1, k):
        value = (value - 1 / math.factorial(i)) / z
    return value
