"""Where the time of a joint method goes: what making images takes, and what learning from them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.tree_util import Partial

from dfke_jax.core.loop import run as run_method
from dfke_jax.core.types import Array, Key
from dfke_jax.distillation.response import knowledge_distillation
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.nn.classifier import Classifier

SHORT = 5.0
"""Stages of fewer seconds are booked whole: to time the student alone would take longer than they did."""
_TIMED = 40


@contextlib.contextmanager
def synthesis_apart(run: Run[Any], student: Classifier, updates: int, rows: int) -> Iterator[None]:
    """Books the time of a stage of ``distillation`` within the block on ``synthesis`` and ``distillation``.

    In a method that makes images and learns from them in one program nothing tells the two apart. So as many updates of
    the same student on ready images, as large batches, the teacher's answers included, are timed by themselves; what the
    stage took beyond them is synthesis. An estimate, as good as the machine was quiet.

    Args:
      run: of the recipe. student: its network.
      updates: of the student within the block. rows: of each.
    """
    seconds = run.bench.seconds
    before = seconds.get("distillation", 0.0)
    yield
    spent = seconds.get("distillation", 0.0) - before
    if spent < SHORT:
        return
    images = jax.random.uniform(run.key("timed"), (2 * rows, *run.dataset.shape))
    alone = knowledge_distillation(
        student, run.teacher, images, steps=_TIMED, batch_size=rows, augment=Partial(_unchanged)
    )
    with run.clock("evaluation"):
        took = run_method(alone, run.key("timed"), _TIMED, chunk=_TIMED, progress=None)
    moved = max(0.0, spent - updates * took.seconds / _TIMED)
    seconds["distillation"] -= moved
    seconds["synthesis"] = seconds.get("synthesis", 0.0) + moved
    run.bench.account.write()
    run.note("Seconds of synthesis are what a stage took beyond its student's updates, which were timed by themselves.")


def _unchanged(key: Key, images: Array) -> Array:
    """An augmentation that leaves images as they are; with one the teacher answers every batch anew."""
    return images


__all__ = ["SHORT", "synthesis_apart"]
