"""Levels: images of 256 grey levels as images of fewer.

A pixel x of S levels becomes one of L levels by

    floor(x L / S),        0 <= x < S,

so that each new level takes the same number of old ones where L divides S. Fewer levels make a discrete process cheaper, and
bits/dim count only what is left: figures at different levels cannot be compared.
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ornstein.data.dataset import Dataset, measured_on
from ornstein.data.scaling import Scaling
from ornstein.data.streaming import Stream
from ornstein.errors import ConfigurationError, DataError

_CHUNK = 1 << 22  # values in one go: products need 16 bits


def check_levels(levels: int) -> None:
    """Raise ConfigurationError unless 2 <= levels <= 256."""
    if not 2 <= levels <= 256:
        raise ConfigurationError(f"got levels={levels}, expected 2 to 256: the grey levels of a pixel")


def requantised(dataset: Dataset, levels: int) -> Dataset:
    """`dataset` with its images, training and held-out, in so many levels, and its scaling measured anew.

    Streams stay streams, and are converted as they are read. Raises ConfigurationError for levels outside 2 .. 256, for more
    levels than the images have, and for data that are no images.
    """
    check_levels(levels)
    scaling = dataset.scaling
    if not isinstance(scaling, Scaling) or not scaling.is_image or scaling.levels is None:
        size = " x ".join(map(str, scaling.raw_shape))
        raise ConfigurationError(
            f"{dataset.name}: got levels={levels} for {size} {scaling.dtype} data, expected images: leave out --levels"
        )
    if levels > scaling.levels:
        raise ConfigurationError(
            f"{dataset.name}: got levels={levels}, expected at most {scaling.levels}, which its images have: give fewer, or "
            "leave out --levels"
        )
    if levels == scaling.levels:
        return dataset
    train, test = (coarse(x, scaling.levels, levels) for x in (dataset.train, dataset.test))
    try:
        measured = Scaling.measure(measured_on(train)[0], levels, scaling.layout)
    except DataError as error:
        raise DataError(f"{dataset.name} in {levels} levels: {error}; try more levels") from None
    return replace(dataset, train=train, test=test, scaling=measured)


def coarse(x: Tensor | Stream, old: int, new: int) -> Tensor | Stream:
    """uint8 pixels of `old` levels in `new` of them: floor(x new / old); a stream does so as it is read."""
    if not isinstance(x, Tensor):
        return CoarseStream(x, old, new)
    made = torch.empty_like(x)
    for source, target in zip(x.flatten().split(_CHUNK), made.view(-1).split(_CHUNK), strict=True):
        target.copy_(source.int().mul_(new).div_(old, rounding_mode="floor"))
    return made


@dataclass(frozen=True, eq=False)
class CoarseStream:
    """A `Stream` of uint8 images whose pixels, of `old` levels in `source`, come in `new`: floor(x new / old)."""

    source: Stream
    old: int
    new: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, *raw_shape)."""
        return self.source.shape

    @property
    def dtype(self) -> torch.dtype:
        """uint8."""
        return self.source.dtype

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.read(rows)[0]

    def read(self, rows: Tensor) -> tuple[Tensor, int]:
        """The images of `rows` (b,), and how many of them are stand-ins."""
        x, bad = self.source.read(rows)
        made = coarse(x, self.old, self.new)
        assert isinstance(made, Tensor)
        return made, bad

    def take(self, rows: Tensor) -> "CoarseStream":
        """The stream of some of the rows."""
        return replace(self, source=self.source.take(rows))

    def digest(self) -> str:
        """Of the source's own, and the levels."""
        return hashlib.sha256(f"{self.source.digest()} {self.old} {self.new}".encode()).hexdigest()
