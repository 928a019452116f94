"""The integrator against closed forms and scipy: order, tolerances, and every example carried as if it were alone."""

import math

import numpy as np
import pytest
import torch
from helpers import numbers, order
from scipy.integrate import solve_ivp

from ornstein.errors import ConfigurationError, NumericalError
from ornstein.integrate import DORMAND_PRINCE, FixedSteps, RungeKutta, integrate

PHASES = torch.tensor([-0.6, -0.1, 0.0, 0.5], dtype=torch.float64)


def tangents(s, state, rows):
    """y' = 1 + y^2, y = tan(s + c), beside w' = w cos(s) of two components, w = w_0 exp(sin(s))."""
    y, w = state
    return 1 + y**2, w * torch.cos(s)[:, None].to(w)


def started():
    return torch.tan(PHASES), numbers(4, 2)


def truth(s):
    return torch.tan(PHASES + s), numbers(4, 2) * math.exp(math.sin(s))


def worst(found, s):
    return max(float((a - b).abs().max()) for a, b in zip(found.state, truth(s), strict=True))


def test_the_tableau_satisfies_its_conditions():
    """Rows sum to nodes; quadrature to order 5; b A c^k as well; the error has no term below h^5, and one there."""
    nodes, rows, error = np.array([0.0, *DORMAND_PRINCE.nodes]), DORMAND_PRINCE.weights, np.array(DORMAND_PRINCE.error)
    assert np.allclose([sum(row) for row in rows], nodes[1:], atol=1e-14)
    a = np.array([[0.0] * 6, *[list(row) + [0.0] * (6 - len(row)) for row in rows[:-1]]])
    b, c, lower = np.array(rows[-1]), nodes[:6], np.append(rows[-1], 0) - error
    for k in range(5):
        assert b @ c**k == pytest.approx(1 / (k + 1), abs=1e-14)
    for k in range(1, 4):
        assert b @ (a @ c**k) == pytest.approx(1 / ((k + 1) * (k + 2)), abs=1e-14)
    assert [lower @ nodes**k for k in range(4)] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4], abs=1e-14)
    assert abs(lower @ nodes**4 - 1 / 5) > 1e-4


def test_order_of_fixed_steps():
    errors = [worst(integrate(tangents, started(), 0.0, 0.8, FixedSteps(n)), 0.8) for n in (10, 20)]
    assert order(errors) >= DORMAND_PRINCE.order - 0.25
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7, 1e-10])
def test_tolerances_are_met(tolerance):
    found = integrate(tangents, started(), 0.0, 0.8, RungeKutta(tolerance, tolerance))
    assert worst(found, 0.8) < 30 * tolerance
    back = integrate(tangents, found.state, 0.8, 0.0, RungeKutta(tolerance, tolerance))
    assert worst(back, 0.0) < 30 * tolerance


@pytest.mark.parametrize("problem", ["orbit", "relaxation"])
def test_one_example_takes_the_steps_of_scipy(problem):
    """By the same pair under the same rule: the same calls and the same result, rejected steps and all."""

    def slopes(x, y, u, v):
        if problem == "orbit":
            return u, v, -x / (x**2 + y**2) ** 1.5, -y / (x**2 + y**2) ** 1.5
        return u, v, 8 * (1 - x**2) * u - x, 8 * (1 - y**2) * v - y  # two oscillators of van der Pol

    start, stop = [1.0, 0.0, 0.0, 1.2], 12.0
    theirs = solve_ivp(lambda s, y: slopes(*y), [0, stop], start, "RK45", rtol=1e-6, atol=1e-6)
    x = torch.tensor([start], dtype=torch.float64)
    ours = integrate(lambda s, u, rows: (torch.stack(slopes(*u[0].T), 1),), (x,), 0.0, stop, RungeKutta(1e-6, 1e-6))
    assert int(ours.calls) == theirs.nfev
    assert int(ours.steps) == len(theirs.t) - 1
    assert np.allclose(ours.state[0][0].numpy(), theirs.y[:, -1], rtol=1e-8, atol=1e-8)
    assert theirs.nfev > 2 + 6 * int(ours.steps) or problem == "orbit"


def test_every_example_is_carried_as_if_alone():
    """Rows of different speeds take different steps; a row's result and calls are those it has by itself."""
    speeds, seen = torch.tensor([1.0, 40.0, 6.0], dtype=torch.float64), []

    def turn(s, state, rows):
        seen.append(len(rows))
        (x,) = state
        return (speeds[rows][:, None] * torch.stack([-x[:, 1], x[:, 0]], 1),)

    x = numbers(3, 2)
    together = integrate(turn, (x,), 0.0, 1.0, RungeKutta())
    assert sum(seen) == int(together.calls.sum())
    assert seen[0] == 3
    assert seen[-1] == 1
    assert together.calls[1] > 2 * together.calls[2] > 2 * together.calls[0]
    for i in range(3):
        alone = integrate(
            lambda s, state, rows, i=i: turn(s, state, torch.full_like(rows, i)),
            (x[i : i + 1],),
            0.0,
            1.0,
            RungeKutta(),
        )
        assert torch.allclose(alone.state[0][0], together.state[0][i], rtol=1e-12, atol=1e-12)
        assert int(alone.calls) == int(together.calls[i])
        assert int(alone.steps) == int(together.steps[i])


def test_what_does_not_matter_costs_no_steps():
    def field(s, state, rows):
        return state[0] * torch.cos(s)[:, None], torch.sin(300 * s)

    state = numbers(2, 3), torch.zeros(2, dtype=torch.float64)
    smooth = integrate(lambda s, u, rows: field(s, u, rows)[:1], state[:1], 0.0, 1.0, RungeKutta())
    free = integrate(field, state, 0.0, 1.0, RungeKutta(), matter=(0,))
    assert torch.equal(free.calls, smooth.calls)
    assert torch.equal(free.state[0], smooth.state[0])
    bound = integrate(field, state, 0.0, 1.0, RungeKutta())
    assert (bound.calls > 5 * free.calls).all()
    assert float((bound.state[1] - (1 - math.cos(300)) / 300).abs().max()) < 1e-4


def test_counts_of_fixed_steps_and_of_nothing_to_do():
    found = integrate(tangents, started(), 0.0, 0.3, FixedSteps(7))
    assert found.steps.tolist() == [7] * 4
    assert found.calls.tolist() == [1 + 6 * 7] * 4
    still = integrate(tangents, started(), 0.3, 0.3, RungeKutta())
    assert still.calls.tolist() == [0] * 4
    assert torch.equal(still.state[1], numbers(4, 2))


def test_float32_at_the_default_tolerances():
    found = integrate(tangents, tuple(part.float() for part in started()), 0.0, 0.8, RungeKutta())
    assert found.state[0].dtype == torch.float32
    assert worst(found, 0.8) < 3e-4


def test_a_field_at_rest_and_one_without_a_state_of_its_own():
    still = integrate(lambda s, u, rows: (torch.zeros_like(u[0]),), (numbers(3, 2),), 0.0, 1.0, RungeKutta())
    assert torch.equal(still.state[0], numbers(3, 2))
    zero = torch.zeros(3, dtype=torch.float64)
    found = integrate(lambda s, u, rows: (torch.exp(s),), (zero,), 0.0, 2.0, RungeKutta())
    assert torch.allclose(found.state[0], zero + math.exp(2) - 1, atol=1e-4)


@pytest.mark.parametrize("solver", [RungeKutta(), FixedSteps(8)])
def test_what_leaves_the_finite_numbers_is_named(solver):
    def field(s, state, rows):
        return (torch.where((rows == 2)[:, None] & (s > 0.5)[:, None], math.nan, 1.0) * state[0],)

    with pytest.raises(NumericalError, match=r"(example|row is|row) 2"):
        integrate(field, (numbers(4, 2),), 0.0, 1.0, solver)


def test_a_pole_and_a_rough_field():
    with pytest.raises(NumericalError, match=r"at s = (0\.99|1).*its step is"):
        integrate(lambda s, u, rows: (u[0] ** 2,), (torch.ones(1, 1).double(),), 0.0, 2.0, RungeKutta())
    noise = torch.Generator().manual_seed(0)
    with pytest.raises(NumericalError, match="training mode, with dropout"):
        integrate(
            lambda s, u, rows: (1e7 * torch.randn(1, 1, generator=noise).double(),),
            (torch.ones(1, 1).double(),),
            0.0,
            1.0,
            RungeKutta(1e-8, 1e-8),
        )


def test_options():
    for rtol, atol in ((0.0, 1e-5), (1.0, 1e-5), (1e-5, 0.0), (math.nan, 1e-5)):
        with pytest.raises(ConfigurationError, match="expected both between 0 and 1"):
            RungeKutta(rtol, atol)
    for steps in (0, 1001):
        with pytest.raises(ConfigurationError, match="expected 1 to 1000"):
            FixedSteps(steps)


def test_a_first_step_that_hides_its_error():
    """du/ds = sin(log s) from 1e-4 on, of which a long step sees nothing but at its first node, which counts little."""

    def field(s, state, rows):
        return (torch.sin(torch.log(s))[:, None],)

    def truth(s):
        return s * (math.sin(math.log(s)) - math.cos(math.log(s))) / 2

    errors = []
    for first in (math.inf, 3e-4):
        found = integrate(field, (torch.ones(1, 1).double(),), 1e-4, 0.5, RungeKutta(), first=first)
        errors.append(abs(float(found.state[0]) - 1 - truth(0.5) + truth(1e-4)))
    assert errors[1] < 1e-5
    assert errors[0] > 1e-3
