"""Samples of text against held-out text: which sequences of tokens occur, which words, and how much is copied from training.

Frequencies of n-grams, p(w) and q(w) over sequences w of n tokens, are compared by their total variation,

    TV = 1/2 sum_w |p(w) - q(w)|,  0 to 1.

Between finite texts it is far from 0, the more so the larger n is, so that it says something only beside real text: windows of
the training text in place of the samples, of the same number and length, against the same held-out windows. Two more figures tell
a model that spells from one that copies: the share of words that occur in the training text, and the longest run of tokens that
a sample has in common with it (the median over samples), both beside those of held-out text.
"""

import re
from collections.abc import Callable
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from ornstein.data.codes import tokens_under
from ornstein.data.vocabulary import Vocabulary
from ornstein.errors import ConfigurationError, DataError
from ornstein.metrics.distances import total_variation
from ornstein.metrics.report import Report, measure

GRAMS = (1, 2, 3)
COPIED = 500  # samples whose longest copy is looked for
PAIRS = 200  # pairs of places that are compared
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_BASE = 0x9E3779B97F4A7C15  # odd, so that a power of it is never 0 modulo 2^64


def evaluate_text(
    samples: Tensor, test: Tensor, train: Tensor, *, vocabulary: Vocabulary, seed: int = 0, splits: int = 10
) -> Report:
    """Compare samples (n, L) of tokens with held-out windows (m, L'), and look for them in those of training, (l, L').

    Measures: `total_variation_1`, `_2`, `_3` of n-grams; `known_words`, the share of the words of a text, those cut by its ends
    left out, that occur in the training text; `longest_copy`, tokens, the median over at most 500 samples. Real is the mean over
    `splits` sets of n training windows, for the last two held-out ones, cut to the samples' length.
    Raises `DataError` on a set without examples, `ConfigurationError` unless splits >= 1.
    """
    if splits < 1:
        raise ConfigurationError(f"evaluate_text got splits={splits}; expected at least 1")
    for name, x in (("samples", samples), ("held-out windows", test), ("training windows", train)):
        if x.ndim != 2 or not len(x) or x.is_floating_point():
            raise DataError(
                f"got {name} of shape {tuple(x.shape)} and type {x.dtype}, expected tokens (n, length), n >= 1"
            )
    generator = torch.Generator().manual_seed(seed)
    length, n = min(samples.shape[1], test.shape[1]), len(samples)
    real = [train[torch.randint(len(train), (n,), generator=generator)][:, :length] for _ in range(splits)]
    rows = []
    for grams in GRAMS[:length]:
        against = _keys(test, grams, len(vocabulary))
        values = [total_variation(_keys(x, grams, len(vocabulary)), against) for x in (samples, *real)]
        rows.append(measure(f"total_variation_{grams}", values[:1], values[1:], n, len(test), "lower"))
    text = tokens_under(train)
    text = text if text.ndim == 1 else train.flatten()
    held = [test[torch.randperm(len(test), generator=generator)[:n]][:, :length] for _ in range(splits)]
    held = held if n < len(test) else held[:1]
    known = set(_WORD.findall(vocabulary.decode(text)))
    found = [share_known(vocabulary, x, known) for x in (samples, *held)]
    shares = [share for share in found if share is not None]
    if len(shares) == len(found):
        rows.append(measure("known_words", shares[:1], shares[1:], n, len(held[0]), "near 1"))
    copies = [float(longest_copy(x[:COPIED], text)) for x in (samples, held[0])]
    rows.append(measure("longest_copy", copies[:1], copies[1:], min(n, COPIED), len(text), "near 1"))
    unit = "shares of n-grams (total variation, 0 to 1), shares of words, and tokens copied"
    return Report(tuple(rows), None, unit, n, len(test), len(train), seed, splits)


def evaluate_codes(
    samples: Tensor, test: Tensor, train: Tensor, *, levels: int, seed: int = 0, splits: int = 10
) -> Report:
    """Compare arrays of codes 0 .. levels - 1, samples (n, *d), with held-out ones (m, *d): laws of one place, and of two.

    Measures: `variation_of_places` and `variation_of_pairs`, total variations between samples and held-out data, means over all
    places and over at most 200 pairs of them. Real: training examples in place of the samples. Raises
    `DataError` on shapes that differ.
    """
    sets = [x.flatten(1).long() for x in (samples, test, train)]
    if len({x.shape[1] for x in sets}) > 1 or not all(map(len, sets)):
        raise DataError(
            f"got examples of shapes {[tuple(x.shape) for x in (samples, test, train)]}, expected one shape for all"
        )
    generator = torch.Generator().manual_seed(seed)
    x, y, z = sets
    n, dims = min(len(x), len(z)), x.shape[1]
    real = [z[torch.randperm(len(z), generator=generator)[:n]] for _ in range(splits)]
    every = (
        torch.combinations(torch.arange(dims)) if dims <= 1000 else torch.randint(dims, (PAIRS, 2), generator=generator)
    )
    pairs = every[torch.randperm(len(every), generator=generator)[:PAIRS]]

    def places(a: Tensor) -> float:
        return fmean(total_variation(a[:, i], y[:, i]) for i in range(dims))

    def of_pairs(a: Tensor) -> float:
        joint = [(v[:, pairs[:, 0]] * levels + v[:, pairs[:, 1]]) for v in (a, y)]
        return fmean(total_variation(joint[0][:, i], joint[1][:, i]) for i in range(len(pairs)))

    figures: list[tuple[str, Callable[[Tensor], float]]] = [("variation_of_places", places)]
    figures += [("variation_of_pairs", of_pairs)] if len(pairs) else []
    rows = [measure(name, [figure(x[:n])], [figure(a) for a in real], n, len(y), "lower") for name, figure in figures]
    return Report(tuple(rows), None, "total variation, 0 to 1", len(x), len(y), len(z), seed, splits)


def share_known(vocabulary: Vocabulary, windows: Tensor, known: set[str]) -> float | None:
    """The share of the words of windows (n, L) that are among the known, None without words; those at the ends may be cut."""
    found = []
    for row in windows:
        text = vocabulary.decode(row)
        found += [m[0] in known for m in _WORD.finditer(text) if m.start() > 0 and m.end() < len(text)]
    return fmean(found) if found else None


def longest_copy(windows: Tensor, text: Tensor) -> int:
    """The largest length such that at least half of the windows (n, L) have a run of so many tokens in common with text (m,)."""
    low, high = 0, min(windows.shape[1], len(text))  # runs of low are common to half of them, of above high to fewer
    rows, whole = windows.cpu().numpy(), text.cpu().numpy()[None]
    while low < high:
        middle = (low + high + 1) // 2
        runs = np.unique(_hashes(whole, middle))
        shared = np.isin(_hashes(rows, middle), runs).any(1)
        low, high = (middle, high) if 2 * shared.sum() >= len(rows) else (low, middle - 1)
    return low


def _hashes(rows: np.ndarray, length: int) -> np.ndarray:
    """sum_j (x_{i+j} + 1) B^(length-1-j) modulo 2^64 for each run of `length` in rows (n, L), (n, L - length + 1)."""
    values = rows.astype(np.uint64) + np.uint64(1)
    # A run of a + b has the hash H_a(i) B^b + H_b(i + a): the binary digits of the length, from the first.
    made, size, power = values, 1, _BASE
    for digit in bin(length)[3:]:
        made, size, power = (
            made[:, : made.shape[1] - size] * np.uint64(power) + made[:, size:],
            2 * size,
            power**2 % 2**64,
        )
        if digit == "1":
            one = values[:, size:]
            made, size, power = made[:, : one.shape[1]] * np.uint64(_BASE) + one, size + 1, power * _BASE % 2**64
    return made


def _keys(windows: Tensor, grams: int, levels: int) -> Tensor:
    """A number for each sequence of `grams` tokens in windows (n, L)."""
    keys = torch.zeros_like(windows.long()[:, grams - 1 :])
    for place in range(grams):
        keys = keys * levels + windows.long()[:, place : windows.shape[1] - grams + 1 + place]
    return keys
