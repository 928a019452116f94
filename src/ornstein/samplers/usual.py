"""What `sample` does where no sampler is named: a rule in the number of calls.

`Multistep(3)`, and from 12 calls on `Multistep(4)`, on `grids.focused`: chosen by the error at the end of the path on exact
targets (benchmarks/solvers.py).
"""

from torch import Tensor

from ornstein import grids
from ornstein.processes.gaussian import Gaussian
from ornstein.samplers.multistep import Multistep

MANY = 12


def usual(process: Gaussian, calls: int) -> tuple[Multistep, Tensor]:
    """The sampler and the grid for this many calls, one a step."""
    return Multistep(3 if calls < MANY else 4), grids.focused(process, calls)
