"""Networks that tell made images from given ones."""

import flax.linen as nn

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.nn.layers import BatchNorm, Conv, flatten

_NORMAL = nn.initializers.normal(0.02)


class DCGANDiscriminator(nn.Module):
    """Strided convolutions down to 3×3 or 4×4 maps, then one number.

    x -> 2x − 1 -> [4×4 convolution of stride two, norm (not the first), leaky ReLU] with w, 2w, 4w filters -> dense.

    Attributes:
      width: w.
      batch_norm: a critic under a gradient penalty must do without, because it takes every sample alone.

    Source: Radford, Metz and Chintala, DCGAN, ICLR 2016, section 3.
    Deviation: the last convolution, over the whole of its map, is the dense layer that it equals.
    """

    width: int = 64
    batch_norm: bool = True

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """(B, H, W, C) in [0, 1] -> (B,): the logit of "given"."""
        if images.ndim != 4 or min(images.shape[1:3]) < 8:
            raise InputError(f"a discriminator needs images (B, H, W, C) of at least 8×8, got shape {images.shape}")
        x = 2 * images - 1
        for i in range(3):
            bias = i == 0 or not self.batch_norm
            x = Conv(
                self.width * 2**i, (4, 4), (2, 2), "SAME", use_bias=bias, kernel_init=_NORMAL, name=f"conv{i + 1}"
            )(x)
            if not bias:
                x = BatchNorm(name=f"conv{i + 1}_norm")(x, train=train)
            x = nn.leaky_relu(x, 0.2)
        return nn.Dense(1, name="head")(flatten(x))[:, 0]


__all__ = ["DCGANDiscriminator"]
