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
    place = (jnp.arange(CANVAS, dtype=jnp.float32) + 0.5) / CANVAS
    down, right = place[:, None], place[None, :]

    def paint(canvas: Array, key: Key) -> tuple[Array, None]:
        kind_key, place_key, size_key, colour_key = jax.random.split(key, 4)
        centre = jax.random.uniform(place_key, (2,))
        radii = jax.random.uniform(size_key, (2,), minval=0.03, maxval=0.25)
        y, x = (down - centre[0]) / radii[0], (right - centre[1]) / radii[1]
        inside = jnp.stack(
            [
                y**2 + x**2 <= 1,
                (jnp.abs(y) <= 1) & (jnp.abs(x) <= 1),
                (jnp.abs(y) <= 1) & (2 * jnp.abs(x) <= 1 + y),
                (jnp.abs(y) <= 1) & (jnp.abs(x - y) * radii[1] <= 0.01),
            ]
        )[jax.random.randint(kind_key, (), 0, 4)]
        return jnp.where(inside[..., None], jax.random.uniform(colour_key, (1, 1, 3)), canvas), None

    canvas = jnp.broadcast_to(jax.random.uniform(ground_key, (1, 1, 3)), (CANVAS, CANVAS, 3))
    canvas, _ = jax.lax.scan(paint, canvas, jax.random.split(shape_key, shapes))
    padded = jnp.pad(canvas, ((BLUR // 2, BLUR - 1 - BLUR // 2),) * 2 + ((0, 0),), mode="edge")
    moved = [padded[i : i + CANVAS, j : j + CANVAS] for i in range(BLUR) for j in range(BLUR)]
    blurred = sum(moved[1:], moved[0]) / BLUR**2
    rows, columns = (np.int32((np.arange(size) + 0.5) * CANVAS / size) for size in shape[:2])
    image = blurred[rows][:, columns]
    return image if shape[-1] == 3 else image.mean(-1, keepdims=True)


__all__ = ["synthetic_shapes"]
