"""Pools are filled from the front, batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.synthesis import Batch, fill_pool


def numbered(factor, key, rows, carry):
    images = jnp.broadcast_to(factor * rows[:, None, None, None].astype(jnp.float32), (len(rows), 2, 3, 1))
    return Batch(images, rows % 4, {"sum": carry["sum"] + rows.sum()}, {"first": rows[0].astype(jnp.float32)})


SYNTHESISER = Partial(numbered, jnp.float32(0.5))
CARRY = {"sum": jnp.int32(100)}


def test_rows_in_order():
    made = core.run(fill_pool(SYNTHESISER, 12, 3, (2, 3, 1), CARRY), jax.random.key(0), 4, chunk=2)
    pool = made.state
    np.testing.assert_array_equal(pool.images[:, 0, 0, 0], 0.5 * np.arange(12))
    np.testing.assert_array_equal(pool.labels, np.arange(12) % 4)
    assert pool.labels.dtype == jnp.int32
    assert pool.filled == 12
    assert pool.carry["sum"] == 100 + sum(range(12))
    np.testing.assert_array_equal(made.metrics["first"], [0, 3, 6, 9])


def test_a_full_pool_stays_as_it_is():
    method = fill_pool(SYNTHESISER, 12, 3, (2, 3, 1), CARRY)
    full = core.run(method, jax.random.key(0), 4).state
    longer = core.run(method, jax.random.key(0), 6).state
    assert longer.filled == 12
    for found, expected in zip(jax.tree.leaves(longer), jax.tree.leaves(full), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_half_filled():
    pool = core.run(fill_pool(SYNTHESISER, 12, 3, (2, 3, 1), CARRY), jax.random.key(0), 2).state
    assert pool.filled == 6
    assert pool.images.shape == (12, 2, 3, 1)
    np.testing.assert_array_equal(pool.images[6:], 0)


def test_the_carry_of_the_caller_is_not_donated():
    carry = {"sum": jnp.int32(7)}
    core.run(fill_pool(SYNTHESISER, 6, 3, (2, 3, 1), carry), jax.random.key(0), 2)
    assert carry["sum"] == 7


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (0, 1), (5, 0), (-4, 2), (2, 4)])
def test_sizes_that_do_not_fit(count, batch):
    with pytest.raises(core.InputError, match=f"positive multiple of the batch size, got {count} and {batch}"):
        fill_pool(SYNTHESISER, count, batch, (2, 3, 1), CARRY)


def test_a_pool_of_one():
    pool = core.run(fill_pool(SYNTHESISER, 1, 1, (2, 3, 1), CARRY), jax.random.key(0), 1).state
    assert pool.filled == 1
    assert pool.images.shape == (1, 2, 3, 1)
