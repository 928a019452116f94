"""Where the time of a training step goes: seconds for each part, the rate of arithmetic, the peak of memory."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from ornstein.conditions import Condition
from ornstein.errors import ConfigurationError, DataError

PARTS = {"_forward": "forward", "_backward": "backward", "_update": "optimiser", "_average": "average"}
"""The methods of `Run` that are timed, and the names of their parts."""
OTHER = "other"
WARMUP = 5  # steps that prepare kernels, caches and the optimiser's state


class Steps(Protocol):
    """What is profiled: a `Run`."""

    device: torch.device
    precision: str

    def step(self, x0: Tensor, cond: Condition | None = None) -> Any:
        """One optimiser step on a batch."""
        ...


class Stopwatch:
    """Seconds of named parts within steps:

        with watch.step():
            with watch.part("data"): ...

    Work that a device does on its own is waited for at each end of a part, so that it counts where it was asked for. A
    part entered several times in a step adds up. Parts do not overlap.

    Args:
        device: whose work is waited for.
        clock: seconds, increasing.
    """

    def __init__(self, device: torch.device | str = "cpu", clock: Callable[[], float] = time.perf_counter) -> None:
        self._wait, self._clock = _waiting(torch.device(device)), clock
        self._current: dict[str, float] | None = None
        self._in_part = False
        self.steps: list[tuple[float, dict[str, float]]] = []

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a whole step."""
        self._current = {}
        began = self._now()
        try:
            yield
        finally:
            parts, self._current = self._current, None
        self.steps.append((self._now() - began, parts))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the step; outside a step nothing is timed."""
        if self._current is None:
            yield
            return
        assert not self._in_part, f"part {name} within another part would count twice"
        self._in_part, began = True, self._now()
        try:
            yield
        finally:
            self._in_part = False
            self._current[name] = self._current.get(name, 0.0) + self._now() - began

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of positional arguments, timed as a part at each call."""

        def call(*arguments: Any) -> Any:
            with self.part(name):
                return function(*arguments)

        return call

    def seconds(self) -> dict[str, float]:
        """Mean seconds of each part over the middle half of the steps by duration, the rest of them as "other".

        A median in robustness; unlike medians, means over the same steps add up to the whole:
        sum of all parts = mean duration of those steps.
        """
        if not self.steps:
            raise ConfigurationError("got no step, expected at least one timed by Stopwatch.step()")
        ordered = sorted(self.steps, key=lambda step: step[0])
        middle = ordered[len(ordered) // 4 : len(ordered) - len(ordered) // 4]
        names = dict.fromkeys(name for _, parts in middle for name in parts)
        means = {name: sum(parts.get(name, 0.0) for _, parts in middle) / len(middle) for name in names}
        return means | {OTHER: sum(whole for whole, _ in middle) / len(middle) - sum(means.values())}

    def _now(self) -> float:
        self._wait()
        return self._clock()


@dataclass(frozen=True)
class Profile:
    """What a training step costs.

    parts: seconds of a step by name, in order; they add up to a step in which each part is waited for.
    seconds_per_step: of steps that run freely, the device beside the host; on a CPU the same.
    gflop_per_step: 10^9 floating-point operations (a multiply-add is 2) of the matrix products, convolutions and
        attention of a step, forward and backward; elementwise work is left out.
    peak_memory: bytes, and `memory_of` what they are the peak of; None where this machine does not tell.
    """

    parts: dict[str, float]
    seconds_per_step: float
    batch_size: int
    gflop_per_step: float
    peak_memory: int | None
    memory_of: str
    device: str
    precision: str

    @property
    def images_per_s(self) -> float:
        """batch_size / seconds_per_step."""
        return self.batch_size / self.seconds_per_step

    @property
    def gflops(self) -> float:
        """The rate reached, 10^9 floating-point operations a second: gflop_per_step / seconds_per_step."""
        return self.gflop_per_step / self.seconds_per_step

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON."""
        return {
            "device": self.device,
            "precision": self.precision,
            "batch_size": self.batch_size,
            "parts_s": dict(self.parts),
            "seconds_per_step": self.seconds_per_step,
            "images_per_s": self.images_per_s,
            "gflop_per_step": self.gflop_per_step,
            "gflops": self.gflops,
            "peak_memory_bytes": self.peak_memory,
            "peak_memory_of": self.memory_of,
        }

    def __str__(self) -> str:
        whole = sum(self.parts.values())
        rows = [("part", "ms", "share")]
        rows += [(name, f"{1e3 * s:.2f}", f"{100 * s / whole:.1f} %") for name, s in self.parts.items()]
        rows += [("step", f"{1e3 * whole:.2f}", "100.0 %")]
        lines = [f"{name:<10} {ms:>10} {share:>8}" for name, ms, share in rows]
        free = self.seconds_per_step
        if free != whole:
            lines.append(f"without waiting for each part: {1e3 * free:.2f} ms a step")
        lines.append(f"{self.images_per_s:.4g} images/s, batch {self.batch_size}, {self.precision} on {self.device}")
        lines.append(f"{self.gflop_per_step:.4g} GFLOP a step, {self.gflops:.4g} GFLOP/s")
        if self.peak_memory is not None:
            lines.append(f"peak memory {self.peak_memory / 2**20:.0f} MiB ({self.memory_of})")
        return "\n".join(lines)


def profile(run: Steps, batches: Iterable[tuple[Tensor, Condition | None]], steps: int = 20) -> Profile:
    """Profile `steps` training steps of a run, after 5 that are not counted.

    run: trained by the way, so do not keep it. Its methods `_forward`, `_backward`, `_update` and `_average`, as far as
        it has them, are the parts, beside the "data", which is what it takes to get the next batch.
    batches: what `run.step` takes, (x0, cond), as training gets them; at least 5 + steps, and twice `steps` on an
        accelerator, where as many more run freely to give the speed.

    Raises `ConfigurationError` for steps below 1 and `DataError` where the batches run out.
    """
    if steps < 1:
        raise ConfigurationError(f"got steps={steps}, expected at least 1")
    device, source = run.device, iter(batches)
    gflop, size = _count(run, _next(source))
    for x0, cond in _take(source, WARMUP - 1):
        run.step(x0, cond)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    watch = Stopwatch(device)
    with _parts_timed(run, watch):
        for _ in range(steps):
            with watch.step():
                with watch.part("data"):
                    x0, cond = _next(source)
                run.step(x0, cond)
    found = watch.seconds()
    parts = {name: found.get(name, 0.0) for name in ("data", *PARTS.values(), OTHER)}
    free = sum(parts.values())
    if device.type != "cpu":
        outer = Stopwatch(device)
        with outer.step():
            for x0, cond in _take(source, steps):
                run.step(x0, cond)
        free = outer.steps[0][0] / steps
    return Profile(parts, free, size, gflop, *_peak_memory(device), str(device), run.precision)


def _count(run: Steps, batch: tuple[Tensor, Condition | None]) -> tuple[float, int]:
    """The GFLOP of one step on a batch, which is made, and the examples in it."""
    from torch.utils.flop_counter import FlopCounterMode

    # Compiled kernels hide the products in them, so the counted step runs without them.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with FlopCounterMode(display=False) as counter, eager:
        run.step(*batch)
    return counter.get_total_flops() / 1e9, len(batch[0])


@contextmanager
def _parts_timed(run: Steps, watch: Stopwatch) -> Iterator[None]:
    """The methods of a run that are parts of its step, timed, for the length of a block."""
    found = [name for name in PARTS if hasattr(run, name)]
    for name in found:
        setattr(run, name, watch.timed(PARTS[name], getattr(run, name)))
    try:
        yield
    finally:
        for name in found:
            delattr(run, name)  # the method of the class shows again


def _take(source: Iterator[tuple[Tensor, Condition | None]], count: int) -> Iterator[tuple[Tensor, Condition | None]]:
    return (_next(source) for _ in range(count))


def _next(source: Iterator[tuple[Tensor, Condition | None]]) -> tuple[Tensor, Condition | None]:
    for batch in islice(source, 1):
        return batch
    raise DataError("the batches ran out before the profile was done; expected more of them, or fewer steps")


def _waiting(device: torch.device) -> Callable[[], None]:
    """A function that returns when the device has done what it was asked to."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def _peak_memory(device: torch.device) -> tuple[int | None, str]:
    """Bytes, and what they are the peak of."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "tensors on the GPU, in these steps"
    if device.type == "mps":
        return torch.mps.driver_allocated_memory(), "held by Metal at the end"
    try:
        import resource
    except ImportError:  # Windows
        return None, ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, but bytes on macOS
    return peak * (
        1 if sys.platform == "darwin" else 1024
    ), "resident memory of the process since its start, data and all"
