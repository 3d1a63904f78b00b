"""What every attack with a generator promises, over a table of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.core.loop import _chunk
from dfke_jax.extraction import (
    DFMESettings,
    DFMSSettings,
    DisagreementSettings,
    MAZEPDSettings,
    MAZESettings,
    MEGEXSettings,
    dfme,
    dfms,
    disagreement,
    maze,
    maze_pd,
    megex,
)
from dfke_jax.oracle import Reveal

KEY = jax.random.key(51)
# SGD for the generator: Adam divides what rounding leaves of a vanishing gradient by its own size.
SMALL = {"batch_size": 6, "clone_batches": 2, "latent": 5, "width": 2, "steps": 4, "clone_rate": 0.02}
SGD = {**SMALL, "generator_optimizer": "sgd", "generator_rate": 1e-3}
PROXY = jax.random.uniform(jax.random.key(52), (10, 8, 8, 1))

ATTACKS = {
    "DFME": ("probabilities", lambda clone: dfme(clone, DFMESettings(epsilon=0.05, **SGD))),
    "DFME, two central directions, reuse, chunks": (
        "probabilities",
        lambda clone: dfme(
            clone, DFMESettings(epsilon=0.05, directions=2, orthogonal=True, central=True, reuse=True, chunk=5, **SGD)
        ),
    ),
    "MAZE": (
        "probabilities",
        lambda clone: maze(
            clone, MAZESettings(epsilon=0.05, directions=2, replay_batches=2, replay_capacity=30, **SGD)
        ),
    ),
    "MAZE-PD": (
        "probabilities",
        lambda clone: maze_pd(
            clone,
            PROXY,
            jnp.full((10, 3), 1 / 3),
            MAZEPDSettings(epsilon=0.05, directions=2, replay_batches=2, replay_capacity=30, critic_width=2, **SGD),
        ),
    ),
    "MEGEX": ("explained", lambda clone: megex(clone, MEGEXSettings(**SGD))),
    "DisGUIDE": ("probabilities", lambda clone: disagreement(clone, DisagreementSettings(replay_capacity=20, **SGD))),
    "DisGUIDE, labels": (
        "labels",
        lambda clone: disagreement(clone, DisagreementSettings(replay_capacity=20, **SGD), Reveal("label")),
    ),
    "Dual Students": (
        "probabilities",
        lambda clone: disagreement(
            clone, DisagreementSettings(objective="l1", replay_batches=0, diversity=0.0, clones=3, **SGD)
        ),
    ),
    "DFMS-HL": ("labels", lambda clone: dfms(clone, PROXY, DFMSSettings(**{**SMALL, "clone_batches": 1}))),
    "DFMS-SL": (
        "probabilities",
        lambda clone: dfms(clone, PROXY, DFMSSettings(**{**SMALL, "clone_batches": 1}), Reveal()),
    ),
}
# one of each family of answers here; what the others have of their own is tested in their own files
QUICK = {"DFME", "DisGUIDE", "DFMS-HL"}
every_attack = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in ATTACKS]
)

# These compile once more for every attack.
every_program = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "DFME")) for name in ATTACKS]
)


@pytest.fixture(scope="module")
def built(classifier, oracles):
    @functools.cache
    def build(name, victim=0):
        kind, make = ATTACKS[name]
        attack = make(classifier(9, batch_norm=name not in ("MEGEX", "DFMS-SL")))
        return attack, oracles[kind](classifier(victim))

    return build


@pytest.fixture(scope="module")
def two_steps(built):
    @functools.cache
    def go(name, victim=0, key=0):
        method, key = core.against(*built(name, victim)), jax.random.fold_in(KEY, key)
        before = initialise(method, key)
        return before, *chunk(method, key, before)

    return go


@jax.jit
def initialise(method, key):
    return method.init(key)


def chunk(method, key, state, start=0):
    return _chunk(method, key, jax.tree.map(jnp.copy, state), jnp.uint32(start), 2)[:2]


def describe(tree):
    return jax.tree.structure(tree), [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


def same_bits(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


@every_attack
def test_is_an_attack_of_partials_over_arrays(built, name):
    attack, _ = built(name)
    assert isinstance(attack, core.Attack)
    assert all(isinstance(part, Partial) for part in attack)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(attack))


@every_attack
def test_it_asks_as_many_rows_as_its_settings_say(built, name):
    attack, _ = built(name)
    settings = attack.init.args[0].settings
    before = jax.eval_shape(attack.init, KEY)
    state, rows = jax.eval_shape(attack.ask, KEY, before)
    assert (rows.shape, rows.dtype) == ((settings.rows_per_step, 8, 8, 1), jnp.float32)
    assert describe(state) == describe(before)


@every_attack
def test_states_keep_their_shape_and_metrics_are_finite_scalars(two_steps, name):
    before, after, metrics = two_steps(name)
    assert describe(after) == describe(before)
    assert not same_bits(before, after)
    assert metrics
    for value in metrics.values():
        assert (value.shape, value.dtype) == ((2,), jnp.float32)
        assert np.isfinite(value).all()
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(after))


@every_attack
def test_the_same_key_gives_the_same_bits_and_another_key_others(two_steps, built, name):
    _, after, metrics = two_steps(name)
    method, key = core.against(*built(name)), jax.random.fold_in(KEY, 0)
    assert same_bits(chunk(method, key, initialise(method, key)), (after, metrics))
    assert not same_bits(two_steps(name, key=1)[1], after)


@every_attack
def test_another_victim_runs_the_same_program(two_steps, name):
    _, after, _ = two_steps(name)
    compiled = _chunk._cache_size()
    _, other, _ = two_steps(name, victim=1)
    assert _chunk._cache_size() == compiled
    assert not same_bits(after, other)


@every_attack
def test_a_checkpoint_continues_with_the_same_bits(two_steps, built, name, tmp_path):
    _, after, _ = two_steps(name)
    method, key = core.against(*built(name)), jax.random.fold_in(KEY, 0)
    core.save(tmp_path / "state", after, config=name)
    restored = core.restore(tmp_path / "state", jax.eval_shape(method.init, key), config=name)
    assert same_bits(restored, after)
    assert same_bits(chunk(method, key, restored, 2), chunk(method, key, after, 2))


def mostly_close(first, second):
    near = [
        np.isclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=1e-3, atol=1e-4).ravel()
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    ]
    return np.concatenate(near).mean() > 0.995


@pytest.mark.slow
@every_program
def test_vmap_over_keys_equals_single_runs(two_steps, built, name):
    method, keys = core.against(*built(name)), jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(2))

    def whole(method, key):
        steps = lambda state, step: method.step(jax.random.fold_in(key, step), state)
        return jax.lax.scan(steps, method.init(key), jnp.arange(2))

    states, metrics = jax.jit(jax.vmap(whole, (None, 0)))(method, keys)
    for i in range(2):
        _, state, reported = two_steps(name, key=i)
        assert mostly_close(jax.tree.map(lambda leaf, i=i: leaf[i], states), state)
        for what, values in reported.items():
            np.testing.assert_allclose(metrics[what][i], values, rtol=5e-3, atol=5e-4, err_msg=what)


@pytest.mark.slow
@every_program
def test_a_population_of_one_is_the_single_run(two_steps, built, name):
    _, after, metrics = two_steps(name)
    one, keys = core.population(core.against(*built(name)), strategy="map"), jax.random.fold_in(KEY, 0)[None]
    states, reported = chunk(one, keys, initialise(one, keys))
    assert mostly_close(jax.tree.map(lambda leaf: leaf[0], states), after)
    for what, values in metrics.items():
        np.testing.assert_allclose(reported[what][:, 0], values, rtol=5e-3, atol=5e-4, err_msg=what)


@pytest.mark.slow
@every_attack
def test_a_victim_on_the_host_leads_to_the_same_states(two_steps, built, name):
    """Two compiled halves, in which latents and directions are drawn apart, against one scanned program."""
    _, after, metrics = two_steps(name)
    attack, oracle = built(name)
    answer = jax.jit(lambda rows: oracle(rows))
    asked = []

    def on_the_host(rows):
        asked.append(type(rows))
        assert 0 <= rows.min() < rows.max() <= 1
        return jax.device_get(answer(rows))

    hosted = core.run(
        core.against(attack, on_the_host, host=True), jax.random.fold_in(KEY, 0), 2, state=two_steps(name)[0]
    )
    assert asked == [np.ndarray] * 2
    for what, values in metrics.items():
        np.testing.assert_allclose(hosted.metrics[what], values, rtol=5e-3, atol=5e-4, err_msg=what)
    assert mostly_close(hosted.state, after)
