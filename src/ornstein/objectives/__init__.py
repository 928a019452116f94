"""Objectives: `(denoiser, x0, cond, rng, keep) -> Loss`, made of a time law, a weighting and a comparison.

squared.py         the squared error of one reading, `Objective`: the default, and the route of every training step
times.py           laws of training times
importance.py      times drawn by the history of their losses
weightings.py      factors on the squared error
bounds.py          the variational bound, alone and beside the squared error
discrete.py        bounds and cross-entropies of categories
mixed.py           numbers and categories together
classification.py  the cross-entropy of a classifier of noisy data
usual.py           which one is meant where none is named
score_matching.py  the four forms of score matching
"""

from ornstein.objectives.bounds import VLB, Hybrid
from ornstein.objectives.classification import CrossEntropy
from ornstein.objectives.discrete import CampbellELBO, DiscreteHybrid, MaskedCrossEntropy, RateVLB
from ornstein.objectives.importance import History, Importance
from ornstein.objectives.mixed import MixedObjective
from ornstein.objectives.score_matching import (
    DenoisingScoreMatching,
    ExplicitScoreMatching,
    ImplicitScoreMatching,
    SlicedScoreMatching,
    irreducible,
)
from ornstein.objectives.squared import EDGE, Loss, Objective, ObjectiveLike, Simple, TimeLaw, UniformTime, WeightingLaw
from ornstein.objectives.times import LogNormalSigma, Stratified, UniformLogSNR, UniformSteps
from ornstein.objectives.usual import usual
from ornstein.objectives.weightings import EDMWeighting, ELBOWeighting, LikelihoodWeighting, MinSNR, Weighting

__all__ = [
    "EDGE",
    "VLB",
    "CampbellELBO",
    "CrossEntropy",
    "DenoisingScoreMatching",
    "DiscreteHybrid",
    "EDMWeighting",
    "ELBOWeighting",
    "ExplicitScoreMatching",
    "History",
    "Hybrid",
    "ImplicitScoreMatching",
    "Importance",
    "LikelihoodWeighting",
    "LogNormalSigma",
    "Loss",
    "MaskedCrossEntropy",
    "MinSNR",
    "MixedObjective",
    "Objective",
    "ObjectiveLike",
    "RateVLB",
    "Simple",
    "SlicedScoreMatching",
    "Stratified",
    "TimeLaw",
    "UniformLogSNR",
    "UniformSteps",
    "UniformTime",
    "Weighting",
    "WeightingLaw",
    "irreducible",
    "usual",
]
