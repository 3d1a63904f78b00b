"""The generator's gradient from explanations, against automatic differentiation through the victim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.extraction import MEGEXSettings, megex
from dfke_jax.extraction.megex import explained_gradient

KEY = jax.random.key(91)


def test_the_gradient_is_exact(classifier, oracles):
    victim, clone = classifier(0), classifier(1)
    images = jax.random.uniform(KEY, (6, 8, 8, 1))
    answers = oracles["explained"](victim)(images)

    def loss(images):
        logs = jax.nn.log_softmax(4 * victim(images))
        return jnp.mean(jnp.abs(logs - logs.mean(-1, keepdims=True) - clone(images)), -1)

    exact = jax.grad(lambda images: loss(images).sum())(images)
    gradient, value = explained_gradient(answers.probabilities, answers.explanation, clone, images)
    np.testing.assert_allclose(gradient, exact, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(value, loss(images), rtol=1e-4)


def test_probabilities_of_zero_do_no_harm(classifier):
    p = jnp.asarray([[1.0, 0.0, 0.0]])
    gradient, _ = explained_gradient(p, jnp.zeros((1, 3, 8, 8, 1)), classifier(1), jnp.full((1, 8, 8, 1), 0.5))
    assert np.isfinite(gradient).all()


def test_the_clone_learns(classifier, oracles):
    settings = MEGEXSettings(
        batch_size=16, clone_batches=2, latent=6, width=2, schedule="constant", clone_optimizer="adam", clone_rate=1e-2
    )
    assert settings.rows_per_step == 48
    assert MEGEXSettings().rows_per_step == 6 * 256
    run = core.run(core.against(megex(classifier(1), settings), oracles["explained"](classifier(0))), KEY, 40, chunk=40)
    assert run.metrics["loss"][-5:].mean() < 0.4 * run.metrics["loss"][:2].mean()


def test_bad_input(classifier):
    with pytest.raises(InputError, match="one map for every class"):
        explained_gradient(jnp.ones((2, 3)) / 3, jnp.zeros((2, 8, 8, 1)), classifier(1), jnp.zeros((2, 8, 8, 1)))
    with pytest.raises(InputError, match="l1 loss on logits, not 'kl'"):
        megex(classifier(1), MEGEXSettings(loss="kl", schedule="constant"))
