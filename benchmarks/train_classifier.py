"""Train the classifier on whose features images are compared, and write its file.

    python benchmarks/train_classifier.py ../shared/data/mnist.npz     # the shipped file, about 3 minutes
    python benchmarks/train_classifier.py DATA --out FILE              # one for your own labelled images: any size,
    ornstein evaluate RUN --features FILE                              # any channels; .npz, image folder or zip

The recipe is fixed: `LeNet` (conv 32 - conv 64 - dense 128, the features), 3 epochs of Adam at 1e-3 in batches of 128,
pixels in [0, 1], one thread, every draw from the seed. The same data on the same machine and PyTorch give the same
bytes (another processor may round differently). Prints the accuracy on the held-out images and the file's checksum.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ornstein.data import Dataset, load_dataset
from ornstein.errors import DataError, OrnsteinError
from ornstein.metrics.features import SHIPPED, LeNet, pixels, save_features

BATCH, LEARNING_RATE = 128, 1e-3


def train(images: Tensor, labels: Tensor, classes: int, *, epochs: int, seed: int) -> LeNet:
    """A `LeNet` trained on images (n, c, h, w) in [0, 1] with their class indices (n,)."""
    torch.manual_seed(seed)
    network = LeNet(*images.shape[1:], classes=classes)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        started, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(images), generator=order).split(BATCH):
            loss = cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}/{epochs}: loss {total / len(images):.4f}, {seconds:.0f} s", flush=True)
    return network.eval()


@torch.no_grad()
def accuracy(network: LeNet, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is that of their class."""
    guesses = torch.cat([network(part).argmax(1) for part in images.split(500)])
    return float((guesses == labels).double().mean())


def labelled(data: Dataset) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, held-out images and labels; images in [0, 1]."""
    if not data.scaling.is_image:
        raise DataError(f"{data.name} has examples of shape {data.scaling.raw_shape}; expected uint8 images")
    if data.train_labels is None or data.test_labels is None:
        raise DataError(f"{data.name} has no labels; expected a class for each image (a folder for each, or an array)")
    images, test_images = (pixels(raw, data.scaling) for raw in (data.train, data.test))
    return images, data.train_labels.long(), test_images, data.test_labels.long()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the classifier on whose features images are compared.")
    parser.add_argument("data", help="labelled images: .npz, image folder, .zip or the name of a built-in set")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="file to write (default: the shipped one)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    options = parser.parse_args()
    if options.out.exists() and not options.overwrite:
        parser.error(f"{options.out} exists; give another --out, or --overwrite to replace it")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        data = load_dataset(options.data)
        images, labels, test_images, test_labels = labelled(data)
        classes = max(len(data.classes), int(labels.max()) + 1)
        network = train(images, labels, classes, epochs=options.epochs, seed=options.seed)
    except OrnsteinError as error:
        sys.exit(f"{parser.prog}: {error}")
    share = accuracy(network, test_images, test_labels)
    about = {
        "data": Path(options.data).name,
        "examples": len(images),
        "accuracy": round(share, 4),
        "epochs": options.epochs,
        "seed": options.seed,
    }
    save_features(network, options.out, about)
    raw = options.out.read_bytes()
    print(f"accuracy {share:.4f} on {len(test_images)} held-out images")
    print(f"{options.out}: {len(raw):,} bytes, sha256 {hashlib.sha256(raw).hexdigest()}")


if __name__ == "__main__":
    main()
