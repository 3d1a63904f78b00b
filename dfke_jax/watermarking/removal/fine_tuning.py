"""Removal by fine-tuning: all layers or the last, with the marked output layer or a fresh one.

| name | starts from                       | trains     |
|------|-----------------------------------|------------|
| FTLL | the marked network                | last layer |
| FTAL | the marked network                | all layers |
| RTLL | the same with a fresh last layer  | last layer |
| RTAL | the same with a fresh last layer  | all layers |
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Key, PyTree
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import Training, trained, training
from dfke_jax.watermarking.removal.common import (
    FINE_TUNING,
    LOSS,
    Removed,
    TrainingSettings,
    Watch,
    carry_out,
    check_attacker,
)

Kind = Literal["ftll", "ftal", "rtll", "rtal"]
DESCRIPTIONS: dict[Kind, str] = {
    "ftll": "fine-tuning the last layer",
    "ftal": "fine-tuning all layers",
    "rtll": "fresh last layer, retraining it alone",
    "rtal": "fresh last layer, retraining all layers",
}


def fine_tuning(
    marked: Classifier,
    images: Array,
    labels: Array,
    kind: Kind,
    settings: TrainingSettings = FINE_TUNING,
    *,
    move_statistics: bool = False,
) -> Method:
    """Fine-tuning on an attacker's labelled images, as a method.

    Every registered network can be attacked: its last layer is the one that it calls ``head``. A
    fresh last layer is drawn by `init` (LeCun normal kernel, no bias).

    Args:
      marked: the marked network.
      images: (N, H, W, C). labels: (N,). The attacker's; the strongest one holds the training set
        itself.
      kind: ``ftll``, ``ftal``, ``rtll`` or ``rtal``.
      settings: how it trains.
      move_statistics: for ``ftll`` and ``rtll``, whether the frozen layers stay in training mode:
        dropout acts, and batch normalisation uses the batch and updates its running statistics, as
        in the released code.

    Returns:
      A `Method` over `Training`; `fine_tuned` reads the outcome off its state.

    Raises:
      UnknownNameError: for another kind.
      InputError: for images or labels that do not fit the network, or a network without a layer
        called ``head``.

    Source: Adi et al., Turning Your Weakness Into a Strength, USENIX Security 2018, section 5.2.
    Deviation: frozen layers are frozen whole, their normalisation statistics included (see
    `move_statistics`); batches are drawn with replacement; SGD's momentum is Nesterov's.
    """
    if kind not in DESCRIPTIONS:
        raise UnknownNameError("fine-tuning attack", kind, DESCRIPTIONS)
    check_attacker(marked, images, labels)
    _ = marked.head_kernel
    rule = settings.rule()
    network = marked
    if kind.endswith("ll"):
        rule = _last_layer_only(rule)
        if not move_statistics:
            network = dataclasses.replace(marked, module=Still(marked.module))
    method = training(
        network,
        images,
        labels,
        loss=LOSS,
        optimizer=rule,
        batch_size=settings.batch_size,
        augment=settings.augment,
        fine_tune=True,
    )
    return Method(Partial(_redrawn, method.init), method.step) if kind.startswith("rt") else method


def fine_tuned(
    marked: Classifier, state: Training, kind: Kind, settings: TrainingSettings
) -> Removed:
    """The outcome of `fine_tuning`: for ``rtll`` and ``rtal`` the mark is looked for behind the
    private output layer.
    """
    classifier = trained(marked, state)
    suspect = with_private_head(classifier, marked) if kind.startswith("rt") else classifier
    return Removed(classifier, suspect, kind, DESCRIPTIONS[kind], settings.numbers())


def with_private_head(classifier: Classifier, marked: Classifier) -> Classifier:
    """The layers of `classifier` under the output layer of `marked`, and with the latter's number
    of classes.

    An owner keeps the output layer of the marked network as part of the secret key: a thief who
    replaces it does not get rid of a mark that lives in the layers below.
    """
    params = {**classifier.variables["params"], "head": marked.variables["params"]["head"]}
    return dataclasses.replace(marked, variables={**classifier.variables, "params": params})


def fine_tune(
    kind: Kind,
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    settings: TrainingSettings = FINE_TUNING,
    watch: Watch | None = None,
) -> Removed:
    """Carries out `fine_tuning` of a kind to its end.

    Args, Raises: as there. After ``rtll`` and ``rtal`` the mark is looked for behind the private
    output layer.
    """
    method = fine_tuning(marked, images, labels, kind, settings)
    return carry_out(
        method, key, settings.steps, lambda state: fine_tuned(marked, state, kind, settings), watch
    )


REFIT = TrainingSettings(learning_rate=0.05, weight_decay=5e-4, cosine=True)
"""A rate at which the start is nearly forgotten, falling to zero."""


def high_rate_fine_tuning(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    settings: TrainingSettings = REFIT,
    watch: Watch | None = None,
) -> Removed:
    """Fine-tunes all layers from a high learning rate that falls to zero, with weight decay.

    Args, Raises: as for `fine_tuning`.

    Source: Chen et al., REFIT: A Unified Watermark Removal Framework for Deep Learning Systems with
    Limited Data, AsiaCCS 2021, section 4.1. Deviation: without elastic weight consolidation and
    unlabelled data, which spare accuracy where the attacker has few labels.
    """
    removed = fine_tune("ftal", key, marked, images, labels, settings=settings, watch=watch)
    name, words = "high_rate_fine_tuning", "fine-tuning all layers from a high rate"
    return dataclasses.replace(removed, attack=name, description=words)


class Still(nn.Module):
    """A network that stays in evaluation mode while others train: no dropout, running statistics;
    the same variables.

    Attributes:
      network: the network.
    """

    network: nn.Module

    def setup(self):
        nn.share_scope(self, self.network)

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return self.network(x, train=False)


def fresh_head(key: Key, params: PyTree, num_classes: int) -> PyTree:
    """Parameters with a newly drawn output layer of K classes: LeCun normal kernel, no bias."""
    width = params["head"]["kernel"].shape[0]
    kernel = nn.initializers.lecun_normal()(key, (width, num_classes), jnp.float32)
    return {**params, "head": {"kernel": kernel, "bias": jnp.zeros((num_classes,), jnp.float32)}}


def _redrawn(init: Callable[[Key], Training], key: Key) -> Training:
    state = init(key)
    params = state.variables["params"]
    drawn = fresh_head(jax.random.fold_in(key, 1), params, params["head"]["kernel"].shape[-1])
    return state._replace(variables={**state.variables, "params": drawn})


@functools.lru_cache(maxsize=256)
def _last_layer_only(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.multi_transform({"train": rule, "freeze": optax.set_to_zero()}, _by_layer)  # pyright: ignore[reportArgumentType, reportReturnType]


def _by_layer(params: PyTree) -> PyTree:
    def label(path: tuple, _: Array) -> str:
        return "train" if path[0].key == "head" else "freeze"

    return jax.tree_util.tree_map_with_path(label, params)


__all__ = [
    "DESCRIPTIONS",
    "REFIT",
    "Kind",
    "Still",
    "fine_tune",
    "fine_tuned",
    "fine_tuning",
    "fresh_head",
    "high_rate_fine_tuning",
    "with_private_head",
]
