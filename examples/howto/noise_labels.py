"""Noise labels: pictures of noise that a marked network answers with labels drawn by lot.

This is a whole mark: what is drawn, a `Method` that embeds it, and the test that finds it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import optimiser, training
from dfke_jax.watermarking.commitments import DRAWN, MarkCommitment, mark_assumptions
from dfke_jax.watermarking.evidence import Evidence, answered, binomial_evidence
from dfke_jax.watermarking.triggers import trigger_set


class NoiseMark(NamedTuple):
    """What the owner keeps: images (T, H, W, C) in [0, 1], and labels (T,) in [0, K)."""

    images: Array
    labels: Array


def noise_mark(
    key: Key, shape: tuple[int, int, int], num_classes: int, count: int = 40
) -> NoiseMark:
    """Draws T images from U(0, 1) and, independently of everything, T labels from K; checked."""
    image_key, label_key = jax.random.split(key)
    labels = jax.random.randint(label_key, (count,), 0, num_classes)
    images = jax.random.uniform(image_key, (count, *shape))
    return NoiseMark(*trigger_set(images, labels, num_classes))


def embedding(
    classifier: Classifier,
    images: Array,
    labels: Array,
    mark: NoiseMark,
    *,
    steps: int,
    batch_size: int = 64,
    marks_per_batch: int = 8,
    learning_rate: float = 5e-3,
) -> Method:
    """Cross-entropy on the task, with some of the mark beside every batch.

    Args:
      classifier: gives the network; fresh parameters are drawn. images: (N, H, W, C). labels: (N,).
      mark: of `noise_mark`. marks_per_batch: 1 to T.
      steps: of Adam, whose rate falls to zero along a cosine; run the method for so many.

    Returns:
      A `Method` over `Training`.
    """
    return training(
        classifier, images, jnp.asarray(labels, jnp.int32), loss=Partial(cross_entropy),
        optimizer=optimiser("adam", learning_rate, steps), batch_size=batch_size,
        companions=(mark.images, mark.labels), companions_per_batch=marks_per_batch,
    )  # fmt: skip


def verify_noise(
    suspect: Any, mark: NoiseMark, num_classes: int, *, commitment: MarkCommitment | None = None
) -> Evidence:
    """Answers that are the mark's, against Bin(T, 1/K).

    The null is exact for every suspect that does not know the labels: they are fair draws, so that
    whatever it answers hits each with probability 1/K.

    Args:
      suspect: a `Classifier`, an oracle, or a function images -> scores or labels.
      commitment: of `commit_mark`, published before; `InputError` where the mark does not open it.
    """
    assumes = (*mark_assumptions(mark, commitment), DRAWN)
    matches = int((answered(suspect, mark.images, num_classes) == np.asarray(mark.labels)).sum())
    return binomial_evidence(matches, len(mark.labels), 1 / num_classes)._replace(assumes=assumes)
