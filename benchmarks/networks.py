"""Training images a second of our U-Net beside diffusers' UNet2DModel, at equal parameters and equal multiply-adds.

A step is forward, squared error, backward and AdamW on 3 x 32 x 32 images. Rows take turns, round after round, and the
figure of a row is its median. Both counts are taken here, on the networks that are timed, and must agree within 5 %.

Pairs (--pair):
  script   the model of diffusers' examples/unconditional_image_generation/train_unconditional.py (six levels, two layers
           each, attention at the fifth on both ways) with a quarter of its widths (128, 128, 256, 256, 512, 512); that
           script runs it as built (contiguous memory), in float32 unless told otherwise, by AdamW with betas (0.95,
           0.999) and weight decay 1e-6
  shallow  three levels of 64, 128, 128 channels, attention at the coarsest, against ours without patches

bfloat16 rows are run where the hardware multiplies it (elsewhere it is emulated, ten times slower, and `--precision
auto` trains in float32), or with --bf16.

python benchmarks/networks.py [--pair script] [--batch 64] [--rounds 7] [--threads 2] [--device cpu] [--bf16] [--memory]
"""

import argparse
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ornstein.devices import autocast, resolve_precision
from ornstein.networks import UNet

PAIRS = {
    "script": (
        {"block_out_channels": (32, 32, 64, 64, 128, 128), "attention": 4},
        {"widths": (64, 224, 288), "blocks": 1, "attention": 1, "patch": 2},
    ),
    "shallow": (
        {"block_out_channels": (64, 128, 128), "attention": 2},
        {"widths": (96, 160, 160), "blocks": 2, "attention": 1, "patch": 1},
    ),
}
ROWS = {  # name: (library, channels-last, precision)
    "diffusers, its script (contiguous, float32)": ("diffusers", False, "float32"),
    "diffusers, channels-last, float32": ("diffusers", True, "float32"),
    "diffusers, channels-last, bfloat16": ("diffusers", True, "bfloat16"),
    "ornstein, float32": ("ornstein", False, "float32"),
    "ornstein, bfloat16": ("ornstein", False, "bfloat16"),
}
ASKED = (  # ours, theirs, the ratio asked
    ("auto", "diffusers, its script (contiguous, float32)", 1.8),
    ("float32", "diffusers, its script (contiguous, float32)", 1.2),
    ("float32", "diffusers, channels-last, float32", 1.2),
    ("auto", "diffusers, channels-last, bfloat16", 1.3),
)


class Theirs(nn.Module):
    """UNet2DModel, called as its training script calls it."""

    def __init__(self, block_out_channels: tuple[int, ...], attention: int) -> None:
        super().__init__()
        kinds = ["Attn" if level == attention else "" for level in range(len(block_out_channels))]
        self.model = UNet2DModel(
            sample_size=32,
            in_channels=3,
            out_channels=3,
            layers_per_block=2,
            block_out_channels=block_out_channels,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.model(x, time).sample


def network(library: str, pair: str) -> nn.Module:
    torch.manual_seed(0)
    theirs, ours = PAIRS[pair]
    return Theirs(**theirs) if library == "diffusers" else UNet(3, **ours)


def counts(net: nn.Module) -> tuple[float, float]:
    """Millions of parameters, and of multiply-adds for one image. Attention is taken apart, for the counter to see it."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        net(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    return sum(p.numel() for p in net.parameters()) / 1e6, counter.get_total_flops() / 2e6


def training_step(row: str, pair: str, batch: int, device: torch.device) -> Callable[[], None]:
    """A function that makes one training step and waits for its end."""
    library, channels_last, precision = ROWS[row]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = network(library, pair).to(device)
    net = net.to(memory_format=layout) if library == "diffusers" else net
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(batch, 3, 32, 32, generator=generator).to(device, memory_format=layout) for _ in range(2))
    t = torch.randint(1000, (batch,), generator=generator).to(device)
    if library == "diffusers":
        optimiser = torch.optim.AdamW(net.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    else:
        optimiser = torch.optim.AdamW(net.parameters(), 1e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def step() -> None:
        with autocast(precision, device):
            out = net(x, t)
        loss = (out.float() - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def peak_memory(row: str, pair: str, batch: int, name: str, threads: int) -> float:
    """MiB that building the network and two steps add to a process at its highest (Linux), or that they take of a GPU."""
    torch.set_num_threads(threads)
    device, before = torch.device(name), high_water()
    step = training_step(row, pair, batch, device)
    step(), step()
    return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else high_water() - before


def high_water() -> float:
    """MiB this process has held at most. Not getrusage, whose figure a child inherits from its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def show_counts(pair: str) -> None:
    print(f"pair '{pair}': diffusers {PAIRS[pair][0]}, ornstein {PAIRS[pair][1]}")
    theirs, ours = counts(network("diffusers", pair)), counts(network("ornstein", pair))
    for what, their, our in zip(("million parameters", "million multiply-adds an image"), theirs, ours, strict=True):
        print(f"{what:32} diffusers {their:8.2f}   ornstein {our:8.2f}   ratio {our / their:.3f}")
        assert 0.95 <= our / their <= 1.05, f"{what} differ by more than 5 %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=PAIRS, default="script")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each row, after two that are not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="run the bfloat16 rows whatever the hardware")
    parser.add_argument("--memory", action="store_true", help="peak memory of a step too, each row in its own process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    auto = resolve_precision("auto", device)
    print(
        f"{device}, {args.threads} threads, batch {args.batch}, {args.rounds} rounds; --precision auto is {auto} here"
    )
    show_counts(args.pair)
    rows = [row for row, (_, _, precision) in ROWS.items() if args.bf16 or precision in ("float32", auto)]
    steps = {row: training_step(row, args.pair, args.batch, device) for row in rows}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    gc.collect()
    for turn in range(args.rounds + 2):
        for row, step in steps.items():
            began = time.perf_counter()
            step()
            if turn >= 2:
                seconds[row].append(time.perf_counter() - began)
    speed = {row: args.batch / statistics.median(values) for row, values in seconds.items()}
    for row, values in seconds.items():
        spread = f"{args.batch / max(values):.1f} to {args.batch / min(values):.1f}"
        print(f"{row:46} {speed[row]:8.1f} images/s  ({spread})")
    for precision, theirs, ratio in ASKED:
        ours = f"ornstein, {auto if precision == 'auto' else precision}"
        got = f"{speed[ours] / speed[theirs]:.2f}x" if theirs in speed else "not run"
        print(f"{ours} / {theirs}: {got} (asked: {ratio}x)")
    if args.memory:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for row in rows:
                peak = pool.apply(peak_memory, (row, args.pair, args.batch, args.device, args.threads))
                print(f"{row:46} {peak:8.0f} MiB at the peak of a step")


if __name__ == "__main__":
    main()
