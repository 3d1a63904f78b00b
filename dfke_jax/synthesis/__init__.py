"""The batch-synthesis engine. Nothing here knows what the samples are for."""

from dfke_jax.synthesis.noise import Objective, Synthesised, optimise_noise
from dfke_jax.synthesis.pool import Batch, Pool, Synthesiser, fill_pool
from dfke_jax.synthesis.priors import (
    l2,
    l2_norm,
    normalisation_statistics,
    total_variation,
    total_variation_l2,
)
from dfke_jax.synthesis.starts import SynthesisSettings, gaussian_noise, smooth_noise, start_images, uniform_noise
from dfke_jax.synthesis.targets import balanced_labels, class_similarity, concentrations, dirichlet_targets

__all__ = [
    "Batch",
    "Objective",
    "Pool",
    "SynthesisSettings",
    "Synthesised",
    "Synthesiser",
    "balanced_labels",
    "class_similarity",
    "concentrations",
    "dirichlet_targets",
    "fill_pool",
    "gaussian_noise",
    "l2",
    "l2_norm",
    "normalisation_statistics",
    "optimise_noise",
    "smooth_noise",
    "start_images",
    "total_variation",
    "total_variation_l2",
    "uniform_noise",
]
