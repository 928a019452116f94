"""Samplers: recipes of one step, and the loop that repeats them."""

from ornstein.samplers.adaptive import RK45
from ornstein.samplers.ancestral import Ancestral
from ornstein.samplers.base import Sampler, Samples, State, sample, sample_steps
from ornstein.samplers.composed import PredictorCorrector
from ornstein.samplers.ctmc import CTMCCorrector, CTMCEuler, TauLeaping
from ornstein.samplers.jumps import FirstHitting, Gillespie
from ornstein.samplers.langevin import AnnealedLangevin, Langevin, UnderdampedLangevin
from ornstein.samplers.multistep import Multistep
from ornstein.samplers.parts import Parts
from ornstein.samplers.recipes import recipe, steps_within, usual
from ornstein.samplers.runge_kutta import RK4, Euler, Heun, Midpoint
from ornstein.samplers.singlestep import Singlestep
from ornstein.samplers.stochastic import EulerMaruyama, StochasticHeun

__all__ = [
    "RK4",
    "RK45",
    "Ancestral",
    "AnnealedLangevin",
    "CTMCCorrector",
    "CTMCEuler",
    "Euler",
    "EulerMaruyama",
    "FirstHitting",
    "Gillespie",
    "Heun",
    "Langevin",
    "Midpoint",
    "Multistep",
    "Parts",
    "PredictorCorrector",
    "Sampler",
    "Samples",
    "Singlestep",
    "State",
    "StochasticHeun",
    "TauLeaping",
    "UnderdampedLangevin",
    "recipe",
    "sample",
    "sample_steps",
    "steps_within",
    "usual",
]
