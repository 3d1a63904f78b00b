"""Watermarks: marking a network, verifying a claim, and what removes a mark."""

from dfke_jax.watermarking.entangled import (
    ENTANGLED_PRESETS,
    ENTANGLED_RELEASED,
    EntangledSettings,
    EntangledState,
    EntangledWatermark,
    entangled_training,
    entangled_watermark,
    marked_steps,
)
from dfke_jax.watermarking.entangled_verification import (
    OwnershipTest,
    claim_power,
    floored_rate,
    ownership_test,
    queries_for_claim,
)
from dfke_jax.watermarking.triggers import TriggerSet, trigger_matches, trigger_set, wrong_labels

__all__ = [
    "ENTANGLED_PRESETS",
    "ENTANGLED_RELEASED",
    "EntangledSettings",
    "EntangledState",
    "EntangledWatermark",
    "OwnershipTest",
    "TriggerSet",
    "claim_power",
    "entangled_training",
    "entangled_watermark",
    "floored_rate",
    "marked_steps",
    "ownership_test",
    "queries_for_claim",
    "trigger_matches",
    "trigger_set",
    "wrong_labels",
]
