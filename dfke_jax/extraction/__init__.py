"""Black-box extraction: one file an attack."""

from dfke_jax.extraction.active_thief import ActiveThiefSettings, ActiveThiefState, active_thief, deepfool_norm
from dfke_jax.extraction.copycat import copycat, heavy_augmentation
from dfke_jax.extraction.dissector import DissectorSettings, DissectorState, dissector
from dfke_jax.extraction.jacobian_augmentation import JacobianSettings, JacobianState, jacobian_augmentation
from dfke_jax.extraction.knockoff import AdaptiveState, BanditSettings, adaptive_knockoff, knockoff
from dfke_jax.extraction.pool import CloneTraining, PoolSettings
from dfke_jax.extraction.random_queries import RandomState, random_attack

__all__ = [
    "ActiveThiefSettings",
    "ActiveThiefState",
    "AdaptiveState",
    "BanditSettings",
    "CloneTraining",
    "DissectorSettings",
    "DissectorState",
    "JacobianSettings",
    "JacobianState",
    "PoolSettings",
    "RandomState",
    "active_thief",
    "adaptive_knockoff",
    "copycat",
    "deepfool_norm",
    "dissector",
    "heavy_augmentation",
    "jacobian_augmentation",
    "knockoff",
    "random_attack",
]
