"""Convolution laid out for the 2×2 max-pooling that follows it.

For few channels neither XLA's convolution nor its pooling is fast on CPU. Here the image is cut
into t×t tiles. The t×t outputs of a tile see (t + k − 1)² inputs, which lie in b×b neighbouring
tiles, b = ⌈(t + k − 1) / t⌉, so a k×k convolution from C to F channels is a b×b convolution from
t²C to t²F: one matrix product with a kernel that is mostly zeros, (B·tiles, b²t²C) × (b²t²C, t²F).
Outputs are ordered by their place in their pooling window first, so that pooling is the maximum of
four contiguous blocks. LeNet-5's layers do 2.6 and 1.4 times the arithmetic of the plain
convolution.

`dfke_jax.nn.layers.PooledConv` is the layer. Forward-mode derivatives need
``with convolution("lax")``.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.types import Array
from dfke_jax.nn.conv import uses_products
from dfke_jax.nn.derivatives import reverse_only
from dfke_jax.nn.pooling import max_pool


@dataclasses.dataclass(frozen=True)
class FeatureMaps:
    """What a convolution puts out before a 2×2 max-pooling, as an image or in tiles.

    Attributes:
      values: (B, H, W, F), or in tiles (B, H/t, W/t, 4, n²F): place in the pooling window; window
        of the tile, n = t/2 on a side; channel.
      bias: (F,) that is still to be added, or None.
      tile: t, or 0 for an image.
    """

    values: Array
    bias: Array | None = None
    tile: int = 0

    def map(self, function: Callable[[Array], Array]) -> "FeatureMaps":
        """Applies a function that treats all positions alike (a normalisation) to (..., F); bias
        added first.
        """
        values = self._biased()
        return FeatureMaps(function(values).reshape(self.values.shape), None, self.tile)

    def image(self) -> Array:
        """(B, H, W, F), bias added."""
        values = self._biased()
        if not self.tile:
            return values
        batch, rows, columns, _, _, features = values.shape
        t, n = self.tile, self.tile // 2
        values = values.reshape(batch, rows, columns, 2, 2, n, n, features).transpose(
            0, 1, 5, 3, 2, 6, 4, 7
        )
        return values.reshape(batch, rows * t, columns * t, features)

    def max_pool(self) -> Array:
        """(B, H // 2, W // 2, F); the gradient at a tie is shared, as in
        `dfke_jax.nn.pooling.max_pool`.
        """
        if not self.tile:
            return max_pool(self._biased())
        batch, rows, columns, _, width = self.values.shape
        n = self.tile // 2
        pooled = _window_max(reverse_only(self.values))
        if self.bias is not None:  # after the maximum, on a quarter of the elements
            pooled = pooled + jnp.tile(self.bias, n * n).reshape(1, 1, 1, width)
        pooled = pooled.reshape(batch, rows, columns, n, n, -1).transpose(0, 1, 3, 2, 4, 5)
        return pooled.reshape(batch, rows * n, columns * n, -1)

    def _biased(self) -> Array:
        values = self.values
        if self.tile:
            values = values.reshape(*values.shape[:-1], (self.tile // 2) ** 2, -1)
        if self.bias is None:
            return values
        return values + self.bias.reshape((1,) * (values.ndim - 1) + (-1,))


def tile_size(images: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """The t that suits a ``VALID`` convolution of stride one before a 2×2 pooling, or 0 where tiles
    do not pay.

    Args:
      images: (B, H, W, C), padding included. kernel: (k, k, C, F).
    """
    k, columns, channels, features = kernel
    size = (images[1] - k + 1, images[2] - columns + 1)
    if not uses_products() or k != columns or channels > 16 or min(size) < 2:
        return 0
    # larger tiles waste more arithmetic, which pays while there are few filters: with 32 of 5×5 on
    # 28×28 four takes 1.45 times two
    for t in (4, 2) if channels <= 3 and features <= 16 else (2,):
        if not any(s % t for s in size):
            return t
    return 0


def tiled_convolution(images: Array, kernel: Array, tile: int) -> Array:
    """A ``VALID`` convolution of stride one in tiles.

    Args:
      images: (B, H, W, C). kernel: (k, k, C, F).
      tile: t, even; divides H − k + 1 and W − k + 1.

    Returns:
      (B, (H − k + 1)/t, (W − k + 1)/t, 4, (t/2)²F), in the order of `FeatureMaps`.
    """
    batch, height, width, channels = images.shape
    k, _, _, features = kernel.shape
    t, n, b = tile, tile // 2, -(-(tile + k - 1) // tile)
    rows, columns = (height - k + 1) // t, (width - k + 1) // t
    high, wide = (rows + b - 1) * t, (columns + b - 1) * t
    if (high, wide) != (height, width):
        images = jnp.pad(images, ((0, 0), (0, high - height), (0, wide - width), (0, 0)))
    tiles = images.reshape(batch, high // t, t, wide // t, t, channels).transpose(0, 1, 3, 2, 4, 5)
    tiles = tiles.reshape(batch, high // t, wide // t, t * t * channels)
    patches = jnp.concatenate(
        [tiles[:, i : i + rows, j : j + columns] for i in range(b) for j in range(b)], -1
    )
    place = _places(t, k, b).astype(kernel.dtype)
    # input tile (I, J) and pixel (a, c), outputs at place (p, q) of window (u, v)
    matrix = jnp.einsum("Iapuk,Jcqvl,klxf->IJacxpquvf", place, place, kernel)
    patches, matrix = (
        patches.reshape(batch * rows * columns, -1),
        matrix.reshape(-1, t * t * features),
    )
    product = _product(reverse_only(patches), reverse_only(matrix))
    return product.reshape(batch, rows, columns, 4, n * n * features)


def _places(t: int, k: int, b: int) -> np.ndarray:
    """(b, t, 2, t/2, k): one where input pixel = output pixel + tap, all counted from the tile's
    first.
    """
    pixel = np.arange(b * t)[:, None, None]
    output = np.arange(t)[None, :, None]
    tap = np.arange(k)[None, None, :]
    return (pixel == output + tap).reshape(b, t, t // 2, 2, k).swapaxes(2, 3)


@jax.custom_vjp
def _product(patches: Array, matrix: Array) -> Array:
    return patches @ matrix


def _product_forward(patches: Array, matrix: Array) -> tuple[Array, tuple[Array, Array]]:
    return patches @ matrix, (patches, matrix)


def _product_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    patches, matrix = residuals
    parts = next(n for n in (4, 2, 1) if patches.shape[0] % n == 0)
    split = lambda rows: rows.reshape(parts, -1, rows.shape[-1])
    return cotangent @ matrix.T, jnp.sum(
        jnp.einsum("skm,skn->smn", split(patches), split(cotangent)), 0
    )


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def _window_max(values: Array) -> Array:
    return _most(values)


def _most(values: Array) -> Array:
    a, b, c, d = (values[..., i, :] for i in range(4))
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _window_max_forward(values: Array) -> tuple[Array, tuple[Array, Array]]:
    most = _most(values)
    return most, (values, most)


def _window_max_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array]:
    values, most = residuals
    reached = [values[..., i, :] == most for i in range(4)]
    count = sum((r.astype(values.dtype) for r in reached), jnp.zeros((), values.dtype))
    share = cotangent / count
    return (jnp.stack([jnp.where(r, share, 0) for r in reached], -2),)


_window_max.defvjp(_window_max_forward, _window_max_backward)


__all__ = ["FeatureMaps", "tile_size", "tiled_convolution"]
