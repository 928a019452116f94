"""How the axes of raw examples stand: images with channels last or without any, series, or as they are; models want channels
first."""

import math

from torch import Tensor

IMAGES = ("hw", "hwc", "chw")
LAYOUTS = (*IMAGES, "lc", "plain")


class Laid:
    """Base of what turns raw data of a layout into model units: "hw" (n, h, w), "hwc" (n, h, w, c), "chw" (n, c, h, w), all
    images; "lc" (n, length, channels), series; "plain" keeps its axes. shape: that of one example in model units."""

    shape: tuple[int, ...]
    layout: str

    @property
    def is_image(self) -> bool:
        """Whether raw examples are pictures (with a height and a width)."""
        return self.layout in IMAGES

    @property
    def dims(self) -> int:
        """Number of values in one example (for bits/dim)."""
        return math.prod(self.shape)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """Shape of one raw example."""
        if self.layout == "hw":
            return self.shape[1:]
        return (*self.shape[1:], self.shape[0]) if self.layout in ("hwc", "lc") else self.shape

    def channels_first(self, raw: Tensor) -> Tensor:
        """Raw axes (b, *raw_shape) as those of the model (b, *shape), a view."""
        if self.layout == "hw":
            return raw.unsqueeze(1)
        return raw.movedim(-1, 1) if self.layout in ("hwc", "lc") else raw

    def raw_axes(self, x: Tensor) -> Tensor:
        """The way back, a view."""
        if self.layout == "hw":
            return x.squeeze(1)
        return x.movedim(1, -1) if self.layout in ("hwc", "lc") else x
