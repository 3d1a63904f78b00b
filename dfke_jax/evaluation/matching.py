"""How like found rows are to the rows that they stand for."""

from typing import Any

import numpy as np
import scipy.optimize


def row_correlation(first: Any, second: Any) -> float:
    """Pearson's correlation of two rows (D,), in [−1, 1]; 0 where one of them is constant."""
    first, second = (np.asarray(row, np.float64) - np.mean(row) for row in (first, second))
    size = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / size) if size else 0.0


def matched_rows(found: Any, kept: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which found row is which kept one, at the least sum of Euclidean distances.

    Args:
      found: (N, D). kept: (M, D).

    Returns:
      (places, correlations), each (M,): for every kept row the place of its partner in `found`, −1
      where there are fewer found than kept; and their `row_correlation`, 0 without a partner.
    """
    found, kept = np.asarray(found, np.float64), np.asarray(kept, np.float64)
    apart = np.linalg.norm(found[:, None] - kept[None], axis=-1)
    places, correlations = np.full(len(kept), -1), np.zeros(len(kept))
    for i, j in zip(*scipy.optimize.linear_sum_assignment(apart), strict=True):
        places[j], correlations[j] = i, row_correlation(found[i], kept[j])
    return places, correlations


__all__ = ["matched_rows", "row_correlation"]
