"""The classifier whose last hidden layer is the space in which images are compared, and its file.

A `LeNet` is trained by `benchmarks/train_classifier.py`, on MNIST for the file that is shipped here and on any labelled
images for a file of the user's own. The file is safetensors: the weights, and in the header one JSON string that says
what builds the network (image size, channels, classes) and how it was trained. No pickle, no code.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ornstein.data.codes import Codes
from ornstein.data.scaling import Scaling
from ornstein.errors import CheckpointError, ConfigurationError, DataError

SHIPPED = Path(__file__).parent / "mnist_lenet.safetensors"
FORMAT = "ornstein-lenet-1"
SIZE = ("channels", "height", "width", "classes")  # what builds a LeNet
WIDTH = 128  # number of features
TRAIN_HINT = "train one with `python benchmarks/train_classifier.py DATA --out FILE` and name it with --features FILE"


def pixels(raw: Tensor, scaling: Scaling | Codes) -> Tensor:
    """Raw images (n, *raw_shape) as the classifier reads them: (n, c, h, w), raw / (levels - 1), so in [0, 1].

    Model units will not do: where they put black and white depends on the data. `DataError` where these are no images.
    """
    if not scaling.is_image or scaling.levels is None or tuple(raw.shape[1:]) != scaling.raw_shape:
        raise DataError(
            f"got {scaling.layout} {scaling.dtype} data of shape {tuple(raw.shape)}; expected uint8 images "
            f"of shape {scaling.raw_shape}"
        )
    images = raw.float() / (scaling.levels - 1)
    if scaling.layout == "hw":
        return images.unsqueeze(1)
    return images.movedim(-1, 1) if scaling.layout == "hwc" else images


class LeNet(nn.Module):
    """conv 32 - conv 64 - dense 128 - dense `classes`: 3x3 kernels, ReLU, and 2x2 max pooling after each convolution.

    Images are (b, channels, height, width) with values in [0, 1]; height and width at least 4. Calling it gives the
    logits (b, classes); `features` the activations (b, 128) of the dense layer after its ReLU.
    """

    def __init__(self, channels: int = 1, height: int = 28, width: int = 28, classes: int = 10) -> None:
        super().__init__()
        if min(channels, classes) < 1 or min(height, width) < 4:
            raise ConfigurationError(
                f"LeNet got {channels} channels of {height}x{width} and {classes} classes; "
                "expected at least 1 channel, 4x4 pixels and 1 class: enlarge smaller images"
            )
        self.channels, self.height, self.width, self.classes = channels, height, width, classes
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.dense = nn.Linear(64 * (height // 4) * (width // 4), WIDTH)
        self.out = nn.Linear(WIDTH, classes)

    def features(self, images: Tensor) -> Tensor:
        """(b, channels, height, width) in [0, 1] -> (b, 128)."""
        x = torch.max_pool2d(self.conv1(images).relu(), 2)
        x = torch.max_pool2d(self.conv2(x).relu(), 2)
        return self.dense(x.flatten(1)).relu()

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, height, width) in [0, 1] -> logits (b, classes)."""
        return self.out(self.features(images))


@dataclass(frozen=True, eq=False)
class FeatureNet:
    """A trained `LeNet` with where it came from: calling it on images (n, c, h, w) in [0, 1] gives (n, 128) features.

    Images of another size are resized to the network's (bilinear, no antialiasing); `fits` says whether the channels
    agree, without which calling raises `ConfigurationError`.
    """

    network: LeNet
    name: str  # file name
    sha256: str  # of the file
    about: dict[str, Any] = field(default_factory=dict)  # header of the file: size, data, accuracy, seed

    def fits(self, images: Tensor) -> bool:
        """Whether the network reads images of this many channels."""
        return images.ndim == 4 and images.shape[1] == self.network.channels

    def resizes(self, images: Tensor) -> bool:
        """Whether these images have another height or width than those the network was trained on."""
        return tuple(images.shape[2:]) != (self.network.height, self.network.width)

    def __str__(self) -> str:
        net = self.network
        trained = self.about.get("data", "unknown data")
        return (
            f"{self.name} (LeNet, {WIDTH} features, trained on {net.classes} classes of {trained} at "
            f"{net.height}x{net.width}x{net.channels}, sha256 {self.sha256[:12]})"
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, 128), float32 on the CPU, of images (n, c, h, w) in [0, 1]."""
        if not self.fits(images):
            raise ConfigurationError(
                f"{self.name} reads images of {self.network.channels} channel(s); got shape {tuple(images.shape)}: "
                + TRAIN_HINT
            )
        size = (self.network.height, self.network.width)
        parts = []
        for part in images.cpu().float().split(100):  # small parts, channels last: 3.5x faster than 500 at a time
            if self.resizes(images):
                part = interpolate(part, size=size, mode="bilinear", align_corners=False, antialias=False)
            parts.append(self.network.features(part.contiguous(memory_format=torch.channels_last)))
        return torch.cat(parts)


def save_features(network: LeNet, path: str | Path, about: dict[str, Any]) -> None:
    """Write the classifier to `path`; `about` (JSON values: data, accuracy, seed ...) goes into the header.

    The write is to a temporary name that is then renamed, so an interrupted one leaves nothing half done.
    """
    from safetensors.torch import save_file

    path = Path(path)
    built = {key: getattr(network, key) for key in SIZE}
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    # One string, because safetensors writes several in random order and the same training must give the same bytes.
    header = json.dumps({"format": FORMAT, **built, **about}, sort_keys=True)
    partial = path.with_name(path.name + ".partial")
    save_file(weights, partial, metadata={"classifier": header})
    partial.replace(path)


def load_features(path: str | Path | None = None) -> FeatureNet:
    """Read a classifier file: the shipped one (MNIST digits, 28x28, grey) without a path.

    `CheckpointError` where the file is missing, cut short, of another format, or its weights have other shapes than
    its header says.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = SHIPPED if path is None else Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the classifier {path}: {error.strerror}; {TRAIN_HINT}") from error
    try:
        weights = load(raw)
        about = _header(raw)
        with torch.device("meta"):  # no memory for what a wrong header asks, no draw from the global generator
            network = LeNet(*(about[key] for key in SIZE))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a classifier of format {FORMAT} ({type(error).__name__}: {error}); {TRAIN_HINT}"
        ) from error
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in weights.items()}
    if got != expected:
        wrong = sorted(name for name in {*got, *expected} if got.get(name) != expected.get(name))
        raise CheckpointError(
            f"{path}: weights {', '.join(wrong)} do not fit the size in the file's header "
            f"(got {got.get(wrong[0])}, expected {expected.get(wrong[0])}); {TRAIN_HINT}"
        )
    network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    network = network.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]
    return FeatureNet(network, path.name, hashlib.sha256(raw).hexdigest(), about)


def _header(raw: bytes) -> dict[str, Any]:
    """What `save_features` put into the header (safetensors itself reads it only from a file name, a second time)."""
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__", {})
    about = json.loads(header.get("classifier", "{}"))
    if about.get("format") != FORMAT:
        raise ValueError(f"its header says format {about.get('format')}")
    return about
