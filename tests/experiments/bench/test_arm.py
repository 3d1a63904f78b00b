"""Arms: series and trials, how seeds are put together, and what a result file keeps of them."""

import dataclasses
import json

import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.experiments.bench.arm import Arm, Series, Trial, joined
from dfke_jax.experiments.bench.result import Published, Result


def arm(seed):
    """One seed."""
    return Arm(
        "dfme_100",
        "DFME, 100 queries",
        "method",
        [50.0 + seed],
        [60.0 + seed],
        {"victim_rows": 96},
        {"transfer": [float(seed)]},
        factors={"attack": "DFME", "queries": 100},
        series=[Series.of_seed("accuracy", "queries", {90: 40.0 + seed, 20: 30.0 + seed})],
        trials=[Trial("welch", [0.1**seed]), Trial("released", false_positives=[10.0 * seed])],
    )


def test_a_series_is_in_rising_order_and_read_by_its_points():
    series = arm(1).over("queries", "accuracy")
    assert (series.x, series.y) == ((20.0, 90.0), [[31.0, 41.0]])
    assert series.at(90) == [41.0]
    with pytest.raises(InputError, match="accuracy over queries was not measured at 50, but at 20, 90"):
        series.at(50)
    assert arm(1).over("queries", "fidelity") is None
    assert arm(1).over("steps", "accuracy") is None


def test_seeds_are_put_together_in_their_order():
    both = joined([arm(0), arm(1)])
    assert both.accuracy == [50.0, 51.0]
    assert both.metrics == {"transfer": [0.0, 1.0]}
    assert both.over("queries", "accuracy").y == [[30.0, 40.0], [31.0, 41.0]]
    assert both.over("queries", "accuracy").at(20) == [30.0, 31.0]
    assert both.p_values == {"welch": [1.0, 0.1]}
    assert both.false_positives == {"released": [0.0, 10.0]}
    assert both.factors == arm(0).factors
    other = dataclasses.replace(arm(1), series=[Series.of_seed("accuracy", "queries", {20: 1.0})])
    with pytest.raises(InputError, match="was measured at 20, 90 and at 20"):
        joined([arm(0), other])


def test_a_result_file_keeps_them(tmp_path):
    figure = Published("dfme_200", "mnist", 88.0, "A", "table", factors={"attack": "DFME", "queries": 200})
    result = Result("dfme", "T", "mnist", {}, [0, 1], [joined([arm(0), arm(1)])], [figure], {}, {})
    result.write(tmp_path)
    again = Result.read(tmp_path)
    assert again == result
    assert again.published[0].factors["queries"] == 200
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics["dfme_100_welch"]["values"] == [1.0, 0.1]
