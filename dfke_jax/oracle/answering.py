"""A classifier's answers on the host, as an endpoint gives them: what
`dfke_jax.oracle.serve.create_app` is handed.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.oracle.explanations import Explanation, explanation_oracle
from dfke_jax.oracle.reveal import Reveal


def answering(
    victim: Any, reveal: Reveal, gives: Literal["logits", "probabilities", "label"] = "logits"
) -> Callable[[np.ndarray], np.ndarray]:
    """Rows (B, ...) on the host -> what `reveal` leaves of a victim's answers.

    Batches are padded to powers of two, so that few programs are compiled.

    Args:
      victim: a `Classifier`, or another callable pytree, rows -> (B, K). gives: logits or
        probabilities.

    Raises:
      InputError: logits of a victim that gives probabilities.
    """
    if gives == "probabilities" and reveal.kind == "logits":
        raise InputError(
            "a victim that gives probabilities cannot reveal logits; reveal probabilities instead"
        )
    return _padded(lambda rows: _revealed(reveal, gives, victim, rows))


def explaining(
    classifier: WhiteBox, reveal: Reveal, setting: Explanation
) -> Callable[[np.ndarray], Any]:
    """Rows (B, H, W, C) on the host -> `Explained`; padded as `answering` pads."""
    oracle = explanation_oracle(classifier, setting, reveal)
    return _padded(lambda rows: _answered(oracle, rows))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _revealed(reveal: Reveal, gives: str, victim: Any, rows: Any) -> Any:
    """Compiled once for all victims of one kind."""
    of = reveal.of_logits if gives == "logits" else reveal.of_probabilities
    return of(victim(rows))


@jax.jit
def _answered(oracle: Any, rows: Any) -> Any:
    return oracle(rows)


def _padded(answer: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
    def predict(rows: np.ndarray) -> Any:
        size = 1 << (len(rows) - 1).bit_length()
        padded = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), 0)])
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(rows)], answer(padded))

    return predict


__all__ = ["answering", "explaining"]
