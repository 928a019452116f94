"""ornstein: diffusion models, trained, sampled and measured. The names of the first minute, imported when first used."""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "schedules": "EDM CosineVP FromAlphaSigma FromSDE GeometricVE LinearVP RectifiedFlow SubVP TableSchedule",
    "processes": "ByClass ConditionalNormal Gaussian LowRank Normal",
    "denoisers": "Denoiser Retargeted Wrapper",
    "classifiers": "Classifier",
    "clipping": "Clipped",
    "guidance": "Autoguidance ClassifierFreeGuidance ClassifierGuidance PosteriorSampling",
    "filters": "Bicubic Bilinear BlockAverage Fourier",
    "constraints": "ILVR Inpainting",
    "editing": "interpolate sdedit",
    "objectives": "CrossEntropy DenoisingScoreMatching EDMWeighting ELBOWeighting ExplicitScoreMatching Hybrid "
    "ImplicitScoreMatching Importance LikelihoodWeighting LogNormalSigma MinSNR Objective Simple SlicedScoreMatching "
    "Stratified UniformLogSNR UniformSteps UniformTime VLB Weighting",
    "likelihood": "Bound Dequantise Likelihood decode elbo encode log_likelihood",
    "samplers": "RK4 RK45 Ancestral AnnealedLangevin Euler EulerMaruyama Heun Langevin Midpoint Multistep PredictorCorrector "
    "Samples Singlestep StochasticHeun UnderdampedLangevin sample sample_steps",
    "networks": "DiT MLP MLPEncoder UNet UNetEncoder",
    "noise": "Noise",
    "data": "Dataset Scaling TableScaling load_dataset",
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
