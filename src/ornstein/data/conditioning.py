"""What is given with each example, as a network takes it: vectors of numbers, or images of the examples' own size."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein.data.arrays import as_condition, readable
from ornstein.data.codes import Codes
from ornstein.data.columns import TableScaling
from ornstein.data.dataset import Dataset
from ornstein.data.scaling import Scaling, infer_layout
from ornstein.errors import DataError


@dataclass(frozen=True)
class Conditioning:
    """The map from raw conditions to those of a network, measured on the training part and stored with the model.

    scaling: of vectors to mean 0 and variance 1, each component by itself; of uint8 images to [-1, 1], whatever they hold; of
    series to mean 0 and variance 1, each channel by itself.
    """

    scaling: Scaling

    @property
    def vector(self) -> int:
        """The length of the vectors, 0 where the conditions are none."""
        return self.scaling.shape[0] if len(self.scaling.shape) == 1 else 0

    @property
    def images(self) -> int:
        """The channels of images or series, 0 where the conditions are none."""
        return 0 if self.vector else self.scaling.shape[0]

    @classmethod
    def measure(cls, dataset: Dataset) -> "Conditioning":
        """Measured on the conditions of the training examples of a data set.

        Raises DataError where it has none, where they are neither vectors nor fit the examples, or where one does not vary.
        """
        cond, name = dataset.train_cond, f"{dataset.name}: conditions"
        if cond is None or dataset.test_cond is None:
            raise DataError(
                f"{dataset.name} has no conditions; expected an .npz file with an array 'cond' beside the examples, one row each"
            )
        mine, held = ((tuple(c.shape[1:]), c.dtype) for c in (cond, dataset.test_cond))
        if mine != held:
            raise DataError(f"{name} of (shape, type) {mine}, held-out of {held}; expected the same for both")
        try:
            if cond.is_floating_point() and cond.ndim == 2:
                return cls(Scaling.measure(_in_float(cond)))
            if _fits(cond, dataset.scaling):
                if cond.is_floating_point():
                    return cls(Scaling.measure(_in_float(cond), layout="lc"))
                return cls(_of_images(cond))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        raise DataError(
            f"{name} of type {str(cond.dtype).removeprefix('torch.')} and shape (n, {', '.join(map(str, cond.shape[1:]))}); "
            f"expected {_expected(dataset.scaling)}; classes are labels: --condition labels"
        )

    def encode(self, raw: Tensor | np.ndarray) -> Tensor:
        """Raw conditions (b, *raw shape) as the network takes them, float32 (b, *shape). Raises DataError for another kind."""
        raw = as_condition(raw, "conditions") if isinstance(raw, np.ndarray) else raw
        shape, images = self.scaling.raw_shape, self.scaling.is_image
        if (
            tuple(raw.shape[1:]) != shape
            or (raw.dtype == torch.uint8) != images
            or not (images or raw.is_floating_point())
        ):
            kind = "uint8 images" if images else "floats"
            got = f"type {str(raw.dtype).removeprefix('torch.')} and shape {tuple(raw.shape)}"
            raise DataError(
                f"conditions of {got}; expected {kind} of shape (n, {', '.join(map(str, shape))}), as in training"
            )
        return self.scaling.encode(raw if images else _in_float(raw))

    def read(self, path: Path | str) -> Tensor:
        """The conditions in a file, encoded: the array `cond` of an .npz, or its only one, or a .npy. Raises DataError."""
        path = Path(path)
        with readable(path):
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                array = loaded
            else:
                with loaded as file:
                    name = "cond" if "cond" in file.files or len(file.files) != 1 else file.files[0]
                    if name not in file.files:
                        held = ", ".join(file.files) or "nothing"
                        raise DataError(f"{path} holds {held}; expected an array 'cond', one row a sample")
                    array = file[name]
        try:
            return self.encode(array)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings and lists, for JSON."""
        return self.scaling.to_dict()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Conditioning":
        """What `to_dict` wrote. Raises ConfigurationError where it is not whole."""
        return cls(Scaling.from_dict(values))


def _in_float(cond: Tensor) -> Tensor:
    """Half precision as single, which a scaling knows."""
    return cond if cond.dtype in (torch.float32, torch.float64) else cond.float()


def _fits(cond: Tensor, scaling: Scaling | TableScaling | Codes) -> bool:
    """Whether conditions are images, or series, of the size of the examples."""
    if not isinstance(scaling, Scaling):
        return False
    if scaling.is_image and cond.dtype == torch.uint8:
        return infer_layout(cond) != "plain" and _of_images(cond).shape[1:] == scaling.shape[1:]
    return scaling.layout == "lc" and cond.is_floating_point() and cond.ndim == 3 and cond.shape[1] == scaling.shape[1]


def _of_images(cond: Tensor) -> Scaling:
    """0 .. 255 to [-1, 1]: not measured, as a condition may be black in all of training."""
    layout, shape = infer_layout(cond), tuple(cond.shape[1:])
    shape = {"hw": (1, *shape), "hwc": (*shape[2:], *shape[:2])}.get(layout, shape)
    return Scaling(shape, layout, (127.5,), (2 / 255,), 256, "uint8", 1.0)


def _expected(scaling: Scaling | TableScaling | Codes) -> str:
    vectors = "floats (n, k), which are vectors"
    if isinstance(scaling, Scaling) and scaling.is_image:
        return f"{vectors}, or uint8 images of the examples' own {scaling.shape[1]} x {scaling.shape[2]} pixels"
    if isinstance(scaling, Scaling) and scaling.layout == "lc":
        return f"{vectors}, or series of floats (n, {scaling.shape[1]}, k), of the examples' own length"
    return vectors
