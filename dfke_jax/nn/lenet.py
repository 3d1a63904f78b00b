"""LeNet-5 and its relatives, on 32×32 images.

Two different students are called LeNet-5-Half in the literature; here they have different names.
"""

import functools

import flax.linen as nn

from dfke_jax.core.types import Array
from dfke_jax.nn.layers import BatchNorm, PooledConv, check_image_size, flatten, head, record


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling: two 5×5 convolutions and three dense layers.

    With the defaults 61,706 parameters on one channel. The third layer of the DAFL code is a 5×5
    convolution over a 5×5 map, which is the same function as the first dense layer here.

    Attributes:
      num_classes: K.
      filters: of the two convolutions.
      units: of the two hidden dense layers.
      batch_norm: normalise after each convolution and hidden dense layer, before the ReLU (for
        methods that need normalisation statistics).
    """

    num_classes: int = 10
    filters: tuple[int, int] = (6, 16)
    units: tuple[int, int] = (120, 84)
    batch_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        check_image_size(x, (32, 32), "LeNet-5")

        for i, filters in enumerate(self.filters, 1):
            maps = PooledConv(filters, (5, 5), name=f"conv{i}")(x)
            if self.batch_norm:
                maps = maps.map(functools.partial(BatchNorm(name=f"conv{i}_norm"), train=train))
            record(self, f"conv{i}", maps.image())
            # the same as pooling after the ReLU, on a quarter of the elements
            x = nn.relu(maps.max_pool())
        x = flatten(x)
        for i, units in enumerate(self.units, 1):
            x = nn.Dense(units, name=f"dense{i}")(x)
            if self.batch_norm:
                x = BatchNorm(name=f"dense{i}_norm")(x, train=train)
            x = nn.relu(record(self, f"dense{i}", x))
        return head(self.num_classes)(record(self, "features", x))


def lenet5_half(num_classes: int = 10) -> LeNet5:
    """LeNet-5-Half of ZSKD and DeGAN: half the filters, full dense layers; 35,820 parameters."""
    return LeNet5(num_classes, (3, 8), (120, 84))


def lenet5_half_dafl(num_classes: int = 10) -> LeNet5:
    """LeNet-5-Half of DAFL and DFAD: everything halved; 15,738 parameters."""
    return LeNet5(num_classes, (3, 8), (60, 42))


def lenet5_bn(num_classes: int = 10) -> LeNet5:
    """LeNet-5 with batch normalisation; 62,158 parameters."""
    return LeNet5(num_classes, batch_norm=True)


def lenet5_half_bn(num_classes: int = 10) -> LeNet5:
    """`lenet5_half` with batch normalisation; 36,250 parameters."""
    return LeNet5(num_classes, (3, 8), (120, 84), batch_norm=True)


__all__ = ["LeNet5", "lenet5_bn", "lenet5_half", "lenet5_half_bn", "lenet5_half_dafl"]
