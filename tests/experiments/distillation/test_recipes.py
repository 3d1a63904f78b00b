"""Every recipe of distillation, end to end, on a few images of digits."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import complete, tiny

from dfke_jax.core.errors import InputError
from dfke_jax.distillation import (
    CMISettings,
    DAFLSettings,
    DeGANSettings,
    DFADSettings,
    DFKASettings,
    DFQSettings,
    FastSettings,
    GroupSettings,
    NAYERSettings,
    RDSKDSettings,
    WithinSettings,
    ZSKTSettings,
    data_impressions,
    knowledge_distillation,
)
from dfke_jax.experiments import recipe, run_recipe
from dfke_jax.experiments.bench.settings import augmentation
from dfke_jax.experiments.documented import EXPERIMENTS
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.registry import build

_SMALL_POOL = {"samples": 40, "synthesis_batch": 20}
_DUEL = {"batch_size": 8, "latent": 4, "width": 2}
_BANK = {**_DUEL, "batch_size": 10, "steps": 2, "student_steps": 2, "student_batch": 5}
_TINY_BANK = {"rounds": 3, "teacher": "lenet5_bn"}
CHANGES = {
    "anchors": {},
    "transfer-sets": {"samples": 40, "candidates": 50, "unrelated": "digits"},
    "few-shot": {"real": 20},
    "feature-distillation": {
        "samples": 20,
        "hint_steps": 5,
        "teacher": "two_conv_quarter",
        "student": "two_conv_quarter",
    },
    "dfnd": {"samples": 20, "wild": ("shapes", "digits"), "wild_shapes": 30},
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
    "degan": {"iterations": 3, "samples": 40, "method": DeGANSettings(batch_size=8, latent=4, width=2)},
    "rdskd": {"iterations": 3, "method": RDSKDSettings(**_DUEL)},
    "gan-sampling": {
        "gan_steps": 3,
        "student": "lenet5_half_bn",
        "gan": DeGANSettings(batch_size=8, latent=4, width=2, diversity=0.0),
    },
    "dfka": {"iterations": 3, "method": DFKASettings(**_DUEL)},
    "dfq": {"iterations": 3, "teacher": "lenet5_bn", "method": DFQSettings(**_DUEL, student_steps=2)},
    "cmi": {**_TINY_BANK, "method": CMISettings(**_BANK, negatives=4, feature_bank=20, projection=4)},
    "fast-dfkd": {**_TINY_BANK, "method": FastSettings(**_BANK, warm_up=1)},
    "nayer": {**_TINY_BANK, "method": NAYERSettings(**_BANK, warm_up=1)},
    "statistics-generators": {
        "samples": 40,
        "teacher": "lenet5_bn",
        "generator_steps": 3,
        "method": GroupSettings(groups=5, batch_size=20, latent=4, width=2),
    },
    "knowledge-within": {**_SMALL_POOL, "teacher": "lenet5_bn", "synthesis": WithinSettings(steps=3)},
}
RECIPES = tuple(CHANGES)
_BATCHES = 20 * 16  # every batch of `TINY`
ROWS = {
    "few-shot": {"few_shot": _BATCHES, "few_shot_control": 0},
    "feature-distillation": dict.fromkeys(("hint", "attention", "distance", "angle", "answers"), _BATCHES),
    "dfnd": {"dfnd": _BATCHES + 1437 + 30 + 20, "chosen": _BATCHES + 1437 + 30, "dfnd_control": _BATCHES},
}
"""Rows that the teacher answers in recipes whose budgets are their own."""
WATCHED = {"tail_mean", "tail_variance", "transition_error"}
QUICK = {"data-impressions"}
UNREAD = {"deep-dream": {"student_steps"}}
"""What the arms of a run have no use for; other arms of the recipe do."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CHANGES])
def test_recipe_runs_and_leaves_a_complete_result(name, tmp_path):
    # a GAN of three steps paints one grey: 8-bit pictures of moved latents are those of latents where they were drawn
    pictures = name not in ("anchors", "transfer-sets", "few-shot", "feature-distillation", "gan-sampling")
    found = complete(name, tiny(name, CHANGES[name]), tmp_path, UNREAD.get(name, ()), pictures)
    stated = {arm.name: arm.budget for arm in found.arms}
    for arm, rows in ROWS.get(name, {}).items():
        assert stated[arm]["teacher_rows"] == rows, arm
    if name in ROWS:
        assert all(arm.metrics.keys() >= WATCHED for arm in found.arms if arm.role in ("method", "control"))


@pytest.mark.slow
def test_control_starts_where_the_method_starts(tmp_path):
    """With a vanishing learning rate the method's samples are the control's."""
    settings = tiny("data-impressions", CHANGES["data-impressions"])
    settings = dataclasses.replace(settings, synthesis=dataclasses.replace(settings.synthesis, learning_rate=1e-9))
    run_recipe(recipe("data-impressions"), settings, out=tmp_path, progress=False, devices=1)
    samples = np.load(tmp_path / "samples.npz")
    np.testing.assert_array_equal(samples["data_impressions"], samples["data_impressions_control"])
    assert samples["data_impressions"].std() > 10


@pytest.mark.slow
def test_same_settings_same_metrics_and_seeds_differ(tmp_path):
    settings = tiny("zskd", CHANGES["zskd"])
    first = run_recipe(recipe("zskd"), settings, out=tmp_path / "a", progress=False, devices=1)
    second = run_recipe(recipe("zskd"), settings, out=tmp_path / "b", progress=False, devices=1)
    assert first.metrics == second.metrics
    one = next(arm for arm in first.arms if arm.role == "method")
    assert one.metrics["label_agreement"][0] != one.metrics["label_agreement"][1] or one.accuracy[0] != one.accuracy[1]


def test_pool_size_must_fit(tmp_path):
    with pytest.raises(InputError, match="multiple of synthesis_batch"):
        tiny("zskd", CHANGES["zskd"], samples=41)
    settings = tiny("activation-records", CHANGES["activation-records"], samples=45, synthesis_batch=15)
    with pytest.raises(InputError, match="multiple of the 10 classes"):
        run_recipe(recipe("activation-records"), settings, out=tmp_path, progress=False, devices=1)


def test_zero_synthesis_steps_are_refused():
    with pytest.raises(InputError, match="at least one step"):
        dataclasses.replace(tiny("zskd", CHANGES["zskd"]).synthesis, steps=0)


def test_statistics_prior_needs_batch_normalisation():
    with pytest.raises(InputError, match="batch normalisation"):
        tiny("deep-inversion", CHANGES["deep-inversion"], teacher="lenet5")


PAIRS = {
    "zskd-cifar10-alexnet": (69.56, 80.08),
    "zskd-cifar10-vgg19-vgg11": (74.10, 84.93),
    "zskd-cifar10-vgg19-resnet18": (74.76, 86.58),
    "zskd-cifar10-resnet18": (81.10, 86.31),
}


@pytest.mark.parametrize("name", PAIRS)
def test_rows_of_the_cifar10_table_stand_beside_their_own_figures(name):
    config = EXPERIMENTS[name].config()
    assert (config.samples, config.synthesis.steps) == (40_000, 1500)
    figures = {figure.arm: figure.value for figure in recipe("zskd").published if figure.concerns(config)}
    assert figures == dict(zip(("data_impressions", "real_data"), PAIRS[name], strict=True))


@pytest.mark.parametrize("name", [n if "alexnet" in n else pytest.param(n, marks=pytest.mark.slow) for n in PAIRS])
def test_rows_of_the_cifar10_table_fit_together(name):
    """Teacher, one batch of impressions and a step of the student, by their shapes: nothing is computed."""
    config = EXPERIMENTS[name].config()

    def whole(key):
        teacher, student = (
            Classifier.create(build(network), key, (32, 32, 3)) for network in (config.teacher, config.student)
        )
        synthesis = data_impressions(teacher, config.synthesis, 2000, config.synthesis_batch)
        pool, _ = synthesis.step(key, synthesis.init(key))
        learning = knowledge_distillation(student, teacher, pool.images, augment=augmentation(config.augmentation))
        state, metrics = learning.step(key, learning.init(key))
        return pool.images, student.replace(variables=state.variables)(pool.images[:5]), metrics["loss"]

    images, logits, loss = jax.eval_shape(whole, jax.random.key(0))
    assert (images.shape, logits.shape, loss.shape) == ((2000, 32, 32, 3), (5, 10), ())


GENERATORS = ("dafl", "dfad", "zskt", "dfq", "degan", "rdskd", "gan-sampling", "cmi", "fast-dfkd", "nayer", "statistics-generators")  # fmt: skip


@pytest.mark.parametrize("name", GENERATORS)
def test_beside_every_generator_stand_an_untrained_one_and_images_that_nobody_made(name):
    entry = recipe(name)
    arms = {arm.name: arm for arm in entry.arms(tiny(name, CHANGES[name]))}
    assert {"smooth_noise", "balanced_shapes"} <= {name for name, arm in arms.items() if arm.role == "baseline"}
    labels = {arm.label for arm in arms.values() if arm.role in ("control", "baseline")}
    assert labels & {"Generator that never learns", "Generators that never learn"}
    without = entry.arms(tiny(name, CHANGES[name], arbitrary=0))
    assert {arm.name for arm in without} == set(arms) - {"smooth_noise", "balanced_shapes"}
    with pytest.raises(InputError, match="arbitrary must not be negative"):
        tiny(name, CHANGES[name], arbitrary=-1)
