"""What results of distillation look like besides accuracies: how steady students are, and whose boundaries they have."""

from dfke_jax.display.numbers import spread
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.bench.views import View

COLUMNS = {
    "tail_mean": "accuracy, last tenth",
    "tail_variance": "its variance",
    "transition_error": "transition error",
}


def steady_arms(result: Result) -> list[Arm]:
    """The arms whose students were measured over the last tenth of their training."""
    return [arm for arm in result.arms if "tail_mean" in arm.metrics]


def steadiness_table(result: Result) -> Table:
    """Of every such arm the mean and variance over the last tenth, and the transition error, over seeds."""
    arms = steady_arms(result)
    rows = [
        [arm.label, *(spread(arm.metrics[name]) if name in arm.metrics else "" for name in COLUMNS)] for arm in arms
    ]
    notes = (
        "Accuracy and variance (in squared per cent) are of up to 2,000 test images, at equal distances over the last "
        "tenth of the steps. Transition error: mean difference, in points, of teacher and student in the probability of "
        "the class that a path across the student's boundaries leads to.",
    )
    return Table(["arm", *COLUMNS.values()], rows, notes=notes, roles=[arm.role for arm in arms])


STEADINESS = View(
    name="steadiness",
    title="Steadiness and boundaries",
    holds=lambda result: bool(steady_arms(result)),
    table=steadiness_table,
    subject=False,
)

__all__ = ["STEADINESS", "steadiness_table", "steady_arms"]
