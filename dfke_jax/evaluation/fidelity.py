"""How faithful a clone is to its victim, and how faithful it could be. On the host, in float64."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.evaluation.agreement import accuracy, agreement, total_variation
from dfke_jax.evaluation.summary import wilson_interval


def fidelity(
    victim_logits: Any, clone_logits: Any, labels: Any = None, *, confidence: float = 0.95
) -> dict[str, Any]:
    """How often and how closely a clone answers as its victim, and how often both are right.

    Args:
      victim_logits, clone_logits: scores (N, K); classes (N,) on either side, from an endpoint that
        gives labels alone, leave out the total variation.
      labels: the truth, integers (N,), if it is known.
      confidence: of the intervals.

    Returns:
      ``fidelity`` and ``fidelity_interval`` (Wilson); with scores on both sides
      ``total_variation``, the mean of ½ Σ_k |σ(v)_k − σ(s)_k|, and ``total_variation_interval``
      (bootstrap over samples); with labels ``accuracy``,
      ``accuracy_interval`` and ``victim_accuracy``. A clone may be more accurate than faithful:
        report both.

    Raises:
      InputError: for shapes that do not fit, no samples, or NaN.

    Source: Jagielski et al., High Accuracy and High Fidelity Extraction of Neural Networks, USENIX
    Security 2020, section 3; Tramèr et al., USENIX Security 2016, section 4 (total variation).
    """
    from scipy.special import softmax

    agreed = agreement(victim_logits, clone_logits)
    count = len(np.asarray(clone_logits))
    result: dict[str, Any] = {
        "fidelity": agreed,
        "fidelity_interval": wilson_interval(round(agreed * count), count, confidence),
    }
    if np.ndim(victim_logits) == np.ndim(clone_logits) == 2:
        result["total_variation"] = total_variation(victim_logits, clone_logits)
        victim, clone = (
            softmax(np.asarray(side, np.float64), -1) for side in (victim_logits, clone_logits)
        )
        distances = np.abs(victim - clone).sum(-1) / 2
        result["total_variation_interval"] = bootstrap_interval(distances, confidence)
    if labels is not None:
        right = accuracy(clone_logits, labels)
        result["accuracy"] = right
        result["accuracy_interval"] = wilson_interval(round(right * count), count, confidence)
        result["victim_accuracy"] = accuracy(victim_logits, labels)
    return result


def class_fidelity(
    victim_logits: Any, clone_logits: Any, num_classes: int | None = None
) -> np.ndarray:
    """Fidelity on the samples of each class of the victim's, (K,); NaN for a class that the victim
    never answers.

    Args:
      victim_logits, clone_logits: scores (N, K), or classes (N,).
      num_classes: K, where the victim's side is classes.

    Raises:
      InputError: for shapes that do not fit, no K, or classes outside it.
    """
    agreement(victim_logits, clone_logits)
    victim, clone = (
        side.argmax(-1) if side.ndim == 2 else side
        for side in (np.asarray(victim_logits), np.asarray(clone_logits))
    )
    classes = np.shape(victim_logits)[1] if np.ndim(victim_logits) == 2 else num_classes
    if classes is None:
        raise InputError("num_classes is needed where the victim's answers are labels")
    if victim.min() < 0 or victim.max() >= classes:
        raise InputError(
            f"the victim's classes must lie in [0, {classes}), got {victim.min()} to {victim.max()}"
        )
    counts = np.bincount(victim, minlength=classes)
    hits = np.bincount(victim[victim == clone], minlength=classes)
    return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)


def extraction_errors(
    victim: Callable[[np.ndarray], Any],
    clone: Callable[[np.ndarray], Any],
    test_rows: Any,
    uniform_rows: Any,
    *,
    price: float | None = None,
    queries: int | None = None,
) -> dict[str, float]:
    """The errors of an extracted model on the data and on all of the input space: R and R_TV of Tramèr et al.

    R is the share of rows on which the two classify differently, R_TV the mean of ½ Σ_k |p_k − p̂_k|.
    Uniform rows tell functional equivalence from fidelity: a clone may be faithful where the data
    are and nowhere else, and in many dimensions the reverse.

    Args:
      victim, clone: rows (N, ...) -> probabilities (N, K), classes (N,), or numbers (N, 1), of which R is
        the share that differ by more than 1e-6 of the victim's range.
      test_rows: of the victim's task. uniform_rows: drawn uniformly (`data.Schema.uniform`); 10,000
        give R to 1e-4 or so.
      price: of a thousand rows, in any currency, together with `queries`: adds ``cost``.

    Returns:
      ``r_test``, ``r_uniform``, with probabilities on both sides ``tv_test``, ``tv_uniform``, the means,
      and ``tv_largest`` over all rows.

    Raises:
      InputError: for answers of different shapes, not finite, or a price without queries.

    Source: Tramèr et al., USENIX Security 2016, section 4; Jagielski et al. 2020, section 3 (the taxonomy).
    """
    if (price is None) != (queries is None) or (
        price is not None and (price < 0 or (queries or 0) < 0)
    ):
        raise InputError(
            f"price and queries belong together and are at least 0, got {price} and {queries}"
        )
    result: dict[str, float] = {}
    largest = []
    for name, rows in (("test", test_rows), ("uniform", uniform_rows)):
        theirs, ours = (np.asarray(side(np.asarray(rows))) for side in (victim, clone))
        if (
            len(theirs) != len(rows)
            or len(ours) != len(rows)
            or not len(rows)
            or theirs.ndim > 2
            or ours.ndim > 2
        ):
            raise InputError(
                f"{len(rows)} {name} rows, answers of shape {theirs.shape} and {ours.shape}"
            )
        if not (np.isfinite(theirs).all() and np.isfinite(ours).all()):
            raise InputError(f"answers on {name} rows contain NaN or infinity")
        if theirs.shape[1:] == (1,):
            slack = 1e-6 * max(float(np.ptp(theirs)), np.finfo(np.float64).tiny)
            differ = np.abs(theirs.astype(np.float64) - ours.reshape(theirs.shape)) > slack
        else:
            differ = _classes(theirs) != _classes(ours)
        result[f"r_{name}"] = float(differ.mean())
        if theirs.ndim == ours.ndim == 2 and theirs.shape[1] > 1:
            apart = 0.5 * np.abs(theirs.astype(np.float64) - ours).sum(1)
            result[f"tv_{name}"] = float(apart.mean())
            largest.append(float(apart.max()))
    if largest:
        result["tv_largest"] = max(largest)
    if price is not None and queries is not None:
        result["cost"] = price * queries / 1000
    return result


def _classes(answers: np.ndarray) -> np.ndarray:
    return answers.argmax(1) if answers.ndim == 2 else answers


def self_fidelity(victims: Sequence[Any]) -> dict[str, Any]:
    """Fidelity between independently trained victims: what a clone that learnt the task perfectly
    could expect.

    Same architecture, data and recipe, another seed: the disagreement of such networks is what no
    amount of queries of the task removes by itself, and it belongs beside every fidelity.

    Args:
      victims: of each of M ≥ 2 victims the scores (N, K), or classes (N,), on the same samples.

    Returns:
      ``values`` (M(M−1)/2 pairs), ``mean``, ``low`` and ``high`` of the agreement; with scores the
      mean ``total_variation``. Pairs share victims, so their spread is no standard error.

    Raises:
      InputError: for fewer than two victims, or shapes that do not fit.

    Source: Jagielski et al. 2020, section 5 (limits of learning-based fidelity).
    """
    if len(victims) < 2:
        raise InputError(f"self-fidelity needs at least two victims, got {len(victims)}")
    pairs = list(combinations(victims, 2))
    values = [agreement(first, second) for first, second in pairs]
    result: dict[str, Any] = {
        "values": values,
        "mean": float(np.mean(values)),
        "low": min(values),
        "high": max(values),
    }
    if all(np.ndim(victim) == 2 for victim in victims):
        result["total_variation"] = float(
            np.mean([total_variation(first, second) for first, second in pairs])
        )
    return result


def bootstrap_interval(
    values: Any, confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent samples.

    Args:
      values: (N,), finite.
      confidence: in (0, 1).
      resamples: draws of N samples with replacement.
      seed: of the draws.

    Raises:
      InputError: for no values, others than finite ones, or numbers outside their range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise InputError(f"values must be (N,), finite and at least one, got shape {values.shape}")
    if not 0 < confidence < 1 or resamples < 1:
        raise InputError(
            f"confidence must lie in (0, 1) and resamples be at least 1, got {confidence}, "
            f"{resamples}"
        )
    rng = np.random.default_rng(seed)
    means = np.array(
        [values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


__all__ = ["bootstrap_interval", "class_fidelity", "extraction_errors", "fidelity", "self_fidelity"]
