"""Random image transformations that run inside compiled loops.

Every factory returns a transformation ``(key, images (B, H, W, C)) -> images`` of the same shape
and dtype, drawing separately for each image. Images lie in the box [0, 1] and stay there. A
transformation is a `jax.tree_util.Partial`: a pytree whose strengths are its leaves, so it can be
an argument of a compiled function, and another one of the same kind, of equal or different
strength, runs the same program.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import check_arguments
from dfke_jax.core.types import Array, Augmentation, Key


def identity() -> Augmentation:
    """Returns the images as they are."""
    return Partial(_identity)


def compose(*transforms: Augmentation) -> Augmentation:
    """Applies transformations from left to right; the i-th receives ``fold_in(key, i)``.

    Raises:
      InputError: for a bare function (`flip` instead of ``flip()``).
    """
    check_arguments(transforms, "transforms")
    return Partial(_compose, transforms)


def shift(max_pixels: int, fill: float = 0.0) -> Augmentation:
    """Moves each image by whole pixels, uniform on {-max_pixels, ..., max_pixels} along each axis.

    Args:
      max_pixels: at least 0.
      fill: value of the pixels that move in, in [0, 1].
    """
    return Partial(_shift, _whole("max_pixels", max_pixels), _within("fill", fill, 0, 1))


def reflect_shift(max_pixels: int) -> Augmentation:
    """`shift`, with what moves in mirrored at the border: row −i is row i, as in NumPy's
    ``reflect``.

    Args:
      max_pixels: at least 0, and smaller than the image.
    """
    return Partial(_reflect_shift, _whole("max_pixels", max_pixels))


def random_crop(padding: int) -> Augmentation:
    """Pads by `padding` zeros on every side and cuts a window of the original size out at a uniform
    place.

    That is `shift(padding)` exactly, and written as it.
    """
    return shift(_whole("padding", padding))


def flip() -> Augmentation:
    """Mirrors each image left to right with probability 1/2."""
    return Partial(_flip)


def alternating_flip(images: Array, mirrored: Array, epoch: Array | int) -> Array:
    """Mirrors some images left to right in even epochs and the others in odd ones.

    Every two epochs show each image both ways, where `flip` shows one of them twice half the time.
    It draws nothing: ``mirrored`` is drawn once, for all epochs.

    Args:
      images: (B, H, W, C). mirrored: (B,), whether an image is mirrored in even epochs.
      epoch: which pass this is, from 0.

    Source: Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024, section 3.6.
    """
    _check(images)
    turned = mirrored ^ (jnp.asarray(epoch) % 2 == 1)
    return jnp.where(turned[:, None, None, None], images[:, :, ::-1], images)


def affine(
    rotation_radians: float = 0.0,
    scale: tuple[float, float] = (1.0, 1.0),
    shift_pixels: float = 0.0,
) -> Augmentation:
    """Rotates, scales and moves each image: `warp` with uniform random parameters.

    Args:
      rotation_radians: r ≥ 0; the angle is uniform on [-r, r].
      scale: 0 < low ≤ high; the magnification is uniform between them (not on a logarithmic scale).
      shift_pixels: t ≥ 0; the shift along each axis is uniform on [-t, t], in fractions of pixels
        too.
    """
    low, high = scale
    if not 0 < low <= high < math.inf:
        raise InputError(f"scale must be (low, high) with 0 < low <= high, got {scale}")
    return Partial(
        _affine,
        _within("rotation_radians", rotation_radians, 0),
        (float(low), float(high)),
        _within("shift_pixels", shift_pixels, 0),
    )


def resized_crop(smallest_area: float) -> Augmentation:
    """Cuts a part of each image out and magnifies it to the image's size.

    Args:
      smallest_area: a in (0, 1]; the part's share of the area is uniform on [a, 1], its place
        uniform among those inside the image, its proportions the image's.
    """
    if not 0 < smallest_area <= 1:
        raise InputError(f"smallest_area must lie in (0, 1], got {smallest_area}")
    return Partial(_resized_crop, float(smallest_area))


def gaussian_noise(max_sigma: float) -> Augmentation:
    """Adds Gaussian noise and clips to the box; each image's deviation is uniform on [0,
    max_sigma].
    """
    return Partial(_gaussian_noise, _within("max_sigma", max_sigma, 0))


def salt_and_pepper(max_fraction: float) -> Augmentation:
    """Sets a fraction of the pixels to 0 or 1, each with probability 1/2 and in all channels at
    once.

    Args:
      max_fraction: in [0, 1]; the expected fraction of an image is uniform on [0, max_fraction].
    """
    return Partial(_salt_and_pepper, _within("max_fraction", max_fraction, 0, 1))


def cutout(size: int) -> Augmentation:
    """Sets a square of size × size pixels to 0, its centre uniform over the image; it may lie
    partly outside.

    Source: DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with
    Cutout, 2017.
    """
    return Partial(_cutout, _whole("size", size))


def warp(images: Array, angles: Array, scales: Array, shifts: Array) -> Array:
    """Rotates each image about its centre, magnifies it, then moves it; bilinear, with zeros
    outside.

    The value at p is that of the input at c + R(angle)ᵀ (p − c − shift) / scale, where c is the
    centre.

    Args:
      images: (B, H, W, C).
      angles: (B,), radians, counter-clockwise as displayed: π/2 is `numpy.rot90` for square images.
      scales: (B,), positive; 2 doubles sizes.
      shifts: (B, 2), pixels down and to the right.
    """
    _check(images)
    batch, height, width, channels = images.shape
    down = jnp.arange(height) - (height - 1) / 2
    right = jnp.arange(width) - (width - 1) / 2
    down = (down[None] - shifts[:, :1]) / scales[:, None]
    right = (right[None] - shifts[:, 1:]) / scales[:, None]
    down, right = down[:, :, None], right[:, None, :]
    cos, sin = jnp.cos(angles)[:, None, None], jnp.sin(angles)[:, None, None]
    rows = cos * down + sin * right + (height - 1) / 2
    columns = cos * right - sin * down + (width - 1) / 2

    # One frame of zeros around the image serves every place outside, and the four neighbours of a
    # place lie side by side along the channel axis, so that one lookup fetches them all.
    framed = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = [framed[:, :-1, :-1], framed[:, :-1, 1:], framed[:, 1:, :-1], framed[:, 1:, 1:]]
    table = jnp.concatenate(corners, -1).reshape(batch, (height + 1) * (width + 1), 4 * channels)
    rows, columns = jnp.clip(rows, -1, height), jnp.clip(columns, -1, width)
    top, left = jnp.minimum(jnp.floor(rows), height - 1), jnp.minimum(jnp.floor(columns), width - 1)
    place = ((top + 1).astype(jnp.int32) * (width + 1) + (left + 1).astype(jnp.int32)).reshape(
        batch, -1
    )
    found = jax.vmap(lambda values, index: values.at[index].get(mode="promise_in_bounds"))(
        table, place
    )
    found = found.reshape(batch, height, width, 4, channels)
    upper_left, upper_right, lower_left, lower_right = (
        found[..., corner, :] for corner in range(4)
    )
    # In this form of the interpolation rounding cannot leave the box.
    across = (columns - left)[..., None].astype(images.dtype)
    upper = upper_left + across * (upper_right - upper_left)
    lower = lower_left + across * (lower_right - lower_left)
    return upper + (rows - top)[..., None].astype(images.dtype) * (lower - upper)


def _identity(key: Key, images: Array) -> Array:
    del key
    return images


def _compose(transforms: tuple[Augmentation, ...], key: Key, images: Array) -> Array:
    for position, transform in enumerate(transforms):
        images = transform(jax.random.fold_in(key, position), images)
    return images


def _shift(max_pixels: Any, fill: Any, key: Key, images: Array) -> Array:
    _check(images)
    batch, height, width, channels = images.shape
    offsets = jax.random.randint(key, (2, batch, 1), -max_pixels, max_pixels + 1)
    rows, columns = jnp.arange(height)[None] - offsets[0], jnp.arange(width)[None] - offsets[1]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    place = (
        jnp.clip(rows, 0, height - 1)[:, :, None] * width
        + jnp.clip(columns, 0, width - 1)[:, None, :]
    )
    moved = jnp.take_along_axis(
        images.reshape(batch, height * width, channels),
        place.reshape(batch, -1, 1),
        1,
        mode="promise_in_bounds",
    )
    return jnp.where(
        inside[..., None], moved.reshape(images.shape), jnp.asarray(fill, images.dtype)
    )


def _reflect_shift(max_pixels: Any, key: Key, images: Array) -> Array:
    _check(images)
    batch, height, width, channels = images.shape
    offsets = jax.random.randint(key, (2, batch, 1), -max_pixels, max_pixels + 1)

    def reflected(size: int, offset: Array) -> Array:
        place = jnp.abs(jnp.arange(size)[None] - offset)
        return size - 1 - jnp.abs(size - 1 - place)

    rows, columns = reflected(height, offsets[0]), reflected(width, offsets[1])
    place = rows[:, :, None] * width + columns[:, None, :]
    moved = jnp.take_along_axis(
        images.reshape(batch, height * width, channels),
        place.reshape(batch, -1, 1),
        1,
        mode="promise_in_bounds",
    )
    return moved.reshape(images.shape)


def _flip(key: Key, images: Array) -> Array:
    _check(images)
    mirrored = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def _affine(rotation: Any, scale: tuple[Any, Any], pixels: Any, key: Key, images: Array) -> Array:
    _check(images)
    turn, grow, move = jax.random.split(key, 3)
    batch = images.shape[0]
    angles = rotation * jax.random.uniform(turn, (batch,), minval=-1.0)
    scales = scale[0] + (scale[1] - scale[0]) * jax.random.uniform(grow, (batch,))
    shifts = pixels * jax.random.uniform(move, (batch, 2), minval=-1.0)
    return warp(images, angles, scales, shifts)


def _resized_crop(smallest_area: Any, key: Key, images: Array) -> Array:
    _check(images)
    area_key, place_key = jax.random.split(key)
    batch, height, width, _ = images.shape
    area = smallest_area + (1 - smallest_area) * jax.random.uniform(area_key, (batch,))
    scales = jax.lax.rsqrt(area)
    room = (
        (scales - 1)[:, None] * jnp.array([[height - 1, width - 1]]) / 2
    )  # by which the magnified image stands out
    shifts = room * jax.random.uniform(place_key, (batch, 2), minval=-1.0)
    return warp(images, jnp.zeros(batch), scales, shifts)


def _gaussian_noise(max_sigma: Any, key: Key, images: Array) -> Array:
    _check(images)
    strength, noise = jax.random.split(key)
    sigma = max_sigma * jax.random.uniform(strength, (images.shape[0], 1, 1, 1), images.dtype)
    return jnp.clip(images + sigma * jax.random.normal(noise, images.shape, images.dtype), 0, 1)


def _salt_and_pepper(max_fraction: Any, key: Key, images: Array) -> Array:
    _check(images)
    strength, place = jax.random.split(key)
    fraction = max_fraction * jax.random.uniform(strength, (images.shape[0], 1, 1, 1))
    draw = jax.random.uniform(place, (*images.shape[:3], 1))
    extreme = (draw < fraction / 2).astype(images.dtype)
    return jnp.where(draw < fraction, extreme, images)


def _cutout(size: Any, key: Key, images: Array) -> Array:
    _check(images)
    batch, height, width, _ = images.shape
    vertical, horizontal = jax.random.split(key)
    top = jax.random.randint(vertical, (batch, 1), 0, height) - size // 2
    left = jax.random.randint(horizontal, (batch, 1), 0, width) - size // 2
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    inside = ((rows >= top) & (rows < top + size))[:, :, None] & (
        (columns >= left) & (columns < left + size)
    )[:, None]
    return jnp.where(inside[..., None], jnp.zeros((), images.dtype), images)


def _check(images: Array) -> None:
    if images.ndim != 4:
        raise InputError(f"images must be (B, H, W, C), got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InputError(
            f"images must be floats in [0, 1], got {images.dtype}; convert them with "
            "nn.classifier.as_float"
        )


def _whole(name: str, value: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < 0:
        raise InputError(f"{name} must be a whole number of pixels, at least 0, got {value}")
    return int(value)


def _within(name: str, value: float, low: float, high: float = math.inf) -> float:
    if not low <= value <= high or math.isinf(value):
        bounds = f"in [{low}, {high}]" if math.isfinite(high) else f"finite and at least {low}"
        raise InputError(f"{name} must be {bounds}, got {value}")
    return float(value)


__all__ = [
    "affine",
    "alternating_flip",
    "compose",
    "cutout",
    "flip",
    "gaussian_noise",
    "identity",
    "random_crop",
    "reflect_shift",
    "resized_crop",
    "salt_and_pepper",
    "shift",
    "warp",
]
