"""The views that a result's recipe registers, and those that any result may have."""

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.display.numbers import spread
from dfke_jax.display.tables import Table
from dfke_jax.experiments.bench.registry import recipe
from dfke_jax.experiments.bench.result import Result
from dfke_jax.experiments.bench.views import View


def views_of(result: Result) -> list[View]:
    """Those views of its recipe, and of any, that a result has something for; of a recipe that is not known here, of any."""
    try:
        known = recipe(result.recipe).views
    except UnknownNameError:
        known = ()
    return [view for view in (*known, BY_CLASS) if view.holds(result)]


def _by_class(result: Result) -> Table:
    """Accuracy among the test images of every class, and its mean over classes."""
    found = [(arm, one) for arm in result.arms if (one := arm.over("class", "accuracy"))]
    classes = found[0][1].x
    rows = [
        [arm.label, spread(arm.metrics.get("balanced_accuracy", [])), *(spread(one.at(k)) for k in classes)]
        for arm, one in found
    ]
    notes = (
        "In per cent of the test images of a class, whose classes are unequal. Balanced: the mean over classes; who "
        "always answers one class has 1/K, whatever the accuracy.",
    )
    head = ["arm", "balanced", *(f"class {k:g}" for k in classes)]
    return Table(head, rows, notes=notes, roles=[arm.role for arm, _ in found])


BY_CLASS = View(
    name="by_class",
    title="Accuracy by class",
    holds=lambda result: any(arm.over("class", "accuracy") for arm in result.arms),
    table=_by_class,
    subject=False,
)


__all__ = ["BY_CLASS", "views_of"]
