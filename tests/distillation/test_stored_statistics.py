"""Generators of class groups and the knowledge within: losses written out by hand, groups, controls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.distillation import (
    GroupSettings,
    WithinSettings,
    group_images,
    knowledge_within,
    statistics_generators,
)
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.generators import DFMEGenerator
from dfke_jax.nn.mlp import MLP

SHAPE, K = (8, 8, 1), 5
KEY = jax.random.key(61)


def network(seed, batch_norm=True):
    made = Classifier.create(MLP(K, (7,), batch_norm=batch_norm), jax.random.key(seed), SHAPE)
    running = jax.tree.map(lambda leaf: leaf + 0.3, made.variables.get("batch_stats", {}))
    return made.replace(variables={**made.variables, "batch_stats": running})


TEACHER = network(0)
SMALL = GroupSettings(groups=2, batch_size=8, latent=3, width=2, statistics=0.5, form="kl")


def moments(images):
    dense = TEACHER.variables["params"]["dense1"]
    rows = images.reshape(len(images), -1) @ dense["kernel"] + dense["bias"][None]
    return rows.mean(0), rows.var(0)


def gaussian_kl(mean, var):
    stored = TEACHER.variables["batch_stats"]["dense1_norm"]
    apart = np.square(mean - stored["mean"]) + var
    return float((0.5 * np.log(stored["var"] / var) + apart / (2 * stored["var"]) - 0.5).sum())


def cross_entropy(images, labels):
    z = np.asarray(TEACHER(images))
    return np.log(np.exp(z).sum(-1)) - z[np.arange(len(labels)), labels]


@pytest.mark.slow
def test_the_mixture_of_all_groups_is_matched():
    method = statistics_generators(TEACHER, SMALL)
    before = jax.jit(method.init)(KEY)
    images, labels = jax.jit(group_images, static_argnums=1)(TEACHER, SMALL, before, jax.random.fold_in(KEY, 0))
    np.testing.assert_array_equal(np.asarray(labels) % 2, [0, 0, 0, 0, 1, 1, 1, 1])
    assert set(np.asarray(labels)) <= {0, 1, 2, 3, 4}
    after, metrics = jax.jit(method.step)(jax.random.fold_in(KEY, 0), before)
    own = cross_entropy(images, np.asarray(labels)).mean()
    whole = gaussian_kl(*map(np.asarray, moments(images)))
    np.testing.assert_allclose(metrics["one_hot"], own, rtol=1e-4)
    np.testing.assert_allclose(metrics["statistics"], whole, rtol=1e-3)
    np.testing.assert_allclose(metrics["loss"], own + 0.5 * whole, rtol=1e-3)
    # the second group's images, from its own parameters and latents with their classes
    latent_key = jax.random.split(jax.random.fold_in(KEY, 0))[1]
    z = jnp.concatenate([jax.random.normal(latent_key, (2, 4, 3))[1], jax.nn.one_hot(labels[4:], K)], -1)
    module = DFMEGenerator(SHAPE, 2, 3 + K, normalised_output=False)
    params = jax.tree.map(lambda leaf: leaf[1], before.variables["params"])
    apply = jax.jit(
        lambda params: module.apply(params, z, train=True, mutable=["batch_stats"], method="pre_activation")
    )
    x, _ = apply({"params": params})
    np.testing.assert_allclose(images[4:], jax.nn.sigmoid(2 * x), atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.variables, before.variables)
    assert 0 < max(jax.tree.leaves(moved)) <= 1.01e-3, "one step of Adam"


def test_classes_of_a_group_are_all_drawn():
    three = GroupSettings(groups=3, batch_size=300, latent=1, width=1)
    state = jax.eval_shape(statistics_generators(TEACHER, three).init, KEY)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    _, labels = jax.jit(group_images, static_argnums=1)(TEACHER, three, zeros, KEY)
    drawn = [set(np.asarray(labels[100 * g : 100 * g + 100]).tolist()) for g in range(3)]
    assert drawn == [{0, 3}, {1, 4}, {2}]


def test_the_knowledge_within_sums_its_terms_and_its_control_stays_where_it_starts():
    settings = WithinSettings(steps=1, statistics=2.0, one_hot=0.5, smoothness=0.3, start="uniform", learning_rate=1e-3)
    run = lambda control: core.run(knowledge_within(TEACHER, settings, 6, 6, control=control), KEY, 1)
    start = run(True).state
    images, labels = np.asarray(start.images), np.asarray(start.labels)
    np.testing.assert_array_equal(labels, np.arange(6) % K)
    made = run(False)
    apart = np.abs(np.arange(8)[:, None] - np.arange(8)[None])
    weights = np.exp(-np.square(apart) / 2.0)
    weights /= weights.sum(1, keepdims=True)
    blurred = np.stack([weights @ image[..., 0] @ weights.T for image in images])
    rough = np.square(images[..., 0] - blurred).sum((1, 2)).mean()
    expected = 2 * gaussian_kl(*map(np.asarray, moments(images)))
    expected += 0.5 * cross_entropy(start.images, labels).mean() + 0.3 * rough
    np.testing.assert_allclose(made.metrics["loss"][0], expected, rtol=1e-3)
    moved = np.abs(np.asarray(made.state.images) - images).max()
    assert 0 < moved <= 1.01e-3


def test_bad_input():
    with pytest.raises(InputError, match="6 groups of 5 classes"):
        statistics_generators(TEACHER, GroupSettings(groups=6, batch_size=6))
    with pytest.raises(InputError, match="MLP shows none: it has no batch normalisation"):
        statistics_generators(network(1, False), SMALL)
    with pytest.raises(InputError, match="MLP shows none: it has no batch normalisation"):
        knowledge_within(network(1, False), WithinSettings(), 6, 6)
    with pytest.raises(InputError, match="batch_size a multiple of groups"):
        GroupSettings(groups=3, batch_size=10)
    with pytest.raises(InputError, match="sigma be positive"):
        WithinSettings(sigma=0)
