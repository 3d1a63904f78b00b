"""Black-box Dissector: labels alone, and more of them out of each image by erasing what the clone
looks at.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Augmentation, Key, Predict
from dfke_jax.extraction.pool import (
    CloneTraining,
    PoolAttackSettings,
    in_batches,
    new_clone,
    train_clone,
)
from dfke_jax.extraction.pool_attack import GrowingAttack
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.training import Training
from dfke_jax.oracle.reveal import Reveal

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class DissectorSettings(PoolAttackSettings):
    """How images are erased and asked again.

    Attributes:
      budget, rows_per_step: steps take turns: new images, then one erased variant of each. No rows
        are held out.
      clone: after every step, from new parameters (published: learning rate 0.02 at a batch of 128,
        ×0.1 after 60 and 120 of 200 epochs).
      variants: N, of which the one that the clone is surest of is asked.
      area: fraction of the image that is erased, uniform between these.
      aspect: height to width of the rectangle, log-uniform between these.
      pseudo_rows: images that were not asked and that the clone labels itself, drawn anew in every
        step; 0 for none.
      pseudo_weight: of these in the training's loss.

    Raises:
      InputError: for numbers outside their range.
    """

    clone: CloneTraining = CloneTraining(
        steps=20_000, batch_size=128, learning_rate=0.02, momentum=0.9, decay_at=(0.3, 0.6)
    )
    variants: int = 10
    area: Range = (0.02, 0.4)
    aspect: Range = (0.3, 3.3)
    pseudo_rows: int = 1000
    pseudo_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.validation:
            raise InputError(f"the dissector holds no rows out, got validation={self.validation}")
        if self.variants < 1 or self.pseudo_rows < 0 or self.pseudo_weight < 0:
            raise InputError(
                "variants must be at least 1, pseudo_rows and pseudo_weight not negative, got "
                f"{self.variants}, {self.pseudo_rows} and {self.pseudo_weight}"
            )
        if not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise InputError(
                "area must be (low, high) in (0, 1] and aspect (low, high) above 0, got "
                f"{self.area}, {self.aspect}"
            )


class DissectorState(NamedTuple):
    """State of the dissector.

    Attributes:
      order: (N,) int32, a permutation of the pool. images: (T, H, W, C) asked so far, filled from
        the front: q new ones, q erased ones, and so on. targets: (T, K) one-hot. filled: () int32.
        clone: its training state.
    """

    order: Array
    images: Array
    targets: Array
    filled: Array
    clone: Training


def dissector(
    clone: Classifier,
    pool: Array,
    reveal: Reveal,
    settings: DissectorSettings | None = None,
    *,
    augment: Augmentation | None = None,
) -> Attack:
    """Asks new images, then each of them again with a part erased that the clone attends to; learns
    labels.

    - Erasing: of N variants of x, rectangles of noise whose centres are drawn in proportion to the
      clone's attention for the answered label (`attention`), the one with the largest max_k S_k is
      asked: the clone is sure of it although what it attends to is gone, so that its label says
      most.
    - Self-distillation: images that were not asked get as target the mean of S over N variants with
      rectangles at uniform places, by the clone of the step before.

    Args:
      clone: gives the network. pool: (N, H, W, C). reveal: what the oracle answers; the label alone
        is used.
      settings: see `DissectorSettings`; the pool must hold half the budget.
      augment: of the training's batches.

    Returns:
      An `Attack` over `DissectorState`. Metrics: ``asked`` rows so far, and how well the clone
        predicted this step's answers
      before it learnt them (``loss``, ``agreement``).

    Raises:
      InputError: for a pool that does not fit.

    Source: Wang et al., Black-Box Dissector, ECCV 2022, section 3. Deviations: attention is the
    size of the input gradient, which any network has, where the paper takes Grad-CAM of the last
    feature map; the pool is gone through in random order; the fixed lengths of `CloneTraining`
    stand for epochs.
    """
    settings = settings or DissectorSettings()
    fresh = settings.rows_per_step * -(-settings.rounds // 2)
    return _Dissector.on(clone, pool, reveal, settings, augment=augment, hard=True, images=fresh)


def attention(classifier: Predict, images: Array, labels: Array) -> Array:
    """Σ_c |∂ log softmax(f(x))_y/∂x_c|, divided by its sum: (B, H, W), uniform where the gradient
    vanishes.

    Args:
      images: (B, H, W, C) floats. labels: y, (B,) integers.
    """

    def total(images: Array) -> Array:
        return jnp.sum(
            jnp.take_along_axis(jax.nn.log_softmax(classifier(images)), labels[:, None], 1)
        )

    sizes = jnp.abs(jax.grad(total)(images)).sum(-1)
    mass = sizes.sum((1, 2), keepdims=True)
    even = 1 / (images.shape[1] * images.shape[2])
    return jnp.where(mass > 1e-30, sizes / jnp.maximum(mass, 1e-30), even)


def erase(
    key: Key,
    images: Array,
    weights: Array,
    area: Range,
    aspect: Range,
    box: tuple[float, float] = (0.0, 1.0),
) -> Array:
    """Fills one rectangle of each image with uniform noise; it may reach over the edge.

    Args:
      images: (B, H, W, C). weights: (B, H, W), probabilities of the rectangle's centre.
      area: fraction of the image, uniform. aspect: height to width, log-uniform. box: of the noise.
    """
    batch, height, width, _ = images.shape
    centre_key, area_key, aspect_key, noise_key = jax.random.split(key, 4)
    place = jax.random.categorical(centre_key, jnp.log(weights.reshape(batch, -1)), -1)
    size = height * width * jax.random.uniform(area_key, (batch,), minval=area[0], maxval=area[1])
    shape = jnp.exp(
        jax.random.uniform(
            aspect_key, (batch,), minval=jnp.log(aspect[0]), maxval=jnp.log(aspect[1])
        )
    )
    tall, wide = jnp.sqrt(size * shape), jnp.sqrt(size / shape)
    rows = jnp.abs(jnp.arange(height)[None] - (place // width)[:, None]) <= tall[:, None] / 2
    columns = jnp.abs(jnp.arange(width)[None] - (place % width)[:, None]) <= wide[:, None] / 2
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(
        inside, jax.random.uniform(noise_key, images.shape, minval=box[0], maxval=box[1]), images
    )


def surest_variants(
    key: Key,
    classifier: Predict,
    images: Array,
    labels: Array,
    settings: DissectorSettings,
    box: Range = (0.0, 1.0),
) -> Array:
    """Of N erased variants of each image the one with the largest max_k softmax(f)_k, the first of
    equals.

    Variant i is ``erase(fold_in(key, i), images, attention(...))``.
    """
    weights = attention(classifier, images, labels)

    def better(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, most = carry
        made = erase(
            jax.random.fold_in(key, i), images, weights, settings.area, settings.aspect, box
        )
        sure = jnp.max(jax.nn.softmax(classifier(made)), -1)
        wins = sure > most
        return jnp.where(wins[:, None, None, None], made, kept), jnp.maximum(sure, most)

    return lax.fori_loop(0, settings.variants, better, (images, -jnp.ones(images.shape[0])))[0]


def erased_mean(
    key: Key, classifier: Predict, images: Array, settings: DissectorSettings, box: Range
) -> Array:
    """Mean of softmax(f) over N variants with rectangles at uniform places, (B, K)."""
    even = jnp.full(images.shape[:3], 1 / (images.shape[1] * images.shape[2]))

    def one(total: Array, i: Array) -> tuple[Array, None]:
        made = erase(jax.random.fold_in(key, i), images, even, settings.area, settings.aspect, box)
        return total + in_batches(lambda batch: jax.nn.softmax(classifier(batch)), made), None

    shape = jax.eval_shape(classifier, images).shape
    return lax.scan(one, jnp.zeros(shape), jnp.arange(settings.variants))[0] / settings.variants


@record
class _Dissector(GrowingAttack[DissectorSettings]):
    def init(self, key: Key) -> DissectorState:
        settings = self.settings
        order_key, clone_key = jax.random.split(key)
        return DissectorState(
            jax.random.permutation(order_key, self.pool.shape[0]).astype(jnp.int32),
            jnp.zeros((settings.budget, *self.pool.shape[1:])),
            jnp.zeros((settings.budget, self.clone.num_classes)),
            jnp.zeros((), jnp.int32),
            new_clone(self.clone, settings.clone, clone_key),
        )

    def ask(self, key: Key, state: DissectorState) -> tuple[DissectorState, Array]:
        count = self.settings.rows_per_step
        step = state.filled // count

        def new() -> Array:
            return as_float(
                self.pool[lax.dynamic_slice_in_dim(state.order, step // 2 * count, count)]
            )

        def erased() -> Array:
            parents = lax.dynamic_slice_in_dim(state.images, state.filled - count, count)
            labels = jnp.argmax(
                lax.dynamic_slice_in_dim(state.targets, state.filled - count, count), -1
            )
            erase_key, box = jax.random.fold_in(key, 0), self.clone.preprocessing.box
            return surest_variants(
                erase_key, self.learner(state), parents, labels, self.settings, box
            )

        return state, lax.cond(step % 2 == 0, new, erased)

    def learn(self, key: Key, before: DissectorState, told: DissectorState) -> Training:
        settings, images, targets = self.settings, told.images, told.targets
        if settings.pseudo_rows:
            extra, guesses = self.pseudo_labelled(key, before, told)
            images, targets = jnp.concatenate([extra, images]), jnp.concatenate([guesses, targets])
        return train_clone(
            jax.random.fold_in(key, 3),
            self.clone,
            images,
            targets,
            told.filled + settings.pseudo_rows,
            settings.clone,
            start=told.clone,
            augment=self.augment,
        )

    def pseudo_labelled(
        self, key: Key, before: DissectorState, told: DissectorState
    ) -> tuple[Array, Array]:
        """Images that were not asked, and the weighted answers of the clone as it was before this
        step.
        """
        settings, size, count = self.settings, self.pool.shape[0], self.settings.rows_per_step
        draw_key, pseudo_key = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
        begin = jnp.minimum((told.filled // count + 1) // 2 * count, size)
        # a pool that was asked to the end is labelled again
        low = jnp.where(begin < size, begin, 0)
        unasked = told.order[jax.random.randint(draw_key, (settings.pseudo_rows,), low, size)]
        extra = as_float(self.pool[unasked])
        guesses = erased_mean(
            pseudo_key, self.learner(before), extra, settings, self.clone.preprocessing.box
        )
        # a target that is scaled scales its loss; before the first training the clone has nothing
        # to say
        weight = jnp.where(before.filled > 0, settings.pseudo_weight, 0.0)
        return extra, weight * guesses


__all__ = [
    "DissectorSettings",
    "DissectorState",
    "attention",
    "dissector",
    "erase",
    "erased_mean",
    "surest_variants",
]
