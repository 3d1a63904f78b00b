"""Models of every kind for the Adversarial Robustness Toolbox; the other way is `open_model`."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.models.opened import OpenedModel
from dfke_jax.oracle.reveal import answered_probabilities


def to_art(model: OpenedModel) -> Any:
    """A `BlackBoxClassifierNeuralNetwork` of the toolbox: rows (N, H, W, C) -> probabilities (N, K).

    What float noise pushes out of the model's box is put back to its edge. A model that gives labels
    answers them one-hot; of an endpoint's logits, or its k largest probabilities, the answers are
    those of `answered_probabilities`. An endpoint is asked, and charges, as often as the toolbox
    asks.

    Raises:
      InputError: the toolbox is not installed.
    """
    try:
        from art.estimators.classification import BlackBoxClassifierNeuralNetwork
    except ImportError:
        raise InputError('`pip install -e ".[art]"` in a clone of the repository') from None
    oracle, (low, high) = model.oracle(), model.box

    def predict(rows: np.ndarray) -> np.ndarray:
        answers = oracle(np.clip(np.asarray(rows, np.float32), low, high))  # type: ignore[arg-type]
        shares = answered_probabilities(jnp.asarray(answers), oracle.reveal, model.num_classes)
        return np.asarray(shares)

    return BlackBoxClassifierNeuralNetwork(
        predict, model.input_shape, model.num_classes, channels_first=False, clip_values=(low, high)
    )


__all__ = ["to_art"]
