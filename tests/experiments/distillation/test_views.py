"""The table of steadiness, from figures that are known."""

from types import SimpleNamespace

from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.distillation.views import STEADINESS


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
