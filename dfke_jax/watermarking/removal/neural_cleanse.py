"""Neural Cleanse: the smallest trigger of every class is found by optimisation; one that is far too
small betrays a backdoor.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.loop import run
from dfke_jax.core.method import Method, Static, method
from dfke_jax.core.types import Array, Key, Metrics
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.watermarking.removal.common import (
    Removed,
    TrainingSettings,
    Watch,
    aside,
    carry_out,
    check_attacker,
    check_fraction,
    count_of,
)
from dfke_jax.watermarking.removal.fine_tuning import fine_tuned, fine_tuning
from dfke_jax.watermarking.removal.pruning import least, masked, unit_activity, unit_masks

OUTLIER = 2.0
"""Anomaly index above which a class is held for backdoored."""
_CONSISTENCY = 1.4826  # MAD of a normal distribution times this is its standard deviation


@dataclasses.dataclass(frozen=True)
class CleanseSettings:
    """How triggers are reversed."""

    rounds: int = 100
    """Rounds; after each the weight of the mask's size is adapted."""
    batches: int = 10
    """Batches in a round."""
    batch_size: int = 32
    """Clean images that every class's trigger is stamped on in a batch."""
    learning_rate: float = 0.1
    """Of Adam, whose decay rates are 0.5 and 0.9."""
    cost: float = 1e-3
    """λ once the trigger works; it is 0 until then."""
    patience: int = 5
    """Rounds in a row after which λ changes."""
    multiplier: float = 2.0
    """λ is multiplied by it after successes, and divided by its power of 1.5 after failures."""
    threshold: float = 0.99
    """Share of stamped images that must reach the class for a round to count as a success."""

    def __post_init__(self):
        for name in ("rounds", "batches", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if (
            self.learning_rate <= 0
            or self.cost <= 0
            or self.multiplier <= 1
            or not 0 < self.threshold <= 1
        ):
            raise InputError(
                "learning_rate and cost must be positive, multiplier above 1 and threshold in (0, "
                f"1], got {self.learning_rate}, {self.cost}, {self.multiplier} and {self.threshold}"
            )


UNLEARNING = TrainingSettings(steps=100)
"""Of the fine-tuning on stamped images."""


class CostSchedule(NamedTuple):
    """λ of every class and what decides on its next value; all (K,)."""

    cost: Array
    set_counter: Array
    up_counter: Array
    down_counter: Array


class CleanseState(NamedTuple):
    """Masks and patterns of all classes while they are searched for.

    Attributes:
      theta: mask (K, H, W, 1) and pattern (K, H, W, C), each tanh(θ)/2 + ½ of these.
      optimizer_state: Adam's.
      schedule: of λ.
      best_mask, best_pattern: of the smallest mask so far at which a round succeeded; the last ones
        before there is any.
      best_norm: its L1 norm (K,); H·W + 1, more than any mask has, before there is any.
    """

    theta: tuple[Array, Array]
    optimizer_state: Any
    schedule: CostSchedule
    best_mask: Array
    best_pattern: Array
    best_norm: Array


@dataclasses.dataclass(frozen=True)
class ReversedTriggers:
    """One trigger per class, and which of them are suspiciously small.

    Attributes:
      masks: (K, H, W, 1) in [0, 1]. patterns: (K, H, W, C) in the box.
      norms: (K,) L1 norms of the masks.
      found: (K,) bool, whether a trigger reached the threshold; the norm of one that did not is
        that of its last mask.
      anomaly: (K,), see `anomaly_index`.
      flagged: classes of an index above `OUTLIER` whose mask is smaller than the median, smallest
        mask first.
    """

    masks: np.ndarray
    patterns: np.ndarray
    norms: np.ndarray
    found: np.ndarray
    anomaly: np.ndarray
    flagged: tuple[int, ...]

    def stamp(self, images: Any, target: int) -> np.ndarray:
        """(1 − m)·x + m·p for the trigger of one class; images (N, H, W, C) -> the same, float32."""
        mask = self.masks[target]
        return np.asarray(
            (1 - mask) * np.asarray(as_float(jnp.asarray(images))) + mask * self.patterns[target]
        )


def anomaly_index(norms: Any) -> np.ndarray:
    """|L_k − median(L)| / (1.4826 · median_j |L_j − median(L)|), in float64.

    Where the denominator is 0, the index is 0 at the median and infinite elsewhere.

    Args:
      norms: L, (K,), K ≥ 3.

    Raises:
      InputError: for fewer than three numbers, or any that are not finite.

    Source: Wang et al., Neural Cleanse, IEEE S&P 2019, section 4.1.
    """
    values = np.asarray(norms, np.float64)
    if values.ndim != 1 or len(values) < 3 or not np.isfinite(values).all():
        raise InputError(
            f"an outlier among norms needs at least three finite ones (K,), got {values}"
        )
    away = np.abs(values - np.median(values))
    scale = _CONSISTENCY * np.median(away)
    return np.divide(away, scale, out=np.where(away > 0, np.inf, 0.0), where=scale > 0)


def outliers(norms: Any) -> tuple[int, ...]:
    """Classes whose mask is smaller than the median with an anomaly index above `OUTLIER`, smallest
    first.
    """
    values = np.asarray(norms, np.float64)
    small = (anomaly_index(values) > OUTLIER) & (values < np.median(values))
    return tuple(int(k) for k in np.argsort(values, kind="stable") if small[k])


def trigger_reversal(
    classifier: Classifier, images: Array, settings: CleanseSettings = CleanseSettings()
) -> Method:
    """The search for the smallest trigger of every class, all classes in one program; a step is a
    round.

    For every class t:  min over m, p of  mean_x H(t, σ(f((1 − m)·x + m·p))) + λ_t · ‖m‖₁,
    where λ_t follows the success of the round (see `next_costs`).

    Args:
      classifier: the suspect network f.
      images: (N, H, W, C) clean images of all classes.
      settings: how it searches; run the method for ``settings.rounds`` steps.

    Returns:
      A `Method` over `CleanseState` with metrics ``success`` and ``norm``, means over classes.

    Source: Wang et al., Neural Cleanse, IEEE S&P 2019, section 4.2; constants as in the released
    code, to our recollection.
    Deviations: a round has 10 batches (about 31 there), there is no early stop, and one batch
    serves all classes.
    """
    check_attacker(classifier, images, None)
    return method(_init, _step, Static(settings), classifier, images)


def next_costs(settings: CleanseSettings, schedule: CostSchedule, success: Array) -> CostSchedule:
    """λ after a round.

    λ is 0 until the trigger has worked in `patience` rounds in a row and becomes `cost` then. After
    every `patience` successes in a row it is multiplied by μ, after as many failures divided by
    μ^1.5.

    Args:
      schedule: before the round. success: (K,) bool, whether it succeeded.
    """
    cost, set_counter, up, down = schedule
    set_counter = jnp.where((cost == 0) & success, set_counter + 1, 0)
    starts = set_counter >= settings.patience
    cost = jnp.where(starts, settings.cost, cost)
    up = jnp.where(success & ~starts, up + 1, 0)
    down = jnp.where(success, 0, down + 1)
    raised, lowered = up >= settings.patience, down >= settings.patience
    cost = jnp.where(
        raised,
        cost * settings.multiplier,
        jnp.where(lowered, cost / settings.multiplier**1.5, cost),
    )
    return CostSchedule(
        cost,
        jnp.where(starts, 0, set_counter),
        jnp.where(raised, 0, up),
        jnp.where(lowered, 0, down),
    )


def reverse_triggers(
    key: Key, classifier: Classifier, images: Array, settings: CleanseSettings = CleanseSettings()
) -> ReversedTriggers:
    """Searches for every class's trigger (see `trigger_reversal`) and flags those that are too
    small.
    """
    state = run(trigger_reversal(classifier, images, settings), key, settings.rounds).state
    return reversed_triggers(classifier, state)


def reversed_triggers(classifier: Classifier, state: CleanseState) -> ReversedTriggers:
    """What a state of `trigger_reversal` has found."""
    masks = np.asarray(state.best_mask)
    found = np.asarray(state.best_norm) <= masks[0].size
    norms = masks.sum((1, 2, 3), dtype=np.float64)
    low, high = classifier.preprocessing.box
    patterns = low + (high - low) * np.asarray(state.best_pattern)
    return ReversedTriggers(masks, patterns, norms, found, anomaly_index(norms), outliers(norms))


def neural_cleanse(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    cleanse: CleanseSettings = CleanseSettings(),
    found: ReversedTriggers | None = None,
    only_flagged: bool = False,
    samples: int = 6000,
    share: float = 0.2,
    settings: TrainingSettings = UNLEARNING,
    watch: Watch | None = None,
) -> Removed:
    """Unlearning: fine-tunes on clean images, a share of them stamped with the reversed trigger
    under their true labels.

    Args:
      cleanse: how triggers are reversed.
      found: triggers of this network that were reversed before; the search is left out then.
      only_flagged: leave a network alone in which no class is flagged. Otherwise the class of the
        smallest mask is taken then, which is what an attacker does who knows that there is a mark.
      samples: images used, the first of a random order; all if there are fewer.
      share: of them that carry a trigger, divided among the flagged classes.
      settings: of the fine-tuning.

    Returns:
      `Removed`, with ``flagged``, ``anomaly``, ``norms`` and ``targets`` (classes whose trigger was
      unlearnt) in `details`.

    Raises:
      InputError: for numbers out of range, or images and labels that do not fit.

    Source: Wang et al., Neural Cleanse, IEEE S&P 2019, section 6.2: a tenth of the training set, a
    fifth of it stamped, one epoch.
    """
    check_attacker(marked, images, labels)
    check_fraction(share)
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples}")
    found = found or reverse_triggers(aside(key, 1), marked, images, cleanse)
    targets = found.flagged or (() if only_flagged else (int(np.argmin(found.norms)),))
    details = _details(found, targets)
    numbers = {"share": share, "samples": samples, **settings.numbers()}
    if not targets:
        return Removed(
            marked, marked, "neural_cleanse", "Neural Cleanse: no class flagged", numbers, details
        )
    order = np.asarray(jax.random.permutation(aside(key, 2), len(images)))[:samples]
    rows = np.array(as_float(jnp.asarray(images)[order]))
    for target, part in zip(
        targets, np.array_split(np.arange(count_of(share, len(rows))), len(targets)), strict=True
    ):
        rows[part] = found.stamp(rows[part], target)
    kept_labels = jnp.asarray(labels)[order]
    method_ = fine_tuning(marked, jnp.asarray(rows), kept_labels, "ftal", settings)

    def read(state: Any) -> Removed:
        removed = fine_tuned(marked, state, "ftal", settings)
        words = "Neural Cleanse, unlearning the reversed trigger"
        return dataclasses.replace(
            removed, attack="neural_cleanse", description=words, settings=numbers, details=details
        )

    return carry_out(method_, key, settings.steps, read, watch)


def neural_cleanse_patching(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    cleanse: CleanseSettings = CleanseSettings(),
    found: ReversedTriggers | None = None,
    only_flagged: bool = False,
    fraction: float = 0.3,
    layer: str = "features",
    samples: int = 2000,
) -> Removed:
    """Patching: prunes the neurons that the reversed trigger excites most beyond what clean images
    do.

    Args:
      cleanse, found, only_flagged: as for `neural_cleanse`.
      fraction: share of the layer's units, those of the largest difference of mean activation.
      layer: one of `prunable_layers`.
      samples: clean images that activations are compared on, the first ones.

    Returns:
      `Removed`, with `details` as for `neural_cleanse` and ``pruned``.

    Source: Wang et al., Neural Cleanse, IEEE S&P 2019, section 6.1. Deviation: a fixed fraction,
    where the paper prunes until the reversed trigger fails; with several flagged classes, the
    largest difference over them.
    """
    check_attacker(marked, images, labels)
    check_fraction(fraction)
    found = found or reverse_triggers(aside(key, 1), marked, images, cleanse)
    targets = found.flagged or (() if only_flagged else (int(np.argmin(found.norms)),))
    details, numbers = _details(found, targets), {"fraction": fraction, "layer": layer}
    if not targets:
        return Removed(
            marked,
            marked,
            "neural_cleanse_patching",
            "Neural Cleanse: no class flagged",
            numbers,
            details,
        )
    clean = jnp.asarray(images)[:samples]
    usual = np.asarray(unit_activity(marked, clean, layer))
    excited = [
        np.asarray(unit_activity(marked, jnp.asarray(found.stamp(clean, k)), layer)) - usual
        for k in targets
    ]
    units = least(-np.max(excited, 0), fraction)
    patched = masked(marked, unit_masks(marked, jnp.asarray(units), layer))
    return Removed(
        patched,
        patched,
        "neural_cleanse_patching",
        f"Neural Cleanse, pruning units of {layer} that the trigger excites",
        numbers,
        details | {"pruned": np.flatnonzero(units).tolist()},
    )


def _details(found: ReversedTriggers, targets: tuple[int, ...]) -> dict[str, Any]:
    return {
        "flagged": list(found.flagged),
        "targets": list(targets),
        "anomaly": found.anomaly.tolist(),
        "norms": found.norms.tolist(),
    }


def _optimizer(settings: CleanseSettings) -> optax.GradientTransformation:
    return optax.adam(settings.learning_rate, b1=0.5, b2=0.9)


def _squashed(theta: tuple[Array, Array]) -> tuple[Array, Array]:
    return jnp.tanh(theta[0]) / 2 + 0.5, jnp.tanh(theta[1]) / 2 + 0.5


def _init(static: Static, classifier: Classifier, images: Array, key: Key) -> CleanseState:
    classes, (height, width, channels) = classifier.num_classes, classifier.input_shape
    keys = jax.random.split(key)
    shapes = (classes, height, width, 1), (classes, height, width, channels)
    drawn = [
        jax.random.uniform(key, shape, minval=0.01, maxval=0.99)
        for key, shape in zip(keys, shapes, strict=True)
    ]
    theta = (jnp.arctanh(2 * drawn[0] - 1), jnp.arctanh(2 * drawn[1] - 1))
    # One buffer for each counter: the carried state is donated.
    schedule = CostSchedule(jnp.zeros(classes), *(jnp.zeros(classes, jnp.int32) for _ in range(3)))
    best = _squashed(theta)
    return CleanseState(
        theta,
        _optimizer(static.value).init(theta),
        schedule,
        *best,
        jnp.full(classes, height * width + 1, jnp.float32),
    )


def _step(
    static: Static, classifier: Classifier, images: Array, key: Key, state: CleanseState
) -> tuple[CleanseState, Metrics]:
    settings: CleanseSettings = static.value
    optimizer, classes = _optimizer(settings), classifier.num_classes
    low, high = classifier.preprocessing.box

    def objective(theta: tuple[Array, Array], rows: Array) -> tuple[Array, Array]:
        mask, pattern = (part[:, None] for part in _squashed(theta))
        stamped = (1 - mask) * rows[None] + mask * (low + (high - low) * pattern)
        logits = classifier(stamped.reshape(-1, *stamped.shape[2:])).reshape(
            classes, len(rows), classes
        )
        own = jnp.eye(classes)[:, None]
        loss = -jnp.sum(jax.nn.log_softmax(logits) * own, -1).mean(1)
        reached = (jnp.argmax(logits, -1) == jnp.arange(classes)[:, None]).mean(1)
        return jnp.sum(loss + state.schedule.cost * mask.sum((1, 2, 3, 4))), reached

    def descend(carried: tuple[Any, Any], key: Key) -> tuple[tuple[Any, Any], Array]:
        theta, optimizer_state = carried
        rows = as_float(images[jax.random.randint(key, (settings.batch_size,), 0, len(images))])
        gradient, reached = jax.grad(objective, has_aux=True)(theta, rows)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, theta)
        return (optax.apply_updates(theta, updates), optimizer_state), reached  # pyright: ignore[reportReturnType]

    keys = jax.random.split(key, settings.batches)
    (theta, optimizer_state), reached = jax.lax.scan(
        descend, (state.theta, state.optimizer_state), keys
    )
    rate = reached.mean(0)
    success = rate >= settings.threshold
    mask, pattern = _squashed(theta)
    norm = mask.sum((1, 2, 3))
    better = success & (norm < state.best_norm)
    taken = (better | (state.best_norm > mask[0].size))[:, None, None, None]
    state = CleanseState(
        theta,
        optimizer_state,
        next_costs(settings, state.schedule, success),
        jnp.where(taken, mask, state.best_mask),
        jnp.where(taken, pattern, state.best_pattern),
        jnp.where(better, norm, state.best_norm),
    )
    return state, {"success": rate.mean(), "norm": norm.mean()}


__all__ = [
    "OUTLIER",
    "CleanseSettings",
    "CleanseState",
    "CostSchedule",
    "ReversedTriggers",
    "anomaly_index",
    "neural_cleanse",
    "neural_cleanse_patching",
    "next_costs",
    "outliers",
    "reverse_triggers",
    "reversed_triggers",
    "trigger_reversal",
]
