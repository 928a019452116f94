"""The profile of a training step: a clock that is told the time, products counted by hand, the kernel's count of memory."""

import json
import sys
from pathlib import Path

import pytest
import torch
from scipy.stats import trim_mean

from ornstein.errors import ConfigurationError, DataError
from ornstein.profiling import PARTS, WARMUP, Profile, Stopwatch, profile


class Clock:
    """A clock that goes by what is done."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


def test_parts_add_up_to_the_step():
    clock = Clock()
    watch = Stopwatch(clock=clock)
    work = watch.timed("forward", clock.work)
    with watch.part("data"):
        clock.work(64)  # before the first step: not counted
    with watch.step():
        clock.work(0.5)
        with watch.part("data"):
            clock.work(1)
        for seconds in (2, 4):
            work(seconds)
        clock.work(0.25)
    assert watch.steps == [(7.75, {"data": 1, "forward": 6})]
    assert watch.seconds() == {"data": 1, "forward": 6, "other": 0.75}


def test_the_slowest_and_fastest_quarters_do_not_count():
    clock, durations = Clock(), [3.0, 900.0, 1.0, 0.001, 2.0, 2.5, 800.0, 4.0, 1.5, 0.002]
    watch = Stopwatch(clock=clock)
    for k, duration in enumerate(durations):
        with watch.step(), watch.part("even" if k % 2 == 0 else "odd"):
            clock.work(duration)
    seconds = watch.seconds()
    assert sum(seconds.values()) == pytest.approx(trim_mean(durations, 0.25), rel=1e-12)
    assert seconds["even"] == pytest.approx((3.0 + 1.0 + 2.0 + 1.5) / 6)  # 1, 1.5, 2, 2.5, 3, 4 are the middle
    assert seconds["odd"] == pytest.approx((2.5 + 4.0) / 6)
    assert seconds["other"] == pytest.approx(0.0, abs=1e-9)


def test_a_part_that_fails_is_closed_and_its_step_left_out():
    watch = Stopwatch(clock=Clock())
    for _ in range(2):  # the second time would fail on a part left open
        with pytest.raises(ZeroDivisionError), watch.step(), watch.part("forward"):
            _ = 1 / 0
    assert watch.steps == []
    with pytest.raises(ConfigurationError, match="got no step"):
        watch.seconds()
    with pytest.raises(AssertionError, match="twice"), watch.step(), watch.part("a"), watch.part("b"):
        pass


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_work_of_a_device_is_waited_for_at_each_end(monkeypatch, device):
    clock, queue, waits = Clock(), [], []

    def wait(*arguments):
        waits.append(arguments)
        while queue:
            clock.work(queue.pop())

    monkeypatch.setattr(f"torch.{device}.synchronize", wait)
    watch = Stopwatch(device, clock)
    with watch.step():
        queue.append(1)  # asked for before the part, and not its own
        with watch.part("forward"):
            queue.append(2)
        queue.append(4)
    assert watch.seconds() == {"forward": 2, "other": 5}
    assert len(waits) == 4


class Tiny:
    """A run as `profile` sees one: two linear layers, trained by steps in parts."""

    device, precision = torch.device("cpu"), "float32"

    def __init__(self):
        self.network = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3))
        self.optimiser = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.seen, self.parts = [], []

    def step(self, x0, cond=None):
        self.seen.append((len(x0), cond))
        for half in x0.chunk(2):
            self._backward(self._forward(half))
        self._update(0.5)

    def _forward(self, x):
        self.parts.append("forward")
        return self.network(x).square().mean()

    def _backward(self, loss):
        loss.backward()

    def _update(self, rate):
        self.parts.append(rate)
        self.optimiser.step()


def test_a_step_of_a_small_network_by_hand():
    run = Tiny()
    batches = ((torch.ones(8, 6), k) for k in range(100))
    found = profile(run, batches, steps=6)
    # A product (b, m) @ (m, n) is 2 b m n operations; backward, one for the weights and, but for the first layer, one more.
    assert found.gflop_per_step == 2 * 8 * (2 * 6 * 10 + 3 * 10 * 3) / 1e9
    assert run.seen == [(8, k) for k in range(WARMUP + 6)]
    assert run.parts[:3] == ["forward", "forward", 0.5]
    assert list(found.parts) == ["data", "forward", "backward", "optimiser", "average", "other"]
    assert all(found.parts[name] > 0 for name in ("data", "forward", "backward", "optimiser"))
    assert found.parts["average"] == 0  # this run has none
    assert found.parts["other"] >= 0
    assert sum(found.parts.values()) == pytest.approx(found.seconds_per_step, rel=1e-9)
    assert found.images_per_s == pytest.approx(8 / found.seconds_per_step)
    assert not set(PARTS) & set(vars(run))
    assert (found.batch_size, found.device, found.precision) == (8, "cpu", "float32")


def test_peak_memory_is_that_of_the_kernel():
    found = profile(Tiny(), ((torch.ones(4, 6), None) for _ in range(20)), steps=1)
    assert "since its start" in found.memory_of
    if sys.platform == "linux":
        (peak,) = (int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
        assert found.peak_memory == pytest.approx(1024 * peak, rel=0.02)


def test_methods_are_as_before_when_the_data_run_out():
    run = Tiny()
    with pytest.raises(DataError, match="batches ran out"):
        profile(run, ((torch.ones(4, 6), None) for _ in range(WARMUP + 1)), steps=2)
    assert not set(PARTS) & set(vars(run))
    with pytest.raises(ConfigurationError, match="got steps=0, expected at least 1"):
        profile(run, iter(()), steps=0)


def test_the_table_and_the_json_say_the_same():
    parts = {"data": 0.001, "forward": 0.002, "backward": 0.004, "optimiser": 0.0, "average": 0.0, "other": 0.001}
    found = Profile(parts, 0.008, 16, 2.0, 3 * 2**20, "of a test", "cpu", "bfloat16")
    lines = str(found).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["part", "ms", "share"],
        ["data", "1.00", "12.5", "%"],
        ["forward", "2.00", "25.0", "%"],
    ]
    assert lines[7].split() == ["step", "8.00", "100.0", "%"]
    assert lines[8] == "2000 images/s, batch 16, bfloat16 on cpu"
    assert lines[9] == "2 GFLOP a step, 250 GFLOP/s"
    assert lines[10] == "peak memory 3 MiB (of a test)"
    values = json.loads(json.dumps(found.to_dict()))
    assert values["parts_s"] == parts
    assert (values["images_per_s"], values["gflops"], values["peak_memory_bytes"]) == (2000, 250, 3 * 2**20)
    free = Profile(parts, 0.005, 16, 2.0, None, "", "cuda:0", "bfloat16")
    assert "without waiting for each part: 5.00 ms a step" in str(free)
    assert "memory" not in str(free)
    assert free.images_per_s == 3200
