"""Are triggers entangled with their class? Measured layer by layer, at no temperature that training
has moved.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.soft_nearest import (
    neighbour_mixing,
    pairwise_distances,
    soft_nearest_neighbour_loss,
)

COOLNESS = 10
"""The median distance over the temperature at which the loss is stated."""


class Entanglement(NamedTuple):
    """How entangled two sets of images are in one layer.

    Attributes:
      mixing: share of the other kind among the nearest neighbours, see
        `dfke_jax.nn.neighbour_mixing`: 0 apart, about ½ one cloud.
      loss: the soft nearest neighbour loss at a tenth of the median squared distance, so that a
        representation that is merely smaller counts the same: 0 apart, log 2 ≈ 0.69 one cloud.
    """

    mixing: float
    loss: float


def entanglement(
    network: Classifier,
    triggers: Any,
    companions: Any,
    layers: Sequence[str],
    *,
    most: int = 256,
    neighbours: int = 10,
) -> dict[str, Entanglement]:
    """How entangled triggers are with images of their target class, in each layer as it is after a
    ReLU.

    Args:
      network: any, at inference.
      triggers, companions: (T, H, W, C) and (T', H, W, C). Companions that the network was not
        trained on say more: as many of each are taken, the first.
      layers: recorded ones.
      most: of each kind. neighbours: of every row.

    Raises:
      InputError: fewer than two of a kind, or no more rows than neighbours.
      UnknownNameError: for a layer that the network does not record.
    """
    network.check_layers(layers)
    count = min(len(triggers), len(companions), most)
    if count < 2:
        raise InputError(
            f"two triggers and two companions are needed, got {len(triggers)} and {len(companions)}"
        )
    images = jnp.concatenate(
        [as_float(jnp.asarray(np.asarray(images)[:count])) for images in (triggers, companions)]
    )
    is_trigger = jnp.arange(2 * count) < count
    activations = network.activations(images)
    found = {}
    for name in layers:
        features = jax.nn.relu(activations[name])
        distances = np.asarray(pairwise_distances(features))
        typical = float(np.median(distances[~np.eye(2 * count, dtype=bool)]))
        loss = soft_nearest_neighbour_loss(features, is_trigger, max(typical, 1e-12) / COOLNESS)
        found[name] = Entanglement(
            float(neighbour_mixing(features, is_trigger, neighbours)), float(loss)
        )
    return found


__all__ = ["COOLNESS", "Entanglement", "entanglement"]
