"""A real vector as condition: an angle, as (cos, sin), says where points lie and how they spread.

python examples/conditional_vector.py angles.png

Given the angle a, a point is N(2 u, .5^2 u u' + .1^2 v v'), u = (cos a, sin a) and v across it: so what samples should be is
known. On the command line: `ornstein train points.npz --condition arrays`, the file holding `x` (n, 2) and `cond` (n, 2), then
`ornstein sample RUN --cond asked.npz`.
"""

import math
import sys

import torch

import ornstein as orn
from ornstein.plots.curves import require_matplotlib

ASKED = (0.0, 0.9, 2.0, 3.5, 5.0)
ALONG, ACROSS = 0.5, 0.1
STEPS = 2000


def directions(angles: torch.Tensor) -> torch.Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def main(out: str = "angles.png") -> None:
    torch.manual_seed(0)
    u = directions(2 * math.pi * torch.rand(20_000))
    v = torch.stack([-u[:, 1], u[:, 0]], dim=1)
    x = (2 + ALONG * torch.randn(len(u), 1)) * u + ACROSS * torch.randn(len(u), 1) * v

    process = orn.Gaussian(orn.CosineVP())
    denoiser = orn.Denoiser(orn.MLP(2, width=128, depth=3, classes=2), process, "v", sigma_data=float(x.std()))
    for step in orn.train(denoiser, x, cond=u, steps=STEPS, batch_size=512, seed=0):
        if step.count % 500 == 0:
            print(f"step {step.count}: loss {step.loss:.4f}")

    require_matplotlib()
    from matplotlib import pyplot

    for angle in ASKED:
        cond = directions(torch.full((1000,), angle))
        drawn = orn.sample(denoiser, steps=20, cond=cond, seed=1).x
        along = drawn @ cond[0]
        across = drawn @ torch.tensor([-cond[0, 1], cond[0, 0]])
        figures = f"{along.mean():.3f} +- {along.std():.3f} along, {across.mean():.3f} +- {across.std():.3f} across"
        print(f"angle {angle:g}: {figures}; expected 2 +- {ALONG} and 0 +- {ACROSS}")
        pyplot.scatter(*drawn.T, s=2, label=f"{angle:g}")
    pyplot.gca().set_aspect("equal")
    pyplot.legend(title="asked angle")
    pyplot.savefig(out, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
