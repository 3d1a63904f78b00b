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
from dfke_jax.distillation.dfnd import (
    DFNDSettings,
    DFNDState,
    adaptation_matrix,
    dfnd,
    most_certain,
)
from dfke_jax.distillation.duel import DuelSettings, DuelState, Schedule, student_of
from dfke_jax.distillation.features import (
    AttentionSettings,
    attention_distillation,
    hint_training,
    hinted,
)
from dfke_jax.distillation.relations import RelationSettings, relation_distillation
from dfke_jax.distillation.representations import representation_distillation
from dfke_jax.distillation.response import cross_entropy_training, knowledge_distillation
from dfke_jax.distillation.transfer_sets import (
    Moved,
    balanced,
    balanced_by_moving,
    few_shot,
    fitted,
    unbalanced,
)
from dfke_jax.distillation.zskt import ZSKTSettings, zskt

__all__ = [
    "AttentionSettings",
    "ClassImpressionSettings",
    "DAFLSettings",
    "DFADSettings",
    "DFNDSettings",
    "DFNDState",
    "DuelSettings",
    "DuelState",
    "ImpressionSettings",
    "InversionSettings",
    "Moved",
    "RecordSettings",
    "RelationSettings",
    "Schedule",
    "ZSKTSettings",
    "adaptation_matrix",
    "adaptive_deep_inversion",
    "attention_distillation",
    "balanced",
    "balanced_by_moving",
    "class_impressions",
    "cross_entropy_training",
    "dafl",
    "data_impressions",
    "deep_inversion",
    "dfad",
    "dfnd",
    "few_shot",
    "fitted",
    "from_records",
    "hint_training",
    "hinted",
    "knowledge_distillation",
    "most_certain",
    "record_activations",
    "relation_distillation",
    "representation_distillation",
    "student_of",
    "unbalanced",
    "zskt",
]
