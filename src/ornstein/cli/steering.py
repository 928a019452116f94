"""The options by which samples resemble given images: inpainting, ILVR, super-resolution, SDEdit, on the command line."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from ornstein.cli.common import hint, say
from ornstein.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.data import Scaling
    from ornstein.samplers import Sampler


@dataclass(frozen=True)
class SteeringOptions:
    """What samples have in common with given images (arrays of other data: a .npy or .npz file); those of a folder in turn."""

    inpaint: Annotated[Path | None, arg(metavar="IMAGE", **hint())] = None
    """Keep this image where --mask is black, and draw where it is white."""
    mask: Annotated[Path | None, arg(metavar="MASK", **hint())] = None
    """The mask of --inpaint: an image of the same size, white where values are drawn."""
    reference: Annotated[Path | None, arg(metavar="IMAGE", **hint())] = None
    """ILVR: samples have this image's low frequencies, those that --filter keeps at --factor."""
    upscale: Annotated[Path | None, arg(metavar="IMAGE", **hint())] = None
    """Super-resolution: an image --factor times smaller than the model's, which the means of the samples' blocks are."""
    factor: int = 4
    """Of --reference and --upscale: blocks of factor x factor; the larger, the freer the samples."""
    filter: Literal["block", "bilinear", "bicubic", "fourier"] = "block"
    """Of --reference: block and fourier are kept exactly, bilinear and bicubic roughly."""
    until: float = 0.0
    """Of --inpaint and --reference: the time (1 noise, 0 data) at which samples are let go."""
    resamplings: int = 1
    """Of --inpaint, --reference and --upscale: how often each step is made (RePaint); 10 fits far better."""
    init: Annotated[Path | None, arg(metavar="IMAGE", **hint())] = None
    """SDEdit: begin from this image, noised to the time --strength, in place of noise."""
    strength: float = 0.6
    """Of --init: the time at which samples begin, 0 (the image itself) to 1 (noise)."""


@dataclass(frozen=True)
class Steering:
    """`wrap`: what constrains a sampler, None where nothing does. `init`: raw examples to begin from, at time `begin`."""

    wrap: "Callable[[Sampler], Sampler] | None" = None
    init: "Tensor | None" = None
    begin: float | None = None


def steer(model: "Model", options: SteeringOptions) -> Steering:
    """What the options ask for, read from their files. Raises `OrnsteinError` where they do not fit each other or the model."""
    asked = [name for name in ("inpaint", "reference", "upscale") if getattr(options, name) is not None]
    if len(asked) > 1:
        raise ConfigurationError(f"got {' and '.join(f'--{name}' for name in asked)}, expected one of them")
    usual = SteeringOptions()
    needs = {"mask": ("inpaint",), "filter": ("reference",), "factor": ("reference", "upscale")}
    needs |= {
        "until": ("inpaint", "reference"),
        "resamplings": ("inpaint", "reference", "upscale"),
        "strength": ("init",),
    }
    for name, owners in needs.items():
        if getattr(options, name) != getattr(usual, name) and all(getattr(options, o) is None for o in owners):
            raise ConfigurationError(
                f"got --{name} without {' or '.join(f'--{o}' for o in owners)}, expected it with one"
            )
    if options.inpaint is not None and options.mask is None:
        raise ConfigurationError(
            "got --inpaint without --mask, expected --mask MASK, white where values are to be drawn"
        )
    if options.init is not None and not 0 < options.strength <= 1:
        raise ConfigurationError(f"got --strength {options.strength:g}, expected above 0 and at most 1")
    init = None if options.init is None else read_raw(model, options.init)
    return Steering(_constraint(model, options), init, None if init is None else options.strength)


def _constraint(model: "Model", options: SteeringOptions) -> "Callable[[Sampler], Sampler] | None":
    """What wraps the sampler. Files are read, and all is checked, now and not when it is called."""
    from ornstein.constraints import ILVR, Inpainting
    from ornstein.filters import FILTERS, BlockAverage
    from ornstein.samplers import Ancestral

    if options.inpaint is None and options.reference is None and options.upscale is None:
        return None
    scaling, until, again = _scaling(model), options.until, options.resamplings
    device = next(iter(model.parameters())).device  # where they are used at every step
    wrap: Callable[[Sampler], Sampler]
    if options.inpaint is not None:
        assert options.mask is not None
        known = scaling.encode(_read(options.inpaint, scaling)).to(device)
        missing = _read_mask(options.mask, scaling).to(device)
        wrap = partial(Inpainting, reference=known, missing=missing, stop=until, resamplings=again)
    elif options.reference is not None:
        reference, phi = (
            scaling.encode(_read(options.reference, scaling)).to(device),
            FILTERS[options.filter](options.factor),
        )
        wrap = partial(ILVR, reference=reference, filter=phi, stop=until, resamplings=again)
    else:
        assert options.upscale is not None
        if len(scaling.shape) < 2:
            raise ConfigurationError("got --upscale for a model of vectors, expected one of images or series")
        BlockAverage(options.factor).check(scaling.shape)
        channels, *space = scaling.shape
        small = replace(scaling, shape=(channels, *(size // options.factor for size in space)))
        low = small.encode(_read(options.upscale, small)).to(device)
        wrap = partial(ILVR.super_resolution, low=low, factor=options.factor, resamplings=again)
    wrap(Ancestral())
    return wrap


def _scaling(model: "Model") -> "Scaling":
    from ornstein.data import Scaling

    if not isinstance(model.scaling, Scaling):
        raise DataError("got a model of tables, or one without a scaling, expected a run on images, series or arrays")
    return model.scaling


def read_raw(model: "Model", path: Path) -> "Tensor":
    """The examples in a file in the model's raw units; what was converted is said on stderr. Raises `DataError`."""
    return _read(path, _scaling(model))


def _read(path: Path, scaling: "Scaling") -> "Tensor":
    from ornstein.data.inputs import read_examples

    found, notes = read_examples(path, scaling)
    for note in notes:
        say(f"note: {note}")
    return found


def _read_mask(path: Path, scaling: "Scaling") -> "Tensor":
    from ornstein.data.inputs import read_mask

    missing, notes = read_mask(path, scaling)
    for note in notes:
        say(f"note: {note}")
    return missing
