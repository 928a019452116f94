"""Scaling: raw data <-> model units.

Networks and processes want numbers of order one in the layout (b, *d); data come as uint8 images, tables in metres and
degrees, series in volts. The map between them is affine and invertible,

    model = (raw - shift) * scale,        log|d model / d raw| = sum over dimensions of log scale,

measured once on the training data and stored with the model, so that samples come back as what was put in and a
log-density in model units becomes one in raw units by adding `log_det()`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data.layouts import LAYOUTS, Laid
from ornstein.errors import ConfigurationError, DataError, NumericalError

if TYPE_CHECKING:
    from ornstein.data.codes import Codes

_DTYPES = {"uint8": torch.uint8, "float32": torch.float32, "float64": torch.float64}
SERIES_NOTE = "arrays of 3 axes are taken as series (n, length, channels); for grey images store uint8"
_CHUNK = 1 << 22  # values looked at in one go: statistics of large data need no float64 copy of them


@dataclass(frozen=True)
class Scaling(Laid):
    """The affine map `model = (raw - shift) * scale` and what is needed to undo it.

    shape: model shape of one example, `(c, h, w)` for images.
    layout: of the raw data: "hw" (n, h, w), "hwc" (n, h, w, c), "chw" (n, c, h, w), all images; "lc" series (n, length,
        channels), in model units (channels, length); "plain" keeps its axes.
    shift, scale: one number for all dimensions, or one for each feature of a vector (shape `(d,)`) or channel of series.
    levels: raw values are the integers 0 .. levels - 1 held as uint8 (256 for common images); None for continuous data.
    dtype: of the raw data: "uint8", "float32" or "float64".
    sigma_data: standard deviation of the training data in model units, over all values; their mean is 0. It is
        sigma_data of EDM (Karras et al. 2022, arXiv:2206.00364, table 1); data standardised per feature have 1.

    Raises ConfigurationError where the fields do not go together. Made by `Scaling.measure`.
    """

    shape: tuple[int, ...]
    layout: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    levels: int | None
    dtype: str
    sigma_data: float

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS or self.dtype not in _DTYPES:
            raise ConfigurationError(
                f"scaling of layout {self.layout!r} and dtype {self.dtype!r}; expected one of {', '.join(LAYOUTS)} and "
                f"one of {', '.join(_DTYPES)}"
            )
        if self.is_image and len(self.shape) != 3:
            raise ConfigurationError(f"images of model shape {self.shape}; expected (channels, height, width)")
        if self.layout == "lc" and (len(self.shape) != 2 or self.dtype == "uint8"):
            raise ConfigurationError(
                f"{self.dtype} series of model shape {self.shape}; expected floats (channels, length)"
            )
        sizes = {1, self.shape[0]} if len(self.shape) == 1 or self.layout == "lc" else {1}
        if len(self.shift) not in sizes or len(self.scale) != len(self.shift):
            raise ConfigurationError(
                f"{len(self.shift)} shifts and {len(self.scale)} scales for shape {self.shape}; expected one of each"
            )
        if not all(0 < s < math.inf for s in self.scale) or not all(map(math.isfinite, self.shift)):
            raise ConfigurationError("a scaling's scales must be positive and its scales and shifts finite")
        if (self.levels is None) == (self.dtype == "uint8") or not 2 <= (self.levels or 2) <= 256:
            raise ConfigurationError(
                f"{self.levels} levels for {self.dtype} data; expected 2 to 256 for uint8, else None"
            )
        if not 0 < self.sigma_data < math.inf:
            raise ConfigurationError(f"sigma_data is {self.sigma_data}; expected a positive number")

    @classmethod
    def measure(
        cls, raw: Tensor, levels: int | None = None, layout: str | None = None, per_feature: bool = True
    ) -> "Scaling":
        """Measure the scaling of training data `raw` (n, ...).

        uint8 data: shift = the mean over all values, scale = 2 / (levels - 1), so that model values span 2 units about
        a mean of 0, which preconditioning assumes; `levels` is 256 unless given. Float data: standardised to mean 0 and
        variance 1, each feature of vectors (n, d) and each channel of series (n, length, channels) on its own (one mean
        and std for all with `per_feature=False`), arrays of more axes by one mean and std.
        `layout` is inferred unless given: uint8 (n, h, w) is "hw"; (n, h, w, c) with c of 1, 3 or 4 is "hwc";
        (n, c, h, w) is "chw"; floats (n, length, channels) are "lc"; all else "plain".

        Raises DataError where a feature is constant (its density is infinite and its scale undefined) or values are
        outside the levels, ConfigurationError where `levels` are given for data that are not uint8.
        """
        if raw.dtype not in _DTYPES.values():
            raise ConfigurationError(f"raw data of type {raw.dtype}; expected uint8, float32 or float64")
        if raw.dtype == torch.uint8:
            return cls._measure_levels(raw, 256 if levels is None else levels, layout or infer_layout(raw))
        if levels is not None:
            raise ConfigurationError(f"levels={levels} for data of type {raw.dtype}; levels are for uint8 data")
        layout = layout or ("lc" if raw.ndim == 3 else "plain")
        series = layout == "lc" and raw.ndim == 3
        rows, kind = (raw.flatten(0, 1), "channel") if series else (raw, "column")
        mean, std = _moments(rows, per_feature and rows.ndim == 2, kind)
        return cls(
            shape=(raw.shape[2], raw.shape[1]) if series else tuple(raw.shape[1:]),
            layout=layout,
            shift=tuple(mean.tolist()),
            scale=tuple((1 / std).tolist()),
            levels=None,
            dtype=str(raw.dtype).removeprefix("torch."),
            sigma_data=1.0,
        )

    @classmethod
    def _measure_levels(cls, raw: Tensor, levels: int, layout: str) -> "Scaling":
        counts = sum(torch.bincount(c.long(), minlength=256) for c in raw.reshape(-1).split(_CHUNK))
        counts = torch.as_tensor(counts, dtype=torch.float64).cpu()
        largest = int(counts.nonzero().max())
        if largest >= levels:
            raise DataError(f"raw values up to {largest}; expected at most {levels - 1} for {levels} levels")
        values, weights = torch.arange(256, dtype=torch.float64), counts / counts.sum()
        mean, scale = float((weights * values).sum()), 2 / (levels - 1)
        std = scale * float((weights * (values - mean) ** 2).sum().sqrt())
        if (counts > 0).sum() < 2:
            raise DataError(f"all training values are {largest}; expected data that vary")
        shape = tuple(raw.shape[1:])
        if layout == "hw":
            shape = (1, *shape)
        elif layout == "hwc":
            shape = (shape[2], *shape[:2])
        return cls(shape, layout, (mean,), (scale,), levels, "uint8", std)

    def encode(self, raw: Tensor | np.ndarray) -> Tensor:
        """Raw (b, *raw_shape) -> model units, float32 (b, *shape), on the device of `raw`.

        Images with the channels last keep that order in memory (a channels-last tensor): no copy of the layout is made.
        Raises DataError where the shape is another.
        """
        if isinstance(raw, np.ndarray):
            raw = torch.from_numpy(raw if raw.flags.writeable else raw.copy())
        if tuple(raw.shape[1:]) != self.raw_shape or raw.ndim == 0:
            raise DataError(
                f"raw data of shape {tuple(raw.shape)}; expected (n, {', '.join(map(str, self.raw_shape))})"
            )
        x = raw.to(torch.float64 if raw.dtype == torch.float64 else torch.float32)
        x = self.channels_first(x)
        shift, scale = self._coefficients(x)
        return (x - shift).mul_(scale).float()

    def decode(self, x: Tensor) -> Tensor:
        """Model units (b, *shape) -> raw data: for data of levels rounded and clamped to 0 .. levels - 1 as uint8.

        Raises NumericalError where `x` holds NaN or inf, DataError where its shape is another.
        """
        x = check_samples(x, self.shape)
        x = x.to(torch.float64 if self.dtype == "float64" else torch.float32)
        shift, scale = self._coefficients(x)
        raw = (x / scale).add_(shift)
        if self.levels is not None:
            raw = raw.round_().clamp_(0, self.levels - 1)
        return self.raw_axes(raw).to(_DTYPES[self.dtype]).contiguous()

    def log_det(self) -> float:
        """log|d model / d raw| of one example in nats: log p_raw(raw) = log p_model(model) + log_det()."""
        return math.fsum(map(math.log, self.scale)) * (self.dims / len(self.scale))

    def require_same(self, other: Any) -> None:
        """Raise DataError where raw examples of another scaling are of another kind than those of this."""
        mine, theirs = ((s.raw_shape, s.layout, s.dtype) for s in (self, other))
        if mine != theirs:
            raise DataError(f"data of (shape, layout, type) {theirs}; expected {mine}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers, strings and lists, for JSON; `from_dict` gives back an equal scaling."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Scaling":
        """The scaling that `to_dict` wrote. Raises ConfigurationError where fields are missing or unknown."""
        names = {f.name for f in fields(cls)}
        if set(values) != names:
            raise ConfigurationError(f"a scaling with the fields {sorted(values)}; expected {sorted(names)}")
        return cls(
            shape=tuple(values["shape"]),
            layout=values["layout"],
            shift=tuple(values["shift"]),
            scale=tuple(values["scale"]),
            levels=values["levels"],
            dtype=values["dtype"],
            sigma_data=values["sigma_data"],
        )

    def _coefficients(self, x: Tensor) -> tuple[Any, Any]:
        if len(self.shift) == 1:
            return self.shift[0], self.scale[0]
        size = (-1, 1) if self.layout == "lc" else (-1,)
        return x.new_tensor(self.shift).reshape(size), x.new_tensor(self.scale).reshape(size)


def check_samples(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`x` without its gradient. Raises DataError unless it is (n, *shape), NumericalError where it holds NaN or inf."""
    if tuple(x.shape[1:]) != shape or x.ndim == 0:
        raise DataError(f"model data of shape {tuple(x.shape)}; expected (n, {', '.join(map(str, shape))})")
    x = x.detach()
    if not torch.isfinite(x).all():
        rows = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten()
        raise NumericalError(
            f"{len(rows)} of {len(x)} samples hold NaN or inf, the first is row {int(rows[0])}; expected finite "
            "numbers: the network or the sampler diverged (try more steps, or an earlier checkpoint)"
        )
    return x


def infer_layout(raw: Tensor) -> str:
    """The layout of uint8 data: "hw", "hwc", "chw" for what looks like images, else "plain"."""
    if raw.ndim == 3:
        return "hw"
    if raw.ndim == 4 and raw.shape[3] in (1, 3, 4):
        return "hwc"
    return "chw" if raw.ndim == 4 and raw.shape[1] in (1, 3, 4) else "plain"


def to_uint8_images(scaling: "Scaling | Codes", raw: Tensor) -> Tensor:
    """Raw images -> uint8 (n, h, w) or (n, h, w, c) from 0 (black) to 255 (white), for pictures.

    value = round(255 raw / (levels - 1)). Raises DataError where the data are not images.
    """
    if not scaling.is_image or scaling.levels is None:
        raise DataError(
            f"data of shape {scaling.raw_shape} and type {scaling.dtype} are not images; expected uint8 images"
        )
    if scaling.layout == "chw":
        raw = raw.movedim(1, -1)
    if raw.ndim == 4 and raw.shape[3] == 1:
        raw = raw.squeeze(3)
    if scaling.levels == 256:
        return raw.to(torch.uint8)
    return (raw.float() * (255 / (scaling.levels - 1))).round().to(torch.uint8)


def _moments(raw: Tensor, per_feature: bool, kind: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in float64, (d,) or (1,), by two passes over chunks; `kind` of feature, for messages."""
    table = raw.reshape(len(raw), -1) if per_feature else raw.reshape(-1, 1)
    chunks = table.split(max(1, _CHUNK // max(1, table.shape[1])))
    constant = (table == table[0]).all(0)
    if constant.any():
        columns = constant.nonzero().flatten().tolist()
        if not per_feature or table.shape[1] == 1:
            raise DataError(f"all training values are {float(table[0, 0]):g}; expected data that vary")
        named = ", ".join(map(str, columns[:5])) + (", ..." if len(columns) > 5 else "")
        remedy = "x[:, x.std(0) > 0]"
        if kind == "channel":
            remedy = f"x[..., x.std((0, 1)) > 0] ({SERIES_NOTE})"
        raise DataError(
            f"{len(columns)} of {table.shape[1]} {kind}s are constant ({kind} {named}, counted from 0); such {kind}s "
            f"have no density: remove them, e.g. x = {remedy}"
        )
    mean = torch.stack([c.double().sum(0) for c in chunks]).sum(0) / len(table)
    std = (torch.stack([((c.double() - mean) ** 2).sum(0) for c in chunks]).sum(0) / len(table)).sqrt()
    if not (torch.isfinite(std).all() and torch.isfinite(1 / std).all()):
        raise DataError("the standard deviation of the data is beyond float64; rescale the data, e.g. x / abs(x).max()")
    return mean.cpu(), std.cpu()
