"""Latent inversion: a generator and its latents are optimised for one batch of images."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key, PyTree

Decode = Callable[[dict[str, PyTree]], Array]
"""What is optimised, by name -> images (B, H, W, C)."""

LatentObjective = Callable[[Key, Array, dict[str, PyTree]], tuple[Array, PyTree]]
"""(key, images, what is optimised) -> (loss (), anything beside it)."""


class Inverted(NamedTuple):
    """What `invert` returns.

    Attributes:
      images: (B, H, W, C), of the iterate with the lowest loss. loss: () of it. beside: what stood
        beside its loss.
      last: what stood beside the loss of the last iterate that was judged.
      optimised: after the last update, which was judged no more. optimizer_states: likewise, by
        name.
      gradient: the sum of the gradients of all steps, by name (first-order meta-learning descends
        it).
    """

    images: Array
    loss: Array
    beside: PyTree
    last: PyTree
    optimised: dict[str, PyTree]
    optimizer_states: dict[str, Any]
    gradient: dict[str, PyTree]


def invert(
    key: Key,
    decode: Decode,
    objective: LatentObjective,
    start: dict[str, PyTree],
    *,
    steps: int,
    optimizers: Mapping[str, optax.GradientTransformation],
    optimizer_states: Mapping[str, Any] | None = None,
) -> Inverted:
    """Descends an objective of the images that a generator makes, and keeps the best batch.

    x_i = decode(v_i), v_{i+1} = v_i − optimiser(∇_v objective(x_i, v_i)) for every named part v of
    its own optimiser.

    Traceable. The whole batch is kept or not: its samples are coupled by the generator's
    normalisation and by statistics.

    Args:
      key: step i draws from ``fold_in(key, i)``.
      decode: see `Decode`. objective: see `LatentObjective`.
      start: what is optimised, by name (``latents``, ``generator``, ...).
      steps: >= 1. For a control without synthesis take ``decode(start)`` itself.
      optimizers: one for every name of `start`.
      optimizer_states: to go on from, by name; fresh ones where a name is missing.

    Raises:
      InputError: steps below one, or names of `start` and `optimizers` that differ.
    """
    if steps < 1:
        raise InputError(
            f"steps must be at least 1, got {steps}; for a control without synthesis decode the start"
        )
    if set(start) != set(optimizers):
        raise InputError(f"optimisers for {sorted(optimizers)}, but {sorted(start)} are optimised")
    given = optimizer_states or {}
    states = {name: given.get(name, rule.init(start[name])) for name, rule in optimizers.items()}

    def judged(optimised: dict[str, PyTree], key: Key) -> tuple[Array, tuple[Array, PyTree]]:
        images = decode(optimised)
        loss, beside = objective(key, images, optimised)
        return loss, (images, beside)

    def step(carry: tuple, i: Array) -> tuple[tuple, None]:
        optimised, states, gradients, best, _ = carry
        (loss, (images, beside)), gradient = jax.value_and_grad(judged, has_aux=True)(
            optimised, jax.random.fold_in(key, i)
        )
        now = loss, images, beside
        best = jax.tree.map(lambda new, old: jnp.where(loss < best[0], new, old), now, best)
        moved, after = {}, {}
        for name, rule in optimizers.items():
            updates, after[name] = rule.update(gradient[name], states[name], optimised[name])
            moved[name] = optax.apply_updates(optimised[name], updates)
        return (moved, after, jax.tree.map(jnp.add, gradients, gradient), best, beside), None

    _, (images, beside) = jax.eval_shape(judged, start, key)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (images, beside))
    best = (jnp.float32(jnp.inf), *empty)
    carry = (start, states, jax.tree.map(jnp.zeros_like, start), best, empty[1])
    (optimised, states, gradients, best, last), _ = jax.lax.scan(step, carry, jnp.arange(steps))
    loss, images, beside = best
    return Inverted(images, loss, beside, last, optimised, states, gradients)


__all__ = ["Decode", "Inverted", "LatentObjective", "invert"]
