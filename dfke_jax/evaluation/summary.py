"""Numbers over seeds, with their spread."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError


def summarise(values: Iterable[float]) -> dict[str, Any]:
    """Mean and spread of one metric over seeds.

    Returns:
      ``values`` as given, ``mean``, ``std`` (of a sample, with n − 1; None for a single value,
      which has no spread), and ``n``; plain Python numbers, ready for JSON.

    Raises:
      InputError: for no values, or NaN or infinity among them.
    """
    numbers = [float(value) for value in values]
    if not numbers:
        raise InputError("there are no values to summarise")
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"values must be finite, got {numbers}")
    std = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
    return {"values": numbers, "mean": float(np.mean(numbers)), "std": std, "n": len(numbers)}


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion.

    (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n), where z is the normal quantile of (1 +
    confidence)/2.

    Args:
      successes: between 0 and `n`.
      n: trials, at least 1.
      confidence: in (0, 1).

    Returns:
      (low, high) within [0, 1].

    Raises:
      InputError: for counts or a confidence outside these ranges.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n or int(n) != n or int(successes) != successes:
        raise InputError(
            f"successes must be whole and lie in [0, n] with n ≥ 1, got {successes} of {n}"
        )
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie in (0, 1), got {confidence}")
    found = binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


__all__ = ["summarise", "wilson_interval"]
