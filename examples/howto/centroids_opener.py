"""Nearest centroids: a classifier in an `.npz` file, opened like any other model.

This is a whole opener: what recognises a file, and what opens it. It is asked two rows by
`open_model`, which finds out or checks everything else.
"""

from pathlib import Path

import numpy as np

from dfke_jax.core import InputError
from dfke_jax.models import Declared, Found, Opener, suffix


def open(where: str, said: Declared) -> Found:
    """``centroids`` (K, H, W, C) of a file; logits are −‖x − c_k‖² / width.

    Raises:
      InputError: the file is none, or holds something else.
    """
    said.only(kind="a file of centroids")  # what else is declared has no use here, and is refused
    try:
        with np.load(where, allow_pickle=False) as archive:
            centroids, width = archive["centroids"], float(archive["width"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{where} holds no centroids: {error}") from error
    shape = said.shape(centroids.shape[1:], Path(where).name)

    def ask(rows: np.ndarray) -> np.ndarray:
        apart = np.square(rows[:, None] - centroids[None]).reshape(len(rows), len(centroids), -1)
        return (-apart.sum(-1) / width).astype(rows.dtype)

    return Found("nearest centroids", Path(where).name, shape, ask=ask, num_classes=len(centroids))


CENTROIDS = Opener("nearest centroids", "FILE.centroids.npz", suffix(".centroids.npz"), __name__)
"""Its line in the table: ``dfke_jax.models.OPENERS.insert(0, CENTROIDS)``."""
