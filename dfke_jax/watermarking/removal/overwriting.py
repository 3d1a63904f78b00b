"""Removal by overwriting: the attacker puts a mark of their own over the owner's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import training
from dfke_jax.synthesis.starts import smooth_noise
from dfke_jax.watermarking.removal.common import (
    FINE_TUNING,
    LOSS,
    Removed,
    TrainingSettings,
    Watch,
    aside,
    carry_out,
    check_attacker,
)
from dfke_jax.watermarking.removal.fine_tuning import fine_tuned
from dfke_jax.watermarking.triggers import TriggerSet, trigger_matches, trigger_set, wrong_labels


def abstract_triggers(key: Key, marked: Classifier, count: int) -> TriggerSet:
    """Images of smooth noise, in strong contrast so that no two are alike, with labels drawn
    uniformly from all classes.
    """
    draw, label = jax.random.split(key)
    low, high = marked.preprocessing.box
    images = low + (high - low) * smooth_noise(
        draw, (count, *marked.input_shape), (0.3, 0.7), (0.5, 1.0), (1.0, 2.0)
    )
    return trigger_set(
        images,
        wrong_labels(label, -jnp.ones(count, jnp.int32), marked.num_classes),
        marked.num_classes,
    )


def overwriting(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    triggers: TriggerSet | None = None,
    count: int = 100,
    companions_per_batch: int = 2,
    settings: TrainingSettings = FINE_TUNING,
    watch: Watch | None = None,
) -> Removed:
    """Fine-tunes all layers with triggers of the attacker beside every batch.

    The marked network then carries both marks, or the second one alone: who came first has to be
    shown by a dated key.

    Args:
      triggers: the attacker's; `count` smooth noise images with random labels by default.
      companions_per_batch: how many of them stand beside every batch.
      settings: of the fine-tuning.

    Returns:
      `Removed`, with the share of the attacker's own triggers that are answered, in per cent, as
      ``own_mark`` in `details`.

    Raises:
      InputError: for images, labels or triggers that do not fit the network.
    """
    check_attacker(marked, images, labels)
    own = triggers or abstract_triggers(aside(key, 1), marked, count)
    method = training(
        marked,
        images,
        labels,
        loss=LOSS,
        optimizer=settings.rule(),
        batch_size=settings.batch_size,
        augment=settings.augment,
        companions=(own.images, own.labels.astype(jnp.asarray(labels).dtype)),
        companions_per_batch=companions_per_batch,
        fine_tune=True,
    )
    numbers = {
        "triggers": len(own.labels),
        "companions_per_batch": companions_per_batch,
        **settings.numbers(),
    }

    def read(state) -> Removed:
        removed = fine_tuned(marked, state, "ftal", settings)
        words = "overwriting with a second mark"
        return dataclasses.replace(
            removed, attack="overwriting", description=words, settings=numbers
        )

    removed = carry_out(method, key, settings.steps, read, watch)
    matches = trigger_matches(lambda x: jnp.asarray(removed.classifier.predict(x)), own)
    answered = 100 * float(np.asarray(matches).mean())
    return dataclasses.replace(removed, details={"own_mark": answered})


__all__ = ["abstract_triggers", "overwriting"]
