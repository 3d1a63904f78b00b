"""The taxonomy's figures against loops, and what they refuse."""

import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.evaluation import taxonomy

RNG = np.random.default_rng(0)
ROWS, UNIFORM, LABELS = RNG.normal(size=(60, 4)), RNG.random((80, 4)), RNG.integers(0, 3, 60)
WEIGHTS = RNG.normal(size=(4, 3))
victim = lambda rows: rows @ WEIGHTS
rough = lambda rows: rows @ (WEIGHTS + 0.3) + np.where(rows[:, :1] > 0.5, [[0.4, 0.0, -0.1]], 0.0)


def test_every_figure_is_the_loop_over_rows():
    found = taxonomy(victim, rough, ROWS, UNIFORM, LABELS)
    for name, rows in (("fidelity", ROWS), ("fidelity_uniform", UNIFORM)):
        alike = [victim(row[None])[0].argmax() == rough(row[None])[0].argmax() for row in rows]
        assert found[name] == pytest.approx(np.mean(alike))
    assert 0 < found["fidelity"] < 1
    worst = 0.0
    for row in (*ROWS, *UNIFORM):
        apart = victim(row[None])[0] - rough(row[None])[0]
        worst = max(worst, np.abs(apart - apart.mean()).max())
    assert found["largest_error"] == pytest.approx(worst)
    assert not found["equivalent"]
    assert found["accuracy"] == pytest.approx(
        np.mean([rough(r[None])[0].argmax() == y for r, y in zip(ROWS, LABELS, strict=True)])
    )
    assert found["victim_accuracy"] == pytest.approx(np.mean(victim(ROWS).argmax(1) == LABELS))


def test_logits_count_up_to_a_constant_of_the_row():
    same = lambda rows: victim(rows) + rows.sum(1, keepdims=True)
    found = taxonomy(victim, same, ROWS, UNIFORM)
    assert found["equivalent"]
    assert found["fidelity"] == found["fidelity_uniform"] == 1
    assert found["largest_error"] < 1e-12
    assert "accuracy" not in found


def test_a_copy_that_is_faithful_to_the_task_alone_is_not_equivalent():
    elsewhere = lambda rows: victim(rows) + np.where(np.abs(rows).max(1, keepdims=True) > 0.99, [[9.0, 0, 0]], 0)
    inside = np.clip(ROWS, -0.9, 0.9)
    found = taxonomy(victim, elsewhere, inside, np.ones((5, 4)))
    assert found["fidelity"] == 1
    assert not found["equivalent"]
    assert found["largest_error"] == pytest.approx(6.0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="tolerance"):
        taxonomy(victim, rough, ROWS, UNIFORM, tolerance=-1.0)
    with pytest.raises(InputError, match="from both sides"):
        taxonomy(victim, lambda rows: victim(rows)[:, :2], ROWS, UNIFORM)
    with pytest.raises(InputError, match="from both sides"):
        taxonomy(victim, lambda rows: victim(rows).argmax(1), ROWS, UNIFORM)
