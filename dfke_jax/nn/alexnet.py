"""AlexNet for 32×32 colour images, as ZSKD (Nayak et al. 2019) and DeGAN (Addepalli et al. 2020)
use it.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from dfke_jax.core.types import Array
from dfke_jax.nn.layers import BatchNorm, Conv, check_image_size, flatten, head, record


def local_response_norm(
    x: Array, radius: int = 2, alpha: float = 1e-4, beta: float = 0.75, offset: float = 1.0
) -> Array:
    """Normalisation across channels (Krizhevsky et al. 2012, section 3.3), with TensorFlow's
    constants.

    y_c = x_c / (offset + alpha · Σ_{|d − c| ≤ radius} x_d²)^beta

    PyTorch's layer of the same name divides alpha by the window's size, and its window is 2·radius
    + 1 here.
    """
    channels = x.shape[-1]
    squares = jnp.pad(jnp.square(x), ((0, 0),) * (x.ndim - 1) + ((radius, radius),))
    total = sum(squares[..., i : i + channels] for i in range(2 * radius + 1))
    return x / (offset + alpha * total) ** beta


def overlapping_max_pool(x: Array) -> Array:
    """Maximum over 3×3 windows at stride two, ``VALID``: (B, H, W, C) -> (B, (H − 1) // 2, (W − 1)
    // 2, C).

    Written as maxima of strided slices, whose gradient is fast everywhere; where elements tie it is
    shared.
    """
    height, width = (x.shape[1] - 1) // 2, (x.shape[2] - 1) // 2
    x = functools.reduce(jnp.maximum, [x[:, i : i + 2 * height - 1 : 2] for i in range(3)])
    return functools.reduce(jnp.maximum, [x[:, :, i : i + 2 * width - 1 : 2] for i in range(3)])


class AlexNet(nn.Module):
    """Five convolutions and three dense layers, each normalised *after* its activation, on 32×32
    images.

    1,659,178 parameters on three channels with the defaults. The two 5×5 layers go through ReLU,
    local response normalisation, overlapping max-pooling and batch normalisation; dense layers
    through ReLU, dropout and batch normalisation, in that order, as in the TensorFlow code of ZSKD.
    In training with dropout the random stream ``dropout`` is needed.

    Attributes:
      num_classes: K.
      filters: of the five convolutions.
      units: of the two hidden dense layers.
      dropout: probability of a unit to be dropped.
    """

    num_classes: int = 10
    filters: tuple[int, int, int, int, int] = (48, 128, 192, 192, 128)
    units: tuple[int, int] = (512, 256)
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        check_image_size(x, (32, 32), "AlexNet")
        for i, filters in enumerate(self.filters, 1):
            size = 5 if i <= 2 else 3
            x = Conv(filters, (size, size), padding=((size // 2, size // 2),) * 2, name=f"conv{i}")(
                x
            )
            x = nn.relu(record(self, f"conv{i}", x))
            if i <= 2:
                x = local_response_norm(x)
            if i in (1, 2, 5):
                x = overlapping_max_pool(x)
            x = BatchNorm(name=f"conv{i}_norm")(x, train=train)
        x = flatten(x)
        for i, units in enumerate(self.units, 1):
            x = nn.relu(record(self, f"dense{i}", nn.Dense(units, name=f"dense{i}")(x)))
            x = nn.Dropout(self.dropout, name=f"dense{i}_dropout")(x, deterministic=not train)
            x = BatchNorm(name=f"dense{i}_norm")(x, train=train)
        return head(self.num_classes)(record(self, "features", x))


def alexnet(num_classes: int = 10) -> AlexNet:
    """The teacher of ZSKD and DeGAN; 1,659,178 parameters on 32×32×3."""
    return AlexNet(num_classes)


def alexnet_half(num_classes: int = 10) -> AlexNet:
    """The student of ZSKD and DeGAN, half of everything; 417,434 parameters on 32×32×3."""
    return AlexNet(num_classes, (24, 64, 96, 96, 64), (256, 128))


__all__ = ["AlexNet", "alexnet", "alexnet_half", "local_response_norm", "overlapping_max_pool"]
