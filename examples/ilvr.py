"""ILVR: samples with the low frequencies of a reference image (paper 001, algorithm 3).

make demo && python examples/ilvr.py runs/demo ilvr.png

Rows: the reference; samples at factor 2 and 4, by 50 steps of DDPM; factor 4 by 8 steps of DDIM, which come out blurred, for
the high frequencies are then those of a mean; factor 4, let go at t = 0.3.
"""

import sys

import torch

import ornstein as orn
from ornstein.data import load_dataset, to_uint8_images
from ornstein.plots.grids import image_grid

COLUMNS = 10


def main(run: str = "runs/demo", out: str = "ilvr.png") -> None:
    model = orn.load(run)
    held_out = load_dataset(model.config["options"]["data"]).test
    y = model.scaling.encode(held_out[3:4])
    ddpm, ddim = orn.Ancestral(), orn.Ancestral(eta=0.0)
    rows = [y.expand(COLUMNS, *y.shape[1:])]
    for name, sampler, steps in (
        ("factor 2", orn.ILVR(ddpm, y, 2), 50),
        ("factor 4", orn.ILVR(ddpm, y, 4), 50),
        ("factor 4, 8 steps of DDIM", orn.ILVR(ddim, y, 4), 8),
        ("factor 4, let go at t = 0.3", orn.ILVR(ddpm, y, 4, stop=0.3), 50),
    ):
        x = orn.sample(model.denoiser, sampler, n=COLUMNS, steps=steps).x
        kept = (sampler.filter(x) - sampler.filter(y)).abs().max()
        print(
            f"{name}: low frequencies off by {kept:.1e}, distance to the reference {(x - y).square().mean().sqrt():.2f}"
        )
        rows.append(x)
    image_grid(to_uint8_images(model.scaling, model.scaling.decode(torch.cat(rows))), out, columns=COLUMNS)


if __name__ == "__main__":
    main(*sys.argv[1:])
