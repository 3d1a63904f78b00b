"""The views that a result's recipe registers."""

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.experiments.bench.registry import recipe
from dfke_jax.experiments.bench.result import Result
from dfke_jax.experiments.bench.views import View


def views_of(result: Result) -> list[View]:
    """Those views of its recipe that a result has something for; none where the recipe is not known here."""
    try:
        known = recipe(result.recipe)
    except UnknownNameError:
        return []
    return [view for view in known.views if view.holds(result)]


__all__ = ["views_of"]
