"""Forward processes."""

from ornstein.processes.gaussian import Estimate, Gaussian
from ornstein.processes.normal import GaussianLaw, Normal

__all__ = ["Estimate", "Gaussian", "GaussianLaw", "Normal"]
