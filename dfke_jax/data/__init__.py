"""Labelled images and tables, where they come from, and how images are varied."""

from dfke_jax.data import augment
from dfke_jax.data.augment import (
    affine,
    alternating_flip,
    compose,
    cutout,
    flip,
    gaussian_noise,
    identity,
    random_crop,
    reflect_shift,
    resized_crop,
    salt_and_pepper,
    shift,
    warp,
)
from dfke_jax.data.binning import Binning, quantile_binning
from dfke_jax.data.dataset import Dataset, Split
from dfke_jax.data.schema import Column, Schema
from dfke_jax.data.sources import Availability, available, load, tfds_directory
from dfke_jax.data.tables import TABLES, Table, load_table
from dfke_jax.data.tones import TONES, tones

__all__ = [
    "TABLES",
    "TONES",
    "Availability",
    "Binning",
    "Column",
    "Dataset",
    "Schema",
    "Split",
    "Table",
    "affine",
    "alternating_flip",
    "augment",
    "available",
    "compose",
    "cutout",
    "flip",
    "gaussian_noise",
    "identity",
    "load",
    "load_table",
    "quantile_binning",
    "random_crop",
    "reflect_shift",
    "resized_crop",
    "salt_and_pepper",
    "shift",
    "tfds_directory",
    "tones",
    "warp",
]
