"""Text files: all windows of a text to train on, without a copy, and the end of it held out.

A text of n tokens has n - L + 1 windows of L tokens, one at each offset. All of them are training examples: as a view
(`unfold`) of the tokens they take n bytes, not n L. The held-out part is the *last* share of the text: a text repeats itself
nearby, so that windows drawn at random would be half known from training. Held-out windows do not overlap: each token
counts once in a likelihood.
"""

import gzip
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ornstein.config import DataOptions
from ornstein.data.codes import Codes
from ornstein.data.dataset import Dataset
from ornstein.data.vocabulary import Vocabulary
from ornstein.errors import ConfigurationError, DataError

HOLDOUT = 0.1


def load_text(path: Path, options: DataOptions, vocabulary: Vocabulary | None = None) -> Dataset:
    """The text in a .txt or .txt.gz file (UTF-8) as windows of `options.length` tokens: train (n, L), a view; test (m, L).

    Held out is the last share `options.holdout` of its characters, 0.1 unless told. vocabulary: that of a model, for a text to
    compare it with; else `options.vocabulary` says which, and that of characters is made of the training part.

    Raises DataError for a file that cannot be read or is too short, and for characters that the vocabulary lacks, with their
    place, unless `options.unknown` leaves them out; ConfigurationError for options that make no sense.
    """
    length = options.length
    if length < 1:
        raise ConfigurationError(f"got length={length}, expected 1 or more: the tokens of one example")
    text = _read(path)
    share = HOLDOUT if options.holdout is None else options.holdout
    if not 0 < share < 1:
        raise ConfigurationError(f"holdout={share}; expected the fraction to hold out of training, between 0 and 1")
    cut = int(len(text) * (1 - share) + 1e-6)
    if not cut:
        raise DataError(f"{path}: {len(text)} characters, none of them to train on; expected a longer text")
    first, last = text[:cut], text[cut:]
    vocabulary = vocabulary or Vocabulary.named(options.vocabulary, first)
    if len(vocabulary) < 2:
        raise DataError(f"{path}: got a text of {vocabulary.symbols!r} alone, expected one that varies")
    dtype = next(d for d in (torch.uint8, torch.int16, torch.int32) if len(vocabulary) <= torch.iinfo(d).max + 1)
    train = vocabulary.encode(first, options.unknown, where=str(path)).to(dtype)
    test = vocabulary.encode(last, options.unknown, where=str(path), before=first).to(dtype)
    lost = vocabulary.unknown(first) + vocabulary.unknown(last) if options.unknown == "skip" else 0
    _check_length(path, vocabulary, length, train, test)
    held = len(test) // length
    codes = Codes((length,), "plain", len(vocabulary), str(dtype).removeprefix("torch."), vocabulary)
    windows = (train.unfold(0, length, 1), test[: held * length].reshape(held, length))
    notes = _notes(vocabulary, lost, len(test) - held * length)
    return Dataset(path.name, *windows, None, None, (), codes, notes, lost)


def _read(path: Path) -> str:
    """The text of a file, with the ends of lines that it has."""
    expected = "expected text in UTF-8"
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); {expected}, or in gzip") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: the byte {error.object[error.start]:#04x} at place {error.start} (line {line}) is not UTF-8; {expected}: "
            "convert it, e.g. iconv -f latin1 -t utf-8"
        ) from error
    if not text:
        raise DataError(f"{path} is empty; {expected}")
    return text


def _check_length(path: Path, vocabulary: Vocabulary, length: int, train: Tensor, test: Tensor) -> None:
    """Raise DataError where a part is too short for its windows."""
    for what, tokens, least in (("training", train, length + 1), ("held-out", test, length)):
        if len(tokens) < least:
            raise DataError(
                f"{path}: {len(tokens)} {what} {vocabulary.kind}; expected at least {least} for windows of {length}: give a "
                "smaller --length, or a longer text"
            )


def _notes(vocabulary: Vocabulary, lost: int, rest: int) -> tuple[str, ...]:
    left_out = f"left out {lost} characters that are not in the vocabulary" if lost else ""
    outside = f"the last {rest} of the held-out {vocabulary.kind} are in no window" if rest else ""
    return tuple(filter(None, (left_out, outside)))
