"""Dataset inference for encoders as a recipe: who is trained on what, what is entered, and what the report makes of it."""

import json

import numpy as np
import pytest
from small_runs import run_small

from dfke_jax import report
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.dataset_inference import DensitySettings
from dfke_jax.experiments import recipe, run_recipe
from dfke_jax.experiments.ownership import encoder_inference as module
from dfke_jax.experiments.ownership import views
from dfke_jax.experiments.ownership.thieves import cut

RECIPES = ("encoder-inference",)
TINY = {
    "seeds": 1,
    "private": 80,
    "public": 40,
    "others": 60,
    "teacher_steps": 4,
    "teacher_batch": 16,
    "distillation_steps": 4,
    "distillation_batch": 16,
    "thefts": ("stealing_mse",),
    "views": "noise",
    "inference": DensitySettings(components=2, dimensions=4, permutations=99),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(result, directory) of the table of encoders, small."""
    out = tmp_path_factory.mktemp("run") / "run"
    entry = recipe("encoder-inference")
    unread = {"fine_tuning_rate", "fine_tuning_steps"}  # by the thief who fine-tunes
    return run_small("encoder-inference", entry.settings("digits", **TINY), out, unread), out


@pytest.mark.slow
def test_every_encoder_is_tested_and_entered(made):
    found, out = made
    assert [arm.name for arm in found.arms] == ["source", "control", "untrained", *TINY["thefts"]]
    for arm in found.arms:
        m = arm.metrics
        assert all(len(values) == 1 for values in m.values())
        assert len(arm.accuracy) == 1
        assert arm.budget
        assert m["queries"] == [120]
        assert m["effect_low"][0] <= m["effect"][0] <= m["effect_high"][0]
        p = {test: value for test, (value,) in arm.p_values.items()}
        for name in ("welch", "permutation", "conformal", "welch_either", "permutation_either", "conformal_either"):
            assert 0 < p[name] <= 1
        if arm.role != "control":
            assert p["conformal"] * 22 == pytest.approx(round(p["conformal"] * 22))
            assert p["welch_either"] == pytest.approx(2 * min(p["welch"], 1 - p["welch"]))
            assert arm.over("revealed", "welch").at(40) == pytest.approx([p["welch"]])
    by_name = {arm.name: arm for arm in found.arms}
    control = by_name["control"].metrics
    # of 21 statistics only the largest can rank first among the 20 others and itself
    assert by_name["control"].false_positives["conformal"][0] <= 100 / 21 + 1e-9
    assert control["statistic_low"][0] < control["statistic"][0] < control["statistic_high"][0]
    assert by_name["stealing_mse"].budget == {"victim_rows": 60, "steps": 4}
    content = json.loads((out / "result.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"]["source_welch"]["values"] == by_name["source"].p_values["welch"]
    notes = " ".join(found.notes)
    assert "40 private images fit the density of each encoder, 40 others are tested against 40 public" in notes
    assert "they share images with one another" in notes
    assert ("has no power on digits" in notes) == (not by_name["source"].metrics["stolen"][0])


@pytest.mark.slow
def test_report_of_encoders(made):
    found, _ = made
    rows = views.threats(found)
    assert [row.arm.name for row in rows] == [arm.name for arm in found.arms]
    sentences = report.verdict(found)
    assert "accused wrongly by the Welch test" in sentences[1]
    assert "in either direction" in sentences[0]
    assert "in either direction" in sentences[1]
    assert set(views.p_curves(found)) == {arm.name for arm in found.arms}
    assert "linear probe" in views.threat_table(found).markdown()


def test_images_of_different_purposes_are_different_images():
    images = np.arange(400, dtype=np.float32).reshape(100, 2, 2, 1) / 400
    parts, _ = cut(images, np.arange(100), (20, 10, 20), 0)
    together = np.concatenate([part[0].reshape(-1, 4) for part in parts])
    assert len(np.unique(together, axis=0)) == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"independents": 20}, "independents must be at least 21"),
        ({"private": 0}, "private must be at least 1"),
        ({"contrast": 0.0}, "contrast and fine_tuning_rate must be positive"),
        ({"private": 60}, r"teacher_batch \(64\) may not exceed private \(60\)"),
        ({"others": 63}, "nor distillation_batch"),
    ],
)
def test_settings_are_refused_before_any_work(changes, message):
    with pytest.raises(InputError, match=message):
        recipe("encoder-inference").settings("digits", **changes)


def test_a_thief_of_another_width_is_refused_before_any_training(tmp_path):
    entry = recipe("encoder-inference")
    config = entry.settings("digits", student="hinton_mlp_half")
    with pytest.raises(InputError, match=r"as wide as the victim: .*'hinton_mlp_half': 800"):
        run_recipe(entry, config, out=tmp_path / "run", progress=False, devices=1)


def test_names_are_refused():
    with pytest.raises(UnknownNameError, match="nearest: stealing_mse"):
        recipe("encoder-inference").settings("digits", thefts=("stealing_mae",))
    with pytest.raises(UnknownNameError, match="nearest: affine"):
        module.views("affin", (8, 8, 1))


@pytest.mark.slow
def test_synthetic_encoders_are_real_encoders(tmp_path):
    """A probe reads more out of the victim than out of an untrained encoder."""
    entry = recipe("encoder-inference")
    config = entry.settings("synthetic", seeds=1, thefts=("stealing_mse",))
    found = {arm.name: arm for arm in run_recipe(entry, config, out=tmp_path, progress=False, devices=1).arms}
    for name in ("source", "control", "stealing_mse"):
        assert found[name].accuracy[0] > found["untrained"].accuracy[0] + 5, name
