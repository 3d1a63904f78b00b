"""The contract between an attack and whoever answers it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP

SHAPE = (4, 4, 4, 1)


def bits(key):
    return jax.random.key_data(key)


def begin(key):
    return {
        "weights": jax.random.normal(key, (16, 3)),
        "asked": jnp.zeros(2, jnp.uint32),
        "told": jnp.zeros(2, jnp.uint32),
    }


def ask(key, state):
    return {**state, "asked": bits(key)}, jax.random.uniform(key, SHAPE)


def tell(key, state, rows, answers):
    flat = rows.reshape(len(rows), -1)
    error = flat @ state["weights"] - answers
    weights = state["weights"] - 0.1 * flat.T @ error / len(rows)
    again = jnp.abs(rows - jax.random.uniform(key, SHAPE)).max()
    return {**state, "weights": weights, "told": bits(key)}, {"loss": jnp.square(error).mean(), "again": again}


ATTACK = core.Attack(Partial(begin), Partial(ask), Partial(tell))


@pytest.fixture(scope="module")
def victim():
    return Classifier.create(MLP(3, (5,)), jax.random.key(1), (4, 4, 1))


def same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    return all(
        np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


def test_ask_and_tell_of_one_iteration_get_the_same_key(victim):
    fused, key = core.against(ATTACK, victim), jax.random.key(2)
    state = fused.init(jax.random.key(3))
    for step in range(3):
        step_key = jax.random.fold_in(key, step)
        state, metrics = jax.jit(fused.step)(step_key, state)
        np.testing.assert_array_equal(state["asked"], bits(step_key))
        np.testing.assert_array_equal(state["told"], bits(step_key))
        assert metrics["again"] == 0, "tell draws the rows of ask again"


def test_a_host_oracle_gives_the_states_of_the_fused_one(victim):
    seen = []

    def on_the_host(rows):
        seen.append(type(rows))
        return np.asarray(jax.jit(Classifier.logits)(victim, rows))

    key = jax.random.key(4)
    fused = core.run(core.against(ATTACK, victim), key, 5, chunk=5)
    hosted = core.against(ATTACK, on_the_host, host=True)
    assert isinstance(hosted, core.HostMethod)
    hosted = core.run(hosted, key, 5, chunk=2)
    assert seen == [np.ndarray] * 5, "once per step, with a NumPy array"
    for a, b in zip(jax.tree.leaves(fused.state), jax.tree.leaves(hosted.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fused.metrics["loss"], hosted.metrics["loss"], rtol=1e-5)


def test_no_gradient_flows_through_the_oracle(victim):
    def tell_loss(key, state, rows, answers):
        return state, {"loss": jnp.square(answers).sum()}

    def ask_scaled(key, state):
        return state, state["scale"] * jax.random.uniform(key, SHAPE)

    attack = core.Attack(Partial(lambda key: {"scale": jnp.ones(())}), Partial(ask_scaled), Partial(tell_loss))
    step = core.against(attack, victim).step
    slope = jax.grad(lambda scale: step(jax.random.key(0), {"scale": scale})[1]["loss"])(jnp.ones(()))
    rows = jax.random.uniform(jax.random.key(0), SHAPE)
    honest = jax.grad(lambda scale: jnp.square(victim(scale * rows)).sum())(jnp.ones(()))
    assert slope == 0
    assert abs(honest) > 1e-4, "there would have been one to flow"


@pytest.mark.parametrize("kind", ["classifier", "partial", "function"])
def test_any_traceable_oracle_serves(victim, kind):
    oracle = {"classifier": victim, "partial": Partial(Classifier.logits, victim), "function": lambda x: victim(x)}[
        kind
    ]
    key = jax.random.key(5)
    reference = core.run(core.against(ATTACK, victim), key, 2).state["weights"]
    np.testing.assert_array_equal(core.run(core.against(ATTACK, oracle), key, 2).state["weights"], reference)


def test_answers_may_be_any_pytree():
    def told(key, state, rows, answers):
        return state, {"loss": answers["label"].astype(jnp.float32).mean() + answers["top"][0].sum()}

    def oracle(rows):
        scores = rows.sum((1, 2))
        return {"label": scores.argmax(1), "top": (scores.max(1),)}

    attack = core.Attack(Partial(lambda key: jnp.zeros(2)), Partial(lambda key, s: (s, jnp.ones(SHAPE))), Partial(told))
    fused = core.run(core.against(attack, oracle), jax.random.key(0), 2)
    hosted = core.run(core.against(attack, oracle, host=True), jax.random.key(0), 2)
    np.testing.assert_array_equal(fused.metrics["loss"], [64.0, 64.0])
    np.testing.assert_array_equal(hosted.metrics["loss"], [64.0, 64.0])


def test_a_method_is_a_pytree_whose_arguments_are_leaves(victim):
    made = core.method(_begin_with, _step_with, victim, core.Static(3))
    leaves = jax.tree.leaves(made)
    assert len(leaves) == 2 * len(jax.tree.leaves(victim)), "init and step hold the victim's variables, nothing else"
    doubled = jax.tree.map(lambda leaf: 2 * leaf, made)
    rows = jnp.ones(SHAPE)
    np.testing.assert_allclose(
        doubled.step(jax.random.key(0), jnp.zeros(()))[1]["loss"],
        jax.tree.map(lambda leaf: 2 * leaf, victim)(rows).sum() * 3,
        rtol=1e-6,
    )


def _begin_with(victim, static, key):
    return jnp.zeros(())


def _step_with(victim, static, key, state):
    return state, {"loss": victim(jnp.ones(SHAPE)).sum() * static.value}


def test_static_values_compare_by_value():
    assert core.Static((1, "a")) == core.Static((1, "a"))
    assert hash(core.Static((1, "a"))) == hash(core.Static((1, "a")))
    assert core.Static(1) != core.Static(2)
    assert core.Static(1) != 1
    assert repr(core.Static(1)) == "Static(1)"
    assert jax.tree.leaves(core.Static(1)) == []
