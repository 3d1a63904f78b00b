"""Students: what learns a teacher's answers to a transfer set, and what that takes."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dfke_jax.core.method import Method
from dfke_jax.core.types import Array
from dfke_jax.distillation.response import knowledge_distillation
from dfke_jax.distillation.transfer_sets import balanced_rows
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import AnchoredSettings, DistillationSettings, TransferSettings, augmentation
from dfke_jax.experiments.bench.steadiness import transition_error, watched_stage
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import trained
from dfke_jax.synthesis.shapes import synthetic_shapes
from dfke_jax.synthesis.starts import smooth_noise


def distil(
    run: Run[Any], name: str, images: Array, augment: str | None = None, teacher: Classifier | None = None
) -> Classifier:
    """A student distilled on a transfer set (N, H, W, C), with the recipe's budget.

    Args:
      run: of a recipe with `TransferSettings`. name: of the arm. images: the transfer set.
      augment: name of the augmentation; the configuration's by default.
      teacher: whose answers are learnt; the seed's by default.
    """
    c, student = run.config, run.network(run.config.student)
    method = _learning(run, images, augment, teacher)
    rows, steps = c.distillation_batch, c.distillation_steps
    return trained(student, run.stage("distillation", f"{name}/student", method, steps, rows=rows))


def distil_watched(run: Run[Any], name: str, images: Array) -> tuple[Classifier, dict[str, float]]:
    """`distil`, and how steady the student was at its end: see `dfke_jax.experiments.bench.steadiness`."""
    c, student = run.config, run.network(run.config.student)
    method, rows, steps = _learning(run, images), c.distillation_batch, c.distillation_steps
    state, steady = watched_stage(run, f"{name}/student", method, steps, student, rows=rows)
    learnt = trained(student, state)
    return learnt, {**steady, **transition_error(run, learnt)}


def _learning(run: Run[Any], images: Array, augment: str | None = None, teacher: Classifier | None = None) -> Method:
    c: TransferSettings = run.config
    augment = augment or c.augmentation
    return knowledge_distillation(
        run.network(c.student), teacher or run.teacher, images, **_budget(c), augment=augmentation(augment)
    )


def distilled_from_real_data(run: Run[Any]) -> Classifier:
    """The student distilled on the real training images, the ceiling of data-free methods; from the user's cache."""
    return _anchor(run, "real_data", run.dataset.train.images)


SMOOTH, SHAPES = "smooth_noise", "balanced_shapes"
ARBITRARY = {SMOOTH: "Smooth noise", SHAPES: "Random shapes, balanced"}
"""Transfer sets that nobody made for the purpose, by the names of their arms."""
ASKED = 3
"""Random shapes that the teacher answers for each image of a balanced set."""


def distilled_from_arbitrary(run: Run[Any], kind: str) -> Classifier:
    """The student distilled on images of `ARBITRARY`, as `distilled_from_real_data`; from the user's cache.

    It depends on the teacher, the seed and the budget of distillation alone: recipes share it.
    """
    count = run.config.arbitrary
    if kind == SMOOTH:
        images = smooth_noise(run.key(kind), (count, *run.dataset.shape))
    else:
        shapes = np.asarray(synthetic_shapes(run.key(kind), ASKED * count, run.dataset.shape))
        answers = run.teacher.predict(shapes).argmax(1)
        images = shapes[balanced_rows(answers, count, run.seed)]
    return _anchor(run, kind, images)


def _anchor(run: Run[Any], what: str, images: Any) -> Classifier:
    c: AnchoredSettings = run.config
    student, budget = run.network(c.student), _budget(c)
    images = jnp.asarray(images)
    method = knowledge_distillation(student, run.teacher, images, **budget, augment=augmentation(c.real_augmentation))
    description = [
        *([len(images)] if what in ARBITRARY else []),
        c.teacher, c.student, c.teacher_steps, c.teacher_batch, c.teacher_learning_rate, c.teacher_augmentation,
        budget, c.real_augmentation, c.fit, *([run.bench.own.mark] if run.bench.own else []),
    ]  # fmt: skip
    return run.bench.cached(what, run.seed, student, method, c.distillation_steps, description)


def _budget(config: DistillationSettings) -> dict[str, Any]:
    return {
        "steps": config.distillation_steps,
        "batch_size": config.distillation_batch,
        "learning_rate": config.distillation_learning_rate,
        "temperature": config.temperature,
    }


__all__ = [
    "ARBITRARY",
    "ASKED",
    "SHAPES",
    "SMOOTH",
    "distil",
    "distil_watched",
    "distilled_from_arbitrary",
    "distilled_from_real_data",
]
