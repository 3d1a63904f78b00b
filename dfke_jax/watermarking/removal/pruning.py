"""Removal by pruning: small weights, neurons that clean data leave dormant, and fine-tuning what is
left.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.training import Training
from dfke_jax.watermarking.removal.common import (
    FINE_TUNING,
    Removed,
    TrainingSettings,
    Watch,
    carry_out,
    check_attacker,
    count_of,
)
from dfke_jax.watermarking.removal.fine_tuning import fine_tuned, fine_tuning

Scope = Literal["global", "layer"]


def magnitude_masks(params: PyTree, fraction: float, scope: Scope = "global") -> PyTree:
    """Which weights are kept when those of smallest magnitude are pruned.

    ⌊fraction · n⌋ weights are pruned of n: of all kernels together (``global``) or of each kernel
    (``layer``). Of equal magnitudes those that come first fall. Biases and normalisation parameters
    are kept.

    Args:
      params: the network's parameters.
      fraction: in [0, 1].
      scope: ``global`` or ``layer``.

    Returns:
      A pytree of the parameters' shapes, bool, False where pruned.

    Raises:
      InputError: for a fraction out of range. UnknownNameError: for another scope.

    Source: Han et al., Learning both Weights and Connections, NeurIPS 2015, section 3.
    """
    if scope not in ("global", "layer"):
        raise UnknownNameError("scope of pruning", scope, ("global", "layer"))
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    masks = [np.ones(leaf.shape, bool) for _, leaf in leaves]
    kernels = [place for place, (path, _) in enumerate(leaves) if path[-1].key == "kernel"]
    for group in [kernels] if scope == "global" else [[place] for place in kernels]:
        sizes = np.concatenate([np.abs(np.asarray(leaves[place][1])).ravel() for place in group])
        kept = np.ones(len(sizes), bool)
        kept[np.argsort(sizes, kind="stable")[: count_of(fraction, len(sizes))]] = False
        ends = np.cumsum([masks[place].size for place in group])[:-1]
        for place, part in zip(group, np.split(kept, ends), strict=True):
            masks[place] = part.reshape(masks[place].shape)
    return jax.tree.unflatten(structure, [jnp.asarray(mask) for mask in masks])


def unit_activity(
    classifier: Classifier, images: Array, layer: str = "features", batch_size: int = 500
) -> Array:
    """Mean activation of every unit of a layer: max(0, a) over images and, for a convolution,
    positions.

    Args:
      classifier: the network.
      images: (N, H, W, C).
      layer: ``features`` (what enters the output layer) or another of `prunable_layers`.
      batch_size: rows at once.

    Returns:
      (U,) float32.
    """
    _check_layer(classifier, layer)
    total: Any = 0.0
    for start in range(0, len(images), batch_size):
        total = total + _summed_activity(layer, classifier, images[start : start + batch_size])
    return total / len(images)


def prunable_layers(classifier: Classifier) -> tuple[str, ...]:
    """Layers whose units can be pruned: ``features``, and every layer with a kernel whose output
    the network records.
    """
    shape = jax.ShapeDtypeStruct((1, *classifier.input_shape), jnp.float32)
    recorded = jax.eval_shape(classifier.activations, shape)
    params = classifier.variables["params"]
    return (
        "features",
        *(
            name
            for name in recorded
            if name in params and "kernel" in params[name] and name != "head"
        ),
    )


def unit_masks(classifier: Classifier, pruned: Array, layer: str = "features") -> PyTree:
    """Which parameters are kept when units of a layer are pruned.

    A unit of ``features`` loses its row of the output layer; one of another layer its column of the
    kernel, its bias and, where the layer is normalised, its scale and offset, so that it puts out
    zero.

    Args:
      classifier: the network.
      pruned: (U,) bool.
      layer: as for `unit_activity`.

    Returns:
      A pytree of the parameters' shapes, bool, False where pruned.
    """
    _check_layer(classifier, layer)
    params = classifier.variables["params"]
    kept = ~jnp.asarray(pruned, bool)
    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
    if layer == "features":
        kernel = params["head"]["kernel"]
        if kept.shape != kernel.shape[:1]:
            raise InputError(
                f"the layer 'features' has {kernel.shape[0]} units, got a choice of shape "
                f"{kept.shape}"
            )
        masks["head"]["kernel"] = jnp.broadcast_to(kept[:, None], kernel.shape)
        return masks
    units = params[layer]["kernel"].shape[-1]
    if kept.shape != (units,):
        raise InputError(
            f"the layer {layer!r} has {units} units, got a choice of shape {kept.shape}"
        )
    for name in (layer, f"{layer}_norm"):
        for leaf in masks.get(name, {}):
            shape = params[name][leaf].shape
            masks[name][leaf] = jnp.broadcast_to(
                kept.reshape((1,) * (len(shape) - 1) + (-1,)), shape
            )
    return masks


def masked(classifier: Classifier, masks: PyTree) -> Classifier:
    """The classifier with zeros where `masks` is False."""
    params = _masked(classifier.variables["params"], masks)
    return dataclasses.replace(classifier, variables={**classifier.variables, "params": params})


def kept_at_zero(method: Method, masks: PyTree) -> Method:
    """A training whose pruned weights stay zero: they are set back after `init` and after every
    step.
    """
    return Method(
        Partial(_masked_init, method.init, masks), Partial(_masked_step, method.step, masks)
    )


def magnitude_pruning(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    fraction: float = 0.5,
    scope: Scope = "global",
) -> Removed:
    """Prunes the weights of smallest magnitude; see `magnitude_masks`. Key, images and labels are
    not needed.
    """
    check_attacker(marked, images, None)
    pruned = masked(marked, magnitude_masks(marked.variables["params"], fraction, scope))
    words = "pruning small weights" + (", layer by layer" if scope == "layer" else "")
    return Removed(
        pruned, pruned, "magnitude_pruning", words, {"fraction": fraction, "scope": scope}
    )


def dormant_units(
    classifier: Classifier, images: Array, fraction: float, layer: str = "features"
) -> np.ndarray:
    """(U,) bool: the ⌊fraction · U⌋ units of least mean activation on clean images; of equal ones
    the first.
    """
    return least(unit_activity(classifier, images, layer), fraction)


def least(scores: Array, fraction: float) -> np.ndarray:
    """(U,) bool: the ⌊fraction · U⌋ lowest scores; of equal ones the first."""
    values = np.asarray(scores)
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(values, kind="stable")[: count_of(fraction, len(values))]] = True
    return chosen


def dormant_pruning(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    fraction: float = 0.5,
    layer: str = "features",
) -> Removed:
    """Prunes the neurons of a layer that clean images activate least. Key and labels are not
    needed.

    Args:
      fraction: share of the layer's units, in [0, 1].
      layer: one of `prunable_layers`.

    Raises:
      InputError: for a fraction out of range, or images that do not fit. UnknownNameError: for
        another layer.

    Source: Liu, Dolan-Gavitt and Garg, Fine-Pruning, RAID 2018, section 3.1. Deviation: a fraction
    is given in the place of the loss of accuracy at which to stop; the default layer is the one
    before the output layer, which every network has.
    """
    check_attacker(marked, images, None)
    units = dormant_units(marked, images, fraction, layer)
    pruned = masked(marked, unit_masks(marked, jnp.asarray(units), layer))
    details = {"pruned": np.flatnonzero(units).tolist()}
    return Removed(
        pruned, pruned, "dormant_pruning", f"pruning dormant units of {layer}",
        {"fraction": fraction, "layer": layer}, details,
    )  # fmt: skip


def fine_pruning(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    fraction: float = 0.5,
    layer: str = "features",
    settings: TrainingSettings = FINE_TUNING,
    watch: Watch | None = None,
) -> Removed:
    """Prunes dormant neurons, then fine-tunes all layers while what was pruned stays zero.

    Args:
      fraction, layer: as for `dormant_pruning`.
      settings: of the fine-tuning.

    Raises:
      InputError, UnknownNameError: as for `dormant_pruning`.

    Source: Liu, Dolan-Gavitt and Garg, Fine-Pruning, RAID 2018, section 3.3.
    """
    check_attacker(marked, images, labels)
    units = dormant_units(marked, images, fraction, layer)
    masks = unit_masks(marked, jnp.asarray(units), layer)
    method = kept_at_zero(fine_tuning(marked, images, labels, "ftal", settings), masks)
    details = {"pruned": np.flatnonzero(units).tolist()}
    numbers = {"fraction": fraction, "layer": layer, **settings.numbers()}

    def read(state: Training) -> Removed:
        removed = fine_tuned(marked, state, "ftal", settings)
        words = f"pruning dormant units of {layer}, fine-tuning the rest"
        return dataclasses.replace(
            removed, attack="fine_pruning", description=words, settings=numbers, details=details
        )

    return carry_out(method, key, settings.steps, read, watch)


def _check_layer(classifier: Classifier, layer: str) -> None:
    known = prunable_layers(classifier)
    if layer not in known:
        raise UnknownNameError("layer to prune", layer, known)


@functools.partial(jax.jit, static_argnums=0)
def _summed_activity(layer: str, classifier: Classifier, images: Array) -> Array:
    values = jax.nn.relu(classifier.activations(as_float(images))[layer].astype(jnp.float32))
    return values.reshape(len(values), -1, values.shape[-1]).mean(1).sum(0)


def _masked(params: PyTree, masks: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, 0), params, masks)


def _masked_state(state: Training, masks: PyTree) -> Training:
    return state._replace(
        variables={**state.variables, "params": _masked(state.variables["params"], masks)}
    )


def _masked_init(init: Callable[[Key], Training], masks: PyTree, key: Key) -> Training:
    return _masked_state(init(key), masks)


def _masked_step(
    step: Callable[..., Any], masks: PyTree, key: Key, state: Training
) -> tuple[Training, Metrics]:
    state, metrics = step(key, state)
    return _masked_state(state, masks), metrics


__all__ = [
    "Scope",
    "dormant_pruning",
    "dormant_units",
    "fine_pruning",
    "kept_at_zero",
    "least",
    "magnitude_masks",
    "magnitude_pruning",
    "masked",
    "prunable_layers",
    "unit_activity",
    "unit_masks",
]
