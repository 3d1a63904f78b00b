"""A GAN's samples as a transfer set: one step by hand, and adapted statistics against a pass of the images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.distillation import SamplingSettings, adapt_statistics, gan_sampling
from dfke_jax.distillation.gan_sampling import sampling_cost
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP

SHAPE, KEY = (3, 2, 1), jax.random.key(3)
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32))
MADE = Partial(lambda weights, z: jax.nn.sigmoid(z @ weights).reshape(-1, *SHAPE), WEIGHTS)


def network(seed, batch_norm=False):
    return Classifier.create(MLP(3, (5,), batch_norm=batch_norm), jax.random.key(seed), SHAPE)


def gaps(teacher, student, images):
    p, q = (np.asarray(jax.nn.softmax(one(images)), np.float64) for one in (teacher, student))
    return (p * (np.log(p) - np.log(q))).sum(-1)


def test_a_step_moves_latents_uphill_and_learns_what_they_make():
    teacher, student = network(0), network(1)
    settings = SamplingSettings(batch_size=6, latent=4, latent_steps=1, student_optimizer="sgd", student_rate=0.1)
    method = gan_sampling(MADE, teacher, student, settings)
    before = jax.jit(method.init)(KEY)
    after, metrics = jax.jit(method.step)(KEY, before)
    begun = student.replace(variables=before.variables)
    z = np.asarray(jax.random.normal(jax.random.split(KEY)[0], (6, 4)), np.float64)
    np.testing.assert_allclose(metrics["gap"], gaps(teacher, begun, MADE(z)).mean(), rtol=1e-4)
    slope = np.zeros_like(z)  # by central differences: every sample has its own latent
    for j in range(4):
        up, down = (gaps(teacher, begun, MADE(jnp.asarray(z + sign * 3e-2 * np.eye(4)[j]))) for sign in (1, -1))
        slope[:, j] = (up - down) / 6e-2
    hard = z + 0.1 * 2 * slope / np.linalg.norm(slope, axis=1, keepdims=True)
    hard = 2 * hard / np.linalg.norm(hard, axis=1, keepdims=True)
    images = MADE(jnp.asarray(hard, jnp.float32))
    np.testing.assert_allclose(metrics["hard_gap"], gaps(teacher, begun, images).mean(), rtol=2e-3)
    np.testing.assert_allclose(metrics["loss"], metrics["hard_gap"], rtol=1e-5)
    moved = student.replace(variables=after.variables)
    assert gaps(teacher, moved, images).mean() < gaps(teacher, begun, images).mean()


def test_without_moves_it_is_plain_sampling():
    settings = SamplingSettings(batch_size=6, latent=4, latent_steps=0)
    method = gan_sampling(MADE, network(0), network(1), settings)
    _, metrics = jax.jit(method.step)(KEY, method.init(KEY))
    assert metrics["gap"] == metrics["hard_gap"]
    assert sampling_cost(settings)[:3] == (6, 6, 0)


def test_adapted_statistics_are_those_of_the_images():
    classifier = network(2, batch_norm=True)
    images = jax.random.uniform(KEY, (9, *SHAPE)) * 0.3
    adapted = adapt_statistics(classifier, images)
    seen = adapted.observe(images, moments=True).moments
    for layer in seen:
        np.testing.assert_allclose(layer.running_mean, layer.mean, atol=1e-6)
        np.testing.assert_allclose(layer.running_var, layer.var, rtol=1e-4, atol=1e-6)
    assert not np.allclose(seen[0].running_mean, 0)
    assert jax.tree.structure(adapted) == jax.tree.structure(classifier)
    with pytest.raises(InputError, match="no batch normalisation to adapt"):
        adapt_statistics(network(0), images)


def test_what_it_refuses():
    other = Classifier.create(MLP(3, (5,)), KEY, (2, 2, 1))
    with pytest.raises(InputError, match="makes images of"):
        gan_sampling(MADE, other, other, SamplingSettings(latent=4))
    with pytest.raises(InputError, match="latent_rate must be positive"):
        SamplingSettings(latent_rate=0.0)
