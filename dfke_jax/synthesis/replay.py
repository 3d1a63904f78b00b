"""A ring of answered rows that stays on the device, for attacks that learn from old answers again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key


class Replay(NamedTuple):
    """First in, first out.

    Attributes:
      images: (N, H, W, C) uint8, the box in 256 levels.
      targets: (N, K) float16 (logits or probabilities), or (N,) int32 labels.
      written: () int32, rows ever written, counted up to the number after which the ring's state
        repeats.
    """

    images: Array
    targets: Array
    written: Array


def empty_replay(capacity: int, shape: tuple[int, int, int], targets: int | None) -> Replay:
    """A ring of `capacity` images of (H, W, C).

    Args:
      capacity: N >= 1. A row of 32×32 colour takes 3 KB. shape: (H, W, C). targets: K, or None for
        labels.

    Raises:
      InputError: for a capacity below one.
    """
    if capacity < 1:
        raise InputError(f"a replay ring needs a capacity of at least 1, got {capacity}")
    stored = (
        jnp.zeros(capacity, jnp.int32)
        if targets is None
        else jnp.zeros((capacity, targets), jnp.float16)
    )
    return Replay(jnp.zeros((capacity, *shape), jnp.uint8), stored, jnp.zeros((), jnp.int32))


def remember(
    replay: Replay, images: Array, targets: Array, box: tuple[float, float] = (0.0, 1.0)
) -> Replay:
    """The ring with B more rows in the place of the oldest.

    Images are rounded to 256 levels of the box and targets to float16: the pair that is replayed
    differs from the one that was answered by up to half a level. Values outside of the box, which
    `post_transform` cannot make, are clipped.

    Raises:
      InputError: for more rows than the ring has.
    """
    capacity, rows = replay.images.shape[0], images.shape[0]
    if rows > capacity:
        raise InputError(
            f"a replay ring of {capacity} cannot take {rows} rows at once; raise its capacity"
        )
    low, high = box
    levels = jnp.round(jnp.clip((images - low) / (high - low), 0, 1) * 255).astype(jnp.uint8)
    places = (replay.written + jnp.arange(rows, dtype=jnp.int32)) % capacity
    written = replay.written + rows
    return Replay(
        replay.images.at[places].set(levels, unique_indices=True),
        replay.targets.at[places].set(targets.astype(replay.targets.dtype), unique_indices=True),
        jnp.where(written >= 2 * capacity, written - capacity, written),
    )


def recall(
    key: Key, replay: Replay, shape: tuple[int, ...], box: tuple[float, float] = (0.0, 1.0)
) -> tuple[Array, Array]:
    """Rows drawn with replacement from those in the ring: images (*shape, H, W, C) and targets
    (*shape, ...).

    A ring that is still empty gives its zeros.
    """
    filled = jnp.clip(replay.written, 1, replay.images.shape[0])
    chosen = jax.random.randint(key, shape, 0, filled)
    low, high = box
    images = low + (high - low) / 255 * replay.images[chosen].astype(jnp.float32)
    targets = replay.targets[chosen]
    return images, targets if jnp.issubdtype(targets.dtype, jnp.integer) else targets.astype(
        jnp.float32
    )


__all__ = ["Replay", "empty_replay", "recall", "remember"]
