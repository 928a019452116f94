"""The options of samples of categories: their length, what of a text is given, how sharp the model is read.

A prompt is the beginning of each sample, a template all of it but its blanks. Both are `Inpainting`: known places are put to
their tokens at every step. Under a process of masks that conditions without error, for a known token is one that is unmasked at
every level, and the network reads it from the first call on. Under other kernels the known places are noised to the level of
the step (RePaint), which only bends the others towards them.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from ornstein.cli.common import hint, say
from ornstein.cli.steering import Steering
from ornstein.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.checkpoints import Model
    from ornstein.data import Vocabulary
    from ornstein.samplers import Sampler

NUMBERS_ONLY = ("inpaint", "mask", "reference", "upscale", "init")


@dataclass(frozen=True)
class PromptingOptions:
    """What is given of samples of text, and how sharply categories are drawn."""

    length: Annotated[int | None, arg(**hint("default: as in training; that of the template"))] = None
    """Tokens of a sample of text; the time of a call grows with it, and attention with its square."""
    prompt: Annotated[str | None, arg(metavar="TEXT", **hint())] = None
    """Text that every sample begins with. Exact with --process absorbing; other processes hold it by noised replacement."""
    template: Annotated[str | None, arg(metavar="TEXT", **hint())] = None
    """Text of which each --blank is one token to fill in, such as "To be, ____ to be"; the rest is held as a prompt is."""
    blank: str = "_"
    """The sign of --template that stands for a token to fill in."""
    unknown: Literal["error", "skip"] = "error"
    """Characters of --prompt and --template that the vocabulary lacks: stop and name the first, or leave them out."""
    temperature: float = 1.0
    """Of categories: log-probabilities of the network are divided by it; below 1 samples are likelier and vary less."""
    top_p: float = 1.0
    """Of categories: at each site the fewest that hold this probability are drawn from, above 0 to 1."""


@dataclass(frozen=True)
class Prompted:
    """A model as samples of it were asked for, the constraint on its samples, and how many sites of one are drawn."""

    model: "Model"
    denoiser: Any
    steering: Steering
    drawn: int


def is_text(model: "Model") -> bool:
    """Whether the model makes text."""
    return getattr(model.scaling, "vocabulary", None) is not None


def is_categorical(model: "Model") -> bool:
    """Whether the model is of categories, or has parts that are."""
    from ornstein.processes import Gaussian

    return not isinstance(model.process, Gaussian)


def refuse_foreign(
    model: "Model", asked: PromptingOptions, steering: Any, guided: bool, others: dict[str, Any]
) -> None:
    """Raise `ConfigurationError` for options of text on other models, and for those of numbers on categories.

    others: more options of numbers, by name; None where not given.
    """
    usual = PromptingOptions()
    given = [name for name in vars(usual) if getattr(asked, name) != getattr(usual, name)]
    sharp = {"temperature", "top_p"}
    for name in given:
        option = f"--{name.replace('_', '-')}"
        if not is_text(model) and name not in sharp:
            raise ConfigurationError(
                f"got {option} for a model that is not of text, expected one trained on a .txt file: leave it out"
            )
        if name in sharp and not _of_one_kind(model):
            raise ConfigurationError(
                f"got {option} for a model with numbers, expected one of categories alone: leave it out"
            )
    if not is_categorical(model):
        return
    if guided:
        raise ConfigurationError(
            "got guidance for a model of categories, expected one of numbers, whose scores it combines; leave it out, or try "
            "--temperature 0.8"
        )
    held = [name for name in NUMBERS_ONLY if getattr(steering, name) is not None]
    wrong = [*held, *(name for name, value in others.items() if value is not None)]
    if wrong:
        remedy = "hold text by --prompt or --template" if held and is_text(model) else "leave it out"
        raise ConfigurationError(
            f"got --{wrong[0]} for a model of categories, expected it for one of numbers: {remedy}"
        )


def prompted(model: "Model", denoiser: Any, steering: Steering, options: PromptingOptions) -> Prompted:
    """The model and its constraint as asked. Raises `ConfigurationError` and `DataError` where the options do not fit."""
    if options.prompt is not None and options.template is not None:
        raise ConfigurationError("got both --prompt and --template, expected one of them")
    if options.unknown != "error" and options.prompt is None and options.template is None:
        raise ConfigurationError("got --unknown without --prompt or --template, expected it with one")
    if options.blank != "_" and options.template is None:
        raise ConfigurationError("got --blank without --template, expected it with one")
    if not is_text(model):
        return Prompted(model, _sharpened(denoiser, options), steering, _sites(model))
    known, missing = _known(model, options)
    shown = model if len(known) == model.shape[0] else _of_length(model, len(known))
    wrap: Callable[[Sampler], Sampler] | None = None
    if not missing.all():
        from ornstein.constraints import Inpainting

        device = next(iter(model.parameters())).device
        wrap = partial(Inpainting, reference=known[None].to(device), missing=missing[None].to(device))
    return Prompted(shown, _sharpened(shown, options), Steering(wrap), int(missing.sum()))


def _known(model: "Model", options: PromptingOptions) -> "tuple[Tensor, Tensor]":
    """The tokens (length,) of a sample, 0 where they are to be drawn, and where that is."""
    import torch

    vocabulary: Vocabulary = model.scaling.vocabulary  # type: ignore[union-attr, assignment]
    if options.template is not None:
        return _filled(vocabulary, options)
    usual = model.shape[0]
    length = usual if options.length is None else options.length
    if length < 1:
        raise ConfigurationError(f"got --length {length}, expected at least 1")
    if length > usual:
        say(
            f"note: --length {length} is more than the {usual} tokens of training, which never saw places further apart"
        )
    tokens, missing = torch.zeros(length, dtype=torch.long), torch.ones(length, dtype=torch.bool)
    if options.prompt is not None:
        codes = _encoded(vocabulary, options.prompt, "--prompt", options.unknown)
        if not 0 < len(codes) <= length:
            most = f"1 to {length}, the length of the samples" + (": give a longer --length" if len(codes) else "")
            raise ConfigurationError(f"got a --prompt of {len(codes)} tokens, expected {most}")
        tokens[: len(codes)], missing[: len(codes)] = codes, False
    return tokens, missing


def _filled(vocabulary: "Vocabulary", options: PromptingOptions) -> "tuple[Tensor, Tensor]":
    """The tokens of a template, and where its blanks are."""
    import torch

    assert options.template is not None
    if len(options.blank) != 1:
        raise ConfigurationError(f"got --blank '{options.blank}', expected one sign, such as --blank '#'")
    if options.length is not None:
        raise ConfigurationError("got --length with --template, whose length is its own; leave it out")
    known = options.template.split(options.blank)
    if len(known) == 1:
        raise ConfigurationError(
            f"got a --template without the blank '{options.blank}', expected one for each token to fill in; or --blank SIGN"
        )
    tokens, missing, before = [], [], ""
    for number, part in enumerate(known):
        codes = _encoded(vocabulary, part, "--template", options.unknown, before)
        before += part + options.blank
        last = number == len(known) - 1
        tokens += [codes] if last else [codes, torch.zeros(1, dtype=torch.long)]
        missing += [False] * len(codes) + ([] if last else [True])
    return torch.cat(tokens), torch.tensor(missing)


def _encoded(vocabulary: "Vocabulary", text: str, option: str, unknown: Any, before: str = "") -> "Tensor":
    """The tokens of a text of the command line. Raises `DataError`, naming a character that the vocabulary lacks."""
    lost = vocabulary.unknown(text) if unknown == "skip" else 0
    if lost:
        say(f"note: left out {lost} characters of {option} that are not in the vocabulary")
    try:
        return vocabulary.encode(text, unknown, where=option, before=before)
    except DataError as error:
        raise ConfigurationError(str(error)) from None


def _of_length(model: "Model", length: int) -> "Model":
    """The model for texts of another length; the weights are shared."""
    denoiser = copy.copy(model.denoiser)
    denoiser.shape = (length,)
    return replace(model, denoiser=denoiser, scaling=replace(model.scaling, shape=(length,)))  # type: ignore[type-var]


def _sharpened(denoiser: Any, options: PromptingOptions) -> Any:
    """The denoiser at a temperature, with the tail cut, where that is asked for."""
    if (options.temperature, options.top_p) == (1.0, 1.0):
        return denoiser
    from ornstein.tempering import Tempered

    if not options.temperature > 0:
        raise ConfigurationError(f"got --temperature {options.temperature:g}, expected above 0; 1 is the model itself")
    if not 0 < options.top_p <= 1:
        raise ConfigurationError(f"got --top-p {options.top_p:g}, expected above 0 and at most 1")
    return Tempered(denoiser, options.temperature, options.top_p)


def _of_one_kind(model: "Model") -> bool:
    """Whether all of a state are categories."""
    from ornstein.processes import Categorical

    return isinstance(model.process, Categorical)


def _sites(model: "Model") -> int:
    """How many values an example has."""
    return getattr(model.scaling, "dims", 0)
