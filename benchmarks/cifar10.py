"""diffusers' training script on small colour images for a fixed time, and samples of it, to stand beside `--preset cifar10`.

python benchmarks/train_classifier.py cifar10-jpeg-train.zip --out cifar.safetensors
ornstein train cifar10-jpeg-train.zip --preset cifar10 --budget 20m --out runs/cifar
ornstein evaluate runs/cifar --features cifar.safetensors -n 2000
python benchmarks/cifar10.py cifar10-jpeg-train.zip --budget 20m --out diffusers.npz
ornstein evaluate runs/cifar --features cifar.safetensors --samples diffusers.npz

The settings are those of examples/unconditional_image_generation/train_unconditional.py: DDPM with 1000 linear betas, noise
prediction, batch 16, AdamW at 1e-4 with betas (.95, .999) and weight decay 1e-6, cosine rate after 500 steps, clipping at 1,
average of the weights with its warm-up; its layout of levels at a quarter of its widths, for the whole (114 million
parameters) makes about one image a second here. Sampled by DDIM with x_0 clipped, as its pipeline does in 1000 calls (without
clipping, DPM-Solver++ made noise of a network trained so briefly).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import mse_loss

from ornstein.config import seconds
from ornstein.data import load_dataset

BATCH, WARMUP = 16, 500


def model(size: int) -> UNet2DModel:
    """The script's model at a quarter of its widths."""
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(32, 32, 64, 64, 128, 128),
        down_block_types=("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
        norm_num_groups=8,  # four channels in each, as at its full widths
    )


def train(images: Tensor, budget: float, total: int | None) -> UNet2DModel:
    """The averaged model after `total` steps, else those of `budget` seconds, on images (n, 3, h, w) in [-1, 1]."""
    network, noise = model(images.shape[-1]), DDPMScheduler(1000)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    began, steps, order, schedule = time.perf_counter(), 0, torch.Generator().manual_seed(0), None
    while (steps < total) if total else (time.perf_counter() - began < budget):
        if steps == 20:  # the script knows its number of steps; here the budget makes it
            length = total or int(20 * budget / (time.perf_counter() - began))
            schedule = get_scheduler(
                "cosine", optimiser, num_warmup_steps=min(WARMUP, length // 4), num_training_steps=length
            )
        clean = images[torch.randint(len(images), (BATCH,), generator=order)]
        eps, t = torch.randn_like(clean), torch.randint(0, 1000, (BATCH,))
        loss = mse_loss(network(noise.add_noise(clean, eps, t), t).sample, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if schedule is not None:
            schedule.step()
        optimiser.zero_grad()
        average.step(network.parameters())
        steps += 1
        if steps % 100 == 0:
            spent = time.perf_counter() - began
            print(
                f"step {steps}, {spent:.0f} s, {steps * BATCH / spent:.1f} images/s, loss {loss.item():.4f}", flush=True
            )
    average.copy_to(network.parameters())
    return network.eval()


@torch.no_grad()
def draw(network: UNet2DModel, n: int, size: int, calls: int) -> np.ndarray:
    """uint8 samples (n, h, w, 3)."""
    network, parts = network.to(memory_format=torch.channels_last), []  # the same numbers, sooner
    for first in range(0, n, 250):
        solver = DDIMScheduler.from_config(DDPMScheduler(1000).config)  # as its pipeline, x_0 is clipped to [-1, 1]
        solver.set_timesteps(calls)
        x = torch.randn(min(250, n - first), 3, size, size)
        for t in solver.timesteps:
            x = solver.step(network(x, t).sample, t, x).prev_sample
        parts.append(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy())
        print(f"{first + len(x)} of {n} samples", flush=True)
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--steps", type=int, help="in place of the time: as many as it would make on a quiet machine")
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--calls", type=int, default=25)
    parser.add_argument("--weights", type=Path, help="a .safetensors file: read where it exists, else written")
    parser.add_argument("--out", type=Path, default=Path("diffusers.npz"))
    given = parser.parse_args()
    torch.manual_seed(0)
    pixels = load_dataset(given.data).train
    images = pixels.movedim(-1, 1).float() / 127.5 - 1
    if given.weights and given.weights.exists():
        network = model(images.shape[-1]).eval()
        network.load_state_dict(load_file(given.weights))
    else:
        network = train(images, seconds(given.budget), given.steps)
        if given.weights:
            save_file(network.state_dict(), given.weights)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters")
    np.savez(given.out, samples=draw(network, given.n, images.shape[-1], given.calls))


if __name__ == "__main__":
    main()
