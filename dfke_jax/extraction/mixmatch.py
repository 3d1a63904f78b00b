"""MixMatch: a clone that learns from a few answers and from many images that nobody answered.

A query buys a label; images without one cost nothing. With targets p of answered images x, and
images u that were not asked, a step is

    q̄ = (1/K) Σ_k σ(f(u_k)),          u_k the k-th augmentation of u,
    q = q̄^{1/T} / Σ_c q̄_c^{1/T},      which every u_k gets for a target,
    x' = λ x + (1 − λ) x_j,  p' = λ p + (1 − λ) p_j,   λ = max(λ₀, 1 − λ₀), λ₀ ~ Beta(α, α),

over all answered and unanswered images of the batch together, j a permutation of them; and
descends

    mean H(p', σ(f(x'))) + w(t) · mean ‖q' − σ(f(u'))‖² / C,   w(t) = w · min(1, t / ramp),

C classes. What is kept is the average of the parameters over the steps, θ̄ ← a θ̄ + (1 − a) θ.

Source: Berthelot et al., MixMatch, NeurIPS 2019, section 3 and algorithm 1; Jagielski et al., USENIX
Security 2020, section 4.2 (with a model's answers for labels). As in the released code, λ is drawn
for every image, and nothing is differentiated through q. Deviations: batches are drawn with
replacement; targets may be probabilities; optimiser and rate are those of a `CloneTraining`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Static
from dfke_jax.core.types import Array, Augmentation, Key, PyTree
from dfke_jax.extraction.pool import CloneTraining, Labelled, Learner, new_clone, pick
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.losses import soft_cross_entropy
from dfke_jax.nn.observation import observe
from dfke_jax.nn.training import Training, descend


@dataclasses.dataclass(frozen=True)
class MixMatchSettings:
    """How unanswered images are learnt from. Defaults are those published for CIFAR-10.

    Attributes:
      augmentations: K, of every unanswered image.
      temperature: T in (0, 1], by which guesses are sharpened; 1 leaves them as they are.
      mixing: α > 0, of the Beta distribution.
      weight: w, of the unanswered images' loss.
      ramp: fraction of the steps over which the weight rises from 0.
      average: a in [0, 1), of the parameters that are kept.

    Raises:
      InputError: for numbers outside their range.
    """

    augmentations: int = 2
    temperature: float = 0.5
    mixing: float = 0.75
    weight: float = 75.0
    ramp: float = 1 / 64
    average: float = 0.999

    def __post_init__(self):
        if self.augmentations < 1 or not 0 < self.temperature <= 1 or not self.mixing > 0:
            raise InputError(
                "augmentations must be at least 1, temperature in (0, 1] and mixing positive, got "
                f"{self.augmentations}, {self.temperature} and {self.mixing}"
            )
        if not self.weight >= 0 or not 0 <= self.ramp <= 1 or not 0 <= self.average < 1:
            raise InputError(
                "weight must not be negative, ramp lie in [0, 1] and average in [0, 1), got "
                f"{self.weight}, {self.ramp} and {self.average}"
            )


def mixmatch(settings: MixMatchSettings | None = None) -> Learner:
    """MixMatch as what `random_attack` and `active_thief` learn by (`learning`).

    The images without answers are those of the attack's pool, the answered ones among them; the
    attack's augmentation is applied to both kinds.

    Args:
      settings: see `MixMatchSettings`.

    Returns:
      A `Learner`. It refuses held-out rows (`InputError`): what it keeps is an average.

    Source, deviations: as of this module.
    """
    return Partial(_learn, Static(settings or MixMatchSettings()))


def sharpened(probabilities: Array, temperature: float) -> Array:
    """p^{1/T} / Σ_c p_c^{1/T} over the last axis, (..., C)."""
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(-1, keepdims=True)


def guessed(logits: Array, temperature: float) -> Array:
    """Targets (B, C) of images from the logits (K, B, C) of their augmentations; no gradient."""
    return lax.stop_gradient(sharpened(jax.nn.softmax(logits).mean(0), temperature))


def mixed(images: Array, targets: Array, shares: Array, order: Array) -> tuple[Array, Array]:
    """Every image and target with those that `order` names.

    Args:
      images: (N, H, W, C). targets: (N, K).
      shares: λ (N,), of the image itself. order: (N,) int32, the other one.
    """
    wide = shares[:, None, None, None]
    return (
        wide * images + (1 - wide) * images[order],
        shares[:, None] * targets + (1 - shares)[:, None] * targets[order],
    )


def mixmatch_loss(
    answered: Array, targets: Array, unanswered: Array, guesses: Array, weight: Array | float
) -> Array:
    """The loss of this module's head, ().

    Args:
      answered, unanswered: logits (B, C) and (U, C). targets, guesses: likewise, after mixing.
      weight: w(t).
    """
    apart = jnp.square(jax.nn.softmax(unanswered) - guesses).mean()
    return soft_cross_entropy(answered, targets).mean() + weight * apart


class _Averaged(NamedTuple):
    """A training and the average of its variables so far."""

    training: Training
    average: PyTree


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
    how: MixMatchSettings = static.value
    answered = labelled.learnt
    if labelled.held.indices.shape[0]:
        raise InputError("MixMatch keeps an average and chooses nothing: set validation=0")
    due = jnp.asarray(due)
    steps = settings.steps if steps is None else steps
    init_key, step_key = jax.random.split(key)
    fresh = pick(due, new_clone(clone, settings, init_key), start)
    ramp = jnp.maximum(1.0, how.ramp * jnp.asarray(steps, jnp.float32))

    def update(i: Array, carry: _Averaged) -> _Averaged:
        rows_key, pool_key, *augment_keys, mix_key, dropout_key = jax.random.split(
            jax.random.fold_in(step_key, i), 5 + how.augmentations
        )
        size = settings.batch_size
        rows = jax.random.randint(rows_key, (size,), 0, answered.filled)
        others = jax.random.randint(pool_key, (size,), 0, pool.shape[0])
        own = as_float(pool[answered.indices[rows]])
        free = as_float(pool[others])
        changed = [free] * how.augmentations
        if augment is not None:
            own = augment(augment_keys[0], own)
            changed = [augment(k, free) for k in augment_keys[1:]]
        variables = carry.training.variables
        logits = _logits(clone, variables, jnp.concatenate(changed), dropout_key)
        guesses = guessed(logits.reshape(how.augmentations, size, -1), how.temperature)
        images = jnp.concatenate([own, *changed])
        targets = jnp.concatenate(
            [answered.targets[rows], jnp.tile(guesses, (how.augmentations, 1))]
        )
        images, targets = mixed(images, targets, *_mixing(mix_key, len(images), how.mixing))
        weight = how.weight * jnp.minimum(1.0, i / ramp)

        def objective(params: PyTree) -> tuple[Array, tuple[Any, PyTree]]:
            inputs = clone.preprocessing(images)
            seen = observe(
                clone.module,
                {**variables, "params": params},
                inputs,
                train=True,
                key=dropout_key,
            )
            loss = mixmatch_loss(
                seen.logits[:size], targets[:size], seen.logits[size:], targets[size:], weight
            )
            return loss, ((), seen.updated)

        training, _, _ = descend(settings.rule, carry.training, objective)
        # from zero, and divided below by what the weights of a finite sum come to
        average = jax.tree.map(
            lambda old, new: how.average * old + (1 - how.average) * new,
            carry.average,
            training.variables,
        )
        return _Averaged(training, average)

    empty = jax.tree.map(jnp.zeros_like, fresh.variables)
    found = lax.fori_loop(0, jnp.where(due, steps, 0), update, _Averaged(fresh, empty))
    whole = 1 - how.average ** jnp.asarray(steps, jnp.float32)
    average = jax.tree.map(lambda leaf: (leaf / whole).astype(leaf.dtype), found.average)
    return Training(pick(due, average, start.variables), found.training.optimizer_state)


def _logits(clone: Classifier, variables: PyTree, images: Array, key: Key) -> Array:
    """Logits in training mode, as the released code guesses; running statistics stay."""
    inputs = clone.preprocessing(images)
    return observe(clone.module, variables, inputs, train=True, key=key).logits


def _mixing(key: Key, count: int, alpha: float) -> tuple[Array, Array]:
    """(λ (N,) in [1/2, 1], a permutation of N)."""
    share_key, order_key = jax.random.split(key)
    shares = jax.random.beta(share_key, alpha, alpha, (count,))
    return jnp.maximum(shares, 1 - shares), jax.random.permutation(order_key, count)


__all__ = ["MixMatchSettings", "guessed", "mixed", "mixmatch", "mixmatch_loss", "sharpened"]
