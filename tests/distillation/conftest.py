"""Small networks and images that the distillation tests share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.mlp import MLP

SHAPE = (6, 6, 1)


@pytest.fixture(scope="session")
def teacher(real):
    """An MLP that knows three classes: a random layer, and a last one fitted by least squares."""
    images, labels = real
    made = Classifier.create(MLP(3, (16,)), jax.random.key(1), SHAPE)
    features = np.asarray(made.features(jnp.asarray(images)))
    wanted = 8 * (np.eye(3)[labels] - 1 / 3)
    kernel = np.linalg.lstsq(features, wanted, rcond=None)[0].astype(np.float32)
    params = made.variables["params"]
    made = made.replace(variables={"params": {**params, "head": {**params["head"], "kernel": jnp.asarray(kernel)}}})
    assert (made.predict(images).argmax(1) == labels).mean() > 0.9
    return made


@pytest.fixture(scope="session")
def bn_teacher():
    """One with batch normalisation, whose stored statistics are those of some images."""
    made = Classifier.create(MLP(3, (8,), batch_norm=True), jax.random.key(2), SHAPE)
    images = 0.2 * jax.random.uniform(jax.random.key(3), (50, *SHAPE)) + 0.4
    moments = made.observe(images, moments=True).moments
    stored = {"dense1_norm": {"mean": moments[0].mean, "var": moments[0].var}}
    assert jax.tree.structure(stored) == jax.tree.structure(made.variables["batch_stats"])
    return made.replace(variables={**made.variables, "batch_stats": stored})


@pytest.fixture(scope="session")
def student():
    return Classifier.create(MLP(3, (4,), batch_norm=True), jax.random.key(4), SHAPE)


@pytest.fixture(scope="session")
def real():
    """Images and labels, 20 of every class, each class around a pattern of its own."""
    rng = np.random.default_rng(5)
    labels = np.arange(60) % 3
    centres = rng.uniform(0.2, 0.8, (3, *SHAPE))
    images = np.clip(centres[labels] + 0.15 * rng.normal(size=(60, *SHAPE)), 0, 1).astype(np.float32)
    return images, labels


@pytest.fixture(scope="session")
def close():
    def check(first, second, atol=1e-5):
        assert jax.tree.structure(first) == jax.tree.structure(second)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            np.testing.assert_allclose(jnp.asarray(a), jnp.asarray(b), atol=atol)

    return check


class WrittenOut:
    """The teacher, a network of one hidden layer, in NumPy and float64; and Adam on images within a box."""

    def __init__(self, classifier):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), classifier.variables["params"])
        self.w1, self.b1 = params["dense1"]["kernel"], params["dense1"]["bias"]
        self.w2, self.b2 = params["head"]["kernel"], params["head"]["bias"]

    def hidden(self, x):
        """What `activations` calls dense1: before the ReLU."""
        return x.reshape(len(x), -1) @ self.w1 + self.b1

    def logits(self, x):
        return np.maximum(self.hidden(x), 0) @ self.w2 + self.b2

    def back(self, x, of_logits, of_hidden=0.0):
        """The gradient of a loss on the pixels, from those on logits and hidden layer."""
        return ((of_logits @ self.w2.T * (self.hidden(x) > 0) + of_hidden) @ self.w1.T).reshape(x.shape)

    @staticmethod
    def softmax(logits):
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    @staticmethod
    def adam(x, slope, steps, rate, project):
        """Images after `steps` updates by ``slope(x, step)``, each followed by ``project(x)``."""
        first, second = np.zeros((2, *x.shape))
        for step in range(steps):
            g = slope(x, step)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            direction = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
            x = project(x - rate * direction)
        return x


@pytest.fixture(scope="session")
def wide(teacher):
    """The teacher on a wider box than [0, 1], and the same in NumPy."""
    made = teacher.replace(preprocessing=Preprocessing(box=(-0.25, 1.5)))
    return made, WrittenOut(made)
