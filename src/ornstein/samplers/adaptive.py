"""Adaptive steps: the probability-flow ODE along the curve of `ornstein.curve`, as fast as its tolerances allow."""

import math
from dataclasses import dataclass

from torch import Tensor

from ornstein.curve import Curve
from ornstein.denoisers import DenoiserLike
from ornstein.errors import NumericalError
from ornstein.integrate import RungeKutta, State, integrate
from ornstein.noise import Noise


@dataclass(frozen=True)
class RK45:
    """The embedded pair 5(4) of Dormand and Prince, with steps of its own for every example:

        dz/dtheta = -F,   tan(theta) = sigma / (alpha sigma_d),   z = (x - mu) / sqrt(alpha^2 sigma_d^2 + sigma^2)

    F being EDM's reading and sigma_d the denoiser's `sigma_data`, 1 where it has none (see `ornstein.curve`). The error of a
    step is kept within atol + rtol |z|, z being of size 1 at every level. So two times are a whole grid, the default; where
    more are given, each interval is gone through in adaptive steps. A step to sigma = 0 lands by one call, x_0, from the
    nearest level that is told from it. `calls` of the result are those of the slowest example of a batch.

    Raises `NumericalError` where the tolerances cannot be met; `sample` refuses `calls` with it.
    """

    rtol: float = 1e-3
    atol: float = 1e-3

    order = 5
    stochastic = False
    stages = math.inf

    def __post_init__(self) -> None:
        self._solver()

    def _solver(self) -> RungeKutta:
        return RungeKutta(self.rtol, self.atol)

    def step(
        self, denoiser: DenoiserLike, x: Tensor, t: float, s: float, memory: None, rng: Noise
    ) -> tuple[Tensor, None]:
        """From time t to time s in as many steps as it takes; there is no memory."""
        curve = Curve.of(denoiser, getattr(denoiser, "cond", None))
        at_data, to_data = (float(denoiser.process.level(r).sigma) == 0 for r in (t, s))
        begin, end = curve.angle(t), curve.angle(s)

        def field(theta: Tensor, state: State, rows: Tensor) -> State:
            return (curve.slope(theta, state[0], rows),)

        z = curve.at_data(x) if at_data else curve.at(x, t)
        first = curve.first_step if at_data else math.inf
        try:
            z = integrate(field, (z,), begin, end, self._solver(), first=first).state[0]
        except NumericalError as error:
            raise NumericalError(f"{self} from t = {t:.6g} to {s:.6g}: {error}") from None
        if not to_data:
            return curve.to(z, s), None
        nearest = curve.time(end)
        return denoiser(curve.to(z, nearest), nearest).x0, None
