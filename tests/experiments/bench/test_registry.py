"""Recipes by name: each is where the table says, and is loaded with its own family alone."""

import os
import subprocess
import sys

import pytest

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.experiments import recipe, recipes, register
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


@pytest.mark.slow
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
    assert list(recipes())[: len(listed)] == listed
    for module, names in registry._FAMILIES.items():
        for name in names:
            assert recipe(name).name == name
            family = recipe(name).config.__module__.rpartition(".")[0]  # settings may have a module of their own
            assert family in (f"dfke_jax.experiments.{module.partition('.')[0]}", "")


def test_a_recipe_outside_the_table_is_in_a_module_of_its_name():
    listed = {name for names in registry._FAMILIES.values() for name in names}
    for name, entry in recipes().items():
        if name not in listed:
            assert entry.config.__module__.rpartition(".")[2] == name.replace("-", "_")


def test_a_recipe_is_found_by_the_name_of_its_module(monkeypatch):
    """As those are that have a module to themselves, without their lines in the table."""
    table = {module: names for module, names in registry._FAMILIES.items() if module != "distillation.transfer_sets"}
    monkeypatch.setattr(registry, "_FAMILIES", table)
    assert registry._places("transfer-sets") == ["distillation.transfer_sets"]
    assert registry._places("zskd") == ["distillation.impressions"]
    assert registry._places("no-such") == []
    assert recipe("transfer-sets").name == "transfer-sets"
    listed = [name for names in table.values() for name in names]
    assert list(recipes())[: len(listed)] == listed
    assert "transfer-sets" in recipes()


_ELSEWHERE = """
import dataclasses
from dfke_jax.experiments import Recipe, Settings, register

@dataclasses.dataclass(frozen=True)
class Own(Settings):
    pass

register(Recipe("elsewhere", "Elsewhere", "", "", Own, arms=lambda config: [], measure=lambda run: None))
"""


def test_another_package_adds_a_recipe_by_an_entry_point(monkeypatch, tmp_path):
    known = recipes()
    (tmp_path / "their_recipes.py").write_text(_ELSEWHERE)
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{registry.GROUP}]\nelsewhere = their_recipes\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_recipes", dict(known))
    assert recipe("elsewhere").settings().dataset == "digits"
    assert list(recipes()) == [*known, "elsewhere"]
    with pytest.raises(ValueError, match="registered twice"):
        register(recipe("elsewhere"))


def test_unknown_recipe():
    with pytest.raises(UnknownNameError, match="data-impressions"):
        recipe("data-impresions")
