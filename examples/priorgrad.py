"""PriorGrad: noise that has the data's own mean and covariance. Two processes, one network, 400 steps each.

python examples/priorgrad.py priorgrad.png
"""

import sys

import matplotlib.pyplot as plt
import torch

import ornstein as orn

STEPS, N = 400, 2000


def data(n: int) -> torch.Tensor:
    """Six blobs on a ring that is flattened to a thirtieth along a diagonal: correlation 0.998."""
    draw = torch.Generator().manual_seed(0)
    angle = torch.randint(0, 6, (n,), generator=draw) * (torch.pi / 3)
    ring = torch.stack([angle.cos(), angle.sin()], 1) * 1.4 + 0.15 * torch.randn(n, 2, generator=draw)
    along, across = ring[:, 0], ring[:, 1] / 30
    return torch.stack([along - across, along + across], 1)


def trained(base: orn.Normal | None, x: torch.Tensor) -> orn.Denoiser:
    """The same network and the same draws under a process of this base."""
    torch.manual_seed(0)
    network = orn.MLP(shape=(2,), width=64, depth=2)
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.CosineVP(), base), "v", sigma_data=1.0)
    for _ in orn.train(denoiser, x, steps=STEPS, batch_size=256, seed=0):
        pass
    return denoiser


def main(out: str = "priorgrad.png") -> None:
    """Train both, print their likelihoods, and draw the data and what each makes, along and across the diagonal."""
    x = data(20_000)
    panels = {"data": x[:N]}
    for name, base in {"N(0, I)": None, "N(mu, Sigma), PriorGrad": orn.Normal.measure(x, "full")}.items():
        denoiser = trained(base, x)
        nats = orn.log_likelihood(denoiser, x[-200:], batch_size=200).mean
        print(f"noise {name}: log p = {nats:.2f} nats after {STEPS} steps")
        panels[f"noise {name}: {nats:.2f} nats"] = orn.sample(denoiser, n=N, calls=25, seed=1).x
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
    for axis, (name, points) in zip(axes, panels.items(), strict=True):
        axis.scatter(points.sum(1) / 2, points.diff(dim=1) / 2, s=1, alpha=0.4)
        axis.set(title=name, xlim=(-2.5, 2.5), ylim=(-0.12, 0.12), xlabel="along")
    axes[0].set_ylabel("across, 20 times larger")
    figure.tight_layout()
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
