"""What an adversary may see of a victim, and what it has to pay for it.

The function that serves an application is `dfke_jax.oracle.serve.serve`.
"""

from dfke_jax.oracle.binned_victims import binned_victim
from dfke_jax.oracle.defences import (
    AdaptiveMisinformation,
    ConfidenceMask,
    Defence,
    GaussianNoise,
    ReverseSigmoid,
    Rounding,
    Temperature,
    TopK,
    hellinger,
    reverse_cross_entropy,
)
from dfke_jax.oracle.detectors import Alarm, Prada
from dfke_jax.oracle.explanations import (
    EXPLANATIONS,
    Explained,
    Explanation,
    ExplanationOracle,
    check_explained,
    explained_gradients,
    explanation_oracle,
)
from dfke_jax.oracle.formulas import check_spent, rows_per_step
from dfke_jax.oracle.frameworks import from_art, from_sklearn, from_torch, traced_torch
from dfke_jax.oracle.hugging_face import from_hugging_face
from dfke_jax.oracle.journal import Journal
from dfke_jax.oracle.language_model import LanguageModelOracle, TokenQuestions, TokenReveal
from dfke_jax.oracle.ledger import Ledger, LedgerWarning
from dfke_jax.oracle.metered import Metered
from dfke_jax.oracle.oracle import (
    HostOracle,
    Oracle,
    ZerothOrderWarning,
    check_zeroth_order,
    oracle_for,
)
from dfke_jax.oracle.poisoning import PredictionPoisoning
from dfke_jax.oracle.registry import DEFENCES, defence, explanation
from dfke_jax.oracle.remote import RemoteVictim
from dfke_jax.oracle.reveal import (
    Reveal,
    answered_labels,
    answered_logits,
    answered_probabilities,
    check_answers,
)
from dfke_jax.oracle.serve import background, create_app
from dfke_jax.oracle.tree_victims import tree_victim
from dfke_jax.oracle.victims import HostVictim, PrecisionWarning, from_function, from_jax

__all__ = [
    "DEFENCES",
    "EXPLANATIONS",
    "AdaptiveMisinformation",
    "Alarm",
    "ConfidenceMask",
    "Defence",
    "Explained",
    "Explanation",
    "ExplanationOracle",
    "GaussianNoise",
    "HostOracle",
    "HostVictim",
    "Journal",
    "LanguageModelOracle",
    "Ledger",
    "LedgerWarning",
    "Metered",
    "Oracle",
    "Prada",
    "PrecisionWarning",
    "PredictionPoisoning",
    "RemoteVictim",
    "Reveal",
    "ReverseSigmoid",
    "Rounding",
    "Temperature",
    "TokenQuestions",
    "TokenReveal",
    "TopK",
    "ZerothOrderWarning",
    "answered_labels",
    "answered_logits",
    "answered_probabilities",
    "background",
    "binned_victim",
    "check_answers",
    "check_explained",
    "check_spent",
    "check_zeroth_order",
    "create_app",
    "defence",
    "explained_gradients",
    "explanation",
    "explanation_oracle",
    "from_art",
    "from_function",
    "from_hugging_face",
    "from_jax",
    "from_sklearn",
    "from_torch",
    "hellinger",
    "oracle_for",
    "reverse_cross_entropy",
    "rows_per_step",
    "traced_torch",
    "tree_victim",
]
