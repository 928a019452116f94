"""One process or several: whose rows are whose, and what they agree on.

Placement, all-reduce and launching are Accelerate's (`accelerate launch`, `torchrun`); which examples a process sees, what it
draws and what is saved are ornstein's, so that a run means the same on any number of processes.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ornstein.devices import pick_device
from ornstein.errors import ConfigurationError, DistributedError, OrnsteinError

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes of a run, as one of them sees them: this is number `rank` of `size`. By default the only one."""

    rank: int = 0
    size: int = 1
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """The rows of n that are this process's: contiguous, and even but for one."""
        return range(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose backward pass leaves in every process the mean of all processes' gradients."""
        return network if self.accelerator is None else self.accelerator.prepare_model(network)

    def holding(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """A block whose forward and backward passes keep their gradients to themselves, to be averaged by a later one."""
        return nullcontext() if self.accelerator is None else self.accelerator.no_sync(wrapped)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values if self.accelerator is None else self.accelerator.reduce(values, "sum")

    def same(self, value: T) -> T:
        """The main process's value, in all of them."""
        if self.accelerator is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def all(self, value: T) -> list[T]:
        """The values of all processes, by rank, in all of them."""
        if self.accelerator is None:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def device(self, name: str) -> torch.device:
        """Where this process computes: the launcher's choice among several processes, else the device of that name."""
        return pick_device(name) if self.accelerator is None else torch.device(self.accelerator.device)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def leave(self) -> None:
        """Take leave of the others; nothing can be shared afterwards."""
        if self.accelerator is None:
            return
        with suppress(RuntimeError):  # all is done, and one that was lost on the way here changes nothing
            self.wait()  # one that closes its connections while another still reads from them would look lost
        self.accelerator.end_training()


@contextmanager
def together(group: Group, advice: Callable[[], str]) -> Iterator[None]:
    """A block in which the loss of another process raises `DistributedError`, with a remedy, in those that remain."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or re.search(r"gloo|NCCL|[Cc]onnection", str(error))
        if group.size == 1 or isinstance(error, OrnsteinError) or not lost:
            raise
        raise DistributedError(
            f"rank {group.rank} of {group.size} lost another process and stops, as all do; the launcher's report names the "
            f"rank that failed first. {advice()}"
        ) from None


def join(device: str = "auto") -> Group:
    """The group that the launcher has made, by its environment (WORLD_SIZE, RANK); without one, this process alone.

    `device`: cpu, cuda, mps or auto; which of several GPUs is the launcher's to say. Raises `ConfigurationError` where
    Accelerate is not installed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group()
    try:
        from accelerate import Accelerator
    except ImportError:
        raise ConfigurationError(
            'several processes need Accelerate: pip install "ornstein[distributed]", or start one process alone'
        ) from None
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")  # the precision is ours, by torch.autocast
    if accelerator.num_processes != int(os.environ["WORLD_SIZE"]):
        raise ConfigurationError(
            f"got WORLD_SIZE={os.environ['WORLD_SIZE']} and no sign of a launcher (LOCAL_RANK); start the processes by "
            "torchrun or accelerate launch"
        )
    return Group(accelerator.process_index, accelerator.num_processes, accelerator)
