"""Dataset inference: was a model made from my data?"""

from dfke_jax.dataset_inference.theory import LinearRates, LinearSetting, approximate_rates, exact_rates, simulate

__all__ = [
    "LinearRates",
    "LinearSetting",
    "approximate_rates",
    "exact_rates",
    "simulate",
]
