"""How recipes train on labels: teachers, victims, and independent models beside them."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax import data
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array
from dfke_jax.experiments.bench.settings import SupervisedSettings, augmentation
from dfke_jax.nn.airbench import Airbench
from dfke_jax.nn.airbench_training import AirbenchSettings, airbench_population, airbench_training
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.many import independent_training
from dfke_jax.nn.supervised import cross_entropy_training
from dfke_jax.nn.training import optimiser


def as_airbench(config: SupervisedSettings, classifier: Classifier) -> bool:
    """Whether a network is trained by the speed run: asked for, and of its family."""
    return config.teacher_training == "airbench" and isinstance(classifier.module, Airbench)


def _speed_run(config: SupervisedSettings) -> tuple[AirbenchSettings, dict]:
    settings = AirbenchSettings(batch_size=config.teacher_batch, steps=config.teacher_steps)
    if config.teacher_augmentation != "crop_flip":
        return settings, {"augment": augmentation(config.teacher_augmentation)}
    return settings, {"augment": data.reflect_shift(2), "flip": Partial(data.alternating_flip)}


def supervised_training(
    config: SupervisedSettings,
    classifier: Classifier,
    images: Array | np.ndarray,
    labels: Array | np.ndarray,
) -> Method:
    """A network's training on labels for ``config.teacher_steps`` steps, as the settings say."""
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    if as_airbench(config, classifier):
        settings, options = _speed_run(config)
        return airbench_training(classifier, images, labels, settings, **options)
    return cross_entropy_training(
        classifier,
        images,
        labels,
        steps=config.teacher_steps,
        batch_size=config.teacher_batch,
        learning_rate=config.teacher_learning_rate,
        augment=augmentation(config.teacher_augmentation),
    )


def independent_models(
    config: SupervisedSettings,
    classifier: Classifier,
    images: Array | np.ndarray,
    labels: Array | np.ndarray,
    table: Array | np.ndarray,
) -> Method:
    """M networks on their shares (M, n) of the images, trained side by side: Adam without
    augmentation, or the speed run as for a teacher.
    """
    images, labels, table = jnp.asarray(images), jnp.asarray(labels), jnp.asarray(table)
    if as_airbench(config, classifier):
        settings, options = _speed_run(config)
        return airbench_population(classifier, images, labels, table, settings, **options)
    rule = optimiser("adam", config.teacher_learning_rate, config.teacher_steps)
    return independent_training(classifier, images, labels, table, optimizer=rule, batch_size=config.teacher_batch)


__all__ = ["as_airbench", "independent_models", "supervised_training"]
