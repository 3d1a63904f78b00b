"""Randomness that belongs to a row."""

import jax
import numpy as np

from dfke_jax.oracle.row_keys import row_keys


def words(seed, rows):
    return np.asarray(jax.random.key_data(row_keys(seed, rows)))


def test_a_row_has_its_key_whatever_stands_beside_it_and_however_it_is_compiled(rows):
    found = words(3, rows)
    np.testing.assert_array_equal(found[4:5], words(3, rows[4:5]))
    np.testing.assert_array_equal(found[::-1], words(3, rows[::-1]))
    compiled = jax.jit(lambda seed, x: jax.random.key_data(row_keys(seed, x)))
    np.testing.assert_array_equal(found, compiled(3, rows))
    np.testing.assert_array_equal(found, words(3, rows.astype(np.float64)))


def test_any_change_of_a_row_or_of_the_seed_changes_its_key():
    rng = np.random.default_rng(0)
    base = rng.uniform(size=(1, 40)).astype(np.float32)
    rows = np.repeat(base, 41, 0)
    for i in range(40):  # the smallest change of one number
        rows[i + 1, i] = np.nextafter(rows[i + 1, i], 2)
    swapped = base.copy()
    swapped[0, [3, 7]] = swapped[0, [7, 3]]
    found = np.concatenate([words(0, rows), words(0, swapped), words(1, base)])
    assert len(np.unique(found, axis=0)) == len(found)


def test_many_rows_do_not_collide_and_bits_are_even():
    levels = np.indices((20, 20, 20)).reshape(3, -1).T.astype(np.float32) / 255  # few levels, as after quantisation
    found = words(0, levels)
    assert len(np.unique(found, axis=0)) == 8000
    ones = np.unpackbits(found.view(np.uint8), axis=1).mean(0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(8000)


def test_zero_has_one_sign():
    zeros = np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)
    first, second = np.asarray(jax.jit(lambda x: jax.random.key_data(row_keys(0, x)))(zeros))
    np.testing.assert_array_equal(first, second)
