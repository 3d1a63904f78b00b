"""Randomness that belongs to a row: the same row draws the same numbers wherever and whenever it is
asked.
"""

import jax
import jax.numpy as jnp

from dfke_jax.core.types import Array, Key

_SEEDS = (0x9E3779B9, 0x85EBCA77)


def row_keys(seed: Array | int, rows: Array) -> Key:
    """One key per row, from the seed and the bits of the row alone.

    An endpoint that adds noise afresh can be averaged out by asking again; one that draws it from
    the row cannot, and a local, a remote and a replayed answer agree. Zeros of either sign are one
    number here.

    Args:
      seed: whole number; other seeds give other keys.
      rows: (B, ...), taken as float32.

    Returns:
      Typed keys (B,).
    """
    flat = rows.reshape(rows.shape[0], -1).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(flat), jnp.uint32)
    bits = jnp.where(bits == jnp.uint32(0x80000000), jnp.uint32(0), bits)
    place = jax.lax.iota(jnp.uint32, flat.shape[1])[None]
    key = jax.random.key(seed)

    def of_words(first: Array, second: Array) -> Key:
        return jax.random.fold_in(jax.random.fold_in(key, first), second)

    # a sum over mixed (bit pattern, place) pairs does not depend on the order in which it is taken
    words = [
        _mixed(bits ^ _mixed(place + jnp.uint32(seed_))).sum(1, dtype=jnp.uint32)
        for seed_ in _SEEDS
    ]
    return jax.vmap(of_words)(*words)


def _mixed(words: Array) -> Array:
    """A bijection of 32-bit words in which every input bit reaches every output bit (MurmurHash3's
    finaliser).
    """
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


__all__ = ["row_keys"]
