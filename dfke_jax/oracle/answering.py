"""A classifier's answers on the host, as an endpoint gives them: what `dfke_jax.oracle.serve.create_app` is handed."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dfke_jax.nn.classifier import Classifier
from dfke_jax.oracle.explanations import Explanation, explanation_oracle
from dfke_jax.oracle.reveal import Reveal


def answering(classifier: Classifier, reveal: Reveal) -> Callable[[np.ndarray], np.ndarray]:
    """Rows (B, H, W, C) on the host -> what `reveal` leaves of the classifier's answers.

    Batches are padded to powers of two, so that few programs are compiled.
    """
    compiled = jax.jit(lambda classifier, rows: reveal.of_logits(classifier(rows)))
    return _padded(lambda rows: compiled(classifier, rows))


def explaining(classifier: Classifier, reveal: Reveal, setting: Explanation) -> Callable[[np.ndarray], Any]:
    """Rows (B, H, W, C) on the host -> `Explained`; padded as `answering` pads."""
    oracle = explanation_oracle(classifier, setting, reveal)
    compiled = jax.jit(lambda oracle, rows: oracle(rows))
    return _padded(lambda rows: compiled(oracle, rows))


def _padded(answer: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    def predict(rows: np.ndarray) -> Any:
        size = 1 << (len(rows) - 1).bit_length()
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(rows)], answer(padded))

    return predict


__all__ = ["answering", "explaining"]
