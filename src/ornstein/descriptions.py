"""A model as JSON: what it takes to make the same denoiser again, weights aside. Objects are named by their constructor calls."""

from pathlib import Path
from typing import Any

import torch

from ornstein import priors
from ornstein.classifiers import Classifier
from ornstein.data import Codes, Conditioning, MixedScaling, Scaling, TableScaling, read_scaling
from ornstein.denoisers import Denoiser, TrainedDenoiser
from ornstein.discrete import DiscreteDenoiser
from ornstein.errors import CheckpointError, ConfigurationError, OrnsteinError
from ornstein.logs import CONFIG
from ornstein.mixed import MixedDenoiser
from ornstein.processes import Categorical, Gaussian, Kernel, Product
from ornstein.schedules.base import Schedule
from ornstein.specs import construct

AnyScaling = Scaling | TableScaling | Codes | MixedScaling


def describe(
    denoiser: TrainedDenoiser,
    scaling: AnyScaling | None = None,
    classes: tuple[str, ...] = (),
    conditioning: Conditioning | None = None,
) -> dict[str, Any]:
    """What `rebuild` needs to make the same denoiser, as JSON. Raises `ConfigurationError` for parts that are the user's own."""
    network, process = getattr(denoiser.network, "spec", None), denoiser.process
    told = _process_to_plain(process)
    if network is None:
        raise ConfigurationError(
            "only a network of ornstein (UNet, DiT, MLP, Transformer) can be saved with its configuration; save "
            "network.state_dict() with safetensors for a network of your own"
        )
    return {
        "kind": "classifier" if isinstance(denoiser, Classifier) else "denoiser",
        "network": network,
        **told,
        "parametrization": denoiser.parametrization,
        "logits": getattr(denoiser, "logits", None),
        "variance": denoiser.variance,
        "sigma_data": denoiser.sigma_data,
        "shape": _plain_shape(denoiser.shape),
        "classes": list(classes),
        "scaling": None if scaling is None else scaling.to_dict(),
        "conditioning": None if conditioning is None else conditioning.to_dict(),
    }


def rebuild(model: dict[str, Any], folder: Path | None = None) -> tuple[TrainedDenoiser, AnyScaling | None]:
    """The denoiser or `Classifier` that `describe` described, with fresh weights, and its scaling; the base is read in `folder`.

    Raises `CheckpointError`.
    """
    base = priors.read(folder, model.get("base"))
    try:
        network, process = construct(model["network"], torch.nn.Module), _process_of(model, base)
        denoiser = _denoiser_of(model, network, process)
        shape = model["shape"]
        if isinstance(shape, dict):
            denoiser.shape = {name: tuple(part) for name, part in shape.items()}
        else:
            denoiser.shape = None if shape is None else tuple(shape)
        return denoiser, None if model["scaling"] is None else read_scaling(model["scaling"])
    except (KeyError, TypeError, AttributeError, OrnsteinError) as error:
        raise CheckpointError(
            f"the configuration does not describe a model of this version of ornstein ({type(error).__name__}: {error}); "
            f"expected {CONFIG} as `ornstein train` wrote it"
        ) from None


def _denoiser_of(model: dict[str, Any], network: torch.nn.Module, process: Any) -> TrainedDenoiser:
    parametrization, logits, sigma_data = model["parametrization"], model.get("logits"), model["sigma_data"]
    if isinstance(process, Categorical):
        return DiscreteDenoiser(network, process, parametrization, logits or "logits")
    if isinstance(process, Product):
        return MixedDenoiser(network, process, parametrization, logits or "x0", sigma_data)
    if model.get("kind") == "classifier":
        return Classifier(network, process, sigma_data)
    return Denoiser(network, process, parametrization, variance=model["variance"], sigma_data=sigma_data)


def _plain_shape(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {name: list(part) for name, part in shape.items()}
    return None if shape is None else list(shape)


def _process_to_plain(process: Any) -> dict[str, Any]:
    """The schedule, with the base of numbers or the kernel of categories; of a product those of its parts."""
    if isinstance(process, Product):
        return {"parts": {name: _process_to_plain(part) for name, part in process.parts.items()}}
    schedule = None if process.schedule is None else _text("schedule", process.schedule, Schedule)
    if isinstance(process, Categorical):
        return {"schedule": schedule, "kernel": _text("kernel", process.kernel, Kernel)}
    return {"schedule": schedule, "base": priors.describe(process.base)}


def _process_of(plain: dict[str, Any], base: Any = None) -> Any:
    """The process that `_process_to_plain` described."""
    if "parts" in plain:
        return Product({name: _process_of(part) for name, part in plain["parts"].items()})
    schedule = None if plain["schedule"] is None else construct(plain["schedule"], Schedule)
    if "kernel" in plain:
        return Categorical(schedule, construct(plain["kernel"], Kernel))
    assert schedule is not None
    return Gaussian(schedule, base)


def _text(what: str, value: Any, kind: Any) -> str:
    """The constructor call of an object. Raises `ConfigurationError` where it holds what no text can."""
    text = repr(value)
    try:
        construct(text, kind)
    except ConfigurationError:
        raise ConfigurationError(
            f"the {what} {text[:80]} holds the user's own functions or numbers, which a checkpoint cannot; expected one of "
            f"ornstein's {what}s"
        ) from None
    return text
