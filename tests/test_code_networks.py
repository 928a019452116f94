"""Networks on codes of pixels and of table columns: what they read, what they leave, conditions, specs, refusals."""

import math

import pytest
import torch
from helpers import awake, check_refusal
from torch import nn

from ornstein.networks import DiT, Pixels, TabularMLP, UNet
from ornstein.specs import construct

TIME = torch.tensor([3.0, 700.0])
COLUMNS = {"colour": (4, 3), "size": (5, 5)}


def pixels(embed=0, outputs=None, channels=1, dims=2, **more):
    torch.manual_seed(0)
    entering, leaving = channels * ((embed or 6) + 1), channels * (outputs or 5)
    inner = UNet(channels=(entering, leaving), dims=dims, widths=(16,), blocks=1, attention=0, **more)
    return Pixels(inner, states=6, categories=5, outputs=outputs, embed=embed)


def row(b=2):
    return {"numbers": torch.randn(b, 3), "colour": torch.tensor([3, 0])[:b], "size": torch.tensor([1, 4])[:b]}


def tabular(**more):
    torch.manual_seed(0)
    return TabularMLP(**{"numbers": 3, "categories": COLUMNS, "width": 32, "depth": 2, **more})


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (pixels, (2, 1, 5, 7)),
        (lambda: pixels(embed=4), (2, 1, 5, 7)),
        (lambda: pixels(outputs=2), (2, 1, 5, 7)),
        (lambda: pixels(channels=3), (2, 3, 5, 7)),
        (lambda: pixels(dims=1, channels=2), (2, 2, 9)),
    ],
)
def test_images_of_codes_become_logits_of_each_pixel(made, shape):
    network = made()
    x = torch.randint(6, shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x, TIME), torch.zeros(*shape, network.outputs))  # before training
    network = awake(network)
    out = network(x, TIME)
    assert out.shape == (*shape, network.outputs)
    assert torch.allclose(network(x[:1], TIME[:1]), out[:1], atol=1e-5)  # rows do not mix
    middle, mask = torch.full_like(x, 2), torch.full_like(x, 5)  # 0 as numbers: the vectors tell them apart
    assert not torch.allclose(network(middle, TIME), network(mask, TIME), atol=1e-3)
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    again = construct(network.spec, nn.Module)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x, TIME), out)


def test_what_the_network_within_is_shown():
    seen = []

    class Spy(nn.Module):
        channels, classes, images, spec = 7, 0, 0, "Spy()"

        def forward(self, x, time):
            seen.append(x)
            return x[:, :5]

    x = torch.tensor([[[[0, 4, 5]]]])  # 5 is a mask
    out = Pixels(Spy(), states=6, categories=5)(x, TIME[:1])
    assert torch.equal(seen[0][0, 0, 0], torch.tensor([-1.0, 1.0, 0.0]))
    assert torch.allclose(seen[0][0, 1:, 0], torch.eye(6)[:, x[0, 0, 0]] * math.sqrt(6))
    assert torch.equal(out[0, 0, 0], seen[0][0, :5, 0].T)  # channels of a pixel become its last axis
    many = Pixels(type("Two", (Spy,), {"channels": 14})(), states=6, categories=5)
    pair = torch.tensor([[[[1]], [[2]]]])
    many.network.forward = lambda x, time: torch.arange(10.0).reshape(1, 10, 1, 1)
    assert torch.equal(many(pair, TIME[:1])[0, :, 0, 0], torch.arange(10.0).reshape(2, 5))  # channel by channel


def test_conditions_reach_the_network_within():
    network = awake(pixels(classes=3))
    x, labels = torch.zeros(2, 1, 4, 4, dtype=torch.long), torch.tensor([0, 2])
    assert network.classes == 3
    assert not torch.equal(network(x, TIME, labels), network(x, TIME))
    dropped = network(x, TIME, labels, torch.tensor([False, False]))
    assert torch.allclose(dropped, network(x, TIME), atol=1e-6)
    dit = Pixels(DiT(channels=(7, 5), width=32, depth=1), states=6, categories=5)
    assert dit(torch.zeros(2, 1, 4, 4, dtype=torch.long), TIME).shape == (2, 1, 4, 4, 5)


def test_rows_of_a_table_become_numbers_and_logits():
    network, x = tabular(), row()
    assert all(not out.any() for out in network(x, TIME).values())
    network = awake(network)
    out = network(x, TIME)
    assert {name: tuple(part.shape) for name, part in out.items()} == {
        "numbers": (2, 3),
        "colour": (2, 3),
        "size": (2, 5),
    }
    for name in x:  # each part of the state acts on each of the output
        other = {**x, name: x[name] + 0.5 if name == "numbers" else (x[name] + 1) % COLUMNS[name][0]}
        changed = network(other, TIME)
        assert not any(torch.equal(changed[key], out[key]) for key in out)
    one = network({name: part[:1] for name, part in x.items()}, TIME[:1])
    assert all(torch.allclose(one[key], out[key][:1], atol=1e-6) for key in out)
    later = network(x, TIME + 100)
    assert not torch.allclose(later["numbers"], out["numbers"])
    again = construct(network.spec, nn.Module)
    again.load_state_dict(network.state_dict())
    assert all(torch.equal(again(x, TIME)[key], out[key]) for key in out)
    numbers, names = tabular(categories={}), tabular(numbers=0)
    assert set(numbers({"numbers": x["numbers"]}, TIME)) == {"numbers"}
    assert set(names({name: x[name] for name in COLUMNS}, TIME)) == set(COLUMNS)


def test_what_the_perceptron_of_a_table_reads():
    network, x, seen = tabular(), row(), []
    network.entry.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    network(x, TIME)
    colours, sizes = torch.eye(4)[x["colour"]] * 2, torch.eye(5)[x["size"]] * math.sqrt(5)  # 3 is the mask of a colour
    assert torch.allclose(seen[0], torch.cat((x["numbers"], colours, sizes), 1))
    labelled, labels = awake(tabular(classes=2)), torch.tensor([0, 1])
    given, null = labelled(x, TIME, labels)["size"], labelled(x, TIME)["size"]
    half = labelled(x, TIME, labels, torch.tensor([True, False]))["size"]
    assert not torch.allclose(given, null, atol=1e-3)
    assert torch.allclose(half, torch.stack((given[0], null[1])), atol=1e-6)
    sum(part.square().sum() for part in labelled(x, TIME, labels, torch.tensor([True, False])).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in labelled.parameters())


def test_what_does_not_fit_is_refused():
    inner = UNet(channels=(8, 5), widths=(16,), blocks=1, attention=0)
    check_refusal(lambda: Pixels(inner, states=6, categories=5), "of 8 channels", "expected c times 7")
    check_refusal(lambda: Pixels(inner, states=4, categories=5), "states=4", "at least 2 categories")
    network = pixels()
    check_refusal(lambda: network(torch.zeros(2, 1, 4, 4), TIME), "torch.float32", "expected int64 (b, 1, *space)")
    check_refusal(lambda: network(torch.zeros(2, 3, 4, 4, dtype=torch.long), TIME), "(2, 3, 4, 4)", "(b, 1, *space)")
    check_refusal(lambda: tabular(categories={"numbers": (3, 2)}), "columns ['numbers']", "none of which")
    check_refusal(lambda: tabular(numbers=0, categories={}), "numbers=0", "expected some numbers")
    check_refusal(lambda: tabular(categories={"a": (1, 2)}), "(1, 2)", "2 <= categories <= states")
    check_refusal(
        lambda: tabular()({"numbers": torch.zeros(2, 3)}, TIME),
        "a state of ['numbers']",
        "['colour', 'numbers', 'size']",
    )
    check_refusal(lambda: tabular()({**row(), "numbers": torch.zeros(2, 4)}, TIME), "(2, 4)", "expected (b, 3)")
    check_refusal(lambda: tabular()({**row(), "size": torch.zeros(2)}, TIME), "torch.float32", "expected int64 (b,)")
