"""Training: bit-identical resume, data order, averages, the learning rate, and what stops it."""

import itertools
import json
import math
import re
import resource
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ornstein as orn
from ornstein import checkpoints, experiment, logs
from ornstein.config import RunOptions, TrainingOptions, with_options
from ornstein.errors import CheckpointError, ConfigurationError, DataError, NumericalError
from ornstein.files import held
from ornstein.noise import Noise, fold
from ornstein.parallel import Group
from ornstein.plots.grids import image_folder
from ornstein.training import Batches, Run, train

QUIET = {"validate_every": 0, "grid_every": 0, "save_every": 0, "log_every": 1}
TINY = {"network": "UNet(widths=(8,), blocks=1, attention=0, dropout=0.1)", "batch_size": 16}


def options(data: str = "digits", **changes: object) -> RunOptions:
    return with_options(RunOptions(data), {**TINY, **QUIET, **changes})


def states_equal(a: Run, b: Run) -> bool:
    first, second = a.state(), b.state()
    return first[1] == second[1] and all(
        torch.equal(first[0][k], second[0][k]) for k in first[0].keys() | second[0].keys()
    )


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def after_step(made, action) -> None:
    """Have `action(count)` done after each step of an experiment, within its loop."""
    step = made.run.step

    def stepped(*batch):
        record = step(*batch)
        action(record.count)
        return record

    made.run.step = stepped


@pytest.mark.parametrize("condition", ["none", "labels"])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tmp_path, condition):
    settings = {"steps": 12, "condition": condition, "log_every": 2}  # step 7 is within a window of the log
    whole = experiment.create(options(**settings), tmp_path / "whole")
    whole.train(progress=False)
    part = experiment.create(options(**settings), tmp_path / "part")
    after_step(part, lambda count: setattr(part.run, "stopped", count == 7))
    assert part.train(progress=False)["stopped"] == "interrupted"
    torch.manual_seed(123)  # the global generator must not matter
    again = experiment.resume(tmp_path / "part")
    assert again.run.count == 7
    again.train(progress=False)
    assert states_equal(whole.run, again.run)
    kept = ("step", "loss", "gradient_norm", "learning_rate", "losses_by_level")
    first, second = ([{k: v[k] for k in kept} for v in lines(tmp_path / name)] for name in ("whole", "part"))
    assert first == second
    assert [v["step"] for v in first] == list(range(2, 13, 2))


def test_a_run_killed_before_its_first_checkpoint_starts_again_the_same(tmp_path):
    whole = experiment.create(options(steps=4), tmp_path / "whole")
    whole.train(progress=False)
    experiment.create(options(steps=4), tmp_path / "killed")
    torch.manual_seed(123)
    again = experiment.resume(tmp_path / "killed")
    again.train(progress=False)
    assert states_equal(whole.run, again.run)


def test_a_log_cut_in_its_last_line_does_not_stop_a_resumed_run(tmp_path):
    run = experiment.create(options(steps=3), tmp_path / "run")
    run.train(progress=False)
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    experiment.resume(tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3]


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    run = experiment.create(options(steps=50), tmp_path / "run")
    after_step(run, lambda count: count == 3 and signal.raise_signal(signal.SIGINT))
    summary = run.train(progress=False)
    assert (summary["stopped"], summary["steps"]) == ("interrupted", 3)
    assert experiment.resume(tmp_path / "run").run.count == 3


def test_order_visits_every_example_once_an_epoch_and_is_a_function_of_the_seed():
    order = Batches(10, seed=3)
    rows = torch.cat([order.rows(seen, 7) for seen in range(0, 70, 7)])
    for epoch in range(7):
        assert sorted(rows[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert torch.equal(Batches(10, seed=3).rows(33, 20), torch.cat([order.rows(33, 7), order.rows(40, 13)]))
    assert not torch.equal(Batches(10, seed=4).rows(0, 10), rows[:10])


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, time):
        return x * 0 + self.weight


def test_average_is_the_power_function_profile():
    """With weights 1, 2, 3, ... the averages of the recursion equal sum_k w_k prod_{j>k} beta_j, from its definition."""
    ema, n = 0.2, 9
    run = Run(
        orn.Denoiser(Line(), orn.Gaussian(orn.CosineVP()), "v"), orn.Objective(), TrainingOptions(steps=n, ema=(ema,))
    )
    for k in range(1, n + 1):
        run.count = k
        with torch.no_grad():
            run.parameters[0].fill_(float(k))
        run._average()
    betas = [(1 - 1 / k) ** (1 / ema) for k in range(1, n + 1)]
    expected = sum((1 - betas[k - 1]) * k * math.prod(betas[k:]) for k in range(1, n + 1))
    assert run.averages.of[ema][0].tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_learning_rate_rises_then_falls_to_zero():
    data, net = torch.randn(64, 2), Line()
    records = list(
        train(orn.Denoiser(net, orn.Gaussian(orn.CosineVP()), "v"), data, steps=100, learning_rate=0.5, batch_size=64)
    )
    rates = [r.learning_rate for r in records]
    assert rates[:3] == pytest.approx([0.5 / 3, 1.0 / 3, 0.5], rel=1e-2)
    assert rates[50] == pytest.approx(0.25, rel=1e-6)
    assert 0 < rates[-1] < 5e-4
    assert [r.count for r in records] == list(range(1, 101))


def test_training_reaches_the_closed_form_optimum():
    """A linear x0 denoiser on normal data at one noise level has the Gaussian posterior mean as its optimum."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x, time):
            return self.layer(x)

    class OneTime:
        def __call__(self, process, u):
            return torch.full_like(u, 0.4)

    process = orn.Gaussian(orn.CosineVP())
    data = 1.0 + 0.5 * torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
    net = Linear()
    for _ in train(
        orn.Denoiser(net, process, "x0"), data, orn.Objective(OneTime()), steps=600, batch_size=256, learning_rate=0.05
    ):
        pass
    exact = orn.exact.Normal(process, data.mean(0), data.var(0))
    x = torch.linspace(-1, 2, 5)[:, None]
    assert torch.allclose(net(x, None), exact(x, 0.4).x0.float(), atol=0.02)


def test_labels_of_a_dataset_reach_a_conditional_network_and_only_that():
    data, seen = orn.load_dataset("digits"), []
    for classes in (10, 0):
        net = orn.UNet(1, widths=(8,), blocks=1, attention=0, classes=classes)
        net.register_forward_pre_hook(lambda module, args: seen.append(args[2:]))
        list(train(orn.Denoiser(net, orn.Gaussian(orn.CosineVP()), "v"), data, steps=1, batch_size=16))
    assert torch.equal(seen[0][0], data.train_labels[Batches(len(data.train), 0).rows(0, 16)])
    assert seen[1] == ()


def test_leaving_the_loop_early_leaves_the_averaged_weights():
    net = Line()
    denoiser = orn.Denoiser(net, orn.Gaussian(orn.CosineVP()), "v")
    steps = train(denoiser, torch.randn(64, 2), steps=50, learning_rate=0.1, batch_size=64)
    for _ in itertools.islice(steps, 5):
        last = net.weight.detach().clone()
    steps.close()
    assert not torch.equal(net.weight, last)
    assert not denoiser.training
    assert denoiser.shape == (2,)


def test_nan_loss_stops_names_step_and_noise_level_and_keeps_the_last_good_state(tmp_path):
    run = experiment.create(options(steps=20), tmp_path / "run")
    objective = run.run.aim

    def poisoned(denoiser, x0, cond, rng, keep=None):
        loss = objective(denoiser, x0, cond, rng, keep)
        return replace(loss, per_example=loss.per_example * (float("nan") if run.run.count == 4 else 1.0))

    run.run.aim = poisoned
    with pytest.raises(NumericalError, match=r"step 5: .* at t = .*log-SNR.*last good state"):
        run.train(progress=False)
    saved = experiment.resume(tmp_path / "run").run
    assert saved.count == 4
    assert all(torch.isfinite(v).all() for v in saved.state()[0].values())


@pytest.mark.parametrize("damage", ["cut", "flip", "state"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(tmp_path, damage):
    run = experiment.create(options(steps=4, save_every=2), tmp_path / "run")
    run.train(progress=False)
    last, before = (p.name for p in reversed(checkpoints.checkpoints(tmp_path / "run")))
    weights = tmp_path / "run" / "checkpoints" / last / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-5] ^= 1
        weights.write_bytes(content)
    else:
        state = weights.with_name("state.json")
        state.write_text(state.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(CheckpointError, match=f"{last}.*{before}"):
        orn.load(tmp_path / "run")


def test_only_the_last_checkpoints_are_kept_and_nothing_is_pickled(tmp_path):
    run = experiment.create(options(steps=8, save_every=2, keep=2), tmp_path / "run")
    run.train(progress=False)
    names = [p.name for p in checkpoints.checkpoints(tmp_path / "run")]
    assert names == ["step-00000006", "step-00000008"]
    kinds = {p.suffix for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert kinds == {"", ".json", ".jsonl", ".safetensors"}  # "" is the lock, which is empty


def test_budget_fixes_the_steps_once_and_stores_them(tmp_path):
    run = experiment.create(options(budget="4s", batch_size=8), tmp_path / "run")
    summary = run.train(progress=False)
    assert summary["steps"] == run.run.total >= 50
    assert experiment.resume(tmp_path / "run").run.total == run.run.total


def test_load_gives_samples_in_raw_units(tmp_path):
    experiment.create(options(steps=3), tmp_path / "run").train(progress=False)
    model = orn.load(tmp_path / "run")
    x = orn.sample(model, n=3, calls=2).x
    assert (x.dtype, x.shape) == (torch.uint8, (3, 8, 8))
    assert int(x.max()) <= 16
    assert not any(p.requires_grad and p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"steps": 10, "budget": "1m"}, "both"),
        ({"budget": "soon"}, "duration"),
        ({"schedule": "CosineVP", "parametrization": "eps"}, "SNR"),
        ({"device": "warp"}, "device"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        experiment.create(options(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_data_are_refused():
    denoiser = orn.Denoiser(Line(), orn.Gaussian(orn.CosineVP()), "v")
    for bad in (torch.full((4, 2), float("nan")), torch.zeros(0, 2), torch.zeros(4, 2, dtype=torch.uint8)):
        with pytest.raises(DataError, match="expected"):
            train(denoiser, bad)
    with pytest.raises(DataError, match="3 conditions for 4 examples"):
        train(denoiser, torch.zeros(4, 2), cond=torch.zeros(3))


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="--resume"):
        experiment.create(options(steps=1), tmp_path / "run")
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"


@pytest.fixture
def file_limit():
    """Sets the size beyond which no file can grow, which fails like a full disk; lifted at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_old_checkpoint_and_training_goes_on(tmp_path, file_limit, capfd):
    run = experiment.create(options(steps=6, save_every=2, keep=5), tmp_path / "run")
    limits = {3: 20_000, 5: None}
    after_step(run, lambda count: count in limits and file_limit(limits[count]))
    assert run.train(progress=False)["stopped"] == "finished"
    assert [p.name for p in checkpoints.checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000006"]
    said = capfd.readouterr().err
    assert re.search(r"step 4: .*step-00000004 could not be written .*step-00000002 .* whole\); training goes on", said)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    whole = experiment.create(options(steps=6), tmp_path / "whole")
    whole.train(progress=False)
    assert states_equal(whole.run, run.run)


def test_a_disk_that_is_full_at_the_end_is_an_error_that_names_what_is_whole(tmp_path, file_limit):
    run = experiment.create(options(steps=4, save_every=2), tmp_path / "run")
    after_step(run, lambda count: count == 3 and file_limit(20_000))
    with pytest.raises(CheckpointError, match=r"step-00000004 could not be written .*step-00000002 .*are whole"):
        run.train(progress=False)
    file_limit(None)
    assert experiment.resume(tmp_path / "run").run.count == 2


def test_what_a_killed_process_left_half_written_is_swept_up_and_nothing_else(tmp_path):
    run = experiment.create(options(steps=2), tmp_path / "run")
    run.train(progress=False)
    half = tmp_path / "run" / "checkpoints" / ".step-00000009.0123abcd.tmp"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    (tmp_path / "run" / ".log.0123abcd.tmp.jsonl").write_text("half")
    own = tmp_path / "run" / ".notes.tmp"
    own.write_text("the user's own")
    experiment.resume(tmp_path / "run")
    assert not half.exists()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".lock", ".notes.tmp", "checkpoints", "config.json", "log.jsonl",
    ]  # fmt: skip


def test_the_average_of_least_validation_loss_is_used_and_another_on_request(tmp_path):
    made = experiment.create(options(steps=8, validate_every=4, ema=(0.3, 0.0, 0.05)), tmp_path / "run")
    made.train(progress=False)
    last = lines(tmp_path / "run")[-1]
    losses = {float(k): v for k, v in last["validation_losses"].items()}
    best = min(losses, key=losses.get)
    assert set(losses) == {0.0, 0.3, 0.05}
    assert best != 0.3  # the first, which would be used without a choice
    assert last["validation_loss"] == losses[best]
    assert len(set(losses.values())) == 3
    tensors, counters = checkpoints.read(tmp_path / "run")
    assert counters["ema"] == best
    for length in (None, *losses):
        model = orn.load(tmp_path / "run", ema=length)
        name = f"average.{best if length is None else length:g}"
        assert torch.equal(model.denoiser.network.entry.weight, tensors[f"{name}.entry.weight"])
    assert torch.equal(tensors["average.0.entry.weight"], tensors["network.entry.weight"])
    with pytest.raises(ConfigurationError, match=r"got ema=0.1, expected one of 0.3, 0, 0.05"):
        orn.load(tmp_path / "run", ema=0.1)


def test_losses_by_level_are_means_over_the_window(tmp_path):
    """Each eighth of time has the mean of its examples' losses since the last line, and all of them the mean loss."""
    made = experiment.create(options(steps=4, log_every=2), tmp_path / "run")
    seen, objective = [], made.run.aim

    def keep(*args):
        seen.append(objective(*args))
        return seen[-1]

    made.run.aim = keep
    made.train(progress=False)
    for line, part in zip(lines(tmp_path / "run"), (seen[:2], seen[2:]), strict=True):
        t, losses = (torch.cat([getattr(loss, name).detach() for loss in part]) for name in ("t", "per_example"))
        assert line["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
        expected = {f"t<{(k + 1) / 8:g}": float(losses[(t * 8).floor() == k].mean()) for k in range(8)}
        assert line["losses_by_level"] == pytest.approx({k: v for k, v in expected.items() if v == v}, rel=1e-5)


def test_changed_data_are_refused_unless_allowed(tmp_path):
    def write(values):
        np.save(tmp_path / "data.npy", values.astype(np.float32))

    rng = np.random.default_rng(0)
    write(rng.normal(size=(60, 3)))
    settings = {"network": "MLP(width=8, depth=1)", "steps": 3}
    experiment.create(options(str(tmp_path / "data.npy"), **settings), tmp_path / "run").train(progress=False)
    write(rng.normal(size=(70, 3)) + 5)
    with pytest.raises(CheckpointError, match="fingerprint differs; give --allow-changed-data"):
        experiment.resume(tmp_path / "run")
    again = experiment.resume(tmp_path / "run", allow_changed_data=True)
    assert "have changed" in again.notes[0]
    assert again.dataset.scaling == orn.load(tmp_path / "run").scaling  # the model's units stay what they were
    assert len(again.dataset.train) == 63
    write(rng.normal(size=(70, 4)))
    with pytest.raises(CheckpointError, match="of another kind"):
        experiment.resume(tmp_path / "run", allow_changed_data=True)


def test_a_batch_larger_than_the_data_is_refused():
    denoiser = orn.Denoiser(Line(), orn.Gaussian(orn.CosineVP()), "v")
    with pytest.raises(ConfigurationError, match=r"batch_size=65 for 64 training examples.*--batch-size 64 or less"):
        train(denoiser, torch.randn(64, 2), batch_size=65)


def test_a_budget_shorter_than_the_first_checkpoint_still_saves(tmp_path):
    made = experiment.create(options(budget="0.01s", save_every=1000), tmp_path / "run")
    summary = made.train(progress=False)
    assert summary["steps"] >= 1
    assert summary["stopped"] == "finished"
    assert experiment.resume(tmp_path / "run").run.count == summary["steps"]


def test_a_compiled_network_trains_and_is_saved_as_any_other(tmp_path):
    with torch.compiler.set_stance("force_eager"):  # what a compiler makes of it is the compiler's business
        made = experiment.create(options(steps=2, compile=True), tmp_path / "run")
        assert made.run.denoiser.network._compiled_call_impl is not None
        made.train(progress=False)
        plain = experiment.create(options(steps=2), tmp_path / "plain")
        plain.train(progress=False)
    assert states_equal(made.run, plain.run)


def test_sigterm_saves_like_ctrl_c(tmp_path):
    run = experiment.create(options(steps=50), tmp_path / "run")
    twice = [signal.SIGTERM] * 2  # as launchers send it
    after_step(run, lambda count: count == 3 and list(map(signal.raise_signal, twice)))
    assert run.train(progress=False)["stopped"] == "interrupted"
    assert experiment.resume(tmp_path / "run").run.count == 3


def test_a_long_gradient_is_cut_to_the_clip_and_a_short_one_left(tmp_path):
    """What the optimiser sees, against the definition g min(1, clip / |g|)."""
    raw = [
        p.grad.clone() for p in gradients(experiment.create(options(steps=1, precision="float32"), tmp_path / "first"))
    ]
    norm = torch.cat([g.flatten() for g in raw]).norm()
    for share in (0.01, 0.7, 2.0):
        clip = share * float(norm)
        made = experiment.create(options(steps=1, clip=clip, precision="float32"), tmp_path / f"run-{share}")
        run, seen = made.run, []
        optimise = run.optimiser.step
        run.optimiser.step = lambda: (seen.extend(p.grad.clone() for p in run.parameters), optimise())  # noqa: B023
        made.train(progress=False)
        assert lines(tmp_path / f"run-{share}")[0]["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
        for g, expected in zip(seen, raw, strict=True):
            assert torch.allclose(g, expected * min(1.0, share), rtol=1e-3, atol=1e-9)


def gradients(made):
    """The parameters of a fresh experiment with the gradient of its first batch, from the objective alone."""
    run = made.run
    x0, cond = next(made.data())
    torch.manual_seed(fold(0, 2, 0, 0))
    run.denoiser.train()
    loss = run.objective(run.denoiser, x0, cond, Noise(fold(0, 0), len(x0)))
    for p, g in zip(run.parameters, torch.autograd.grad(loss.mean, run.parameters), strict=True):
        p.grad = g
    return run.parameters


def test_a_missing_watcher_is_said_before_a_run_is_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigurationError, match=r'pip install "ornstein\[wandb\]"'):
        experiment.create(options(steps=2, watch=("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_watchers_are_shown_what_the_log_holds_and_the_grids(tmp_path):
    settings = {"steps": 4, "log_every": 2, "validate_every": 4, "grid_every": 4, "watch": ("tensorboard",)}
    experiment.create(options(**settings), tmp_path / "run").train(progress=False)
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for line in lines(tmp_path / "run"):
        for name, value in logs.scalars(line).items():
            assert (line["step"], pytest.approx(value, rel=1e-6)) in [(e.step, e.value) for e in shown.Scalars(name)]
    assert {"loss", "gradient_norm", "learning_rate", "validation_loss/0.05", "loss_by_level/t<0.5"} <= set(
        shown.Tags()["scalars"]
    )
    assert [event.step for event in shown.Images("samples")] == [4]


@pytest.fixture
def pictures(tmp_path):
    """60 pictures in a folder, one of which cannot be read."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    return image_folder(pixels, tmp_path / "pictures", [i % 3 for i in range(60)])


def test_a_streamed_run_is_the_run_in_memory_and_resumes_bit_for_bit(tmp_path, pictures):
    runs = {}
    for stream, workers in (("never", 0), ("always", 0), ("always", 2)):
        settings = {"steps": 9, "save_every": 3, "keep": 9, "condition": "labels", "stream": stream, "workers": workers}
        runs[stream, workers] = experiment.create(options(str(pictures), **settings), tmp_path / f"{stream}{workers}")
        runs[stream, workers].train(progress=False)
    whole = runs["never", 0]
    assert states_equal(whole.run, runs["always", 0].run)
    assert states_equal(whole.run, runs["always", 2].run)
    for step in ("step-00000006", "step-00000009"):
        shutil.rmtree(tmp_path / "always2" / "checkpoints" / step)
    again = experiment.resume(tmp_path / "always2")
    assert again.run.count == 3
    again.train(progress=False)
    assert states_equal(whole.run, again.run)


@pytest.mark.parametrize("stream", ["never", "always"])
def test_unreadable_pictures_stop_training_or_are_counted_in_the_log(tmp_path, pictures, stream):
    (pictures / "1" / "000001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1/000001.png .*--skip-bad"):
        experiment.create(options(str(pictures), stream=stream, steps=8), tmp_path / "stops")
    settings = {"stream": stream, "skip_bad": True, "steps": 8, "log_every": 4}
    made = experiment.create(options(str(pictures), **settings), tmp_path / "goes-on")
    summary = made.train(progress=False)
    counted = [line["skipped"] for line in lines(tmp_path / "goes-on") if "skipped" in line]
    assert counted[-1] == summary["skipped"] >= 1
    if stream == "never":
        assert counted == [1, 1]


def test_a_picture_that_goes_bad_on_the_way_stops_training_with_its_state_saved(tmp_path, pictures):
    made = experiment.create(options(str(pictures), stream="always", workers=1, steps=8), tmp_path / "run")
    (pictures / "1" / "000001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1/000001.png .*the last good state is saved in .*step-0000000\d"):
        made.train(progress=False)
    assert checkpoints.checkpoints(tmp_path / "run")


def test_two_processes_cannot_train_the_same_run_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ornstein.files.PATIENCE", 0.0)
    made = experiment.create(options(steps=3), tmp_path / "run")
    with held(tmp_path / "run"), pytest.raises(ConfigurationError, match="in use by another process"):
        made.train(progress=False)
    assert made.train(progress=False)["steps"] == 3


def test_a_run_of_an_older_version_is_an_error_in_one_line(tmp_path):
    made = experiment.create(options(steps=1), tmp_path / "run")
    made.train(progress=False)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["options"]["reading"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    for action in (orn.load, experiment.resume):
        with pytest.raises(CheckpointError, match="another version"):
            action(tmp_path / "run")


def test_resume_leaves_a_run_alone_that_another_process_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("ornstein.files.PATIENCE", 0.0)
    experiment.create(options(steps=2), tmp_path / "run").train(progress=False)
    live = tmp_path / "run" / "checkpoints" / ".step-00000009.0123abcd.tmp"
    live.mkdir()
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"step": 3}\n')
    with held(tmp_path / "run"), pytest.raises(ConfigurationError, match="in use by another process"):
        experiment.resume(tmp_path / "run")
    assert live.exists()
    assert lines(tmp_path / "run")[-1] == {"step": 3}


def test_of_two_runs_begun_in_one_folder_the_second_is_refused(tmp_path):
    first, second = (experiment.prepare(options(steps=2, seed=k), tmp_path / "run") for k in (0, 1))
    assert first.options != second.options
    experiment.create(options(steps=2), tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ornstein.experiment.creation.prepare", lambda *args: second
        )  # it looked before the first was made
        with pytest.raises(ConfigurationError, match="exists already"):
            experiment.create(options(steps=2, seed=1), tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_run_killed_before_its_configuration_leaves_a_name_that_is_free(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.0123abcd.tmp.json").write_text("half")
    assert experiment.create(options(steps=1), tmp_path / "run").train(progress=False)["steps"] == 1


def test_a_grid_that_cannot_be_drawn_does_not_stop_training(tmp_path, monkeypatch, capfd):
    def fails(*args, **kwargs):
        raise NumericalError("sampling left the finite numbers")

    monkeypatch.setattr("ornstein.experiment.experiment.sample", fails)
    made = experiment.create(options(steps=2, grid_every=1), tmp_path / "run")
    assert made.train(progress=False)["stopped"] == "finished"
    assert re.search(r"step 1: the sample grid .*left the finite numbers.*training goes on", capfd.readouterr().err)


def test_an_energy_is_trained_twice():
    """Its score needs a graph in training: also in a denoiser that an earlier training left in evaluation mode."""

    class Energy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x, time):
            return 0.5 * self.w * x.square().flatten(1).sum(1)

    denoiser, data = orn.Denoiser(Energy(), orn.Gaussian(orn.LinearVP()), "energy"), torch.randn(64, 2)
    for _ in range(2):
        before = denoiser.network.w.item()
        list(train(denoiser, data, steps=2, batch_size=16))
        assert denoiser.network.w.item() != before


def test_validation_draws_no_more_noise_than_it_needs_and_is_shared_out(tmp_path):
    """The shares of three processes sum to the loss of one, and one of more processes than examples has nothing to do."""
    made = experiment.create(options(steps=1), tmp_path / "run")
    whole = made._held_out_loss(0.05)
    total, n = 0.0, len(made.dataset.test)
    for rank in range(3):
        made.run.group = Group(rank, 3)
        total += made._held_out_loss(0.05)
    assert total == pytest.approx(whole, rel=1e-5)
    made.run.group = Group(0, 10 * n)
    assert made._held_out_loss(0.05) == 0.0
