"""Accuracy per network call of our samplers and of the peers' on exact targets, where the end of every path is known.

python benchmarks/solvers.py [--all] [--targets digits-0.1 ...] [--cache FOLDER] [--check]

Targets: the 1797 digits in [-1, 1], each a centre of N(0, h^2 I) with h = 0.1 or 0.25, and a 16-dimensional mixture of 5
components N(m_k, 0.09 I), m_k ~ N(0, I). Noise: DDPM's linear betas at T = 1000, sigma / alpha from 157.4 to 0.01, then 0.
256 starting points of the prior are carried to the data along the probability-flow ODE; the error of a point is the root
mean square over its components of the difference to the exact end (`exact`; `--check` halves its steps and compares the
closed form with `orn.exact.Mixture`).
Calls are counted by a wrapper, never exceeded: a method of two calls a step makes the steps that fit. `grids.optimal` is made
from 64 starting points that are none of the 256, at 160 calls of its own.

Printed for each target: the best peer at each number of calls, by the median over points and by the root mean square, and
ours divided by it; the geometric means of the ratios over all columns, over 5 to 12 calls, and the worst from 15 calls up.
`--all` prints every configuration. The peers take some minutes of one core: `--cache` keeps the truths (targets.pt) and the
peers' errors (peers.json) in a folder and reads them from there.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import ornstein as orn
from ornstein.processes.gaussian import Estimate
from ornstein.samplers import Sampler
from solver_peers import HIGH, Net, Peer, alpha, peers

CALLS = (5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
FEW, MANY = 12, 15  # the columns up to FEW and from MANY are judged apart
POINTS = 256
BEND = 0.02  # the truth steps evenly in asinh(sigma / BEND)
PROCESS = orn.Gaussian(orn.TableSchedule.linear(1000))
Errors = dict[int, tuple[float, float]]  # calls -> median and root mean square over points
Grid = Callable[[orn.Gaussian, int], Tensor]

DEFAULT, OPTIMAL = "default", "default on grids.optimal"
OURS: list[tuple[str, Sampler | None, Grid | None]] = [
    # name, sampler, grid(process, steps); None: what `orn.sample` does when the user names none
    (DEFAULT, None, None),
    (OPTIMAL, None, None),
]


@dataclass
class Target:
    """Centres of equal weight (k, d), each N(centre, variance I); `start` (b, d) at t = 1 and its exact end `truth`."""

    name: str
    centres: Tensor
    variance: float
    start: Tensor
    truth: Tensor = field(default_factory=lambda: torch.empty(0))
    dtype: torch.dtype = torch.float32  # of the matrix products; states keep their own

    def __post_init__(self) -> None:
        self._seen = self.centres.to(self.dtype)
        self._half = (self.centres**2).sum(1).to(self.dtype) / 2

    def mean(self, y: Tensor, sigma: float) -> Tensor:
        """The mean of the centres under their posterior at y = x_0 + sigma eps; (b, d)."""
        logits = (y.to(self.dtype) @ self._seen.T - self._half) / (self.variance + sigma**2)
        return (torch.softmax(logits, 1) @ self._seen).to(y.dtype)

    def denoise(self, y: Tensor, sigma: float) -> Tensor:
        """E[x_0 | y]."""
        return (sigma**2 * self.mean(y, sigma) + self.variance * y) / (self.variance + sigma**2)

    def eps(self, y: Tensor, sigma: float) -> Tensor:
        """(y - E[x_0 | y]) / sigma, the slope dy / dsigma of the probability-flow ODE; no cancellation at sigma = 0."""
        return sigma / (self.variance + sigma**2) * (y - self.mean(y, sigma))


class Exact:
    """A target's denoiser for ornstein's samplers."""

    def __init__(self, target: Target) -> None:
        self.process, self.target, self.calls = PROCESS, target, 0

    def __call__(self, x_t: Tensor, t: float, cond: object = None, keep: object = None) -> Estimate:
        self.calls += 1
        level = PROCESS.level(t)
        return PROCESS.estimate(x_t, t, x0=self.target.denoise(x_t / level.alpha, math.exp(-level.log_snr / 2)))


def targets() -> list[Target]:
    """The three targets, without their truths."""
    with np.load(Path(orn.data.__file__).with_name("digits.npz")) as file:
        centres = torch.from_numpy(file["images"]).double().flatten(1) / 8 - 1
    means = torch.randn(5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    named = [("digits-0.1", centres, 0.1**2), ("digits-0.25", centres, 0.25**2), ("mixture", means, 0.3**2)]
    return [Target(name, m, v, start(m.shape[1])) for name, m, v in named]


def start(size: int) -> Tensor:
    """Draws of the prior at t = 1, in the scaling alpha x_0 + sigma eps."""
    z = torch.randn(POINTS, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return PROCESS.level(1.0).sigma * z


def exact(target: Target, steps: int = 300) -> Tensor:
    """The end of the probability-flow ODE: RK4 in u = asinh(sigma / BEND), in float64; doubling `steps` moves it by 1e-6."""
    target = Target(target.name, target.centres, target.variance, target.start, dtype=torch.float64)
    y, top = target.start / alpha(HIGH), math.asinh(HIGH / BEND)

    def slope(y: Tensor, u: float) -> Tensor:
        return BEND * math.cosh(u) * target.eps(y, BEND * math.sinh(u))

    h = -top / steps
    for i in range(steps):
        u, s = top * (1 - i / steps), top * (1 - (i + 1) / steps)
        k1 = slope(y, u)
        k2 = slope(y + h / 2 * k1, (u + s) / 2)
        k3 = slope(y + h / 2 * k2, (u + s) / 2)
        k4 = slope(y + h * k3, s)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


def distance(target: Target, x: Tensor) -> tuple[float, float]:
    """Median and root mean square over points of the distance to the truth, per component."""
    off = (x.double() - target.truth).square().mean(1).sqrt()
    return float(off.median()), float(off.square().mean().sqrt())


class Counted:
    """A net that counts its calls."""

    def __init__(self, net: Net) -> None:
        self.net, self.calls = net, 0

    def __call__(self, y: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        return self.net(y, sigma)


def plan(peer: Peer) -> dict[int, int]:
    """The most steps whose calls are at most those of each column, found on a state of two numbers.

    Calls are a multiple of the steps plus a constant, which two runs tell. Columns that are too few for a peer are left out.
    """

    def count(steps: int) -> int:
        net = Counted(lambda y, sigma: 0.5 * y / (1 + sigma**2))
        try:
            peer(net, torch.ones(1, 2, dtype=torch.float64), steps)
        except ValueError:  # PNDM below 4 steps
            return 0
        return net.calls

    fewer, more = count(12), count(18)
    each = (more - fewer) // 6
    fits = {calls: 12 + (calls - fewer) // each for calls in CALLS}
    return {calls: steps for calls, steps in fits.items() if steps >= 2 and count(steps)}


def run_peers(chosen: list[Target]) -> dict[str, dict[str, Errors]]:
    """The errors of every peer on every target."""
    found: dict[str, dict[str, Errors]] = {target.name: {} for target in chosen}
    for name, peer in peers().items():
        steps = plan(peer)
        for target in chosen:
            row: Errors = {}
            for calls in steps:
                net = Counted(target.denoise)
                x = peer(net, target.start, steps[calls])
                assert net.calls <= calls, f"{name} made {net.calls} calls where {calls} were planned"
                row[calls] = distance(target, x)
            found[target.name][name] = row
    return found


def run_ours(target: Target) -> dict[str, Errors]:
    """The errors of each of OURS."""
    found: dict[str, Errors] = {}
    model = orn.grids.Linearised(
        Exact(target), shape=tuple(target.start.shape[1:])
    )  # from 64 starting points of its own
    for name, sampler, grid in OURS:
        for calls in CALLS:
            denoiser = Exact(target)
            if name == OPTIMAL:
                usual = orn.samplers.usual(calls)
                x = orn.sample(denoiser, usual, start=target.start, grid=model.grid(usual, calls)).x
            elif grid is None or sampler is None:
                x = orn.sample(denoiser, sampler, start=target.start, calls=calls).x
            else:
                times = grid(PROCESS, orn.samplers.steps_within(calls, sampler))
                x = orn.sample(denoiser, sampler, start=target.start, grid=times).x
            assert denoiser.calls <= calls, f"{name} made {denoiser.calls} calls where {calls} were allowed"
            found.setdefault(name, {})[calls] = distance(target, x)
    return found


def table(target: Target, theirs: dict[str, Errors], mine: dict[str, Errors], everything: bool) -> None:
    """Print a target's errors: every configuration where asked, the best peer, and the ratios of ours to it."""
    print(f"\n{target.name}: {len(theirs)} configurations of the peers\n{'calls':34}", *(f"{c:>8}" for c in CALLS))
    if everything:
        for name, row in theirs.items():
            for label, which in (("median", 0), ("rms", 1)):
                line(f"{name} {label}", {calls: errors[which] for calls, errors in row.items()})
    for label, which in (("median", 0), ("rms", 1)):
        best = {c: min((row[c][which], name) for name, row in theirs.items() if known(row, c)) for c in CALLS}
        line(f"best peer, {label}", {calls: error for calls, (error, _) in best.items()})
        for name, row in mine.items():
            line(f"ornstein {name}, {label}", {calls: errors[which] for calls, errors in row.items()})
            ratios = {calls: row[calls][which] / best[calls][0] for calls in CALLS}
            line("  over the best peer's", ratios, "8.2f")
            few, many = ([ratios[c] for c in CALLS if keep(c)] for keep in (FEW.__ge__, MANY.__le__))
            print(f"  geometric mean {mean(ratios.values()):.2f}, to {FEW} calls {mean(few):.2f}; ", end="")
            print(f"worst from {MANY} calls {max(many):.2f}")
        if which == 0:
            for calls, (_, name) in best.items():
                print(f"  {calls:3} calls: {name}")


def known(row: Errors, calls: int) -> bool:
    """Whether a configuration has a finite error at this number of calls."""
    return calls in row and math.isfinite(row[calls][0]) and math.isfinite(row[calls][1])


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs))


def line(name: str, row: dict[int, float], form: str = "8.4f") -> None:
    """Print a row of the table, empty where there is no number."""
    print(f"{name:34}", *(f"{row[calls]:{form}}" if calls in row else " " * 8 for calls in CALLS), flush=True)


def prepared(names: list[str], cache: Path | None) -> list[Target]:
    """The targets of these names with their truths, read from the cache where it has them for the same start."""
    chosen = [target for target in targets() if target.name in names]
    path = None if cache is None else cache / "targets.pt"
    kept = torch.load(path) if path is not None and path.exists() else {}
    for target in chosen:
        if target.name not in kept or not torch.equal(kept[target.name]["start"], target.start):
            fields = {"centres": target.centres, "variance": target.variance, "start": target.start}
            kept[target.name] = {**fields, "truth": exact(target)}
        target.truth = kept[target.name]["truth"]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(kept, path)
    return chosen


def compared(chosen: list[Target], cache: Path | None) -> dict[str, dict[str, Errors]]:
    """The peers' errors on these targets, read from the cache where it has them."""
    path = None if cache is None else cache / "peers.json"
    found: dict[str, dict[str, Errors]] = {}
    if path is not None and path.exists():
        for name, rows in json.loads(path.read_text()).items():
            found[name] = {peer: {int(c): tuple(e) for c, e in row.items()} for peer, row in rows.items()}
    found |= run_peers([target for target in chosen if target.name not in found])
    if path is not None:
        path.write_text(json.dumps(found))
    return found


def check(target: Target) -> None:
    """Print how far the truth moves with half the steps, and the closed form is from `orn.exact.Mixture` in float64."""
    moved = (exact(target, 150) - target.truth).square().mean(1).sqrt()
    truth = orn.exact.Mixture(PROCESS, target.centres, target.variance)
    target = Target(target.name, target.centres, target.variance, target.start[:8], dtype=torch.float64)
    x = target.start + 0.3 * target.centres[:8].repeat(2, 1)[:8]
    gaps = [float((Exact(target)(x, t).x0 - truth(x, t).x0).abs().max()) for t in (1.0, 0.5, 0.1, 0.003)]
    print(
        f"{target.name}: truth moved by {moved.median():.1e} (median), {moved.max():.1e} (worst) with half the steps; ",
        end="",
    )
    print(f"closed form within {max(gaps):.1e} of orn.exact.Mixture")


def main() -> None:
    names = [target.name for target in targets()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print every configuration")
    parser.add_argument("--targets", nargs="+", choices=names, default=names)
    parser.add_argument("--cache", type=Path, help="a folder that keeps the truths and the peers' errors")
    parser.add_argument("--check", action="store_true", help="check the truths and the closed form")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # diffusers deprecates an algorithm that is compared
    began = time.perf_counter()
    chosen = prepared(options.targets, options.cache)
    theirs = compared(chosen, options.cache)
    for target in chosen:
        if options.check:
            check(target)
        table(target, theirs[target.name], run_ours(target), options.all)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
