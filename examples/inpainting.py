"""Inpainting and super-resolution: linear constraints on the state of a sampler, for any trained model.

make demo && python examples/inpainting.py runs/demo inpainting.png

Rows: a held-out image; what is known of it; samples that agree with that, each step made once; each step made ten times
(RePaint), which joins the halves; the means of blocks of 2 x 2; samples that have these means.
"""

import sys

import torch

import ornstein as orn
from ornstein.data import load_dataset, to_uint8_images
from ornstein.plots.grids import image_grid

COLUMNS, FACTOR = 10, 2


def main(run: str = "runs/demo", out: str = "inpainting.png") -> None:
    model = orn.load(run)
    held_out = load_dataset(model.config["options"]["data"]).test
    y = model.scaling.encode(held_out[:1])
    missing = torch.zeros(y.shape[1:], dtype=torch.bool)
    missing[:, y.shape[2] // 2 :] = True  # the lower half

    black = model.scaling.encode(torch.zeros_like(held_out[:1]))
    known = torch.where(missing, black, y)
    rows = [y, known]
    for resamplings in (1, 10):
        sampler = orn.Inpainting(orn.Ancestral(), known, missing, resamplings=resamplings)
        drawn = orn.sample(model.denoiser, sampler, n=COLUMNS, steps=50)
        rows.append(drawn.x)
        print(f"{resamplings} resamplings: {drawn.calls} calls, known places off by {error(drawn.x, y, missing):g}")

    block = orn.BlockAverage(FACTOR)
    sampler = orn.ILVR.super_resolution(orn.Ancestral(), block.down(y), FACTOR, resamplings=5)
    drawn = orn.sample(model.denoiser, sampler, n=COLUMNS, steps=50)
    rows += [block(y), drawn.x]
    print(f"super-resolution: means of blocks off by {float((block(drawn.x) - block(y)).abs().max()):.1e}")

    rows = [row.expand(COLUMNS, *row.shape[1:]) for row in rows]
    image_grid(to_uint8_images(model.scaling, model.scaling.decode(torch.cat(rows))), out, columns=COLUMNS)


def error(x: torch.Tensor, y: torch.Tensor, missing: torch.Tensor) -> float:
    """The largest difference in the known places."""
    return float((x - y).masked_fill(missing, 0.0).abs().max())


if __name__ == "__main__":
    main(*sys.argv[1:])
