"""What ILVR and inpainting cost over the plain sampler: with a network, and without one.

python benchmarks/constraints.py [--steps 25] [--rounds 15]

"network" is the U-Net of the MNIST preset with fresh weights, 64 images of 28 x 28; without it the denoiser returns a tensor made
beforehand, on states (64, 3, 32, 32). Rounds of the samplers alternate; printed are least times a step and their ratio to the
plain sampler's.
"""

import argparse
import time

import torch

import ornstein as orn
from ornstein.noise import Noise

PROCESS = orn.Gaussian(orn.EDM())


class Fixed:
    """A denoiser without a network."""

    def __init__(self, value: torch.Tensor) -> None:
        self.process, self.value = PROCESS, value

    def __call__(self, x_t, t, cond=None, keep=None):
        return PROCESS.estimate(x_t, t, x0=self.value)


def samplers(inner: orn.Ancestral, y: torch.Tensor) -> dict:
    """The plain sampler and its constraints."""
    missing = torch.zeros(y.shape[1:], dtype=torch.bool)
    missing[..., y.shape[-1] // 2 :] = True
    return {
        "plain": inner,
        "ILVR, block 4": orn.ILVR(inner, y, 4),
        "ILVR, Fourier 4": orn.ILVR(inner, y, orn.Fourier(4)),
        "ILVR, bicubic 4": orn.ILVR(inner, y, orn.Bicubic(4)),
        "inpainting": orn.Inpainting(inner, y, missing),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    network = orn.UNet(1, widths=(64, 96, 128), blocks=1, attention=1, patch=2).eval()
    cases = {
        "network": (orn.Denoiser(network, PROCESS, "edm", sigma_data=0.6), torch.randn(64, 1, 28, 28)),
        "without": (Fixed(torch.randn(64, 3, 32, 32)), torch.randn(64, 3, 32, 32)),
    }
    print(
        f"{torch.get_num_threads()} threads, {given.steps} steps, least of {given.rounds} rounds, microseconds a step"
    )
    for name, (denoiser, x) in cases.items():
        grid = orn.grids.karras(PROCESS, given.steps)
        for inner in (orn.Ancestral(), orn.Multistep(3)):
            loops = samplers(inner, torch.randn(1, *x.shape[1:]))
            least = dict.fromkeys(loops, float("inf"))
            for _ in range(given.rounds if name == "without" else max(3, given.rounds // 2)):
                for key, sampler in loops.items():
                    began = time.perf_counter()
                    for _ in orn.sample_steps(denoiser, sampler, x, grid, Noise(0, len(x))):
                        pass
                    least[key] = min(least[key], time.perf_counter() - began)
            for key, seconds in least.items():
                ratio = seconds / least["plain"]
                print(
                    f"{name:9s}{type(inner).__name__:11s}{key:17s}{seconds / given.steps * 1e6:10.0f}{ratio:7.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
