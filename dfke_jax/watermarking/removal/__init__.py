"""Removal attacks: what a thief does to a marked network, and what is left of the mark."""

from dfke_jax.watermarking.removal.adversarial import adversarial_fine_tuning
from dfke_jax.watermarking.removal.common import FINE_TUNING, Removed, Suspect, TrainingSettings, Watch
from dfke_jax.watermarking.removal.fine_tuning import (
    REFIT,
    fine_tune,
    fine_tuned,
    fine_tuning,
    high_rate_fine_tuning,
    with_private_head,
)
from dfke_jax.watermarking.removal.matrix import (
    REMOVALS,
    RemovalAttack,
    Row,
    Standing,
    made_elsewhere,
    removal,
    removal_matrix,
    standing,
)
from dfke_jax.watermarking.removal.neural_cleanse import (
    CleanseSettings,
    ReversedTriggers,
    anomaly_index,
    neural_cleanse,
    neural_cleanse_patching,
    outliers,
    reverse_triggers,
    reversed_triggers,
    trigger_reversal,
)
from dfke_jax.watermarking.removal.overwriting import abstract_triggers, overwriting
from dfke_jax.watermarking.removal.pruning import (
    dormant_pruning,
    dormant_units,
    fine_pruning,
    kept_at_zero,
    magnitude_masks,
    magnitude_pruning,
    masked,
    prunable_layers,
    unit_activity,
    unit_masks,
)
from dfke_jax.watermarking.removal.quantisation import half_precision, quantisation, quantised
from dfke_jax.watermarking.removal.retraining import RETRAINING, retraining
from dfke_jax.watermarking.removal.smoothing import NoiseAveraged, filtered, input_filter, noise_averaging
from dfke_jax.watermarking.removal.transfer_learning import transfer_learning

__all__ = [
    "FINE_TUNING",
    "REFIT",
    "REMOVALS",
    "RETRAINING",
    "CleanseSettings",
    "NoiseAveraged",
    "RemovalAttack",
    "Removed",
    "ReversedTriggers",
    "Row",
    "Standing",
    "Suspect",
    "TrainingSettings",
    "Watch",
    "abstract_triggers",
    "adversarial_fine_tuning",
    "anomaly_index",
    "dormant_pruning",
    "dormant_units",
    "filtered",
    "fine_pruning",
    "fine_tune",
    "fine_tuned",
    "fine_tuning",
    "half_precision",
    "high_rate_fine_tuning",
    "input_filter",
    "kept_at_zero",
    "made_elsewhere",
    "magnitude_masks",
    "magnitude_pruning",
    "masked",
    "neural_cleanse",
    "neural_cleanse_patching",
    "noise_averaging",
    "outliers",
    "overwriting",
    "prunable_layers",
    "quantisation",
    "quantised",
    "removal",
    "removal_matrix",
    "retraining",
    "reverse_triggers",
    "reversed_triggers",
    "standing",
    "transfer_learning",
    "trigger_reversal",
    "unit_activity",
    "unit_masks",
    "with_private_head",
]
