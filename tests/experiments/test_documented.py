"""The experiments that the documentation reports, published figures, and that every recipe is run by a test."""

import collections
import json
import re
import runpy
from pathlib import Path

from dfke_jax.experiments import recipes
from dfke_jax.experiments.bench.run import as_written
from dfke_jax.experiments.documented import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]


def test_every_recipe_is_run_by_a_test_of_its_family():
    found = [
        name
        for family in ("distillation", "extraction", "ownership", "watermarks")
        for path in sorted((Path(__file__).parent / family).glob("test_*.py"))
        for name in runpy.run_path(str(path)).get("RECIPES", ())
    ]
    assert sorted(found) == sorted(recipes())


def differences(kept, now, place=""):
    """Fields of both with another value; a field that is in one alone came or went since."""
    for name in kept.keys() & now.keys():
        if isinstance(kept[name], dict) and isinstance(now[name], dict):
            yield from differences(kept[name], now[name], f"{place}{name}.")
        elif kept[name] != now[name]:
            yield f"{place}{name}"


# kept from before these were changed: how walks are cut into programs, and how many innocent models there are
CHANGED = {"inference.walk.block", "inference.walk.lanes", "null_models", "independents"}


def test_kept_results_have_the_settings_of_their_experiment():
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    assert len(files) > 100
    for path in files:
        now, kept = as_written(EXPERIMENTS[path.stem].config()), json.loads(path.read_text())["config"]
        assert kept.keys() & now.keys() >= {"dataset", "seed", "seeds"}, path.name
        differing = set(differences(kept, now)) - {"seeds"}  # as many as were run
        assert differing <= CHANGED, f"{path.name}: {sorted(differing - CHANGED)}"


def test_documented_experiments_have_valid_configurations():
    for name, experiment in EXPERIMENTS.items():
        config = experiment.config()
        assert config.dataset == experiment.dataset, name
        if hasattr(config, "samples") and hasattr(config, "synthesis_batch"):
            assert config.samples % config.synthesis_batch == 0, name


def test_published_figures_name_arms_that_exist():
    """An arm of the recipe's kept results or, before it has any, an anchor or one of its name."""
    kept = collections.defaultdict(set)
    for path in (ROOT / "docs" / "results").glob("*.json"):
        content = json.loads(path.read_text())
        kept[content["recipe"]].update(arm["name"] for arm in content["arms"])
    for entry in recipes().values():
        for figure in entry.published:
            of_its_name = re.fullmatch(rf"{entry.name.replace('-', '_')}(_\d+)?", figure.arm)
            settings = entry.settings(figure.dataset if figure.dataset in entry.datasets else None)
            known = kept[entry.name] | {arm.name for arm in entry.arms(settings)} | {"scratch", "real_data"}
            assert of_its_name or figure.arm in known, (entry.name, figure)
