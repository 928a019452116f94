"""Handwritten digits: 1797 real images of 8 x 8 pixels with 17 grey levels, shipped inside the package.

They are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, doi:10.24432/C50P49, licence CC BY 4.0), made with programs of NIST: each pixel counts the black
points, 0 to 16, in a 4 x 4 cell of a 32 x 32 scan. The same images as scikit-learn's `load_digits`, in the same order.
"""

from pathlib import Path

import numpy as np
import torch

from ornstein.data.dataset import Dataset, Part, assemble

LEVELS = 17


def images() -> tuple[torch.Tensor, np.ndarray]:
    """All 1797 images (n, 8, 8), uint8, and their classes."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        return torch.from_numpy(file["images"]), file["labels"]


def digits(seed: int = 0, holdout: float | None = None) -> Dataset:
    """The handwritten digits, 0 (white paper) to 16 (ink), with their ten classes; 20 % are held out unless told."""
    part = Part(*images(), "digits")
    return assemble("digits", part, seed=seed, holdout=holdout, default_holdout=0.2, levels=LEVELS)
