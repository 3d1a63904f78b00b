"""Budgets that arms state, against the rows that their teacher answered."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from dfke_jax import data, nn
from dfke_jax.experiments import Run, recipe, recipes, run_recipe
from dfke_jax.experiments.bench import budgets
from dfke_jax.experiments.bench.result import Result
from dfke_jax.experiments.bench.workbench import Workbench
from dfke_jax.experiments.distillation import syntheses
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.watermarking.removal import REMOVALS

TINY = {
    "dataset": "digits",
    "seeds": 2,
    "teacher": "lenet5_bn",
    "student": "mlp_small",
    "teacher_steps": 10,
    "teacher_batch": 16,
    "distillation_steps": 3,
    "distillation_batch": 8,
}
POOL = {"samples": 40, "synthesis_batch": 20}
STEPS = 2
RECIPES = {
    "anchors": {"real_augmentation": "none"},
    "transfer-sets": {"samples": 40, "candidates": 50, "unrelated": "digits"},
    "zskd": {**POOL, "augmentation": "none"},
    "class-impressions": POOL,
    "activation-records": {**POOL, "per_class": 7},
    "deep-inversion": {**POOL, "student_steps": 3},
}
RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"


class Counter:
    def __init__(self):
        self.rows = 0
        self.paused = False

    def __call__(self, rows):
        self.rows += 0 if self.paused else int(rows)

    def read(self):
        jax.effects_barrier()
        return self.rows


@dataclasses.dataclass(frozen=True)
class Counting(Preprocessing):
    """Whatever reaches the teacher passes its preprocessing, which counts rows as the program runs."""

    counter: Counter | None = None

    def __call__(self, images):
        jax.debug.callback(self.counter, np.int32(images.shape[0]))
        return super().__call__(images)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_an_arm_states_the_rows_that_its_teacher_answered(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "cache"))
    counter, seen = Counter(), defaultdict(list)
    teacher, record, measured = Workbench.teacher, Run.record, syntheses.pool_metrics
    predict = Classifier.predict

    def counted(bench, seed):
        found = teacher(bench, seed)
        fields = {f.name: getattr(found.preprocessing, f.name) for f in dataclasses.fields(Preprocessing)}
        return dataclasses.replace(found, preprocessing=Counting(**fields, counter=counter))

    def quietly(function):  # what is measured afterwards is no part of an arm's budget
        def wrapper(*arguments, **options):
            counter.read()
            before, counter.paused = counter.paused, True
            try:
                return function(*arguments, **options)
            finally:
                counter.read()
                counter.paused = before

        return wrapper

    def predicted(classifier, images, *arguments, **options):
        answers = quietly(predict)(classifier, images, *arguments, **options)
        if isinstance(classifier.preprocessing, Counting):
            counter(len(images))  # and not the rows that fill its last batch
        return answers

    def entered(run, arm, *arguments, **options):
        seen[arm].append(counter.read() - sum(map(sum, seen.values())))
        return quietly(record)(run, arm, *arguments, **options)

    monkeypatch.setattr(Classifier, "predict", predicted)
    monkeypatch.setattr(Workbench, "teacher", counted)
    monkeypatch.setattr(Run, "record", entered)
    monkeypatch.setattr(syntheses, "pool_metrics", quietly(measured))
    monkeypatch.setattr(Workbench, "keep_model", lambda *_: None)  # a counter cannot be written down
    settings = recipe(name).settings("digits")
    changes = {**TINY, **RECIPES[name]}
    if hasattr(settings, "synthesis"):
        changes["synthesis"] = dataclasses.replace(settings.synthesis, steps=STEPS)
    config = dataclasses.replace(settings, **changes)
    result = run_recipe(recipe(name), config, out=tmp_path / "run", progress=False, devices=1)
    stated = {arm.name: arm.budget["teacher_rows"] for arm in result.arms if "teacher_rows" in arm.budget}
    assert stated
    assert {name: [rows] * 2 for name, rows in stated.items()} == {name: seen[name] for name in stated}


def test_real_samples_behind_records():
    assert budgets.recorded_rows([5, 2, 9], 3) == 3 + 2 + 3
    config = SimpleNamespace(
        distillation_steps=10, distillation_batch=4, augmentation="affine", real_augmentation="none"
    )
    assert budgets.distilled(config, 6, 2, recorded=7) == {
        "synthetic_samples": 6,
        "synthesis_steps": 2,
        "teacher_rows": 10 * 4 + 6 * 2 + 7,
        "distillation_steps": 10,
        "real_samples": 7,
    }
    assert budgets.distilled(config, real=50)["teacher_rows"] == 50  # a table: every image once
    assert budgets.distilled(config, 6, augment="none")["teacher_rows"] == 6
    opponent = SimpleNamespace(samples=1280, synthesis_batch=256, student_steps=400)
    assert budgets.opponent_rows(opponent) == 5 * 400 * 64 == 128_000


@pytest.mark.slow
def test_removal_attacks_that_state_no_images_do_not_look_at_them():
    task = data.load("digits")
    images, labels = task.train.on_device()
    marked = nn.Classifier.create(nn.build("mlp_small"), jax.random.key(0), task.shape)
    without = [name for name in REMOVALS if budgets.removal(name, 9, 2)["real_samples"] == 0]
    assert len(without) == 5
    for name in without:
        made = [REMOVALS[name](jax.random.key(1), marked, x, labels).classifier for x in (images, 1 - images[::-1])]
        one, two = (np.asarray(network.predict(task.test.images)) for network in made)
        np.testing.assert_array_equal(one, two)
    pruned = [REMOVALS["dormant_pruning"](jax.random.key(1), marked, x, labels) for x in (images, 1 - images[::-1])]
    assert not np.array_equal(*(made.classifier.predict(task.test.images) for made in pruned))
    asking = budgets.removal("hard_retraining", 9, 2)
    assert asking == {"real_samples": 9, "training_steps": 2, "victim_rows": 9}
    assert budgets.removal("ftal", 9, 2) == {"real_samples": 9, "training_steps": 2}


OF_THEIR_OWN = ("degan", "rdskd", "statistics-generators", "gan-sampling")
"""Recipes whose generators ask besides, as many rows as their settings say: see the tests of these recipes."""


def kept_budgets():
    """Of every arm of the kept results of distillation: the file, the arm, and the budget that its configuration gives."""
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        config = SimpleNamespace(**content["config"])
        # of MNIST and of Fashion-MNIST 60,000, at least 5,421 of every class
        train = {"digits": 1437, "cifar10": 50_000}.get(config.dataset, 60_000)
        if content["recipe"] in ("dfnd", "few-shot", "feature-distillation"):
            continue  # they state rows of their own: see the tests of these recipes
        for arm in content["arms"]:
            budget, name = arm["budget"], arm["name"]
            if "distillation_steps" not in budget:
                continue
            further = {}
            if content["recipe"] == "activation-records" and arm["role"] == "method":
                further["recorded"] = budgets.recorded_rows([5_421] * 10, config.per_class)
            if name == "adaptive_deep_inversion":
                further["other_rows"] = budgets.opponent_rows(config)
            if name.endswith("_balanced"):
                further["other_rows"] = train if name == "unrelated_balanced" else config.candidates
            if name.startswith("data_impressions_published"):
                further["augment"] = "published"
            if name == "real_data":
                yield path, name, budget, budgets.distilled(config, real=train)
            elif hasattr(config, "arbitrary") and name in ("smooth_noise", "balanced_shapes"):
                asked = 3 * config.arbitrary if name == "balanced_shapes" else 0
                augment = config.real_augmentation
                yield path, name, budget, budgets.distilled(config, config.arbitrary, augment=augment, other_rows=asked)
            elif hasattr(config, "samples") and content["recipe"] not in OF_THEIR_OWN:
                steps = config.synthesis["steps"] if arm["role"] == "method" and hasattr(config, "synthesis") else 0
                yield path, name, budget, budgets.distilled(config, config.samples, steps, **further)


def kept_removals():
    """The same of the kept results of removal attacks, but for those by extraction, whose rows a ledger counted."""
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        if content["recipe"] != "watermark-removal":
            continue
        whole = (
            50_000 if content["dataset"] == "cifar10" else 60_000
        )  # Fashion-MNIST, for transfer learning, has as many
        for arm in content["arms"]:
            attack = arm["name"].partition(".")[2]
            if attack in REMOVALS:
                held = content["config"]["attacker_images"] or whole
                yield path, arm["name"], arm["budget"], budgets.removal(attack, held, arm["budget"]["training_steps"])


def test_kept_results_of_removal_state_what_their_attacks_use():
    found = list(kept_removals())
    assert len(found) > 100
    assert [(path.name, arm) for path, arm, stated, right in found if stated != right] == []


def test_kept_results_state_the_budget_that_their_configuration_gives():
    found = list(kept_budgets())
    assert len(found) > 50
    assert [(path.name, arm) for path, arm, stated, right in found if stated != right] == []


def test_kept_results_are_compared_with_the_published_figures_of_their_recipe():
    for path in sorted(RESULTS.glob("*.json")):
        kept = Result.read(path)
        known = recipes()[kept.recipe].published
        assert kept.published == [figure for figure in known if figure.concerns(SimpleNamespace(**kept.config))], (
            path.name
        )
