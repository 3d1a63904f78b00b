"""Trees are found leaf by leaf, and held against scikit-learn's own."""

import dataclasses

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from dfke_jax import core
from dfke_jax.data import Column, Schema, load_table
from dfke_jax.extraction import TreeSettings, find_paths, top_down
from dfke_jax.oracle import Ledger, Metered, Reveal, frameworks, oracle_for, tree_victim, victims

SCHEMA = Schema(
    (
        Column("income", (0,), 0.0, 1.0, units=(0.0, 1000.0)),
        Column("colour", (1, 2, 3), levels=("red", "green", "blue")),
        Column("rooms", (4,), 0.0, 1.0, step=0.125, units=(1, 9)),
        Column("ignored", (5,), -1.0, 1.0),
        Column("twice", (6,), 0.0, 1.0),
    )
)


def drawn(count, seed=0):
    rows = SCHEMA.uniform(np.random.default_rng(seed), count)
    rows[:, 6] = rows[:, 0]  # a duplicate feature: where the victim looks at it, it is not the other
    return rows


def grown(make=DecisionTreeClassifier, leaves=14):
    """A victim that looks at everything but one column."""
    rows = drawn(400)
    score = 2 * rows[:, 0] * rows[:, 1] - rows[:, 4] * rows[:, 2] + rows[:, 6] * rows[:, 3]
    target = score if make is DecisionTreeRegressor else np.digitize(score, [-0.2, 0.3, 0.6])
    rows[:, 5] = 0.0
    return make(max_leaf_nodes=leaves, random_state=0).fit(rows, target)


MODEL = grown()
UNIFORM = SCHEMA.uniform(np.random.default_rng(1), 5000)


def cells(labels, others):
    """Whether two numberings of the same points name the same parts."""
    pairs = {(int(a), int(b)) for a, b in zip(labels, others, strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def steal(attack, victim, reveal=Reveal("logits"), **settings):  # noqa: B008
    with Ledger() as ledger:
        return core.run_host(attack, Metered(oracle_for(victim, reveal, **settings), ledger), 0)


@pytest.mark.parametrize("epsilon", [0.0, 2.0**-14])
def test_every_leaf_is_found_and_is_the_victims(epsilon):
    solution = steal(find_paths(SCHEMA, TreeSettings(epsilon)), tree_victim(MODEL))
    tree = solution.found
    assert tree.leaves == MODEL.get_n_leaves()
    rows = UNIFORM.astype(np.float32)
    if epsilon == 0:  # to the last bit of float32
        assert cells(tree.apply(rows), MODEL.apply(rows))
        np.testing.assert_array_equal(tree.predict(rows), MODEL.predict(rows))
    np.testing.assert_allclose(tree.predict_proba(rows[:50]), MODEL.predict_proba(rows[:50]), atol=1e-6)
    assert (tree.predict(rows) != MODEL.predict(rows)).mean() < 1e-3
    assert tree.depth <= MODEL.get_depth() + 2
    assert "ignored" not in tree.text()


def test_from_the_root_down_it_costs_less():
    whole = steal(find_paths(SCHEMA), tree_victim(MODEL))
    nodes = steal(top_down(SCHEMA), tree_victim(MODEL, incomplete=True))
    assert nodes.found.leaves == MODEL.get_n_leaves()
    assert (nodes.found.predict(UNIFORM) != MODEL.predict(UNIFORM)).mean() < 1e-3
    assert nodes.queries < whole.queries


def test_shared_identities_are_repaired_by_validation():
    """Labels alone: two answers for all leaves of a checkerboard, whose faces path finding does not see."""
    schema = Schema.of_numbers(2, 0.0, 1.0)
    rows, uniform = (schema.uniform(np.random.default_rng(seed), 2000) for seed in (0, 1))
    board = DecisionTreeClassifier(random_state=0).fit(rows[:300], np.floor(3 * rows[:300]).sum(1) % 2)
    oracle = oracle_for(frameworks.from_sklearn(board, (2,)), Reveal("label"))
    settings = TreeSettings(2.0**-10, identified=False, checks=150, rounds=12)
    found = core.run_host(find_paths(schema, settings), oracle, 0).found
    alone = core.run_host(find_paths(schema, dataclasses.replace(settings, rounds=0)), oracle, 0).found
    wrong = [(tree.predict(uniform) != board.predict(uniform)).mean() for tree in (alone, found)]
    assert wrong[0] > 0.02
    assert wrong[1] < 0.01


def test_identities_that_are_said_to_be_unique_and_are_not_are_noticed():
    nodes = tree_victim(MODEL)
    shared = victims.from_function(
        lambda rows: np.concatenate([nodes(rows)[:, :1] % 3 + 1, nodes(rows)[:, 1:]], 1), (7,), 5, gives="logits"
    )
    tree = steal(find_paths(SCHEMA, TreeSettings(2.0**-12, checks=150, rounds=12)), shared).found
    answers, found = shared(UNIFORM.astype(np.float32))[:, 0], tree.answers[tree.apply(UNIFORM), 0]
    assert (answers != found).mean() < 0.02


def test_a_regression_tree_and_one_of_a_single_leaf():
    model = grown(DecisionTreeRegressor)
    tree = steal(find_paths(SCHEMA, TreeSettings(0.0)), tree_victim(model)).found
    rows = UNIFORM.astype(np.float32)
    np.testing.assert_allclose(tree.predict(rows), model.predict(rows), atol=1e-6)
    with pytest.raises(core.InputError, match="no classes"):
        tree.classes_
    constant = DecisionTreeClassifier(min_samples_split=100).fit(UNIFORM[:10], np.arange(10) > 6)
    tree = steal(find_paths(SCHEMA), tree_victim(constant)).found
    assert (tree.leaves, tree.depth) == (1, 0)
    assert tree.text() == "0 (0.7)"


def test_it_reads_as_a_tree_in_the_units_of_the_table():
    rows = SCHEMA.rows(np.array([[0.2, 0, 0, 0, 0], [0.4, 1, 0, 0, 0], [0.4, 0, 0, 0, 0], [0.8, 0, 1, 0, 0]]))
    model = DecisionTreeClassifier(random_state=0).fit(rows, [0, 1, 0, 1])
    tree = steal(find_paths(SCHEMA, TreeSettings(0.0)), tree_victim(model)).found
    lines = tree.text(("poor", "rich")).splitlines()
    assert sum(": poor (1)" in line or ": rich (1)" in line for line in lines) == tree.leaves
    assert any("income <= 600" in line or "rooms <= 5" in line for line in lines), lines
    # and stands where scikit-learn's stand
    again = victims.from_function(tree.predict_proba, (7,), 2)
    np.testing.assert_allclose(again(rows.astype(np.float32)).argmax(1), [0, 1, 0, 1])
    assert tree.classes_.tolist() == [0, 1]
    assert tree.n_features_in_ == 7


def test_a_walk_ends_where_a_feature_is_left_out():
    victim = tree_victim(MODEL, incomplete=True)
    rows = UNIFORM[:20].astype(np.float32)
    whole = victim(np.stack([rows, np.ones_like(rows)], 1))
    np.testing.assert_array_equal(whole, tree_victim(MODEL)(rows))
    empty = victim(np.stack([rows, np.zeros_like(rows)], 1))
    assert (empty[:, 0] == 1).all(), "the root"
    with pytest.raises(core.InputError, match="by 1 and 0"):
        victim(np.stack([rows, rows + 2], 1))


def test_bad_input_is_refused():
    with pytest.raises(core.InputError, match="epsilon"):
        find_paths(SCHEMA, TreeSettings(epsilon=0.9))
    with pytest.raises(core.InputError, match="at_once"):
        TreeSettings(at_once=0)
    with pytest.raises(core.InputError, match="no fitted tree"):
        tree_victim(DecisionTreeClassifier())
    with pytest.raises(core.InputError, match="identity and a prediction"):
        core.run_host(find_paths(SCHEMA), lambda rows: np.zeros(len(rows)), 0)
    with pytest.raises(core.InputError, match="features change the node"):  # it ignores what is left out
        core.run_host(top_down(SCHEMA), lambda rows: np.stack([rows[:, 0].sum(1).round(3), rows[:, 0, 0]], 1), 0)
    tree = steal(find_paths(SCHEMA), tree_victim(MODEL)).found
    with pytest.raises(core.InputError, match="rows must be numbers"):
        tree.predict(UNIFORM[:, :3])


BARS = {
    "iris": ({}, 200),
    "wine": ({}, 200),
    "moons": ({"max_leaf_nodes": 44}, 1000),
    "breast_cancer": ({}, 1000),
    "digits": ({"max_depth": 8}, 5000),
    "german_credit": ({"max_leaf_nodes": 26}, 1722),
    "adult_income": ({"max_leaf_nodes": 100}, 12000),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BARS)
def test_trees_of_real_tables_are_found_whole(name, getkey, request):
    data_dir = request.getfixturevalue("data_dir") if name in ("german_credit", "adult_income") else None
    table = load_table(name, getkey(), data_dir=data_dir)
    settings, rows = BARS[name]
    model = DecisionTreeClassifier(random_state=0, **settings).fit(table.train_rows, table.train_targets)
    uniform = table.schema.uniform(np.random.default_rng(1), 20_000)
    for attack, incomplete in ((find_paths(table.schema), False), (top_down(table.schema), True)):
        solution = steal(attack, tree_victim(model, incomplete=incomplete))
        assert solution.found.leaves == model.get_n_leaves()
        assert solution.queries <= rows
        assert (solution.found.predict(uniform) == model.predict(uniform)).mean() >= 0.999
        assert (solution.found.predict(table.test_rows) == model.predict(table.test_rows)).mean() >= 0.995
