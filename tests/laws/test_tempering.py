"""Sharper estimates of categories against their closed forms."""

import math

import torch
from helpers import check_refusal

import ornstein as orn
from ornstein import exact
from ornstein.processes import Categorical

K, FLOW = 3, orn.RectifiedFlow()


def test_tempering_is_its_formula():
    process = Categorical(FLOW, orn.Absorbing(K))
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    denoiser, masked = exact.Table(process, law), torch.full((1, 1), K)
    for temperature in (0.5, 2.0):
        found = orn.Tempered(denoiser, temperature)(masked, 0.5).probs[0, 0]
        assert (found - law ** (1 / temperature) / (law ** (1 / temperature)).sum()).abs().max() < 1e-12
    for top_p, kept in ((0.5, [1, 0, 0]), (0.599, [1, 0, 0]), (0.61, [2 / 3, 1 / 3, 0]), (0.95, [0.6, 0.3, 0.1])):
        found = orn.Tempered(denoiser, top_p=top_p)(masked, 0.5).probs[0, 0]
        assert (found - torch.tensor(kept, dtype=torch.float64)).abs().max() < 1e-12
    x = orn.sample(orn.Tempered(denoiser, top_p=0.5), n=50, steps=4).x
    assert (x == 0).all()
    assert torch.equal(
        orn.Tempered(denoiser)(torch.tensor([[1]]), 0.5).probs[0, 0], torch.eye(K, dtype=torch.float64)[1]
    )
    for wrong in (0.0, math.inf, math.nan):
        check_refusal(lambda t=wrong: orn.Tempered(denoiser, t), f"temperature={wrong}", "a finite temperature > 0")
    check_refusal(lambda: orn.Tempered(denoiser, top_p=1.5), "top_p=1.5", "at most 1")
    numbers = exact.Normal(orn.Gaussian(orn.CosineVP()), torch.zeros(2), 1.0)
    check_refusal(lambda: orn.Tempered(numbers), "Gaussian", "expected one of categories")
