"""Forward processes."""

from ornstein.processes.conditional import ByClass, ConditionalNormal
from ornstein.processes.covariance import LowRank
from ornstein.processes.gaussian import Estimate, Gaussian
from ornstein.processes.normal import GaussianLaw, Normal

__all__ = ["ByClass", "ConditionalNormal", "Estimate", "Gaussian", "GaussianLaw", "LowRank", "Normal"]
