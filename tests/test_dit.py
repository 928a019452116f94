"""DiT: a block against numpy, adaLN-zero, positions. What holds for every network is in test_networks.py."""

import numpy as np
import pytest
import torch
from helpers import awake
from scipy.special import softmax

from ornstein.networks import DiT
from ornstein.networks.dit import DiTBlock, positions

SMALL = {"width": 64, "depth": 2, "classes": 3}
TIMES = torch.tensor([0.3, 700.0, -1.2])
LABELS = torch.tensor([0, 2, 1])


def build(shape: tuple[int, ...], **changes) -> DiT:
    torch.manual_seed(0)
    return DiT(shape[0], dims=len(shape) - 1, **{**SMALL, **changes})


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
