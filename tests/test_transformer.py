"""Transformer on codes: a block and a network against numpy, rotary places, contexts, conditions, refusals, learning."""

import math

import numpy as np
import pytest
import torch
from helpers import awake, check_refusal
from scipy.special import softmax
from torch import nn
from torch.nn import functional

from ornstein.networks.transformer import TokenBlock, Transformer, mixed, turn
from ornstein.specs import construct

TIMES = torch.tensor([0.3, 700.0, -1.2])
LABELS = torch.tensor([0, 2, 1])
MASK = 11


def build(**changes) -> Transformer:
    torch.manual_seed(0)
    return Transformer(**{"states": 12, "categories": 11, "width": 64, "depth": 2, "classes": 3, **changes})


def codes(*shape: int, states: int = 12) -> torch.Tensor:
    return torch.randint(states, shape, generator=torch.Generator().manual_seed(1))


def reference_block(block: TokenBlock, x: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """One block on one example (n, width) in float64 numpy; turns as matrices of rotation, a loop for each place."""
    weights = {name: value.detach().double().numpy() for name, value in block.state_dict().items()}
    n, width = x.shape
    size = width // block.heads

    def linear(name: str, h: np.ndarray) -> np.ndarray:
        if f"{name}.near" in weights:
            near = weights[f"{name}.near"]
            reach, read = len(near) // 2, h.copy()
            for i in range(n):
                for j in range(max(-reach, -i), min(reach, n - 1 - i) + 1):
                    read[i] += near[j + reach] * h[i + j]
            h = read
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(h: np.ndarray) -> np.ndarray:
        return (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)

    def rotation(place: int) -> np.ndarray:
        matrix = np.zeros((size, size))
        for j in range(size // 2):
            angle = place * 10_000.0 ** (-2 * j / size)
            pair = slice(2 * j, 2 * j + 2)
            matrix[pair, pair] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        return matrix

    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = linear("modulation", embedding).reshape(6, width)
    h = norm(x) * (1 + scale_1) + shift_1
    q, k, v = linear("query_key_value", h).reshape(n, 3, block.heads, size).transpose(1, 2, 0, 3)
    attended = np.empty((n, width))
    for head in range(block.heads):
        scores = np.array([[q[head, i] @ rotation(j - i) @ k[head, j] for j in range(n)] for i in range(n)])
        attended[:, head * size : (head + 1) * size] = softmax(scores / np.sqrt(size), axis=1) @ v[head]
    h = x + gate_1 * linear("project", attended)
    u = linear("widen", norm(h) * (1 + scale_2) + shift_2)
    gelu = 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
    return h + gate_2 * linear("narrow", gelu)


@pytest.mark.parametrize(("width", "mixing"), [(128, 0), (128, 5), (96, 3)])
def test_a_block_is_its_formula(width: int, mixing: int) -> None:
    torch.manual_seed(0)
    block = awake(TokenBlock(width, 0.0, mixing))
    x, embedding = torch.randn(2, 9, width), torch.randn(2, width)
    expected = np.stack(
        [reference_block(block, *pair) for pair in zip(x.double().numpy(), embedding.double().numpy(), strict=True)]
    )
    np.testing.assert_allclose(block(x, embedding).detach().numpy(), expected, rtol=1e-4, atol=2e-5)
    assert np.abs(expected - x.numpy()).max() > 1


@pytest.mark.parametrize("timed", [True, False])
def test_a_network_is_its_blocks_between_a_table_and_logits(timed: bool) -> None:
    network, x = awake(build(timed=timed)), codes(3, 7)
    weights = {name: value.detach().double().numpy() for name, value in network.state_dict().items()}
    told = TIMES if timed else torch.zeros(3)
    embeddings = network.embedding(told, LABELS).detach().double().numpy()
    out = network(x, TIMES, LABELS).detach().numpy()
    for row in range(3):
        h = weights["entry.weight"][x[row].numpy()]
        for block in network.blocks:
            h = reference_block(block, h, embeddings[row])
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        modulation = weights["modulation.weight"] @ embeddings[row] + weights["modulation.bias"]
        h = h * (1 + modulation[64:]) + modulation[:64]
        expected = h @ weights["exit.weight"].T + weights["exit.bias"]
        np.testing.assert_allclose(out[row], expected, rtol=1e-4, atol=1e-4)


def test_products_of_turned_vectors_depend_on_the_difference_of_places_alone() -> None:
    q, k = torch.randn(2, 32, generator=torch.Generator().manual_seed(0)).double()
    rates = torch.rand(16, generator=torch.Generator().manual_seed(1))
    turned_q, turned_k = (turn(x.expand(1, 40, 1, 32), rates)[0, :, 0].double() for x in (q, k))
    products = turned_q @ turned_k.T
    torch.testing.assert_close(products[:-7, :-7], products[7:, 7:], rtol=0, atol=1e-4)
    torch.testing.assert_close(products.diagonal(), (q @ k).expand(40), rtol=0, atol=1e-4)
    assert products[0].std() > 0.5
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(40), rtol=1e-5, atol=0)


def test_a_network_sees_places_by_their_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits where the first place is called 100; without turns, the logits of a set of tokens."""
    network, x = awake(build(mixing=0)), codes(3, 20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain = network(x, TIMES)
        gap = network(x[:, order], TIMES) - plain[:, order]
        monkeypatch.setattr(
            "ornstein.networks.transformer.turn",
            lambda h, rates: turn(torch.cat((h[:, :1].expand(-1, 100, -1, -1, -1), h), dim=1), rates)[:, 100:],
        )
        torch.testing.assert_close(network(x, TIMES), plain, rtol=1e-3, atol=1e-4)
        monkeypatch.setattr("ornstein.networks.transformer.turn", lambda h, rates: h)
        without = network(x[:, order], TIMES) - network(x, TIMES)[:, order]
    assert gap.abs().max() > 0.05
    assert without.abs().max() < 1e-4


@pytest.mark.parametrize("mixing", [0, 5])
def test_every_place_sees_both_sides_of_any_length(mixing: int) -> None:
    network = awake(build(mixing=mixing))
    for length in (1, 2, 3, 17, 40):
        x = codes(3, length)
        with torch.no_grad():
            out = network(x, TIMES)
            assert out.shape == (3, length, 11)
            assert out.dtype == torch.float32
            for place in {0, length // 2, length - 1}:
                other = x.clone()
                other[:, place] = (other[:, place] + 1) % 12
                moved = (network(other, TIMES) - out).abs().amax(dim=2)
                assert (moved > 1e-6).all(), (length, place)


def test_mixing_reaches_its_neighbours_alone() -> None:
    weights = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    h = torch.zeros(1, 20, 64)
    h[0, 10] = 1
    out = mixed(h, weights)[0]
    assert torch.equal(out[8:13], weights.flip(0)), "place 10 is the right neighbour of 8, the left one of 12"
    assert not out[:8].any()
    assert not out[13:].any()


def test_rows_of_a_batch_do_not_meet() -> None:
    network, x = awake(build()), codes(3, 10)
    with torch.no_grad():
        together = network(x, TIMES, LABELS)
        alone = torch.cat([network(x[i : i + 1], TIMES[i : i + 1], LABELS[i : i + 1]) for i in range(3)])
        disturbed = network(torch.cat((x[:2], 11 - x[2:])), TIMES, LABELS)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[:2], disturbed[:2], rtol=1e-4, atol=1e-5)
    assert (together[2] - disturbed[2]).abs().max() > 1e-2


def test_time_and_class_act_example_by_example() -> None:
    network, x = awake(build()), codes(1, 10).expand(3, 10)
    with torch.no_grad():
        null, full = network(x, TIMES), network(x, TIMES, LABELS)
        some = network(x, TIMES, LABELS, torch.tensor([False, True, False]))
        parts = network(x, TIMES, {"vector": functional.one_hot(LABELS, 3).float()})
        untold = awake(build(timed=False))(x, TIMES)
    torch.testing.assert_close(some, torch.stack((null[0], full[1], null[2])), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts, full, rtol=1e-4, atol=1e-5)
    assert ((full - null).flatten(1).abs().amax(dim=1) > 1e-3).all()
    assert (null[0] - null[1]).abs().max() > 1e-3
    torch.testing.assert_close(untold[0], untold[1], rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, {"classes": 0, "mixing": 0, "timed": False, "dropout": 0.1, "width": 96}])
def test_a_network_starts_at_zero_and_rebuilds_from_its_spec(changes: dict) -> None:
    network, x = build(**changes), codes(3, 10)
    assert torch.equal(network(x, TIMES), torch.zeros(3, 10, 11))
    again = construct(network.spec, nn.Module)
    assert again.spec == network.spec
    assert (again.classes, again.images) == (changes.get("classes", 3), 0)
    again.load_state_dict(network.state_dict())
    network, again = awake(network).eval(), awake(again).eval()
    assert torch.equal(again(x, TIMES), network(x, TIMES))


def test_gradient_reaches_every_parameter() -> None:
    network, x = awake(build()), codes(3, 10)
    (network(x, TIMES, LABELS, torch.tensor([True, True, False])) * torch.randn(3, 10, 11)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_bfloat16_agrees_within_its_rounding() -> None:
    network, x = awake(build()), codes(3, 10)
    with torch.no_grad():
        full = network(x, TIMES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            short = network(x, TIMES)
    assert (short.float() - full).abs().max() < 0.05 * full.abs().max()


def test_one_batch_is_learned_by_heart_through_masks() -> None:
    """Half of each sequence is masked and all of it must be told: only the visible half and places can say it."""
    torch.manual_seed(0)
    network, x = build(classes=0), codes(4, 16, states=11)
    hidden = torch.where(torch.rand(4, 16, generator=torch.Generator().manual_seed(2)) < 0.5, MASK, x)
    optimiser = torch.optim.AdamW(network.parameters(), 5e-3)
    losses = []
    for step in range(120):
        optimiser.param_groups[0]["lr"] = 5e-3 * (1 - step / 120)
        loss = functional.cross_entropy(network(hidden, torch.zeros(4)).flatten(0, 1), x.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(11), abs=1e-5)
    assert losses[-1] < 0.03


def test_refusals_say_what_to_do() -> None:
    network = build()
    check_refusal(lambda: build(states=10), "states=10", "one more for a mask")
    check_refusal(lambda: build(states=1, categories=1), "categories=1", "at least 2")
    check_refusal(lambda: build(width=40), "width=40", "multiple of 32")
    check_refusal(lambda: build(depth=0), "depth=0", "at least 1")
    check_refusal(lambda: build(mixing=4), "mixing=4", "odd")
    check_refusal(lambda: build(mixing=-1), "mixing=-1", "odd")
    check_refusal(lambda: build(dropout=1.0), "dropout=1.0", "[0, 1)")
    check_refusal(lambda: network(codes(3, 4, 4), TIMES), "(3, 4, 4)", "(batch, length)")
    check_refusal(lambda: network(torch.rand(3, 4), TIMES), "float32", "int64")
    check_refusal(lambda: build(classes=0)(codes(3, 4), TIMES, LABELS), "a condition", "classes=k")
