"""Ownership from trigger answers: an exact test against the rate at which clean networks give them, and how many queries it needs.

Triggers of entangled watermarks are not answered at random by networks that never saw them: images from elsewhere often
fall into one class, so that 1/K is wrong in both directions. The rate is therefore measured, on networks of the same task.
"""

from typing import NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError


class OwnershipTest(NamedTuple):
    """What the answers to triggers say about a suspect.

    Attributes:
      success: share of triggers that the suspect answers with their label.
      false_rate: the same for clean networks, as measured.
      p_value: exact and one-sided, of a success this large from a clean network.
      claimed: whether it lies at or below the level asked for.
    """

    success: float
    false_rate: float
    p_value: float
    claimed: bool


def ownership_test(
    matches: int, queries: int, null_matches: int, null_queries: int, alpha: float = 0.05
) -> OwnershipTest:
    """Fisher's exact test: does the suspect answer more triggers with their label than clean networks do?

    Conditional on the total of matches, those of the suspect are hypergeometric if both rates are equal; the p-value is
    the probability of as many or more. Unlike a binomial test against the measured rate it accounts for the error of that
    measurement, which matters where no match was seen.

    Args:
      matches, queries: of the suspect.
      null_matches, null_queries: of clean networks, summed over them. Clean networks differ from one another; to be on
        the safe side give the counts of the one that matched most.
      alpha: level of the claim.

    Raises:
      InputError: for counts that are no counts, or a level outside (0, 1).
    """
    from scipy.stats import hypergeom

    for hits, asked, who in ((matches, queries, "suspect"), (null_matches, null_queries, "clean networks")):
        if asked < 1 or not 0 <= hits <= asked or int(hits) != hits or int(asked) != asked:
            raise InputError(f"matches of the {who} must be whole and lie in [0, queries], got {hits} of {asked}")
    _probability("alpha", alpha)
    total, found = queries + null_queries, matches + null_matches
    p_value = float(hypergeom.sf(matches - 1, total, found, queries))
    return OwnershipTest(matches / queries, null_matches / null_queries, p_value, p_value <= alpha)


def claim_power(queries: int, p_null: float, p_marked: float, alpha: float = 0.05) -> float:
    """Probability that the exact binomial test on so many triggers claims a network that matches at rate `p_marked`.

    The test claims from c matches on, the least c with P(Bin(n, p_null) ≥ c) ≤ α; the power is P(Bin(n, p_marked) ≥ c).

    Args:
      queries: n ≥ 1. p_null, p_marked: in [0, 1]. alpha: α in (0, 1).
    """
    if queries < 1:
        raise InputError(f"queries must be at least 1, got {queries}")
    return float(_powers(np.array([queries]), p_null, p_marked, alpha)[0])


def queries_needed(
    p_null: float, p_marked: float, alpha: float = 0.05, power: float = 0.95, most: int = 10_000
) -> int | None:
    """The least number of triggers from which on the exact binomial test recognises a mark with the wished probability.

    Power rises in a sawtooth, because c is whole: a number that has it may be followed by one that has not. What is
    returned is followed by none, up to `most`. A trigger is one query.

    Args:
      p_null: how often an unmarked network gives a trigger's label: 1/K where labels were drawn at random, or measured; see
        `floored_rate` where no match was seen. p_marked: how often the marked one does, after whatever was done to it.
      alpha: level. power: wished probability of recognising the mark. most: the largest number considered.

    Returns:
      The number, or None where `most` do not suffice (as for a suspect that matches no more often than clean networks).

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
