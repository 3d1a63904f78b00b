"""Pools, what defences cost, and what the settings of extraction recipes refuse."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import data
from dfke_jax.core.errors import InputError, LedgerError, UnknownNameError
from dfke_jax.evaluation import accuracy
from dfke_jax.experiments import Run, Workbench, recipe
from dfke_jax.experiments.extraction.attacks import AttackRun, paid, progress, rows_asked
from dfke_jax.experiments.extraction.defences import DefenceSettings, misinformed, utility
from dfke_jax.experiments.extraction.pool import KNOCKOFF, PoolExtractionSettings, image_pool
from dfke_jax.extraction import CloneTraining, DFMESettings, PoolAttackSettings, dfme, knockoff
from dfke_jax.oracle import Reveal, defence, oracle_for

TINY = {"seeds": 1, "teacher": "mlp_small", "student": "mlp_small", "teacher_steps": 5, "teacher_batch": 8}
ATTACK = PoolAttackSettings(rows_per_step=10, clone=CloneTraining(2, 4, "adam", decay_at=()))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("DFKE_CACHE_DIR", str(tmp_path / "cache"))
    config = PoolExtractionSettings(**TINY, budgets=(20,), attack=ATTACK)
    return Workbench(config, tmp_path / "run", progress=False, devices=1)


@pytest.mark.slow
def test_a_pool_of_shapes_is_grouped_by_level(bench):
    pool = image_pool(bench.config, bench, 40)
    assert (pool.images.shape, pool.num_groups) == ((40, 8, 8, 1), 10)
    np.testing.assert_array_equal(np.bincount(pool.groups), [4] * 10)
    level = np.asarray(pool.images.mean((1, 2, 3)))
    assert all(level[pool.groups == k].max() <= level[pool.groups == k + 1].min() for k in range(9))


def test_a_pool_that_is_too_small_is_completed_by_moved_copies_and_says_so(bench, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8), np.arange(12) % 3
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    config = dataclasses.replace(bench.config, pool_dataset=str(tmp_path / "own.npz"))
    pool = image_pool(config, bench, 30)
    assert pool.images.shape == (30, 8, 8, 1)
    assert pool.num_groups == 3
    np.testing.assert_array_equal(pool.groups, np.concatenate([labels, labels, labels[:6]]))
    assert (pool.images[12:24] != pool.images[:12]).any((1, 2, 3)).all()
    assert float(pool.images.min()) >= 0
    assert float(pool.images.max()) <= 1
    assert any("12 images; 18 rotated, scaled and shifted copies" in note for note in bench.notes)


def test_the_victims_own_data_as_a_pool_is_noted(bench):
    pool = image_pool(dataclasses.replace(bench.config, pool_dataset="digits"), bench, 40)
    np.testing.assert_array_equal(pool.groups, data.load("digits").train.labels)
    assert any("own training set" in note for note in bench.notes)


@pytest.mark.slow
def test_the_clone_is_measured_on_the_way(bench):
    """At even distances, the last point being the end; a line that is there twice counts once."""
    settings = bench.config.attack.with_budget(40)
    run = AttackRun(bench.config, settings, Reveal(), bench.network("mlp_small"), bench, 0)
    pool = image_pool(bench.config, bench, 40)
    attack = knockoff(run.clone, pool.images, Reveal(), settings)
    victim = bench.network("mlp_small")
    state, _ = paid(KNOCKOFF, run, attack, oracle_for(victim, Reveal()), 40, "way", points=2)
    found = progress(bench, "way", 0)
    assert list(found) == [20, 40]
    test = bench.dataset.test
    assert found[40] == round(100 * accuracy(KNOCKOFF.read(run.clone, state).predict(test.images), test.labels), 4)
    path = bench.out / "progress.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0].replace(str(found[20]), "1.5") + "\n")
    assert progress(bench, "way", 0) == {20: 1.5, 40: found[40]}
    assert progress(bench, "way", 1) == {}
    path.write_text(path.read_text() + '{"stage": "wa')  # killed while it wrote
    assert progress(bench, "way", 0) == {20: 1.5, 40: found[40]}
    paid(KNOCKOFF, run, attack, oracle_for(victim, Reveal()), 40, "again", points=2)
    assert list(progress(bench, "again", 0)) == [20, 40]


def test_what_an_attack_asks_is_held_against_its_formula(bench):
    """A formula that says a row less than the attack asks is found out."""
    settings = ATTACK.with_budget(20)
    clone = bench.network("mlp_small")
    attack = knockoff(clone, jnp.zeros((20, 8, 8, 1)), Reveal(), settings)
    assert rows_asked(attack) == 10
    assert rows_asked(dfme(clone, DFMESettings(batch_size=3, clone_batches=2, width=2, steps=1))) == 12
    wrong = dataclasses.replace(KNOCKOFF, rows=lambda settings: settings.budget - 1)
    run = AttackRun(bench.config, settings, Reveal(), clone, bench, 0)
    with pytest.raises(LedgerError, match="formula says 19 rows, and it asked 20"):
        paid(wrong, run, attack, oracle_for(clone), 20, "wrong")


def constant(logits, rows):
    return jnp.broadcast_to(logits[None], (rows.shape[0], *logits.shape))


def test_the_cost_of_a_defence_by_hand(bench):
    """A victim that gives one answer to everything; half the answer moved is an L1 distance, and its class an accuracy."""
    probabilities = np.r_[0.6, 0.4, np.zeros(8)]
    victim = Partial(constant, jnp.log(jnp.asarray(probabilities, jnp.float32) + 1e-20))
    labels = bench.dataset.test.labels
    make = lambda reveal, *defences: oracle_for(victim, reveal, defences, input_shape=(8, 8, 1), num_classes=10)
    none = utility(make(Reveal()), victim, bench)
    assert none["answers_accuracy"] == pytest.approx(100 * (labels == 0).mean())
    assert none["answers_l1"] == pytest.approx(0, abs=1e-5)
    assert utility(make(Reveal("label")), victim, bench)["answers_l1"] == pytest.approx(0.8, abs=1e-5)
    rounded = utility(make(Reveal(), defence("rounding:decimals=0")), victim, bench)
    assert rounded["answers_l1"] == pytest.approx(0.8, abs=1e-5)


@pytest.mark.slow
def test_the_misinformed_network_avoids_the_right_class(bench, tmp_path):
    config = DefenceSettings(**{**TINY, "teacher_batch": 64}, misinformation_steps=60, budget=1000)
    wrong = misinformed(Run(Workbench(config, tmp_path / "other", progress=False, devices=1), 0))
    train = bench.dataset.train
    assert (wrong.predict(train.images).argmax(1) == train.labels).mean() < 0.02  # a tenth is chance


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"defences": ("none", "roundin")}, UnknownNameError, "rounding"),
        ({"defences": ("label",)}, InputError, "one of them 'none'"),
        ({"defences": ("none", "label", "label")}, InputError, "different"),
        ({"defences": ("none", "rounding:decimals=x")}, InputError, "whole number"),
        ({"attacks": ("knockof",)}, UnknownNameError, "knockoff"),
        ({"attacks": ()}, InputError, "at least one"),
        ({"budget": 50}, InputError, "does not pay for one iteration"),
        ({"misinformation_steps": 0}, InputError, "misinformation_steps"),
    ],
)
def test_tables_of_defences_that_mean_nothing(changes, error, match):
    with pytest.raises(error, match=match):
        recipe("defences").settings("digits", **changes)


@pytest.mark.parametrize("name", ["knockoff", "active-thief", "jbda", "dissector", "knockoff-bandit", "copycat"])
def test_budgets_of_pool_attacks_must_pay_for_a_step(name):
    with pytest.raises(InputError, match="does not pay for one iteration"):
        recipe(name).settings("digits", budgets=(5,))
    with pytest.raises(InputError, match="increasing"):
        recipe(name).settings("digits", budgets=(1000, 500))
