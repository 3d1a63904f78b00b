"""Device-resident pools of synthesised samples, filled batch by batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static, method
from dfke_jax.core.types import Array, Key, Metrics, PyTree


class Batch(NamedTuple):
    """What a synthesiser makes in one go.

    Attributes:
      images: (B, H, W, C). labels: (B,) the class each was meant for.
      carry: anything the next batch needs (pytree, the same structure every time).
      metrics: scalars.
    """

    images: Array
    labels: Array
    carry: PyTree
    metrics: Metrics


class Pool(NamedTuple):
    """N samples, filled from the front.

    Attributes:
      images: (N, H, W, C). labels: (N,) int32. filled: () int32, how many rows hold a sample.
        carry: of the synthesiser.
    """

    images: Array
    labels: Array
    filled: Array
    carry: PyTree


Synthesiser = Callable[[Key, Array, PyTree], Batch]
"""(key, rows (B,) = numbers of the samples to make, carry) -> `Batch`; a `jax.tree_util.Partial`.
"""


def fill_pool(
    synthesiser: Synthesiser,
    count: int,
    batch_size: int,
    shape: tuple[int, int, int],
    carry: PyTree = (),
) -> Method:
    """A method whose every step synthesises one batch into a pool; run it for
    ``count // batch_size`` steps.

    A step more makes a batch in vain: a full pool stays as it is.

    Args:
      synthesiser: makes one batch.
      count: N, a multiple of `batch_size`.
      batch_size: samples per step.
      shape: (H, W, C).
      carry: what the first batch is handed.

    Raises:
      InputError: when the sizes do not fit.
    """
    if count < 1 or batch_size < 1 or count % batch_size:
        raise InputError(
            f"the number of samples must be a positive multiple of the batch size, got {count} and "
            f"{batch_size}"
        )
    return method(_init, _step, synthesiser, carry, Static((count, batch_size, tuple(shape))))


def _init(synthesiser: Synthesiser, carry: PyTree, static: Static, key: Key) -> Pool:
    count, _, shape = static.value
    carry = jax.tree.map(jnp.array, carry)
    return Pool(
        jnp.zeros((count, *shape)), jnp.zeros(count, jnp.int32), jnp.zeros((), jnp.int32), carry
    )


def _step(
    synthesiser: Synthesiser, carry: PyTree, static: Static, key: Key, pool: Pool
) -> tuple[Pool, Metrics]:
    batch_size = static.value[1]
    rows = pool.filled + jnp.arange(batch_size, dtype=jnp.int32)
    batch = synthesiser(key, rows, pool.carry)
    return added(pool, batch), batch.metrics


def added(pool: Pool, batch: Batch) -> Pool:
    """The pool with a batch behind its samples; a pool without room for the whole batch stays as it
    is.
    """
    count = batch.labels.shape[0]
    full = pool.filled + count > pool.labels.shape[0]

    def put(table: Array, new: Array) -> Array:
        old = jax.lax.dynamic_slice_in_dim(table, pool.filled, count, 0)
        new = jnp.where(full, old, new.astype(table.dtype))
        return jax.lax.dynamic_update_slice_in_dim(table, new, pool.filled, 0)

    carry = jax.tree.map(lambda old, new: jnp.where(full, old, new), pool.carry, batch.carry)
    filled = jnp.where(full, pool.filled, pool.filled + count)
    return Pool(put(pool.images, batch.images), put(pool.labels, batch.labels), filled, carry)


__all__ = ["Batch", "Pool", "Synthesiser", "added", "fill_pool"]
