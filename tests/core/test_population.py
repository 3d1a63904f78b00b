"""Many runs in one program equal the runs one by one, on one device and on several."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.experiments.bench.settings import network
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.conv import convolution
from dfke_jax.nn.layers import Conv, flatten, head
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import optimiser, training

KEY = jax.random.key(11)
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


class TinyConv(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, *, train=False):
        return head(self.num_classes)(flatten(nn.relu(Conv(4, (3, 3), name="conv")(x))))


@functools.cache
def trainer(module, batch=5):
    images = jax.random.uniform(jax.random.key(1), (12, 6, 6, 1))
    network = Classifier.create(module, jax.random.key(0), (6, 6, 1))
    return training(
        network,
        images,
        jnp.arange(12) % 3,
        loss=Partial(cross_entropy),
        optimizer=optimiser("sgd", 0.1),
        batch_size=batch,
    )


def begin(hyper, key):
    params = {"weights": jax.random.normal(key, (5, 3)), "bias": jnp.zeros(3)}
    return params, optax.sgd(hyper["rate"], momentum=hyper["momentum"]).init(params)


def descend(hyper, key, state):
    params, moments = state
    inputs = jax.random.normal(key, (6, 5))
    error = lambda params: jnp.square(jnp.tanh(inputs @ params["weights"] + params["bias"][None]) - 0.5).mean()
    loss, slope = jax.value_and_grad(error)(params)
    updates, moments = optax.sgd(hyper["rate"], momentum=hyper["momentum"]).update(slope, moments, params)
    return (optax.apply_updates(params, updates), moments), {"loss": loss}


def regression(hyper):
    return core.method(begin, descend, hyper)


PLAIN = regression({"rate": 0.1, "momentum": 0.5})


HYPER = {"rate": jnp.array([0.0, 0.01, 0.1, 0.5]), "momentum": jnp.array([0.9, 0.0, 0.5, 0.9])}


def close(first, second, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def one_by_one():
    keys = jax.random.split(KEY, 4)
    runs = []
    for i in range(4):
        hyper = jax.tree.map(lambda leaf, i=i: leaf[i], HYPER)
        # One member alone, its numbers as plain floats in the optimiser.
        alone = regression({name: float(value) for name, value in hyper.items()})
        runs.append(core.run(alone, keys[i], 3, chunk=3))
    return keys, [run.state for run in runs], np.stack([run.metrics["loss"] for run in runs], 1)


@pytest.mark.parametrize("strategy", ["auto", "vmap", "map", "unroll"])
def test_every_strategy_gives_the_numbers_of_single_runs(one_by_one, strategy):
    keys, variables, losses = one_by_one
    many = core.run(core.population(regression, HYPER, strategy=strategy), keys, 3, chunk=3)
    np.testing.assert_allclose(many.metrics["loss"], losses, rtol=1e-5)
    for i in range(4):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], many.state), variables[i])
    assert not np.allclose(*(many.state[0]["weights"][i] for i in (0, 3)), atol=1e-3)


@pytest.mark.parametrize(
    ("module", "implementation", "batch", "expected"),
    [
        (TinyConv(), "loop_safe", 5, "map"),
        (TinyConv(), "lax", 5, "map"),
        (TinyConv(), "banded", 5, "vmap"),
        (TinyConv(), "banded", 2000, "map"),  # 6·6·4 activations a row: 1.15 MB
        (MLP(3, (8,)), "auto", 5, "vmap"),
        (MLP(3, (1000, 1000)), "auto", 5, "vmap"),  # large weights are no reason
    ],
)
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators always take vmap")
def test_auto_chooses_by_convolution_and_by_activations(module, implementation, batch, expected):
    keys = jax.random.split(KEY, 2)
    with convolution(implementation):
        many = core.population(trainer(module, batch))
        state = jax.eval_shape(many.init, keys)
        jaxpr = jax.make_jaxpr(many.step)(keys, state)
    loops = [equation.primitive.name for equation in jaxpr.eqns if equation.primitive.name in ("scan", "while")]
    assert loops == (["scan"] if expected == "map" else [])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["vmap", "map", "unroll"])
def test_convolutions_in_a_population(strategy):
    keys = jax.random.split(KEY, 2)
    with convolution("loop_safe"):
        many = core.run(core.population(trainer(TinyConv()), strategy=strategy), keys, 2, chunk=2)
        for i in range(2):
            single = core.run(trainer(TinyConv()), keys[i], 2, chunk=2)
            close(jax.tree.map(lambda leaf, i=i: leaf[i], many.state), single.state)


@pytest.mark.slow
def test_side_by_side_on_an_accelerator_small_kernels_become_products(monkeypatch):
    """No grouped convolution, the program that was measured there, and the numbers of the plain operations; the form is gone afterwards."""
    images = jax.random.uniform(jax.random.key(1), (12, 28, 28, 1))
    one = training(
        network("lenet5", 10, (28, 28, 1)),
        images,
        jnp.arange(12) % 3,
        loss=Partial(cross_entropy),
        optimizer=optimiser("sgd", 0.1),
        batch_size=4,
    )
    keys = jax.random.split(KEY, 2)
    states = jax.vmap(one.init)(keys)

    def stepped(implementation="auto"):
        def step(keys, states):  # a function of its own: make_jaxpr remembers
            return core.population(one).step(keys, states)

        with convolution(implementation):
            return jax.make_jaxpr(step)(keys, states), jax.jit(step)(keys, states)[0]

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    made, after = stepped()
    grouped, plainly = stepped("lax")
    assert "conv_general_dilated" in str(grouped)
    assert "conv_general_dilated" not in str(made)
    assert str(made) == str(stepped("banded")[0])
    chex.assert_trees_all_close(after, plainly, atol=2e-5)
    assert "conv_general_dilated" in str(
        jax.make_jaxpr(lambda key, state: one.step(key, state))(keys[0], one.init(keys[0]))
    )


@pytest.mark.parametrize("strategy", ["vmap", "map"])
def test_over_four_devices(one_by_one, strategy, four):
    keys, variables, losses = one_by_one
    mesh = core.device_mesh(4, devices=four)
    many = core.population(regression, HYPER, strategy=strategy, mesh=mesh)
    result = core.run(many, keys, 3, chunk=3)
    np.testing.assert_allclose(result.metrics["loss"], losses, rtol=1e-5)
    for i in range(4):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], result.state), variables[i])
    for leaf in jax.tree.leaves(result.state):
        assert len(leaf.sharding.device_set) == 4
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {1}


def test_no_communication_over_devices(four):
    mesh = core.device_mesh(4, devices=four)
    keys = core.shard(jax.random.split(KEY, 8), mesh, "models")
    many = core.population(PLAIN, mesh=mesh)
    state = jax.jit(many.init)(keys)

    def chunk(many, keys, state):
        return jax.lax.scan(lambda state, step: many.step(jax.vmap(jax.random.fold_in, (0, None))(keys, step), state),
                            state, jnp.arange(3))  # fmt: skip

    text = jax.jit(chunk).lower(core.replicate(many, mesh), keys, state).compile().as_text()
    assert "num_partitions=4" in text
    for name in COLLECTIVES:
        assert name not in text


def test_a_method_without_hyperparameters_differs_by_keys():
    keys = jax.random.split(KEY, 2)
    many = core.run(core.population(PLAIN), keys, 2, chunk=2)
    for i in range(2):
        single = core.run(PLAIN, keys[i], 2, chunk=2)
        close(jax.tree.map(lambda leaf, i=i: leaf[i], many.state), single.state)


def test_the_usual_optimisers_take_hyperparameters():
    start, slope = {"weights": jnp.ones(4)}, {"weights": jnp.arange(4.0)}

    def moved(rate):
        rule = optimiser("adam", rate, 5)
        return rule.update(slope, rule.init(start), start)[0]["weights"]

    rates = jnp.array([0.01, 0.1])
    np.testing.assert_allclose(jax.jit(jax.vmap(moved))(rates), [moved(0.01), moved(0.1)], rtol=1e-6)


def test_a_population_resumes_over_devices(tmp_path, four):
    keys, mesh = jax.random.split(KEY, 4), core.device_mesh(4, devices=four)
    many = core.population(regression, HYPER, mesh=mesh)
    whole = core.run(many, keys, 4, chunk=2)
    checkpoints = core.Checkpoints(tmp_path)

    def crash(done, state, metrics):
        if done == 4:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        core.run(many, keys, 4, chunk=2, checkpoints=checkpoints, callback=crash)
    resumed = core.run(many, keys, 4, chunk=2, checkpoints=checkpoints, resume=True)
    assert len(resumed.metrics["loss"]) == 2
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_refusals(four):
    with pytest.raises(core.InputError, match="strategy must be auto, vmap, map or unroll, not 'fast'"):
        core.population(PLAIN, strategy="fast")
    with pytest.raises(core.InputError, match=r"share their leading axis, got sizes \[3, 4\]"):
        core.population(regression, HYPER).init(jax.random.split(KEY, 3))
    with pytest.raises(core.InputError, match="population of 3 does not divide"):
        core.population(PLAIN, mesh=core.device_mesh(4, devices=four)).init(jax.random.split(KEY, 3))
