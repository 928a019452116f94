"""What the options of an objective come to."""

from dataclasses import replace
from typing import Any

from ornstein.config import OBJECTIVES, TIMES, RunOptions
from ornstein.data import Scaling, TableScaling
from ornstein.errors import ConfigurationError
from ornstein.objectives import (
    VLB,
    CrossEntropy,
    DenoisingScoreMatching,
    EDMWeighting,
    ELBOWeighting,
    Hybrid,
    ImplicitScoreMatching,
    Importance,
    LikelihoodWeighting,
    LogNormalSigma,
    MinSNR,
    Objective,
    ObjectiveLike,
    Simple,
    SlicedScoreMatching,
    Stratified,
    UniformLogSNR,
    UniformSteps,
    UniformTime,
)
from ornstein.schedules import Schedule, TableSchedule
from ornstein.specs import construct
from ornstein.variational import Bins

KINDS = (Objective, VLB, Hybrid, DenoisingScoreMatching, ImplicitScoreMatching, SlicedScoreMatching, CrossEntropy)
WEIGHTINGS = (Simple, EDMWeighting, MinSNR, LikelihoodWeighting, ELBOWeighting)
LAWS = (UniformTime, UniformSteps, UniformLogSNR, LogNormalSigma, Stratified, Importance)
BOUNDS = (VLB, Hybrid)
CHAINS = (UniformSteps, Importance)


def objective(
    options: RunOptions, scaling: Scaling | TableScaling | None = None, schedule: Schedule | None = None
) -> ObjectiveLike:
    """The objective that the options describe; `scaling` gives it what depends on the data: bins of levels, sigma_data.

    Where short names leave the length of a chain open, it is that of the `schedule`, where that is a table.

    Raises `ConfigurationError` on names and combinations that there are not.
    """
    named = options.objective
    made: Any = construct(OBJECTIVES.get(named.objective, named.objective), KINDS)
    on_chain = isinstance(made, BOUNDS)
    if named.weighting:
        if not isinstance(made, Objective):
            raise ConfigurationError(
                f"got weighting '{named.weighting}' for objective '{named.objective}', which has its own; expected none, "
                "or objective 'simple'"
            )
        made = replace(made, weighting=construct(named.weighting, WEIGHTINGS))
    elif named.objective == "edm" and scaling is not None:
        standard = options.model.prior == "standard"  # data whitened by their own prior have a std of 1
        made = replace(made, weighting=EDMWeighting(scaling.sigma_data if standard else 1.0))
    if named.times:
        text = "UniformSteps" if on_chain and named.times == "uniform" else TIMES.get(named.times, named.times)
        made = replace(made, times=construct(text, LAWS))
    short = named.objective in OBJECTIVES and (not named.times or named.times in TIMES)
    if short and isinstance(schedule, TableSchedule) and isinstance(made.times, CHAINS):
        made = replace(made, times=replace(made.times, steps=schedule.steps))
    return replace(made, bins=Bins.of(scaling)) if on_chain else made


def learns_variance(options: RunOptions) -> bool:
    """Whether the network is to predict a variance: where the options say so, or the objective is a bound."""
    variance = options.model.variance
    return variance == "learned" or (variance == "auto" and isinstance(objective(options), BOUNDS))


def is_classifier(options: RunOptions) -> bool:
    """Whether a classifier of noisy data is trained, as the objective says."""
    return isinstance(objective(options), CrossEntropy)


def condition_of(options: RunOptions) -> str:
    """none, labels or arrays; a classifier always takes labels. Raises `ConfigurationError` where it is to take arrays."""
    if not is_classifier(options):
        return options.model.condition
    if options.model.condition == "arrays":
        raise ConfigurationError(
            "got --condition arrays for a classifier, expected labels: the classes that it tells apart"
        )
    return "labels"
