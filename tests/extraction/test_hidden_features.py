"""Bins and encodings that a service keeps to itself, found from its answers."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from dfke_jax import core
from dfke_jax.data import Binning, Column, Schema, quantile_binning
from dfke_jax.extraction import binned_regression
from dfke_jax.oracle import Ledger, Metered, RemoteVictim, Reveal, background, binned_victim, create_app, oracle_for

SCHEMA = Schema(
    (
        Column("age", (0,), step=0.1),
        Column("job", (1, 2, 3), levels=("a", "b", "c")),
        Column("income", (4,)),
        Column("height", (5,), -2.0, 3.0),
    )
)
ROWS = SCHEMA.uniform(np.random.default_rng(0), 600)
UNIFORM = SCHEMA.uniform(np.random.default_rng(1), 3000)
CLASSES = np.digitize(np.sin(3 * ROWS[:, 0]) + ROWS[:, 2] - ROWS[:, 4] ** 2 + 0.3 * ROWS[:, 5], [-0.3, 0.5])
BINNING = quantile_binning(SCHEMA, ROWS, 6)


def victim(classes=CLASSES, binning=BINNING):
    return binned_victim(LogisticRegression(max_iter=500).fit(binning(ROWS), classes), binning)


def test_a_binning_is_the_one_hot_of_its_bins():
    features = BINNING(ROWS)
    assert features.shape == (600, sum(BINNING.sizes)) == (600, BINNING.width)
    naive = np.array([[sum(value > cut for cut in BINNING.edges[2]) for value in ROWS[:, 4]]])[0]
    start = BINNING.sizes[0] + BINNING.sizes[1]
    np.testing.assert_array_equal(features[:, start : start + BINNING.sizes[2]].argmax(1), naive)
    counts = features[:, start : start + BINNING.sizes[2]].sum(0)
    assert counts.max() - counts.min() <= 1, "bins of equally many rows"
    np.testing.assert_array_equal(features[:, 6:9] if BINNING.sizes[0] == 6 else ROWS[:, 1:4], ROWS[:, 1:4])


@pytest.mark.parametrize("classes", [CLASSES, (CLASSES > 0).astype(int)])
def test_edges_and_weights_are_found(classes):
    oracle = oracle_for(victim(classes), transport="float64")
    with Ledger() as ledger:
        solution = core.run_host(binned_regression(SCHEMA), Metered(oracle, ledger), 0)
        phases = {name: counts["rows"] for name, counts in ledger.phases().items()}
    found = solution.found
    assert found.binning.sizes == BINNING.sizes
    values = np.linspace(-1, 1, 21)  # whole numbers: between the same two of them
    np.testing.assert_array_equal(
        np.searchsorted(found.binning.edges[0], values), np.searchsorted(BINNING.edges[0], values)
    )
    np.testing.assert_allclose(found.binning.edges[2], BINNING.edges[2], atol=2 * 2.0**-10)
    np.testing.assert_allclose(found.binning.edges[3], BINNING.edges[3], atol=5 * 2.0**-10)
    answers = oracle(UNIFORM)
    apart = np.abs(found(UNIFORM) - answers).max(1)
    assert np.quantile(apart, 0.97) < 1e-9, "but for rows next to an edge"
    edges = sum(len(cuts) for cuts in BINNING.edges if cuts is not None)
    assert phases["probes"] <= 3 * 5 + 2
    assert phases["edges"] <= edges * 10
    assert solution.queries == sum(phases.values())


def test_a_number_that_is_not_cut_stays_one():
    binning = Binning(SCHEMA, (BINNING.edges[0], None, None, np.zeros(0)))  # heights in a single bin: ignored
    model = victim(CLASSES, binning)
    found = core.run_host(binned_regression(SCHEMA), oracle_for(model, transport="float64"), 0).found
    assert found.binning.edges[2] is None
    assert len(found.binning.edges[3]) == 0
    np.testing.assert_allclose(found(UNIFORM), model(UNIFORM), atol=1e-6)


def test_answers_in_float32_give_fewer_digits():
    model = victim()
    oracle = oracle_for(model)  # transport in float32
    found = core.run_host(binned_regression(SCHEMA, precision="float32"), oracle, 0).found
    assert found.binning.sizes == BINNING.sizes
    apart = np.abs(found(UNIFORM) - model(UNIFORM)).max(1)
    assert 1e-9 < np.quantile(apart, 0.9) < 1e-5


def test_over_http_it_is_the_same_theft():
    oracle = oracle_for(victim(), transport="float64")
    settings = {"input_shape": (6,), "reveal": Reveal(), "num_classes": 3, "dtype": "float64", "box": None}
    with background(create_app(oracle, **settings)) as url, RemoteVictim(url) as remote, Ledger() as ledger:
        there = core.run_host(binned_regression(SCHEMA), Metered(remote, ledger), 0)
        requests = ledger.counts()["requests"]
    here = core.run_host(binned_regression(SCHEMA), oracle, 0)
    assert there.queries == here.queries
    assert requests < 20, "a batch a level of bisection"
    np.testing.assert_allclose(there.found.weights, here.found.weights, atol=1e-9)


def test_what_is_none_of_these_models_is_said():
    run = lambda answer, **options: core.run_host(binned_regression(SCHEMA, **options), answer, 0)
    both = lambda p: np.stack([1 - p, p], 1)
    with pytest.raises(core.InputError, match="constant"):
        run(lambda rows: np.full((len(rows), 2), 0.5))
    with pytest.raises(core.InputError, match="neither a step function nor affine"):
        run(lambda rows: both(1 / (1 + np.exp(-np.sin(3 * rows[:, 4].astype(np.float64))))))
    crossed = lambda rows: np.sign(rows[:, 4]) * np.sign(rows[:, 5]) + rows[:, 1]
    with pytest.raises(core.InputError, match="do not add up"):
        run(lambda rows: both(1 / (1 + np.exp(-crossed(rows.astype(np.float64))))))
    with pytest.raises(core.InputError, match="zero"):
        run(lambda rows: both((rows[:, 4] > 0).astype(np.float64)))
    with pytest.raises(core.InputError, match="were expected"):
        run(lambda rows: (rows[:, 4] > 0).astype(int))
    with pytest.raises(core.InputError, match="probes"):
        binned_regression(SCHEMA, probes=2)
    with pytest.raises(core.InputError, match="precision"):
        binned_regression(SCHEMA, precision="float16")
    with pytest.raises(core.InputError, match="bins must be"):
        quantile_binning(SCHEMA, ROWS, 1)
    with pytest.raises(core.InputError, match="ascend"):
        Binning(SCHEMA, (np.array([1.0, 0.0]), None, None, None))
    with pytest.raises(core.InputError, match="no edges"):
        Binning(SCHEMA, (None, np.array([0.5]), None, None))
    with pytest.raises(core.InputError, match="edges of 1"):
        Binning(SCHEMA, (None,))
    with pytest.raises(core.InputError, match="was fitted to"):
        binned_victim(LogisticRegression().fit(ROWS, CLASSES), BINNING)
    with pytest.raises(core.InputError, match="no fitted classifier"):
        binned_victim(LogisticRegression(), BINNING)
