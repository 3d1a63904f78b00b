"""The experiments that the documentation reports, published figures, and that every recipe is run by a test."""

import runpy
from pathlib import Path

from dfke_jax.experiments import recipes
from dfke_jax.experiments.documented import EXPERIMENTS


def test_every_recipe_is_run_by_a_test_of_its_family():
    found = [
        name
        for family in ("distillation", "extraction", "ownership", "watermarks")
        for path in sorted((Path(__file__).parent / family).glob("test_*.py"))
        for name in runpy.run_path(str(path)).get("RECIPES", ())
    ]
    assert sorted(found) == sorted(recipes())


def test_documented_experiments_have_valid_configurations():
    for name, experiment in EXPERIMENTS.items():
        config = experiment.config()
        assert config.dataset == experiment.dataset, name
        if hasattr(config, "samples") and hasattr(config, "synthesis_batch"):
            assert config.samples % config.synthesis_batch == 0, name


def test_published_figures_name_arms_that_exist():
    known = {"teacher", "scratch", "real_data", "uniform_noise", "gaussian_noise", "unrelated_balanced_control",
             "data_impressions", "top_layer", "all_layers",
             "dfme_10000", "dfme_20000", "dfme_50000", "dfme_100000", "dfme_20000000", "dfms_8000000",
             *(f"{attack}_{budget}" for budget in (10_000, 20_000)
               for attack in ("knockoff", "active_thief", "copycat", "dissector")),
             "entangled", "dafl", "dfad"}  # fmt: skip
    for entry in recipes().values():
        for figure in entry.published:
            assert figure.arm in known, figure
