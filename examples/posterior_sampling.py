"""A noisy linear measurement: y = means of blocks of an image + N(0, std^2), inverted by guidance alone (DPS, approximate).

make demo && python examples/posterior_sampling.py runs/demo posterior.png

Rows: the image; what was measured; samples guided by the gradient of log p(y | x_0 = E[x_0 | x_t]); unguided samples. Unlike a
constraint, guidance takes any differentiable log-likelihood, and noise in y.
"""

import sys

import torch

import ornstein as orn
from ornstein.data import load_dataset, to_uint8_images
from ornstein.plots.grids import image_grid

COLUMNS, STD = 10, 0.1


def main(run: str = "runs/demo", out: str = "posterior.png") -> None:
    model = orn.load(run)
    held_out = load_dataset(model.config["options"]["data"]).test
    x0 = model.scaling.encode(held_out[:1])
    block = orn.BlockAverage(2)
    y = block.down(x0) + STD * torch.randn(block.down(x0).shape, generator=torch.Generator().manual_seed(0))

    def log_likelihood(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """log p(y | x_0) but for a constant, in nats."""
        return -0.5 * ((block.down(x) - y) / STD).square().flatten(1).sum(1)

    guided = orn.PosteriorSampling(model.denoiser, log_likelihood)
    many = y.expand(COLUMNS, *y.shape[1:])
    found = orn.sample(guided, orn.Ancestral(), steps=100, cond=many)
    free = orn.sample(model.denoiser, orn.Ancestral(), n=COLUMNS, steps=100)
    for name, x in (("guided", found.x), ("unguided", free.x)):
        rms = (block.down(x) - y).square().mean().sqrt()
        print(f"{name}: r.m.s. distance of its blocks to the measurement {rms:.3f} (noise {STD})")
    rows = [x0, block.up(y, x0.shape), found.x, free.x]
    rows = [row.expand(COLUMNS, *row.shape[1:]) for row in rows]
    image_grid(to_uint8_images(model.scaling, model.scaling.decode(torch.cat(rows))), out, columns=COLUMNS)


if __name__ == "__main__":
    main(*sys.argv[1:])
