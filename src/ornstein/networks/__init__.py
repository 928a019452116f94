"""Networks: `network(x, time, cond=None, keep=None)` returns a tensor of x's shape.

`network.spec` is the constructor call as text, which a run's JSON holds; `from_spec` reads it without evaluating code.
"""

import ast

from torch import nn

from ornstein.errors import ConfigurationError, nearest
from ornstein.networks.mlp import MLP
from ornstein.networks.unet import UNet

__all__ = ["MLP", "UNet", "from_spec"]


def from_spec(spec: str) -> nn.Module:
    """The network, with fresh weights, that `spec` describes: a class of this module and its literal keyword arguments.

    Raises ConfigurationError for an unknown class, and for text that is not such a call.
    """
    known: dict[str, type[nn.Module]] = {"MLP": MLP, "UNet": UNet}
    try:
        call = ast.parse(spec, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("not a call with keyword arguments")
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ConfigurationError(
            f"network: got {spec!r} ({error}), expected a call such as UNet(channels=1, widths=(64, 128))"
        ) from error
    name = call.func.id
    if name not in known:
        raise ConfigurationError(f"network: got {name!r}, expected one of {', '.join(known)}{nearest(name, known)}")
    try:
        return known[name](**arguments)
    except TypeError as error:
        raise ConfigurationError(f"network: got {spec!r}: {error}") from error
