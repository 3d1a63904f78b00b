"""Lowd–Meek, coupled halfspaces and retraining, from labels of models whose weights are known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dfke_jax import core
from dfke_jax.data import Schema, load_table
from dfke_jax.extraction import (
    RetrainingSettings,
    coupled_halfspace,
    linear_clone,
    lowd_meek,
    mlp_clone,
    rbf_clone,
    retraining,
    softmax_clone,
)
from dfke_jax.oracle import Ledger, Metered, Reveal, oracle_for

SCHEMA = Schema.of_numbers(5, [-1, -1, 0, -10, -1], [1, 1, 3, 10, 1])
WEIGHTS, BIAS = np.array([1.0, -2.0, 0.5, 0.03, 0.0]), 0.4  # the last feature is ignored
UNIFORM = SCHEMA.uniform(np.random.default_rng(3), 4000)


def linear(rows):
    return (rows @ WEIGHTS + BIAS > 0).astype(int)


def error(found, victim, rows=UNIFORM):
    return (found.predict(rows) != victim(rows)).mean()


@pytest.mark.parametrize("make", [lowd_meek, coupled_halfspace])
def test_a_linear_model_is_found_up_to_its_scale(make):
    found = core.run_host(make(SCHEMA), linear, 0).found
    scale = found.weights[0] / WEIGHTS[0]
    assert scale > 0
    np.testing.assert_allclose(found.weights / scale, WEIGHTS, atol=2e-3)
    np.testing.assert_allclose(found.bias / scale, BIAS, atol=2e-3)
    assert error(found, linear) < 1e-3


def test_what_it_costs_is_what_it_says():
    with Ledger() as ledger:
        solution = core.run_host(coupled_halfspace(SCHEMA), Metered(linear, ledger, "v", Reveal("label")), 0)
        phases = {name: counts["rows"] for name, counts in ledger.phases().items()}
    assert (phases["signs"], phases["angles"]) == (6, 5 * 16)
    assert solution.queries == sum(phases.values())


def test_a_polynomial_model_is_linear_in_its_monomials():
    schema = Schema.of_numbers(2)
    circle = lambda rows: (rows[:, 0] ** 2 + 2 * rows[:, 1] ** 2 - rows[:, 0] * rows[:, 1] > 0.5).astype(int) + 3
    found = core.run_host(lowd_meek(schema, degree=2, precision=2.0**-20), circle, 0).found
    assert found.labels == (3, 4)
    assert error(found, circle, schema.uniform(np.random.default_rng(0), 4000)) < 1e-3
    by_monomial = dict(zip(map(tuple, found.exponents), found.weights / -2 / found.bias, strict=True))
    np.testing.assert_allclose([by_monomial[p] for p in ((2, 0), (0, 2), (1, 1), (1, 0))], [1, 2, -1, 0], atol=1e-4)


@pytest.mark.parametrize("make", [lowd_meek, coupled_halfspace])
def test_what_is_no_linear_model_is_noticed(make):
    with pytest.raises(core.InputError, match="constant"):
        core.run_host(make(SCHEMA), lambda rows: np.ones(len(rows), int), 0)
    with pytest.raises(core.InputError, match="two classes"):
        core.run_host(make(SCHEMA), lambda rows: np.arange(len(rows)) % 3, 0)
    rings = lambda rows: (np.floor(4 * np.abs(rows).sum(1)) % 2).astype(int)
    with pytest.raises(core.InputError, match="the endpoint clips"):
        core.run_host(make(SCHEMA), rings, 0)


def test_an_endpoint_that_clips_rows_is_noticed():
    low, high = SCHEMA.box
    shifted = lambda rows: (np.clip(rows, low, high) @ WEIGHTS + 3.0 > 0).astype(int)
    with pytest.raises(core.InputError, match="clips"):
        core.run_host(lowd_meek(SCHEMA), shifted, 0)


@pytest.mark.parametrize("strategy", ["uniform", "line_search", "adaptive"])
def test_retraining_asks_what_it_says_and_choosing_pays(strategy):
    settings = RetrainingSettings(150, strategy, 8)
    solution = core.run_host(retraining(SCHEMA, settings), linear, 0)
    assert solution.queries == 150
    assert error(solution.found, linear) < (0.04 if strategy == "uniform" else 0.02)
    if strategy == "adaptive":
        control = core.run_host(retraining(SCHEMA, RetrainingSettings(150, "uniform")), linear, 0)
        assert error(solution.found, linear) < error(control.found, linear)


def test_other_clones_learn_other_victims():
    schema = Schema.of_numbers(2)
    rows = schema.uniform(np.random.default_rng(0), 2000)
    circle = lambda rows: ((rows**2).sum(1) > 0.5).astype(int)
    corners = lambda rows: (rows @ np.array([[1.0, -1, 0], [0, 0.5, -1]])).argmax(1)
    for victim, clone in ((circle, rbf_clone), (circle, mlp_clone), (corners, softmax_clone)):
        found = core.run_host(retraining(schema, RetrainingSettings(200, rounds=3), clone), victim, 0).found
        assert error(found, victim, rows) < 0.05, clone.__name__


def test_bad_input_is_refused():
    for wrong in ({"degree": 0}, {"precision": 0.7}, {"checks": -1}):
        with pytest.raises(core.InputError, match="degree is at least 1"):
            lowd_meek(SCHEMA, **wrong)
    with pytest.raises(core.InputError, match="precision"):
        coupled_halfspace(SCHEMA, precision=0.0)
    with pytest.raises(core.UnknownNameError, match="strategy"):
        RetrainingSettings(10, "clever")
    with pytest.raises(core.InputError, match="rounds"):
        RetrainingSettings(3, rounds=10)
    with pytest.raises(core.InputError, match="are known"):
        retraining(SCHEMA, RetrainingSettings(10), known=UNIFORM[:11])
    with pytest.raises(core.InputError, match="constant"):
        core.run_host(retraining(SCHEMA, RetrainingSettings(20)), lambda rows: np.zeros(len(rows), int), 0)
    with pytest.raises(core.InputError, match="asked 32 rows for labels"):
        core.run_host(lowd_meek(SCHEMA), lambda rows: rows[:, 0], 0)
    assert linear_clone() is not linear_clone()


SETS = ("circles", "moons", "breast_cancer", "german_credit", "adult_income")


@pytest.mark.slow
@pytest.mark.parametrize(("make", "most"), [(lowd_meek, 2050), (coupled_halfspace, 827)])
def test_binary_tables_at_no_more_than_the_published_labels(make, most, getkey, data_dir):
    key, queries = getkey(), []
    for name in SETS:
        table = load_table(name, key, data_dir=data_dir)
        model = LogisticRegression(max_iter=1000).fit(table.train_rows, table.train_targets)
        oracle = oracle_for(model, Reveal("label"), input_shape=(table.schema.width,), transport="float64")
        solution = core.run_host(make(table.schema), oracle, 0)
        queries.append(solution.queries)
        for rows in (table.test_rows, table.schema.uniform(np.random.default_rng(1), 10_000)):
            assert error(solution.found, model.predict, rows) < 0.01, name
    assert np.mean(queries) <= most
