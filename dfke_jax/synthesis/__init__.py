"""The batch-synthesis engine. Nothing here knows what the samples are for."""

from dfke_jax.synthesis.latent import Decode, Inverted, LatentObjective, invert
from dfke_jax.synthesis.noise import Objective, Synthesised, optimise_noise
from dfke_jax.synthesis.pool import Batch, Pool, Synthesiser, fill_pool
from dfke_jax.synthesis.priors import (
    gaussian_smoothness,
    l2,
    l2_norm,
    normalisation_statistics,
    total_variation,
    total_variation_l2,
)
from dfke_jax.synthesis.shapes import synthetic_shapes
from dfke_jax.synthesis.starts import (
    SynthesisSettings,
    gaussian_noise,
    smooth_noise,
    start_images,
    uniform_noise,
)
from dfke_jax.synthesis.synthesiser import Synthesis
from dfke_jax.synthesis.targets import (
    balanced_labels,
    class_similarity,
    concentrations,
    dirichlet_targets,
)
from dfke_jax.synthesis.zeroth_order import (
    Differences,
    Estimate,
    cache_chunk,
    estimate,
    forward_difference,
    in_chunks,
    perturbed_rows,
    precise,
    unit_directions,
)

__all__ = [
    "Batch",
    "Decode",
    "Differences",
    "Estimate",
    "Inverted",
    "LatentObjective",
    "Objective",
    "Pool",
    "Synthesis",
    "SynthesisSettings",
    "Synthesised",
    "Synthesiser",
    "balanced_labels",
    "cache_chunk",
    "class_similarity",
    "concentrations",
    "dirichlet_targets",
    "estimate",
    "fill_pool",
    "forward_difference",
    "gaussian_noise",
    "gaussian_smoothness",
    "in_chunks",
    "invert",
    "l2",
    "l2_norm",
    "normalisation_statistics",
    "optimise_noise",
    "perturbed_rows",
    "precise",
    "smooth_noise",
    "start_images",
    "synthetic_shapes",
    "total_variation",
    "total_variation_l2",
    "uniform_noise",
    "unit_directions",
]
