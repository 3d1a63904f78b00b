"""How often, and how closely, classifiers answer alike. On the host, in float64."""

from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError


def accuracy(logits_or_labels: Any, labels: Any) -> float:
    """Fraction of samples whose predicted class is the label.

    Args:
      logits_or_labels: scores (N, K), whose largest counts (the first of several), or predicted
        classes (N,).
      labels: integers (N,).

    Raises:
      InputError: for other shapes, no samples, NaN, or labels outside [0, K).
    """
    predicted, truth = _classes(logits_or_labels, "predictions"), np.asarray(labels)
    if truth.ndim != 1 or not np.issubdtype(truth.dtype, np.integer):
        raise InputError(f"labels must be integers (N,), got {truth.dtype} {truth.shape}")
    _same_length(predicted, truth)
    classes = np.shape(logits_or_labels)[1] if np.ndim(logits_or_labels) == 2 else None
    if truth.min() < 0 or (classes is not None and truth.max() >= classes):
        raise InputError(
            f"labels must lie in [0, {classes or 'K'}), got {truth.min()} to {truth.max()}"
        )
    return float(np.mean(predicted == truth))


def class_accuracies(
    logits_or_labels: Any, labels: Any, num_classes: int | None = None
) -> np.ndarray:
    """Accuracy among the samples of each class: (K,) in [0, 1], NaN for a class without samples.

    Args:
      logits_or_labels, labels: as for `accuracy`.
      num_classes: K; by default the columns of the scores, or the largest class and one.

    Raises:
      InputError: as `accuracy`, and for labels or predictions of K or more.
    """
    accuracy(logits_or_labels, labels)
    predicted, truth = _classes(logits_or_labels, "predictions"), np.asarray(labels)
    known = (
        np.shape(logits_or_labels)[1]
        if np.ndim(logits_or_labels) == 2
        else 1 + max(predicted.max(), truth.max())
    )
    count = int(known if num_classes is None else num_classes)
    if max(predicted.max(), truth.max()) >= count:
        raise InputError(
            f"classes must lie in [0, {count}), got up to {max(predicted.max(), truth.max())}"
        )
    totals = np.bincount(truth, minlength=count)
    right = np.bincount(truth[predicted == truth], minlength=count)
    return np.divide(right, totals, out=np.full(count, np.nan), where=totals > 0)


def balanced_accuracy(logits_or_labels: Any, labels: Any) -> float:
    """Mean over the classes that occur of the accuracy among their samples, in [0, 1]: chance is
    1/K however unequal they are.

    Arguments and errors are those of `accuracy`.
    """
    return float(np.nanmean(class_accuracies(logits_or_labels, labels)))


def agreement(logits_a: Any, logits_b: Any) -> float:
    """Fraction of samples that two classifiers put into the same class (fidelity), right or wrong.

    Args:
      logits_a, logits_b: scores (N, K), or predicted classes (N,).

    Raises:
      InputError: for other or unequal shapes, no samples, or NaN.
    """
    if np.ndim(logits_a) == np.ndim(logits_b) == 2 and np.shape(logits_a) != np.shape(logits_b):
        raise InputError(
            f"the two sides differ in shape: {np.shape(logits_a)} and {np.shape(logits_b)}"
        )
    first, second = _classes(logits_a, "logits_a"), _classes(logits_b, "logits_b")
    _same_length(first, second)
    return float(np.mean(first == second))


def total_variation(logits_a: Any, logits_b: Any) -> float:
    """Mean over samples of ½ Σ_k |σ(a)_k − σ(b)_k|, in [0, 1]: 0 for equal answers, 1 for disjoint
    ones.

    Args:
      logits_a, logits_b: (N, K).

    Raises:
      InputError: for other or unequal shapes, no samples, or NaN.
    """
    first, second = _scores(logits_a, "logits_a"), _scores(logits_b, "logits_b")
    if first.shape != second.shape:
        raise InputError(f"the two sides differ in shape: {first.shape} and {second.shape}")
    return float(np.mean(np.abs(_softmax(first) - _softmax(second)).sum(-1) / 2))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _scores(values: Any, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or not values.size:
        raise InputError(f"{what} must be (N, K), got shape {values.shape}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(
            f"{what} contain NaN or infinity in {int((~np.isfinite(values)).any(-1).sum())} rows"
        )
    return values


def _classes(values: Any, what: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim == 2:
        return _scores(values, what).argmax(-1)
    if values.ndim != 1 or not values.size or not np.issubdtype(values.dtype, np.integer):
        raise InputError(
            f"{what} must be scores (N, K) or integer classes (N,), got {values.dtype} "
            f"{values.shape}"
        )
    return values


def _same_length(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise InputError(f"the two sides have {len(first)} and {len(second)} samples")


__all__ = ["accuracy", "agreement", "balanced_accuracy", "class_accuracies", "total_variation"]
