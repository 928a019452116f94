"""From options and data to a denoiser of categories: the kernel, the law of time, the network by the shape of the data."""

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ornstein import networks
from ornstein.config import PROCESSES, RunOptions
from ornstein.data import Codes, Dataset, MixedScaling, TableScaling, discrete
from ornstein.denoisers import TrainedDenoiser
from ornstein.discrete import DiscreteDenoiser
from ornstein.errors import ConfigurationError, nearest
from ornstein.mixed import MixedDenoiser
from ornstein.processes import Categorical, Kernel, Product
from ornstein.schedules import Schedule
from ornstein.specs import construct, parse, with_arguments

KERNELS = ("Absorbing", "Uniform", "DiscretisedGaussian", "BirthDeath")
"""Kernels that are made from a number of categories alone."""
ORDERED = ("DiscretisedGaussian", "BirthDeath")


def as_states(dataset: Dataset) -> Dataset:
    """The data set with its examples as states of categories: codes, or of a table the numbers and categories of its columns.

    Raises `DataError` for data that have no categories.
    """
    if isinstance(dataset.scaling, TableScaling):
        return replace(dataset, scaling=MixedScaling.of(dataset.scaling))
    return discrete(dataset)


def build_categories(options: RunOptions, dataset: Dataset, classes: int) -> TrainedDenoiser:
    """The denoiser of a process of categories, with fresh weights. Raises `ConfigurationError` on options that do not fit."""
    _check(options)
    scaling, model = dataset.scaling, options.model
    parametrization, head = ("d3pm", "logistic") if model.logits == "logistic" else (model.logits, "logits")
    if isinstance(scaling, MixedScaling):
        if head == "logistic":
            raise ConfigurationError(
                "got logits 'logistic' for a table, whose categories have no order; expected d3pm or x0"
            )
        if parse(PROCESSES.get(model.process, model.process)).name in ORDERED:
            raise ConfigurationError(
                f"got process '{model.process}' for a table, whose categories have no order; expected absorbing or uniform"
            )
        process = scaling.process(partial(categorical, options), construct(model.schedule, Schedule))
        network = construct(_tabular(model.network, process, scaling, classes), torch.nn.Module)
        made: TrainedDenoiser = MixedDenoiser(network, process, model.parametrization, parametrization)
    else:
        assert isinstance(scaling, Codes)
        one = categorical(options, scaling.levels)
        network = construct(_of_codes(model.network, one, scaling, classes, head), torch.nn.Module)
        made = DiscreteDenoiser(network, one, parametrization, head)
    return made


def categorical(options: RunOptions, categories: int) -> Categorical:
    """The process of so many categories that the options name."""
    text = PROCESSES.get(options.model.process, options.model.process)
    name = parse(text).name
    if name not in KERNELS:
        known = ("gaussian", *PROCESSES, *KERNELS)
        raise ConfigurationError(
            f"got process '{name}', expected one of {', '.join(known)}{nearest(name, known)}; in Python any kernel"
        )
    kernel = construct(with_arguments(text, {"categories": categories}), Kernel)
    if kernel.categories != categories:
        raise ConfigurationError(f"got {kernel!r} for data of {categories} categories, expected as many")
    return Categorical(None if kernel.steps else construct(options.model.alpha, Schedule), kernel)


def _tabular(text: str, process: Product, scaling: MixedScaling, classes: int) -> str:
    """The text of the network of a table."""
    text = "TabularMLP" if text == "auto" else text
    sizes = {name: (process.parts[name].states, k) for name, k in scaling.categories.items()}
    facts: dict[str, Any] = {"numbers": scaling.numbers, "categories": sizes, "classes": classes}
    return _named(text, ("TabularMLP",), facts)


def _of_codes(text: str, process: Categorical, scaling: Codes, classes: int, head: str) -> str:
    """The text of the network of codes: a row of them for a `Transformer`, images and the like for a network of images."""
    if len(scaling.shape) == 1:
        if head == "logistic":
            raise ConfigurationError(
                "got logits 'logistic' for a row of codes, which have no order; expected d3pm or x0"
            )
        text = "Transformer" if text == "auto" else text
        row: dict[str, Any] = {"states": process.states, "categories": process.categories, "classes": classes}
        return _named(text, ("Transformer",), row)
    text = "UNet" if text == "auto" else text
    if parse(text).name == "Pixels":
        return text
    channels, outputs = scaling.shape[0], 2 if head == "logistic" else process.categories
    facts: dict[str, Any] = {
        "channels": (channels * (process.states + 1), channels * outputs),
        "dims": len(scaling.shape) - 1,
        "classes": classes,
    }
    inner = _named(text, ("UNet", "DiT"), facts)
    return f"Pixels({inner}, states={process.states}, categories={process.categories}, outputs={outputs})"


def _named(text: str, known: tuple[str, ...], facts: dict[str, Any]) -> str:
    """The call of a network with the facts that it takes. Raises `ConfigurationError` for one of another kind of data."""
    name = parse(text).name
    if name not in known:
        raise ConfigurationError(
            f"got network {name} for these data under a process of categories, expected {' or '.join(known)}"
        )
    takes = inspect.signature(getattr(networks, name)).parameters
    return with_arguments(text, {key: value for key, value in facts.items() if key in takes})


def _check(options: RunOptions) -> None:
    """Raise `ConfigurationError` for options that numbers alone have."""
    model = options.model
    if model.prior != "standard":
        raise ConfigurationError(
            f"got prior '{model.prior}' for a process of categories, expected standard: theirs is the kernel's"
        )
    if model.variance == "learned":
        raise ConfigurationError("got variance 'learned' for a process of categories, which have none; expected auto")
    if model.condition == "arrays":
        raise ConfigurationError("got --condition arrays for a process of categories, expected none or labels")
