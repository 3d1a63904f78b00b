"""How good, how alike and how varied: numbers about classifiers and pools, on the host."""

from dfke_jax.evaluation.agreement import accuracy, agreement, total_variation
from dfke_jax.evaluation.diversity import class_histogram, histogram_entropy, mean_pairwise_distance
from dfke_jax.evaluation.summary import summarise, wilson_interval

__all__ = [
    "accuracy",
    "agreement",
    "class_histogram",
    "histogram_entropy",
    "mean_pairwise_distance",
    "summarise",
    "total_variation",
    "wilson_interval",
]
