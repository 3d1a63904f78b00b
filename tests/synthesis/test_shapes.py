"""Pictures of random shapes, against the canvas painted pixel by pixel."""

import jax
import numpy as np
import pytest

from dfke_jax.synthesis import synthetic_shapes

KEY = jax.random.key(5)


def covers(kind, y, x, width):
    if kind == 0:
        return y**2 + x**2 <= 1
    if abs(y) > 1:
        return False
    return (abs(x) <= 1, 2 * abs(x) <= 1 + y, abs(x - y) * width <= 0.01)[kind - 1]


def painted(key, shape, shapes):
    """The picture as the docstring has it: the whole canvas, blurred whole, then sampled."""
    ground_key, shape_key = jax.random.split(key)
    canvas = np.tile(np.asarray(jax.random.uniform(ground_key, (1, 1, 3))), (100, 100, 1))
    place = (np.arange(100) + 0.5) / 100
    for one in jax.random.split(shape_key, shapes):
        kind_key, place_key, size_key, colour_key = jax.random.split(one, 4)
        centre = np.asarray(jax.random.uniform(place_key, (2,)), np.float64)
        radii = np.asarray(jax.random.uniform(size_key, (2,), minval=0.03, maxval=0.25), np.float64)
        kind, colour = int(jax.random.randint(kind_key, (), 0, 4)), np.asarray(jax.random.uniform(colour_key, (3,)))
        for i in range(100):
            for j in range(100):
                y, x = (place[i] - centre[0]) / radii[0], (place[j] - centre[1]) / radii[1]
                if covers(kind, y, x, radii[1]):
                    canvas[i, j] = colour
    padded = np.pad(canvas, ((2, 1), (2, 1), (0, 0)), mode="edge")
    image = np.zeros((*shape[:2], 3))
    for a in range(shape[0]):
        for b in range(shape[1]):
            i, j = int((a + 0.5) * 100 / shape[0]), int((b + 0.5) * 100 / shape[1])
            image[a, b] = padded[i : i + 4, j : j + 4].mean((0, 1))
    return image


@pytest.mark.parametrize("shape", [(8, 8, 3), (30, 6, 3)])
def test_against_the_canvas_painted_pixel_by_pixel(shape):
    expected = np.stack([painted(key, shape, 7) for key in jax.random.split(KEY, 3)])
    found = np.asarray(synthetic_shapes(KEY, 3, shape, shapes=7))
    # a pixel on the edge of a shape may fall to the other side in float32
    assert (np.abs(found - expected) > 1e-5).mean() < 2e-3
    grey = synthetic_shapes(KEY, 3, (*shape[:2], 1), shapes=7)
    assert (np.abs(np.asarray(grey) - expected.mean(-1, keepdims=True)) > 1e-5).mean() < 2e-3
