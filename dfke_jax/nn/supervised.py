"""Training of a classifier on labels."""

from jax.tree_util import Partial

from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Augmentation
from dfke_jax.nn.classifier import Classifier, check_labels
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import optimiser, training


def cross_entropy_training(
    classifier: Classifier,
    images: Array,
    labels: Array,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    optimizer: str = "adam",
    augment: Augmentation | None = None,
) -> Method:
    """Trains a classifier on labels; teachers and the from-scratch anchor are made so.

    Raises:
      InputError: for labels of another length, type or range.
    """
    check_labels(labels, len(images), classifier.num_classes, every_class=False)
    rule = optimiser(optimizer, learning_rate, steps)
    return training(
        classifier,
        images,
        labels,
        loss=Partial(cross_entropy),
        optimizer=rule,
        batch_size=batch_size,
        augment=augment,
    )


__all__ = ["cross_entropy_training"]
