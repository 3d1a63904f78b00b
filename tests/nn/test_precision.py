"""The format that networks compute in: what changes under bfloat16 and what must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import nn
from dfke_jax.core import run
from dfke_jax.core.errors import InputError
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.precision import apply
from dfke_jax.synthesis import precise

SHAPE = (8, 8, 3)


@jax.jit
def ask(network, images):
    return network(images)


@jax.jit
def observed(network, images):
    return network.observe(images, activations=True)


@pytest.fixture(scope="module")
def network():
    return nn.Classifier.create(nn.build("resnet8"), jax.random.key(0), SHAPE)


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(1), (16, *SHAPE))


def test_layers_compute_in_bfloat16_and_logits_keep_float32(network, images):
    plain = ask(network, images)
    with nn.compute_precision("bfloat16"):
        low = ask(network, images)
        features = jax.eval_shape(network.features, images)
        program = str(jax.make_jaxpr(network)(images))
    assert (low.dtype, features.dtype) == (jnp.float32, jnp.bfloat16)
    assert "bf16[16,8,8,16]" in program
    difference = float(jnp.linalg.norm(low - plain) / jnp.linalg.norm(plain))
    assert 0 < difference < 0.03  # eight bits of mantissa through nine layers
    np.testing.assert_array_equal(ask(network, images), plain)  # programs of one context do not serve another


def test_precise_functions_ignore_it(network, images):
    exact = jax.jit(precise(network))
    plain = exact(images)
    with nn.compute_precision("bfloat16"):
        np.testing.assert_allclose(exact(images), plain, rtol=1e-6, atol=1e-6)
        assert not np.allclose(ask(network, images), plain, rtol=1e-6, atol=1e-6)


def test_training_keeps_parameters_and_statistics_in_float32(images):
    labels = jnp.arange(16) % 10
    small = nn.Classifier.create(MLP(10, (8,), batch_norm=True), jax.random.key(0), SHAPE)
    assert small.has_normalisation
    method = nn.training(
        small, images, labels, loss=Partial(cross_entropy), optimizer=nn.optimiser("adam", 1e-3), batch_size=16
    )
    plain = run(method, jax.random.key(2), 4, chunk=4)
    with nn.compute_precision("bfloat16"):
        low = run(method, jax.random.key(2), 4, chunk=4)
    for leaf in jax.tree.leaves(low.state.variables):
        assert leaf.dtype == jnp.float32
    assert not np.array_equal(low.metrics["loss"], plain.metrics["loss"])
    np.testing.assert_allclose(low.metrics["loss"], plain.metrics["loss"], rtol=0.05)


def test_what_a_module_returns_beside_its_output_is_left_alone(network, images):
    with nn.compute_precision("bfloat16"):
        learn = lambda variables: apply(network.module, variables, images, train=True, mutable=["batch_stats"])
        logits, updated = jax.eval_shape(learn, network.variables)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} == {jnp.dtype(jnp.float32)}


def test_generators_give_float32_images():
    generator = nn.DFMEGenerator((8, 8, 3), 4, 6)
    variables = jax.eval_shape(generator.init, jax.random.key(3), jnp.zeros((2, 6)))
    with nn.compute_precision("bfloat16"):
        made = jax.eval_shape(lambda variables, z: apply(generator, variables, z), variables, jnp.zeros((5, 6)))
    assert made.dtype == jnp.float32


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="float32, bfloat16"):
        nn.compute_precision("float16")


def test_several_heads_are_float32_too():
    """Answers that are no one array, and a last layer that is not at the top of the network."""
    network = nn.Classifier.create(nn.Heads(nn.build("mlp_small"), (4, 6)), jax.random.key(0), SHAPE)
    images = jax.random.uniform(jax.random.key(1), (5, *SHAPE))
    plain = ask(network, images)
    with nn.compute_precision("bfloat16"):
        low, seen = ask(network, images), observed(network, images)
        program = str(jax.make_jaxpr(network)(images))
    assert "f32[128,10]" in program
    assert "bf16[128,10]" not in program
    for task in ("task0", "task1"):
        assert low[task].dtype == seen.logits[task].dtype == jnp.float32
        np.testing.assert_array_equal(low[task], seen.logits[task])
        np.testing.assert_allclose(low[task], plain[task], atol=0.03)
        assert not np.array_equal(low[task], plain[task])
