"""Samplers: recipes of one step, and the loop that repeats them."""

from ornstein.samplers.ancestral import Ancestral
from ornstein.samplers.base import Sampler, Samples, State, sample, sample_steps, steps_within
from ornstein.samplers.multistep import Multistep
from ornstein.samplers.runge_kutta import Euler, Heun

__all__ = [
    "Ancestral",
    "Euler",
    "Heun",
    "Multistep",
    "Sampler",
    "Samples",
    "State",
    "sample",
    "sample_steps",
    "steps_within",
]
