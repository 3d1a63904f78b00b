"""How good, how alike and how varied: numbers about classifiers and pools."""

from dfke_jax.evaluation.agreement import (
    accuracy,
    agreement,
    balanced_accuracy,
    class_accuracies,
    total_variation,
)
from dfke_jax.evaluation.diversity import class_histogram, histogram_entropy, mean_pairwise_distance
from dfke_jax.evaluation.fidelity import bootstrap_interval, class_fidelity, fidelity, self_fidelity
from dfke_jax.evaluation.probe import linear_probe
from dfke_jax.evaluation.summary import summarise, wilson_interval
from dfke_jax.evaluation.transfer import fgsm, pgd, transfer_rate

__all__ = [
    "accuracy",
    "agreement",
    "balanced_accuracy",
    "bootstrap_interval",
    "class_accuracies",
    "class_fidelity",
    "class_histogram",
    "fgsm",
    "fidelity",
    "histogram_entropy",
    "linear_probe",
    "mean_pairwise_distance",
    "pgd",
    "self_fidelity",
    "summarise",
    "total_variation",
    "transfer_rate",
    "wilson_interval",
]
