"""Networks: `network(x, time, cond=None, keep=None)` returns a tensor of x's shape, an encoder's `network(x, time)` (b, outputs).

`network.spec` is the constructor call as text, which a run's JSON holds and `ornstein.specs` reads.
"""

from ornstein.networks.dit import DiT
from ornstein.networks.encoders import MLPEncoder, UNetEncoder
from ornstein.networks.mlp import MLP
from ornstein.networks.unet import UNet

__all__ = ["MLP", "DiT", "MLPEncoder", "UNet", "UNetEncoder"]
