"""Recipes on data of the user's own: without labels, tables, and classes of unequal sizes."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from dfke_jax import data, report
from dfke_jax.core.errors import InputError
from dfke_jax.data.csv_files import uniform_rows
from dfke_jax.experiments import Workbench, recipe, run_recipe
from dfke_jax.experiments.extraction import pool
from dfke_jax.experiments.extraction.relu_extraction import DoubleNetwork
from dfke_jax.extraction import CloneTraining, PoolAttackSettings
from dfke_jax.nn.named import network

CLONE = CloneTraining(steps=10, batch_size=16)
SCORES = """
import numpy as np

def scores(rows):
    flat = np.asarray(rows).reshape(len(rows), -1)
    return np.stack([flat[:, k : k + 4].sum(1) for k in range(10)], 1) - 1.0

def buyers(rows):
    assert rows.shape[1:] == (5,)
    assert abs(rows).max() <= 1
    assert len(rows) == 2 or rows[:, :2].min() < 0 <= rows[:, 2:].min()  # two rows are asked at first
    wants = 2 * rows[:, 0] + rows[:, 1] - rows[:, 2]
    return np.stack([-wants, wants], 1)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Digits without labels, a table of which one class is rare, and functions to attack."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "cache"))
    digits, rng = data.load("digits"), np.random.default_rng(0)
    np.savez("bare.npz", x_train=digits.train.images[:100], x_test=digits.test.images[:50])
    with open("people.csv", "w", newline="") as file:
        rows = [
            [
                rng.integers(20, 70),
                f"{rng.normal():.3f}",
                ("cook", "clerk", "driver")[i % 3],
                ("no", "no", "no", "yes")[i % 4],
            ]
            for i in range(80)
        ]
        csv.writer(file).writerows([["age", "score", "job", "buys"], *rows])
    (tmp_path / "mine.py").write_text(SCORES)
    return tmp_path


def settings(name, dataset, **changes):
    small = {"seeds": 1, "teacher_steps": 20}
    if recipe(name).config.own == "answers":
        small |= {"budgets": (60,), "student": "mlp_small"}
    if name == "knockoff":
        small["attack"] = PoolAttackSettings(rows_per_step=30, clone=CLONE)
    return recipe(name).settings(dataset, **{**small, **changes})


def ran(name, dataset, where="run", **changes):
    config = settings(name, dataset, **changes)
    return run_recipe(recipe(name), config, out=where, progress=False, devices=1)


@pytest.mark.slow
def test_without_labels_agreement_is_measured_and_accuracy_is_not(place):
    found = ran("knockoff", "bare.npz", teacher="mine.py:scores")
    arms = {arm.name: arm for arm in found.arms}
    assert all(arm.accuracy == [] for arm in found.arms)
    assert arms["teacher"].agreement == []
    assert len(arms["knockoff_60"].agreement) == len(arms["knockoff_60_control"].agreement) == 1
    assert set(arms["knockoff_60"].metrics) == {"total_variation"}
    assert "The data has no labels: accuracy cannot be measured, and was not." in found.notes
    (said,) = report.verdict(found)
    assert "agrees with the teacher on" in said
    assert "over its matched control" in said
    assert "accuracy was not measured" in said
    page = report.render("run").read_text()
    assert "accuracy cannot be measured, and was not" in page
    assert "nan" not in (said + page[page.index("<h1") :].replace("provenance", "")).lower().split("base64")[0]
    assert not any("accuracy" in name for name in json.loads((place / "run/result.json").read_text())["metrics"])


@pytest.mark.slow
def test_without_labels_a_charging_victim_leaves_its_budget_alone(place):
    pytest.importorskip("starlette")
    from dfke_jax.oracle import Reveal, background, create_app
    from dfke_jax.oracle.answering import answering

    app = create_app(
        answering(network("mlp_small", 10, (8, 8, 1)), Reveal("label")),
        input_shape=(8, 8, 1),
        reveal=Reveal("label"),
        num_classes=10,
    )
    with background(app) as url:
        found = ran("knockoff", "bare.npz", teacher=url, control=False)
    assert sum(app.state.service.accounts.charged.values()) == 60
    arms = {arm.name: arm for arm in found.arms}
    assert (arms["knockoff_60"].accuracy, arms["knockoff_60"].agreement) == ([], [])
    assert arms["knockoff_60"].budget["victim_rows"] == 60
    assert any("was not measured either" in note for note in found.notes)
    assert report.verdict(found) == ["No accuracy was recorded."]


@pytest.mark.slow
def test_a_model_of_feature_vectors_is_attacked_with_a_table(place):
    found = ran("knockoff", "people.csv:buys", teacher="mine.py:buyers")
    arms = {arm.name: arm for arm in found.arms}
    table = data.load("people.csv:buys")
    rows = table.test.images.reshape(-1, 5) * np.array([2, 2, 1, 1, 1]) - np.array([1, 1, 0, 0, 0])
    wants = 2 * rows[:, 0] + rows[:, 1] - rows[:, 2] > 0
    assert arms["teacher"].accuracy == [pytest.approx(100 * (wants == table.test.labels).mean(), abs=1e-4)]
    right = [100 * (wants[table.test.labels == k] == k).mean() for k in (0, 1)]
    assert arms["teacher"].over("class", "accuracy").y[0] == pytest.approx(right, abs=1e-4)
    assert arms["teacher"].metrics["balanced_accuracy"] == [pytest.approx(np.mean(right), abs=1e-4)]
    assert "Classes by number: 0 no, 1 yes." in found.notes
    assert "(balanced over classes" in report.verdict(found)[0]
    assert "Accuracy by class" in report.render("run").read_text()
    assert not (place / "run/samples.npz").exists()


def test_the_pool_of_a_table_is_rows_that_may_be(place):
    config = settings("knockoff", "people.csv:buys")
    bench = Workbench(config, "run", progress=False, devices=1)
    pool = recipe("knockoff").prepare(bench)
    assert pool.images.shape == (120, 1, 1, 5)
    assert (np.asarray(pool.images)[..., 2:].sum(-1) == 1).all()
    other = dataclasses.replace(config, pool_dataset="people.csv:-")
    with pytest.raises(InputError, match=r"has rows of \(1, 1, 7\), and the data of \(1, 1, 5\)"):
        recipe("knockoff").prepare(Workbench(other, "run", progress=False, devices=1))
    shapes = Workbench(dataclasses.replace(config, pool_dataset="shapes"), "run", progress=False, devices=1)
    with pytest.raises(InputError, match="shapes are pictures; take the pool uniform"):
        recipe("knockoff").prepare(shapes)


def test_a_network_for_a_table_gets_the_tables_scale(place):
    bench = Workbench(settings("relu-extraction", "people.csv:buys"), "run", progress=False, devices=1)
    network = bench.network("mlp_4")
    rows = uniform_rows(bench.dataset.schema, np.random.default_rng(0), 20)
    kernel, bias = (np.asarray(network.variables["params"]["dense1"][name], np.float64) for name in ("kernel", "bias"))
    scaled = rows.reshape(20, 5) * np.array([2, 2, 1, 1, 1]) - np.array([1, 1, 0, 0, 0])
    double = DoubleNetwork.of(network)
    np.testing.assert_allclose(rows.reshape(20, 5) @ double.weights + double.bias, scaled @ kernel + bias, atol=1e-6)
    np.testing.assert_allclose(double(rows), network.predict(rows), atol=1e-4)
    with pytest.raises(InputError, match="lenet5 takes images; take a dense network"):
        bench.network("lenet5")


@pytest.mark.parametrize(
    ("name", "dataset", "changes", "message"),
    [
        ("dafl", "people.csv:buys", {"teacher": "mlp_small"}, "dafl needs images; with tables go anchors, knockoff, "),
        ("copycat", "people.csv:buys", {"budgets": (2000,)}, "copycat needs images"),
        ("dafl", "bare.npz", {}, "has no labels, and no lenet5 can be trained on it; name a network of your own"),
        ("ewe", "bare.npz", {"teacher": "mine.py:scores"}, "this recipe trains all of its networks itself"),
        ("knockoff", "bare.npz", {"teacher": "mine.py:scores", "points": 2}, "points are of accuracy"),
        (
            "knockoff",
            "digits",
            {"teacher": "mine.py:scores", "pool_dataset": "uniform"},
            "the pool uniform is of tables",
        ),
        ("anchors", "people.csv:buys", {"teacher": "mine.py:buyers"}, "shows none"),
    ],
)
def test_what_the_data_does_not_allow_is_said(place, monkeypatch, name, dataset, changes, message):
    def drawn(*_args, **_options):
        raise AssertionError("a pool was drawn for a run that is refused")

    monkeypatch.setattr(pool, "synthetic_shapes", drawn)
    with pytest.raises(InputError, match=message):
        ran(name, dataset, **changes)
    assert not (place / "run/result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["knockoff", "knockoff-bandit", "active-thief", "jbda", "anchors", "relu-extraction"])
def test_recipes_of_tables_run(place, name):
    changes = {"distillation_steps": 20} if name == "anchors" else {}
    budgets = {"jbda": (640,), "active-thief": (60,)}
    if name in budgets:
        changes = {"budgets": budgets[name]}
    found = ran(name, "people.csv:buys", **changes)
    assert all(len(arm.accuracy) == 1 for arm in found.arms)
    report.render("run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["data-impressions", "dafl", "transfer-sets"])
def test_distillation_without_labels(place, name):
    classifier = network("mlp_small", 10, (8, 8, 1))
    classifier.save(place / "teacher")
    changes = {"teacher": "./teacher", "student": "mlp_small", "distillation_steps": 5, "distillation_batch": 8}
    changes |= {"dafl": {"iterations": 3}, "data-impressions": {"samples": 20, "synthesis_batch": 20}}.get(name, {})
    found = ran(name, "bare.npz", **changes)
    assert all(not arm.accuracy for arm in found.arms)
    assert all(arm.agreement for arm in found.arms if arm.role != "teacher")
    assert not any("accuracy" in metric or "tail" in metric for arm in found.arms for metric in arm.metrics)
    assert "accuracy was not measured" in report.verdict(found)[0]
