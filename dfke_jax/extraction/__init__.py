"""Black-box extraction: one file an attack."""

from dfke_jax.extraction.active_thief import (
    ActiveThiefSettings,
    ActiveThiefState,
    active_thief,
    deepfool_norm,
)
from dfke_jax.extraction.common import GenerativeSettings, clone_of, steps_for
from dfke_jax.extraction.copycat import copycat, heavy_augmentation
from dfke_jax.extraction.cross_entropy import (
    FittedModel,
    hidden_layer,
    kernel_regression,
    one_versus_rest,
)
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
from dfke_jax.extraction.halfspaces import coupled_halfspace
from dfke_jax.extraction.hidden_features import BinnedModel, binned_regression
from dfke_jax.extraction.incomplete_trees import top_down
from dfke_jax.extraction.inversion import (
    InversionSettings,
    inverted,
    log_probabilities,
    queried_inversion,
)
from dfke_jax.extraction.jacobian_augmentation import (
    JacobianSettings,
    JacobianState,
    jacobian_augmentation,
)
from dfke_jax.extraction.knockoff import AdaptiveState, BanditSettings, adaptive_knockoff, knockoff
from dfke_jax.extraction.last_layer import LastLayer, complete_outputs, last_layer
from dfke_jax.extraction.lowd_meek import Halfspace, lowd_meek
from dfke_jax.extraction.maze import SMALL_MAZE, MAZESettings, maze
from dfke_jax.extraction.maze_pd import MAZEPDSettings, MAZEPDState, maze_pd
from dfke_jax.extraction.megex import SMALL_MEGEX, MEGEXSettings, megex
from dfke_jax.extraction.mixmatch import MixMatchSettings, mixmatch
from dfke_jax.extraction.pool import SMALL_CLONE, CloneTraining, Learner, PoolAttackSettings
from dfke_jax.extraction.random_queries import RandomState, random_attack
from dfke_jax.extraction.relu_baseline import second_differences
from dfke_jax.extraction.relu_gradients import gradient_network
from dfke_jax.extraction.relu_networks import relu_network
from dfke_jax.extraction.relu_parts import ReluNetwork
from dfke_jax.extraction.relu_refinement import hybrid, refined, widened
from dfke_jax.extraction.relu_search import ReluSearch
from dfke_jax.extraction.representers import fitted_kernels, kernel_equation_rows, kernel_equations
from dfke_jax.extraction.retraining import (
    CLONES,
    RetrainingSettings,
    linear_clone,
    mlp_clone,
    rbf_clone,
    retraining,
    softmax_clone,
)
from dfke_jax.extraction.rotation import RotationSettings, rotation
from dfke_jax.extraction.token_reveals import TokenReading
from dfke_jax.extraction.tree_model import ExtractedTree
from dfke_jax.extraction.trees import TreeSettings, find_paths

__all__ = [
    "CLONES",
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
    "BinnedModel",
    "CloneTraining",
    "DFMESettings",
    "DFMEState",
    "DFMSSettings",
    "DFMSState",
    "DisagreementSettings",
    "DisagreementState",
    "DissectorSettings",
    "DissectorState",
    "ExtractedTree",
    "FittedModel",
    "GenerativeSettings",
    "Halfspace",
    "InversionSettings",
    "JacobianSettings",
    "JacobianState",
    "LastLayer",
    "Learner",
    "MAZEPDSettings",
    "MAZEPDState",
    "MAZESettings",
    "MEGEXSettings",
    "MixMatchSettings",
    "PoolAttackSettings",
    "Questions",
    "RandomState",
    "ReluNetwork",
    "ReluSearch",
    "RetrainingSettings",
    "RotationSettings",
    "TokenReading",
    "TreeSettings",
    "active_thief",
    "adaptive_knockoff",
    "adversarial_pretraining",
    "binned_regression",
    "clone_of",
    "complete_outputs",
    "copycat",
    "coupled_halfspace",
    "deepfool_norm",
    "dfme",
    "dfms",
    "disagreement",
    "dissector",
    "diversity_tuning",
    "find_paths",
    "first_samples",
    "fitted_kernels",
    "gradient_network",
    "heavy_augmentation",
    "hidden_layer",
    "hybrid",
    "inverted",
    "jacobian_augmentation",
    "kernel_equation_rows",
    "kernel_equations",
    "kernel_regression",
    "knockoff",
    "last_layer",
    "linear_clone",
    "linear_regression",
    "log_probabilities",
    "logistic_regression",
    "lowd_meek",
    "maze",
    "maze_pd",
    "megex",
    "mixmatch",
    "mlp_clone",
    "one_versus_rest",
    "queried_inversion",
    "random_attack",
    "rbf_clone",
    "refined",
    "relu_network",
    "retraining",
    "rotation",
    "second_differences",
    "softmax_clone",
    "softmax_regression",
    "steps_for",
    "top_down",
    "vote",
    "widened",
]
