"""Frontier stitching: adversarial points beside the boundary, half of them across it, stitched back
to their true labels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.evaluation import fgsm
from dfke_jax.nn.classifier import Classifier, as_float, check_labels
from dfke_jax.watermarking.commitments import MarkCommitment, mark_assumptions
from dfke_jax.watermarking.evidence import EXCHANGEABLE, answered, rank_p_value
from dfke_jax.watermarking.triggers import TriggerSet, trigger_set


class FrontierKeys(NamedTuple):
    """Key inputs of frontier stitching.

    Attributes:
      triggers: images moved by FGSM, with their *true* labels.
      crossed: (T,) bool: whether the unmarked network got the moved image wrong (a true adversary).
    """

    triggers: TriggerSet
    crossed: np.ndarray


def frontier_keys(
    key: Key,
    classifier: Classifier,
    images: Array,
    labels: Array,
    *,
    count: int = 100,
    epsilon: float = 0.1,
) -> FrontierKeys:
    """FGSM points of images that the network gets right: count/2 that it now gets wrong, count/2
    that it still gets right.

    Args:
      key: of the choice.
      classifier: the network that will be marked.
      images: (N, H, W, C), looked through in random order. labels: (N,).
      count: T, even.
      epsilon: ε of FGSM in pixel units; the paper's for MNIST is 0.25.

    Raises:
      InputError: for an odd count, or too few points of either kind, with the direction to move ε.

    Source: Le Merrer, Pérez and Trédan, Adversarial Frontier Stitching, 2017 (Neural Computing and
    Applications 2020), section 3. The label that is taught is the true one, for both halves.
    """
    if count < 2 or count % 2:
        raise InputError(f"count must be even and at least 2, got {count}")
    if not epsilon > 0:
        raise InputError(f"epsilon must be positive, got {epsilon}")
    check_labels(labels, len(images), classifier.num_classes, every_class=False)
    order, truth = np.asarray(jax.random.permutation(key, len(images))), np.asarray(labels)
    half = count // 2
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    rows: dict[bool, list[int]] = {True: [], False: []}
    for start in range(0, len(order), 1000):
        chosen = order[start : start + 1000]
        clean = as_float(jnp.asarray(images)[chosen])
        moved = np.asarray(fgsm(classifier, clean, jnp.asarray(truth[chosen]), epsilon))
        right = classifier.predict(np.asarray(clean)).argmax(1) == truth[chosen]
        wrong_now = classifier.predict(moved).argmax(1) != truth[chosen]
        for crossed in (True, False):
            places = np.flatnonzero(right & (wrong_now == crossed))[: half - len(rows[crossed])]
            found[crossed] += list(moved[places])
            rows[crossed] += list(chosen[places])
        if all(len(some) == half for some in rows.values()):
            break
    for crossed, what, remedy in (
        (True, "cross the boundary", "larger"),
        (False, "stay on their side", "smaller"),
    ):
        if len(rows[crossed]) < half:
            raise InputError(
                f"only {len(rows[crossed])} of {half} points {what} at epsilon {epsilon}; take a "
                f"{remedy} epsilon, more images or fewer keys"
            )
    together = np.stack([*found[True], *found[False]])
    own = truth[[*rows[True], *rows[False]]]
    triggers = trigger_set(
        jnp.asarray(together), jnp.asarray(own, jnp.int32), classifier.num_classes
    )
    return FrontierKeys(triggers, np.arange(count) < half)


def mismatch_threshold(size: int, alpha: float = 0.05) -> int:
    """θ, the largest with P(Bin(|K|, ½) < θ) < α: a network is claimed if it mismatches fewer than
    θ keys.

    Args:
      size: |K|. alpha: level.

    Returns:
      θ ≥ 1; for 100 keys at 0.05 it is 42.

    Raises:
      InputError: for so few keys that none could be claimed at that level.

    Source: Le Merrer et al. 2020, section 3.3.
    """
    from scipy.stats import binom

    if size < 1 or not 0 < alpha < 1:
        raise InputError(f"size >= 1 and alpha in (0, 1) are needed, got {size} and {alpha}")
    below = binom.cdf(np.arange(size + 1), size, 0.5)  # P(X ≤ i) = P(X < i + 1)
    threshold = int((below < alpha).sum())
    if not threshold:
        raise InputError(
            f"{size} keys cannot show anything at level {alpha}: even no mismatch has p = "
            f"{0.5**size:.3g}"
        )
    return threshold


_FAIR = (
    "innocent networks get every key right by a fair coin (the paper's null, which they do not "
    "follow)"
)


class FrontierVerdict(NamedTuple):
    """What the keys say of a suspect.

    Attributes:
      claimed: mismatches < threshold.
      mismatches: of size keys.
      threshold: θ.
      p_value: P(Bin(size, ½) ≤ mismatches), the paper's null: innocent networks get every key right
        by a fair coin. They do not: about half of the keys, those that never crossed, are easy, and
        adversarial points transfer less than fully.
      false_claim_rate: share of the given independent networks that the same rule claims; None
        without any.
      rank_p_value: among those, (1 + #{mismatch no more}) / (M + 1); None without any. Where it is
        given, it is what a claim may rest on: `claimed` and `p_value` are the paper's and accuse
        innocent networks.
      assumes: what has to be true for the p-values to mean what they say.
    """

    claimed: bool
    mismatches: int
    size: int
    threshold: int
    p_value: float
    false_claim_rate: float | None
    rank_p_value: float | None
    assumes: tuple[str, ...] = ()


def verify_frontier(
    suspect: Any,
    keys: FrontierKeys,
    *,
    alpha: float = 0.05,
    independents: Sequence[Any] = (),
    commitment: MarkCommitment | None = None,
) -> FrontierVerdict:
    """Counts mismatches with the true labels, beside those of independent networks.

    Args:
      suspect: a `Classifier`, an oracle, or a function images -> scores or labels.
      keys: of `frontier_keys`. alpha: level of θ. independents: unmarked networks of the same task.
      commitment: of `commit_mark`, published before; the verdict names it as missing otherwise.

    Raises:
      InputError: for keys that do not open the commitment.
    """
    from scipy.stats import binom

    assumes = (*mark_assumptions(keys, commitment), EXCHANGEABLE if len(independents) else _FAIR)
    labels = np.asarray(keys.triggers.labels)
    threshold = mismatch_threshold(len(labels), alpha)
    misses, *others = (
        int((answered(one, keys.triggers.images) != labels).sum())
        for one in (suspect, *independents)
    )
    return FrontierVerdict(
        misses < threshold,
        misses,
        len(labels),
        threshold,
        float(binom.cdf(misses, len(labels), 0.5)),
        float(np.mean(np.array(others) < threshold)) if others else None,
        rank_p_value(-misses, -np.array(others)) if others else None,
        assumes,
    )


__all__ = [
    "FrontierKeys",
    "FrontierVerdict",
    "frontier_keys",
    "mismatch_threshold",
    "verify_frontier",
]
