"""Watermarks: marking a network, verifying a claim, and what removes a mark."""

from dfke_jax.watermarking.triggers import TriggerSet, trigger_matches, trigger_set, wrong_labels

__all__ = ["TriggerSet", "trigger_matches", "trigger_set", "wrong_labels"]
