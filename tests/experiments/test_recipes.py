"""Every recipe, end to end, on a few images of digits."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dfke_jax import data
from dfke_jax.core.errors import CheckpointError, InputError, UnknownNameError
from dfke_jax.distillation import DAFLSettings, DFADSettings, ZSKTSettings
from dfke_jax.experiments import Arm, Published, Result, recipe, recipes, run_recipe
from dfke_jax.experiments.bench.settings import augmentation, network
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.documented import EXPERIMENTS
from dfke_jax.experiments.extraction.attacks import ExtractionSettings
from dfke_jax.experiments.watermarks import removal
from dfke_jax.experiments.watermarks.removal_extractions import EXTRACTIONS, Extractions
from dfke_jax.extraction import (
    ActiveThiefSettings,
    BanditSettings,
    CloneTraining,
    DFMESettings,
    DFMSSettings,
    DisagreementSettings,
    DissectorSettings,
    JacobianSettings,
    MAZESettings,
    MEGEXSettings,
    PoolSettings,
)
from dfke_jax.watermarking import EntangledSettings
from dfke_jax.watermarking.removal import CleanseSettings, removal_matrix

TINY = {
    "seeds": 2,
    "teacher": "mlp_small",
    "student": "mlp_small",
    "teacher_steps": 30,
    "teacher_batch": 32,
    "distillation_steps": 20,
    "distillation_batch": 16,
}
_SMALL_POOL = {"samples": 40, "synthesis_batch": 20}
_GAME = {"batch_size": 8, "clone_batches": 1, "latent": 4, "width": 2, "replay_batches": 1, "replay_capacity": 64}
_DUEL = {"batch_size": 8, "latent": 4, "width": 2}
_LEARNT = CloneTraining(steps=4, batch_size=8, optimizer="adam", decay_at=())
CHANGES = {
    "anchors": {},
    "transfer-sets": {"samples": 40, "unrelated": "digits"},
    "zskd": _SMALL_POOL,
    "data-impressions": _SMALL_POOL,
    "class-impressions": _SMALL_POOL,
    "activation-records": {**_SMALL_POOL, "per_class": 20},
    "deep-dream": {**_SMALL_POOL, "teacher": "lenet5_bn"},
    "deep-inversion": {**_SMALL_POOL, "student_steps": 3, "teacher": "lenet5_bn"},
    "adaptive-deep-inversion": {**_SMALL_POOL, "student_steps": 3, "teacher": "lenet5_bn"},
    "dafl": {"iterations": 3, "method": DAFLSettings(**_DUEL)},
    "dfad": {"iterations": 3, "method": DFADSettings(**_DUEL, student_steps=2)},
    "zskt": {"iterations": 3, "method": ZSKTSettings(**_DUEL, student_steps=2, attention=0.0)},
    "dfme": {"budgets": (50, 100), "attack": DFMESettings(**_GAME, reuse=True)},
    "megex": {"budgets": (50,), "explanation": "smooth_grad:samples=2", "attack": MEGEXSettings(**_GAME)},
    "maze": {"budgets": (50,), "attack": MAZESettings(**_GAME, directions=2)},
    "disguide": {"budgets": (50,), "attack": DisagreementSettings(**_GAME)},
    "dual-students": {"budgets": (50,), "attack": DisagreementSettings(**_GAME, objective="l1", diversity=0.0)},
    "knockoff": {"budgets": (45,), "attack": PoolSettings(rows_per_step=10, clone=_LEARNT)},
    "knockoff-bandit": {"budgets": (20,), "attack": BanditSettings(rows_per_step=10, clone=_LEARNT, learner_steps=1)},
    "active-thief": {"budgets": (20,), "attack": ActiveThiefSettings(20, 10, clone=_LEARNT, selector="k_center")},
    "copycat": {"budgets": (20,), "attack": PoolSettings(rows_per_step=10, clone=_LEARNT)},
    "dissector": {
        "budgets": (20,),
        "attack": DissectorSettings(rows_per_step=10, clone=_LEARNT, variants=2, pseudo_rows=5),
    },
    "jbda": {"budgets": (20,), "attack": JacobianSettings(augmentations=2, clone=_LEARNT)},
    "defences": {
        "budget": 50,
        "defences": ("none", "label"),
        "misinformation_steps": 3,
        "knockoff": PoolSettings(rows_per_step=10, clone=_LEARNT),
        "dfme": DFMESettings(**_GAME, reuse=True),
        "disguide": DisagreementSettings(**_GAME),
        "attacks": ("knockoff",),
    },
    "watermark-removal": {
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
    },
    "watermark-schemes": {
        "triggers": 10,
        "bits": 8,
        "independents": 2,
        "dawn_rate": 0.05,
        "frontier_steps": 10,
        "fine_tune_steps": 10,
        "extraction_steps": 30,
    },
    "ewe": {
        "marked_steps": 4,
        "extraction_steps": 20,
        "null_models": 2,
        "triggers": 32,
        "watermark": EntangledSettings(
            layers=("dense1",), entanglement=(1.0,), temperatures=(5.0,), batch_size=16, rounds=1, suppressions=2
        ),
    },
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
# test_dataset_inference.py and test_encoder_inference.py
ELSEWHERE = {"dataset-inference", "dataset-inference-limits", "encoder-inference"}
SLOW = (  # relatives of recipes that run here, and those that compile longest
    "zskd",
    "dfad",
    "zskt",
    "class-impressions",
    "transfer-sets",
    "dfme",
    "knockoff",
    "ewe",
    "activation-records",
    "watermark-removal",
    "anchors",  # also run by test_merge
    "deep-dream",
    "deep-inversion",
    "adaptive-deep-inversion",
    "maze",
    "megex",
    "disguide",
    "dual-students",
    "dfms",
    "knockoff-bandit",
    "active-thief",
    "copycat",
    "dissector",
    "jbda",
    "watermark-schemes",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


def tiny(name, **changes):
    settings = recipe(name).settings("digits", **{**TINY, **CHANGES[name], **changes})
    if hasattr(settings, "synthesis"):
        settings = dataclasses.replace(settings, synthesis=dataclasses.replace(settings.synthesis, steps=3))
    return settings


def test_every_recipe_is_covered_here():
    assert set(CHANGES) | ELSEWHERE == set(recipes())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CHANGES],
)
def test_recipe_runs_and_leaves_a_complete_result(name, tmp_path):
    found = run_recipe(recipe(name), tiny(name), out=tmp_path / "run", progress=False, devices=1)
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["recipe"] == name
    assert content["metrics"] == json.loads(json.dumps(found.metrics))
    assert {"jax", "flax"} <= set(content["environment"]["versions"])
    assert content["seconds"]["total"] > 0
    for arm in found.arms:
        assert len(arm.accuracy) == 2, arm.name
        assert all(0 <= value <= 100 for value in arm.accuracy)
        assert arm.role == "teacher" or len(arm.agreement) == 2
        assert arm.budget
    roles = {arm.role for arm in found.arms}
    assert {"teacher", "anchor"} <= roles
    if name != "anchors":
        assert found.pairs(), "a method without a matched control"
        assert {method.name for method, _ in found.pairs()} >= {a.name for a in found.arms if a.role == "method"}
    assert Result.read(tmp_path / "run").metrics == found.metrics
    if name == "watermark-removal":
        named = {arm.name: arm.metrics for arm in found.arms}
        for scheme in CHANGES[name]["schemes"]:
            assert {f"{scheme}.{attack}" for attack in CHANGES[name]["attacks"]} <= set(named)
        assert {"trigger_accuracy@0", "trigger_accuracy@6", "accuracy@6"} <= set(named["pretrained.rtal"])
        assert {"trigger_accuracy@0.5", "accuracy@0.5"} <= set(named["pretrained.magnitude_pruning"])
        assert {"trigger_accuracy@6", "other_accuracy"} <= set(named["pretrained.transfer_learning"])
        assert {"anomaly", "flagged"} <= set(named["pretrained.neural_cleanse_patching"])
        pairs = {method.name: control for method, control in found.pairs()}
        control, marked = pairs["pretrained.rtal"], next(arm for arm in found.arms if arm.name == "pretrained")
        assert control is pairs["pretrained"]
        assert control.name == "pretrained_control"
        assert control.budget["training_steps"] == marked.budget["training_steps"]
        assert control.accuracy != next(arm for arm in found.arms if arm.name == "control").accuracy
        assert all("trigger_accuracy" in metrics for arm, metrics in named.items() if arm != "teacher")
    if name == "dfms":  # 20 rows of stage 1 and three batches of 8, of a budget of 50
        budgets = {arm.name: arm.budget for arm in found.arms if arm.name.startswith("dfms")}
        assert budgets["dfms_50"] == budgets["dfms_50_control"] == {"victim_rows": 44, "steps": 3, "clone_updates": 10}
        arms = {arm.name: arm for arm in found.arms}  # a point on the way counts the rows of stage 1
        assert arms["dfms_50"].metrics["accuracy_at_44"] == arms["dfms_50"].accuracy
        stages = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        for seed in range(2):  # stage 1 is run once for both, stage 1b for the method alone
            assert sum(any(key.startswith(f"seed{seed}/tuning/") for key in line) for line in stages) == 2
            assert sum(any(key.startswith(f"seed{seed}/dfms_first/") for key in line) for line in stages) == 1
    if name == "ewe":
        entangled_watermarks_are_held_against_the_false_rate(found, tmp_path / "run")
    elif name not in ("anchors", "transfer-sets", "defences", "watermark-removal"):
        samples = np.load(tmp_path / "run" / "samples.npz")
        method = next(arm.name for arm in found.arms if arm.role == "method")
        control = next(arm.name for arm in found.arms if arm.role == "control")
        assert samples[method].shape[1:] == (8, 8, 1)
        assert not np.array_equal(samples[method], samples[control])


def test_control_starts_where_the_method_starts(tmp_path):
    """With a vanishing learning rate the method's samples are the control's."""
    settings = tiny("data-impressions")
    settings = dataclasses.replace(settings, synthesis=dataclasses.replace(settings.synthesis, learning_rate=1e-9))
    run_recipe(recipe("data-impressions"), settings, out=tmp_path, progress=False, devices=1)
    samples = np.load(tmp_path / "samples.npz")
    np.testing.assert_array_equal(samples["data_impressions"], samples["data_impressions_control"])
    assert samples["data_impressions"].std() > 10


def test_same_settings_same_metrics_and_seeds_differ(tmp_path):
    settings = tiny("zskd")
    first = run_recipe(recipe("zskd"), settings, out=tmp_path / "a", progress=False, devices=1)
    second = run_recipe(recipe("zskd"), settings, out=tmp_path / "b", progress=False, devices=1)
    assert first.metrics == second.metrics
    one = next(arm for arm in first.arms if arm.role == "method")
    assert one.metrics["label_agreement"][0] != one.metrics["label_agreement"][1] or one.accuracy[0] != one.accuracy[1]


def test_directory_of_another_run_is_refused(tmp_path):
    run_recipe(recipe("zskd"), tiny("zskd"), out=tmp_path, progress=False, devices=1)
    with pytest.raises(CheckpointError, match="holds a run already"):
        run_recipe(recipe("zskd"), tiny("zskd"), out=tmp_path, progress=False, devices=1)
    with pytest.raises(CheckpointError, match="other settings of samples"):
        run_recipe(recipe("zskd"), tiny("zskd", samples=60), out=tmp_path, resume=True, progress=False, devices=1)
    with pytest.raises(CheckpointError, match="recipe 'zskd'"):
        run_recipe(
            recipe("data-impressions"), tiny("data-impressions"), out=tmp_path, resume=True, progress=False, devices=1
        )


def test_finished_run_resumes_to_the_same_metrics_without_work(tmp_path):
    first = run_recipe(recipe("data-impressions"), tiny("data-impressions"), out=tmp_path, progress=False, devices=1)
    lines = (tmp_path / "metrics.jsonl").read_text()
    again = run_recipe(
        recipe("data-impressions"), tiny("data-impressions"), out=tmp_path, resume=True, progress=False, devices=1
    )
    assert again.metrics == first.metrics
    assert (tmp_path / "metrics.jsonl").read_text() == lines


_KILLED = """
import os, sys, jax
jax.config.update("jax_num_cpu_devices", 1)
from dfke_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _arguments(out):
    options = {**TINY, **_SMALL_POOL, "seeds": 1, "teacher_steps": 400, "distillation_steps": 800}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["run", "zskd", "--dataset", "digits", "--out", str(out), "--quiet", "--synthesis.steps", "40", *flags]


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
    settings = tiny("watermark-removal", seeds=1, schemes=("pretrained",), attacks=attacks)
    arguments = {"progress": False, "devices": 1}
    whole = run_recipe(recipe("watermark-removal"), settings, out=tmp_path / "whole", **arguments)
    monkeypatch.setattr(removal, "removal_matrix", counted)
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
    preset = {**recipe(name).presets["digits"], **TINY, **CHANGES[name], "seeds": 1, "points": 0}
    rows = preset["budgets"][0]
    monkeypatch.setitem(recipe(name).presets, "digits", preset)
    settings = recipe(name).settings("digits", budgets=(rows,), control=False)
    alone = run_recipe(recipe(name), settings, out=tmp_path / "alone", progress=False, devices=1)
    own = next(arm for arm in alone.arms if arm.name == f"{name}_{rows}")

    changes = {"schemes": ("pretrained", "from_scratch"), "attacks": (name,), "extraction_rows": rows, "seeds": 1}
    settings = tiny("watermark-removal", **changes)
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


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.3, 0.6, 0.9])
def test_killed_run_resumes_to_the_same_bits(tmp_path, moment):
    """kill -9 at a share of the uninterrupted run's time, then --resume: the same metrics, bit for bit."""
    environment = {**os.environ, "DFKE_CACHE_DIR": str(tmp_path / "cache-a"), "JAX_PLATFORMS": "cpu"}

    log = tmp_path / "log"

    def start(out, *more):
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-c", _KILLED, *_arguments(out), *more], env=environment, stdout=file, stderr=file
            )

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0, log.read_text()
    lasted = time.monotonic() - began

    environment["DFKE_CACHE_DIR"] = str(tmp_path / "cache-b")
    cut = start(tmp_path / "cut")
    time.sleep(moment * lasted)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert start(tmp_path / "cut", "--resume").wait() == 0, log.read_text()
    read = lambda name: json.loads((tmp_path / name / "result.json").read_text())["metrics"]
    assert read("whole") == read("cut")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"distillation_steps": 0}, "distillation_steps"),
        ({"temperature": 0.0}, "temperature"),
        ({"teacher_learning_rate": -1.0}, "learning rates"),
        ({"augmentation": "afine"}, "nearest: affine"),
        ({"teacher": "lenet55"}, "lenet5"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        recipe("zskd").settings("digits", **changes)


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


def test_pool_size_must_fit(tmp_path):
    with pytest.raises(InputError, match="multiple of synthesis_batch"):
        tiny("zskd", samples=41)
    settings = tiny("activation-records", samples=45, synthesis_batch=15)
    with pytest.raises(InputError, match="multiple of the 10 classes"):
        run_recipe(recipe("activation-records"), settings, out=tmp_path, progress=False, devices=1)


def test_zero_synthesis_steps_are_refused():
    with pytest.raises(InputError, match="at least one step"):
        dataclasses.replace(tiny("zskd").synthesis, steps=0)


def test_statistics_prior_needs_batch_normalisation():
    with pytest.raises(InputError, match="batch normalisation"):
        tiny("deep-inversion", teacher="lenet5")


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="data-impressions"):
        recipe("data-impresions")
    with pytest.raises(UnknownNameError, match="lenet5"):
        network("lenet55", 10, (28, 28, 1))
    with pytest.raises(UnknownNameError):
        augmentation("none at all")


def test_unwritable_directory_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        run_recipe(recipe("zskd"), tiny("zskd"), out=tmp_path / "file" / "run", progress=False, devices=1)


@pytest.mark.slow
def test_every_attack_runs_behind_every_defence(tmp_path):
    settings = recipe("defences").settings("digits")
    changes = {**TINY, **CHANGES["defences"], "defences": settings.defences, "attacks": settings.attacks}
    found = run_recipe(
        recipe("defences"), recipe("defences").settings("digits", **changes), out=tmp_path, progress=False, devices=1
    )
    arms = {arm.name: arm for arm in found.arms}
    assert sum("_behind_" in name for name in arms) == 3 * len(settings.defences) - 1
    assert "dfme_behind_label" not in arms
    for name, arm in arms.items():
        if "_behind_" in name:
            assert all(0 <= value <= 2 for value in arm.metrics["answers_l1"])
            assert arm.metrics["answers_l1"] == [0, 0] or not name.endswith("_none")
    assert any("DFME behind rounding" in note for note in found.notes)


def test_answers_that_an_attack_cannot_use_are_refused_before_any_work():
    with pytest.raises(InputError, match="differences of answers, which labels do not have"):
        recipe("dfme").settings("digits", reveal="label")
    with pytest.raises(InputError, match="'abs' explanations have lost it"):
        recipe("megex").settings("digits", explanation="abs")
    with pytest.raises(InputError, match="MEGEX reads probabilities"):
        recipe("megex").settings("digits", decimals=2)
    with pytest.raises(InputError, match="does not pay for one iteration"):
        recipe("disguide").settings("digits", budgets=(100,))
    with pytest.raises(InputError, match="half of first_rows are shapes"):
        recipe("dfms").settings("digits", first_rows=1000, shapes=400)
    with pytest.raises(InputError, match="need a first clone"):
        recipe("dfms").settings("digits", tuning_steps=5)
    with pytest.raises(InputError, match="does not pay for one iteration"):
        recipe("dfms").settings("digits", budgets=(2000,), first_rows=2000)


def entangled_watermarks_are_held_against_the_false_rate(found, out):
    arms = {arm.name: arm for arm in found.arms}
    victims, copies = ["entangled", "entangled_control", "ordinary"], ["extracted", "extracted_control", "extracted_ordinary"]  # fmt: skip
    assert list(arms) == ["teacher", *victims, *copies, "independent"]
    assert [arms[name].role for name in (*victims, *copies)] == ["method", "control", "control"] * 2
    for name, arm in list(arms.items())[1:]:
        for seed in range(2):
            figures = {name: values[seed] for name, values in arm.metrics.items()}
            assert 0 <= figures["false_rate"] <= figures["highest_false_rate"] <= 100
            assert 1 <= figures["queries"] <= 10_000
            assert 0 <= figures["claimed_with_100"] <= 100
            alike = "ordinary" if name.endswith("ordinary") else "independent"  # of the same triggers
            assert figures["false_rate"] == arms[alike].metrics["false_rate"][seed]
            if name in victims:
                assert 0 <= figures["mixing_dense1"] <= 1
                assert 0 <= figures["answered_target"] <= 100
    for difference, control in (("same", "control"), ("ordinary", "ordinary")):
        successes = [arms[name].metrics["watermark_success"] for name in ("extracted", f"extracted_{control}")]
        np.testing.assert_allclose(
            arms["extracted"].metrics[f"above_{difference}_triggers"], np.subtract(*successes), atol=1e-5
        )
    kept = np.load(out / "samples.npz")
    assert kept["entangled"].shape == kept["ordinary"].shape == (10, 8, 8, 1)
    turned = np.rot90(found_ones(), axes=(1, 2))[:10]
    np.testing.assert_allclose(kept["ordinary"], np.round(turned * 255), atol=1)
    assert not np.array_equal(kept["entangled"], kept["ordinary"])


def found_ones():
    digits = data.load("digits")
    return digits.train.images[digits.train.labels == 1]


def test_entangled_watermarks_that_cannot_be_are_refused_before_any_work():
    with pytest.raises(InputError, match="positive weights"):
        tiny("ewe", watermark=CHANGES["ewe"]["watermark"].plain_backdoor())
    with pytest.raises(InputError, match="set unrelated"):
        tiny("ewe", unrelated="")


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
             "entangled"}  # fmt: skip
    for entry in recipes().values():
        for figure in entry.published:
            assert figure.arm in known, figure


def test_stages_of_different_seeds_and_names_draw_differently(tmp_path):
    bench = Workbench(tiny("zskd"), tmp_path, progress=False, devices=1)
    import jax

    keys = [bench.key(seed, name) for seed in (0, 1) for name in ("a", "b")]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}) == 4


def test_result_metrics_against_hand_computed(tmp_path):
    method = Arm("m", "M", "method", accuracy=[90.0, 92.0], agreement=[91.0, 93.0])
    control = Arm("m_control", "C", "control", accuracy=[88.0, 91.0])
    found = Result(
        "r", "R", "digits", {}, [0, 1], [method, control], [Published("m", "digits", 95.0, "S", "table")], {}, {}
    )
    metrics = found.metrics
    assert metrics["m_accuracy"]["mean"] == 91.0
    assert metrics["m_accuracy"]["std"] == pytest.approx(np.sqrt(2))
    assert metrics["m_gain_over_control"]["values"] == [2.0, 1.0]
    found.write(tmp_path)
    assert Result.read(tmp_path).published[0].value == 95.0
