"""What `sample` does where no sampler is named: a rule in the number of calls.

`Multistep(3)`, from 12 calls on with its corrector, on `grids.focused`: chosen by the error at the end of the path on exact
targets (benchmarks/solvers.py). With fewer calls the corrector's longer memory does harm.
"""

from ornstein.samplers.multistep import Multistep

MANY = 12


def usual(calls: int) -> Multistep:
    """The sampler for this many calls, one a step; its grid is `grids.focused`."""
    return Multistep(3, corrector=calls >= MANY)
