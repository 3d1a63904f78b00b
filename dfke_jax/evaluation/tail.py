"""How steady a student is at the end of its training: its accuracy over the last part, not its best
or last iterate alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, as_method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.nn.classifier import Classifier, as_float

PIECE = 250
"""Images that are evaluated together."""


class Watched(NamedTuple):
    """State of a watched method.

    Attributes:
      state: the method's own. steps: () int32, taken. count: () int32, evaluations so far.
      mean: () float32, of the accuracies, in per cent. squares: () float32, Σ (a − mean)².
    """

    state: PyTree
    steps: Array
    count: Array
    mean: Array
    squares: Array

    @property
    def variance(self) -> Array:
        """Unbiased variance of the accuracies, in squared per cent; 0 for fewer than two."""
        return self.squares / jnp.maximum(self.count - 1, 1)


def watched(
    method: Method,
    classifier: Classifier,
    images: Array,
    labels: Array,
    steps: int,
    *,
    variables: Callable[[Any], PyTree] | None = None,
    share: float = 0.1,
    evaluations: int = 10,
) -> Method:
    """The same method, whose student is evaluated at equal distances over the last share of steps.

    Everything happens inside the compiled program, and what was measured is part of the state: the
    training itself has the same bits, and a run that was stopped measures what it would have.

    Args:
      method: any. classifier: the student's network; its variables are not used.
      images, labels: (N, H, W, C) and (N,), to measure on. Nothing may be chosen by the result
        where they are test data.
      steps: that the method is run for.
      variables: state -> the student's variables, a module-level function; by default
        ``state.variables``.
      share: in (0, 1], of the steps. evaluations: at most so many, the last after the last step.

    Returns:
      A `Method` over `Watched`. Under `vmap` every step is evaluated, which is slow.

    Raises:
      InputError: for numbers outside their range, or labels of another length.
    """
    if steps < 1 or evaluations < 1 or not 0 < share <= 1:
        raise InputError(
            "steps and evaluations must be at least 1 and share in (0, 1], got "
            f"{steps}, {evaluations} and {share}"
        )
    if len(images) != len(labels) or not len(labels):
        raise InputError(f"got {len(images)} images and {len(labels)} labels")
    length = max(1, round(share * steps))
    every = -(-length // evaluations)
    return as_method(
        _Watching(
            init_method=method.init,  # type: ignore[arg-type]
            step_method=method.step,  # type: ignore[arg-type]
            images=images,
            labels=labels,
            classifier=classifier,
            variables=variables or _own_variables,
            window=(steps - length, steps, every),
        )
    )


def _own_variables(state: Any) -> PyTree:
    return state.variables


@record
class _Watching:
    init_method: Partial
    step_method: Partial
    images: Array
    labels: Array
    classifier: Classifier
    variables: Callable[[Any], PyTree] = static_field()
    window: tuple[int, int, int] = static_field()

    def init(self, key: Key) -> Watched:
        none = jnp.zeros((), jnp.int32)
        return Watched(self.init_method(key), none, none, jnp.zeros(()), jnp.zeros(()))

    def step(self, key: Key, state: Watched) -> tuple[Watched, Metrics]:
        inner, metrics = self.step_method(key, state.state)
        steps = state.steps + 1
        first, last, every = self.window
        due = (steps > first) & (steps <= last) & ((last - steps) % every == 0)
        before = (state.count, state.mean, state.squares)
        after = jax.lax.cond(due, self._measured, lambda _, before: before, inner, before)
        return Watched(inner, steps, *after), metrics

    def _measured(self, state: PyTree, before: tuple[Array, ...]) -> tuple[Array, ...]:
        """Welford's update by the accuracy of the state's student."""
        count, mean, squares = before
        accuracy = 100 * self._accuracy(
            dataclasses.replace(self.classifier, variables=self.variables(state))
        )
        count = count + 1
        apart = accuracy - mean
        # (a − m)(a − m') = (a − m)²·(n − 1)/n, which rounding cannot make negative
        return count, mean + apart / count, squares + jnp.square(apart) * (count - 1) / count

    def _accuracy(self, classifier: Classifier) -> Array:
        """Share of images put into their class; those that fill the last piece have class −1."""
        fill = -len(self.labels) % PIECE
        images = jnp.pad(self.images, [(0, fill)] + [(0, 0)] * (self.images.ndim - 1))
        labels = jnp.pad(self.labels, (0, fill), constant_values=-1).reshape(-1, PIECE)

        def piece(both: tuple[Array, Array]) -> Array:
            return jnp.sum(jnp.argmax(classifier(as_float(both[0])), -1) == both[1])

        right = jax.lax.map(piece, (images.reshape(-1, PIECE, *images.shape[1:]), labels))
        return jnp.sum(right) / len(self.labels)


__all__ = ["Watched", "watched"]
