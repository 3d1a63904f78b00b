"""What methods that optimise noise share: the start is drawn first, and what is the method's own."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core import InputError, record
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.synthesis import Synthesis, SynthesisSettings

KEY = jax.random.key(91)
SETTINGS = SynthesisSettings(steps=400, learning_rate=0.05, start="uniform")


@record
class Greys(Synthesis[SynthesisSettings]):
    """Images whose every pixel is a tenth of their label, and a hundredth of a drawn number."""

    def wanted(self, key, labels, rows):
        return labels / 10 + jax.random.uniform(key, labels.shape) / 100

    def loss(self, key, images, wanted):
        return jnp.square(images - wanted[:, None, None, None]).mean((1, 2, 3))


@record
class Together(Greys):
    independent: ClassVar[bool] = False


def made(kind=Greys, **changes):
    teacher = Classifier.create(MLP(3, (4,)), jax.random.key(0), (2, 3, 1))
    return kind(teacher=teacher, settings=SETTINGS, **{"count": 12, "batch_size": 6, **changes})


def test_images_become_what_is_wanted():
    batch = jax.jit(lambda synthesis: synthesis(KEY, 6 + jnp.arange(6), ()))(made())
    drawn = np.asarray(jax.random.uniform(jax.random.split(KEY, 3)[1], (6,)))
    np.testing.assert_array_equal(batch.labels, np.arange(6) % 3)
    expected = np.arange(6) % 3 / 10 + drawn / 100
    np.testing.assert_allclose(batch.images, np.broadcast_to(expected[:, None, None, None], (6, 2, 3, 1)), atol=0.005)
    assert batch.carry == ()
    assert 0 <= batch.metrics["loss"] < 1e-3
    together = jax.jit(lambda synthesis: synthesis(KEY, 6 + jnp.arange(6), ()))(made(Together))
    np.testing.assert_allclose(together.images, batch.images, atol=1e-6)


def test_the_control_has_the_images_that_the_method_begins_with():
    """The start's key is the first split of the batch's, whatever the method draws after it."""
    control = made(control=True)(KEY, jnp.arange(6), ())
    start = SETTINGS.draw(jax.random.split(KEY, 3)[0], (6, 2, 3, 1))
    np.testing.assert_array_equal(control.images, start)
    assert control.metrics == {}
    still = dataclasses.replace(made(), settings=dataclasses.replace(SETTINGS, steps=1, learning_rate=1e-9))
    np.testing.assert_allclose(still(KEY, jnp.arange(6), ()).images, start, atol=1e-6)


def test_batches_must_fill_the_pool():
    with pytest.raises(InputError, match="multiple of the batch size"):
        made(count=7).method()
