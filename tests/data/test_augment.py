"""Transformations of images: exact where they are exact, in the box, per image, and compiled once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.data import augment

STRONG = {
    "identity": augment.identity(),
    "shift": augment.shift(2, 0.5),
    "random_crop": augment.random_crop(3),
    "flip": augment.flip(),
    "affine": augment.affine(0.5, (0.7, 1.4), 2.0),
    "gaussian_noise": augment.gaussian_noise(0.8),
    "salt_and_pepper": augment.salt_and_pepper(0.5),
    "cutout": augment.cutout(4),
    "compose": augment.compose(augment.affine(0.2), augment.flip(), augment.gaussian_noise(0.1)),
}
ZERO = {
    "shift": augment.shift(0, 0.5),
    "random_crop": augment.random_crop(0),
    "affine": augment.affine(0.0),
    "gaussian_noise": augment.gaussian_noise(0.0),
    "salt_and_pepper": augment.salt_and_pepper(0.0),
    "cutout": augment.cutout(0),
    "compose": augment.compose(),
}


@jax.jit
def apply(transform, key, images):
    return transform(key, images)


warp = jax.jit(augment.warp)


def pictures(batch=6, height=7, width=5, channels=2, seed=0):
    values = np.random.default_rng(seed).uniform(size=(batch, height, width, channels))
    values[:, 1:3] = np.round(values[:, 1:3])  # some at the ends of the box
    return jnp.asarray(values, jnp.float32)


def moved(image, down, right, fill):
    result = np.full_like(image, fill)
    height, width = image.shape[:2]
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[y, x] = image[y - down, x - right]
    return result


@pytest.mark.parametrize("name", ZERO)
def test_zero_strength_changes_nothing(name, getkey):
    images = pictures()
    np.testing.assert_array_equal(apply(ZERO[name], getkey(), images), images)


@pytest.mark.parametrize("name", STRONG)
def test_shape_type_and_box_are_kept(name, getkey):
    images = pictures()
    for case in (images, jnp.ones_like(images), jnp.zeros_like(images), images.astype(jnp.bfloat16)):
        result = np.asarray(apply(STRONG[name], getkey(), case))
        assert result.shape == case.shape
        assert result.dtype == case.dtype
        assert result.min() >= 0
        assert result.max() <= 1


@pytest.mark.parametrize("name", [name for name in STRONG if name != "identity"])
def test_every_image_gets_its_own_draw(name, getkey):
    images = jnp.asarray(np.broadcast_to(pictures(batch=1), (32, 7, 5, 2)))
    key = getkey()
    result = np.asarray(apply(STRONG[name], key, images))
    assert len(np.unique(result.reshape(32, -1), axis=0)) > 1
    np.testing.assert_array_equal(result, apply(STRONG[name], key, images))
    assert not np.array_equal(result, apply(STRONG[name], getkey(), images))


@pytest.mark.parametrize("name", STRONG)
def test_the_same_under_jit_scan_and_vmap(name, getkey):
    images, keys, transform = pictures(), jax.random.split(getkey(), 3), STRONG[name]
    expected = np.stack([apply(transform, key, images) for key in keys])

    @jax.jit
    def others(keys):
        _, scanned = jax.lax.scan(lambda carry, key: (carry, transform(key, images)), 0, keys)
        return jax.vmap(lambda key: transform(key, images))(keys), scanned

    for found in others(keys):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "strengths"),
    [
        (augment.shift, [(2, 0.5), (2, 0.5), (3, 0.0)]),
        (augment.random_crop, [(2,), (2,), (4,)]),
        (augment.flip, [(), ()]),
        (augment.affine, [(0.1, (0.9, 1.1), 1.0), (0.1, (0.9, 1.1), 1.0), (0.2, (1, 2), 0)]),
        (augment.gaussian_noise, [(0.1,), (0.1,), (1,)]),
        (augment.salt_and_pepper, [(0.1,), (0.1,), (0.3,)]),
        (augment.cutout, [(2,), (2,), (3,)]),
        (lambda low: augment.compose(augment.cutout(low), augment.flip()), [(2,), (2,), (3,)]),
    ],
)
def test_one_program_serves_every_strength(factory, strengths, getkey):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(transform, key, images):
        return transform(key, images)

    images, key = pictures(), getkey()
    results = []
    for arguments in strengths:
        transform = factory(*arguments)
        assert isinstance(transform, Partial)
        results.append(run(transform, key, images))
    np.testing.assert_array_equal(results[0], results[1])
    for other in results[2:]:
        assert not np.array_equal(results[0], other)


def test_shift_moves_by_whole_pixels_within_its_range(getkey):
    images = pictures(batch=400, height=4, width=4, channels=1)
    result = np.asarray(apply(augment.shift(1, 0.25), getkey(), images))
    seen = np.zeros((3, 3), int)
    for image, found in zip(np.asarray(images), result, strict=True):
        matches = [
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if np.array_equal(moved(image, down, right, 0.25), found)
        ]
        assert len(matches) == 1
        seen[matches[0][0] + 1, matches[0][1] + 1] += 1
    # Multinomial with 400/9 expected in each cell; six standard deviations are 38.
    assert abs(seen - 400 / 9).max() < 38


def test_random_crop_is_a_window_of_the_padded_image(getkey):
    images = np.asarray(pictures(batch=20))
    result = np.asarray(apply(augment.random_crop(2), getkey(), jnp.asarray(images)))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for image, found in zip(padded, result, strict=True):
        windows = [image[y : y + 7, x : x + 5] for y in range(5) for x in range(5)]
        assert any(np.array_equal(window, found) for window in windows)


def test_flip_mirrors_half_of_the_images(getkey):
    images = np.asarray(pictures(batch=400))
    result = np.asarray(apply(augment.flip(), getkey(), jnp.asarray(images)))
    same = (result == images).all((1, 2, 3))
    mirrored = (result == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.sum() - 200) < 60


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, -1])
def test_warp_by_quarter_turns_is_rot90(quarters):
    images = pictures(height=6, width=6)
    angles = jnp.full(6, quarters * np.pi / 2, jnp.float32)
    result = warp(images, angles, jnp.ones(6), jnp.zeros((6, 2)))
    np.testing.assert_allclose(result, np.rot90(images, quarters, (1, 2)), atol=1e-5)


def test_warp_by_whole_pixels_is_a_shift():
    images = pictures()
    shifts = jnp.array([[0, 0], [1, 0], [0, 2], [-3, 1], [2, -2], [9, 9]], jnp.float32)
    result = warp(images, jnp.zeros(6), jnp.ones(6), shifts)
    expected = [moved(image, int(y), int(x), 0) for image, (y, x) in zip(np.asarray(images), shifts, strict=True)]
    np.testing.assert_allclose(result, np.stack(expected), atol=1e-6)


def test_warp_against_loops():
    images = np.asarray(pictures())
    rng = np.random.default_rng(1)
    angles, scales, shifts = rng.uniform(-2, 2, 6), rng.uniform(0.5, 2, 6), rng.uniform(-3, 3, (6, 2))
    expected = np.zeros_like(images, np.float64)
    for b, (angle, scale) in enumerate(zip(angles, scales, strict=True)):
        for y in range(7):
            for x in range(5):
                down, right = (y - 3 - shifts[b, 0]) / scale, (x - 2 - shifts[b, 1]) / scale
                row = 3 + np.cos(angle) * down + np.sin(angle) * right
                column = 2 - np.sin(angle) * down + np.cos(angle) * right
                for i in range(7):
                    for j in range(5):
                        weight = max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j))
                        expected[b, y, x] += weight * images[b, i, j]
    arguments = (jnp.asarray(values, jnp.float32) for values in (images, angles, scales, shifts))
    np.testing.assert_allclose(warp(*arguments), expected, atol=1e-5)


def test_warp_magnifies():
    image = jnp.zeros((1, 9, 9, 1)).at[:, 3:6, 3:6].set(1.0)
    larger = warp(image, jnp.zeros(1), jnp.full(1, 2.0), jnp.zeros((1, 2)))
    assert larger.sum() > 2 * image.sum()


def test_affine_draws_from_its_ranges(getkey):
    # A ramp survives a move exactly, so its centre tells how far it went.
    ramp = jnp.broadcast_to((jnp.arange(21.0) / 20).reshape(1, 1, 21, 1), (300, 21, 21, 1))
    centre = apply(augment.affine(shift_pixels=4.0), getkey(), ramp)[:, 10, 10, 0]
    shifts = (0.5 - np.asarray(centre)) * 20
    assert np.abs(shifts).max() <= 4 + 1e-4
    assert shifts.min() < -3.5
    assert shifts.max() > 3.5
    centre = apply(augment.affine(scale=(0.5, 2.0)), getkey(), ramp)[:, 10, 14, 0]
    scales = 4 / ((np.asarray(centre) - 0.5) * 20)
    assert 0.5 - 1e-4 <= scales.min() < 0.6
    assert 1.9 < scales.max() <= 2 + 1e-4
    right = apply(augment.affine(0.3), getkey(), ramp)[:, 10, 14, 0]
    cosines = (np.asarray(right) - 0.5) * 20 / 4
    assert np.cos(0.3) - 1e-4 <= cosines.min() < np.cos(0.27)


def test_gaussian_noise_has_one_strength_per_image(getkey):
    images = jnp.full((200, 20, 20, 1), 0.5)
    sigmas = np.asarray(apply(augment.gaussian_noise(0.1), getkey(), images)).std((1, 2, 3))
    assert sigmas.max() < 0.1 * 1.2
    assert sigmas.min() < 0.01
    # Uniform on [0, 0.1]: the mean of 200 has a standard deviation of 0.002.
    assert sigmas.mean() == pytest.approx(0.05, abs=0.012)


def test_salt_and_pepper_sets_whole_pixels_to_the_ends(getkey):
    images = jnp.full((200, 20, 20, 3), 0.5)
    result = np.asarray(apply(augment.salt_and_pepper(0.4), getkey(), images))
    assert set(np.unique(result)) == {0.0, 0.5, 1.0}
    assert (result == result[..., :1]).all()
    fractions = (result[..., 0] != 0.5).mean((1, 2))
    assert fractions.max() < 0.4 + 0.15
    assert fractions.mean() == pytest.approx(0.2, abs=0.05)
    changed = result[..., 0][result[..., 0] != 0.5]
    assert changed.mean() == pytest.approx(0.5, abs=0.05)


def test_cutout_clears_one_square(getkey):
    result = np.asarray(apply(augment.cutout(3), getkey(), jnp.ones((300, 8, 8, 2))))
    whole = 0
    for image in result:
        rows, columns = np.nonzero(image[..., 0] == 0)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        assert max(height, width) <= 3
        assert (image[..., 0] == image[..., 1]).all()
        whole += height == width == 3
    # The centre lies off the border with probability (6/8)².
    assert whole / 300 == pytest.approx(0.5625, abs=0.15)


def test_compose_applies_from_left_to_right(getkey):
    key, images = getkey(), pictures()
    first, second = augment.shift(2, 1.0), augment.cutout(3)
    expected = apply(second, jax.random.fold_in(key, 1), apply(first, jax.random.fold_in(key, 0), images))
    np.testing.assert_array_equal(apply(augment.compose(first, second), key, images), expected)


@pytest.mark.parametrize("name", STRONG)
def test_gradients_flow_to_the_images(name, getkey):
    key = getkey()
    gradient = jax.jit(jax.grad(lambda images: jnp.square(STRONG[name](key, images)).sum()))(pictures())
    assert jnp.isfinite(gradient).all()
    assert jnp.abs(gradient).max() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment.shift(-1), "max_pixels must be a whole number"),
        (lambda: augment.shift(1.5), "max_pixels must be a whole number"),
        (lambda: augment.shift(1, fill=2), r"fill must be in \[0, 1\], got 2"),
        (lambda: augment.random_crop(-1), "padding must be a whole number"),
        (lambda: augment.cutout(-1), "size must be a whole number"),
        (lambda: augment.affine(-0.1), "rotation_radians must be finite and at least 0"),
        (lambda: augment.affine(0, (0.0, 1.0)), "scale must be"),
        (lambda: augment.affine(0, (2.0, 1.0)), "scale must be"),
        (lambda: augment.affine(shift_pixels=float("nan")), "shift_pixels"),
        (lambda: augment.gaussian_noise(float("inf")), "max_sigma"),
        (lambda: augment.salt_and_pepper(1.1), "max_fraction"),
    ],
)
def test_refused_strengths(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("name", [name for name in STRONG if name not in ("identity",)])
def test_refused_images(name, getkey):
    with pytest.raises(InputError, match=r"\(B, H, W, C\)"):
        STRONG[name](getkey(), pictures()[0])
    with pytest.raises(InputError, match="as_float"):
        STRONG[name](getkey(), jnp.zeros((2, 3, 3, 1), jnp.uint8))


def test_a_resized_crop_is_a_part_of_the_image_in_its_proportions():
    rows, columns = np.mgrid[:10, :14].astype(np.float32)
    images = jnp.asarray(np.repeat(np.stack([rows / 20, columns / 20], -1)[None], 40, 0))
    made = np.asarray(augment.resized_crop(0.25)(jax.random.key(4), images))
    down = np.diff(made[..., 0], axis=1) * 20  # ramps stay ramps, up to the border: the part lies inside
    right = np.diff(made[..., 1], axis=2) * 20
    scale = 1 / right[:, :1, :1]
    np.testing.assert_allclose(right, np.broadcast_to(1 / scale, right.shape), rtol=1e-3)
    np.testing.assert_allclose(down, np.broadcast_to(1 / scale, down.shape), rtol=1e-3)
    assert 1 <= scale.min() < 1.15
    assert 1.6 < scale.max() <= 2 + 1e-3
    whole = augment.resized_crop(1.0)(jax.random.key(4), images)
    np.testing.assert_allclose(whole, images, atol=1e-6)
