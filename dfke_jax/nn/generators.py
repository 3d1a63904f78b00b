"""Networks that turn latent vectors into images."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.layers import BatchNorm, PhasedConv, UpsampleConv

_NORMAL = nn.initializers.normal(0.02)


def squash(pre_activation: Array, box: tuple[float, float] = (0.0, 1.0)) -> Array:
    """low + (high − low) · (tanh(x̃) + 1) / 2: from a generator's last layer to pixels of the box."""
    low, high = box
    return low + (high - low) * (jnp.tanh(pre_activation) + 1) / 2


def draw_latents(
    key: Key, batch: tuple[int, ...], generator: "DFMEGenerator | DCGANGenerator"
) -> Array:
    """(*batch, Z), standard normal."""
    return jax.random.normal(key, (*batch, generator.latent), jnp.float32)


class DFMEGenerator(nn.Module):
    """The generator of data-free model extraction, an ancestor of which serves adversarial
    distillation.

    z -> dense, 2w maps of a quarter of the size -> norm -> [up ×2, 3×3 convolution, 2w, norm, leaky
    ReLU] -> [the same with w] -> 3×3 convolution, C -> norm without scale and offset = x̃ ->
    (tanh(x̃) + 1)/2.

    The last normalisation keeps x̃ at unit variance, so that tanh does not saturate: estimates of
    the gradient at x̃ live on that. It also fixes mean and contrast of every batch, which losses on
    statistics must be free to choose: with ``normalised_output=False`` the last convolution has a
    bias in its place, x̃ -> σ(2x̃).

    Attributes:
      shape: (H, W, C) of the images; H and W multiples of four (28 and 32 begin at 7×7 and 8×8
        maps).
      width: w; 64 is the published network, 16 suits LeNet on grey images.
      latent: Z.
      normalised_output: whether x̃ is normalised over the batch.

    Source: Truong et al., Data-Free Model Extraction, CVPR 2021 (supplement and released code).
      Without the last normalisation: the generator of the released CMI, Fast-DFKD and NAYER (which
      has σ(x̃), twice the last kernel).
    Deviations: convolutions that normalisation follows have no bias, which normalisation would
      remove again (the
    dense layer has one: it differs from place to place, and normalisation takes away the mean of a
    channel alone); nearest upsampling and convolution are one exact operation (`UpsampleConv`).
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    width: int = 64
    latent: int = 256
    normalised_output: bool = True

    def __call__(self, z: Array, *, train: bool = False) -> Array:
        """(B, Z) -> images (B, H, W, C) in [0, 1]."""
        return squash(self.pre_activation(z, train=train))

    @nn.compact
    def pre_activation(self, z: Array, *, train: bool = False) -> Array:
        """(B, Z) -> x̃ (B, H, W, C), what goes into the tanh;
        ``apply(..., method="pre_activation")``.
        """
        x = _base(self, z, 2 * self.width, stages=2, template=True)
        x = BatchNorm(name="dense_norm")(x, train=train)
        leaky = functools.partial(nn.leaky_relu, negative_slope=0.2)
        phases = UpsampleConv(2 * self.width, use_bias=False, name="conv1")(x)
        x = BatchNorm(name="conv1_norm")(phases, train=train).map(leaky).image()
        phases = UpsampleConv(self.width, use_bias=False, name="conv2")(x)
        phases = BatchNorm(name="conv2_norm")(phases, train=train).map(leaky)
        phases = PhasedConv(self.shape[-1], name="conv3")(phases)
        if not self.normalised_output:
            bias = self.param(
                "image_bias", nn.initializers.zeros, (1, 1, 1, self.shape[-1]), jnp.float32
            )
            return phases.map(lambda piece: piece + bias).image()
        return BatchNorm(use_scale=False, use_bias=False, name="image_norm")(
            phases, train=train
        ).image()


class DCGANGenerator(nn.Module):
    """A deep convolutional generator for images of 28 or 32 pixels.

    z -> dense, maps of an eighth of the size (a quarter, where eight does not divide it) -> norm,
    ReLU -> per doubling up ×2 and a 3×3 convolution, norm, ReLU -> the last doubling has C filters
    and no norm = x̃ -> (tanh(x̃) + 1)/2.

    Attributes:
      shape: (H, W, C); H and W multiples of four.
      width: w, filters before the last doubling; twice as many a doubling earlier.
      latent: Z.

    Source: Radford, Metz and Chintala, DCGAN, ICLR 2016, section 3; the depth is that of Sanyal et
      al., Towards Data-Free Model Stealing in a Hard Label Setting, CVPR 2022.
    Deviations: nearest upsampling and a 3×3 convolution in the place of a 4×4 transposed
    convolution of stride two (no checkerboard, and 16/9 of the taps less), a dense first layer (the
    same function as a transposed convolution of a 1×1 map), no biases in front of normalisation.
    """

    shape: tuple[int, int, int] = (32, 32, 3)
    width: int = 64
    latent: int = 100

    def __call__(self, z: Array, *, train: bool = False) -> Array:
        """(B, Z) -> images (B, H, W, C) in [0, 1]."""
        return squash(self.pre_activation(z, train=train))

    @nn.compact
    def pre_activation(self, z: Array, *, train: bool = False) -> Array:
        """(B, Z) -> x̃ (B, H, W, C), what goes into the tanh."""
        stages = 3 if self.shape[0] % 8 == self.shape[1] % 8 == 0 else 2
        x = _base(self, z, self.width * 2 ** (stages - 1), stages)
        x = nn.relu(BatchNorm(name="dense_norm")(x, train=train))
        for i in range(1, stages):
            filters = self.width * 2 ** (stages - 1 - i)
            phases = UpsampleConv(filters, use_bias=False, kernel_init=_NORMAL, name=f"conv{i}")(x)
            x = BatchNorm(name=f"conv{i}_norm")(phases, train=train).map(nn.relu).image()
        return UpsampleConv(self.shape[-1], kernel_init=_NORMAL, name=f"conv{stages}")(x).image()


Generator = DFMEGenerator | DCGANGenerator


def _base(generator: Generator, z: Array, maps: int, stages: int, template: bool = False) -> Array:
    """(B, Z) -> (B, H/2^stages, W/2^stages, maps) by a dense layer, after the checks that both
    networks need.

    With `template` every unit has a bias, drawn as PyTorch's dense layers draw theirs: U(−1/√Z,
    1/√Z).
    """
    height, width, channels = generator.shape
    if (
        height % 4
        or width % 4
        or min(height, width, channels, generator.width, generator.latent) < 1
    ):
        raise InputError(
            "a generator needs a height and width that four divides, and sizes of at least 1; got "
            f"shape {generator.shape}, width {generator.width}, latent {generator.latent}"
        )
    if z.ndim != 2 or z.shape[1] != generator.latent:
        raise InputError(f"latents must be (B, {generator.latent}), got shape {z.shape}")
    height, width = height >> stages, width >> stages
    bound = generator.latent**-0.5

    def uniform(key: Key, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    dense = nn.Dense(height * width * maps, use_bias=template, bias_init=uniform, name="dense")
    x = dense(z)
    return x.reshape(-1, height, width, maps)


__all__ = ["DCGANGenerator", "DFMEGenerator", "Generator", "draw_latents", "squash"]
