"""Networks that predict a variance beside the mean: shapes, training, saving, sampling."""

import pytest
import torch

import ornstein as orn
from ornstein import experiment
from ornstein.config import RunOptions, with_options
from ornstein.errors import ConfigurationError
from ornstein.specs import construct

NETWORKS = {
    "mlp": ("MLP(width=16, depth=1)", (5,), lambda: orn.MLP(5, width=16, depth=1, outputs=2)),
    "unet": ("UNet(widths=(8,), blocks=1)", (3, 9, 7), lambda: orn.UNet(channels=(3, 6), widths=(8,), blocks=1)),
    "unet-1d": ("UNet(widths=(8,), blocks=1, patch=2)", (2, 11), lambda: orn.UNet((2, 4), 1, (8,), 1, patch=2)),
    "dit": ("DiT(width=32, depth=1)", (1, 8, 8), lambda: orn.DiT(channels=(1, 2), width=32, depth=1)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_doubled_and_read_as_a_fraction(name):
    _, shape, make = NETWORKS[name]
    torch.manual_seed(0)
    network, x, time = make(), torch.randn(4, *shape), torch.rand(4)
    for parameter in network.parameters():  # the last layer is zero before training
        torch.nn.init.normal_(parameter, std=0.2)
    output = network(x, time)
    assert output.shape == (4, 2 * shape[0], *shape[1:])
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.CosineVP()), "v", variance="learned", time=lambda t: t)
    estimate = denoiser(x, 0.5)
    again = network(x, torch.full((4,), 0.5))
    assert torch.allclose(estimate.v, again[:, : shape[0]], atol=1e-6)
    assert torch.allclose(estimate.fraction, (again[:, shape[0] :] + 1) / 2, atol=1e-6)
    assert construct(network.spec, torch.nn.Module)(x, time).shape == output.shape


@pytest.mark.parametrize("channels", [(1, 2, 3), (1,), (0, 2), 0])
def test_channels_that_are_none_are_refused(channels):
    with pytest.raises(ConfigurationError, match="channels"):
        orn.UNet(channels=channels, widths=(8,))


@pytest.mark.parametrize("objective", ["hybrid", "vlb"])
def test_a_run_learns_a_variance_keeps_it_and_samples_with_it(tmp_path, objective):
    changes = {"network": "UNet(widths=(8,), blocks=1, attention=0)", "batch_size": 32, "steps": 30, "log_every": 30}
    quiet = {"validate_every": 0, "grid_every": 0, "objective": objective, "learning_rate": 3e-3}
    made = experiment.create(with_options(RunOptions("digits"), {**changes, **quiet}), tmp_path / "run")
    assert made.run.denoiser.variance == "learned"
    made.train(progress=False)
    model = orn.load(tmp_path / "run")
    estimate = model(torch.randn(8, 1, 8, 8), 0.3)
    assert estimate.fraction.shape == (8, 1, 8, 8)
    assert float((estimate.fraction.detach() - 0.5).abs().max()) > 1e-4  # where it starts
    drawn = orn.sample(model, orn.Ancestral(), n=4, steps=5).x
    assert drawn.dtype == torch.uint8


def test_fixed_and_learned_can_be_asked_for(tmp_path):
    settings = {"network": "UNet(widths=(8,), blocks=1, attention=0)"}
    data = orn.load_dataset("digits")
    for variance, objective, expected in (
        ("auto", "simple", None),
        ("learned", "simple", "learned"),
        ("fixed", "vlb", None),
        ("auto", "Hybrid(weight=0.1)", "learned"),
    ):
        options = with_options(RunOptions("digits"), {**settings, "variance": variance, "objective": objective})
        assert experiment.build(options, data).variance == expected
