"""Null models: that they learn the task, and what they answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core import InputError
from dfke_jax.nn import Classifier, optimiser
from dfke_jax.nn.mlp import MLP
from dfke_jax.watermarking import TriggerSet, null_matches, null_population, stacked_answers

SHAPE = (4, 4, 1)
CENTRES = jax.random.uniform(jax.random.key(1), (3, *SHAPE))
LABELS = jnp.arange(90) % 3
IMAGES = jnp.clip(CENTRES[LABELS] + 0.1 * jax.random.normal(jax.random.key(2), (90, *SHAPE)), 0, 1)


@pytest.fixture(scope="module")
def network():
    return Classifier.create(MLP(3, (8,)), jax.random.key(0), SHAPE)


@pytest.fixture(scope="module")
def stack(network):
    return null_population(
        network,
        IMAGES,
        LABELS,
        jax.random.key(3),
        models=5,
        steps=100,
        batch_size=16,
        optimizer=optimiser("adam", 0.02),
    )


@pytest.mark.slow
def test_every_model_learns_the_task_and_is_its_own(stack):
    answers = np.asarray(stacked_answers(stack, IMAGES))
    assert answers.shape == (5, 90)
    assert ((answers == np.asarray(LABELS)).mean(1) > 0.95).all()
    kernels = np.asarray(stack.head_kernel)
    assert len({kernel.tobytes() for kernel in kernels}) == 5
    for i in range(5):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], stack)
        np.testing.assert_array_equal(answers[i], one.predict(IMAGES).argmax(1))


def test_matches_are_counted_for_each_model(stack):
    images = jax.random.uniform(jax.random.key(7), (30, *SHAPE))
    labels = jax.random.randint(jax.random.key(8), (30,), 0, 3)
    found = null_matches(TriggerSet(images, labels), stack)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], stack).predict(images).argmax(1) for i in range(5)]
    np.testing.assert_array_equal(found, [(answers == np.asarray(labels)).sum() for answers in each])


def test_refusals(network):
    with pytest.raises(InputError, match="leading axis M"):
        stacked_answers(network, IMAGES)
    with pytest.raises(InputError, match="labels must have shape"):
        null_population(network, IMAGES, LABELS[:4], jax.random.key(0), models=2)
