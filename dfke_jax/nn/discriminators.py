"""Networks that tell made images from given ones, and the penalty that keeps a critic from being
too steep.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.conv import convolution
from dfke_jax.nn.layers import BatchNorm, Conv, flatten

_NORMAL = nn.initializers.normal(0.02)


class DCGANDiscriminator(nn.Module):
    """Strided convolutions down to 3×3 or 4×4 maps, then one number.

    x -> 2x − 1 -> [4×4 convolution of stride two, norm (not the first), leaky ReLU] with w, 2w, 4w
    filters -> dense.

    Attributes:
      width: w.
      batch_norm: a critic under a gradient penalty must do without, because it takes every sample
        alone.

    Source: Radford, Metz and Chintala, DCGAN, ICLR 2016, section 3.
    Deviation: the last convolution, over the whole of its map, is the dense layer that it equals.
    """

    width: int = 64
    batch_norm: bool = True

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        """(B, H, W, C) in [0, 1] -> (B,): the logit of "given"."""
        if images.ndim != 4 or min(images.shape[1:3]) < 8:
            raise InputError(
                "a discriminator needs images (B, H, W, C) of at least 8×8, got shape "
                f"{images.shape}"
            )
        x = 2 * images - 1
        for i in range(3):
            bias = i == 0 or not self.batch_norm
            x = Conv(
                self.width * 2**i,
                (4, 4),
                (2, 2),
                "SAME",
                use_bias=bias,
                kernel_init=_NORMAL,
                name=f"conv{i + 1}",
            )(x)
            if not bias:
                x = BatchNorm(name=f"conv{i + 1}_norm")(x, train=train)
            x = nn.leaky_relu(x, 0.2)
        return nn.Dense(1, name="head")(flatten(x))[:, 0]


def gradient_penalty(critic: Callable[[Array], Array], points: Array) -> Array:
    """mean_b (‖∇_x D(x_b)‖₂ − 1)², the norm over all of H, W, C.

    To be differentiated for the critic's parameters, which takes its convolutions twice: inside,
    all of them are the plain ones (`dfke_jax.nn.convolution`), in the forward pass and in both
    derivatives. Where the gradient vanishes the norm's own derivative is taken as zero.

    Args:
      critic: (B, H, W, C) -> (B,), each from its own image alone (no batch normalisation in
        training mode).
      points: (B, H, W, C), usually from `between`.

    Returns:
      ().

    Source: Gulrajani, Ahmed, Arjovsky, Dumoulin and Courville, Improved Training of Wasserstein
      GANs, NeurIPS 2017, equation 3.
    """
    with convolution("lax"):
        slopes = jax.grad(lambda x: jnp.sum(critic(x)))(points)
    squared = jnp.sum(jnp.square(flatten(slopes)), -1)
    steep = squared > 0
    norms = jnp.where(steep, jnp.sqrt(jnp.where(steep, squared, 1.0)), 0.0)
    return jnp.mean(jnp.square(norms - 1))


def between(key: Key, first: Array, second: Array) -> Array:
    """u·first + (1 − u)·second with u uniform on [0, 1), one for every image; both (B, H, W, C)."""
    share = jax.random.uniform(key, (first.shape[0], 1, 1, 1))
    return share * first + (1 - share) * second


__all__ = ["DCGANDiscriminator", "between", "gradient_penalty"]
