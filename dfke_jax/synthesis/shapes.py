"""Pictures of random shapes, which show nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key

CANVAS = 100
BLUR = 4


@functools.partial(jax.jit, static_argnames=("count", "shape", "shapes", "batch_size"))
def _made(key: Key, count: int, shape: tuple[int, int, int], shapes: int, batch_size: int) -> Array:
    keys = jax.random.split(key, count)
    draw = functools.partial(_picture, shape=shape, shapes=shapes)
    return jax.lax.map(draw, keys, batch_size=min(batch_size, count))


def synthetic_shapes(
    key: Key,
    count: int,
    shape: tuple[int, int, int] = (32, 32, 3),
    *,
    shapes: int = 50,
    batch_size: int = 64,
) -> Array:
    """Images of random ellipses, rectangles, triangles and lines, as proxy data for a generator.

    On a canvas of 100×100 pixels and of a random colour, one shape after another is painted in a
    random colour at a random place; then the canvas is blurred by a mean over 4×4 pixels and
    sampled at the nearest pixels.

    Args:
      key: image i depends on the i-th split alone.
      count: N. shape: (H, W, C), C one or three; one channel is the mean of three.
      shapes: painted per image. batch_size: images made together.

    Returns:
      (N, H, W, C) float32 in [0, 1].

    Raises:
      InputError: for another number of channels, or counts below one.

    Source: Sanyal, Addepalli and Babu, CVPR 2022, supplement (which shapes there are and how large
    is chosen here).
    """
    if shape[-1] not in (1, 3) or count < 1 or shapes < 1 or batch_size < 1:
        raise InputError(
            "images have one or three channels, and there is at least one image and one shape on "
            f"it; got shape {shape}, count {count}, shapes {shapes}, batch_size {batch_size}"
        )
    return _made(key, count, shape, shapes, batch_size)


def _picture(key: Key, shape: tuple[int, int, int], shapes: int) -> Array:
    ground_key, shape_key = jax.random.split(key)
    (y_places, rows), (x_places, columns) = (_seen(size) for size in shape[:2])
    down, right = y_places[:, None], x_places[None, :]

    def paint(top: Array, number_and_key: tuple[Array, Key]) -> tuple[Array, Array]:
        number, key = number_and_key
        kind_key, place_key, size_key, colour_key = jax.random.split(key, 4)
        centre = jax.random.uniform(place_key, (2,))
        radii = jax.random.uniform(size_key, (2,), minval=0.03, maxval=0.25)
        y, x = (down - centre[0]) / radii[0], (right - centre[1]) / radii[1]
        high, kind = jnp.abs(y) <= 1, jax.random.randint(kind_key, (), 0, 4)
        inside = jnp.where(
            kind == 0,
            y**2 + x**2 <= 1,
            high
            & jnp.where(
                kind == 1,
                jnp.abs(x) <= 1,
                jnp.where(kind == 2, 2 * jnp.abs(x) <= 1 + y, jnp.abs(x - y) * radii[1] <= 0.01),
            ),
        )
        return jnp.where(inside, number, top), jax.random.uniform(colour_key, (1, 1, 3))[0, 0]

    # the canvas holds numbers of shapes, the ground's is 0; colours are looked up at the end
    canvas = jnp.zeros((len(y_places), len(x_places)), jnp.int32)
    numbered = jnp.arange(1, shapes + 1), jax.random.split(shape_key, shapes)
    canvas, colours = jax.lax.scan(paint, canvas, numbered)
    colours = jnp.concatenate([jax.random.uniform(ground_key, (1, 1, 3))[0], colours])
    if shape[-1] == 1:
        colours = colours.mean(-1, keepdims=True)
    painted = colours[canvas]
    return painted[rows].mean(1)[:, columns].mean(2)


def _seen(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis, the places of the pixels of the canvas that an image of `size` pixels shows (P,), and
    which of them the blur of each takes the mean of (size, BLUR).
    """
    centres = ((np.arange(size) + 0.5) * CANVAS / size).astype(np.int32)
    window = np.clip(centres[:, None] + np.arange(BLUR) - BLUR // 2, 0, CANVAS - 1)
    pixels, found = np.unique(window, return_inverse=True)
    return ((pixels + 0.5) / CANVAS).astype(np.float32), found.reshape(window.shape)


__all__ = ["synthetic_shapes"]
