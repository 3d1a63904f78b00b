"""What is computed from a result's arms."""

import numpy as np
import pytest

from dfke_jax.experiments import Arm, Published, Result


def test_result_metrics_against_hand_computed(tmp_path):
    method = Arm("m", "M", "method", accuracy=[90.0, 92.0], agreement=[91.0, 93.0])
    control = Arm("m_control", "C", "control", accuracy=[88.0, 91.0])
    found = Result(
        "r", "R", "digits", {}, [0, 1], [method, control], [Published("m", "digits", 95.0, "S", "table")], {}, {}
    )
    metrics = found.metrics
    assert metrics["m_accuracy"]["mean"] == 91.0
    assert metrics["m_accuracy"]["std"] == pytest.approx(np.sqrt(2))
    assert metrics["m_gain_over_control"]["values"] == [2.0, 1.0]
    found.write(tmp_path)
    assert Result.read(tmp_path).published[0].value == 95.0
