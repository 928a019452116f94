"""DiT: a block against numpy, adaLN-zero, positions, conditions, independence of rows, any size, learning."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from ornstein.errors import ConfigurationError
from ornstein.networks import DiT
from ornstein.networks.dit import DiTBlock, positions
from ornstein.specs import construct

SMALL = {"width": 64, "depth": 2, "classes": 3}
TIMES = torch.tensor([0.3, 700.0, -1.2])
LABELS = torch.tensor([0, 2, 1])
SHAPES = [(1, 8, 8), (3, 9, 14), (2, 1, 1), (2, 1, 11), (5, 3), (2, 17)]


def awake(network: nn.Module) -> nn.Module:
    """The network with every parameter moved off zero, so that nothing is hidden by the zero gates."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def build(shape: tuple[int, ...], **changes) -> DiT:
    torch.manual_seed(0)
    return DiT(shape[0], dims=len(shape) - 1, **{**SMALL, **changes})


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_size_starts_at_zero_and_rebuilds_from_its_spec(shape: tuple[int, ...], patch: int) -> None:
    network, x = build(shape, patch=patch), torch.randn(3, *shape)
    out = network(x, TIMES, LABELS)
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.zeros_like(x))
    again = construct(network.spec, nn.Module)
    assert again.spec == network.spec
    again.load_state_dict(network.state_dict())  # the same names and shapes, all of them
    awake(network), awake(again)
    assert network(x, TIMES).shape == x.shape
    assert torch.equal(again(x, TIMES, LABELS), network(x, TIMES, LABELS))


def reference_block(block: DiTBlock, x: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """One block in float64 numpy: an einsum for each layer, a loop for each example and head."""
    weights = {name: value.detach().double().numpy() for name, value in block.state_dict().items()}

    def linear(name: str, h: np.ndarray) -> np.ndarray:
        return np.einsum("...i,oi->...o", h, weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    def norm(h: np.ndarray) -> np.ndarray:
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)

    width = x.shape[-1]
    out = np.empty_like(x)
    for b in range(len(x)):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = linear("modulation", embedding[b]).reshape(6, width)
        q, k, v = linear("query_key_value", norm(x[b]) * (1 + scale_1) + shift_1).reshape(-1, 3, width).swapaxes(0, 1)
        mixed = np.empty_like(q)
        for first in range(0, width, 64):
            part = slice(first, first + 64)
            mixed[:, part] = softmax(q[:, part] @ k[:, part].T / np.sqrt(64), axis=1) @ v[:, part]
        h = x[b] + gate_1 * linear("project", mixed)
        u = linear("widen", norm(h) * (1 + scale_2) + shift_2)
        gelu = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
        out[b] = h + gate_2 * linear("narrow", gelu)
    return out


def test_a_block_is_the_formulas_of_the_paper() -> None:
    torch.manual_seed(0)
    block = awake(DiTBlock(128, 0.0))
    x, embedding = torch.randn(2, 7, 128), torch.randn(2, 128)
    expected = reference_block(block, x.double().numpy(), embedding.double().numpy())
    np.testing.assert_allclose(block(x, embedding).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected - x.numpy()).max() > 1


def test_a_network_is_its_blocks_between_patches() -> None:
    """The whole forward for one block by hand: each token is a square, its position a sine and cosine of its row and
    column."""
    network = awake(build((2, 4, 6), depth=1, patch=2))
    weights = {name: value.detach().double().numpy() for name, value in network.state_dict().items()}
    x = torch.randn(2, 2, 4, 6)
    rate = 10_000.0 ** (-np.arange(16) / 16)
    tokens = np.empty((2, 6, 64))
    for i in range(2):
        for j in range(3):
            square = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, 8).double().numpy()
            place = np.concatenate([np.sin(rate * i), np.cos(rate * i), np.sin(rate * j), np.cos(rate * j)])
            tokens[:, 3 * i + j] = square @ weights["entry.weight"].T + weights["entry.bias"] + place
    embedding = network.embedding(TIMES[:2]).detach().double().numpy()
    h = reference_block(network.blocks[0], tokens, embedding)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    shift, scale = np.split(embedding @ weights["modulation.weight"].T + weights["modulation.bias"], 2, axis=1)
    h = (h * (1 + scale[:, None]) + shift[:, None]) @ weights["exit.weight"].T + weights["exit.bias"]
    expected = h.reshape(2, 2, 3, 2, 2, 2).transpose(0, 3, 1, 4, 2, 5).reshape(2, 2, 4, 6)
    np.testing.assert_allclose(network(x, TIMES[:2]).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_every_block_is_the_identity_before_training() -> None:
    network = build((1, 8, 8), depth=3)
    h, embedding = torch.randn(2, 16, 64), torch.randn(2, 64)
    for block in network.blocks:
        assert torch.equal(block(h, embedding), h)
        assert not torch.equal(block.attention(h), torch.zeros_like(h)), "the gate is zero, not what it gates"


def test_gradient_reaches_every_parameter_after_two_steps() -> None:
    """At first only the exit learns, for all gates are closed; its step opens the gates, whose step opens the rest."""
    network = build((1, 9, 9))
    x, target, keep = torch.randn(3, 1, 9, 9), torch.randn(3, 1, 9, 9), torch.tensor([True, False, True])
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    moved = []
    for _ in range(3):
        optimiser.zero_grad()
        (network(x, TIMES, LABELS, keep) - target).square().mean().backward()
        moved.append({name for name, p in network.named_parameters() if p.grad.abs().max() > 0})
        optimiser.step()
    assert moved[0] == {"exit.weight", "exit.bias"}
    assert "blocks.1.modulation.weight" in moved[1]
    assert "blocks.1.widen.weight" not in moved[1]
    assert moved[2] == {name for name, _ in network.named_parameters()}
    table = network.embedding.table.grad.abs().amax(dim=1)
    assert (table > 0).tolist() == [True, True, False, True], "class 2 was dropped, the null row stood in"


@pytest.mark.parametrize("shape", [(3, 9, 14), (2, 17)], ids=str)
def test_labels_are_dropped_example_by_example(shape: tuple[int, ...]) -> None:
    network, x = awake(build(shape)), torch.randn(3, *shape)
    with torch.no_grad():
        null, full = network(x, TIMES), network(x, TIMES, LABELS)
        mixed = network(x, TIMES, LABELS, torch.tensor([False, True, False]))
        one_hot = network(x, TIMES, nn.functional.one_hot(LABELS, 3).float())
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(mixed, torch.stack((null[0], full[1], null[2])), **close)
    torch.testing.assert_close(one_hot, full, **close)
    assert ((full - null).flatten(1).abs().amax(dim=1) > 1e-2).all()


@pytest.mark.parametrize("shape", [(3, 9, 14), (2, 17)], ids=str)
def test_rows_of_a_batch_do_not_meet_and_their_order_is_free(shape: tuple[int, ...]) -> None:
    network, x = awake(build(shape)), torch.randn(3, *shape)
    close = {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        together = network(x, TIMES, LABELS)
        alone = torch.cat([network(x[i : i + 1], TIMES[i : i + 1], LABELS[i : i + 1]) for i in range(3)])
        order = torch.tensor([2, 0, 1])
        permuted = network(x[order], TIMES[order], LABELS[order])
    torch.testing.assert_close(together, alone, **close)
    torch.testing.assert_close(permuted, together[order], **close)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_without_positions_tokens_are_a_set_and_with_them_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = awake(build((1, 4, 6), patch=1)), torch.randn(3, 1, 4, 6)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    shuffled = x.flatten(2)[..., order].unflatten(2, (4, 6))
    with torch.no_grad():
        gap = network(shuffled, TIMES).flatten(2) - network(x, TIMES).flatten(2)[..., order]
        monkeypatch.setattr("ornstein.networks.dit.positions", lambda grid, width, device: torch.zeros(1))
        without = network(shuffled, TIMES).flatten(2) - network(x, TIMES).flatten(2)[..., order]
    assert gap.abs().max() > 0.05
    assert without.abs().max() < 1e-4


def test_positions_are_those_of_the_coordinates_at_every_size() -> None:
    """One formula for all sizes: a larger grid holds the smaller one, every position is distinct, and the inner product
    of two depends on their difference alone."""
    small, large = positions((3, 5), 64, torch.device("cpu")), positions((40, 50), 64, torch.device("cpu"))
    torch.testing.assert_close(large.unflatten(0, (40, 50))[:3, :5].flatten(0, 1), small)
    assert torch.cdist(large, large).add(10 * torch.eye(2000)).min() > 0.1
    line = positions((200,), 64, torch.device("cpu")).double()
    products = line @ line.T
    torch.testing.assert_close(products[3:100, 10:100], products[53:150, 60:150], rtol=0, atol=1e-4)


def test_overfits_one_batch() -> None:
    torch.manual_seed(1)
    network = DiT(1, width=64, depth=2, patch=2)
    x, target, time = torch.randn(8, 1, 8, 8), torch.randn(8, 1, 8, 8), torch.linspace(0, 1000, 8)
    optimiser = torch.optim.AdamW(network.parameters(), 4e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(80):
        loss = (network(x, time) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05  # from 1


def test_bfloat16_autocast_agrees_with_float32_and_has_gradients() -> None:
    network, x = awake(build((3, 9, 14))), torch.randn(3, 3, 9, 14)
    for cond in (None, LABELS, torch.eye(3)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = network(x, TIMES, cond, torch.tensor([True, False, True]) if cond is not None else None)
        out.float().square().mean().backward()
        with torch.no_grad():
            exact = network(x, TIMES, cond, torch.tensor([True, False, True]) if cond is not None else None)
        assert (out - exact).norm() < 0.05 * exact.norm()  # bfloat16 has 8 bits: 0.4 % an operation
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_dropout_acts_in_training_only() -> None:
    network, x = awake(build((1, 8, 8), dropout=0.5)), torch.randn(3, 1, 8, 8)
    assert not torch.equal(network(x, TIMES), network(x, TIMES))
    network.eval()
    assert torch.equal(network(x, TIMES), network(x, TIMES))


@pytest.mark.parametrize(
    ("build", "got", "expected"),
    [
        (lambda: DiT(1, dims=3), "dims=3", "1 (series) or 2 (images)"),
        (lambda: DiT(0), "channels=0", "at least 1"),
        (lambda: DiT(1, depth=0), "depth=0", "at least 1"),
        (lambda: DiT(1, patch=0), "patch=0", "at least 1"),
        (lambda: DiT(1, width=48), "width=48", "multiple of 32"),
        (lambda: DiT(1, width=0), "width=0", "multiple of 32"),
        (lambda: DiT(1, dropout=1.0), "1.0", "[0, 1)"),
        (lambda: DiT(1, classes=-1), "got -1", "number of classes"),
        (lambda: DiT(1, **SMALL)(torch.zeros(3, 2, 8, 8), TIMES), "(3, 2, 8, 8)", "(b, 1, height, width)"),
        (lambda: DiT(2, dims=1, **SMALL)(torch.zeros(3, 2, 8, 8), TIMES), "(3, 2, 8, 8)", "(b, 2, length)"),
        (lambda: DiT(1, width=32, depth=1)(torch.zeros(3, 1, 8, 8), TIMES, LABELS), "a condition", "classes=k"),
    ],
)
def test_bad_input_is_told_what_was_expected(build, got: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build()
    assert got in str(caught.value)
    assert expected in str(caught.value)
