"""What a copy inherits of a watermark: the figure's dots and the table's cells come from the result."""

import pytest

from dfke_jax.core import InputError
from dfke_jax.experiments.bench.result import Arm, Published, Result
from dfke_jax.experiments.watermarks.inheritance_views import inheritance_table, marked, success


def made(*arms):
    return Result("ewe", "T", "digits", {}, [0, 1, 2], list(arms), [], {}, {})


CLEAN = Arm("teacher", "Clean", "teacher", [98.0, 98.0, 98.0], [])
COPY = Arm(
    "extracted", "Copy", "method", [97.0, 96.0, 98.0], [], {},
    {"watermark_success": [10.0, 90.0, 50.0], "queries": [10_000.0, 3.0, 12.0], "highest_false_rate": [2.0, 6.0, 4.0],
     "false_rate": [1.0, 3.0, 2.0]},
)  # fmt: skip
PLAIN = Arm("extracted_control", "Plain", "control", [97.5, 97.5, 97.5], [], {}, {"watermark_success": [1.0, 2.0, 3.0]})


def test_the_figure_has_every_seed_the_mean_and_the_highest_false_rate(tmp_path):
    figure = success(made(CLEAN, COPY, PLAIN))
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["Copy", "Plain"]
    drawn = [list(line.get_xdata()) for line in axes.lines]
    for expected in ([10.0, 90.0, 50.0], [50.0, 50.0], [6.0], [1.0, 2.0, 3.0], [2.0, 2.0]):
        assert expected in drawn
    figure.savefig(tmp_path / "figure.png")


def test_the_table():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in inheritance_table(made(CLEAN, COPY, PLAIN)).markdown().splitlines()]  # fmt: skip
    assert lines[2] == ["**Copy**", "97.00 ± 1.00", "50.0 ± 40.0", "10.0, 90.0, 50.0", "48.0 ± 39.0", "6.0", "12"]
    assert lines[3] == ["Plain", "97.50 ± 0.00", "2.0 ± 1.0", "1.0, 2.0, 3.0", "–", "–", "–"]
    assert len(lines) == 4


def test_what_was_published_stands_below():
    result = made(COPY)
    result.published = [Published("extracted", "digits", 98.9, "Somebody 2021", "recalled", "success is 65.7 %")]
    assert (
        inheritance_table(result)
        .markdown()
        .endswith("\nPublished for the copies (Somebody 2021, recalled): success is 65.7 %.\n")
    )


def test_a_result_without_triggers_has_neither():
    assert marked(made(CLEAN)) == []
    with pytest.raises(InputError, match="no success on triggers"):
        success(made(CLEAN))
