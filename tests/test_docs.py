"""The README's code runs, every public name is documented, and imports run one way."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

import ornstein as orn

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "ornstein").rglob("*.py"))
LAYERS = (
    "errors", "conditions", "files", "devices", "parallel", "noise", "config", "logs", "schedules", "processes",
    "denoisers", "discrete", "mixed", "classifiers", "clipping", "tempering", "guidance", "filters", "exact",
    "variational", "terms", "grids", "integrate", "curve", "objectives", "samplers", "constraints", "linearised",
    "networks", "data", "accuracy", "likelihood", "editing", "plots", "metrics", "specs", "training", "priors",
    "descriptions", "checkpoints", "watching", "profiling", "experiment", "cli",
)  # fmt: skip


def test_the_first_minute_runs_as_printed(capsys):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert "steps=1_000" in code
    exec(compile(code.replace("steps=1_000", "steps=50"), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "31 network calls" in printed
    assert "nats" in printed


def test_the_likelihoods_of_the_docs_are_right():
    code, names = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "likelihood.md").read_text(), re.S)[1], {}
    exec(compile(code, "likelihood.md", "exec"), names)
    truth = names["exact"].log_density(names["x"], 0.0)
    assert (names["ode"].per_example - truth).abs().max() < 1e-3
    gap = float(truth.mean()) - names["bound"].mean
    assert -3 * names["bound"].standard_error < gap < 0.1
    assert names["latent"].round_trip.max() < 1e-4


def test_the_samples_of_the_docs_are_right():
    code, names = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "sampling.md").read_text(), re.S)[1], {}
    exec(compile(code, "sampling.md", "exec"), names)
    assert names["found"].calls == 12
    assert [len(names[key]) for key in ("path", "spread")] == [5, 13]
    assert len(names["better"].x) == 100
    assert [len(grid) for grid in names["grids"].values()] == [6, 11]
    assert names["last"].count == 8
    assert (names["again"] - names["last"].x).abs().max() < 0.01


def test_what_the_docs_ask_for_is_drawn():
    code, names = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "conditions.md").read_text(), re.S)[1], {}
    exec(compile(code, "conditions.md", "exec"), names)
    error = 4 / 2000**0.5
    assert abs(names["bayes"].x[:, 0].mean() - 1.5 / 1.3) < error * (0.3 / 1.3) ** 0.5 + 0.02
    assert abs(names["bayes"].x[:, 1].mean() - 0.8 * 1.5 / 1.3) < error + 0.02
    assert names["once"].x[:, 1].mean() < 0.85 < 1.05 < names["often"].x[:, 1].mean() < 1.2
    assert (names["often"].x[:, 0] == 1.5).all()
    assert (names["alike"].x.sum(1) - 1.0).abs().max() < 1e-5


def test_the_categories_of_the_docs_are_right():
    code, names = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "discrete.md").read_text(), re.S)[1], {}
    exec(compile(code, "discrete.md", "exec"), names)
    joint, pairs = names["joint"], names["pairs"]
    seen = (pairs[:, :1] == torch.arange(3)).double().T @ (pairs[:, 1:] == torch.arange(3)).double() / len(pairs)
    assert (seen - joint).abs().sum() / 2 < 0.06
    truth = float((joint * joint.log()).sum())
    assert truth - 0.1 < names["bound"].mean < truth + 4 * names["bound"].standard_error
    assert names["sharp"].calls == 2
    assert (names["completed"][:, 0] == 2).all()
    given = torch.bincount(names["completed"][:, 1], minlength=3) / 500
    assert (given - joint[2] / joint[2].sum()).abs().max() < 0.1


@pytest.mark.parametrize("name", sorted(orn.EXPORTS))
def test_every_public_name_says_what_it_is(name):
    value = getattr(orn, name)
    assert inspect.getdoc(value), name
    if inspect.isclass(value):
        for key, member in vars(value).items():
            if not key.startswith("_") and inspect.isfunction(member) and key != "forward":
                assert inspect.getdoc(getattr(value, key)), f"{name}.{key}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_imports_run_one_way_and_files_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    parts = path.relative_to(ROOT / "src" / "ornstein").with_suffix("").parts
    if parts[0] not in LAYERS:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ornstein."):
            home = node.module.split(".")[1]
            assert LAYERS.index(home) <= LAYERS.index(parts[0]), f"{path.name} imports {node.module}"


def test_the_public_names_are_imported_only_when_used():
    assert set(orn.EXPORTS) <= set(dir(orn))
    with pytest.raises(AttributeError, match="no attribute 'Hoin'"):
        _ = orn.Hoin
