"""The network of the CIFAR-10 speed-run record: a whitened first layer and three short groups."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.layers import BatchNorm, Conv, flatten, head, max_pool, record

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Of CIFAR-10's training pixels, by channel: how images reach this network."""
_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # ±1/√fan_in


def identity_kernel(key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """A kernel (kh, kw, C, F) whose first min(C, F) filters copy their channel; the others are
    uniform on ±1/√(kh·kw·C).
    """
    kernel = _LINEAR(key, shape, dtype)
    kh, kw, channels, filters = shape
    copied = min(channels, filters)
    kernel = kernel.at[..., :copied].set(0)
    return kernel.at[kh // 2, kw // 2, jnp.arange(copied), jnp.arange(copied)].set(1)


def _unit_kernel(key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    kernel = _LINEAR(key, shape, dtype)
    return kernel / jnp.std(kernel, ddof=1)


def _small_bias(channels: int) -> nn.initializers.Initializer:
    """Of a convolution of 2×2 patches of so many channels: uniform on ±1/√fan_in."""
    return lambda key, shape, dtype=jnp.float32: (
        jax.random.uniform(key, shape, dtype, -1, 1) / (2 * 2 * channels) ** 0.5
    )


class Airbench(nn.Module):
    """gelu(conv 2×2), then groups of conv 3×3, pooling by 2, norm, gelu, conv 3×3, norm, gelu; the
    maximum over all places; a dense layer without bias, its answer divided by its width.

    Normalisation has no scale, ε = 1e-12 and keeps 0.6 of its running statistics at each step. The
    first layer, ``whiten``, has a filter and its negative for each of the 2·2·C directions of a
    patch; here it is drawn at random, and `dfke_jax.nn.airbench_training` sets it from images.

    Recorded are the groups before their last non-linearity.

    Attributes:
      num_classes: K.
      widths: filters of each group.

    Source: Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024, and its released code
    (``airbench94_muon``).
    Deviation: the last pooling takes all places that are left, 3×3 for images of 32×32.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (64, 256, 256)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if min(x.shape[1:3]) < 2 ** len(self.widths) + 1:
            raise InputError(
                f"{len(self.widths)} groups need images of at least {2 ** len(self.widths) + 1} "
                f"pixels a side, got {x.shape[1]}×{x.shape[2]}"
            )

        def convolve(x: Array, width: int, name: str) -> Array:
            options = {"use_bias": False, "kernel_init": identity_kernel, "name": name}
            return Conv(width, (3, 3), padding="SAME", **options)(x)

        def normalise(x: Array, name: str) -> Array:
            options = {"momentum": 0.6, "epsilon": 1e-12, "use_scale": False}
            return BatchNorm(**options, name=name)(x, train=train)

        channels = x.shape[-1]
        options = {"padding": "VALID", "kernel_init": _LINEAR, "bias_init": _small_bias(channels)}
        x = Conv(8 * channels, (2, 2), **options, name="whiten")(x)
        x = nn.gelu(x, approximate=False)
        for i, width in enumerate(self.widths, 1):
            x = max_pool(convolve(x, width, f"group{i}_conv1"))
            x = nn.gelu(normalise(x, f"group{i}_conv1_norm"), approximate=False)
            x = normalise(convolve(x, width, f"group{i}_conv2"), f"group{i}_conv2_norm")
            x = nn.gelu(record(self, f"group{i}", x), approximate=False)
        x = record(self, "features", flatten(x.max((1, 2))))
        return head(self.num_classes, use_bias=False, kernel_init=_unit_kernel)(x) / x.shape[-1]


def airbench94(num_classes: int = 10) -> Airbench:
    """64/256/256 filters; 1,971,640 parameters on three channels."""
    return Airbench(num_classes)


def airbench94_half(num_classes: int = 10) -> Airbench:
    """Half the filters, for students; 497,528 parameters on three channels."""
    return Airbench(num_classes, (32, 128, 128))


def airbench94_quarter(num_classes: int = 10) -> Airbench:
    """A quarter of the filters, for students of the half; 126,808 parameters on three channels."""
    return Airbench(num_classes, (16, 64, 64))


def whitening_filters(inputs: Array, size: int = 2, epsilon: float = 5e-4) -> Array:
    """Filters whose answers to patches of these images are uncorrelated and of unit power.

    With the eigenvectors v_i and eigenvalues λ_i of M = mean of p pᵀ over all patches p of size ×
    size pixels, they are v_i / √(λ_i + epsilon), in the order of λ, and then their negatives.

    Args:
      inputs: (N, H, W, C), as the first layer sees them.
      size: of a patch, at least 1. epsilon: added to eigenvalues.

    Returns:
      (size, size, C, 2·size·size·C).

    Source: as `Airbench`.
    """
    _, height, width, channels = inputs.shape
    if not 1 <= size <= min(height, width):
        raise InputError(f"patches of {size}×{size} pixels in images of {height}×{width}")
    rows, columns = height - size + 1, width - size + 1
    views = [inputs[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    # pairs of views, so that patches never lie side by side in memory; image by image, because a
    # sum over all patches at once rounds away the small eigenvalues, and may leave one below zero

    def power_of(a: Array, b: Array) -> Array:
        each = jnp.einsum("nhwc,nhwd->ncd", a, b, precision=jax.lax.Precision.HIGHEST)
        return jnp.mean(each, 0) / (rows * columns)

    power = jnp.block([[power_of(a, b) for b in views] for a in views])
    values, vectors = jnp.linalg.eigh(power)
    values = jnp.maximum(values, 0)
    filters = vectors / jnp.sqrt(values + epsilon)[None]
    filters = filters.reshape(size, size, channels, -1)
    return jnp.concatenate([filters, -filters], -1)


__all__ = [
    "MEAN",
    "STD",
    "Airbench",
    "airbench94",
    "airbench94_half",
    "airbench94_quarter",
    "identity_kernel",
    "whitening_filters",
]
