"""Students: what learns a teacher's answers to a transfer set, and what that takes."""

from typing import Any

import jax.numpy as jnp

from dfke_jax.core.types import Array
from dfke_jax.distillation.response import knowledge_distillation
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import AnchoredSettings, DistillationSettings, TransferSettings, augmentation
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import trained


def distil(
    run: Run[Any], name: str, images: Array, augment: str | None = None, teacher: Classifier | None = None
) -> Classifier:
    """A student distilled on a transfer set (N, H, W, C), with the recipe's budget.

    Args:
      run: of a recipe with `TransferSettings`. name: of the arm. images: the transfer set.
      augment: name of the augmentation; the configuration's by default.
      teacher: whose answers are learnt; the seed's by default.
    """
    c: TransferSettings = run.config
    student, augment = run.network(c.student), augment or c.augmentation
    method = knowledge_distillation(
        student, teacher or run.teacher, images, **_budget(c), augment=augmentation(augment)
    )
    rows, steps = c.distillation_batch, c.distillation_steps
    return trained(student, run.stage("distillation", f"{name}/student", method, steps, rows=rows))


def distilled_from_real_data(run: Run[Any]) -> Classifier:
    """The student distilled on the real training images, the ceiling of data-free methods; from the user's cache."""
    c: AnchoredSettings = run.config
    student, budget = run.network(c.student), _budget(c)
    images = jnp.asarray(run.dataset.train.images)
    method = knowledge_distillation(student, run.teacher, images, **budget, augment=augmentation(c.real_augmentation))
    description = [
        c.teacher, c.student, c.teacher_steps, c.teacher_batch, c.teacher_learning_rate, c.teacher_augmentation,
        budget, c.real_augmentation, c.fit, *([run.bench.own.mark] if run.bench.own else []),
    ]  # fmt: skip
    return run.bench.cached("real_data", run.seed, student, method, c.distillation_steps, description)


def _budget(config: DistillationSettings) -> dict[str, Any]:
    return {
        "steps": config.distillation_steps,
        "batch_size": config.distillation_batch,
        "learning_rate": config.distillation_learning_rate,
        "temperature": config.temperature,
    }


__all__ = ["distil", "distilled_from_real_data"]
