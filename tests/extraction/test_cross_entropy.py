"""Models found by the least cross-entropy, against victims whose parameters are known."""

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier

from dfke_jax import core
from dfke_jax.data import Column, Schema, load_table
from dfke_jax.extraction import FittedModel, hidden_layer, kernel_regression, one_versus_rest
from dfke_jax.extraction.cross_entropy import kernel_logs
from dfke_jax.oracle import Ledger, Metered, Reveal, oracle_for

SCHEMA = Schema((Column("a", (0,)), Column("b", (1,)), Column("c", (2, 3, 4), levels=("x", "y", "z"))))
ROWS = SCHEMA.uniform(np.random.default_rng(0), 300)
UNIFORM = SCHEMA.uniform(np.random.default_rng(1), 2000)
CLASSES = np.digitize(ROWS[:, 0] - ROWS[:, 1] * ROWS[:, 2] + 0.3 * ROWS[:, 3], [-0.4, 0.4])


def variation(victim, found, rows=UNIFORM):
    """The largest total variation."""
    return 0.5 * np.abs(victim(rows) - found(rows)).sum(1).max()


def test_one_versus_rest_is_found_from_as_many_rows_as_unknowns():
    model = OneVsRestClassifier(LogisticRegression()).fit(ROWS, CLASSES)
    with Ledger(budget=18) as ledger:
        oracle = Metered(oracle_for(model, input_shape=(5,), transport="float64"), ledger)
        solution = core.run_host(one_versus_rest(SCHEMA), oracle, 0)
    assert solution.queries == 3 * (5 + 1)
    assert solution.found.divergence < 1e-10
    assert variation(model.predict_proba, solution.found) < 1e-4
    assert (solution.found.predict(UNIFORM) == model.predict(UNIFORM)).mean() == 1


def test_a_hidden_layer_is_found():
    model = MLPClassifier((2,), activation="tanh", solver="lbfgs", max_iter=300, random_state=1, alpha=1.0)
    model.fit(ROWS, CLASSES)
    found = core.run_host(hidden_layer(SCHEMA, 2, rows=120, starts=6), model.predict_proba, 0).found
    assert variation(model.predict_proba, found) < 1e-3


def test_a_kernel_model_gives_away_its_rows():
    schema, rng = Schema.of_numbers(4), np.random.default_rng(4)
    kept = {
        "representers": schema.uniform(rng, 2),
        "alpha": 3 * rng.normal(size=(2, 2)),
        "beta": np.zeros(2),
        "gamma": np.float64(0.7),
    }
    victim = FittedModel(kept, kernel_logs)
    kernel = np.exp(-0.7 * ((UNIFORM[:6, None, :4] - kept["representers"][None]) ** 2).sum(-1))
    odds = np.exp(kernel @ kept["alpha"])
    np.testing.assert_allclose(victim(UNIFORM[:6, :4]), odds / odds.sum(1, keepdims=True), atol=1e-12)
    found = core.run_host(kernel_regression(schema, 2, 0.7, rows=150, starts=6), victim, 0).found
    apart = np.linalg.norm(found.parameters["representers"][:, None] - kept["representers"][None], axis=-1)
    matched = apart[scipy.optimize.linear_sum_assignment(apart)]
    assert matched.max() < 1e-2, matched


def test_bad_input_is_refused():
    with pytest.raises(core.InputError, match="all probabilities"):
        one_versus_rest(SCHEMA, reveal=Reveal("label"))
    with pytest.raises(core.InputError, match="hidden"):
        hidden_layer(SCHEMA, 0)
    with pytest.raises(core.InputError, match="gamma"):
        kernel_regression(SCHEMA, 3, 0.0)
    with pytest.raises(core.InputError, match="rows must be at least 2"):
        one_versus_rest(SCHEMA, rows=1)
    with pytest.raises(core.InputError, match="constant"):
        core.run_host(one_versus_rest(SCHEMA), lambda rows: np.full((len(rows), 2), 0.5), 0)
    with pytest.raises(core.InputError, match="probabilities"):
        core.run_host(one_versus_rest(SCHEMA), lambda rows: np.zeros(len(rows), int), 0)


def _race(getkey, data_dir):
    return load_table("adult_race", getkey(), data_dir=data_dir)


@pytest.mark.slow
def test_one_versus_rest_on_race(getkey, data_dir):
    table = _race(getkey, data_dir)
    model = OneVsRestClassifier(LogisticRegression(max_iter=300)).fit(
        table.train_rows[:8000], table.train_targets[:8000]
    )
    solution = core.run_host(one_versus_rest(table.schema), model.predict_proba, 0)
    assert solution.queries == 5 * (table.schema.width + 1)
    for rows in (table.test_rows, table.schema.uniform(np.random.default_rng(1), 10_000)):
        assert (solution.found.predict(rows) == model.predict(rows)).all()


@pytest.mark.slow
def test_a_hidden_layer_on_race(getkey, data_dir):
    table = _race(getkey, data_dir)
    model = MLPClassifier((20,), activation="tanh", random_state=0, max_iter=20, batch_size=256)
    with pytest.warns(UserWarning, match="iterations"):
        model.fit(table.train_rows[:15_000], table.train_targets[:15_000])
    found = core.run_host(hidden_layer(table.schema, 20, rows=11_125), model.predict_proba, 0).found
    assert (found.predict(table.test_rows) == model.predict(table.test_rows)).mean() >= 0.999
    uniform = table.schema.uniform(np.random.default_rng(1), 10_000)
    assert (found.predict(uniform) == model.predict(uniform)).mean() >= 0.998
