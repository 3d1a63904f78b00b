"""The recipe of watermark removal, end to end, on a few images of digits."""

import dataclasses

import numpy as np
import pytest
from small_runs import TINY, complete, tiny

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.experiments import recipe, recipes, run_recipe
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.extraction.attacks import ExtractionSettings
from dfke_jax.experiments.watermarks import removal_attacks
from dfke_jax.experiments.watermarks.removal_extractions import EXTRACTIONS, Extractions
from dfke_jax.extraction import CloneTraining, DFMESettings, DFMSSettings, PoolAttackSettings
from dfke_jax.watermarking import EntangledSettings
from dfke_jax.watermarking.removal import CleanseSettings, removal_matrix

RECIPES = ("watermark-removal",)
UNREAD = ("extraction_rows",)  # no attack by extraction is made
CHANGES = {
    "schemes": ("pretrained", "entangled"),
    "entangled": EntangledSettings(
        layers=("dense1",), entanglement=(1.0,), temperatures=(5.0,), batch_size=16, rounds=1, suppressions=2
    ),
    "entangled_triggers": 16,
    "entangled_steps": 4,
    "attacks": ("rtal", "magnitude_pruning", "neural_cleanse_patching", "transfer_learning"),
    "triggers": 5,
    "companions_per_batch": 2,
    "mark_steps": 6,
    "attack_steps": 6,
    "points": 2,
    "fractions": (0.5,),
    "other": "digits",
    "cleanse": CleanseSettings(rounds=1, batches=1),
}
_GAME = {"batch_size": 8, "clone_batches": 1, "latent": 4, "width": 2, "replay_batches": 1, "replay_capacity": 64}
_LEARNT = CloneTraining(steps=4, batch_size=8, optimizer="adam", decay_at=())
EXTRACTED = {
    "copycat": {"budgets": (20,), "attack": PoolAttackSettings(rows_per_step=10, clone=_LEARNT)},
    "dfme": {"budgets": (50, 100), "attack": DFMESettings(**_GAME, reuse=True)},
    "dfms": {
        "budgets": (50,),
        "shapes": 20,
        "pretraining_steps": 3,
        "points": 1,
        "first_rows": 20,
        "first_clone": _LEARNT,
        "tuning_steps": 2,
        "attack": DFMSSettings(**_GAME),
    },
}


@pytest.mark.slow
def test_recipe_runs_and_leaves_a_complete_result(tmp_path):
    found = complete("watermark-removal", tiny("watermark-removal", CHANGES), tmp_path, UNREAD, pictures=False)
    arms = {arm.name: arm for arm in found.arms}
    named = {arm.name: arm.metrics for arm in found.arms}
    for scheme in CHANGES["schemes"]:
        assert {f"{scheme}.{attack}" for attack in CHANGES["attacks"]} <= set(named)
    for kind in ("accuracy", "trigger_accuracy"):
        assert {0, 6} <= set(arms["pretrained.rtal"].over("steps", kind).x)
        assert arms["pretrained.magnitude_pruning"].over("share", kind).x == (0.5,)
    transferred = arms["pretrained.transfer_learning"]
    assert 6 in transferred.over("steps", "trigger_accuracy").x
    assert transferred.over("steps", "accuracy") is None
    assert "other_accuracy" in transferred.metrics
    assert transferred.factors == {"mark": "Backdoor in a trained network", "attack": "transfer learning"}
    assert {"anomaly", "flagged"} <= set(named["pretrained.neural_cleanse_patching"])
    pairs = {method.name: control for method, control in found.pairs()}
    control, marked = pairs["pretrained.rtal"], next(arm for arm in found.arms if arm.name == "pretrained")
    assert control is pairs["pretrained"]
    assert control.name == "pretrained_control"
    assert control.budget["training_steps"] == marked.budget["training_steps"]
    assert control.accuracy != next(arm for arm in found.arms if arm.name == "control").accuracy
    assert all("trigger_accuracy" in metrics for arm, metrics in named.items() if arm != "teacher")


@pytest.mark.slow
def test_a_resumed_removal_run_repeats_no_attack(tmp_path, monkeypatch):
    """It is stopped at the third of three attacks, which is all that is made then."""
    made = []

    def counted(key, schemes, attacks, *rest, **options):
        made.append(*attacks)
        if made.count("input_filter") == 1:
            raise KeyboardInterrupt
        return removal_matrix(key, schemes, attacks, *rest, **options)

    attacks = ("half_precision", "quantisation", "input_filter")
    settings = tiny("watermark-removal", {**CHANGES, "seeds": 1, "schemes": ("pretrained",), "attacks": attacks})
    arguments = {"progress": False, "devices": 1}
    whole = run_recipe(recipe("watermark-removal"), settings, out=tmp_path / "whole", **arguments)
    monkeypatch.setattr(removal_attacks, "removal_matrix", counted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe("watermark-removal"), settings, out=tmp_path / "run", **arguments)
    assert made == ["half_precision", "quantisation", "input_filter"]
    found = run_recipe(recipe("watermark-removal"), settings, out=tmp_path / "run", resume=True, **arguments)
    assert made[3:] == ["input_filter"]
    assert found.arms == whole.arms


@pytest.mark.slow
@pytest.mark.parametrize("name", ["copycat", "dfme", "dfms"])
def test_a_mark_is_attacked_by_the_extraction_that_the_recipe_runs(tmp_path, monkeypatch, name):
    """On a network without a mark the clone is the recipe's own, at the same budget; two marks give two clones."""
    known = {field.name for field in dataclasses.fields(recipe(name).config)}
    common = {field: value for field, value in TINY.items() if field in known}
    preset = {**recipe(name).presets["digits"], **common, **EXTRACTED[name], "seeds": 1, "points": 0}
    rows = preset["budgets"][0]
    monkeypatch.setitem(recipe(name).presets, "digits", preset)
    settings = recipe(name).settings("digits", budgets=(rows,), control=False)
    alone = run_recipe(recipe(name), settings, out=tmp_path / "alone", progress=False, devices=1)
    own = next(arm for arm in alone.arms if arm.name == f"{name}_{rows}")

    changes = {"schemes": ("pretrained", "from_scratch"), "attacks": (name,), "extraction_rows": rows, "seeds": 1}
    settings = tiny("watermark-removal", {**CHANGES, **changes})
    bench = Workbench(settings, tmp_path / "bench", progress=False, devices=1)
    clone = Extractions(settings, bench).clone(name, "unmarked", settings.seed, bench.teacher(settings.seed))
    assert clone.settings["budget"] == {key: own.budget[key] for key in ("victim_rows", "clone_updates")}
    test = bench.dataset.test
    found = 100 * np.mean(clone.classifier.predict(test.images).argmax(1) == test.labels)
    assert found == pytest.approx(own.accuracy[0], abs=1e-3)

    whole = run_recipe(recipe("watermark-removal"), settings, out=tmp_path / "removal", progress=False, devices=1)
    arms = {arm.name: arm for arm in whole.arms}
    for scheme in changes["schemes"]:
        assert arms[f"{scheme}.{name}"].budget == clone.settings["budget"]
        control = arms[f"{scheme}.{name}_control"]  # the clone of the network without a mark
        assert control.accuracy == own.accuracy
        assert control.role == "control"
    assert {method.name: control.name for method, control in whole.pairs()}.items() >= {
        f"{scheme}.{name}": f"{scheme}.{name}_control" for scheme in changes["schemes"]
    }.items()
    assert arms[f"pretrained.{name}"].agreement != arms[f"from_scratch.{name}"].agreement
    if name == "dfms":  # what stage 1 learns depends on the victim, so every mark has its own
        stages = (tmp_path / "removal" / "metrics.jsonl").read_text()
        assert all(
            f"seed0/{scheme}.dfms/{stage}" in stages
            for scheme in changes["schemes"]
            for stage in ("dfms_first", "tuning")
        )


def test_every_extraction_that_is_a_recipe_removes_marks():
    assert {name.replace("_", "-") for name in EXTRACTIONS} == {
        name for name, known in recipes().items() if issubclass(known.config, ExtractionSettings)
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": ("pretraind",)}, "pretrained"),
        ({"attacks": ("ftla",)}, "ftal"),
        ({"attacks": ("dfmee",)}, "dfme"),
        ({"attacks": ("dfme",), "extraction_rows": 100}, "does not pay for one iteration, which asks 224"),
        ({"attacks": ()}, "at least one attack"),
        ({"companions_per_batch": 31}, "1 to 30"),
        ({"fractions": (0.5, 1.5)}, "fractions must lie in"),
        ({"attack_steps": 0}, "steps must be at least 1"),
        ({"entangled_steps": 0}, "entangled_steps must be at least 1"),
        ({"schemes": ("entangled",), "unrelated": ""}, "need a data set"),
    ],
)
def test_settings_of_removal_out_of_range(changes, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        recipe("watermark-removal").settings("digits", **changes)
