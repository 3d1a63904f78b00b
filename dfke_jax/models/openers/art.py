"""Classifiers of the Adversarial Robustness Toolbox."""

from typing import Any

import numpy as np

from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.oracle import from_art


def open(where: Any, said: Declared) -> Found:
    """An ART estimator; rows are (H, W, C) or (D,), its box is its ``clip_values``."""
    said.only(kind="an ART estimator")
    victim = from_art(where, said.input_shape, said.num_classes)
    clip = where.clip_values
    box = None if clip is None else (float(np.min(clip[0])), float(np.max(clip[1])))
    return Found(
        "an ART estimator",
        victim.name,
        victim.input_shape,
        ask=victim.predict,
        num_classes=victim.num_classes,
        box=box,
    )


__all__ = ["open"]
