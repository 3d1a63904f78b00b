"""Thefts of models of tables: one of them run through, what is private, and how results are laid out."""

import jax
import numpy as np
import pytest
import scipy.optimize
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from dfke_jax import core
from dfke_jax.data import TABLES, load_table
from dfke_jax.experiments import Result, recipe
from dfke_jax.experiments.bench.result import Arm
from dfke_jax.experiments.extraction.api_defences import softmax_fit
from dfke_jax.experiments.extraction.api_views import (
    PUBLISHED,
    api_defences_table,
    inversion_table,
    theft_table,
)
from dfke_jax.experiments.extraction.private import (
    gaussian_delta,
    noise_for,
    private_parameters,
    private_training,
)
from dfke_jax.experiments.extraction.thefts import THEFTS, VICTIMS, Sizes, split, stolen, trained


@pytest.fixture(scope="module")
def iris():
    return load_table("iris", jax.random.key(0))


def test_a_theft_is_counted_priced_and_held_against_its_control(iris):
    sizes = Sizes()
    uniform = iris.schema.uniform(np.random.default_rng(0), 500)
    made = stolen(THEFTS["equations"], trained("linear", iris, sizes), iris, sizes, 0, 2.0, uniform)
    copy, control = made["copy"], made["control"]
    assert made["failed"] == ""
    assert copy["metrics"]["queries"] == 5
    assert copy["metrics"]["dollars"] == 0.01
    assert copy["metrics"]["off_test"] == copy["metrics"]["off_uniform"] == 0
    assert copy["agreement"] == 100
    assert control["metrics"]["off_uniform"] > 10, "five labels are not enough"
    own, kept = split(iris)
    assert len(own) == 10
    assert not set(own) & set(kept)
    assert len(np.unique(iris.test_targets[own])) > 1, "rows are sorted by class, these are not"


def test_a_theft_that_ends_in_an_error_is_entered_as_one(iris):
    class Constant(LogisticRegression):
        def predict_proba(self, rows):
            return np.full((len(rows), 3), 1 / 3)

        def predict(self, rows):
            return np.zeros(len(rows), int)

    model = Constant().fit(iris.train_rows, iris.train_targets)
    made = stolen(THEFTS["equations"], model, iris, Sizes(), 0, 0.1, iris.test_rows)
    assert "constant" in made["failed"]
    assert made["copy"]["metrics"]["failed"] == 1


def test_thefts_name_victims_and_tables_that_exist():
    for name, theft in THEFTS.items():
        assert theft.victim in VICTIMS, name
        assert set(theft.tables) <= set(TABLES), name
    assert {attack for attack, _ in PUBLISHED} <= set(THEFTS)
    assert {table for _, table in PUBLISHED} <= set(TABLES)


def test_settings_that_make_no_theft_are_refused():
    settings = recipe("api-extraction").settings
    with pytest.raises(core.UnknownNameError, match="table"):
        settings("tables", tables=("spam",))
    with pytest.raises(core.UnknownNameError, match="attack"):
        settings("tables", attacks=("magic",))
    with pytest.raises(core.InputError, match="suits"):
        settings("tables", tables=("iris",), attacks=("lowd_meek",))
    with pytest.raises(core.InputError, match="price"):
        settings("tables", price=-1.0)
    with pytest.raises(core.InputError, match="none"):
        recipe("api-defences").settings("tables", defences=("label",))
    with pytest.raises(core.UnknownNameError, match="defence"):
        recipe("api-defences").settings("tables", defences=("none", "wall"))
    with pytest.raises(core.InputError, match="sizes"):
        recipe("api-inversion").settings("tables", hidden=0)


# ---- privacy


def test_the_account_of_gaussian_mechanisms():
    """One step by the definition: δ(ε) = sup over events, reached on half lines, of N(1, σ²) against N(0, σ²)."""
    noise, epsilon = 1.3, 0.7
    worst = scipy.optimize.minimize_scalar(
        lambda t: np.exp(epsilon) * norm.sf(t / noise) - norm.sf((t - 1) / noise), bounds=(-5, 9), method="bounded"
    )
    np.testing.assert_allclose(gaussian_delta(noise, 1, epsilon), -worst.fun, rtol=1e-6)
    assert gaussian_delta(2.0, 4, 1.0) == gaussian_delta(1.0, 1, 1.0), "steps add like variances"
    np.testing.assert_allclose(gaussian_delta(noise_for(1.0, 1e-5, 50), 50, 1.0), 1e-5, rtol=1e-6)
    with pytest.raises(core.InputError, match="epsilon"):
        noise_for(0.0, 1e-5, 5)
    with pytest.raises(core.InputError, match="regularisation"):
        private_parameters(np.zeros((3, 2)), np.arange(3) % 2, 1.0, regularisation=0.0, rng=np.random.default_rng(0))


def test_noise_on_parameters_has_the_length_that_epsilon_asks_for():
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1, 1, (80, 2))
    targets = (rows[:, 0] > 0).astype(int)
    make = lambda epsilon: private_parameters(rows, targets, epsilon, regularisation=0.1, rng=rng)
    exact = make(1e9)
    unit = np.concatenate([rows, np.ones((80, 1))], 1) / np.sqrt(3)
    # λ‖w‖²/2 + mean loss is scikit-learn's objective with C = 1/(λ n)
    other = LogisticRegression(C=1 / (0.1 * 80), fit_intercept=False, tol=1e-10).fit(unit, targets)
    own = np.concatenate([exact.weights[:, 0], exact.bias])
    np.testing.assert_allclose(own * np.sqrt(3), other.coef_[0], atol=1e-5)
    sizes = []
    for _ in range(60):
        made = make(0.5)
        sizes.append(np.linalg.norm(np.append(made.weights[:, 0], made.bias) - own) * np.sqrt(3))
    np.testing.assert_allclose(np.mean(sizes), 3 * 2 / (80 * 0.1 * 0.5), rtol=0.25)


def test_private_training_learns_and_its_noise_is_seen():
    rng = np.random.default_rng(1)
    rows = rng.uniform(-1, 1, (4000, 2))
    targets = (rows @ [1.0, -0.5] > 0.1).astype(int)
    right = lambda model: (model(rows).argmax(1) == targets).mean()
    assert right(private_training(rows, targets, 1.0, steps=20)) > 0.9
    assert right(private_training(rows[:50], targets[:50], 0.01, steps=20)) < 0.9


def test_a_softmax_model_is_fitted_to_answers(iris):
    model = LogisticRegression(max_iter=500).fit(iris.train_rows, iris.train_targets)
    found = core.run_host(softmax_fit(iris.schema, 50), model.predict_proba, 0).found
    np.testing.assert_allclose(found(iris.test_rows), model.predict_proba(iris.test_rows), atol=1e-3)


# ---- views


def _result(name, arms):
    return Result(name, name, "tables", {}, [0, 1], arms, [], {"total": 1.0}, {})


def test_a_table_of_thefts_has_control_and_published_figure():
    factors = {"attack": "Equations", "table": "digits"}
    off = {"off_test": [0.0, 0.0], "off_uniform": [0.0, 1.0]}
    took = {"queries": [65.0, 65.0], "seconds": [0.5, 0.7], "dollars": [0.0065, 0.0065], "failed": [0.0, 1.0]}
    far = {"off_test": [40.0, 42.0], "off_uniform": [50.0, 50.0]}
    arms = [
        Arm("digits_equations", "", "method", [90.0, 90.0], [100.0, 100.0], {}, {**off, **took}, factors=factors),
        Arm("digits_equations_control", "", "control", [50.0, 50.0], [60.0, 58.0], {}, far, factors=factors),
    ]
    (row,) = theft_table(_result("api-extraction", arms)).rows
    assert row[:5] == ("digits", "Equations (1 of 2 failed)", "65", "0.0065", "0.60")
    assert row[6:9] == ("0.500 ± 0.707", "41.00 ± 1.41", "50.00 ± 0.00")
    assert row[9:] == ("650 (K (D + 1) rows)", "100 / 100")


def test_tables_of_defences_and_inversions_have_a_row_each():
    defended = {"table": "iris", "defence": "Labels alone"}
    metrics = {"off_test": [1.0], "off_uniform": [2.0], "failed": [0.0]}
    arms = [
        Arm("iris_label", "", "anchor", [95.0], [99.0], factors=defended),
        Arm("iris_label_a", "", "method", [90.0], [99.0], {}, metrics, factors={**defended, "attack": "A"}),
        Arm("iris_none_b", "", "control", [90.0], [99.0], {}, metrics,
            factors={"table": "iris", "defence": "None", "attack": "B"}),
    ]  # fmt: skip
    (row,) = api_defences_table(_result("api-defences", arms)).rows
    assert row == ("iris", "Labels alone", "95.00", "99.00", "1.00 / 2.00", "–")
    inverted = {"queries": [65.0], "dollars": [0.01], "confidence": [99.0], "correlation": [0.5]}
    arms = [Arm("softmax_extracted", "Softmax", "method", [100.0], [100.0], {}, inverted)]
    assert inversion_table(_result("api-inversion", arms)).rows == [
        ("Softmax", "65", "0.0100", "100.0", "99.0", "0.50", "100.00")
    ]
