"""ornstein: diffusion models, trained, sampled and measured. The names of the first minute, imported when first used."""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "schedules": "EDM CosineVP FromAlphaSigma FromSDE GeometricVE LinearVP RectifiedFlow SubVP TableSchedule",
    "processes": "Absorbing BirthDeath ByClass Categorical ConditionalNormal DiscretisedGaussian Gaussian LowRank Marginal "
    "Matrices Neighbours Normal Product Rates Uniform",
    "denoisers": "Denoiser Retargeted Wrapper",
    "discrete": "DiscreteDenoiser",
    "mixed": "MixedDenoiser",
    "tempering": "Tempered",
    "classifiers": "Classifier",
    "clipping": "Clipped",
    "guidance": "Autoguidance ClassifierFreeGuidance ClassifierGuidance PosteriorSampling",
    "filters": "Bicubic Bilinear BlockAverage Fourier",
    "constraints": "ILVR Inpainting",
    "editing": "interpolate sdedit",
    "objectives": "CampbellELBO CrossEntropy DenoisingScoreMatching DiscreteHybrid EDMWeighting ELBOWeighting "
    "ExplicitScoreMatching Hybrid ImplicitScoreMatching Importance LikelihoodWeighting LogNormalSigma "
    "MaskedCrossEntropy MinSNR MixedObjective Objective RateVLB Simple SlicedScoreMatching Stratified "
    "UniformLogSNR UniformSteps UniformTime VLB Weighting",
    "likelihood": "Bound Dequantise Likelihood decode elbo encode log_likelihood",
    "samplers": "RK4 RK45 Ancestral AnnealedLangevin CTMCCorrector CTMCEuler Euler EulerMaruyama FirstHitting Gillespie Heun "
    "Langevin Midpoint Multistep Parts PredictorCorrector Samples Singlestep StochasticHeun TauLeaping UnderdampedLangevin "
    "sample sample_steps",
    "networks": "DiT MLP MLPEncoder Pixels TabularMLP Transformer UNet UNetEncoder",
    "noise": "Noise",
    "data": "Codes Dataset MixedScaling Scaling TableScaling Vocabulary load_dataset",
    "training": "train",
    "checkpoints": "Model load load_classifier",
    "metrics": "evaluate",
}
_MODULES = (
    "data",
    "exact",
    "grids",
    "likelihood",
    "metrics",
    "networks",
    "objectives",
    "processes",
    "samplers",
    "schedules",
)
EXPORTS = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = sorted([*EXPORTS, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in EXPORTS:
        value = getattr(import_module(f"ornstein.{EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"ornstein.{name}")
    else:
        raise AttributeError(f"module 'ornstein' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
