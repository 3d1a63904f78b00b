"""White-box, data-free knowledge distillation: one file a method."""

from dfke_jax.distillation.activation_records import (
    RecordSettings,
    from_records,
    record_activations,
)
from dfke_jax.distillation.class_impressions import ClassImpressionSettings, class_impressions
from dfke_jax.distillation.dafl import DAFLSettings, dafl
from dfke_jax.distillation.data_impressions import ImpressionSettings, data_impressions
from dfke_jax.distillation.deep_inversion import (
    InversionSettings,
    adaptive_deep_inversion,
    deep_inversion,
)
from dfke_jax.distillation.dfad import DFADSettings, dfad
from dfke_jax.distillation.duel import DuelSettings, DuelState, Schedule, student_of
from dfke_jax.distillation.representations import representation_distillation
from dfke_jax.distillation.response import cross_entropy_training, knowledge_distillation
from dfke_jax.distillation.transfer_sets import balanced, fitted, unbalanced
from dfke_jax.distillation.zskt import ZSKTSettings, zskt

__all__ = [
    "ClassImpressionSettings",
    "DAFLSettings",
    "DFADSettings",
    "DuelSettings",
    "DuelState",
    "ImpressionSettings",
    "InversionSettings",
    "RecordSettings",
    "Schedule",
    "ZSKTSettings",
    "adaptive_deep_inversion",
    "balanced",
    "class_impressions",
    "cross_entropy_training",
    "dafl",
    "data_impressions",
    "deep_inversion",
    "dfad",
    "fitted",
    "from_records",
    "knowledge_distillation",
    "record_activations",
    "representation_distillation",
    "student_of",
    "unbalanced",
    "zskt",
]
