"""Prediction poisoning: answers within a small distance of the truth that turn a clone's gradient
the most.
"""

from typing import Any, ClassVar, Literal

import flax.struct
import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Predict
from dfke_jax.oracle.defences import Defence

ENUMERATED = 10
_SHORT = 1 - 1e-3  # an answer stops this far from a vertex, where several classes tie


@flax.struct.dataclass
class PredictionPoisoning(Defence):
    """MAD: maximises the angle between the gradients that a clone would compute from the true and
    from the given answer.

    For the gradient of the cross-entropy by the last layer's weights alone, row k of G is (q − e_k)
    ⊗ h with q the proxy's probabilities and h its features, so Gᵀy = (q − y) ⊗ h for any y that
    sums to one and h drops out of the angle:

    ŷ = argmax ‖(ŷ − q)/‖ŷ − q‖ − (y − q)/‖y − q‖‖²  over  ‖ŷ − y‖₁ ≤ ε on the simplex.

    The candidates are the points where the way from y to a vertex leaves the ball. Vertices are the
    K one-hot answers, or, with `keep_argmax`, uniform answers over sets of classes that contain the
    largest: all 2^(K−1) of them up to K = 10, and beyond that the sets met by adding the best class
    greedily.

    Attributes:
      proxy: the defender's guess at a clone, a callable pytree from rows to logits (B, K); only its
        answers are used.
      epsilon: ε in [0, 2], the radius in L1; 2 is no bound.
      keep_argmax: keep the largest class the largest (a row whose two largest agree to float
        precision stays as it is).
      objective: ``angle``, above, at the candidates; ``surrogate``: ‖Gᵀ(v − y)‖² ∝ ‖v − y‖² at the
        vertices v, which the released code uses by default and which asks for no proxy.

    Source: Orekondy, Schiele and Fritz, Prediction Poisoning, ICLR 2020, sections 4.1 and 4.2.
    Deviation: the angle is compared where the ball ends and not at the vertex; the greedy search is
    not cut off after 1,024 evaluations; only the L1 distance.
    """

    proxy: Predict
    epsilon: Any = 0.5
    keep_argmax: bool = flax.struct.field(pytree_node=False, default=False)
    objective: Literal["angle", "surrogate"] = flax.struct.field(pytree_node=False, default="angle")
    name: ClassVar[str] = "prediction_poisoning"

    def __post_init__(self):
        if isinstance(self.epsilon, int | float) and not 0 <= self.epsilon <= 2:
            raise InputError(
                "epsilon of prediction_poisoning must lie in [0, 2], an L1 distance, got "
                f"{self.epsilon}"
            )
        if self.objective not in ("angle", "surrogate"):
            raise InputError(f"objective must be 'angle' or 'surrogate', not {self.objective!r}")

    def __call__(self, rows: Array, probabilities: Array) -> Array:
        classes = probabilities.shape[-1]
        guess = jax.nn.softmax(self.proxy(rows).astype(jnp.float32))
        if guess.shape != probabilities.shape:
            raise InputError(f"the proxy answers {guess.shape[-1]} classes, the victim {classes}")
        together = max(1, min(len(rows), 2**22 // classes**2))
        return jax.lax.map(lambda row: self._row(*row), (probabilities, guess), batch_size=together)

    def _row(self, truth: Array, guess: Array) -> Array:
        """(K,) and (K,) -> (K,)."""
        if not self.keep_argmax:
            vertices = jnp.eye(truth.shape[0])
            answers, scores = self._answers(vertices, truth, guess)
            return answers[jnp.argmax(scores)]
        largest = jnp.argmax(truth)
        search = self._enumerate if truth.shape[0] <= ENUMERATED else self._grow
        answer = search(truth, guess, largest)
        return jnp.where(jnp.argmax(answer) == largest, answer, truth)

    def _answers(self, vertices: Array, truth: Array, guess: Array) -> tuple[Array, Array]:
        """Vertices (S, K) -> the answers (S, K) on the way to them, and what they are worth (S,)."""
        step = vertices - truth[None]
        length = jnp.abs(step).sum(-1, keepdims=True)
        share = jnp.minimum(
            self.epsilon / jnp.maximum(length, 1e-12), _SHORT if self.keep_argmax else 1.0
        )
        answers = truth[None] + share * step
        if self.objective == "surrogate":
            return answers, jnp.square(step).sum(-1)
        turned = _unit(answers - guess[None]) - _unit(truth - guess)[None]
        return answers, jnp.square(turned).sum(-1)

    def _enumerate(self, truth: Array, guess: Array, largest: Array) -> Array:
        classes = truth.shape[0]
        subsets = (jnp.arange(1, 2**classes)[:, None] >> jnp.arange(classes)[None]) & 1
        answers, scores = self._answers(subsets / subsets.sum(1, keepdims=True), truth, guess)
        allowed = jnp.take(subsets, largest, axis=1) > 0
        return answers[jnp.argmax(jnp.where(allowed, scores, -jnp.inf))]

    def _grow(self, truth: Array, guess: Array, largest: Array) -> Array:
        one_hot = jnp.eye(truth.shape[0])

        def add(
            carry: tuple[Array, Array, Array], size: Array
        ) -> tuple[tuple[Array, Array, Array], None]:
            chosen, best, value = carry
            vertices = (chosen[None] + one_hot) / (size + 1.0)
            answers, scores = self._answers(vertices, truth, guess)
            scores = jnp.where(chosen > 0, -jnp.inf, scores)
            added = jnp.argmax(scores)
            better = scores[added] > value
            carry = (
                chosen + one_hot[added],
                jnp.where(better, answers[added], best),
                jnp.maximum(scores[added], value),
            )
            return carry, None

        chosen = one_hot[largest]
        answers, scores = self._answers(chosen[None], truth, guess)
        (_, best, _), _ = jax.lax.scan(
            add, (chosen, answers[0], scores[0]), jnp.arange(1, truth.shape[0])
        )
        return best


def _unit(vectors: Array) -> Array:
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.where(length > 0, length, 1)


__all__ = ["PredictionPoisoning"]
