"""White-box, data-free knowledge distillation: one file a method."""

from dfke_jax.distillation.activation_records import RecordSettings, from_records, record_activations
from dfke_jax.distillation.class_impressions import ClassImpressionSettings, class_impressions
from dfke_jax.distillation.data_impressions import ImpressionSettings, data_impressions
from dfke_jax.distillation.deep_inversion import InversionSettings, adaptive_deep_inversion, deep_inversion
from dfke_jax.distillation.representations import representation_distillation
from dfke_jax.distillation.response import cross_entropy_training, knowledge_distillation
from dfke_jax.distillation.transfer_sets import balanced, fitted, unbalanced

__all__ = [
    "ClassImpressionSettings",
    "ImpressionSettings",
    "InversionSettings",
    "RecordSettings",
    "adaptive_deep_inversion",
    "balanced",
    "class_impressions",
    "cross_entropy_training",
    "data_impressions",
    "deep_inversion",
    "fitted",
    "from_records",
    "knowledge_distillation",
    "record_activations",
    "representation_distillation",
    "unbalanced",
]
