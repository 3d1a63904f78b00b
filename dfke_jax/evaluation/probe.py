"""What a linear map can read out of representations. On the host, in float64."""

from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.nn.classifier import check_labels


def linear_probe(
    representations: Any, labels: Any, tested: Any, tested_labels: Any, *, ridge: float = 1e-2
) -> float:
    """Fraction of tested rows that a linear map of their representations puts into the right class.

    W = argmin_W ‖Y − Z·W‖² / N + λ ‖W‖² with an intercept that λ spares; Z are the rows, each
    column centred and divided by its deviation, and Y the one-hot labels. The largest of the K
    outputs counts. Closed form, so nothing is left to an optimiser.

    Args:
      representations, labels: (N, D) and integers (N,), to learn the map from.
      tested, tested_labels: (T, D) and (T,), to measure it on.
      ridge: λ ≥ 0.

    Raises:
      InputError: shapes that do not belong together, NaN, or labels that are no labels.

    Deviation: ridge regression, where the literature's probe is logistic regression.
    """
    rows, others = (np.asarray(part, np.float64) for part in (representations, tested))
    if (
        rows.ndim != 2
        or others.ndim != 2
        or rows.shape[1] != others.shape[1]
        or not len(rows)
        or not len(others)
    ):
        raise InputError(
            f"representations must be (N, D) and (T, D), got {rows.shape} and {others.shape}"
        )
    if not (np.isfinite(rows).all() and np.isfinite(others).all()):
        raise InputError("representations contain NaN or infinity")
    if not ridge >= 0:
        raise InputError(f"ridge must not be negative, got {ridge}")
    labels, truth = np.asarray(labels), np.asarray(tested_labels)
    classes = max(int(np.max(part, initial=0)) + 1 for part in (labels, truth))
    check_labels(labels, len(rows), classes, every_class=False)
    check_labels(truth, len(others), classes, "tested_labels", every_class=False)
    mean, deviation = rows.mean(0), rows.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    z = (rows - mean) / scale
    wanted = np.eye(classes)[labels]
    share = wanted.mean(0)
    gram = z.T @ z / len(z) + ridge * np.eye(z.shape[1])
    moment = z.T @ (wanted - share) / len(z)
    weights = np.linalg.solve(gram, moment) if ridge else np.linalg.lstsq(gram, moment)[0]
    predicted = (((others - mean) / scale) @ weights + share).argmax(1)
    return float(np.mean(predicted == truth))


__all__ = ["linear_probe"]
