"""Black-box extraction: one file an attack."""

from dfke_jax.extraction.active_thief import (
    ActiveThiefSettings,
    ActiveThiefState,
    active_thief,
    deepfool_norm,
)
from dfke_jax.extraction.common import GenerativeSettings, clone_of, steps_for
from dfke_jax.extraction.copycat import copycat, heavy_augmentation
from dfke_jax.extraction.dfme import SMALL_DFME, DFMESettings, DFMEState, dfme
from dfke_jax.extraction.dfms import (
    FIRST_CLONE,
    Adversaries,
    DFMSSettings,
    DFMSState,
    adversarial_pretraining,
    dfms,
    diversity_tuning,
    first_samples,
)
from dfke_jax.extraction.disagreement import (
    DUAL_STUDENTS,
    SMALL_DISGUIDE,
    DisagreementSettings,
    DisagreementState,
    disagreement,
    vote,
)
from dfke_jax.extraction.dissector import DissectorSettings, DissectorState, dissector
from dfke_jax.extraction.equations import (
    AffineModel,
    Questions,
    linear_regression,
    logistic_regression,
    softmax_regression,
)
from dfke_jax.extraction.jacobian_augmentation import (
    JacobianSettings,
    JacobianState,
    jacobian_augmentation,
)
from dfke_jax.extraction.knockoff import AdaptiveState, BanditSettings, adaptive_knockoff, knockoff
from dfke_jax.extraction.maze import SMALL_MAZE, MAZESettings, maze
from dfke_jax.extraction.maze_pd import MAZEPDSettings, MAZEPDState, maze_pd
from dfke_jax.extraction.megex import SMALL_MEGEX, MEGEXSettings, megex
from dfke_jax.extraction.pool import SMALL_CLONE, CloneTraining, PoolAttackSettings
from dfke_jax.extraction.random_queries import RandomState, random_attack

__all__ = [
    "DUAL_STUDENTS",
    "FIRST_CLONE",
    "SMALL_CLONE",
    "SMALL_DFME",
    "SMALL_DISGUIDE",
    "SMALL_MAZE",
    "SMALL_MEGEX",
    "ActiveThiefSettings",
    "ActiveThiefState",
    "AdaptiveState",
    "Adversaries",
    "AffineModel",
    "BanditSettings",
    "CloneTraining",
    "DFMESettings",
    "DFMEState",
    "DFMSSettings",
    "DFMSState",
    "DisagreementSettings",
    "DisagreementState",
    "DissectorSettings",
    "DissectorState",
    "GenerativeSettings",
    "JacobianSettings",
    "JacobianState",
    "MAZEPDSettings",
    "MAZEPDState",
    "MAZESettings",
    "MEGEXSettings",
    "PoolAttackSettings",
    "Questions",
    "RandomState",
    "active_thief",
    "adaptive_knockoff",
    "adversarial_pretraining",
    "clone_of",
    "copycat",
    "deepfool_norm",
    "dfme",
    "dfms",
    "disagreement",
    "dissector",
    "diversity_tuning",
    "first_samples",
    "heavy_augmentation",
    "jacobian_augmentation",
    "knockoff",
    "linear_regression",
    "logistic_regression",
    "maze",
    "maze_pd",
    "megex",
    "random_attack",
    "softmax_regression",
    "steps_for",
    "vote",
]
