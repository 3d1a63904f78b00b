"""What an extraction reached: accuracy, fidelity, functional equivalence. On the host, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.evaluation.agreement import accuracy, agreement, total_variation

Answer = Callable[[np.ndarray], Any]


def taxonomy(
    victim: Answer,
    clone: Answer,
    rows: Any,
    uniform_rows: Any,
    labels: Any = None,
    *,
    tolerance: float = 1e-3,
) -> dict[str, Any]:
    """The aims of an extraction as figures, from the weakest to the strongest.

    - task accuracy: P_{(x, y)}[argmax f̂(x) = y];
    - fidelity: P_x[argmax f̂(x) = argmax f(x)] over the task's x, whether right or wrong;
    - functional equivalence: f̂(x) = f(x) for every x. No sample shows that it holds; a sample can
      show that it does not. The largest difference max |f̂ − f| of logits less their mean over the
      classes, over the task's x and over x anywhere in the box, is a lower bound of what holds
      everywhere.

    Exact extraction, the same weights, cannot be had from answers: neurons may change places and
    scales.

    Args:
      victim, clone: rows (N, ...) -> logits (N, K).
      rows: of the task. uniform_rows: drawn over all of the input space.
      labels: the truth for `rows`, integers (N,), if known.
      tolerance: up to which logits count as equal.

    Returns:
      ``fidelity`` and ``fidelity_uniform``; ``total_variation`` over `rows`; ``largest_error`` over
      both; ``equivalent``, whether that is within the tolerance; with labels ``accuracy`` and
      ``victim_accuracy``.

    Raises:
      InputError: for shapes that do not fit, no rows, NaN, or a negative tolerance.

    Source: Jagielski et al., USENIX Security 2020, section 3.
    """
    if not tolerance >= 0:
        raise InputError(f"tolerance must not be negative, got {tolerance}")
    result: dict[str, Any] = {}
    largest = 0.0
    for name, where in (("fidelity", rows), ("fidelity_uniform", uniform_rows)):
        where = np.asarray(where)
        theirs, ours = (np.asarray(side(where), np.float64) for side in (victim, clone))
        if theirs.ndim != 2 or theirs.shape != ours.shape or len(theirs) != len(where):
            raise InputError(
                f"{len(where)} rows need logits (N, K) from both sides, got shapes {theirs.shape} "
                f"and {ours.shape}"
            )
        result[name] = agreement(theirs, ours)
        apart = theirs - ours
        largest = max(largest, float(np.abs(apart - apart.mean(1, keepdims=True)).max()))
        if name == "fidelity":
            result["total_variation"] = total_variation(theirs, ours)
            if labels is not None:
                result["accuracy"] = accuracy(ours, labels)
                result["victim_accuracy"] = accuracy(theirs, labels)
    return {**result, "largest_error": largest, "equivalent": largest <= tolerance}


__all__ = ["taxonomy"]
