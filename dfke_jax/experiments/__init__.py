"""Published experiments by name. The command line and the reproduction tables read this registry."""

from dfke_jax.experiments.bench.merge import merge
from dfke_jax.experiments.bench.registry import Recipe, recipe, recipes, register
from dfke_jax.experiments.bench.result import Arm, Published, Result
from dfke_jax.experiments.bench.run import run_recipe
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.bench.settings import Settings
from dfke_jax.experiments.bench.workbench import Workbench

__all__ = [
    "Arm",
    "Published",
    "Recipe",
    "Result",
    "Run",
    "Settings",
    "Workbench",
    "merge",
    "recipe",
    "recipes",
    "register",
    "run_recipe",
]
