"""Accuracy against queries and the table of defences, from results made by hand."""

import dataclasses
import re

import numpy as np
import pytest

from dfke_jax import report
from dfke_jax.core.errors import InputError
from dfke_jax.experiments.bench.result import Arm, Published, Result, Series
from dfke_jax.experiments.extraction import views
from dfke_jax.experiments.extraction.views import defences_table, query_lines, query_table


def result_of(arms, published=(), recipe="r", dataset="mnist"):
    return Result(recipe, "R", dataset, {}, [0, 1], arms, list(published), {"total": 1.0}, {})


def published(budget, value):
    factors = {"attack": "DFME, small", "queries": budget}
    return Published(f"dfme_{budget}", "mnist", value, "S", "table", factors=factors)


@pytest.fixture
def stolen():
    """Two budgets of one attack, the larger one first."""

    def arm(budget, accuracy, role="method"):
        name = f"dfme_{budget}" + ("_control" if role == "control" else "")
        more = {"total_variation": [0.1, 0.2], "transfer": [50.0, 60.0]}
        factors = {"attack": "DFME, small", "queries": budget}
        asked, way = {"victim_rows": budget - 8}, []
        if budget == 2000 and role == "method":
            way = [Series("accuracy", "queries", (500.0, 900.0), [[20.0, 30.0], [22.0, 40.0]])]
        return Arm(name, f"At {budget}", role, accuracy, [80.0, 82.0], asked, more, factors=factors, series=way)

    return result_of(
        [
            Arm("teacher", "Victim", "teacher", [99.0, 98.0]),
            arm(2000, [70.0, 72.0]),
            arm(2000, [40.0, 41.0], "control"),
            arm(1000, [50.0, 54.0]),
            Arm("noise_7", "No rows asked", "baseline", [1.0, 2.0]),
        ],
        [published(2000, 71.5), published(5000, 90.0)],
        "dfme",
    )


@pytest.fixture
def defended():
    def arm(attack, text, fidelity, answers):
        name = f"{attack.lower()}_behind_{re.sub(r'[^a-z0-9]+', '_', text)}"
        role = "control" if text == "none" else "method"
        control = "" if text == "none" else f"{attack.lower()}_behind_none"
        metrics = {"answers_accuracy": answers, "answers_l1": [0.1, 0.3]}
        factors = {"attack": attack, "defence": text}
        return Arm(name, f"{attack}/{text}", role, fidelity, fidelity, {"victim_rows": 9}, metrics, control, factors)

    return result_of(
        [
            arm("Knockoff", "none", [90.0, 92.0], [99.0, 99.0]),
            arm("DFME", "none", [60.0, 62.0], [99.0, 99.0]),
            arm("Knockoff", "label", [70.0, 75.0], [98.0, 99.0]),
            arm("Knockoff", "rounding, decimals=2", [88.0, 91.0], [99.0, 99.0]),
            arm("DFME", "rounding, decimals=2", [20.0, 22.0], [99.0, 99.0]),
        ],
        recipe="defences",
    )


def test_lines_are_sorted_by_budget_and_carry_control_and_published_points(stolen):
    (line,) = query_lines(stolen)
    assert line.label == "DFME, small"
    assert [(point.budget, point.rows, point.accuracy) for point in line.method] == [
        (1000, 992, [50.0, 54.0]),
        (2000, 1992, [70.0, 72.0]),
    ]
    assert [point.accuracy for point in line.control] == [[40.0, 41.0]]
    assert [(point.rows, point.accuracy) for point in line.published] == [(2000, [71.5]), (5000, [90.0])]


def test_what_the_largest_run_had_on_the_way(stolen):
    (line,) = query_lines(stolen)
    assert [(point.rows, point.accuracy) for point in line.progress] == [(500, [20.0, 22.0]), (900, [30.0, 40.0])]


def test_the_table_of_queries(stolen):
    lines = views.queries_table([stolen]).markdown().splitlines()
    assert len(lines) == 4
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        "mnist",
        "DFME, small",
        "2,000",
        "1,992",
        "71.00 ± 1.41",
        "81.00 ± 1.41",
        "0.150 ± 0.071",
        "55.0 ± 7.1",
        "40.50 ± 0.71",
        "71.5",
    ]


def test_queries_are_drawn_over_a_logarithmic_axis(stolen):
    figure = views.queries([stolen])
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["DFME, small"]
    lines = [bars.lines[0] for bars in axes.containers]
    np.testing.assert_array_equal(lines[0].get_ydata(), [52.0, 71.0])
    np.testing.assert_array_equal(lines[1].get_ydata(), [40.5])
    assert lines[0].get_linestyle() == "-"
    assert lines[1].get_linestyle() != "-"
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    assert [tuple(line.get_ydata()) for line in diamonds] == [(71.5,), (90.0,)]
    other = dataclasses.replace(stolen, config={"attack": {"batch_size": 256}})
    (axes,) = views.queries([stolen, other]).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["DFME, small", "DFME, small, batches of 256"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1k", "2k", "5k"]
    with pytest.raises(InputError, match="number of queries"):
        views.queries([result_of([Arm("teacher", "Victim", "teacher", [99.0])])])


def test_the_table_of_defences_and_its_figure(defended):
    table = views.defended(defended)
    assert table.defences == ("none", "label", "rounding, decimals=2")
    assert table.attacks == ("Knockoff", "DFME")
    assert table.cells["label", "Knockoff"].fidelity == [70.0, 75.0]
    assert ("label", "DFME") not in table.cells
    axes = views.defences(defended).axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown.filled(np.nan), [[91, 61], [72.5, np.nan], [89.5, 21]])
    words = [text.get_text() for text in axes.texts]
    assert "–" in words
    assert "72.5 ± 3.5" in words
    assert "98.5 ± 0.7" in words
    with pytest.raises(InputError, match="behind a defence"):
        views.defences(result_of([]))


def test_the_table_of_defences_in_words_and_no_series_over_queries(defended):
    """An arm behind a defence whose name ends in a number is no attack at that budget."""
    assert query_lines(defended) == []
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in defences_table(defended).markdown().splitlines()
    ]
    assert lines[0][1:3] == ["Knockoff: fidelity %", "DFME: fidelity %"]
    assert [line[0] for line in lines[2:]] == ["none", "label", "rounding, decimals=2"]
    assert lines[3][1:4] == ["72.50 ± 3.54", "–", "98.50 ± 0.71"]


def test_a_defence_is_compared_with_no_defence_for_the_same_attack(defended):
    assert [(method.name, control.name) for method, control in defended.pairs()] == [
        ("knockoff_behind_label", "knockoff_behind_none"),
        ("knockoff_behind_rounding_decimals_2", "knockoff_behind_none"),
        ("dfme_behind_rounding_decimals_2", "dfme_behind_none"),
    ]


def test_pages_show_them(stolen, defended, tmp_path):
    for name, result, figure in (("stolen", stolen, "queries"), ("defended", defended, "defences")):
        (tmp_path / name).mkdir()
        result.write(tmp_path / name)
        page = report.render(tmp_path / name).read_text()
        assert all(
            f">{cell}</td>" in page for cell in (query_table if name == "stolen" else defences_table)(result).rows[0]
        )
        assert (tmp_path / name / "figures" / f"{figure}.svg").exists()
        assert ("<h2>Accuracy against queries" in page) == (name == "stolen")
    (tmp_path / "all").mkdir()
    for name, result in (("dfme-mnist", stolen), ("defences-mnist", defended)):
        (tmp_path / name).mkdir()
        result.write(tmp_path / name).rename(tmp_path / "all" / f"{name}.json")
    index = report.results_page(tmp_path / "all").read_text()
    assert "- [Extraction from mnist: accuracy against queries](queries-mnist.md)" in index
    assert views.queries_table([stolen]).markdown() in (tmp_path / "all" / "queries-mnist.md").read_text()
    assert defences_table(defended).markdown() in (tmp_path / "all" / "defences-mnist.md").read_text()
    assert (tmp_path / "all" / "figures" / "queries-mnist.png").exists()
