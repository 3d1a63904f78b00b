"""What an adversary may see of a victim."""

from dfke_jax.oracle.reveal import (
    Reveal,
    answered_labels,
    answered_logits,
    answered_probabilities,
    check_answers,
)

__all__ = ["Reveal", "answered_labels", "answered_logits", "answered_probabilities", "check_answers"]
