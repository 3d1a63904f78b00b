"""Nearest upsampling and a 3×3 convolution as one operation on the small image, with gradients that
are fast on CPU.

Its output has four phases: pixels (2i + p, 2j + q) with p, q in {0, 1} are a small image each. On
CPU they stay apart (`Phases`) through normalisation and activation, since to interleave them costs
as much as to compute them, and a last convolution reads them as they are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from dfke_jax.core.errors import InputError
from dfke_jax.core.mesh import on_own_samples
from dfke_jax.core.types import Array
from dfke_jax.nn.conv import conv_general_dilated, convolution, uses_fast_forms
from dfke_jax.nn.derivatives import reverse_only

_NHWC = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))
_GROUP = 8
"""Images whose gradients are formed together: what is gathered for more does not stay in a core's
cache.
"""

_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))
# phase, tap of the small kernel, tap of the large one
_TAPS = np.zeros((2, 2, 3), np.float32)
_TAPS[0, 0, 0] = _TAPS[0, 1, 1] = _TAPS[0, 1, 2] = _TAPS[1, 0, 0] = _TAPS[1, 0, 1] = _TAPS[
    1, 1, 2
] = 1


@dataclasses.dataclass(frozen=True)
class Phases:
    """An image, in one piece or as its four phases.

    Attributes:
      pieces: one array (B, 2H, 2W, F), or four (B, H, W, F): pixels (2i, 2j), (2i, 2j + 1), (2i +
        1, 2j), (2i + 1, 2j + 1).
    """

    pieces: tuple[Array, ...]

    def map(self, function: Callable) -> "Phases":
        """Applies a function that treats all positions alike to every piece."""
        return Phases(tuple(function(piece) for piece in self.pieces))

    def image(self) -> Array:
        """(B, 2H, 2W, F)."""
        if len(self.pieces) == 1:
            return self.pieces[0]
        batch, height, width, features = self.pieces[0].shape
        flat = [piece.reshape(-1, features) for piece in self.pieces]
        rows = [
            jnp.concatenate(flat[2 * p : 2 * p + 2], 1).reshape(batch * height, -1)
            for p in range(2)
        ]
        return jnp.concatenate(rows, 1).reshape(batch, 2 * height, 2 * width, features)


def upsample_convolve(images: Array, kernel: Array, bias: Array | None = None) -> Array:
    """Nearest-neighbour upsampling by two followed by a 3×3 ``SAME`` convolution, without building
    the large image.

    Args, Raises: as `upsample_phases`. bias: (F,) or None.

    Returns:
      (B, 2H, 2W, F).
    """
    result = upsample_phases(images, kernel).image()
    return result if bias is None else result + bias.reshape(1, 1, 1, -1)


def upsample_phases(images: Array, kernel: Array) -> Phases:
    """Nearest-neighbour upsampling by two followed by a 3×3 ``SAME`` convolution; on CPU its
    phases.

    Each of the four output phases sees a 2×2 neighbourhood of the small image with summed weights
    (rows: phase 0 → ``[w0, w1 + w2]``, phase 1 → ``[w0 + w1, w2]``; columns alike): 2.25 times less
    arithmetic, exactly. On CPU a phase is a 2×2 convolution; the gradients, a few images at a time,
    are one convolution of the phases side by side for the image and four matrix products over all
    places for the kernel.

    Args:
      images: (B, H, W, C). kernel: (3, 3, C, F).

    Raises:
      InputError: for a kernel of another size.
    """
    if kernel.shape[:2] != (3, 3):
        raise InputError(
            f"the phase decomposition is for 3×3 kernels, got {kernel.shape[0]}×{kernel.shape[1]}"
        )
    if not uses_fast_forms():
        return Phases((_at_once(images, kernel),))
    return Phases(_phases(reverse_only(images), reverse_only(kernel)))


def convolve_phases(phases: Phases, kernel: Array) -> Phases:
    """A 3×3 ``SAME`` convolution of an image in phases, whose output is in phases again where its
    input is.

    In phases it is for few filters: the kernel's taps are products over all pixels, which are
    shifted and added; 9F should not exceed C.

    Args:
      phases: of (B, 2H, 2W, C). kernel: (3, 3, C, F).
    """
    if len(phases.pieces) == 1:
        padding = ((1, 1), (1, 1))
        return Phases(
            (
                conv_general_dilated(
                    phases.pieces[0], kernel, (1, 1), padding, dimension_numbers=_NHWC
                ),
            )
        )
    return Phases(_tapped(tuple(map(reverse_only, phases.pieces)), reverse_only(kernel)))


def _small_kernels(kernel: Array) -> Array:
    """(3, 3, C, F) -> (phase, phase, 2, 2, C, F)."""
    taps = _TAPS.astype(kernel.dtype)
    return jnp.einsum("pik,qjl,klcf->pqijcf", taps, taps, kernel)


def _convolve(images: Array, kernel: Array, padding: tuple) -> Array:
    # a banded product wastes more on these small kernels than it gains
    with convolution("loop_safe" if uses_fast_forms() else "lax"):
        return conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=_NHWC)


def _at_once(images: Array, kernel: Array) -> Array:
    """The image, from one convolution with 4F filters on the small image padded by one."""
    batch, height, width, channels = images.shape
    filters = kernel.shape[-1]
    small = _small_kernels(kernel).transpose(2, 3, 4, 0, 1, 5).reshape(2, 2, channels, 4 * filters)
    out = _convolve(images, small, ((1, 1), (1, 1))).reshape(
        batch, height + 1, width + 1, 2, 2, filters
    )
    rows = [
        jnp.stack([out[:, p : p + height, q : q + width, p, q] for q in range(2)], axis=3)
        for p in range(2)
    ]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, filters)


@jax.custom_vjp
def _phases(images: Array, kernel: Array) -> tuple[Array, ...]:
    small = _small_kernels(kernel)
    return tuple(_convolve(images, small[p, q], ((1 - p, p), (1 - q, q))) for p, q in _PLACES)


def _keep(images: Array, kernel: Array) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    return _phases(reverse_only(images), reverse_only(kernel)), (images, kernel)


def _backward(kept: tuple[Array, Array], cotangents: tuple[Array, ...]) -> tuple[Array, Array]:
    images, kernel = kept
    channels, filters = kernel.shape[2:]
    flipped = _small_kernels(kernel)[:, :, ::-1, ::-1].transpose(2, 3, 0, 1, 5, 4)
    flipped = flipped.reshape(2, 2, 4 * filters, channels)

    def gradients(
        total: Array, group: tuple[Array, tuple[Array, ...]], flipped: Array
    ) -> tuple[Array, Array]:
        images, cotangents = group
        places = jnp.concatenate(
            [
                jnp.pad(piece, ((0, 0), (p, 1 - p), (q, 1 - q), (0, 0)))
                for piece, (p, q) in zip(cotangents, _PLACES, strict=True)
            ],
            axis=-1,
            # (B, H + 1, W + 1, 4F): what one convolution of the image padded by one would have put
            # out
        )
        return total + _small_gradient(images, places), _convolve(places, flipped, ((0, 0), (0, 0)))

    zero = jnp.zeros((2, 2, channels, 4 * filters), jnp.float32)
    small, image_gradient = _by_groups(gradients, zero, (images, cotangents), flipped)
    small = small.reshape(2, 2, channels, 2, 2, filters)
    kernel_gradient = jnp.einsum("pik,qjl,ijcpqf->klcf", _TAPS, _TAPS, small)
    return image_gradient, kernel_gradient.astype(kernel.dtype)


def _by_groups(function: Callable, zero: Array, arrays: tuple, kernel: Array) -> tuple[Array, Any]:
    """Scans ``total, images = function(total, arrays, kernel)`` over groups of images; every device
    over its own.
    """

    def scan(kernel: Array, arrays: tuple) -> tuple[Array, Any]:
        batch = jax.tree.leaves(arrays)[0].shape[0]
        count = max(n for n in range(1, min(_GROUP, batch) + 1) if batch % n == 0)
        groups = jax.tree.map(lambda array: array.reshape(-1, count, *array.shape[1:]), arrays)
        total, images = lax.scan(lambda total, group: function(total, group, kernel), zero, groups)
        if batch < whole:
            total = lax.psum(total, "samples")
        return total, jax.tree.map(lambda image: image.reshape(-1, *image.shape[2:]), images)

    whole = jax.tree.leaves(arrays)[0].shape[0]
    return on_own_samples(scan, kernel, arrays, (PartitionSpec(), PartitionSpec("samples")))


def _small_gradient(images: Array, places: Array) -> Array:
    """(2, 2, C, 4F): the gradient of the kernel of that one convolution."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def product(i: int, j: int) -> Array:
        seen = padded[:, i : i + height + 1, j : j + width + 1]
        return jnp.einsum("bhwc,bhwf->cf", seen, places, preferred_element_type=jnp.float32)

    return jnp.stack([jnp.stack([product(i, j) for j in range(2)]) for i in range(2)])


_phases.defvjp(_keep, _backward)


@jax.custom_vjp
def _tapped(pieces: tuple[Array, ...], kernel: Array) -> tuple[Array, ...]:
    batch, height, width, channels = pieces[0].shape
    filters = kernel.shape[-1]
    taps = kernel.transpose(0, 1, 3, 2).reshape(9 * filters, channels)
    shares = [jnp.einsum("tc,nc->tn", taps, piece.reshape(-1, channels)) for piece in pieces]
    shares = [
        jnp.pad(
            share.reshape(9, filters, batch, height, width),
            ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)),
        )
        for share in shares
    ]

    def output(p: int, q: int) -> Array:
        total = jnp.zeros((), shares[0].dtype)
        for tap in range(9):
            piece, i, j = _source(p, q, tap)
            total = total + shares[piece][tap, :, :, 1 + i : 1 + i + height, 1 + j : 1 + j + width]
        return total.transpose(1, 2, 3, 0)

    return tuple(output(p, q) for p, q in _PLACES)


def _source(p: int, q: int, tap: int) -> tuple[int, int, int]:
    """Where an output of phase (p, q) finds the input under a tap: which phase, and how many places
    down and right.
    """
    i, j = p + tap // 3 - 1, q + tap % 3 - 1
    return 2 * (i % 2) + j % 2, i // 2, j // 2


def _keep_tapped(pieces: tuple[Array, ...], kernel: Array) -> tuple[tuple[Array, ...], tuple]:
    return _tapped(tuple(map(reverse_only, pieces)), reverse_only(kernel)), (pieces, kernel)


def _tapped_backward(kept: tuple, cotangents: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
    pieces, kernel = kept
    channels, filters = kernel.shape[2:]

    def gradients(total: Array, group: tuple, kernel: Array) -> tuple[Array, tuple[Array, ...]]:
        pieces, cotangents = group
        height, width = pieces[0].shape[1:3]
        padded = [jnp.pad(piece, ((0, 0), (1, 1), (1, 1), (0, 0))) for piece in cotangents]
        # by piece and tap: the outputs that a pixel had a share in
        seen: list[list] = [[None] * 9 for _ in pieces]
        for output, (p, q) in zip(padded, _PLACES, strict=True):
            for tap in range(9):
                piece, i, j = _source(p, q, tap)
                seen[piece][tap] = output[:, 1 - i : 1 - i + height, 1 - j : 1 - j + width]
        images = []
        for piece, outputs in zip(pieces, seen, strict=True):
            rows = jnp.stack(
                [jnp.moveaxis(output, -1, 0).reshape(filters, -1) for output in outputs]
            )
            total = total + rows.reshape(9 * filters, -1) @ piece.reshape(-1, channels)
            image = jnp.zeros((), piece.dtype)
            for tap, output in enumerate(outputs):
                # few, and a sum of scaled vectors: a product with so short rows is slower
                for f in range(filters):
                    image = image + output[..., f, None] * kernel[tap // 3, tap % 3, :, f].reshape(
                        1, 1, 1, -1
                    )
            images.append(image)
        return total, tuple(images)

    zero = jnp.zeros((9 * filters, channels), kernel.dtype)
    total, images = _by_groups(gradients, zero, (pieces, cotangents), kernel)
    return images, total.reshape(3, 3, filters, channels).swapaxes(2, 3)


_tapped.defvjp(_keep_tapped, _tapped_backward)

__all__ = ["Phases", "convolve_phases", "upsample_convolve", "upsample_phases"]
