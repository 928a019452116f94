"""Objects of the library as text: `CosineVP`, `LinearVP(beta_max=18.)`, `Stratified(LogNormalSigma(mean=-0.5))`.

The command line and a run's config.json name schedules, networks, time laws and samplers by their constructor call.
The text is read by `ast`, never evaluated: a name is one that `ornstein` exports, an argument a literal or such a call.
"""

import ast
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ornstein.errors import ConfigurationError, OrnsteinError, nearest


@dataclass(frozen=True, repr=False)
class Spec:
    """A call: a name (`EDM`, `TableSchedule.linear`), positional and keyword arguments, literals or `Spec`s."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The call as text, which `parse` reads back."""
        texts = [*map(repr, self.args), *(f"{key}={value!r}" for key, value in self.kwargs.items())]
        return f"{self.name}({', '.join(texts)})"


def parse(text: str) -> Spec:
    """Read a call, or a name by itself. Raises `ConfigurationError` on anything else."""
    try:
        spec = _read(ast.parse(text.strip(), mode="eval").body)
        if isinstance(spec, Spec):
            return spec
        reason = f"{spec!r} is no name"
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or str(error) or type(error).__name__
    raise ConfigurationError(f"got '{text[:80]}' ({reason}), expected a name or a call such as 'MinSNR(gamma=4)'")


def construct(text: str, kind: Any) -> Any:
    """Make the object that `text` describes, an instance of `kind`: a type, a protocol or a tuple of them.

    Names are looked up among the exports of the module that `kind` is of; networks (`torch.nn.Module`) in
    `ornstein.networks`. Raises `ConfigurationError` on an unknown name or argument, with the nearest known one.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return _build(parse(text), kinds, _exports(kinds))


def with_arguments(text: str, extra: dict[str, Any]) -> str:
    """The call with those keyword arguments of `extra` that it lacks: `with_arguments("MLP", {"shape": 2})`."""
    spec = parse(text)
    return str(Spec(spec.name, spec.args, {**spec.kwargs, **{k: v for k, v in extra.items() if k not in spec.kwargs}}))


def _read(node: ast.expr) -> Any:
    """A `Spec` for a name or a call, else the value of a literal. Raises ValueError where it is neither."""
    if isinstance(node, ast.Call):
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("** is not allowed")
        kwargs = {str(keyword.arg): _read(keyword.value) for keyword in node.keywords}
        return Spec(_name(node.func), tuple(map(_read, node.args)), kwargs)
    plain = ast.unparse(node)
    if plain in ("inf", "-inf"):  # how Python writes infinity in a repr
        return math.copysign(math.inf, 1 if plain == "inf" else -1)
    if isinstance(node, (ast.Name, ast.Attribute)):
        return Spec(_name(node))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise ValueError(f"'{plain[:60]}' is no literal") from None


def _name(node: ast.expr) -> str:
    parts = (name := ast.unparse(node)).split(".")
    if len(parts) > 2 or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise ValueError(f"'{name[:60]}' is no name")
    return name


def _exports(kinds: tuple[Any, ...]) -> dict[str, type]:
    """The exported classes of the modules that the kinds are of."""
    import ornstein

    paths = [kind.__module__.split(".") for kind in kinds]
    homes = {path[1] if path[0] == "ornstein" else "networks" for path in paths}
    found = {name: getattr(ornstein, name) for name, home in ornstein.EXPORTS.items() if home in homes}
    return {name: value for name, value in found.items() if isinstance(value, type)}


def _build(spec: Spec, kinds: tuple[Any, ...], exports: dict[str, type]) -> Any:
    maker = _maker(spec.name, {k: v for k, v in exports.items() if any(_fits(v, kind) for kind in kinds)})
    args, kwargs = [_inner(v, exports) for v in spec.args], {k: _inner(v, exports) for k, v in spec.kwargs.items()}
    parameters = inspect.signature(maker).parameters
    for key in kwargs:
        if key not in parameters:
            known = f"expected {', '.join(parameters) or 'no arguments'}{nearest(key, parameters)}"
            raise ConfigurationError(f"unknown argument '{key}' of {spec.name}, {known}")
    try:
        return maker(*args, **kwargs)
    except OrnsteinError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:  # past its own checks
        raise ConfigurationError(f"got '{str(spec)[:80]}', which {spec.name} does not take: {error}") from None


def _maker(full: str, classes: dict[str, type]) -> Callable[..., Any]:
    name, _, method = full.partition(".")
    if name not in classes:
        raise ConfigurationError(f"unknown name '{name}', expected one of {', '.join(classes)}{nearest(name, classes)}")
    makers = [k for k, v in vars(classes[name]).items() if isinstance(v, classmethod) and not k.startswith("_")]
    if method and method not in makers:
        known = ", ".join(f"{name}.{k}" for k in makers) or name
        raise ConfigurationError(f"unknown name '{full}', expected {known}{nearest(method, makers)}")
    return getattr(classes[name], method) if method else classes[name]


def _inner(value: Any, exports: dict[str, type]) -> Any:
    return _build(value, (object,), exports) if isinstance(value, Spec) else value


def _fits(candidate: type, kind: Any) -> bool:
    if getattr(kind, "_is_protocol", False):
        members = {*kind.__annotations__, *(name for name in vars(kind) if not name.startswith("_"))}
        return all(hasattr(candidate, name) for name in members)
    return issubclass(candidate, kind)
