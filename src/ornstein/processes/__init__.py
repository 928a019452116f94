"""Forward processes: `Gaussian` for numbers, `Categorical` for categories."""

from ornstein.processes.categorical import Categorical, CategoricalEstimate, CategoricalLaw
from ornstein.processes.chains import DiscretisedGaussian, Matrices
from ornstein.processes.conditional import ByClass, ConditionalNormal
from ornstein.processes.covariance import LowRank
from ornstein.processes.gaussian import Estimate, Gaussian
from ornstein.processes.kernels import Absorbing, Kernel, Marginal, Uniform
from ornstein.processes.normal import GaussianLaw, Normal
from ornstein.processes.product import Product, ProductEstimate, ProductLaw
from ornstein.processes.rates import BirthDeath, Neighbours, Rates

__all__ = [
    "Absorbing",
    "BirthDeath",
    "ByClass",
    "Categorical",
    "CategoricalEstimate",
    "CategoricalLaw",
    "ConditionalNormal",
    "DiscretisedGaussian",
    "Estimate",
    "Gaussian",
    "GaussianLaw",
    "Kernel",
    "LowRank",
    "Marginal",
    "Matrices",
    "Neighbours",
    "Normal",
    "Product",
    "ProductEstimate",
    "ProductLaw",
    "Rates",
    "Uniform",
]
