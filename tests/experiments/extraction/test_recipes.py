"""Every recipe of extraction, end to end, on a few images of digits."""

import json

import pytest
from small_runs import complete, run_small, tiny

from dfke_jax.core.errors import InputError
from dfke_jax.experiments import recipe
from dfke_jax.experiments.extraction.nondeterminism import SOURCES
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
    PoolAttackSettings,
)

_GAME = {"batch_size": 8, "clone_batches": 1, "latent": 4, "width": 2, "replay_batches": 1, "replay_capacity": 64}
_LEARNT = CloneTraining(steps=4, batch_size=8, optimizer="adam", decay_at=())
CHANGES = {
    "dfme": {"budgets": (50, 100), "attack": DFMESettings(**_GAME, reuse=True)},
    "megex": {"budgets": (50,), "explanation": "smooth_grad:samples=2", "attack": MEGEXSettings(**_GAME)},
    "maze": {"budgets": (50,), "attack": MAZESettings(**_GAME, directions=2)},
    "disguide": {"budgets": (50,), "attack": DisagreementSettings(**_GAME)},
    "dual-students": {"budgets": (50,), "attack": DisagreementSettings(**_GAME, objective="l1", diversity=0.0)},
    "knockoff": {"budgets": (45,), "attack": PoolAttackSettings(rows_per_step=10, clone=_LEARNT)},
    "knockoff-bandit": {"budgets": (20,), "attack": BanditSettings(rows_per_step=10, clone=_LEARNT, learner_steps=1)},
    "active-thief": {"budgets": (20,), "attack": ActiveThiefSettings(20, 10, clone=_LEARNT, selector="k_center")},
    "copycat": {"budgets": (20,), "attack": PoolAttackSettings(rows_per_step=10, clone=_LEARNT)},
    "dissector": {
        "budgets": (20,),
        "attack": DissectorSettings(rows_per_step=10, clone=_LEARNT, variants=2, pseudo_rows=5),
    },
    "jbda": {"budgets": (20,), "attack": JacobianSettings(augmentations=2, clone=_LEARNT)},
    "api-extraction": {
        "tables": ("iris",),
        "attacks": ("equations", "hidden_layer", "binned", "paths", "adaptive"),
        "hidden": 2,
        "iterations": 5,
        "uniform_rows": 100,
    },
    "representer-leakage": {"representers": 5, "iterations": 5},
    "api-inversion": {"hidden": 2, "iterations": 5, "steps": 3},
    "api-defences": {
        "tables": ("iris", "breast_cancer"),
        "defences": ("none", "round_2", "label", "ensemble", "private_parameters"),
        "members": 2,
        "uniform_rows": 100,
    },
    "defences": {
        "budget": 50,
        "defences": ("none", "label"),
        "misinformation_steps": 3,
        "knockoff": PoolAttackSettings(rows_per_step=10, clone=_LEARNT),
        "dfme": DFMESettings(**_GAME, reuse=True),
        "disguide": DisagreementSettings(**_GAME),
        "attacks": ("knockoff",),
    },
    "last-layer": {
        "width": 8,
        "layers": 1,
        "text_bytes": 5000,
        "training_steps": 3,
        "prompts": 24,
        "biased": 6,
        "unseen": 4,
    },
    "api-theft": {"teacher": "mlp_4", "learning_steps": 5, "learning_rows": 50, "budget": 3000},
    "relu-extraction": {"teacher": "mlp_4", "learning_steps": 5, "learning_rows": 50},
    "gradient-queries": {"teacher": "mlp_4", "learning_steps": 5, "queries": (20, 400)},
    "high-fidelity": {
        "queries": (20,),
        "rounds": 2,
        "augmentation": "none",
        "learning": CloneTraining(steps=10, batch_size=8, optimizer="adam", decay_at=()),
    },
    "nondeterminism": {"teacher_batch": 32},
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
RECIPES = tuple(CHANGES)
WITHOUT_PICTURES = {
    "api-theft",
    "api-extraction",
    "api-defences",
    "defences",
    "relu-extraction",
    "last-layer",
    "gradient-queries",
    "high-fidelity",
    "nondeterminism",
}
QUICK = {"knockoff"}
UNREAD = {"defences": {"dfme", "disguide", "misinformation_steps"}}
"""What the attacks and defences of a run have no use for; `test_every_attack_runs_behind_every_defence` has one for all."""


def networks_differ_by_what_is_varied_alone(arms):
    """Nothing varied is the same network to the bit, however it was trained; anything varied is another."""
    control = arms["repeated_control"]
    assert control.agreement == [100, 100]
    assert control.metrics["largest_error"] == [0, 0]
    assert all(error > 0 for name in SOURCES for error in arms[name].metrics["largest_error"])
    rounding, start = (arms[name].metrics["largest_error"] for name in ("arithmetic", "initialisation"))
    assert all(less < 1e-3 * more for less, more in zip(rounding, start, strict=True))


def enough_gradients_are_the_network(arms):
    """20 rows are none of its neurons by bisection; 400 are all four."""
    whole, part = (arms[name].over("queries", "log10_error") for name in ("predicted", "bisected"))
    assert all(error < -10 for error in whole.at(400))
    assert all(error > -1 for error in part.at(20))
    assert all(arms["predicted"].metrics["whole"])


FINDINGS = {
    "nondeterminism": networks_differ_by_what_is_varied_alone,
    "gradient-queries": enough_gradients_are_the_network,
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CHANGES])
def test_recipe_runs_and_leaves_a_complete_result(name, tmp_path):
    found = complete(
        name, tiny(name, CHANGES[name]), tmp_path, UNREAD.get(name, ()), pictures=name not in WITHOUT_PICTURES
    )
    if name in FINDINGS:
        FINDINGS[name]({arm.name: arm for arm in found.arms})
    if name == "dfms":
        stage_1_is_paid_from_the_budget(found, tmp_path / "run")


def stage_1_is_paid_from_the_budget(found, out):
    """20 rows of stage 1 and three batches of 8, of a budget of 50."""
    budgets = {arm.name: arm.budget for arm in found.arms if arm.name.startswith("dfms")}
    assert budgets["dfms_50"] == budgets["dfms_50_control"] == {"victim_rows": 44, "steps": 3, "clone_updates": 10}
    arms = {arm.name: arm for arm in found.arms}  # a point on the way counts the rows of stage 1
    assert arms["dfms_50"].over("queries", "accuracy").at(44) == arms["dfms_50"].accuracy
    stages = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for seed in range(2):  # stage 1 is run once for both, stage 1b for the method alone
        assert sum(any(key.startswith(f"seed{seed}/tuning/") for key in line) for line in stages) == 2
        assert sum(any(key.startswith(f"seed{seed}/dfms_first/") for key in line) for line in stages) == 1


@pytest.mark.slow
def test_every_attack_runs_behind_every_defence(tmp_path):
    settings = recipe("defences").settings("digits")
    changes = {**CHANGES["defences"], "defences": settings.defences, "attacks": settings.attacks}
    found = run_small("defences", tiny("defences", changes), tmp_path)
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
    with pytest.raises(InputError, match="does not pay for one iteration"):
        recipe("disguide").settings("digits", budgets=(100,))
    with pytest.raises(InputError, match="half of first_rows are shapes"):
        recipe("dfms").settings("digits", first_rows=1000, shapes=400)
    with pytest.raises(InputError, match="need a first clone"):
        recipe("dfms").settings("digits", tuning_steps=5)
    with pytest.raises(InputError, match="does not pay for one iteration"):
        recipe("dfms").settings("digits", budgets=(2000,), first_rows=2000)
