"""What the options of an objective come to."""

from dataclasses import replace
from typing import Any

from ornstein.config import DISCRETE_OBJECTIVES, OBJECTIVES, TIMES, RunOptions
from ornstein.errors import ConfigurationError
from ornstein.objectives import (
    VLB,
    CampbellELBO,
    CrossEntropy,
    DenoisingScoreMatching,
    DiscreteHybrid,
    EDMWeighting,
    ELBOWeighting,
    Hybrid,
    ImplicitScoreMatching,
    Importance,
    LikelihoodWeighting,
    LogNormalSigma,
    MaskedCrossEntropy,
    MinSNR,
    MixedObjective,
    Objective,
    ObjectiveLike,
    RateVLB,
    Simple,
    SlicedScoreMatching,
    Stratified,
    UniformLogSNR,
    UniformSteps,
    UniformTime,
    usual,
)
from ornstein.specs import construct, parse
from ornstein.variational import Bins

KINDS = (Objective, VLB, Hybrid, DenoisingScoreMatching, ImplicitScoreMatching, SlicedScoreMatching, CrossEntropy)
DISCRETE = (MaskedCrossEntropy, RateVLB, CampbellELBO, DiscreteHybrid, VLB, MixedObjective)
OF_CATEGORIES = {kind.__name__ for kind in DISCRETE} - {"VLB"}
WEIGHTINGS = (Simple, EDMWeighting, MinSNR, LikelihoodWeighting, ELBOWeighting)
LAWS = (UniformTime, UniformSteps, UniformLogSNR, LogNormalSigma, Stratified, Importance)
BOUNDS = (VLB, Hybrid)
CHAINS = (UniformSteps, Importance)


def objective(options: RunOptions, scaling: Any = None, process: Any = None) -> ObjectiveLike:
    """The objective that the options describe; `scaling` gives it what depends on the data: bins of levels, sigma_data.

    Where short names leave the length of a chain open, it is that of the `process`, where that is a table.

    Raises `ConfigurationError` on names and combinations that there are not.
    """
    if is_discrete(options):
        return _of_categories(options, process)
    named = options.objective
    if parse(named.objective).name in OF_CATEGORIES:
        raise ConfigurationError(
            f"got objective '{named.objective}', of categories, for a process of numbers; expected --process absorbing or uniform"
        )
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
    if short:
        made = _of_length(made, process)
    return replace(made, bins=Bins.of(scaling)) if on_chain else made


def is_discrete(options: RunOptions) -> bool:
    """Whether the process is one of categories."""
    return options.model.process != "gaussian"


def _of_categories(options: RunOptions, process: Any) -> ObjectiveLike:
    """The objective of a process of categories."""
    named = options.objective
    if named.weighting:
        raise ConfigurationError(
            f"got weighting '{named.weighting}' for a process of categories, whose objectives have their own; leave it out"
        )
    text = DISCRETE_OBJECTIVES.get(named.objective, named.objective)
    made: Any = usual(process) if named.objective == "simple" and process is not None else None
    made = construct("MaskedCrossEntropy" if text == "simple" else text, DISCRETE) if made is None else made
    if named.times:
        made = replace(made, times=construct(TIMES.get(named.times, named.times), LAWS))
    short = named.objective in DISCRETE_OBJECTIVES or named.objective == "simple"
    return _of_length(made, process) if short and named.times in ("", *TIMES) else made


def _of_length(made: Any, process: Any) -> Any:
    """The objective on the chain of the process, where both are of one."""
    steps = getattr(process, "steps", None)
    if steps is None or not isinstance(made.times, CHAINS):
        return made
    return replace(made, times=replace(made.times, steps=steps))


def learns_variance(options: RunOptions) -> bool:
    """Whether the network is to predict a variance: where the options say so, or the objective of numbers is a bound."""
    variance = options.model.variance
    if is_discrete(options):
        return False
    return variance == "learned" or (variance == "auto" and isinstance(objective(options), BOUNDS))


def is_classifier(options: RunOptions) -> bool:
    """Whether a classifier of noisy data is trained, as the objective says."""
    return not is_discrete(options) and isinstance(objective(options), CrossEntropy)


def condition_of(options: RunOptions) -> str:
    """none, labels or arrays; a classifier always takes labels. Raises `ConfigurationError` where it is to take arrays."""
    if not is_classifier(options):
        return options.model.condition
    if options.model.condition == "arrays":
        raise ConfigurationError(
            "got --condition arrays for a classifier, expected labels: the classes that it tells apart"
        )
    return "labels"
