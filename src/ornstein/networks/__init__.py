"""Networks: `network(x, time, cond=None, keep=None)` returns a tensor of x's shape, an encoder's `network(x, time)` (b, outputs).
Those on codes return logits, one axis more: `Transformer` on rows of them, `Pixels` on images, `TabularMLP` on rows of a table.

`network.spec` is the constructor call as text, which a run's JSON holds and `ornstein.specs` reads.
"""

from ornstein.networks.dit import DiT
from ornstein.networks.encoders import MLPEncoder, UNetEncoder
from ornstein.networks.mlp import MLP
from ornstein.networks.pixels import Pixels
from ornstein.networks.tabular import TabularMLP
from ornstein.networks.transformer import Transformer
from ornstein.networks.unet import UNet

__all__ = ["MLP", "DiT", "MLPEncoder", "Pixels", "TabularMLP", "Transformer", "UNet", "UNetEncoder"]
