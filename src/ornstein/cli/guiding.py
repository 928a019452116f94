"""The options by which samples follow their condition more strongly: guidance, on the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from ornstein.cli.common import hint
from ornstein.errors import ConfigurationError

if TYPE_CHECKING:
    from ornstein.checkpoints import Model


@dataclass(frozen=True)
class GuidanceOptions:
    """How strongly samples follow their condition."""

    guidance: Annotated[
        float | None, arg(metavar="SCALE", **hint("default: off; 2 with --guide, 1 with --classifier"))
    ] = None
    """Scale of classifier-free guidance: 1 is the plain conditional model, 0 the unconditional one; above 1, each step takes two
    network evaluations of --calls."""
    guidance_interval: Annotated[tuple[float, float] | None, arg(metavar="LOW HIGH", **hint("default: all"))] = None
    """Guide only where the noise level sigma / alpha lies between these, such as 0.2 3."""
    guidance_rescale: Annotated[float, arg(**hint("default: 0, off"))] = 0.0
    """How far the spread of guided estimates is brought back to the conditional model's, 0 to 1."""
    guide: Annotated[Path | None, arg(metavar="RUN", **hint())] = None
    """Autoguidance: a weaker run on the same data takes the place of the model without its condition."""
    classifier: Annotated[Path | None, arg(metavar="RUN", **hint())] = None
    """A run of `ornstein train-classifier`, whose log p(class | x_t) guides; --guidance counts it, 1 is Bayes' rule."""

    @property
    def asked(self) -> bool:
        """Whether anything is guided."""
        return self.guidance is not None or self.guide is not None or self.classifier is not None


def guided(model: "Model", options: GuidanceOptions) -> Any:
    """The model under the guidance that is asked for, or as it is. Raises `ConfigurationError` on options that do not fit."""
    from ornstein import checkpoints
    from ornstein.guidance import Autoguidance, ClassifierFreeGuidance, ClassifierGuidance

    scale, interval, rescale = options.guidance, options.guidance_interval, options.guidance_rescale
    if options.guide is not None and options.classifier is not None:
        raise ConfigurationError("got both --guide and --classifier, expected one of them")
    if not options.asked:
        if interval is not None or rescale:
            name = "--guidance-interval" if interval is not None else "--guidance-rescale"
            raise ConfigurationError(f"got {name} without guidance, expected --guidance SCALE with it")
        return model
    device = next(iter(model.parameters())).device
    if options.guide is not None:
        guide = checkpoints.load(options.guide, device)
        _check_same(model, guide.process, guide.scaling, f"--guide {options.guide}")
        return Autoguidance(model, guide.denoiser, 2.0 if scale is None else scale, interval, rescale)
    if options.classifier is not None:
        if rescale:
            raise ConfigurationError(
                "got --guidance-rescale with --classifier, expected it with classifier-free guidance"
            )
        classifier = checkpoints.load_classifier(options.classifier, device)
        _check_same(model, classifier.process, classifier.scaling, f"--classifier {options.classifier}")
        if model.conditioning is not None:
            raise ConfigurationError(
                f"got --classifier {options.classifier} for a model trained with --condition arrays, which takes no class; "
                "expected one trained with --condition labels, or without a condition"
            )
        given = bool(model.denoiser.conditional)
        if given and tuple(classifier.classes) != model.classes:
            raise ConfigurationError(
                f"got --classifier {options.classifier} of {len(classifier.classes)} classes for a model of "
                f"{len(model.classes)}, expected the same classes"
            )
        return ClassifierGuidance(model, classifier.log_prob, 1.0 if scale is None else scale, interval, given)
    return ClassifierFreeGuidance(model, scale if scale is not None else 2.0, interval, rescale)


def classes_of(model: "Model", options: GuidanceOptions) -> tuple[str, ...]:
    """The classes that --class names: those of the classifier where the model itself takes none."""
    from ornstein.logs import read_config

    if options.classifier is None or model.denoiser.conditional:
        return model.classes
    return tuple(read_config(options.classifier)["model"]["classes"])


def _check_same(model: "Model", process: Any, scaling: Any, name: str) -> None:
    """Raise `ConfigurationError` where another run's data or noise are not the model's."""
    if process != model.process or scaling != model.scaling:
        what = "noise" if scaling == model.scaling else "data"
        raise ConfigurationError(
            f"got {name}, which was trained on other {what} than the run, expected one on the same data with the same "
            "schedule and prior"
        )
