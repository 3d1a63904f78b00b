"""Ownership from trigger answers: ranked among clean networks, and how many queries a claim needs.

Triggers of entangled watermarks are not answered at random by networks that never saw them: images
from elsewhere often fall into one class, so that 1/K is wrong in both directions. The rate is
therefore measured, on networks of the same task. Triggers of one network fall together, so that a
test which takes every answer for a draw of its own accuses too often: what one network is worth is
one observation.
"""

from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.watermarking.evidence import rank_p_value
from dfke_jax.watermarking.verification import check_null_models


class OwnershipTest(NamedTuple):
    """What the answers to triggers say about a suspect.

    Attributes:
      success: share of triggers that the suspect answers with their label.
      false_rate: the same for clean networks, as measured.
      p_value: the larger of `p_values`.
      p_values: ``rank`` of the suspect among the clean networks, and ``fisher``, Fisher's exact
        test against all of their answers as if each were a draw of its own, which alone is too
        small.
      claimed: whether the p-value lies at or below the level asked for.
    """

    success: float
    false_rate: float
    p_value: float
    p_values: dict[str, float]
    claimed: bool


def ownership_test(
    matches: int, queries: int, null_matches: Any, alpha: float = 0.05
) -> OwnershipTest:
    """max{(1 + #{m_i ≥ m})/(M + 1), Fisher's test}: does the suspect answer more triggers with
    their label than clean networks do?

    The rank is exact if the suspect, without the mark, is one more like the clean networks.
    Fisher's test, conditional on the total of matches (hypergeometric), accounts for the error of
    the measured rate, but not for triggers that fall together; as the larger decides, it can only
    make a claim harder.

    Args:
      matches, queries: m of n, of the suspect.
      null_matches: (M,) m_i, of clean networks asked the same triggers, the suspect not among them.
        1/alpha − 1 at least.
      alpha: level of the claim.

    Raises:
      InputError: for counts that are no counts, a level outside (0, 1), or too few clean networks
        for it.
    """
    from scipy.stats import hypergeom

    null = np.asarray(null_matches)
    if null.ndim != 1 or not len(null):
        raise InputError(
            f"matches of clean networks are one count for each, (M,), got shape {null.shape}"
        )
    for hits, who in ((matches, "suspect"), *((hits, "clean networks") for hits in null)):
        if queries < 1 or not 0 <= hits <= queries or int(hits) != hits or int(queries) != queries:
            raise InputError(
                f"matches of the {who} must be whole and lie in [0, queries], got {hits} of "
                f"{queries}"
            )
    _probability("alpha", alpha)
    check_null_models(len(null), alpha)
    total, found = queries * (1 + len(null)), matches + int(null.sum())
    p_values = {
        "rank": rank_p_value(matches, null),
        "fisher": float(hypergeom.sf(matches - 1, total, found, queries)),
    }
    p_value = max(p_values.values())
    rate = float(null.sum() / (queries * len(null)))
    return OwnershipTest(matches / queries, rate, p_value, p_values, p_value <= alpha * (1 + 1e-9))


def claim_power(queries: int, p_null: float, p_marked: float, alpha: float = 0.05) -> float:
    """Probability that the exact binomial test on so many triggers claims a network that matches at
    rate `p_marked`.

    The test claims from c matches on, the least c with P(Bin(n, p_null) ≥ c) ≤ α; the power is
    P(Bin(n, p_marked) ≥ c).

    Args:
      queries: n ≥ 1. p_null, p_marked: in [0, 1]. alpha: α in (0, 1).
    """
    if queries < 1:
        raise InputError(f"queries must be at least 1, got {queries}")
    return float(_powers(np.array([queries]), p_null, p_marked, alpha)[0])


def queries_needed(
    p_null: float, p_marked: float, alpha: float = 0.05, power: float = 0.95, most: int = 10_000
) -> int | None:
    """The least number of triggers from which on the exact binomial test recognises a mark with the
    wished probability.

    Power rises in a sawtooth, because c is whole: a number that has it may be followed by one that
    has not. What is returned is followed by none, up to `most`. A trigger is one query.

    Args:
      p_null: how often an unmarked network gives a trigger's label: 1/K where labels were drawn at
        random, or measured; see `floored_rate` where no match was seen. p_marked: how often the
        marked one does, after whatever was done to it.
      alpha: level. power: wished probability of recognising the mark. most: the largest number
        considered.

    Returns:
      The number, or None where `most` do not suffice (as for a suspect that matches no more often
      than clean networks).

    Raises:
      InputError: for a level or a power outside (0, 1), or a rate outside [0, 1].
    """
    _probability("power", power)
    enough = _powers(np.arange(1, most + 1), p_null, p_marked, alpha) >= power
    lacking = np.flatnonzero(~enough)
    first = 0 if not len(lacking) else int(lacking[-1]) + 1
    return None if first == most else first + 1


def floored_rate(matches: int, queries: int) -> float:
    """A measured rate that is not smaller than one could have seen: (matches + 1)/(queries + 1)."""
    return (matches + 1) / (queries + 1)


def _powers(queries: np.ndarray, p_null: float, p_marked: float, alpha: float) -> np.ndarray:
    from scipy.stats import binom

    _probability("alpha", alpha)
    for name, value in (("p_null", p_null), ("p_marked", p_marked)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} must lie in [0, 1], got {value}")
    # isf gives the least c with P(X > c) ≤ α, so one more match is the least c with P(X ≥ c) ≤ α.
    # Rounding: 0.1⁶ in floating point is more than 10⁻⁶.
    critical = binom.isf(alpha * (1 + 1e-9), queries, p_null) + 1
    return binom.sf(critical - 1, queries, p_marked)


def _probability(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must lie in (0, 1), got {value}")


__all__ = ["OwnershipTest", "claim_power", "floored_rate", "ownership_test", "queries_needed"]
