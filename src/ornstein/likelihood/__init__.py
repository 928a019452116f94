"""How probable data are under a denoiser: `elbo`, a bound in named parts, and `log_likelihood`, the density of the ODE.

Both speak nats of model units on a plain denoiser; on a loaded `Model` raw data, and bits/dim where those are quantised.
`encode` and `decode` carry data to latents and back along the same ODE.
"""

from ornstein.integrate import FixedSteps, RungeKutta
from ornstein.likelihood.elbo import elbo
from ornstein.likelihood.encoding import Encoding, decode, encode
from ornstein.likelihood.ode import Dequantise, log_likelihood
from ornstein.likelihood.records import Bound, Likelihood, Steps
from ornstein.likelihood.trace import Exact, Hutchinson

__all__ = [
    "Bound",
    "Dequantise",
    "Encoding",
    "Exact",
    "FixedSteps",
    "Hutchinson",
    "Likelihood",
    "RungeKutta",
    "Steps",
    "decode",
    "elbo",
    "encode",
    "log_likelihood",
]
