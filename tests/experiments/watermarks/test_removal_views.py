"""Figures of watermark removal: what they read from a result, and that they draw it."""

import json

import pytest

from dfke_jax.core import InputError
from dfke_jax.display.tables import github_table
from dfke_jax.experiments.bench.result import Arm, Result, Series
from dfke_jax.experiments.watermarks.removal_views import (
    attacked,
    curve,
    removal_curves,
    removal_matrix,
    removal_table,
    unmarked,
)
from dfke_jax.report import results_page

STEPS = [
    Series(kind, "steps", (0.0, 10.0, 30.0), [[first + steps for steps in (0.0, 10.0, 30.0)] for first in (50.0, 60.0)])
    for kind in ("accuracy", "trigger_accuracy")
]
TRAINED = "In a trained network"


def made(*arms):
    return Result("watermark-removal", "T", "digits", {}, [0, 1], list(arms), [], {}, {})


MARK = Arm("pretrained", "In a trained network", "method", [97.0, 98.0], [99.0, 99.0], {}, {"trigger_accuracy": [100.0, 100.0]}, factors={"mark": TRAINED, "attack": "none"})  # fmt: skip
FTAL = Arm("pretrained.ftal", "FTAL", "method", [96.0, 97.0], [98.0, 99.0], {}, {"trigger_accuracy": [80.0, 90.0]}, factors={"mark": TRAINED, "attack": "ftal"}, series=STEPS)  # fmt: skip
PRUNED = Arm("pretrained.magnitude_pruning", "P", "method", [90.0, 91.0], [92.0, 93.0], {}, {"trigger_accuracy": [70.0, 75.0]}, factors={"mark": TRAINED, "attack": "magnitude pruning"})  # fmt: skip
CONTROL = Arm("control", "No mark", "control", [97.0, 97.5], [100.0, 100.0], {}, {"trigger_accuracy": [10.0, 12.0]})


def test_arms_are_sorted_into_attacks_and_schemes():
    found = attacked(made(CONTROL, MARK, FTAL, PRUNED))
    assert {attack: list(arms) for attack, arms in found.items()} == {
        "none": [TRAINED],
        "ftal": [TRAINED],
        "magnitude pruning": [TRAINED],
    }
    assert attacked(made(CONTROL, Arm("m", "M", "method", [1.0], [1.0]))) == {}


def test_curve_by_rising_strength():
    strengths, means, deviations = curve(FTAL, "trigger_accuracy")
    assert strengths == [0, 10, 30]
    assert means == [55, 65, 85]
    assert deviations == pytest.approx([50**0.5] * 3)


def test_figures_show_every_row_and_value(tmp_path):
    result = made(CONTROL, MARK, FTAL, PRUNED)
    matrix, curves = removal_matrix(result), removal_curves(result)
    left, right = matrix.axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["none", "ftal", "magnitude pruning"]
    assert "85.0 ± 7.1" in [text.get_text() for text in right.texts]
    assert [11.0, 11.0] in [list(line.get_xdata()) for line in right.lines], "the control's line"
    (panel,) = curves.axes
    assert panel.get_title(loc="left") == "ftal"
    assert len(panel.lines) == 2
    for figure in (matrix, curves):
        figure.savefig(tmp_path / "figure.png")


def test_cells_do_not_break_a_table():
    assert github_table(("a", "b"), [("x|y", "1\n2")]) == "| a | b |\n|---|--:|\n| x\\|y | 1 2 |\n"


def test_the_table_of_attacks():
    lines = [
        line.strip("|").split("|") for line in removal_table(made(CONTROL, MARK, FTAL, PRUNED)).markdown().splitlines()
    ]
    assert [cell.strip() for cell in lines[0]] == ["attack", "In a trained network: clean %", "In a trained network: triggers %"]  # fmt: skip
    assert [[cell.strip() for cell in line] for line in lines[2:]] == [
        ["No mark", "97.25 ± 0.35", "11.0 ± 1.4"],
        ["none", "97.50 ± 0.71", "100.0 ± 0.0"],
        ["ftal", "96.50 ± 0.71", "85.0 ± 7.1"],
        ["magnitude pruning", "90.50 ± 0.71", "72.5 ± 3.5"],
    ]


def test_a_clone_stands_beside_that_of_the_network_without_a_mark(tmp_path):
    dfme = {"mark": TRAINED, "attack": "dfme"}
    clone = Arm(
        "pretrained.dfme",
        "C",
        "method",
        [80.0, 82.0],
        [85.0, 86.0],
        {},
        {"trigger_accuracy": [40.0, 42.0]},
        factors=dfme,
    )
    innocent = Arm("pretrained.dfme_control", "U", "control", [81.0, 83.0], [85.0, 86.0], {}, {"trigger_accuracy": [9.0, 11.0]}, factors=dfme)  # fmt: skip
    result = made(CONTROL, MARK, FTAL, clone, innocent)
    assert unmarked(result) == {"dfme": {TRAINED: innocent}}
    lines = [line.strip("|").split("|") for line in removal_table(result).markdown().splitlines()]
    assert [[cell.strip() for cell in line] for line in lines[2:]] == [
        ["No mark", "97.25 ± 0.35", "11.0 ± 1.4"],
        ["none", "97.50 ± 0.71", "100.0 ± 0.0"],
        ["ftal", "96.50 ± 0.71", "85.0 ± 7.1"],
        ["dfme", "81.00 ± 1.41", "41.0 ± 1.4"],
        ["dfme, network without a mark", "82.00 ± 1.41", "10.0 ± 1.4"],
    ]
    figure = removal_matrix(result)
    for axes, value in zip(figure.axes, (82.0, 10.0), strict=True):
        (hollow,) = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        assert list(hollow.get_xdata()) == [value]
    assert [10.0, 10.0] not in [list(line.get_xdata()) for line in figure.axes[1].lines], "no line for a clone"
    figure.savefig(tmp_path / "figure.png")


def test_nothing_to_draw():
    with pytest.raises(InputError, match="no attack"):
        removal_matrix(made(CONTROL))
    with pytest.raises(InputError, match="several strengths"):
        removal_curves(made(CONTROL, MARK, PRUNED))


def test_the_page_of_results_has_no_curves_where_nothing_was_tried_in_several_strengths(tmp_path):
    for name, attack in (("one", PRUNED), ("many", FTAL)):
        (tmp_path / f"{name}.json").write_text(json.dumps(made(CONTROL, MARK, attack).to_json()))
    results_page(tmp_path)
    one, many = ((tmp_path / f"{name}.md").read_text() for name in ("one", "many"))
    assert "figures/many-strength.png" in many
    assert "figures/one.png" in one
    assert "one-strength" not in one
