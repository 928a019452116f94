"""Networks: shapes, conditions, independence of rows, memory layout, learning."""

import pytest
import torch
from helpers import awake
from torch import nn

from ornstein.errors import ConfigurationError
from ornstein.networks import MLP, DiT, UNet
from ornstein.networks.embeddings import Embedding, TimeFeatures, modulate
from ornstein.networks.patches import depth_to_space, space_to_depth
from ornstein.specs import construct

TOKENS = {"width": 64, "depth": 2}
SMALL = {"widths": (8, 16, 24), "blocks": 1, "attention": 1}
TIMES = torch.tensor([0.3, 700.0, -1.2])


def networks() -> list[tuple[str, nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    return [
        ("mlp-2", MLP(2, width=32, depth=2, classes=3), (2,)),
        ("mlp-7", MLP((7,), width=32, depth=2, classes=3), (7,)),
        ("mlp-16x5", MLP((16, 5), width=32, depth=2, classes=3), (16, 5)),
        ("unet-8x8", UNet(1, classes=3, **SMALL), (1, 8, 8)),
        ("unet-9x14", UNet(3, classes=3, patch=2, **SMALL), (3, 9, 14)),
        ("unet-28x28", UNet(1, classes=3, patch=4, **SMALL), (1, 28, 28)),
        ("unet-1x1", UNet(1, classes=3, patch=2, **SMALL), (1, 1, 1)),
        ("unet-1x11", UNet(2, classes=3, patch=1, **SMALL), (2, 1, 11)),
        ("unet-series-5x3", UNet(5, dims=1, classes=3, **SMALL), (5, 3)),
        ("unet-series-16x5", UNet(16, dims=1, classes=3, patch=2, **SMALL), (16, 5)),
        ("unet-series-2x17", UNet(2, dims=1, classes=3, patch=4, **SMALL), (2, 17)),
        ("dit-8x8", DiT(1, classes=3, patch=1, **TOKENS), (1, 8, 8)),
        ("dit-9x14", DiT(3, classes=3, patch=3, **TOKENS), (3, 9, 14)),
        ("dit-1x1", DiT(2, classes=3, **TOKENS), (2, 1, 1)),
        ("dit-series-5x3", DiT(5, dims=1, classes=3, **TOKENS), (5, 3)),
        ("dit-series-2x17", DiT(2, dims=1, classes=3, patch=3, **TOKENS), (2, 17)),
    ]


CASES = [pytest.param(network, shape, id=name) for name, network, shape in networks()]


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_any_shape_starts_at_zero_and_rebuilds_from_its_spec(network: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape)
    out = network(x, TIMES)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.zeros_like(x))
    again = construct(network.spec, torch.nn.Module)
    assert again.spec == network.spec
    again.load_state_dict(network.state_dict())  # the same names and shapes, all of them
    network, again = awake(network), awake(again)
    assert torch.equal(again(x, TIMES, torch.tensor([0, 1, 2])), network(x, TIMES, torch.tensor([0, 1, 2])))


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_gradient_reaches_every_parameter_and_every_input(network: nn.Module, shape: tuple[int, ...]) -> None:
    network = awake(network)
    x = torch.randn(3, *shape, requires_grad=True)
    keep = torch.tensor([True, True, False])
    # a product with noise: the plain sum of a network that ends in a normalisation may have no gradient at all
    (network(x, TIMES, torch.tensor([0, 2, 1]), keep) * torch.randn(3, *shape)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    table = network.embedding.table.grad.abs().amax(dim=1)
    assert (table > 0).tolist() == [True, False, True, True], (
        "classes 0, 2 and the null row were used, class 1 was dropped"
    )
    assert (x.grad != 0).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_labels_are_dropped_example_by_example(network: nn.Module, shape: tuple[int, ...]) -> None:
    network = awake(network)
    x, cond = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 0, 1])
    with torch.no_grad():
        null, full = network(x, TIMES), network(x, TIMES, cond)
        mixed = network(x, TIMES, cond, torch.tensor([False, True, False]))
        one_hot = network(x, TIMES, nn.functional.one_hot(cond, 3).float())
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(mixed, torch.stack((null[0], full[1], null[2])), **close)
    torch.testing.assert_close(one_hot, full, **close)
    gap = (full - null).flatten(1).abs().amax(dim=1)
    assert (gap > 1e-3).all(), "every class must differ from the null condition"


@pytest.mark.parametrize(("network", "shape"), CASES)
def test_rows_of_a_batch_do_not_meet(network: nn.Module, shape: tuple[int, ...]) -> None:
    network = awake(network)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        together = network(x, TIMES)
        alone = torch.cat([network(x[i : i + 1], TIMES[i : i + 1]) for i in range(3)])
        disturbed = network(torch.cat((x[:2], 100 * x[2:])), TIMES)
        order = torch.tensor([2, 0, 1])
        permuted = network(x[order], TIMES[order])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(permuted, together[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[:2], disturbed[:2], rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [1000.0, 1.0], ids=["1000t", "quarter-log-sigma"])
def test_time_is_resolved_in_either_convention(scale: float) -> None:
    """Least squares on the features recovers, at unseen times, a function with structure at a tenth of the range."""
    t = torch.rand(6000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time = 1000 * t if scale == 1000 else 4 * t - 2.5
    target = torch.sin(6 * torch.pi * t) + torch.exp(-(((t - 0.5) / 0.1) ** 2))
    features = torch.cat((TimeFeatures(128)(time.float()), torch.ones(6000, 1)), dim=1).double()
    seen, unseen = slice(0, 4000), slice(4000, 6000)
    gram = features[seen].T @ features[seen] + 1e-4 * torch.eye(129, dtype=torch.float64)
    weights = torch.linalg.solve(gram, features[seen].T @ target[seen])
    error = (features[unseen] @ weights - target[unseen]).square().mean().sqrt()
    assert error < 0.02  # the function's own spread is 0.8


def test_images_stay_channels_last_between_layers() -> None:
    network = UNet(3, widths=(16, 24, 32), blocks=2, attention=2, patch=2)
    seen: list[tuple[str, bool]] = []

    def record(name: str):
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen.extend((name, x.is_contiguous(memory_format=torch.channels_last)) for x in (inputs[0], output))

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.GroupNorm | nn.Dropout):
            module.register_forward_hook(record(name))
            weight = getattr(module, "weight", None)
            assert weight is None or weight.ndim < 4 or weight.is_contiguous(memory_format=torch.channels_last)
    network(torch.randn(2, 3, 28, 20), torch.zeros(2))
    assert len(seen) > 60
    assert [name for name, kept in seen if not kept] == []


def test_patches_are_exact_and_invertible() -> None:
    x = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    packed = space_to_depth(x, 2)
    assert packed.shape == (2, 12, 3, 4)
    for c, i, j, di, dj in [(0, 0, 0, 0, 1), (2, 1, 2, 1, 0), (1, 0, 1, 1, 1)]:
        assert torch.equal(packed[:, 4 * c + 2 * di + dj, i, j], x[:, c, 2 * i + di, 2 * j + dj])
    assert torch.equal(depth_to_space(packed, 2, (5, 7)), x)
    series = torch.arange(2 * 3 * 7.0).reshape(2, 3, 7)
    packed = space_to_depth(series, 4)
    assert packed.shape == (2, 12, 2)
    assert torch.equal(packed[:, 4 + 3, 0], series[:, 1, 3])
    assert torch.equal(depth_to_space(packed, 4, (7,)), series)


def test_modulation_is_per_example_and_channel() -> None:
    x, scale_shift = torch.randn(2, 3, 4, 5), torch.randn(2, 6)
    expected = torch.empty_like(x)
    for i in range(2):
        for c in range(3):
            expected[i, c] = x[i, c] * (1 + scale_shift[i, c]) + scale_shift[i, 3 + c]
    torch.testing.assert_close(modulate(x, scale_shift), expected)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MLP(5, width=64, depth=2), (5,)),
        (UNet(1, widths=(24, 32), blocks=1, patch=2), (1, 8, 8)),
        (DiT(1, **TOKENS), (1, 8, 8)),
    ],
    ids=["mlp", "unet", "dit"],
)
def test_overfits_one_batch(network: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    x, target, time = torch.randn(8, *shape), torch.randn(8, *shape), torch.linspace(0, 1000, 8)
    optimiser = torch.optim.AdamW(network.parameters(), 4e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(150):
        loss = (network(x, time) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.02  # from 1


@pytest.mark.parametrize(
    ("network", "shape"), [case.values for case in CASES if case.id in ("mlp-7", "unet-9x14", "dit-9x14")]
)
def test_bfloat16_autocast_agrees_with_float32_and_has_gradients(network: nn.Module, shape: tuple[int, ...]) -> None:
    network = awake(network)
    x, keep = torch.randn(3, *shape), torch.tensor([True, False, True])
    for cond in (None, torch.tensor([0, 1, 2]), torch.eye(3)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = network(x, TIMES, cond, keep)
        out.float().square().mean().backward()
        with torch.no_grad():
            exact = network(x, TIMES, cond, keep)
        assert (out - exact).norm() < 0.05 * exact.norm()  # bfloat16 has 8 bits: 0.4 % an operation
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_dropout_acts_in_training_only() -> None:
    image = (1, 8, 8)
    networks = (
        (UNet(1, dropout=0.5, **SMALL), image),
        (MLP(7, dropout=0.5), (7,)),
        (DiT(1, dropout=0.5, **TOKENS), image),
    )
    for network, shape in networks:
        network = awake(network)
        x = torch.randn(3, *shape)
        assert not torch.equal(network(x, TIMES), network(x, TIMES))
        network.eval()
        assert torch.equal(network(x, TIMES), network(x, TIMES))


@pytest.mark.parametrize(
    ("build", "got", "expected"),
    [
        (lambda: UNet(1, dims=3), "dims=3", "1 (series) or 2 (images)"),
        (lambda: UNet(1, patch=3), "patch=3", "1, 2 or 4"),
        (lambda: UNet(0), "channels=0", "at least 1"),
        (lambda: UNet(1, blocks=0), "blocks=0", "at least 1"),
        (lambda: UNet(1, widths=(12,)), "widths=(12,)", "multiple of 8"),
        (lambda: UNet(1, widths=()), "widths=()", "multiple of 8"),
        (lambda: UNet(1, attention=3), "attention=3", "0 to 2"),
        (lambda: UNet(1, classes=-1), "got -1", "number of classes"),
        (lambda: DiT(1, dims=3), "dims=3", "1 (series) or 2 (images)"),
        (lambda: DiT(0), "channels=0", "at least 1"),
        (lambda: DiT(1, depth=0), "depth=0", "at least 1"),
        (lambda: DiT(1, patch=0), "patch=0", "at least 1"),
        (lambda: DiT(1, width=48), "width=48", "multiple of 32"),
        (lambda: DiT(1, width=0), "width=0", "multiple of 32"),
        (lambda: DiT(1, dropout=1.0), "1.0", "[0, 1)"),
        (lambda: DiT(1, classes=-1), "got -1", "number of classes"),
        (lambda: DiT(1, **TOKENS)(torch.zeros(3, 2, 8, 8), TIMES), "(3, 2, 8, 8)", "(b, 1, height, width)"),
        (lambda: DiT(2, dims=1, **TOKENS)(torch.zeros(3, 2, 8, 8), TIMES), "(3, 2, 8, 8)", "(b, 2, length)"),
        (lambda: MLP(()), "shape ()", "positive"),
        (lambda: MLP(2, dropout=1.5), "1.5", "[0, 1)"),
        (lambda: UNet(1, dropout=-0.1), "-0.1", "[0, 1)"),
        (lambda: UNet(1, **SMALL)(torch.zeros(3, 2, 8, 8), TIMES), "(3, 2, 8, 8)", "(b, 1, height, width)"),
        (lambda: UNet(2, dims=1, **SMALL)(torch.zeros(3, 2, 8, 8), TIMES), "(3, 2, 8, 8)", "(b, 2, length)"),
        (lambda: MLP(3)(torch.zeros(3, 2), TIMES), "(2,)", "(3,)"),
        (lambda: MLP(2)(torch.zeros(3, 2), TIMES, torch.zeros(3, dtype=torch.long)), "a condition", "classes=k"),
        (lambda: Embedding(8, 2)(TIMES, torch.zeros(2, dtype=torch.long)), "(2,)", "(3,)"),
        (lambda: Embedding(8, 2)(TIMES, torch.zeros(3, 4)), "(3, 4)", "(3, 2)"),
        (lambda: Embedding(8, 2)(TIMES, torch.zeros(3, dtype=torch.long), torch.ones(1)), "(1,)", "(3,)"),
        (lambda: TimeFeatures(3), "size 3", "even"),
    ],
)
def test_bad_input_is_told_what_was_expected(build, got: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build()
    assert got in str(caught.value)
    assert expected in str(caught.value)
