"""VGG with batch normalisation and one dense layer, for small colour images.

The form of RepDistiller (Tian et al. 2020) and of the code of CMI (Fang et al. 2021), after
Simonyan and Zisserman 2015.
"""

import flax.linen as nn

from dfke_jax.core.types import Array
from dfke_jax.nn.layers import BatchNorm, Conv, global_avg_pool, head, max_pool, record

_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_PAD = ((1, 1), (1, 1))


class VGG(nn.Module):
    """Five stages of 3×3 convolutions with bias, normalisation and ReLU; global pooling; one dense
    layer.

    Stages 1 to 3 end in max-pooling; stage 4 does only for images of 64 pixels and more, so that a
    32×32 image still has 4×4 positions in the last two stages.

    Attributes:
      num_classes: K.
      depths: convolutions of each stage.
      widths: filters of each stage.

    Deviation: the last layer has Flax's default initialisation instead of a standard deviation of
    0.01.
    """

    num_classes: int = 10
    depths: tuple[int, ...] = (1, 1, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        large = x.shape[1] >= 64
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for i in range(1, depth + 1):
                name = f"stage{stage}_conv{i}"
                x = Conv(width, (3, 3), padding=_PAD, kernel_init=_INIT, name=name)(x)
                x = BatchNorm(name=f"{name}_norm")(x, train=train)
                x = nn.relu(record(self, name, x))
            if stage <= 3 or (stage == 4 and large):
                x = max_pool(x)
        return head(self.num_classes)(record(self, "features", global_avg_pool(x)))


def vgg11(num_classes: int = 10) -> VGG:
    """Configuration A; 9,231,114 parameters on three channels."""
    return VGG(num_classes, (1, 1, 2, 2, 2))


def vgg16(num_classes: int = 10) -> VGG:
    """Configuration D; 14,728,266 parameters on three channels."""
    return VGG(num_classes, (2, 2, 3, 3, 3))


def vgg19(num_classes: int = 10) -> VGG:
    """Configuration E; 20,040,522 parameters on three channels."""
    return VGG(num_classes, (2, 2, 4, 4, 4))


__all__ = ["VGG", "vgg11", "vgg16", "vgg19"]
