"""Black-box extraction: one file an attack."""

from dfke_jax.extraction.common import GenerativeSettings, clone_of, steps_for
from dfke_jax.extraction.dfme import SMALL_DFME, DFMESettings, DFMEState, dfme
from dfke_jax.extraction.dfms import Adversaries, DFMSSettings, DFMSState, adversarial_pretraining, dfms
from dfke_jax.extraction.disagreement import (
    DUAL_STUDENTS,
    SMALL_DISGUIDE,
    DisagreementSettings,
    DisagreementState,
    disagreement,
    vote,
)
from dfke_jax.extraction.maze import MAZESettings, MAZEState, maze
from dfke_jax.extraction.megex import Explained, MEGEXSettings, megex

__all__ = [
    "DUAL_STUDENTS",
    "SMALL_DFME",
    "SMALL_DISGUIDE",
    "Adversaries",
    "DFMESettings",
    "DFMEState",
    "DFMSSettings",
    "DFMSState",
    "DisagreementSettings",
    "DisagreementState",
    "Explained",
    "GenerativeSettings",
    "MAZESettings",
    "MAZEState",
    "MEGEXSettings",
    "adversarial_pretraining",
    "clone_of",
    "dfme",
    "dfms",
    "disagreement",
    "maze",
    "megex",
    "steps_for",
    "vote",
]
