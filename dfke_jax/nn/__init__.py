"""Networks, the operations they need, and the classifier as a value."""

from dfke_jax.nn.classifier import Classifier, Moments, Preprocessing, as_float, check_images, check_labels
from dfke_jax.nn.conv import conv_general_dilated, convolution
from dfke_jax.nn.discriminators import DCGANDiscriminator
from dfke_jax.nn.generators import DCGANGenerator, DFMEGenerator, draw_latents, squash
from dfke_jax.nn.layers import BatchNorm, Conv, UpsampleConv
from dfke_jax.nn.registry import NetworkInfo, build, describe, names
from dfke_jax.nn.training import Training, optimiser, trained, training
from dfke_jax.nn.upsample import upsample_convolve

__all__ = [
    "BatchNorm",
    "Classifier",
    "Conv",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DFMEGenerator",
    "Moments",
    "NetworkInfo",
    "Preprocessing",
    "Training",
    "UpsampleConv",
    "as_float",
    "build",
    "check_images",
    "check_labels",
    "conv_general_dilated",
    "convolution",
    "describe",
    "draw_latents",
    "names",
    "optimiser",
    "squash",
    "trained",
    "training",
    "upsample_convolve",
]
