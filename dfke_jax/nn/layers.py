"""Layers that networks are built from, with the properties the rest of the package relies on."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.nn.conv import conv_general_dilated
from dfke_jax.nn.pooling import avg_pool, max_pool
from dfke_jax.nn.tiles import FeatureMaps, tile_size, tiled_convolution
from dfke_jax.nn.upsample import Phases, convolve_phases, upsample_phases

Conv = functools.partial(nn.Conv, conv_general_dilated_cls=lambda: conv_general_dilated)
"""`flax.linen.Conv` over `dfke_jax.nn.conv.conv_general_dilated`."""

RECORD_MARK = "@"
_NHWC = ("NHWC", "HWIO", "NHWC")


class BatchNorm(nn.Module):
    """Batch normalisation that can also report the statistics of what enters it.

    y = scale · (x − mean) / √(var + epsilon) + bias over all axes but the last; in training the
    mean and (biased) variance are the batch's, otherwise the running ones. When the collection
    ``normalisation`` is mutable, the mean and biased variance of the input over this batch are sown
    there as ``moments``, whatever `train` is, and running statistics are left alone unless
    ``batch_stats`` is mutable.

    Attributes:
      momentum: of the running statistics: running = momentum · running + (1 − momentum) · batch.
        PyTorch's default of 0.1 is 0.9 here.
      epsilon: added to the variance.
      use_scale, use_bias: whether the affine parameters exist.

    Deviation: running variances are averages of biased batch variances (PyTorch averages unbiased
    ones).
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Any, *, train: bool = False) -> Any:
        """(..., F), or `Phases` of such -> the same, normalised."""
        pieces = x.pieces if isinstance(x, Phases) else (x,)
        features = pieces[0].shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)
        reports = self.is_mutable_collection("normalisation") and not self.is_initializing()
        mean, var = running_mean.value, running_var.value
        if train or reports:
            wide = [piece.astype(jnp.float32) for piece in pieces]
            batch_mean = _mean(wide)
            centre = batch_mean.reshape((1,) * (wide[0].ndim - 1) + (-1,))
            batch_var = _mean([jnp.square(piece - centre) for piece in wide])
            if reports:
                self.sow(
                    "normalisation",
                    "moments",
                    (batch_mean, batch_var),
                    reduce_fn=lambda _, new: new,
                )  # pyright: ignore[reportArgumentType]
            if train:
                mean, var = batch_mean, batch_var
                if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                    keep = self.momentum
                    running_mean.value = keep * running_mean.value + (1 - keep) * mean
                    running_var.value = keep * running_var.value + (1 - keep) * var
        shape = (1,) * (pieces[0].ndim - 1) + (features,)
        factor = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            factor = factor * self.param("scale", nn.initializers.ones, (features,), jnp.float32)
        offset = -mean * factor
        if self.use_bias:
            offset = offset + self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        normalise = lambda piece: (piece * factor.reshape(shape) + offset.reshape(shape)).astype(
            piece.dtype
        )
        return x.map(normalise) if isinstance(x, Phases) else normalise(x)


def _mean(pieces: list[Array]) -> Array:
    """Over all axes but the last, of pieces of one shape."""
    if len(pieces) == 1:
        return jnp.mean(pieces[0], tuple(range(pieces[0].ndim - 1)))
    means = [jnp.mean(piece, tuple(range(1, piece.ndim - 1))) for piece in pieces]
    # over the batch last: one sum over devices, not four
    return jnp.mean(sum(means[1:], means[0]), 0) / len(means)


class PooledConv(nn.Module):
    """A ``VALID`` convolution of stride one that a 2×2 max-pooling follows; parameters and function
    are `Conv`'s.

    It returns `FeatureMaps`: normalise with ``maps.map(norm)``, look with ``maps.image()``, go on
    with ``maps.max_pool()``. On CPU, with few channels, both operations run in tiles.

    Attributes:
      features: filters F.
      kernel_size: (k, k).
    """

    features: int
    kernel_size: tuple[int, int]
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> FeatureMaps:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(
            x.dtype
        )
        tile = tile_size(x.shape, shape)
        if tile:
            return FeatureMaps(tiled_convolution(x, kernel, tile), bias, tile)
        return FeatureMaps(
            conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_NHWC), bias
        )


class UpsampleConv(nn.Module):
    """Nearest-neighbour upsampling by two, then a 3×3 convolution, as one exact operation (see
    `upsample_phases`).

    It returns `Phases`: normalise them with `BatchNorm`, go on with ``phases.map(activation)``,
    ``phases.image()`` or `PhasedConv`.

    Attributes:
      features: filters F.
      use_bias: whether a bias is added.
    """

    features: int
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Phases:
        kernel = self.param(
            "kernel", self.kernel_init, (3, 3, x.shape[-1], self.features), jnp.float32
        )
        phases = upsample_phases(x, kernel.astype(x.dtype))
        if not self.use_bias:
            return phases
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).reshape(
            1, 1, 1, -1
        )
        return phases.map(lambda piece: piece + bias)


class PhasedConv(nn.Module):
    """A 3×3 ``SAME`` convolution without bias of an image in phases; parameters and function are
    `Conv`'s.

    Attributes:
      features: filters F.
    """

    features: int
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, phases: Phases) -> Phases:
        channels = phases.pieces[0].shape[-1]
        kernel = self.param(
            "kernel", self.kernel_init, (3, 3, channels, self.features), jnp.float32
        )
        if 9 * self.features > channels:
            phases = Phases((phases.image(),))
        return convolve_phases(phases, kernel.astype(phases.pieces[0].dtype))


def global_avg_pool(x: Array) -> Array:
    """(B, H, W, C) -> (B, C)."""
    return x.mean((1, 2))


def flatten(x: Array) -> Array:
    """(B, ...) -> (B, D), in H, W, C order."""
    return x.reshape(x.shape[0], -1)


def record(module: nn.Module, name: str, value: Array) -> Array:
    """Sows `value` into the collection ``activations`` under `name`, where `Classifier.activations`
    finds it.

    Convention: what is recorded is a layer's output *before* its non-linearity (for residual
    networks: the output of a stage); ``features`` is the input of the last layer.
    """
    # The mark keeps the name apart from the sub-module's, which lives in the same scope.
    module.sow(
        "activations",
        f"{RECORD_MARK}{name}",
        value,
        reduce_fn=lambda _, new: new,
        init_fn=lambda: None,  # pyright: ignore[reportArgumentType]
    )
    return value


def head(num_classes: int, name: str = "head", **options: Any) -> nn.Dense:
    """The last layer. Every network calls it ``head``, so that class similarities can be read off
    its weights.
    """
    if num_classes < 2:
        raise InputError(f"a classifier needs at least two classes, got {num_classes}")
    return nn.Dense(num_classes, name=name, **options)


def check_image_size(x: Array, expected: Sequence[int], network: str) -> None:
    """Raises `InputError` unless images are (B, *expected)."""
    if x.ndim != 4 or tuple(x.shape[1:3]) != tuple(expected):
        raise InputError(
            f"{network} is defined for {expected[0]}×{expected[1]} images, got an array of shape "
            f"{tuple(x.shape)}; set the classifier's preprocessing to resize or pad them"
        )


__all__ = [
    "BatchNorm",
    "Conv",
    "PhasedConv",
    "PooledConv",
    "UpsampleConv",
    "avg_pool",
    "check_image_size",
    "flatten",
    "global_avg_pool",
    "head",
    "max_pool",
    "record",
]
