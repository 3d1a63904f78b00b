"""Recipes by name: a published experiment, its configuration, its figure and what it costs."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.data.csv_files import is_csv
from dfke_jax.experiments.bench.result import Arm, Published
from dfke_jax.experiments.bench.views import View

TABLE = "table"
"""Of presets: any CSV file."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A published experiment that can be run by name: data, and functions of one seed.

    The engine (`dfke_jax.experiments.run_recipe`) calls them, seed after seed or in several
    processes, takes up what was stopped, and puts the figures of the seeds together.

    Attributes:
      name: as on the command line.
      title: one line.
      summary: what it does, in two or three sentences.
      paper: citation.
      config: a frozen dataclass whose fields all have defaults and docstrings.
      arms: ``arms(config)``: what is trained, in the order of the tables. Names, labels and roles;
        a budget where the settings alone say it.
      measure: ``measure(run)`` does everything for one seed: trains, and records figures for every
        arm. See `dfke_jax.experiments.Run`.
      prepare: ``prepare(bench)`` makes once what all seeds share, ``run.shared``. It draws from the
        first seed's key and knows nothing of the other seeds, so that each process makes the same.
      published: figures from the literature.
      time: what it takes, and where, e.g. ``"1 min, 2 CPU cores (digits)"``.
      datasets: the sets it has presets and figures for; others work too.
      presets: data set -> fields whose defaults differ for it.
      views: what the report shows of its results besides arms and accuracies.
      labels: whether it needs labels though its teacher is there: without them it is refused.
      tables: whether its rows may be feature vectors, of a CSV file.
    """

    name: str
    title: str
    summary: str
    paper: str
    config: type
    arms: Callable[[Any], Sequence[Arm]]
    measure: Callable[[Any], None]
    prepare: Callable[[Any], Any] | None = None
    published: tuple[Published, ...] = ()
    time: str = ""
    datasets: tuple[str, ...] = ("digits", "mnist", "fashion_mnist")
    presets: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    views: tuple[View, ...] = ()
    labels: bool = False
    tables: bool = False

    def settings(self, dataset: str | None = None, **changes: Any) -> Any:
        """The configuration for a data set: defaults, then its preset, then `changes`.

        CSV files have the preset `TABLE`.
        """
        dataset = str(dataset or self.config.dataset)
        preset = self.presets.get(TABLE if is_csv(dataset) else dataset, {})
        return self.config(**{"dataset": dataset, **preset, **changes})


# Where recipes are that have no module to themselves, and the order of all that are named here. A
# recipe in a module of its own name (``random-shapes`` in ``random_shapes.py``) needs no entry. One that
# is asked for loads its own module and what that one builds on, and nothing else.
_FAMILIES: dict[str, tuple[str, ...]] = {
    "distillation.anchors": ("anchors",),
    "distillation.transfer_sets": ("transfer-sets",),
    "distillation.dfnd": ("dfnd",),
    "distillation.few_shot": ("few-shot",),
    "distillation.feature_distillation": ("feature-distillation",),
    "distillation.impressions": ("zskd", "data-impressions", "class-impressions"),
    "distillation.activation_records": ("activation-records",),
    "distillation.inversion": ("deep-inversion", "deep-dream", "adaptive-deep-inversion"),
    "distillation.duels": ("dafl", "dfad", "zskt", "dfq"),
    "distillation.rdskd": ("rdskd",),
    "distillation.gan_sampling": ("gan-sampling",),
    "distillation.banks": ("cmi", "fast-dfkd", "nayer"),
    "distillation.stored_statistics": ("statistics-generators", "knowledge-within"),
    "extraction.generative": ("dfme", "maze", "megex", "disguide", "dual-students", "dfms"),
    "extraction.pool": ("knockoff", "knockoff-bandit", "active-thief", "copycat", "dissector", "jbda"),
    "extraction.defences": ("defences",),
    "watermarks.removal": ("watermark-removal",),
    "watermarks.schemes": ("watermark-schemes",),
    "watermarks.entangled": ("ewe",),
    "ownership.dataset_inference": ("dataset-inference",),
    "ownership.inference_limits": ("dataset-inference-limits",),
    "ownership.encoder_inference": ("encoder-inference",),
}
_recipes: dict[str, Recipe] = {}


GROUP = "dfke_jax.recipes"
"""Entry points of other packages' recipes: name of the recipe = module that registers it."""


def register(recipe: Recipe) -> Recipe:
    """Adds a recipe; names are unique.

    From then on `recipe`, `recipes` and `run_recipe` know it. For the command line, a package names
    the module in its ``pyproject.toml``, under ``[project.entry-points."dfke_jax.recipes"]``.
    """
    if recipe.name in _recipes:
        raise ValueError(f"the recipe {recipe.name!r} is registered twice")
    _recipes[recipe.name] = recipe
    return recipe


def recipes() -> dict[str, Recipe]:
    """All recipes, by name: those of the table in its order, then the others as they registered."""
    for module in (*_FAMILIES, *_unlisted()):
        _load(module)
    for place in metadata.entry_points(group=GROUP):
        place.load()
    listed = [name for names in _FAMILIES.values() for name in names]
    return {name: _recipes[name] for name in [*listed, *(name for name in _recipes if name not in listed)]}


def recipe(name: str) -> Recipe:
    """One recipe; nothing is imported but the module that holds it.

    Raises:
      UnknownNameError: with the nearest names.
    """
    if name in _recipes:
        return _recipes[name]
    places = _places(name)
    for module in places:
        _load(module)
    for place in () if places else metadata.entry_points(group=GROUP, name=name):
        place.load()
    if name not in _recipes:
        raise UnknownNameError("recipe", name, recipes())
    return _recipes[name]


def _places(name: str) -> list[str]:
    """Modules to look for a recipe in: where the table says, else those of its name."""
    listed = [module for module, names in _FAMILIES.items() if name in names]
    title = name.replace("-", "_")
    return listed or [module for module in _unlisted() if module.partition(".")[2] == title]


def _unlisted() -> list[str]:
    """Modules of the families that the table does not name, without importing any."""
    here = Path(__file__).parent.parent
    families = dict.fromkeys(module.partition(".")[0] for module in _FAMILIES)
    walk = ((family, pkgutil.iter_modules([str(here / family)])) for family in families)
    found = [f"{family}.{module.name}" for family, modules in walk for module in modules]
    return [module for module in found if module not in _FAMILIES]


def _load(module: str) -> None:
    importlib.import_module(f"dfke_jax.experiments.{module}")


__all__ = ["GROUP", "TABLE", "Recipe", "recipe", "recipes", "register"]
