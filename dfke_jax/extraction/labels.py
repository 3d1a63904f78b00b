"""What attacks on labels share: reading them, pairs of rows with different ones, and bisection between them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Ask
from dfke_jax.data.schema import Schema

_FIRST, _DOUBLINGS = 32, 24


def read_labels(answers: Any, rows: int) -> np.ndarray:
    """(B,) whole numbers, from labels (B,) or from the largest of scores (B, K).

    Raises:
      InputError: for answers of another form.
    """
    answers = np.asarray(answers)
    if answers.ndim == 2 and answers.shape[1] > 1:
        answers = answers.argmax(1)
    if answers.shape != (rows,) or answers.dtype.kind not in "iub":
        raise InputError(
            f"asked {rows} rows for labels, got shape {answers.shape} of {answers.dtype}"
        )
    return answers.astype(np.int64)


def asking_labels(ask: Ask) -> Callable[[np.ndarray], np.ndarray]:
    """``labels(rows)`` from an `Ask`."""
    return lambda rows: read_labels(ask(rows), len(rows))


def two_sides(
    labels: Callable[[np.ndarray], np.ndarray],
    schema: Schema,
    rng: np.random.Generator,
    beyond: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both classes of a binary victim: (rows (n, D), labels (n,)).

    First uniform rows, then corners of the box, then, with `beyond`, corners of boxes 2, 4, ...
    times as large.

    Raises:
      InputError: where all of them have one label, or more than two turn up.
    """
    low, high = schema.box
    middle, half = (low + high) / 2, (high - low) / 2
    rows = schema.uniform(rng, _FIRST)
    found = labels(rows)
    for doubling in range(_DOUBLINGS if beyond else 6):
        if len(np.unique(found)) > 1:
            break
        size = 2.0 ** max(doubling - 1, 0) if beyond else 1.0
        more = middle + size * half * rng.choice([-1.0, 1.0], size=(_FIRST, schema.width))
        rows, found = np.concatenate([rows, more]), np.concatenate([found, labels(more)])
    seen = np.unique(found)
    if len(seen) < 2:
        raise InputError(
            f"all {len(rows)} rows have the label {int(seen[0])}: the model is constant here, or the endpoint "
            "clips rows or does not look at them; give rows of the other class, if there are any"
        )
    if len(seen) > 2:
        raise InputError(
            f"this attack is on two classes, and the labels {seen.tolist()} came back; use retraining"
        )
    return rows, found


def bisected(
    labels: Callable[[np.ndarray], np.ndarray],
    first: np.ndarray,
    second: np.ndarray,
    start: np.ndarray,
    steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Between rows `first`, of labels `start` (n,), and `second`, of others, points on either side of a boundary.

    Rows are (n, D). All n bisections go side by side, `steps` calls of n rows.

    Returns:
      (near, far), each (n, D), |near − far| = 2^-steps |first − second|; `near` has the label of
      `first`.
    """
    near, far = first.copy(), second.copy()
    for _ in range(steps):
        middle = (near + far) / 2
        same = (labels(middle) == start)[:, None]
        near, far = np.where(same, middle, near), np.where(same, far, middle)
    return near, far


__all__ = ["asking_labels", "bisected", "read_labels", "two_sides"]
