"""Anybody's models, in and out: one door for every kind, and what is taken away again."""

from dfke_jax.models.declared import Declared, declared
from dfke_jax.models.exporting import FORMATS, export
from dfke_jax.models.open import load, open_model
from dfke_jax.models.opened import Found, OpenedModel, opened
from dfke_jax.models.table import OPENERS, Opener, either, instance, suffix
from dfke_jax.models.to_art import to_art

__all__ = [
    "FORMATS",
    "OPENERS",
    "Declared",
    "Found",
    "OpenedModel",
    "Opener",
    "declared",
    "either",
    "export",
    "instance",
    "load",
    "open_model",
    "opened",
    "suffix",
    "to_art",
]
