"""The network of two convolutions that entangled watermarks were published with."""

import flax.linen as nn
import jax.numpy as jnp

from dfke_jax.core.types import Array
from dfke_jax.nn.layers import PooledConv, flatten, head, record


class TwoConv(nn.Module):
    """A 5×5 and a 3×3 convolution that keep the image's size, each with ReLU and 2×2 max-pooling,
    and a dense layer.

    For images of any size from 4×4; 422,154 parameters on 28×28×1. The dropout that the released
    code writes is never active there, and absent here.

    Attributes:
      num_classes: K.
      filters: of the two convolutions.
      units: of the dense layer.

    Records ``conv1`` and ``conv2`` (before pooling) and ``dense1``.
    """

    num_classes: int = 10
    filters: tuple[int, int] = (32, 64)
    units: int = 128

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        for i, (filters, size) in enumerate(zip(self.filters, (5, 3), strict=True), 1):
            edge = (size // 2, size // 2)
            maps = PooledConv(filters, (size, size), name=f"conv{i}")(
                jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
            )
            record(self, f"conv{i}", maps.image())
            x = nn.relu(maps.max_pool())
        x = nn.relu(record(self, "dense1", nn.Dense(self.units, name="dense1")(flatten(x))))
        return head(self.num_classes)(record(self, "features", x))


def two_conv_quarter(num_classes: int = 10) -> TwoConv:
    """A quarter of the filters; 103,146 parameters on 28×28×1. Of this project, where the published
    width takes too long.
    """
    return TwoConv(num_classes, (8, 16))


__all__ = ["TwoConv", "two_conv_quarter"]
