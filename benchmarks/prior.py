"""PriorGrad beside the standard process and beside whitened data: in how many steps it has the same test likelihood.

python benchmarks/prior.py            about 10 minutes on one core
python benchmarks/prior.py --seeds 1

(a) Correlated data: a mixture of eight normal laws in 16 dimensions, mixed by a matrix; the covariance of the standardised
    columns has a condition number above 100. Its density is known, and so the best figure there can be. The base is the
    measured N(mu, Sigma).
(b) Series of 32 values, waves with noise, whose mean and scale depend on a class c, in steps of a factor of 2. The base is the
    measured N(mu(c), diag v(c)) of each class. Whitening is one map for all classes.

Each row trains the same network with the same draws; a run of fewer steps is a whole run, whose learning rate falls to 0. The
figure is the negative log-likelihood of held-out examples by the ODE, in nats per dimension. "reached" is the least share of the
steps at which the mean is that of the standard process with all steps, or below.
"""

import argparse
import math
import time

import torch
from torch import Tensor

import ornstein as orn
from ornstein.processes import ByClass, Normal

SHARES = (1 / 4, 1 / 2, 1.0)
OBJECTIVE = orn.Objective(orn.Stratified(orn.LogNormalSigma(-0.4, 1.2)))
HELD_OUT = 256


def standardised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of mean 0 and variance 1, and the scales that they were divided by."""
    scale = x.std(0, unbiased=False)
    return ((x - x.mean(0)) / scale).float(), scale


def correlated(n: int, seed: int) -> tuple[Tensor, float, float]:
    """Data (a) with standardised columns, their entropy per dimension on the last HELD_OUT rows, and the condition number."""
    draw, dims = torch.Generator().manual_seed(seed), 16
    means = 1.5 * torch.randn(8, dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    which = torch.randint(0, 8, (n,), generator=draw)
    white = means[which] + 0.6 * torch.randn(n, dims, generator=draw, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(dims, dims, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    mixing = turn * torch.logspace(0, -1.2, dims, dtype=torch.float64)
    x, scale = standardised(white @ mixing.T)
    far = torch.cdist(white[-HELD_OUT:], means).square()
    log_p = (-far / (2 * 0.36)).logsumexp(1) - math.log(8) - dims / 2 * math.log(2 * math.pi * 0.36)
    log_p = log_p - torch.linalg.slogdet(mixing)[1] + scale.log().sum()
    values = torch.linalg.eigvalsh(torch.corrcoef(x.double().T))
    return x, -float(log_p.mean()) / dims, float(values[-1] / values[0])


def series(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Data (b) with standardised places, and the classes."""
    draw, length = torch.Generator().manual_seed(seed), 32
    labels = torch.randint(0, 8, (n,), generator=draw)
    place = torch.linspace(0, 1, length, dtype=torch.float64)
    phase, speed = (torch.rand(n, 1, generator=draw, dtype=torch.float64) for _ in range(2))
    wave = torch.sin(2 * math.pi * (phase + (1 + 2 * speed) * place))
    wave = wave + 0.1 * torch.randn(n, length, generator=draw, dtype=torch.float64)
    size = 2.0 ** labels.double()[:, None]
    return standardised(size * (wave + 0.5 * torch.cos(labels[:, None] * place)))[0], labels


def nll(base, x: Tensor, labels: Tensor | None, steps: int, seed: int) -> float:
    """Train on all but the last HELD_OUT rows; the mean negative log-likelihood per dimension of those."""
    torch.manual_seed(seed)
    network = orn.MLP(shape=x.shape[1:], width=128, depth=3, classes=0 if labels is None else int(labels.max()) + 1)
    denoiser = orn.Denoiser(network, orn.Gaussian(orn.EDM(), base), "edm", sigma_data=1.0)
    known, asked = (None, None) if labels is None else (labels[:-HELD_OUT], labels[-HELD_OUT:])
    for _ in orn.train(denoiser, x[:-HELD_OUT], OBJECTIVE, cond=known, steps=steps, batch_size=256, seed=seed):
        pass
    found = orn.log_likelihood(denoiser, x[-HELD_OUT:], cond=asked, seed=seed, batch_size=HELD_OUT)
    return -found.mean / x[0].numel()


def compared(
    name: str, x: Tensor, labels: Tensor | None, based, steps: int, seeds: int
) -> dict[str, list[list[float]]]:
    """The figures of the three, by share of the steps and by seed."""
    train = x[:-HELD_OUT]
    whole = Normal.measure(train, "full", floor=1e-6)
    white, shift = whole.whiten(x - whole.centre(x)), 0.5 * float(whole.log_det) / x[0].numel()
    table: dict[str, list[list[float]]] = {"standard": [], "whitened data": [], "PriorGrad": []}
    for share in SHARES:
        count = round(share * steps)
        rows = {
            "standard": [nll(None, x, labels, count, seed) for seed in range(seeds)],
            "whitened data": [nll(None, white, labels, count, seed) + shift for seed in range(seeds)],
            "PriorGrad": [nll(based, x, labels, count, seed) for seed in range(seeds)],
        }
        for key, values in rows.items():
            table[key].append(values)
    print(f"\n{name}: test NLL, nats per dimension, mean over {seeds} seeds")
    print(
        f"{'':<16}" + "".join(f"{round(share * steps):>9} steps" for share in SHARES) + "   reached   seeds at the end"
    )
    goal = sum(table["standard"][-1]) / seeds
    for key, found in table.items():
        means = [sum(values) / seeds for values in found]
        reached = next((f"{share:.3g}" for share, value in zip(SHARES, means, strict=True) if value <= goal), "never")
        ends = " ".join(f"{value:.3f}" for value in found[-1])
        print(f"{key:<16}" + "".join(f"{value:>15.4f}" for value in means) + f"{reached:>10}   {ends}", flush=True)
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    options, began = parser.parse_args(), time.perf_counter()
    torch.set_num_threads(1)
    x, best, condition = correlated(20_000 + HELD_OUT, seed=5)
    print(f"(a) condition number {condition:.0f}; the law itself has {best:.4f} nats per dimension")
    measured = Normal.measure(x[:-HELD_OUT], "full", floor=1e-6)
    compared("(a) correlated data, full Sigma", x, None, measured, options.steps, options.seeds)
    x, labels = series(20_000 + HELD_OUT, seed=6)
    each = [Normal.measure(x[:-HELD_OUT][labels[:-HELD_OUT] == k]) for k in range(8)]
    laws = Normal.each(torch.stack([law.mean for law in each]), torch.stack([law.variances(law.mean) for law in each]))
    compared(
        "(b) series whose scale depends on c, N(mu(c), Sigma(c))",
        x,
        labels,
        ByClass(laws),
        options.steps,
        options.seeds,
    )
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
