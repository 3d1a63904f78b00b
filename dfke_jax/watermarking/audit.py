"""Cut and choose: a random half of the committed pairs is opened, and vouches for the half that
stays hidden.

An owner who labels triggers truly would find them "answered" by every good model. He commits to
twice the pairs that he needs, is told at random which half to open, and everybody can see that no
opened label is the true one.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.watermarking.commitments import Opening, framed
from dfke_jax.watermarking.keys import VerificationKey

_DOMAIN = b"dfke_jax/backdoor-watermark/challenge/v1"


class Audit(NamedTuple):
    """What the opened half shows.

    Attributes:
      passed: every challenged pair was opened, opens its commitments and is wrongly labelled.
      hidden: indices of the pairs that stay secret; `verify(..., pairs=hidden)` uses them alone.
      not_opening: challenged pairs that were not opened, or do not open their commitments.
      true_labels: opened pairs whose label is the true one.
      undetected: so many of all pairs could carry true labels at most, unless something of a
        probability below `1 − confidence` has happened.
      confidence: of `undetected`.
    """

    passed: bool
    hidden: tuple[int, ...]
    not_opening: tuple[int, ...]
    true_labels: tuple[int, ...]
    undetected: int
    confidence: float


def challenge(
    verification_key: VerificationKey, public: bytes, opened: int | None = None
) -> tuple[int, ...]:
    """Which pairs are to be opened: a random choice that everybody can repeat.

    The pairs are ranked by SHA-256(domain, root of the commitments, public bytes, index), and the
    first are taken.

    Args:
      verification_key: published before `public` was known.
      public: the verifier's random bytes, or a public beacon's. Empty bytes make it non-interactive
        (Fiat and Shamir); an owner can then make new keys until the choice suits him, so that the
        bound of `Audit.undetected` weakens by the logarithm of his patience.
      opened: how many; half of the pairs by default.

    Returns:
      Indices in increasing order.

    Raises:
      InputError: a number outside [1, N − 1].

    Source: Adi et al., USENIX Security 2018, section on public verifiability (cut and choose).
    """
    count = len(verification_key)
    opened = count // 2 if opened is None else opened
    if not 1 <= opened < count:
        raise InputError(
            f"{opened} of {count} pairs to be opened; at least one is, and at least one stays "
            "hidden"
        )

    def rank(index: int) -> bytes:
        return hashlib.sha256(
            framed(_DOMAIN, verification_key.root, public, index.to_bytes(8, "little"))
        ).digest()

    return tuple(sorted(sorted(range(count), key=rank)[:opened]))


def escape_probability(pairs: int, opened: int, bad: int) -> float:
    """P(no bad pair among those opened) = C(N − bad, opened)/C(N, opened); at most 2^−bad for a
    half.

    Args:
      pairs: N. opened: of them. bad: of the N, in [0, N].

    Raises:
      InputError: for numbers outside their ranges.
    """
    if not (0 <= opened <= pairs and 0 <= bad <= pairs):
        raise InputError(f"{opened} opened and {bad} bad of {pairs} pairs")
    return math.comb(pairs - bad, opened) / math.comb(pairs, opened)


def audit(
    verification_key: VerificationKey,
    openings: Sequence[Opening],
    public: bytes,
    truth: Any,
    *,
    opened: int | None = None,
    confidence: float = 0.95,
) -> Audit:
    """Checks the openings that answer a challenge. Not zero-knowledge: the opened pairs are known
    from then on.

    Args:
      verification_key: the owner's public key.
      openings: from `MarkingKey.opening`; others than those challenged count for nothing.
      public, opened: of the `challenge`.
      truth: (N,) integers over all pairs of the key, or a function of an image (H, W, C) uint8; the
        true label, -1 where an image shows nothing that has one (it passes with any label).
      confidence: of `Audit.undetected`.

    Returns:
      An `Audit`.

    Raises:
      InputError: truth of another length, or a confidence outside (0, 1).
    """
    count = len(verification_key)
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie in (0, 1), got {confidence}")
    if not callable(truth) and np.shape(truth) != (count,):
        raise InputError(
            f"truth must be a function, or {count} labels, one for each pair; got shape "
            f"{np.shape(truth)}"
        )
    asked = challenge(verification_key, public, opened)
    given = {opening.index: opening for opening in openings}
    not_opening = tuple(i for i in asked if i not in given or not verification_key.opens(given[i]))
    opened_pairs = [given[i] for i in asked if i not in not_opening]
    true_labels = tuple(
        pair.index
        for pair in opened_pairs
        if (truth(pair.image) if callable(truth) else truth[pair.index]) == pair.label
    )
    bad = 0
    while bad < count and escape_probability(count, len(asked), bad + 1) >= 1 - confidence:
        bad += 1
    hidden = tuple(sorted(set(range(count)) - set(asked)))
    return Audit(
        not (not_opening or true_labels), hidden, not_opening, true_labels, bad, confidence
    )


__all__ = ["Audit", "audit", "challenge", "escape_probability"]
