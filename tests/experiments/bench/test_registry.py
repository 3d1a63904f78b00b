"""Recipes by name: each is where the table says, and is loaded with its own family alone."""

import os
import subprocess
import sys

import pytest

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.experiments import recipe, recipes
from dfke_jax.experiments.bench import registry

FAMILIES = ("distillation", "extraction", "ownership", "watermarks")
_LOADED = """
import os, sys
from dfke_jax.experiments import recipe
for name in sys.argv[1:]:
    sys.stdout.flush()
    if not os.fork():  # every recipe begins with what all have loaded
        recipe(name)
        print(name, *(module for module in sys.modules if module.startswith("dfke_jax.experiments.")), flush=True)
        os._exit(0)
    os.wait()
"""
OWN = {
    "dfme": {"extraction"},
    "zskd": {"distillation"},
    "dataset-inference": {"ownership"},
    "ewe": {"watermarks"},
    "watermark-removal": {"watermarks", "extraction"},  # attacks by extraction remove marks
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_recipe_loads_its_own_family():
    done = subprocess.run([sys.executable, "-c", _LOADED, *OWN], capture_output=True, text=True, check=True)
    loaded = {name: set(modules) for name, *modules in map(str.split, done.stdout.splitlines())}
    assert {
        name: {family for family in FAMILIES if f"dfke_jax.experiments.{family}" in modules}
        for name, modules in loaded.items()
    } == OWN
    assert all("dfke_jax.experiments.bench.registry" in modules for modules in loaded.values())


def test_the_table_says_where_every_recipe_is():
    listed = [name for names in registry._FAMILIES.values() for name in names]
    assert list(recipes()) == listed
    for module, names in registry._FAMILIES.items():
        for name in names:
            assert recipe(name).name == name
            assert recipe(name).config.__module__ in (f"dfke_jax.experiments.{module}", "types")


def test_unknown_recipe():
    with pytest.raises(UnknownNameError, match="data-impressions"):
        recipe("data-impresions")
