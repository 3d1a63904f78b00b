"""Networks, the operations they need, and the classifier as a value."""

from dfke_jax.nn.airbench import Airbench, whitening_filters
from dfke_jax.nn.airbench_training import (
    AirbenchSettings,
    AirbenchState,
    airbench_population,
    airbench_training,
)
from dfke_jax.nn.answers import class_metrics, each_head, heads
from dfke_jax.nn.classifier import (
    Classifier,
    Preprocessing,
    as_float,
    check_images,
    check_labels,
)
from dfke_jax.nn.contrastive import Contrastive, contrastive_training, nt_xent, representation
from dfke_jax.nn.conv import conv_general_dilated, convolution
from dfke_jax.nn.discriminators import DCGANDiscriminator
from dfke_jax.nn.generators import DCGANGenerator, DFMEGenerator, draw_latents, squash
from dfke_jax.nn.heads import Heads
from dfke_jax.nn.layers import BatchNorm, Conv, UpsampleConv
from dfke_jax.nn.many import independent_training, member, separate_shares, shares
from dfke_jax.nn.muon import muon, newton_schulz
from dfke_jax.nn.observation import Moments, Observed, observe
from dfke_jax.nn.precision import compute_precision
from dfke_jax.nn.registry import NetworkInfo, build, describe, names
from dfke_jax.nn.soft_nearest import (
    neighbour_mixing,
    pairwise_distances,
    soft_nearest_neighbour_loss,
)
from dfke_jax.nn.training import Training, optimiser, trained, training
from dfke_jax.nn.transformer import ByteTransformer, LanguageModel, train_language_model
from dfke_jax.nn.upsample import upsample_convolve

__all__ = [
    "Airbench",
    "AirbenchSettings",
    "AirbenchState",
    "BatchNorm",
    "ByteTransformer",
    "Classifier",
    "Contrastive",
    "Conv",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DFMEGenerator",
    "Heads",
    "LanguageModel",
    "Moments",
    "NetworkInfo",
    "Observed",
    "Preprocessing",
    "Training",
    "UpsampleConv",
    "airbench_population",
    "airbench_training",
    "as_float",
    "build",
    "check_images",
    "check_labels",
    "class_metrics",
    "compute_precision",
    "contrastive_training",
    "conv_general_dilated",
    "convolution",
    "describe",
    "draw_latents",
    "each_head",
    "heads",
    "independent_training",
    "member",
    "muon",
    "names",
    "neighbour_mixing",
    "newton_schulz",
    "nt_xent",
    "observe",
    "optimiser",
    "pairwise_distances",
    "representation",
    "separate_shares",
    "shares",
    "soft_nearest_neighbour_loss",
    "squash",
    "train_language_model",
    "trained",
    "training",
    "upsample_convolve",
    "whitening_filters",
]
