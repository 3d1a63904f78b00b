"""How steady a student is at its end, and how far it follows its teacher across class boundaries."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from dfke_jax.core.method import Method
from dfke_jax.core.types import PyTree
from dfke_jax.evaluation.tail import watched
from dfke_jax.evaluation.transition import mean_transition_error, transition_curves
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.nn.classifier import Classifier

WATCHED, WALKED = 2000, 100
"""Test images that are evaluated during training, and from which paths begin."""


def student_variables(state: Any) -> PyTree:
    """The student's variables, of a state that has a ``student`` in training."""
    return state.student.variables


def watched_stage(
    run: Run[Any],
    name: str,
    method: Method,
    steps: int,
    network: Classifier,
    *,
    variables: Callable[[Any], PyTree] | None = None,
    **options: Any,
) -> tuple[Any, dict[str, float]]:
    """A stage of distillation whose student is measured over the last tenth of its steps.

    Args:
      run, name, method, steps: as of `Run.stage`. network: the student's.
      variables: see `dfke_jax.evaluation.watched`. options: of `Run.stage`.

    Returns:
      The method's last state, and ``tail_mean`` and ``tail_variance`` of the accuracy in per cent; without labels,
      nothing of that.
    """
    if not run.dataset.labelled:
        return run.stage("distillation", name, method, steps, **options), {}
    test = run.dataset.test
    images, labels = jnp.asarray(test.images[:WATCHED]), jnp.asarray(test.labels[:WATCHED])
    method = watched(method, network, images, labels, steps, variables=variables)
    found = run.stage("distillation", name, method, steps, **options)
    steady = {"tail_mean": float(found.mean), "tail_variance": float(found.variance)}
    return found.state, steady


def transition_error(run: Run[Any], student: Classifier) -> dict[str, float]:
    """``transition_error``, in per cent: see `dfke_jax.evaluation.mean_transition_error`.

    It is 100, the most there is, for a student that agrees with its teacher on none of the images.
    """
    with run.clock("evaluation"):
        images = run.dataset.test.images[:WALKED]
        ours, theirs = (network.predict(images).argmax(1) for network in (student, run.teacher))
        if not (ours == theirs).any():
            return {"transition_error": 100.0}
        curves = transition_curves(student, run.teacher, images)
        return {"transition_error": 100 * mean_transition_error(curves)}


__all__ = ["student_variables", "transition_error", "watched_stage"]
