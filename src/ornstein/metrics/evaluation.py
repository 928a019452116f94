"""`evaluate`: samples against held-out data, each figure beside the same figure of real data.

A distance between finite sets is never 0 and depends on their sizes, so it says little alone. Here it stands beside
its real-against-real value: the same figure with *training examples in the place of the samples*, at the same sizes and
against the same held-out examples. (Training examples are fresh draws of the source, which is what perfect samples
would be; sharing the held-out examples takes their luck, and a difference between the two parts of the data, out of
the ratio.) For the distance to the nearest training example the place of the samples is taken by held-out examples.

    figure                   n a side               random subsets
    Frechet                  samples / held-out     samples where not all are used, training; held-out examples: all
    precision ... coverage   equal, at most 2000    all three
    energy, Wasserstein      equal, at most 2000    all three
    correlation              equal, at most 2000    all three
    nearest                  equal, at most 2000    samples, held-out; training examples: all

Figures are means over `splits` such subsets, disjoint where the data suffice; everything is a function of the arguments
and the seed.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ornstein.data.codes import Codes
from ornstein.data.columns import TableScaling
from ornstein.data.mixed import MixedScaling
from ornstein.data.scaling import Scaling
from ornstein.errors import ConfigurationError, DataError
from ornstein.metrics import distances
from ornstein.metrics.features import SHIPPED, TRAIN_HINT, WIDTH, FeatureNet, load_features, pixels
from ornstein.metrics.report import Measure, Report, measure
from ornstein.metrics.tables import column_distances

LARGEST = 2000  # examples a side in the figures that need all pairs
NEIGHBOURS = 5
COLUMNS = range(2, 501)  # for which correlations are compared: beyond, d^2 / 2 pairs say little each
T = TypeVar("T")


def evaluate(
    samples: Tensor,
    test: Tensor,
    train: Tensor,
    *,
    scaling: Scaling | TableScaling | Codes | None = None,
    features: FeatureNet | None = None,
    seed: int = 0,
    splits: int = 10,
) -> Report:
    """Compare samples (n, *d) with held-out `test` (m, *d) and look for them in `train` (l, *d), all in raw units.

    scaling: that of the data; distances are then in model units, and images are compared on features too. None: the
        numbers are taken as they are. Of codes, levels 0 .. K - 1 are taken as -1 .. 1; of a mixed table, categories as
        `TableScaling` has them.
    features: a classifier from `load_features`; by default the shipped one where it reads the images (one channel).

    Measures: `frechet_distance`, `precision`, `recall`, `density`, `coverage` (images), `energy_distance`,
    `sliced_wasserstein` (order 2, 256 projections), `correlation_error` (vectors of 2 to 500 numbers),
    `nearest_training` (median distance). The module says what each is compared with. Raises `DataError` on shapes that
    differ, values that are not finite or fewer than 6 examples in a set, `ConfigurationError` on a classifier that
    cannot read the images.
    """
    if splits < 1:
        raise ConfigurationError(f"evaluate got splits={splits}; expected at least 1")
    sets = {"samples": samples, "held-out data": test, "training data": train}
    if len(shapes := {tuple(x.shape[1:]) for x in sets.values()}) > 1:
        got = ", ".join(f"{name} {tuple(x.shape[1:])}" for name, x in sets.items())
        raise DataError(f"evaluate got examples of {len(shapes)} shapes: {got}; expected one shape for all three")
    scaled = [_in_units(scaling, x) for x in sets.values()]
    x, y, z = (distances.matrix(x, name, NEIGHBOURS + 1) for x, name in zip(scaled, sets, strict=True))
    draws = _Draws(len(samples), len(test), len(train), splits, seed)
    net, notes = _feature_net(scaled[0], scaling, features)
    measures = (
        []
        if net is None or not isinstance(scaling, Scaling | Codes)
        else _on_features(list(sets.values()), scaling, net, draws)
    )
    measures += _on_values(x, y, z, draws, seed, scaled[0].ndim == 2 and x.shape[1] in COLUMNS)
    measures += _on_columns(list(sets.values()), scaling, draws) if isinstance(scaling, MixedScaling) else []
    if net is not None and min(len(samples), len(test), len(train)) <= WIDTH:
        notes.append(f"Frechet distance: covariances of {WIDTH} features are singular at n <= {WIDTH}; read the ratio")
    if draws.n < min(len(samples), len(test)):
        notes.append(f"figures that need all pairs use random subsets of {draws.n} examples a side")
    unit = "the numbers' own unit"
    if scaling is not None:
        unit = "model units (" + ("black to white is 2)" if scaling.is_image else "standardised)")
    sizes = (len(samples), len(test), len(train))
    return Report(tuple(measures), None if net is None else str(net), unit, *sizes, seed, splits, tuple(notes))


def _in_units(scaling: Scaling | TableScaling | Codes | None, x: Tensor) -> Tensor:
    """Raw examples as distances between them are measured: in model units, codes as levels from -1 to 1."""
    if scaling is None:
        return x
    if isinstance(scaling, Codes):
        return scaling.encode(x).float() * (2 / (scaling.levels - 1)) - 1
    if isinstance(scaling, MixedScaling):
        scaling = TableScaling(scaling.columns, scaling.sigma_data, scaling.label, scaling.place)
    return scaling.encode(x)


class _Draws:
    """Index sets of the splits: n of the samples, of the held-out and of the training examples, at equal n."""

    def __init__(self, samples: int, test: int, train: int, splits: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self._splits = splits
        self.n = min(samples, test, train, LARGEST)
        self.samples = self.subsets(samples, self.n)
        self.test = self.subsets(test, self.n)
        self.train = self.subsets(train, self.n)

    def subsets(self, total: int, n: int) -> list[Tensor]:
        """`splits` subsets of n of `total`: disjoint where total >= n * splits, one alone where all are taken."""
        if n == total:
            return [torch.arange(total)]
        if n * self._splits <= total:
            return list(torch.randperm(total, generator=self.generator)[: n * self._splits].split(n))
        return [torch.randperm(total, generator=self.generator)[:n] for _ in range(self._splits)]


def _over(figure: Callable[[Tensor, Tensor], T], a: Sequence[Tensor], b: Sequence[Tensor]) -> list[T]:
    """The figure of each split, on examples `a` and `b`; a side taken whole has one set, for every split."""
    return [figure(a[i % len(a)], b[i % len(b)]) for i in range(max(len(a), len(b)))]


def _on_values(x: Tensor, y: Tensor, z: Tensor, draws: _Draws, seed: int, columns: bool) -> list[Measure]:
    """Energy distance, sliced Wasserstein, the correlations of columns, and the median distance to training examples."""
    figures: dict[str, Callable[[Tensor, Tensor], float]] = {
        "energy_distance": distances.energy_distance,
        "sliced_wasserstein": partial(distances.sliced_wasserstein, seed=seed),
    }
    if columns:
        figures["correlation_error"] = distances.correlation_error

    def all_of(i: Tensor, j: Tensor, candidates: Tensor) -> list[float]:
        return [figure(candidates[i], y[j]) for figure in figures.values()]

    model = zip(*_over(lambda i, j: all_of(i, j, x), draws.samples, draws.test), strict=True)
    real = zip(*_over(lambda i, j: all_of(i, j, z), draws.train, draws.test), strict=True)
    rows = [measure(name, m, r, draws.n, draws.n, "lower") for name, m, r in zip(figures, model, real, strict=True)]
    medians = []
    for values, subsets in ((x, draws.samples), (y, draws.test)):
        # Each distance belongs to one example, so those of 2 n examples serve every split; where n is small, of more.
        pool = torch.cat(subsets).unique()
        pool = pool[torch.randperm(len(pool), generator=draws.generator)[: max(2 * draws.n, LARGEST)]]
        nearest = distances.nearest_distances(values[pool], z)
        medians.append([float(nearest[part].median()) for part in draws.subsets(len(pool), draws.n)])
    return [*rows, measure("nearest_training", medians[0], medians[1], draws.n, len(z), "near 1")]


def _on_columns(sets: list[Tensor], scaling: MixedScaling, draws: _Draws) -> list[Measure]:
    """Total variations of columns, and of pairs of them: means over all; see `ornstein.metrics.tables`."""
    samples, test, train = sets

    def means(candidates: Tensor) -> Callable[[Tensor, Tensor], tuple[float, float]]:
        def of(i: Tensor, j: Tensor) -> tuple[float, float]:
            found = column_distances(candidates[i], test[j], scaling)
            return found.column_mean, found.pair_mean

        return of

    model = zip(*_over(means(samples), draws.samples, draws.test), strict=True)
    real = zip(*_over(means(train), draws.train, draws.test), strict=True)
    names = ("variation_of_columns", "variation_of_pairs")
    rows = [measure(name, m, r, draws.n, draws.n, "lower") for name, m, r in zip(names, model, real, strict=True)]
    return [row for row in rows if math.isfinite(row.value)]


def _feature_net(
    samples: Tensor, scaling: Scaling | TableScaling | Codes | None, features: FeatureNet | None
) -> tuple[FeatureNet | None, list[str]]:
    """The classifier for these data, if one applies, and notes on that; a classifier asked for in vain is an error."""
    notes: list[str] = []
    if scaling is None or not scaling.is_image:
        if features is not None:
            raise ConfigurationError(
                f"the classifier {features.name} compares images; got data that are not: leave it out (--features)"
            )
        return None, notes
    net = load_features() if features is None else features
    if features is None and not net.fits(samples):  # a classifier that was asked for raises when called
        notes.append(f"no Frechet distance: the shipped classifier reads grey images only; {TRAIN_HINT}")
        return None, notes
    if net.name == SHIPPED.name:
        notes.append(f"the shipped classifier knows handwritten digits; for other images {TRAIN_HINT}")
    if net.resizes(samples):
        size, own = tuple(samples.shape[2:]), (net.network.height, net.network.width)
        notes.append(f"images resized from {size} to {own} (bilinear, no antialiasing) for the classifier")
    return net, notes


def _on_features(sets: list[Tensor], scaling: Any, net: FeatureNet, draws: _Draws) -> list[Measure]:
    """Frechet distance, precision, recall, density and coverage on the classifier's features; images as raw data."""
    samples, test, train = sets
    n = min(len(samples), len(train))
    taken = draws.subsets(len(samples), n)
    stand_in = draws.train if n == draws.n else draws.subsets(len(train), n)
    everything = [torch.arange(len(test))]
    used = torch.cat([*stand_in, *draws.train]).unique()  # most of a large training set is never looked at
    x, y = (net(pixels(raw, scaling)) for raw in (samples, test))
    z = torch.full((len(train), WIDTH), torch.nan)
    z[used] = net(pixels(train[used], scaling))

    def frechet(candidates: Tensor, subsets: list[Tensor]) -> list[float]:
        return _over(lambda i, j: distances.frechet_distance(candidates[i], y[j]), subsets, everything)

    def shares(candidates: Tensor, subsets: list[Tensor]) -> list[distances.PrecisionRecall]:
        return _over(lambda i, j: distances.precision_recall(candidates[i], y[j], NEIGHBOURS), subsets, draws.test)

    rows = [measure("frechet_distance", frechet(x, taken), frechet(z, stand_in), n, len(test), "lower")]
    model, real = shares(x, draws.samples), shares(z, draws.train)
    for name in ("precision", "recall", "density", "coverage"):
        ours, theirs = ([getattr(share, name) for share in group] for group in (model, real))
        rows.append(measure(name, ours, theirs, draws.n, draws.n, "higher"))
    return rows
