"""Image to image: samples that begin from a noised image (SDEdit), and the way from one image to another through latents.

make demo && python examples/editing.py runs/demo editing.png

Rows: the image; samples that begin from it at t = 0.2, 0.4, 0.6; the way to another image along the probability-flow ODE.
"""

import sys

import torch

import ornstein as orn
from ornstein.data import load_dataset, to_uint8_images
from ornstein.plots.grids import image_grid

COLUMNS = 10


def main(run: str = "runs/demo", out: str = "editing.png") -> None:
    model = orn.load(run)
    held_out = load_dataset(model.config["options"]["data"]).test
    first, second = held_out[:1], held_out[1:2]  # raw images: a loaded model takes and gives them
    rows = [first.expand(COLUMNS, *first.shape[1:])]
    for strength in (0.2, 0.4, 0.6):
        drawn = orn.sdedit(model, first, strength, n=COLUMNS, calls=25)
        sigma = model.process.level(strength).sigma
        print(f"strength {strength}: from sigma = {float(sigma):.2f}, {drawn.calls} calls")
        rows.append(drawn.x)
    rows.append(orn.interpolate(model, first, second, n=COLUMNS)[0])
    image_grid(to_uint8_images(model.scaling, torch.cat(rows)), out, columns=COLUMNS)


if __name__ == "__main__":
    main(*sys.argv[1:])
