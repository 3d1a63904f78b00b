"""What an adversary may see of a victim, and what it has to pay for it.

The function that serves an application is `dfke_jax.oracle.serve.serve`.
"""

from dfke_jax.oracle.formulas import check_spent, rows_per_step
from dfke_jax.oracle.ledger import Ledger
from dfke_jax.oracle.metered import Metered
from dfke_jax.oracle.remote import RemoteVictim
from dfke_jax.oracle.reveal import (
    Reveal,
    answered_labels,
    answered_logits,
    answered_probabilities,
    check_answers,
)
from dfke_jax.oracle.serve import background, create_app

__all__ = [
    "Ledger",
    "Metered",
    "RemoteVictim",
    "Reveal",
    "answered_labels",
    "answered_logits",
    "answered_probabilities",
    "background",
    "check_answers",
    "check_spent",
    "create_app",
    "rows_per_step",
]
