"""Watermarks: marking a network, verifying a claim, and what removes a mark."""

from dfke_jax.watermarking.audit import Audit, audit, challenge, escape_probability
from dfke_jax.watermarking.backdoor import (
    SMALL_MARKING,
    MarkingSettings,
    abstract_images,
    keygen,
    mark,
)
from dfke_jax.watermarking.commitments import Opening, PairCommitment, canonical_bytes, included
from dfke_jax.watermarking.keys import MarkingKey, VerificationKey, make_keys, rejected_pairs
from dfke_jax.watermarking.null_models import null_population, null_training, shares, stacked_answers
from dfke_jax.watermarking.triggers import TriggerSet, trigger_matches, trigger_set, wrong_labels
from dfke_jax.watermarking.verification import (
    Null,
    Verdict,
    binomial_p_value,
    empirical_p_value,
    matches_needed,
    null_matches,
    queries_needed,
    verify,
)

__all__ = [
    "SMALL_MARKING",
    "Audit",
    "MarkingKey",
    "MarkingSettings",
    "Null",
    "Opening",
    "PairCommitment",
    "TriggerSet",
    "Verdict",
    "VerificationKey",
    "abstract_images",
    "audit",
    "binomial_p_value",
    "canonical_bytes",
    "challenge",
    "empirical_p_value",
    "escape_probability",
    "included",
    "keygen",
    "make_keys",
    "mark",
    "matches_needed",
    "null_matches",
    "null_population",
    "null_training",
    "queries_needed",
    "rejected_pairs",
    "shares",
    "stacked_answers",
    "trigger_matches",
    "trigger_set",
    "verify",
    "wrong_labels",
]
