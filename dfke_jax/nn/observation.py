"""One forward pass through a network, with everything on the way that a loss may read."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key, PyTree
from dfke_jax.nn.layers import RECORD_MARK
from dfke_jax.nn.precision import apply, in_float32


class Moments(NamedTuple):
    """Statistics of what enters one normalisation layer, each (C,).

    Attributes:
      mean, var: over this batch; the variance is the biased one.
      running_mean, running_var: as stored while training.
    """

    mean: Array
    var: Array
    running_mean: Array
    running_var: Array


class Observed(NamedTuple):
    """What one pass through a network shows.

    Attributes:
      logits: (B, K) float32, or the heads of a network with several (see `dfke_jax.nn.answers`).
      activations: recorded layers by name (see `dfke_jax.nn.layers.record`), ``features`` (B, D)
        among them; empty unless asked for.
      moments: of every normalisation layer's input; empty unless asked for.
      updated: changed collections (``batch_stats`` in training mode).
    """

    logits: Array
    activations: dict[str, Array]
    moments: tuple[Moments, ...]
    updated: PyTree


def observe(
    module: nn.Module,
    variables: PyTree,
    inputs: Array,
    *,
    train: bool = False,
    activations: bool = False,
    moments: bool = False,
    key: Key | None = None,
) -> Observed:
    """One forward pass of a network of this package. Moments are sorted by path.

    Args:
      module, variables: the network. inputs: what it takes, after preprocessing.
      train: normalisation uses the batch, and dropout is on (then `key`); otherwise it uses the
        running statistics, which stay as they are.
      activations, moments: whether they are collected.

    Raises:
      InputError: for moments of a network without batch normalisation.
    """
    running = variables.get("batch_stats", {})
    if moments and not jax.tree.leaves(running):
        raise InputError(
            f"{type(module).__name__} has no batch normalisation, so a statistics prior has "
            "nothing to match; use a network with it (lenet5_bn, a ResNet, a WRN) or switch the "
            "prior off"
        )
    mutable = ["batch_stats"] * train + ["activations"] * activations + ["normalisation"] * moments
    rngs = None if key is None else {"dropout": key}
    if not mutable:
        logits = apply(module, variables, inputs, train=False, rngs=rngs)
        return Observed(in_float32(logits), {}, (), {})
    logits, changed = apply(module, variables, inputs, train=train, mutable=mutable, rngs=rngs)
    updated = dict(changed)
    recorded = dict(_named(updated.pop("activations", None) or {}))
    reported = updated.pop("normalisation", None)
    found = tuple(_moments(reported, running)) if reported is not None else ()
    return Observed(in_float32(logits), recorded, found, updated)


def _named(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """What was recorded, by path; the marks of `dfke_jax.nn.layers.record` are taken off."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{name}/")
        else:
            yield prefix + name.removeprefix(RECORD_MARK), value


def _moments(reported: Mapping, running: Mapping) -> Iterator[Moments]:
    for name, stored in sorted(running.items()):  # compiled programs see dictionaries sorted
        if "mean" in stored and not isinstance(stored["mean"], Mapping):
            mean, var = reported[name]["moments"]
            yield Moments(mean, var, stored["mean"], stored["var"])
        else:
            yield from _moments(reported[name], stored)


__all__ = ["Moments", "Observed", "observe"]
