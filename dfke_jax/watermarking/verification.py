"""Verifying a claim: do the commitments open, are the labels wrong, and how many of them does the
suspect give?
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.oracle.frameworks import as_host_victim
from dfke_jax.watermarking.evidence import binomial_evidence, rank_p_value
from dfke_jax.watermarking.keys import MarkingKey, VerificationKey, rejected_pairs
from dfke_jax.watermarking.null_models import models_of, stacked_answers
from dfke_jax.watermarking.triggers import TriggerSet


def binomial_p_value(matches: int, triggers: int, chance: float) -> float:
    """P(X ≥ matches) for X ~ Bin(triggers, chance), exactly.

    Where labels were drawn uniformly after the suspect was fixed, or without regard to it, an
    unmarked suspect matches a trigger with probability at most `chance`, independently, *whatever*
    it answers.

    Raises:
      InputError: for matches outside [0, triggers], or a chance outside (0, 1).
    """
    _check_chance(chance, "chance")
    if triggers < 1 or not 0 <= matches <= triggers:
        raise InputError(f"{matches} matches of {triggers} triggers")
    return binomial_evidence(matches, triggers, chance).p_value


def empirical_p_value(matches: int, null: Any) -> float:
    """(1 + #{null ≥ matches})/(M + 1) over the matches of M independent models; valid if an
    innocent suspect is one more.

    Raises:
      InputError: for no models.
    """
    null = np.asarray(null)
    if null.ndim != 1 or not len(null):
        raise InputError(f"matches of null models are (M,) with M >= 1, got shape {null.shape}")
    return rank_p_value(matches, null)


def matches_needed(triggers: int, chance: float, alpha: float) -> int:
    """The least number of matches with a binomial p-value of at most alpha: 16 of 100 at chance 0.1
    and alpha 0.05.

    Returns:
      A number in [0, triggers + 1]; triggers + 1 means that no number of matches is enough.
    """
    _check_chance(alpha, "alpha")
    low, high = 0, triggers + 1  # p falls with matches
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (low, middle)
            if _reaches(binomial_p_value(middle, triggers, chance), alpha)
            else (middle + 1, high)
        )
    return low


def null_matches(triggers: TriggerSet, classifiers: Classifier) -> np.ndarray:
    """How many triggers each of M classifiers answers with the trigger's label: (M,) int.

    Args:
      triggers: the trigger set.
      classifiers: stacked, from `null_population`.
    """
    return np.asarray(stacked_answers(classifiers, triggers.images) == triggers.labels[None]).sum(1)


class Null(NamedTuple):
    """What independent models answer.

    Attributes:
      models: how many there are. rate: their mean rate of matches. most: matches of the one with
        most.
      accuracy, lowest: share of the task's images that they answer rightly: in the mean, and of the
        worst.
      suspect: the same of the suspect. images: of how many.
    """

    models: int
    rate: float
    most: int
    accuracy: float
    lowest: float
    suspect: float
    images: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What can be said about a suspect.

    Attributes:
      accepted: the scheme's own rule: all commitments open, no label is the true one, and at most
        ε·T mismatches; and, where there are null models, an ``empirical`` p-value of at most alpha:
        what innocent models answer too is nobody's mark.
      marked: the same conditions on the key, and `p_value` at most alpha. False means not shown,
        never innocent.
      p_value: the largest of `p_values`; 1 where the key was refused.
      p_values: ``binomial``, and ``empirical`` if there are null models.
      alpha, epsilon: of the two rules.
      matches, triggers: how many of how many asked.
      needed: matches at which the binomial p-value falls to alpha.
      chance: probability of a match that the binomial test grants an unmarked model.
      null: what the null models do; None without any, or for a key that was refused.
      queries: rows that were sent to the suspect.
      rejected: indices of pairs that do not open their commitments. true_labels: of pairs whose
        label is the true one.
      published, owner: date and owner of the verification key, as it states them. fingerprint: of
        that key.
      assumptions: what has to be true for the p-value to mean what it says.
    """

    accepted: bool
    marked: bool
    p_value: float
    p_values: dict[str, float]
    alpha: float
    epsilon: float
    matches: int
    triggers: int
    needed: int
    chance: float
    null: Null | None
    queries: int
    rejected: tuple[int, ...]
    true_labels: tuple[int, ...]
    published: str
    owner: str | None
    fingerprint: str
    assumptions: tuple[str, ...]

    def __str__(self) -> str:
        if self.rejected or self.true_labels:
            reasons = [
                f"{len(found)} pairs {what} (first: pair {found[0]})"
                for found, what in (
                    (
                        self.rejected,
                        "do not open their commitments, or carry a label that their beacon did not "
                        "draw",
                    ),
                    (self.true_labels, "carry the true label"),
                )
                if found
            ]
            return f"key refused, nothing was asked: {'; '.join(reasons)}"
        lines = [
            f"{'marked' if self.marked else 'not shown'}: {self.matches} of {self.triggers} "
            f"triggers match, {self.needed} are needed at alpha = {self.alpha:g}; p = "
            f"{self.p_value:.3g}",
            f"scheme's rule (at most {self.epsilon:g} of the triggers missed): "
            f"{'accepted' if self.accepted else 'refused'}; {self.queries} queries",
            *(f"p-value, {name}: {value:.3g}" for name, value in self.p_values.items()),
        ]
        if self.null is not None:
            null = self.null
            lines += [
                f"{null.models} independent models match {null.rate:.1%} of the triggers, "
                f"{null.most} at most",
                f"accuracy on {null.images} images of the task: suspect {null.suspect:.1%}, "
                f"independent models {null.accuracy:.1%} (lowest {null.lowest:.1%})",
            ]
        whose = "" if self.owner is None else f" of {self.owner}"
        lines.append(
            f"key {self.fingerprint[:16]}…{whose}, published {self.published} by its owner's "
            "account"
        )
        return "\n".join([*lines, *(f"assumes: {text}" for text in self.assumptions)])


def verify(
    marking_key: MarkingKey,
    verification_key: VerificationKey,
    suspect: Callable[[Any], Any],
    *,
    truth: Any = None,
    pairs: Sequence[int] | None = None,
    alpha: float = 0.01,
    epsilon: float = 0.1,
    chance: float | None = None,
    null: Classifier | None = None,
    task: tuple[Any, Any] | None = None,
    near: float = 0.05,
    fingerprint: str | None = None,
) -> Verdict:
    """Verify: opens the commitments, checks that labels are wrong, asks the suspect, and judges the
    number of matches.

    The key is checked first; one that is refused costs no query. The triggers are revealed by this
    (to the judge, and to whoever sees the queries), so that a key serves once: it is not a
    zero-knowledge proof.

    Args:
      marking_key: mk, revealed. verification_key: vk, published before.
      suspect: anything that takes rows (T, H, W, C) in [0, 1] and returns labels (T,) or scores (T,
        K): a `Classifier`, an `Oracle`, a host victim, a `Metered` or `RemoteVictim`, a function;
        or a PyTorch module or scikit-learn estimator, as of `oracle_for`. Labels are all that is
        used.
      truth: (N,) true labels over all pairs of the key, -1 where an image has none (the default).
      pairs: indices of the pairs to use, such as `Audit.hidden`; all by default. All commitments
        are opened anyway.
      alpha: level of the test.
      epsilon: share of the triggers that the scheme's rule lets a marked network miss.
      chance: probability of a match by an unmarked model; by default 1/K, or 1/(K − 1) where the
        truth of any image used is given. No unmarked model exceeds it if labels were drawn by
        `keygen` with the truth that is given here; a key that was drawn with truth and is judged
        without it needs ``chance=1/(K − 1)``.
      null: stacked independent clean models (`null_population`). They keep an owner from choosing
        labels that any model gives, or from moving images to where any model gives their labels
        (adversarial examples move from network to network); with them the larger p-value decides.
      task: (images (N, H, W, C), labels (N,)) of the task that none was trained on, needed with
        `null`: models that have not learnt it answer no adversarial trigger and are no null. The
        suspect is asked these images as well.
      near: how far the accuracy of the null models, in the mean and of the worst, may lie from the
        suspect's: the mean within `near` either way, the worst no more than twice that below.
      fingerprint: of the verification key, as it was published; binds its date, owner and the key
        that it follows.

    Returns:
      A `Verdict`.

    Raises:
      InputError: too few triggers or null models for alpha to be reached, null models that are
        none, another fingerprint, arguments that do not fit, or a suspect of other images or
        classes, or that answers with something else than labels or scores.

    Source: Adi et al. 2018, section 4 (Verify). Added: the tests; the paper's rule alone says
    nothing of false claims.
    """
    count, classes = len(marking_key), marking_key.num_classes
    _check_chance(alpha, "alpha")
    if fingerprint is not None and fingerprint != verification_key.fingerprint:
        raise InputError(
            f"the verification key has the fingerprint {verification_key.fingerprint}, not the "
            "published one; its date, owner, predecessor or commitments are others"
        )
    if not 0 <= epsilon < 1:
        raise InputError(f"epsilon must lie in [0, 1), got {epsilon}")
    used = np.arange(count) if pairs is None else np.asarray(pairs)
    if used.dtype.kind not in "iu" or not used.size or len(set(used.tolist())) != used.size:
        raise InputError("pairs must be different indices, at least one")
    if used.min() < 0 or used.max() >= count:
        raise InputError(f"pairs run from {used.min()} to {used.max()}, the key has {count}")
    truths = np.full(count, -1) if truth is None else np.asarray(truth)
    if truths.shape != (count,) or truths.dtype.kind not in "iu":
        raise InputError(
            f"truth must be {count} integers, one for each pair, got {truths.dtype} {truths.shape}"
        )
    beacon = verification_key.beacon is not None
    if beacon and (truths[used] >= 0).any():
        raise InputError(
            "labels that a beacon drew are drawn from all classes; there is no truth to hold them "
            "against"
        )
    if chance is None:
        chance = 1 / (classes - 1) if classes > 2 and (truths[used] >= 0).any() else 1 / classes
        if classes == 2 and (truths[used] >= 0).any():
            raise InputError(
                "of two classes one is wrong: every mistake is a match; state the chance of one"
            )
    _check_chance(chance, "chance")
    needed = matches_needed(used.size, chance, alpha)
    if needed > used.size:
        least = next(
            n for n in itertools.count(used.size + 1) if matches_needed(n, chance, alpha) <= n
        )
        raise InputError(
            f"too few triggers for the asked confidence: {used.size} cannot give p <= {alpha:g} "
            f"even if all match, need at least {least}"
        )
    if null is not None:
        check_null_models(models_of(null), alpha)
        _check_chance(near, "near")
        if task is None:
            raise InputError(
                "null models are held against images of the task that they have not seen; give "
                "task="
            )
    check_suspect(suspect, marking_key.images.shape[1:], classes)

    rejected = rejected_pairs(marking_key, verification_key)
    true_labels = tuple(np.flatnonzero(truths == marking_key.labels).tolist())
    sound = not rejected and not true_labels
    found_null = None
    matches = queries = 0
    p_values: dict[str, float] = {}
    if sound:
        known = None if null is None or task is None else accuracies(suspect, null, *task, classes)
        if known is not None:
            check_near(known, near)
            queries = known.images
        answers = answered_labels(suspect, marking_key.images[used], classes)
        matches = int((answers == marking_key.labels[used]).sum())
        p_values["binomial"] = binomial_p_value(matches, used.size, chance)
        queries += used.size
        if null is not None and known is not None:
            triggers = TriggerSet(
                marking_key.triggers.images[used], marking_key.triggers.labels[used]
            )
            found = null_matches(triggers, null)
            p_values["empirical"] = empirical_p_value(matches, found)
            found_null = Null(len(found), float(found.mean() / used.size), int(found.max()), *known)
    p_value = max(p_values.values(), default=1.0)
    return Verdict(
        accepted=sound
        and used.size - matches <= epsilon * used.size + 1e-9
        and _reaches(p_values.get("empirical", 0.0), alpha),
        marked=sound and _reaches(p_value, alpha),
        p_value=p_value,
        p_values=p_values,
        alpha=alpha,
        epsilon=epsilon,
        matches=matches,
        triggers=used.size,
        needed=needed,
        chance=chance,
        null=found_null,
        queries=queries,
        rejected=rejected,
        true_labels=true_labels,
        published=verification_key.created,
        owner=verification_key.owner,
        fingerprint=verification_key.fingerprint,
        assumptions=_assumptions(
            null is not None, truth is not None, verification_key, fingerprint is not None
        ),
    )


class Accuracies(NamedTuple):
    """Shares of the task's images answered rightly: by null models in the mean, by the worst of
    them, by the suspect.
    """

    accuracy: float
    lowest: float
    suspect: float
    images: int


def accuracies(
    suspect: Callable[[Any], Any], null: Classifier, images: Any, labels: Any, num_classes: int
) -> Accuracies:
    """Asks a suspect and null models images of the task.

    Args:
      suspect, null: as for `verify`. images: (N, H, W, C), uint8 or in [0, 1]. labels: (N,).
        num_classes: K.

    Raises:
      InputError: for no images, or labels that do not fit.
    """
    pixels, truth = np.asarray(images), np.asarray(labels)
    if (
        pixels.ndim != 4
        or not len(pixels)
        or truth.shape != pixels.shape[:1]
        or truth.dtype.kind not in "iu"
    ):
        raise InputError(
            f"task is images (N, H, W, C) and N labels, got shapes {pixels.shape} and {truth.shape}"
        )
    of_null = (
        np.asarray(stacked_answers(null, as_float(jnp.asarray(pixels)))) == truth[None]
    ).mean(1)
    of_suspect = (answered_labels(suspect, pixels, num_classes) == truth).mean()
    return Accuracies(float(of_null.mean()), float(of_null.min()), float(of_suspect), len(pixels))


def check_near(known: Accuracies, near: float) -> None:
    """Checks that null models are models of the suspect's task, about as good as it is.

    Raises:
      InputError: where they are not; the message says in which direction to change them.
    """
    below, worst = known.suspect - known.accuracy, known.suspect - known.lowest
    if max(abs(below), worst / 2) > near + 1e-9:
        remedy = (
            "train them longer"
            if max(below, worst / 2) > near
            else "take models that are no better than the suspect"
        )
        raise InputError(
            f"the null models are none for this suspect: they answer {known.accuracy:.1%} of the "
            f"task's images rightly (lowest {known.lowest:.1%}), the suspect {known.suspect:.1%}, "
            f"and at most {near:.1%} may lie between (twice that below for the lowest); {remedy}"
        )


def null_models_needed(alpha: float) -> int:
    """The least M with 1/(M + 1) ≤ alpha: 99 at 0.01.

    Raises:
      InputError: for a level outside (0, 1).
    """
    _check_chance(alpha, "alpha")
    return max(1, math.ceil(1 / alpha - 1e-9) - 1)


def check_null_models(models: int, alpha: float) -> None:
    """Checks that so many null models can give a p-value of alpha.

    Raises:
      InputError: too few; the message says how many are needed.
    """
    _check_chance(alpha, "alpha")
    if not _reaches(1 / (models + 1), alpha):
        raise InputError(
            f"too few null models for the asked confidence: {models} cannot give p <= {alpha:g}, "
            f"need at least {null_models_needed(alpha)}"
        )


def check_suspect(suspect: Any, shape: tuple[int, ...], num_classes: int) -> None:
    """Checks what a suspect says of itself, before anything is asked.

    Raises:
      InputError: for other images, classes or pixel values than the key's.
    """
    about = getattr(suspect, "oracle", suspect)  # a `Metered` stands before its victim
    said = getattr(about, "input_shape", None)
    if said is not None and tuple(said) != tuple(shape):
        raise InputError(f"the suspect takes images of {tuple(said)}, the key's are {tuple(shape)}")
    classes = getattr(about, "num_classes", None)
    if classes is not None and classes != num_classes:
        raise InputError(f"the suspect knows {classes} classes, the key is for {num_classes}")
    box = getattr(getattr(about, "preprocessing", about), "box", None)
    if box is not None and tuple(box) != (0.0, 1.0):
        raise InputError(
            f"the suspect's pixels lie in {tuple(box)}, triggers in (0, 1); wrap it in a function "
            "that maps them"
        )


def answered_labels(
    suspect: Callable[[Any], Any], images: np.ndarray, num_classes: int
) -> np.ndarray:
    """(T,) labels of a suspect for images (T, H, W, C), uint8 or in [0, 1]; it sees floats in [0,
    1].

    Raises:
      InputError: where it answers with something else than labels (T,) or scores (T, K).
    """
    suspect = as_host_victim(suspect, images.shape[1:], num_classes) or suspect
    about = getattr(suspect, "oracle", suspect)
    precision = np.float64 if getattr(about, "dtype", None) == "float64" else np.float32
    rows = (
        images.astype(precision) / precision(255)
        if images.dtype == np.uint8
        else images.astype(precision)
    )
    # a callable pytree: `Classifier`, `Oracle`, `Partial`
    traced = not jax.tree_util.all_leaves([suspect])
    answers = np.asarray(_asked(suspect, rows) if traced else suspect(rows))
    if answers.ndim == 1 and answers.dtype.kind in "iu":
        labels = answers
    elif answers.ndim == 2 and answers.shape[1] == num_classes and answers.dtype.kind in "iuf":
        if not np.isfinite(answers).all():
            raise InputError("the suspect answers NaN or infinity")
        labels = answers.argmax(1)
    else:
        raise InputError(
            f"a suspect answers {len(images)} rows with integer labels ({len(images)},) or scores "
            f"({len(images)}, {num_classes}), got {answers.dtype} of shape {answers.shape}"
        )
    if len(labels) != len(images):
        raise InputError(f"{len(images)} rows were asked and {len(labels)} answers came back")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"labels must lie in [0, {num_classes}), got {labels.min()} to {labels.max()}"
        )
    return labels


@jax.jit
def _asked(suspect: Callable[[Any], Any], rows: Any) -> Any:
    return suspect(rows)


def _reaches(p_value: float, alpha: float) -> bool:
    return p_value <= alpha * (1 + 1e-9)  # rounding: 0.1⁶ in floating point is more than 10⁻⁶


def _check_chance(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must lie in (0, 1), got {value}")


def _assumptions(
    empirical: bool, truth: bool, key: VerificationKey, bound: bool
) -> tuple[str, ...]:
    first = (
        "this fingerprint was published before the suspect was, and no earlier key claims it"
        if bound
        else "the verification key was published before the suspect was, and no earlier key claims "
        "it; its date, owner and predecessor are its own word: no published fingerprint was given"
    )
    if key.beacon is not None:
        return (
            first,
            f"the images' commitments (root {key.image_root.hex()}) were public before the beacon "
            f"{key.beacon[:16]}… was, and no other first keys were to choose from",
        )
    found = [
        first,
        "labels were drawn at random, as keygen does; nobody has chosen them to be what models "
        "answer",
        "triggers are not adversarial: nobody has moved the images to where networks of this task "
        "answer their labels. Nothing here would notice; null models would",
    ]
    if empirical:
        found[1:] = [
            "labels were drawn at random and triggers are not adversarial; or else the null models "
            "answer the triggers as an innocent suspect would (same task, kind of network and "
            "accuracy)"
        ]
    if not truth:
        found.append("no trigger shows something whose true label it carries (no truth was given)")
    return tuple(found)


__all__ = [
    "Accuracies",
    "Null",
    "Verdict",
    "accuracies",
    "answered_labels",
    "binomial_p_value",
    "check_near",
    "check_null_models",
    "empirical_p_value",
    "matches_needed",
    "null_matches",
    "null_models_needed",
    "verify",
]
