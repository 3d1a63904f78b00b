"""Recipes by name: a published experiment, its configuration, its figure and what it costs."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.experiments.result import Published


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A published experiment that can be run by name.

    Attributes:
      name: as on the command line.
      title: one line.
      summary: what it does, in two or three sentences.
      paper: citation.
      config: a frozen dataclass whose fields all have defaults and docstrings.
      execute: ``execute(config, bench) -> list of arms``; see `dfke_jax.experiments.bench`.
      published: figures from the literature.
      time: what it takes, and where, e.g. ``"1 min, 2 CPU cores (digits)"``.
      datasets: the sets it has presets and figures for; others work too.
      presets: data set -> fields whose defaults differ for it.
      by_seed: whether a seed's figures depend on that seed alone, so that seeds can run in processes of their own.
    """

    name: str
    title: str
    summary: str
    paper: str
    config: type
    execute: Callable[..., Any]
    published: tuple[Published, ...] = ()
    time: str = ""
    datasets: tuple[str, ...] = ("digits", "mnist", "fashion_mnist")
    presets: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    by_seed: bool = True

    def settings(self, dataset: str | None = None, **changes: Any) -> Any:
        """The configuration for a data set: defaults, then its preset, then `changes`."""
        dataset = str(dataset or self.config().dataset)
        return self.config(**{"dataset": dataset, **self.presets.get(dataset, {}), **changes})


# The families register themselves when imported; the modules are imported when the registry is first asked.
_FAMILIES = (
    "dfke_jax.experiments.anchors",
    "dfke_jax.experiments.transfer_sets",
    "dfke_jax.experiments.impressions",
    "dfke_jax.experiments.activation_records",
    "dfke_jax.experiments.inversion",
    "dfke_jax.experiments.duels",
    "dfke_jax.experiments.extraction",
    "dfke_jax.experiments.pool_extraction",
    "dfke_jax.experiments.defences",
    "dfke_jax.experiments.removal",
    "dfke_jax.experiments.watermark_schemes",
    "dfke_jax.experiments.entangled",
    "dfke_jax.experiments.dataset_inference",
    "dfke_jax.experiments.inference_limits",
    "dfke_jax.experiments.encoder_inference",
)
_recipes: dict[str, Recipe] = {}


def register(recipe: Recipe) -> Recipe:
    """Adds a recipe; names are unique."""
    if recipe.name in _recipes:
        raise ValueError(f"the recipe {recipe.name!r} is registered twice")
    _recipes[recipe.name] = recipe
    return recipe


def recipes() -> dict[str, Recipe]:
    """All recipes, by name, in the order of the families."""
    for family in _FAMILIES:
        importlib.import_module(family)
    return dict(_recipes)


def recipe(name: str) -> Recipe:
    """One recipe.

    Raises:
      UnknownNameError: with the nearest names.
    """
    known = recipes()
    if name not in known:
        raise UnknownNameError("recipe", name, known)
    return known[name]


__all__ = ["Recipe", "recipe", "recipes", "register"]
