"""Marking a network by a backdoor: it learns, beside its task, random labels of a secret set of
images.

Source: Adi, Baum, Cisse, Pinkas, Keshet, Turning Your Weakness Into a Strength, USENIX Security
2018.
"""

import dataclasses
import functools
import secrets
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Augmentation, Key
from dfke_jax.nn.classifier import Classifier, check_images, check_labels
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import training
from dfke_jax.synthesis.shapes import synthetic_shapes
from dfke_jax.synthesis.starts import smooth_noise
from dfke_jax.watermarking.keys import MAX_CLASSES, MarkingKey, VerificationKey, make_keys
from dfke_jax.watermarking.triggers import wrong_labels

Kind = Literal["shapes", "noise"]


@dataclasses.dataclass(frozen=True)
class MarkingSettings:
    """How a mark is learnt: SGD with momentum, k trigger pairs beside every batch, one mean over
    all rows.

    The defaults are the paper's for CIFAR and ResNet-18 (60 epochs of 500 batches).

    Attributes:
      steps: updates.
      batch_size: rows of the task in a batch.
      triggers_per_batch: k, trigger pairs beside them.
      learning_rate: at the beginning. decay, decay_every: it is multiplied by `decay` after every
        `decay_every` steps; 0 keeps it.
      momentum: without Nesterov's step. weight_decay: added to the gradient.

    Raises:
      InputError: for numbers out of range.
    """

    steps: int = 30_000
    batch_size: int = 100
    triggers_per_batch: int = 2
    learning_rate: float = 0.1
    decay: float = 0.1
    decay_every: int = 10_000
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self):
        for name in ("steps", "batch_size", "triggers_per_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0 or not 0 < self.decay <= 1 or self.decay_every < 0:
            raise InputError(
                "learning_rate must be positive, decay lie in (0, 1] and decay_every be at least "
                f"0, got {self.learning_rate}, {self.decay}, {self.decay_every}"
            )
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise InputError(
                f"momentum must lie in [0, 1) and weight_decay be at least 0, got {self.momentum}, "
                f"{self.weight_decay}"
            )

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The same object for equal settings, so that programs are compiled once."""
        return _optimizer(self)


@functools.lru_cache(maxsize=64)
def _optimizer(settings: MarkingSettings) -> optax.GradientTransformation:
    rate: Any = settings.learning_rate
    if settings.decay_every:
        rate = optax.exponential_decay(rate, settings.decay_every, settings.decay, staircase=True)
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay), optax.sgd(rate, settings.momentum or None)
    )


SMALL_MARKING = MarkingSettings(steps=6000, learning_rate=0.05, decay_every=2500)
"""A LeNet on MNIST, from scratch or trained; every one of 100 triggers is seen 120 times."""


def abstract_images(
    key: Key, count: int, shape: tuple[int, int, int], kind: Kind = "shapes"
) -> np.ndarray:
    """Images that show nothing: (N, H, W, C) uint8, the same for the same key.

    Args:
      key: of the images.
      count: N. shape: (H, W, C).
      kind: ``shapes``: random ellipses, rectangles, triangles and lines (one or three channels);
        ``noise``: blurred noise with a level and a contrast of its own for every image.

    Raises:
      UnknownNameError: for another kind.
      InputError: for channels that shapes cannot have, or a count below one.
    """
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    if kind == "shapes":
        images = synthetic_shapes(key, count, shape)
    elif kind == "noise":
        images = _noise(key, (count, *shape))
    else:
        raise UnknownNameError("kind of abstract images", kind, ("shapes", "noise"))
    return _quantised(np.asarray(images))


def keygen(
    num_classes: int,
    *,
    shape: tuple[int, int, int] | None = None,
    count: int = 100,
    images: Any = None,
    truth: Any = None,
    kind: Kind = "shapes",
    key: Key | None = None,
    created: str | None = None,
    previous: str | None = None,
    owner: str | None = None,
) -> tuple[MarkingKey, VerificationKey]:
    """KeyGen: trigger images, a random wrong label for each, and commitments to all of them.

    For cut and choose (`audit`), make twice as many pairs as verification needs.

    Args:
      num_classes: K.
      shape: (H, W, C) of abstract images. count: how many.
      images: (N, H, W, C) given instead: uint8, or floats in [0, 1], which are rounded to 256
        levels; what is committed to, learnt and asked is the rounded image.
      truth: (N,) true labels of given images, -1 where there is none (the default). Labels are
        drawn from the K − 1 others, or from all K.
      kind: of `abstract_images`.
      key: draws images and labels; 64 bits from the operating system by default. Whoever knows it
        knows the triggers, so pass one in experiments only. The random bytes of the commitments
        never come from it.
      created, previous, owner: of the `VerificationKey`.

    Returns:
      The secret and the public key.

    Raises:
      InputError: neither or both of shape and images, truth without images or of another length,
        images outside the box or equal to each other.

    Source: Adi et al. 2018, section 4 (KeyGen). Deviation: abstract images are drawn, where the
    paper collects some.
    """
    if (shape is None) == (images is None):
        raise InputError(
            "give either the shape of abstract images, or images; not both and not neither"
        )
    if not 2 <= num_classes <= MAX_CLASSES:
        raise InputError(
            f"a classifier has at least 2 classes and fewer than 2³¹, not {num_classes}"
        )
    image_key, label_key = jax.random.split(_secret_key() if key is None else key)
    if images is None:
        if truth is not None:
            raise InputError("abstract images have no true labels; truth belongs to given images")
        assert shape is not None
        pixels = abstract_images(image_key, count, shape, kind)
    else:
        pixels = np.asarray(images)
        check_images(pixels, pixels.shape[1:], (0.0, 1.0), "trigger images")
        pixels = pixels if pixels.dtype == np.uint8 else _quantised(pixels)
    truth = np.full(len(pixels), -1) if truth is None else np.asarray(truth)
    if (
        truth.shape != (len(pixels),)
        or truth.dtype.kind not in "iu"
        or truth.min() < -1
        or truth.max() >= num_classes
    ):
        raise InputError(f"truth must be {len(pixels)} integers in [-1, {num_classes})")
    labels = np.asarray(wrong_labels(label_key, jnp.asarray(truth, jnp.int32), num_classes))
    return make_keys(pixels, labels, num_classes, created=created, previous=previous, owner=owner)


@functools.partial(jax.jit, static_argnums=1)
def _noise(key: Key, shape: tuple[int, ...]) -> Array:
    width = max(0.5, min(shape[1:3]) / 12)  # small beside the image, or all of it is black or white
    return smooth_noise(key, shape, mean=(0.3, 0.7), sd=(0.2, 0.4), blur=(0.4, width))


def _secret_key() -> Key:
    words = np.frombuffer(secrets.token_bytes(8), np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")


def _quantised(images: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(images.astype(np.float64), 0, 1)).astype(np.uint8)


def mark(
    classifier: Classifier,
    images: Array,
    labels: Array,
    marking_key: MarkingKey,
    settings: MarkingSettings = SMALL_MARKING,
    *,
    pretrained: bool = False,
    augment: Augmentation | None = None,
) -> Method:
    """Mark: trains a network on its task and on the trigger pairs.

    Every step descends the mean cross-entropy of `batch_size` rows of the task and
    `triggers_per_batch` trigger pairs beside them, all rows weighing the same.

    Args:
      classifier: the network; its variables are used with `pretrained` alone.
      images: (N, H, W, C) of the task, uint8 or in [0, 1]. labels: (N,) integers in [0, K).
      marking_key: the secret key. All of its pairs are learnt.
      settings: see `MarkingSettings`. the default suits a LeNet on MNIST.
      pretrained: continue from the classifier's own variables (PRETRAINED) and not from new ones
        (FROMSCRATCH).
      augment: of the task's rows; triggers are learnt as they are.

    Returns:
      A `Method` over `nn.Training`; run it for `settings.steps` and use `nn.trained`.

    Raises:
      InputError: a key of other classes or shape than the network's, more triggers beside a batch
        than there are, or labels that do not fit.

    Source: Adi et al. 2018, section 5 (FROMSCRATCH, PRETRAINED); settings of the released code.
    Deviation: the k pairs of a step are drawn without replacement; the code goes through the set in
    turn, from a random place in every epoch.
    """
    if (
        marking_key.num_classes != classifier.num_classes
        or marking_key.images.shape[1:] != classifier.input_shape
    ):
        raise InputError(
            f"the key has images of {marking_key.images.shape[1:]} and {marking_key.num_classes} "
            f"classes, the network takes {classifier.input_shape} and knows "
            f"{classifier.num_classes}"
        )
    check_labels(labels, len(images), classifier.num_classes, every_class=False)
    return training(
        classifier,
        images,
        jnp.asarray(labels, jnp.int32),
        loss=Partial(cross_entropy),
        optimizer=settings.optimizer,
        batch_size=settings.batch_size,
        augment=augment,
        companions=(jnp.asarray(marking_key.images), jnp.asarray(marking_key.labels)),
        companions_per_batch=settings.triggers_per_batch,
        fine_tune=pretrained,
    )


__all__ = [
    "SMALL_MARKING",
    "MarkingSettings",
    "abstract_images",
    "keygen",
    "mark",
]
