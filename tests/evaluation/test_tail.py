"""Accuracy over the last part of training, against measuring it step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.evaluation import watched
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.supervised import cross_entropy_training
from dfke_jax.nn.training import trained

KEY = jax.random.key(51)
SHAPE = (3, 3, 1)
IMAGES = jax.random.uniform(jax.random.key(52), (263, *SHAPE))
LABELS = jnp.argmax(IMAGES.reshape(263, -1)[:, :3], -1)
NETWORK = Classifier.create(MLP(3, (5,)), jax.random.key(53), SHAPE)


@pytest.fixture(scope="module")
def method():
    return cross_entropy_training(NETWORK, IMAGES, LABELS, steps=20, batch_size=8, learning_rate=0.1)


@pytest.fixture(scope="module")
def curve(method):
    """The accuracy after every step, in per cent, and the last state."""
    found = []

    def measure(step, state, metrics):
        answers = trained(NETWORK, state).predict(np.asarray(IMAGES)).argmax(1)
        found.append(100 * (answers == LABELS).mean())

    state = core.run(method, KEY, 20, chunk=1, callback=measure).state
    return np.array(found), state


@pytest.mark.slow
@pytest.mark.parametrize(("share", "evaluations", "places"), [(0.5, 10, range(10, 20)), (0.5, 3, (11, 15, 19)), (0.1, 10, (18, 19)), (0.01, 1, (19,))])  # fmt: skip
def test_mean_and_variance_of_the_last_part(method, curve, share, evaluations, places):
    watching = watched(method, NETWORK, IMAGES, LABELS, 20, share=share, evaluations=evaluations)
    found = core.run(watching, KEY, 20, chunk=10).state
    accuracies = curve[0][list(places)]
    assert int(found.count) == len(accuracies)
    assert float(found.mean) == pytest.approx(accuracies.mean(), abs=1e-3)
    variance = np.var(accuracies, ddof=1) if len(accuracies) > 1 else 0
    assert float(found.variance) == pytest.approx(variance, abs=1e-2)
    for ours, theirs in zip(jax.tree.leaves(found.state), jax.tree.leaves(curve[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_steps_beyond_are_not_measured(method):
    watching = watched(method, NETWORK, IMAGES, LABELS, 4, share=0.5)
    assert int(core.run(watching, KEY, 6, chunk=3).state.count) == 2


def test_refusals(method):
    for wrong in ({"share": 0.0}, {"share": 1.1}, {"evaluations": 0}):
        with pytest.raises(InputError, match="share in"):
            watched(method, NETWORK, IMAGES, LABELS, 20, **wrong)
    with pytest.raises(InputError, match="263 images and 3 labels"):
        watched(method, NETWORK, IMAGES, LABELS[:3], 20)
