"""Dataset inference as a recipe: how data are cut, who is trained on what, what is entered, and what the report makes of it."""

import dataclasses
import json
import types

import numpy as np
import pytest
from small_runs import options, reads_of, run_small

from dfke_jax import report
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.dataset_inference import BlindWalkSettings, InferenceSettings, RegressorSettings
from dfke_jax.experiments import recipe, run_recipe
from dfke_jax.experiments.bench.result import Series, Trial
from dfke_jax.experiments.bench.seed_run import Run
from dfke_jax.experiments.ownership import inference_limits, theft, views
from dfke_jax.experiments.ownership.thieves import THREATS, Parts, Theft, cut

RECIPES = ("dataset-inference", "dataset-inference-limits")
TINY = {
    "teacher_steps": 60,
    "distillation_steps": 40,
    "private": 80,
    "samples": 60,
    "others": 40,
    "impressions": 20,
    "references": 1,
    "other_network": "mlp_small",
    "threats": ("fine_tuning", "adversarial_training", "noisy_answers"),
    "inference": InferenceSettings(
        walk=BlindWalkSettings(starts=2, max_steps=20, noise=6.0),
        regressor=RegressorSettings(steps=50),
        permutations=99,
    ),
}
UNREAD = {"augmentation", "early", "impressions", "other_network", "synthesis", "temperature"}
"""What other thieves read; `test_digits_preset_with_every_thief` has all."""
LIMITS = {
    **{name: value for name, value in TINY.items() if name not in ("references", "threats")},
    "samples": 40,
    "overlaps": (0, 100),
    "forgetting": (0, 10, 30),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(result, directory) of the table of threat models, small."""
    out = tmp_path_factory.mktemp("run") / "run"
    entry = recipe("dataset-inference")
    return run_small("dataset-inference", entry.settings("digits", **TINY), out, UNREAD), out


@pytest.fixture(scope="module")
def limits(tmp_path_factory):
    out = tmp_path_factory.mktemp("limits") / "run"
    entry = recipe("dataset-inference-limits")
    settings = entry.settings("digits", **LIMITS)
    with reads_of(settings) as seen:
        found = run_recipe(entry, settings, out=out, progress=False, devices=2)
    assert seen == options(settings)
    return found, out


@pytest.mark.slow
def test_every_model_is_tested_and_entered(made):
    found, out = made
    assert [arm.name for arm in found.arms] == ["source", "control", *TINY["threats"]]
    for arm in found.arms:
        m = arm.metrics
        assert all(len(values) == 1 for values in m.values())
        p = {test: value for test, (value,) in arm.p_values.items()}
        assert 0 < p["welch"] <= 1
        assert 0 < p["permutation"] <= 1
        assert p["conformal"] * 22 == pytest.approx(round(p["conformal"] * 22)) or arm.name == "control"
        assert m["effect_low"][0] <= m["effect"][0] <= m["effect_high"][0]
        assert 60 < m["queries"][0] <= 60 * (1 + 2 * 3 * 20)
        assert arm.over("revealed", "welch").at(30) == pytest.approx([p["welch"]]) or arm.name == "control"
        assert arm.budget
        assert len(arm.accuracy) == 1
    rates = found.arms[1].false_positives
    assert set(rates) == {"welch", "conformal", "per_image", "released"}
    # of 21 statistics only the largest can rank first among the 20 others and itself
    assert rates["conformal"][0] <= 100 / 21 + 1e-9
    assert found.arms[2].budget == {"victim_rows": 40, "steps": 50}
    content = json.loads((out / "result.json").read_text(), parse_constant=pytest.fail)
    assert content["metrics"]["source_welch"]["values"] == found.arms[0].p_values["welch"]
    notes = " ".join(found.notes)
    assert "80 private, 60 public and 40 other images" in notes
    assert "Seed 0: the victim is right on" in notes
    assert "they share images with one another" in notes
    assert "of the independent models, each held against the others" in notes
    assert ("has no power on digits" in notes) == (not found.arms[0].metrics["stolen"][0])


@pytest.mark.slow
def test_a_resumed_run_walks_no_more(made, monkeypatch):
    found, out = made
    walked = []
    monkeypatch.setattr(theft, "embed", lambda *_: walked.append(1))
    entry = recipe("dataset-inference")
    again = run_recipe(entry, entry.settings("digits", **TINY), out=out, resume=True, progress=False, devices=1)
    assert not walked
    assert again.metrics == found.metrics


@pytest.mark.slow
def test_limits(limits):
    found, out = limits
    source, copy, forgetting = found.arms
    for arm in (source, copy):
        assert arm.over("overlap", "welch").x == (0.0, 100.0)
        assert arm.p_values["welch"] == arm.over("overlap", "welch").at(0)
    effect = source.over("overlap", "effect")
    assert effect.at(0) > effect.at(100)
    assert forgetting.over("forgetting", "welch").x == (0.0, 10.0, 30.0)
    assert forgetting.over("forgetting", "effect").at(0) == effect.at(0)  # nothing has happened yet
    new_task = forgetting.over("forgetting", "new_task")
    assert new_task.at(30) > new_task.at(0)
    assert set(views.limits(found, "overlap")) == {"source", "distillation"}
    assert views.limits(found, "forgetting")["forgetting"][0] == [0, 10, 30]
    assert any("after 30 steps" in sentence for sentence in report.verdict(found))
    text = report.render(out).read_text()
    assert (out / "figures" / "limits.svg").stat().st_size > 5000
    assert "The two limits" in text


@pytest.mark.slow
def test_report_of_threats(made):
    found, out = made
    rows = views.threats(found)
    assert [row.arm.name for row in rows] == [arm.name for arm in found.arms]
    assert rows[0].stolen in ("0 of 1", "1 of 1")
    assert rows[1].stolen.endswith(" %")
    sentences = report.verdict(found)
    assert len(sentences) == len(found.arms)
    assert "accused wrongly by the Welch test" in sentences[1]
    text = report.render(out).read_text()
    assert "<h2>Threat models</h2>" in text
    assert rows[2].cells[2] in text
    (axes,) = views.p_value_curves(found).axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert len(axes.lines) == len(found.arms) + 1
    np.testing.assert_array_equal(axes.lines[-1].get_ydata(), [0.05, 0.05])
    assert report.table(found).row_count == len(found.arms)


@pytest.mark.slow
def test_words_of_p_values_take_the_median_and_never_say_zero(made):
    arm = dataclasses.replace(
        made[0].arms[0],
        metrics={"effect": [0.1, 0.5, 0.3], "stolen": [100.0, 0.0, 100.0], "queries": [10, 30, 20]},
        trials=[Trial("welch", [1e-40, 0.5, 1e-9]), Trial("permutation", [0.01] * 3)],
        series=[Series("welch", "revealed", (2.0, 10.0), [[0.5, 1e-40], [0.6, 0.0], [0.7, 1e-40]])],
    )
    found = dataclasses.replace(made[0], arms=[arm])
    (row,) = views.threats(found)
    assert row.cells[1:] == ("+0.300", "1.0e-09", "0.010", "–", "2 of 3", "20")
    assert views.p_curves(found) == {"source": ([2, 10], [0.6, 1e-40])}
    line = views.p_value_curves(found).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [0.6, 1e-30])
    assert "2 of 3" in views.threat_table(found).markdown()


def test_parts_share_no_image_and_repetitions_are_left_out():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 3, 2, 1), np.uint8)
    images[50:60] = images[:10]
    labels = np.arange(100)
    parts, repeated = cut(images, labels, (20, 15, 10), 3)
    assert repeated == 10
    assert [len(part[1]) for part in parts] == [20, 15, 10, 45]
    everything = np.concatenate([part[0].reshape(-1, 6) for part in parts])
    assert len(np.unique(everything, axis=0)) == 90
    for part in parts:
        np.testing.assert_array_equal(part[0], images[part[1]])
    other, _ = cut(images, labels, (20, 15, 10), 4)
    assert not np.array_equal(parts.private[1], other.private[1])
    with pytest.raises(InputError, match="90 different training images cannot be cut into 40 private"):
        cut(images, labels, (40, 15, 10), 3)
    with pytest.raises(InputError, match="with 44 left for independent models"):  # 90 − 47 = 43: they would share most
        cut(images, labels, (22, 15, 10), 3)


def test_public_samples_overlap_as_told():
    numbers = lambda begin, count: (np.arange(begin, begin + count), np.arange(begin, begin + count))
    settings = recipe("dataset-inference-limits").settings("digits", private=80, samples=40)
    stolen = Theft(
        Run(types.SimpleNamespace(config=settings), 0),  # type: ignore[arg-type]
        Parts(numbers(0, 80), numbers(100, 40), numbers(200, 1), numbers(300, 1)), None,  # type: ignore[arg-type]
    )  # fmt: skip
    images, labels = inference_limits._overlapping(stolen, 25)
    np.testing.assert_array_equal(images, [*range(100, 130), *range(40, 50)])
    np.testing.assert_array_equal(labels, images)
    assert inference_limits._overlapping(stolen, 0)[0].min() == 100
    assert set(inference_limits._overlapping(stolen, 100)[0]) == set(range(40, 80))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "dataset-inference",
            {"samples": 90, "private": 80},
            r"samples \(90\) are private images, of which there are 80",
        ),
        ("dataset-inference", {"independents": 20}, "independents must be at least 21"),
        ("dataset-inference", {"independents": 50, "inference": InferenceSettings(alpha=0.01)}, "at least 101"),
        ("dataset-inference", {"references": -1}, "references must not be negative"),
        ("dataset-inference", {"early": 0.0}, r"early in \(0, 1\]"),
        ("dataset-inference", {"others": 0}, "others must be at least 1"),
        ("dataset-inference-limits", {"samples": 200}, "private must be at least 400"),
        ("dataset-inference-limits", {"overlaps": (0, 101)}, r"overlaps must lie in \[0, 100\]"),
        ("dataset-inference-limits", {"forgetting": (5, 5)}, "increasing numbers of steps"),
    ],
)
def test_settings_are_refused_before_any_work(name, changes, message):
    with pytest.raises(InputError, match=message):
        recipe(name).settings("digits", **changes)
    with pytest.raises(UnknownNameError, match="nearest: label_query"):
        recipe("dataset-inference").settings("digits", threats=("label_querry",))


@pytest.mark.slow
def test_digits_preset_with_every_thief(tmp_path):
    found = run_small("dataset-inference", recipe("dataset-inference").settings("digits"), tmp_path / "run")
    assert {arm.name for arm in found.arms} == {"source", "control", *THREATS}


@pytest.mark.slow
def test_synthetic_task_shows_theft_and_spares_the_innocent(tmp_path):
    """600 private images, a victim right on all of them and on four fifths of others."""
    entry = recipe("dataset-inference")
    config = entry.settings(
        "synthetic", seeds=1, threats=("distillation", "different_architecture", "early_stopping"), independents=21
    )
    found = {arm.name: arm for arm in run_recipe(entry, config, out=tmp_path, progress=False, devices=1).arms}
    for name in ("source", "distillation", "different_architecture"):
        assert found[name].p_values["welch"][0] < 1e-4, name
        assert found[name].metrics["stolen"] == [100.0], name
    assert found["source"].accuracy[0] < 90
    rates = found["control"].false_positives
    assert rates["welch"][0] <= 25
    assert rates["released"][0] > rates["per_image"][0]
