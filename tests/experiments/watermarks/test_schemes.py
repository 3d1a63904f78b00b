"""The comparison of watermarking schemes, end to end on a few images of digits, and what it refuses before any work."""

import types

import numpy as np
import pytest
from small_runs import complete, run_small, tiny

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.experiments import Result, recipe, run_recipe
from dfke_jax.experiments.watermarks.entangled import _false_claims, _figures
from dfke_jax.experiments.watermarks.marking import SCHEMES
from dfke_jax.watermarking import TriggerSet

RECIPES = ("watermark-schemes",)
UNREAD = ("unrelated",)  # the preset for digits leaves out the scheme that reads it
CHANGES = {
    "triggers": 10,
    "bits": 8,
    "independents": 2,
    "dawn_rate": 0.05,
    "frontier_steps": 10,
    "fine_tune_steps": 10,
    "extraction_steps": 30,
}


@pytest.mark.slow
def test_a_scheme_leaves_a_complete_result(tmp_path):
    settings = tiny("watermark-schemes", CHANGES, schemes=("uchida",), seeds=1)
    found = run_small("watermark-schemes", settings, tmp_path, unread=None)
    assert Result.read(tmp_path).metrics == found.metrics
    assert [arm.name for arm in found.arms] == ["teacher", "independent", "control", "uchida"]
    ((method, control),) = found.pairs()
    assert (method.name, control.name) == ("uchida", "control")
    assert {"success", "fine_tuned_success", "extracted_success", "false_alarm_rate"} <= set(method.metrics)
    assert all(len(values) == 1 and 0 <= values[0] <= 100 for values in (method.accuracy, method.agreement))


@pytest.mark.slow
def test_recipe_runs_and_leaves_a_complete_result(tmp_path):
    complete("watermark-schemes", tiny("watermark-schemes", CHANGES), tmp_path, UNREAD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": ("uchida", "adi")}, "unknown watermarking scheme 'adi'"),
        ({"schemes": ("dawn", "dawn")}, "must be distinct"),
        ({"schemes": ()}, "at least one"),
        ({"independents": 1}, "independents must be at least 2"),
        ({"radioactive_share": 0.0}, "radioactive_share"),
        ({"alpha": 1.0}, "alpha"),
        ({"bits": 0}, "bits must be at least 1"),
        ({"schemes": ("zhang_unrelated",)}, "needs a data set"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        recipe("watermark-schemes").settings("digits", **changes)


def test_source_and_target_are_two_classes(tmp_path):
    settings = recipe("watermark-schemes").settings("digits", source=3, target=10)
    with pytest.raises(InputError, match="two of the 10 classes"):
        run_recipe(recipe("watermark-schemes"), settings, out=tmp_path, progress=False, devices=1)


def test_presets_run_every_scheme_that_their_data_allow():
    for dataset in ("mnist", "fashion_mnist"):
        assert set(recipe("watermark-schemes").settings(dataset).schemes) == set(SCHEMES)
    assert set(SCHEMES) - set(recipe("watermark-schemes").settings("digits").schemes) == {"zhang_unrelated"}


class Fixed:
    """A network that answers as it is told."""

    def __init__(self, labels):
        self.labels = np.asarray(labels)

    def predict(self, images):
        return np.eye(10)[self.labels]


def test_clean_networks_are_judged_against_the_others_alone():
    """Within its own null a network cannot exceed the highest, and would never be claimed."""
    triggers = TriggerSet(np.zeros((40, 2, 2, 1), np.float32), np.full(40, 7))
    mark = types.SimpleNamespace(triggers=triggers)
    odd, *rest = clean = [Fixed(np.where(np.arange(40) < hits, 7, 1)) for hits in (38, 0, 1, 0)]
    found = _false_claims(mark, clean)
    alone = _figures(odd, mark, rest)
    assert found["claimed_with_100"] == pytest.approx(alone["claimed_with_100"] / 4, abs=0.1)
    assert alone["claimed_with_100"] > 99.9
    assert (found["watermark_success"], found["highest_false_rate"]) == (95.0, 2.5)
    assert _figures(odd, mark, clean)["claimed_with_100"] < 20, "as it was"


def test_the_level_of_a_claim_takes_twenty_clean_networks():
    assert recipe("ewe").settings("mnist").null_models == 20
    assert recipe("watermark-schemes").settings("mnist").independents == 20
    with pytest.raises(InputError, match="null_models must be at least 2"):
        recipe("ewe").settings("digits", null_models=1)
