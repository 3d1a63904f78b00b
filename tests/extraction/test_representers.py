"""Kernel models solved: against models whose representers are known, and what is refused."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dfke_jax import core
from dfke_jax.data import Schema, load_table
from dfke_jax.evaluation import matched_rows, row_correlation
from dfke_jax.extraction import fitted_kernels, kernel_equation_rows, kernel_equations
from dfke_jax.oracle import Ledger, Metered, Reveal, oracle_for, victims


def victim(rows, alpha, beta, gamma):
    """The model written out."""

    def answer(asked):
        kernel = np.array([[np.exp(-gamma * ((x - row) ** 2).sum()) for row in rows] for x in np.asarray(asked)])
        odds = np.exp(kernel @ alpha + beta)
        return odds / odds.sum(1, keepdims=True)

    return answer


def drawn(schema, count, classes, gamma, seed=0):
    rng = np.random.default_rng(seed)
    rows = schema.uniform(rng, count)
    return rows, victim(rows, 3 * rng.normal(size=(count, classes)), rng.normal(size=classes), gamma)


@pytest.mark.parametrize(
    ("schema", "count", "classes", "gamma"),
    [
        (Schema.of_numbers(5), 3, 2, 0.4),
        (Schema.of_numbers(6, low=0.0, high=[1, 2, 1, 0.5, 1, 1]), 4, 3, 1.0),
        (Schema.of_numbers(30), 12, 4, 0.05),
    ],
)
def test_every_representer_and_the_model_are_found(schema, count, classes, gamma):
    rows, answer = drawn(schema, count, classes, gamma)
    solution = core.run_host(kernel_equations(schema, count + 2, gamma), answer, 1)
    assert solution.queries == kernel_equation_rows(schema.width, classes, count + 2)
    found = solution.found.parameters["representers"]
    assert found.shape == rows.shape, "how many there are is seen"
    places, correlations = matched_rows(found, rows)
    np.testing.assert_allclose(found[places], rows, atol=1e-5)
    assert correlations.min() > 1 - 1e-6
    fresh = schema.uniform(np.random.default_rng(9), 200)
    np.testing.assert_allclose(solution.found(fresh), answer(fresh), atol=1e-6)
    assert solution.found.divergence < 1e-10


def test_digits_are_given_away_over_an_oracle_that_counts(getkey):
    table = load_table("digits", getkey())
    kept = table.train_rows[:20]
    features = lambda rows: np.exp(-0.03 * ((np.asarray(rows)[:, None] - kept[None]) ** 2).sum(-1))
    model = LogisticRegression(max_iter=500).fit(features(table.train_rows), table.train_targets)
    deployed = victims.from_function(
        lambda rows: model.predict_proba(features(rows)), input_shape=(64,), num_classes=10, gives="probabilities"
    )
    oracle = oracle_for(deployed, transport="float64")
    with Ledger() as ledger:
        found = core.run_host(kernel_equations(table.schema, 20, 0.03), Metered(oracle, ledger), 0).found
        assert ledger.counts()["rows"] == 289
    places, correlations = matched_rows(found.parameters["representers"], kept)
    assert correlations.min() > 0.9999
    np.testing.assert_allclose(found.parameters["representers"][places], kept, atol=1e-4)
    assert (found.predict(table.test_rows) == model.predict(features(table.test_rows))).all()


def test_what_cannot_be_solved_is_refused():
    schema = Schema.of_numbers(5)
    _, answer = drawn(schema, 4, 3, 0.4)
    run = lambda asked, **changes: core.run_host(kernel_equations(schema, changes.get("most", 4), 0.4), asked, 0)
    with pytest.raises(core.InputError, match="more than 3 representers"):
        run(answer, most=3)
    with pytest.raises(core.InputError, match="no gap"):
        run(lambda rows: np.round(answer(rows), 4))
    with pytest.raises(core.InputError, match=r"another gamma than 0\.4"):
        run(drawn(schema, 4, 3, 0.7)[1])
    with pytest.raises(core.InputError, match="clips rows"):
        run(lambda rows: answer(np.clip(rows, -1, 1)))
    with pytest.raises(core.InputError, match="probabilities"):
        run(lambda rows: answer(rows).argmax(1))
    with pytest.raises(core.InputError, match="all probabilities"):
        kernel_equations(schema, 4, 0.4, reveal=Reveal("label"))
    for most, gamma in ((0, 1.0), (3, 0.0), (3, float("nan"))):
        with pytest.raises(core.InputError, match="at least 1 and gamma positive"):
            kernel_equations(schema, most, gamma)


def test_an_endpoint_that_changes_its_model_is_noticed():
    schema = Schema.of_numbers(5)
    (_, before), (_, after) = drawn(schema, 4, 3, 0.4), drawn(schema, 4, 3, 0.4, seed=1)
    changing = lambda rows: (after if len(rows) == 8 else before)(rows)  # the last eight rows are the check
    with pytest.warns(UserWarning, match="nats from the victim on rows that it was not made from"):
        found = core.run_host(kernel_equations(schema, 4, 0.4), changing, 0).found
    assert found.divergence > 0.01


def test_partners_are_the_nearest_together():
    kept = np.array([[0.0, 1, 0, 0], [1.0, 0, 0, 0], [0.0, 0, 1, 0]])
    places, correlations = matched_rows([[0.9, 0.1, 0, 0], [0.0, 0, 2, 0]], kept)
    assert places.tolist() == [-1, 0, 1]
    np.testing.assert_allclose(correlations, [0, np.corrcoef([0.9, 0.1, 0, 0], kept[1])[0, 1], 1])
    assert row_correlation([1, 2, 4], [2, 4, 8]) == pytest.approx(1)
    assert row_correlation([1, 2, 4], [-1, -2, -4]) == pytest.approx(-1)
    assert row_correlation([1, 1, 1], [1, 2, 4]) == 0


def test_coefficients_on_given_representers_are_those_of_the_model():
    schema = Schema.of_numbers(5)
    rows, answer = drawn(schema, 3, 4, 0.4)
    asked, fresh = (schema.uniform(np.random.default_rng(seed), 30) for seed in (1, 2))
    np.testing.assert_allclose(fitted_kernels(asked, answer(asked), rows, 0.4)(fresh), answer(fresh), atol=1e-10)
