"""Specs: text against the objects that Python itself makes, and text that must not be taken, let alone executed."""

import math
import re

import pytest
import torch

import ornstein as orn
from ornstein.errors import ConfigurationError
from ornstein.objectives import UniformTime
from ornstein.samplers import Sampler
from ornstein.schedules import Schedule
from ornstein.specs import Spec, construct, parse, with_arguments

TIMES = (orn.UniformTime, orn.UniformSteps, orn.LogNormalSigma, orn.Stratified)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("CosineVP", Schedule, orn.CosineVP()),
        (" LinearVP( beta_max = 18. ) ", Schedule, orn.LinearVP(beta_max=18.0)),
        ("LinearVP(.2, 18)", Schedule, orn.LinearVP(0.2, 18)),
        ("TableSchedule.linear(steps=100)", Schedule, orn.TableSchedule.linear(steps=100)),
        ("TableSchedule.from_betas((1e-2, 2e-2, 5e-2))", Schedule, orn.TableSchedule.from_betas([1e-2, 2e-2, 5e-2])),
        ("Stratified(LogNormalSigma(mean=-0.5))", TIMES, orn.Stratified(orn.LogNormalSigma(mean=-0.5))),
        ("Stratified(law=UniformTime)", TIMES, orn.Stratified(UniformTime())),
        ('Simple("eps")', (orn.Simple, orn.MinSNR), orn.Simple("eps")),
        ("Simple(None)", (orn.Simple, orn.MinSNR), orn.Simple()),
        ("Heun(churn_max=inf, churn=0.1)", Sampler, orn.Heun(churn=0.1, churn_max=math.inf)),
    ],
)
def test_text_makes_the_object_that_python_makes(text, kind, expected):
    made = construct(text, kind)
    assert repr(made) == repr(expected)  # what the dataclasses say of themselves
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    "made",
    [orn.EDM(), orn.SubVP(0.2, 15.0), orn.TableSchedule.cosine(steps=20), orn.RectifiedFlow(), orn.GeometricVE()],
    ids=lambda made: type(made).__name__,
)
def test_the_repr_of_a_schedule_reads_back(made):
    again = construct(repr(made), Schedule)
    t = torch.linspace(made.t_min, 1, 7, dtype=torch.float64)[1:-1]
    assert torch.equal(again.log_snr(t), made.log_snr(t))
    assert repr(again) == repr(made)


def test_networks_are_found_and_keep_their_arguments():
    network = construct("UNet(channels=3, widths=(8, 16), attention=0)", torch.nn.Module)
    assert isinstance(network, orn.UNet)
    assert network.channels == 3
    assert len(network.down_stages) == 2
    assert construct(network.spec, torch.nn.Module).spec == network.spec


def test_with_arguments_adds_only_what_is_absent():
    text = with_arguments("UNet(widths=(8,), channels=5)", {"channels": 1, "classes": 10})
    assert parse(text) == Spec("UNet", (), {"widths": (8,), "channels": 5, "classes": 10})
    assert parse(with_arguments("MLP", {"shape": (2,)})) == Spec("MLP", (), {"shape": (2,)})
    nested = Spec("Stratified", (Spec("LogNormalSigma", (), {"mean": -0.5}),), {})
    assert parse(str(nested)) == nested


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("CosinVP", Schedule, "did you mean 'CosineVP'"),
        ("cosinevp", Schedule, "did you mean 'CosineVP'"),
        ("LinearVP(beta_mx=18.)", Schedule, "did you mean 'beta_max'"),
        ("TableSchedule.liner(steps=10)", Schedule, "did you mean 'linear'"),
        ("Unet", torch.nn.Module, "did you mean 'UNet'"),
        ("Heum", Sampler, "did you mean 'Heun'"),
        ("Samples", Sampler, "unknown name 'Samples'"),  # exported beside the samplers, but none
        ("MinSNR", TIMES, "unknown name 'MinSNR'"),
        ("Stratified(Uniform)", TIMES, "did you mean 'UniformTime'"),
        ("LinearVP(beta_max='a')", Schedule, "LinearVP does not take"),
        ("LinearVP(1, 2, 3)", Schedule, "LinearVP does not take"),
        ("UNet", torch.nn.Module, "missing 1 required positional argument: 'channels'"),
        ("EDM(", Schedule, "expected a name or a call"),
        ("", Schedule, "expected a name or a call"),
        ("3", Schedule, "expected a name or a call"),
        ("EDM(**{})", Schedule, "expected a name or a call"),
        ("(" * 5000, Schedule, "expected a name or a call"),
        ("EDM(sigma_max=inf)", Schedule, "sigma_max"),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(text, kind, said):
    with pytest.raises(ConfigurationError, match=re.escape(said)) as caught:
        construct(text, kind)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {path}')",
        "EDM(sigma_max=open('{path}', 'w'))",
        "EDM(sigma_max=[open('{path}', 'w') for _ in (1,)])",
        "EDM(sigma_max=(lambda: open('{path}', 'w'))())",
        "LinearVP.__class__",
        "LinearVP.__init__",
        "UNet.load_state_dict('{path}')",
    ],
)
def test_nothing_is_executed(text, tmp_path):
    path = tmp_path / "made"
    for kind in (Schedule, torch.nn.Module):
        with pytest.raises(ConfigurationError):
            construct(text.replace("{path}", str(path)), kind)
    assert not path.exists()
