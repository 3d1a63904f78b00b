"""The tables of steadiness and of all methods side by side, from figures that are known."""

from types import SimpleNamespace

from dfke_jax.experiments.bench.result import Arm, Result
from dfke_jax.experiments.distillation.views import SIDE_BY_SIDE, STEADINESS, entries, front


def result(*arms):
    return SimpleNamespace(arms=list(arms))


def test_only_arms_that_were_watched_are_shown():
    teacher = Arm("teacher", "Teacher", "teacher")
    method = Arm("few_shot", "Few", "method")
    method.metrics.update(tail_mean=[90.0, 92.0], tail_variance=[0.5, 1.5], transition_error=[4.0, 6.0])
    control = Arm("few_shot_control", "Labels", "control")
    control.metrics.update(tail_mean=[80.0, 80.0], tail_variance=[1.0, 1.0])
    found = STEADINESS.table(result(teacher, method, control))
    assert found.rows == [
        ["Few", "91.00 ± 1.41", "1.00 ± 0.71", "5.00 ± 1.41"],
        ["Labels", "80.00 ± 0.00", "1.00 ± 0.00", ""],
    ]
    assert found.roles == ["method", "control"]
    assert STEADINESS.holds(result(method))
    assert not STEADINESS.holds(result(teacher))


def kept(dataset, arms, rows=None, stages=None, seeds=(0, 1)):
    made = [
        Arm(name, name.title(), role, list(accuracy), budget={"teacher_rows": rows} if rows else {})
        for name, role, accuracy in arms
    ]
    config = {"teacher": "t", "student": "s"}
    return Result("dafl", "T", dataset, config, list(seeds), made, [], {}, {}, [], stages or {})


ENDS = (
    ("teacher", "teacher", (99.0, 98.0)),
    ("noise", "baseline", (30.0, 32.0)),
    ("real_data", "anchor", (97.0, 97.0)),
)


def results():
    far = [*ENDS, ("far", "method", (90.0, 94.0)), ("far_control", "control", (80.0, 85.0))]
    near = [*ENDS, ("near", "method", (70.0, 70.0))]
    return {
        "far-a": kept("a", far, 2000, {"far/duel": 30.0, "far/student": 10.0, "far_control/duel": 7.0}),
        "near-a": kept("a", near, 500),
        "near-b": kept("b", [("near", "method", (60.0,))], seeds=(0,)),
    }


def test_methods_stand_between_noise_and_real_data_by_rising_accuracy():
    table = SIDE_BY_SIDE.together.table(results())
    assert [row[2] for row in table.rows] == ["Noise", "**Near**", "**Far**", "Real_Data", "**Near**"]
    assert [row[0] for row in table.rows] == ["a", "a", "a", "a", "b"]
    far = dict(zip(table.head, table.rows[2], strict=True))
    assert far["experiment"] == "[far-a](far-a.md)"
    assert (far["teacher %"], far["student %"], far["control %"]) == ("98.50 ± 0.71", "92.00 ± 2.83", "82.50 ± 3.54")
    assert far["over control"] == "+9.50 ± 0.71"
    assert (far["teacher's rows"], far["seconds a seed"]) == ("2,000", "20")  # its own stages, over two seeds
    assert dict(zip(table.head, table.rows[1], strict=True))["seconds a seed"] == "–"


def test_the_end_of_most_seeds_stands_for_a_pair_of_networks():
    more = kept("a", [("real_data", "anchor", (95.0, 96.0, 97.0))], seeds=(0, 1, 2))
    found = [entry for entry in entries({**results(), "more": more}) if entry.place == "real"]
    assert [(entry.experiment, entry.accuracy) for entry in found] == [("more", 96.0)]


def test_images_that_nobody_optimised_are_an_end_whatever_recipe_they_are_from():
    arms = [("smooth_noise", "baseline", (50.0, 52.0)), ("shapes_balanced", "method", (60.0, 60.0))]
    found = entries(
        {"one": kept("a", [*ENDS, *arms]), "two": kept("a", [("balanced_shapes", "baseline", (61.0, 61.0))])}
    )
    assert [(entry.arm.name, entry.place) for entry in found] == [
        ("noise", "noise"), ("smooth_noise", "noise"), ("shapes_balanced", "noise"), ("real_data", "real")
    ]  # fmt: skip


def test_the_front_is_what_no_cheaper_method_surpasses():
    points = [(4.0, 80.0), (1.0, 70.0), (2.0, 65.0), (3.0, 80.0), (1.0, 60.0), (5.0, 90.0)]
    assert front(points) == [(1.0, 70.0), (3.0, 80.0), (5.0, 90.0)]


def test_the_figure_has_a_panel_of_rows_and_one_of_seconds_for_every_data_set_with_several_methods():
    figure = SIDE_BY_SIDE.together.figure(results())
    rows, seconds = figure.axes
    shown = lambda axes: {
        (x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True) if line.get_marker() == "o"
    }
    assert {(2000, 92.0), (500, 70.0), (2000, 82.5)} <= shown(rows)  # the control at its method's rows
    assert shown(seconds) == {(20.0, 92.0), (20.0, 82.5)}
