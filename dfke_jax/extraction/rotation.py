"""The rotation loss: a clone that must also say by which angle images were turned.

A second, linear head g on the clone's features φ tells which of four turns an image of the pool
went through; that needs no answers, and makes features that a few answers suffice for:

    mean H(p, σ(f(x))) + w · (1/4) Σ_r mean H(r, σ(g(φ(turn_r(u))))),   r = 0, 90, 180, 270 degrees,

x answered images with targets p, u any images of the pool.

Source: Jagielski et al., USENIX Security 2020, section 4.2; Zhai et al., S4L, ICCV 2019, section
3.1; Gidaris et al., ICLR 2018. Deviations: u is augmented as x is; the head is thrown away.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Static
from dfke_jax.core.types import Array, Augmentation, Key, PyTree
from dfke_jax.extraction.pool import CloneTraining, Labelled, Learner, new_clone, pick
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.losses import cross_entropy, soft_cross_entropy
from dfke_jax.nn.observation import observe
from dfke_jax.nn.training import Training, descend

TURNS = 4


@dataclasses.dataclass(frozen=True)
class RotationSettings:
    """How turns are learnt.

    Attributes:
      weight: w ≥ 0, of the loss of turns.
      images: of the pool that a step turns, each four ways.

    Raises:
      InputError: for numbers outside their range.
    """

    weight: float = 1.0
    images: int = 16

    def __post_init__(self):
        if not self.weight >= 0 or self.images < 1:
            raise InputError(
                f"weight must not be negative and images at least 1, got {self.weight} and "
                f"{self.images}"
            )


def rotation(settings: RotationSettings | None = None) -> Learner:
    """The rotation loss as what `random_attack` and `active_thief` learn by (`learning`).

    Args:
      settings: see `RotationSettings`.

    Returns:
      A `Learner`, for square images. It refuses held-out rows (`InputError`).

    Source, deviations: as of this module.
    """
    return Partial(_learn, Static(settings or RotationSettings()))


def turned(images: Array) -> Array:
    """The images (B, H, H, C) by 0, 90, 180 and 270 degrees, one after another: (4 B, H, H, C).

    Raises:
      InputError: for images that are not square.
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise InputError(f"quarter turns are of square images, got shape {images.shape}")
    return jnp.concatenate([jnp.rot90(images, turn, (1, 2)) for turn in range(TURNS)])


def rotation_loss(answered: Array, targets: Array, turns: Array, weight: Array | float) -> Array:
    """The loss of this module's head, ().

    Args:
      answered: logits (B, C). targets: likewise.
      turns: the second head's logits (4 U, 4), of images as `turned` puts them. weight: w.
    """
    truth = jnp.repeat(jnp.arange(TURNS), turns.shape[0] // TURNS)
    supervised = soft_cross_entropy(answered, targets).mean()
    return supervised + weight * cross_entropy(turns, truth).mean()


def _learn(
    static: Static,
    key: Key,
    clone: Classifier,
    pool: Array,
    labelled: Labelled,
    settings: CloneTraining,
    start: Training,
    due: Array | bool = True,
    augment: Augmentation | None = None,
    steps: int | Array | None = None,
) -> Training:
    how: RotationSettings = static.value
    answered = labelled.learnt
    if labelled.held.indices.shape[0]:
        raise InputError("the rotation loss keeps the last iterate: set validation=0")
    turned(pool[:1])
    due = jnp.asarray(due)
    steps = settings.steps if steps is None else steps
    init_key, head_key, step_key = jax.random.split(key, 3)
    fresh = pick(due, new_clone(clone, settings, init_key), start)
    # both heads descend by one rule; the second one's parameters stand beside the network's
    head = _new_head(clone, fresh.variables, pool, head_key)
    both = {"clone": fresh.variables["params"], "turns": head}
    begun = Training({**fresh.variables, "params": both}, settings.rule.init(both))

    def update(i: Array, training: Training) -> Training:
        rows_key, pool_key, own_key, free_key, dropout_key = jax.random.split(
            jax.random.fold_in(step_key, i), 5
        )
        size = settings.batch_size
        rows = jax.random.randint(rows_key, (size,), 0, answered.filled)
        own = as_float(pool[answered.indices[rows]])
        free = as_float(pool[jax.random.randint(pool_key, (how.images,), 0, pool.shape[0])])
        if augment is not None:
            own, free = augment(own_key, own), augment(free_key, free)
        inputs = clone.preprocessing(jnp.concatenate([own, turned(free)]))
        targets = answered.targets[rows]

        def objective(params: PyTree) -> tuple[Array, tuple[Any, PyTree]]:
            variables = {**training.variables, "params": params["clone"]}
            seen = observe(
                clone.module, variables, inputs, train=True, activations=True, key=dropout_key
            )
            turns = (
                seen.activations["features"][size:] @ params["turns"]["kernel"]
                + params["turns"]["bias"][None]
            )
            loss = rotation_loss(seen.logits[:size], targets, turns, how.weight)
            return loss, ((), seen.updated)

        return descend(settings.rule, training, objective)[0]

    found = lax.fori_loop(0, jnp.where(due, steps, 0), update, begun).variables
    found = {**found, "params": found["params"]["clone"]}
    return Training(pick(due, found, start.variables), settings.rule.init(found["params"]))


def _new_head(clone: Classifier, variables: PyTree, pool: Array, key: Key) -> dict[str, Array]:
    """Kernel (D, 4), Gaussian of variance 1/D, and bias (4,) of zeros; D as the features have."""

    def features(images: Array) -> Array:
        inputs = clone.preprocessing(images)
        seen = observe(clone.module, variables, inputs, activations=True)
        return seen.activations["features"]

    width = jax.eval_shape(features, as_float(pool[:1])).shape[-1]
    kernel = jax.random.normal(key, (width, TURNS)) / jnp.sqrt(width)
    return {"kernel": kernel, "bias": jnp.zeros(TURNS)}


__all__ = ["RotationSettings", "rotation", "rotation_loss", "turned"]
