"""The objective that is meant where none is named."""

from typing import Any

from ornstein.objectives.discrete import DiscreteHybrid, MaskedCrossEntropy
from ornstein.objectives.mixed import MixedObjective
from ornstein.objectives.squared import Objective, ObjectiveLike
from ornstein.objectives.times import UniformSteps
from ornstein.processes.categorical import Categorical
from ornstein.processes.product import Product

CHAIN = 1000


def usual(process: Any) -> ObjectiveLike:
    """Of numbers the squared error; of masks their cross-entropy, the bound; of other categories D3PM's hybrid; of parts
    their sum."""
    if isinstance(process, Product):
        return MixedObjective()
    if isinstance(process, Categorical):
        return (
            MaskedCrossEntropy()
            if process.kernel.absorbing
            else DiscreteHybrid(times=UniformSteps(process.steps or CHAIN))
        )
    return Objective()
