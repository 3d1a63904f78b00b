"""How good, how alike and how varied: numbers about classifiers and pools."""

from dfke_jax.evaluation.agreement import (
    accuracy,
    agreement,
    balanced_accuracy,
    class_accuracies,
    total_variation,
)
from dfke_jax.evaluation.diversity import class_histogram, histogram_entropy, mean_pairwise_distance
from dfke_jax.evaluation.endpoint_equality import Equality, agreement_kernel, same_endpoint
from dfke_jax.evaluation.fidelity import (
    bootstrap_interval,
    class_fidelity,
    extraction_errors,
    fidelity,
    self_fidelity,
)
from dfke_jax.evaluation.matching import matched_rows, row_correlation
from dfke_jax.evaluation.probe import linear_probe
from dfke_jax.evaluation.summary import summarise, wilson_interval
from dfke_jax.evaluation.tail import Watched, watched
from dfke_jax.evaluation.taxonomy import taxonomy
from dfke_jax.evaluation.transfer import fgsm, pgd, transfer_rate
from dfke_jax.evaluation.transition import (
    TransitionCurves,
    mean_transition_error,
    transition_curves,
)

__all__ = [
    "Equality",
    "TransitionCurves",
    "Watched",
    "accuracy",
    "agreement",
    "agreement_kernel",
    "balanced_accuracy",
    "bootstrap_interval",
    "class_accuracies",
    "class_fidelity",
    "class_histogram",
    "extraction_errors",
    "fgsm",
    "fidelity",
    "histogram_entropy",
    "linear_probe",
    "matched_rows",
    "mean_pairwise_distance",
    "mean_transition_error",
    "pgd",
    "row_correlation",
    "same_endpoint",
    "self_fidelity",
    "summarise",
    "taxonomy",
    "total_variation",
    "transfer_rate",
    "transition_curves",
    "watched",
    "wilson_interval",
]
