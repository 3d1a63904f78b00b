"""White-box, data-free knowledge distillation: one file a method."""

from dfke_jax.distillation.activation_records import (
    RecordSettings,
    from_records,
    record_activations,
)
from dfke_jax.distillation.bank import BankSettings, BankState, bank_method, student_in
from dfke_jax.distillation.class_impressions import ClassImpressionSettings, class_impressions
from dfke_jax.distillation.cmi import CMISettings, cmi
from dfke_jax.distillation.dafl import DAFLSettings, dafl
from dfke_jax.distillation.data_impressions import ImpressionSettings, data_impressions
from dfke_jax.distillation.deep_inversion import (
    InversionSettings,
    adaptive_deep_inversion,
    deep_inversion,
)
from dfke_jax.distillation.degan import DeGANSettings, DeGANState, degan, degan_images
from dfke_jax.distillation.dfad import DFADSettings, dfad
from dfke_jax.distillation.dfka import DFKASettings, Teachers, dfka
from dfke_jax.distillation.dfnd import (
    DFNDSettings,
    DFNDState,
    adaptation_matrix,
    dfnd,
    most_certain,
)
from dfke_jax.distillation.dfq import DFQSettings, dfq
from dfke_jax.distillation.duel import DuelSettings, DuelState, Schedule, student_of
from dfke_jax.distillation.fast_dfkd import FastSettings, fast_dfkd
from dfke_jax.distillation.features import (
    AttentionSettings,
    attention_distillation,
    hint_training,
    hinted,
)
from dfke_jax.distillation.gan_sampling import SamplingSettings, adapt_statistics, gan_sampling
from dfke_jax.distillation.knowledge_within import WithinSettings, knowledge_within
from dfke_jax.distillation.nayer import NAYERSettings, label_embedding, nayer
from dfke_jax.distillation.rdskd import RDSKDSettings, RDSKDState, rdskd, rdskd_generator
from dfke_jax.distillation.relations import RelationSettings, relation_distillation
from dfke_jax.distillation.representations import representation_distillation
from dfke_jax.distillation.response import cross_entropy_training, knowledge_distillation
from dfke_jax.distillation.statistics_generators import (
    GroupSettings,
    group_images,
    statistics_generators,
)
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
    "BankSettings",
    "BankState",
    "CMISettings",
    "ClassImpressionSettings",
    "DAFLSettings",
    "DFADSettings",
    "DFKASettings",
    "DFNDSettings",
    "DFNDState",
    "DFQSettings",
    "DeGANSettings",
    "DeGANState",
    "DuelSettings",
    "DuelState",
    "FastSettings",
    "GroupSettings",
    "ImpressionSettings",
    "InversionSettings",
    "Moved",
    "NAYERSettings",
    "RDSKDSettings",
    "RDSKDState",
    "RecordSettings",
    "RelationSettings",
    "SamplingSettings",
    "Schedule",
    "Teachers",
    "WithinSettings",
    "ZSKTSettings",
    "adapt_statistics",
    "adaptation_matrix",
    "adaptive_deep_inversion",
    "attention_distillation",
    "balanced",
    "balanced_by_moving",
    "bank_method",
    "class_impressions",
    "cmi",
    "cross_entropy_training",
    "dafl",
    "data_impressions",
    "deep_inversion",
    "degan",
    "degan_images",
    "dfad",
    "dfka",
    "dfnd",
    "dfq",
    "fast_dfkd",
    "few_shot",
    "fitted",
    "from_records",
    "gan_sampling",
    "group_images",
    "hint_training",
    "hinted",
    "knowledge_distillation",
    "knowledge_within",
    "label_embedding",
    "most_certain",
    "nayer",
    "rdskd",
    "rdskd_generator",
    "record_activations",
    "relation_distillation",
    "representation_distillation",
    "statistics_generators",
    "student_in",
    "student_of",
    "unbalanced",
    "zskt",
]
