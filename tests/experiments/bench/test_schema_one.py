"""Results of the first schema, which spelt series, trials and factors in names, are read into today's form."""

import json
from pathlib import Path

import pytest

from dfke_jax.experiments.bench.result import Result
from dfke_jax.experiments.bench.schema_one import from_schema_one

KEPT = sorted((Path(__file__).resolve().parents[3] / "docs" / "results").glob("*.json"))


def read(recipe, *arms, published=()):
    plain = {"role": "method", "accuracy": [1.0], "agreement": [], "budget": {}, "metrics": {}, "control": ""}
    content = {"recipe": recipe, "arms": [{**plain, **arm} for arm in arms], "published": list(published)}
    return from_schema_one(content)


def test_attacks_at_budgets():
    found = read(
        "dfme",
        {"name": "teacher", "label": "Victim", "role": "teacher"},
        {
            "name": "dfme_2000",
            "label": "DFME, 2,000 queries",
            "metrics": {"accuracy_at_900": [3.0], "accuracy_at_90": [2.0], "transfer": [5.0]},
        },
        {"name": "dfme_2000_control", "label": "Never learns, 2,000", "role": "control"},
        published=[{"arm": "dfme_9000"}, {"arm": "maze_9000"}],
    )
    victim, method, control = found["arms"]
    assert victim["factors"] == {}
    assert method["factors"] == control["factors"] == {"attack": "DFME", "queries": 2000}
    assert method["series"] == [{"name": "accuracy", "over": "queries", "x": [90.0, 900.0], "y": [[2.0, 3.0]]}]
    assert method["metrics"] == {"transfer": [5.0]}
    assert [figure["factors"] for figure in found["published"]] == [{"attack": "DFME", "queries": 9000}, {}]


def test_attacks_behind_defences():
    arm = {"name": "dfme_behind_rounding_decimals_2", "label": "DFME behind rounding, decimals=2"}
    (found,) = read("defences", arm)["arms"]
    assert found["factors"] == {"attack": "DFME", "defence": "rounding, decimals=2"}
    assert read("zskd", arm)["arms"][0]["factors"] == {}


def test_attacks_on_marks():
    at = {"accuracy@0.5": [3.0, 4.0], "accuracy@0.25": [1.0, 2.0], "trigger_accuracy": [9.0, 9.0]}
    found = read(
        "watermark-removal",
        {"name": "control", "label": "No mark", "role": "control"},
        {"name": "scratch", "label": "From scratch"},
        {"name": "scratch.dormant_pruning", "label": "P", "metrics": at},
        {"name": "scratch.ftal", "label": "F", "metrics": {"accuracy@10": [1.0]}},
        {"name": "scratch.dfme_control", "label": "C", "role": "control"},
    )["arms"]
    assert [arm["factors"].get("attack") for arm in found] == [None, "none", "dormant pruning", "ftal", "dfme"]
    assert {arm["factors"]["mark"] for arm in found[1:]} == {"From scratch"}
    series = {"name": "accuracy", "over": "share", "x": [0.25, 0.5], "y": [[1.0, 3.0], [2.0, 4.0]]}
    assert (found[2]["series"], found[2]["metrics"]) == ([series], {"trigger_accuracy": [9.0, 9.0]})
    assert found[3]["series"][0]["over"] == "steps"


def test_models_that_were_put_to_the_test():
    metrics = {
        "effect": [0.3], "welch": [0.1], "conformal_either": [0.2], "false_positives_released": [50.0], "p_at_20": [0.5],
        "p_at_100": [0.1], "welch_overlap_25": [0.4], "new_task_after_10": [90.0],
    }  # fmt: skip
    (arm,) = read("dataset-inference", {"name": "control", "label": "C", "role": "control", "metrics": metrics})["arms"]
    assert arm["metrics"] == {"effect": [0.3]}
    assert {one["test"]: one for one in arm["trials"]} == {
        "welch": {"test": "welch", "p_values": [0.1]},
        "conformal_either": {"test": "conformal_either", "p_values": [0.2]},
        "released": {"test": "released", "false_positives": [50.0]},
    }
    assert {(one["over"], one["name"]): one["x"] for one in arm["series"]} == {
        ("revealed", "welch"): [20.0, 100.0],
        ("overlap", "welch"): [25.0],
        ("forgetting", "new_task"): [10.0],
    }


@pytest.mark.parametrize("path", KEPT, ids=[path.stem for path in KEPT])
def test_kept_results_keep_every_figure(path):
    """As many of each value as the file has, wherever it stands now."""
    content = json.loads(path.read_text())
    before = sorted(value for arm in content["arms"] for values in arm["metrics"].values() for value in values)
    after = []
    for arm in Result.read(path).arms:
        after += [value for values in (*arm.metrics.values(), *arm.p_values.values()) for value in values]
        after += [value for values in arm.false_positives.values() for value in values]
        after += [value for series in arm.series for row in series.y for value in row]
    if content["schema"] == 1:
        assert sorted(after) == before
