"""Classifier-free guidance: a column a class, a row a scale.

make demo && python examples/guidance.py runs/demo guidance.png

Scale 1 is the plain conditional model. More guidance makes digits clearer and more alike: what a classifier gains, the variety
of the samples loses.
"""

import sys

import torch

import ornstein as orn
from ornstein.data import to_uint8_images
from ornstein.plots.grids import image_grid

SCALES = (1.0, 1.5, 2.0, 4.0)


def main(run: str = "runs/demo", out: str = "guidance.png") -> None:
    model = orn.load(run)
    classes = torch.arange(len(model.classes))
    rows = []
    for scale in SCALES:
        guided = orn.ClassifierFreeGuidance(model, scale)
        for seed in (0, 1):
            drawn = orn.sample(guided, steps=25, cond=classes, seed=seed)
            rows.append(drawn.x)
        print(f"scale {scale:g}: {drawn.calls} network evaluations a sample")
    # Only at noise levels where classes are decided: as clear, and more varied
    limited = orn.ClassifierFreeGuidance(model, SCALES[-1], interval=(0.2, 2.0))
    drawn = orn.sample(limited, steps=25, cond=classes, seed=0)
    rows.append(drawn.x)
    print(f"scale {SCALES[-1]:g} for 0.2 <= sigma <= 2: {drawn.calls}")
    image_grid(to_uint8_images(model.scaling, torch.cat(rows)), out, columns=len(classes))


if __name__ == "__main__":
    main(*sys.argv[1:])
