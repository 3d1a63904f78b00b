"""Dataset inference: was a model made from my data?"""

from dfke_jax.dataset_inference.blind_walk import FAMILIES, BlindWalkSettings, Walks, blind_walk
from dfke_jax.dataset_inference.mingd import NORMS, Margins, MinGDSettings, gradient_evaluations, mingd
from dfke_jax.dataset_inference.theory import LinearRates, LinearSetting, approximate_rates, exact_rates, simulate

__all__ = [
    "FAMILIES",
    "NORMS",
    "BlindWalkSettings",
    "LinearRates",
    "LinearSetting",
    "Margins",
    "MinGDSettings",
    "Walks",
    "approximate_rates",
    "blind_walk",
    "exact_rates",
    "gradient_evaluations",
    "mingd",
    "simulate",
]
