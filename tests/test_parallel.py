"""Two processes train and sample as one does: same losses, same resume, same files; and one that is lost stops both."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from ornstein import checkpoints, cli, experiment
from ornstein.config import RunOptions, with_options
from ornstein.data import load_dataset
from ornstein.errors import ConfigurationError
from ornstein.parallel import Group
from ornstein.training import Run

STEPS = 8
IMPORTANCE = {"objective": "hybrid", "times": "Importance(steps=3, keep=2)", "validate_every": 0}
DRIVER = """
import dataclasses, os, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_parallel import IMPORTANCE, options
from ornstein import cli, experiment
from ornstein.errors import NumericalError
from ornstein.parallel import join

folder, group = Path(sys.argv[1]), join("cpu")
experiment.create(options(accumulate=2), folder / "two", group).train(progress=False)
if group.main:
    shutil.copytree(folder / "two", folder / "again")
    shutil.rmtree(folder / "again" / "checkpoints" / "step-00000008")
group.wait()
experiment.resume(folder / "again", group).train(progress=False)

experiment.create(options(**IMPORTANCE), folder / "two-importance", group).train(progress=False)

stopped = experiment.create(options(), folder / "stopped", group)
step = stopped.run.step
def ask(*batch):
    stopped.run.asked_to_stop = group.rank == 1 and stopped.run.count == 2
    return step(*batch)
stopped.run.step = ask
assert stopped.train(progress=False)["stopped"] == "interrupted"

poisoned = experiment.create(options(), folder / "poisoned", group)
objective = poisoned.run.aim
def poison(*arguments):
    loss = objective(*arguments)
    bad = group.rank == 1 and poisoned.run.count == 5
    return dataclasses.replace(loss, per_example=loss.per_example * (float("nan") if bad else 1.0))
poisoned.run.aim = poison
try:
    poisoned.train(progress=False)
except NumericalError as error:
    assert "last good state is saved" in str(error)

experiment.create(options(steps=None, budget="1s"), folder / "budget", group).train(progress=False)
code = cli.main(["sample", str(folder / "two"), "-n", "50", "--batch-size", "8", "--out", str(folder / "two.npz")])
os._exit(code)  # all is done and left: torch's own threads now and then abort the interpreter's end (std::terminate)
"""


THREE = """
import os, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_parallel import options
from ornstein import experiment
from ornstein.parallel import join

folder, group = Path(sys.argv[1]), join("cpu")
wide = options(steps=4, save_every=2, log_every=4, validate_every=0, network="MLP(width=256, depth=4)")
experiment.create(wide, folder / "three", group).train(progress=False)
if group.main:
    shutil.copytree(folder / "three", folder / "again")
    shutil.rmtree(folder / "again" / "checkpoints" / "step-00000004")
group.wait()
experiment.resume(folder / "again", group).train(progress=False)
group.leave()
os._exit(0)
"""


def options(**changes) -> RunOptions:
    quiet = {"validate_every": 4, "grid_every": 0, "save_every": 4, "log_every": 1, "keep": 5, "condition": "labels"}
    network = "UNet(widths=(8, 16), blocks=1, attention=1)"
    settings = {"network": network, "steps": STEPS, "batch_size": 15, "device": "cpu", "ema": (0.05, 0.2)}
    settings["precision"] = (
        "float32"  # sums in parts are compared, which bfloat16 rounds otherwise where a processor has it
    )
    return with_options(RunOptions("digits"), {**quiet, **settings, **changes})


def launch(*command: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *command]


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoints.read(folder)[0]


def drive(script: str, folder: Path, processes: int) -> None:
    """Run a script in several processes, with the folder and that of the tests as its arguments; no launcher beside them."""
    (folder / "driver.py").write_text(script)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(folder / "driver.py"), str(folder), str(Path(__file__).parent)]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=(folder / f"rank-{rank}.txt").open("w"),
            stdout=subprocess.DEVNULL,
        )
        for rank in range(processes)
    ]
    try:
        codes = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * processes, [(folder / f"rank-{rank}.txt").read_text() for rank in range(processes)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two processes, each taking its share in two parts; the same resumed from its middle; samples by two; and the
    run of one process."""
    folder = tmp_path_factory.mktemp("parallel")
    drive(DRIVER, folder, 2)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    experiment.create(options(), folder / "one").train(progress=False)
    experiment.create(options(**IMPORTANCE), folder / "one-importance").train(progress=False)
    yield folder
    torch.set_num_threads(before)


def test_two_processes_have_the_losses_of_one(runs):
    one, two = log(runs / "one"), log(runs / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "gradient_norm", "learning_rate", "validation_loss"):
            assert (key in a) == (key in b)
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=2e-4)
        assert a.get("losses_by_level", {}) == pytest.approx(b.get("losses_by_level", {}), rel=2e-4)
    first, second = weights(runs / "one"), weights(runs / "two")
    moved = experiment.create(options(), runs / "fresh").run.state()[0]
    for name, value in first.items():
        if name.startswith("network."):
            assert torch.allclose(second[name], value, atol=2e-3 * float((value - moved[name]).abs().max() + 1e-6)), (
                name
            )


def test_two_processes_draw_times_by_one_history(runs):
    one, two = checkpoints.read(runs / "one-importance")[0], checkpoints.read(runs / "two-importance")[0]
    assert torch.equal(one["history.count"], two["history.count"])
    assert int(one["history.count"].sum()) == 15 * STEPS
    assert torch.allclose(one["history.values"], two["history.values"], rtol=2e-3)
    first, second = ([line["loss"] for line in log(runs / f"{name}-importance")] for name in ("one", "two"))
    assert first == pytest.approx(second, rel=2e-3)


def test_two_processes_resume_bit_for_bit(runs):
    whole, again = weights(runs / "two"), weights(runs / "again")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    steps = [{k: v for k, v in line.items() if k != "images_per_s"} for line in log(runs / "two")]
    assert steps == [{k: v for k, v in line.items() if k != "images_per_s"} for line in log(runs / "again")]


def test_three_processes_resume_bit_for_bit(tmp_path):
    """Two sums commute; of three the order matters, which DistributedDataParallel changes after its first step."""
    drive(THREE, tmp_path, 3)
    whole, again = weights(tmp_path / "three"), weights(tmp_path / "again")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert log(tmp_path / "three")[-1]["losses_by_level"] == log(tmp_path / "again")[-1]["losses_by_level"]


def test_processes_stop_together_when_one_is_asked_to(runs):
    assert [place.name for place in checkpoints.checkpoints(runs / "stopped")] == ["step-00000003"]


def test_a_loss_that_is_not_finite_in_one_process_stops_all_with_the_state_before(runs):
    assert [place.name for place in checkpoints.checkpoints(runs / "poisoned")] == ["step-00000004", "step-00000005"]
    assert all(torch.isfinite(value).all() for value in weights(runs / "poisoned").values())


def test_processes_agree_on_what_a_budget_comes_to(runs):
    counters = checkpoints.read(runs / "budget")[1]
    assert counters["step"] == counters["total"] >= 1


def test_samples_of_two_processes_are_those_of_one(runs):
    command = ["sample", str(runs / "two"), "-n", "50", "--batch-size", "8", "--out", str(runs / "one.npz")]
    assert cli.main(command) == 0
    assert (runs / "one.npz").read_bytes() == (runs / "two.npz").read_bytes()
    assert np.load(runs / "two.npz")["samples"].shape == (50, 8, 8)


def test_resume_with_another_number_of_processes_says_so(runs):
    shutil.copytree(runs / "two", runs / "single")
    shutil.rmtree(runs / "single" / "checkpoints" / "step-00000008")
    made = experiment.resume(runs / "single")
    assert re.search(r"saved by 2 processes and goes on with 1.*no longer bit for bit", made.notes[0])
    made.train(progress=False)
    first, second = weights(runs / "two"), weights(runs / "single")
    name = "network.entry.weight"
    assert torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-5)
    assert experiment.resume(runs / "single").notes == []


def test_a_process_that_is_killed_stops_all_and_the_checkpoint_is_whole(tmp_path):
    quiet = ["--validate-every", "0", "--grid-every", "0", "--save-every", "5", "--device", "cpu"]
    net = ["--network", "UNet(widths=(8,), blocks=1, attention=0)", "--batch-size", "8", "--steps", "100000"]
    command = launch("-m", "ornstein", "train", "digits", "--preset", "none", "--out", "run", *net, *quiet)
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as launcher:
        until = time.monotonic() + 60
        while not checkpoints.checkpoints(tmp_path / "run") and time.monotonic() < until:
            time.sleep(0.05)
        workers = psutil.Process(launcher.pid).children()
        second = next(p for p in workers if p.environ()["RANK"] == "1")
        second.send_signal(signal.SIGKILL)
        said = launcher.communicate(timeout=60)[1]
    assert launcher.returncode != 0
    assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert re.search(r"ornstein \(rank 0\): rank 0 of 2 lost another process", said), said
    assert re.search(r"step-\d+ is whole; go on .* --resume run", said)
    assert re.search(r"rank\s*: 1 .*\n.*exitcode\s*: -9", said)  # the launcher's report
    checkpoints.read(tmp_path / "run")
    assert experiment.resume(tmp_path / "run").run.count >= 5


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_disjoint_even_and_whole(size):
    for n in (7, 8, 64):
        shares = [Group(rank, size).share(n) for rank in range(size)]
        assert [row for share in shares for row in share] == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, parts):
    whole = experiment.create(options(), tmp_path / "whole")
    split = experiment.create(options(accumulate=parts), tmp_path / "split")
    for made in (whole, split):
        made.train(progress=False)
    for a, b in zip(log(tmp_path / "whole"), log(tmp_path / "split"), strict=True):
        for key in ("loss", "gradient_norm", "validation_loss"):
            assert b.get(key, 0.0) == pytest.approx(a.get(key, 0.0), rel=2e-4)


def test_more_processes_than_examples_in_a_batch():
    made = experiment.build(options(), load_dataset("digits"))
    with pytest.raises(ConfigurationError, match=r"16 processes x 1 parts for a batch of 15 .* at least one example"):
        Run(made, experiment.objective(options()), options().training, Group(0, 16))
