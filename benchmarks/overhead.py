"""Overhead of a sampler's step, the network excluded: DPM-Solver++(2M) by four libraries and by hand, in one process.

python benchmarks/overhead.py [--steps 20] [--rounds 40] [--threads 1 2]

The denoiser returns a tensor made beforehand, so what is timed is the step alone: the loop of each library over the same
levels, its grid made before. "by hand" is the formula as one writes it, three elementwise operations with coefficients made
beforehand. "three passes" is its arithmetic alone, a product and two sums in place: no library that makes them one by one is
faster. "through Denoiser" adds the library's own wrapper of a network (which then returns that tensor); the others are asked
without theirs. Rounds of the methods alternate; printed are median and least, in microseconds a step: the least is what a busy
machine disturbs little.

Live tensors are counted by PyTorch's allocator: bytes allocated less bytes freed since the loop began, its start included,
at their peak, divided by the bytes of a state. There the denoiser returns a fresh tensor at every call, as a network does.
"""

import argparse
import math
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import ornstein as orn
from ornstein.noise import Noise
from ornstein.processes.gaussian import Estimate
from solver_peers import Posterior, alpha, azula, diffusers, k_diffusion

SHAPE = (64, 3, 32, 32)
ASKED = {"diffusers": 0.2, "k-diffusion": 0.6, "by hand": 2.0}  # ours at most this times theirs
PROCESS = orn.Gaussian(orn.TableSchedule.linear(1000))
TWO_M = orn.Multistep(2, "x0", exact=False)
RECIPES = [orn.Multistep(k, p, corrector=c) for c in (False, True) for p in ("eps", "x0") for k in range(1, 5 - c)]
Loop = Callable[[], object]


def grid(steps: int) -> Tensor:
    """Times of a Karras grid that ends on noise without landing, so that every step is a full one."""
    return orn.grids.karras(PROCESS, steps + 2)[: steps + 1]


def levels(steps: int) -> list[float]:
    """sigma / alpha at those times."""
    return [math.exp(-PROCESS.level(t).log_snr / 2) for t in grid(steps).tolist()]


class Fixed:
    """A denoiser without a network: it returns `value` as the reading `kind`, or a fresh tensor where that is None."""

    def __init__(self, value: Tensor | None, kind: str = "x0") -> None:
        self.process, self.value, self.kind = PROCESS, value, kind

    def __call__(self, x_t: Tensor, t: float, cond: object = None, keep: object = None) -> Estimate:
        return PROCESS.estimate(x_t, t, **{self.kind: x_t * 0.5 if self.value is None else self.value})


def ours(denoiser: orn.Denoiser | Fixed, x: Tensor, steps: int) -> Loop:
    """This library's loop."""
    times, rng = grid(steps), Noise(0, len(x))

    def loop() -> None:
        for _ in orn.sample_steps(denoiser, TWO_M, x, times, rng):
            pass

    return loop


def by_hand(x0: Tensor, start: Tensor, steps: int) -> Loop:
    """x_s = a x - b (x_0 last + w (x_0 - x_0 last)), with a, b and w made beforehand."""
    sigmas, rows, h_last = levels(steps), [], math.inf
    for t, s in pairwise(sigmas):
        h = math.log(t / s)
        rows.append((alpha(s) * s / (alpha(t) * t), alpha(s) * math.expm1(-h), 1 + h / (2 * h_last)))
        h_last = h

    def loop() -> None:
        x, last = start, x0
        for a, b, w in rows:
            guess = torch.lerp(last, x0, w)
            moved = a * x
            x = torch.add(moved, guess, alpha=-b)
            last = x0

    return loop


def three_passes(x0: Tensor, start: Tensor, steps: int) -> Loop:
    """A product and two sums, whatever their numbers."""

    def loop() -> None:
        x = start
        for _ in range(steps):
            moved = 0.9 * x
            x = moved.add_(x0, alpha=0.2).add_(start, alpha=-0.1)

    return loop


def of_diffusers(x0: Tensor, start: Tensor, steps: int) -> Loop:
    """DPMSolverMultistepScheduler.step, set_timesteps excluded."""
    options = {"prediction_type": "sample", "use_karras_sigmas": True, "beta_start": 1e-4, "beta_end": 0.02}
    scheduler = diffusers.DPMSolverMultistepScheduler(**options)

    def prepare() -> Tensor:
        scheduler.set_timesteps(steps)
        return scheduler.timesteps

    def loop(timesteps: Tensor) -> None:
        x = start
        for t in timesteps:
            x = scheduler.step(x0, t, x).prev_sample

    return Prepared(prepare, loop)


class Prepared:
    """A loop whose state must be set before each run; the setting is not timed."""

    def __init__(self, prepare: Callable[[], Tensor], loop: Callable[[Tensor], None]) -> None:
        self.prepare, self.loop = prepare, loop

    def __call__(self) -> None:
        self.loop(self.prepare())


def of_azula(x0: Tensor, start: Tensor, steps: int) -> Loop:
    """xEABSampler of order 2, azula's multistep in data prediction."""
    table = torch.tensor(levels(steps))

    def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = table[((1 - t) * steps).round().long()]
        return torch.rsqrt(1 + sigma**2), sigma * torch.rsqrt(1 + sigma**2)

    posterior = Posterior(x0)

    def denoiser(x_t: Tensor, t: Tensor) -> Posterior:
        return posterior

    denoiser.schedule = schedule
    sampler = azula.xEABSampler(denoiser, order=2, steps=steps, silent=True)
    return lambda: sampler(start)


def of_k_diffusion(x0: Tensor, start: Tensor, steps: int) -> Loop:
    """sample_dpmpp_2m."""
    sigmas = torch.tensor(levels(steps))
    return lambda: k_diffusion.sample_dpmpp_2m(lambda y, sigma: x0, start, sigmas, disable=True)


def seconds(run: Loop) -> float:
    """Of one loop."""
    loop: Loop = run
    if isinstance(run, Prepared):
        timesteps = run.prepare()
        loop = lambda: run.loop(timesteps)  # noqa: E731
    began = time.perf_counter()
    loop()
    return time.perf_counter() - began


def loops(steps: int) -> dict[str, Loop]:
    """What is compared, by name."""
    start, x0 = (torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    denoiser = orn.Denoiser(lambda x, time: x0, PROCESS, "x0")
    peers = {
        "diffusers": (diffusers, of_diffusers),
        "azula": (azula, of_azula),
        "k-diffusion": (k_diffusion, of_k_diffusion),
    }
    found = {name: make(x0, start, steps) for name, (module, make) in peers.items() if module is not None}
    return {
        **found,
        "three passes": three_passes(x0, start, steps),
        "by hand": by_hand(x0, start, steps),
        "ornstein": ours(Fixed(x0), start, steps),
        "through Denoiser": ours(denoiser, start, steps),
    }


def timed(steps: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Microseconds a step, median and least over rounds that alternate."""
    found, taken = loops(steps), {}
    for k in range(rounds + 2):
        for name, loop in found.items():
            took = seconds(loop)
            if k >= 2:  # two rounds to warm up
                taken.setdefault(name, []).append(took / steps * 1e6)
    return {name: (median(values), min(values)) for name, values in taken.items()}


def peak(run: Loop) -> float:
    """The most memory that tensors of a run hold at a time, in states."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / (4 * math.prod(SHAPE))


def live(sampler: orn.Multistep, steps: int = 8) -> float:
    """The live states of our loop at the peak, its start and what the network returns included."""
    denoiser, times = Fixed(None, sampler.prediction), grid(steps)

    def states() -> None:
        for _ in orn.sample_steps(denoiser, sampler, torch.ones(SHAPE), times, Noise(0, SHAPE[0])):
            pass

    states()  # levels are computed once
    return peak(states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    for threads in options.threads:
        torch.set_num_threads(threads)
        found = timed(options.steps, options.rounds)
        print(f"state {SHAPE}, {options.steps} steps, threads {threads}: microseconds a step, and ours over theirs")
        print(f"  {'':18}{'median':>8}{'least':>8}{'ratio of medians':>18}{'of the least':>14}")
        for name, (middle, least) in found.items():
            asked = f"  (at most {ASKED[name]})" if name in ASKED else ""
            ratios = found["ornstein"][0] / middle, found["ornstein"][1] / least
            print(f"  {name:18}{middle:8.0f}{least:8.0f}{ratios[0]:18.2f}{ratios[1]:14.2f}{asked}", flush=True)
    print("live tensors of the state's size, at the peak (at most order + 3)")
    for sampler in (TWO_M, *RECIPES):
        print(f"  {live(sampler):.2f} ({sampler.order + 3})  {sampler}", flush=True)


if __name__ == "__main__":
    main()
