"""What every adapter shares: a model is held against its original before anything is made of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.nn.adapters import adapted
from dfke_jax.nn.adapters.adapted import Traced

SHAPE = (2, 2, 1)
WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def original(inputs):
    return inputs.reshape(len(inputs), -1) @ WEIGHTS


def forward(variables, inputs):
    return Traced(inputs.reshape(inputs.shape[0], -1) @ variables, {}, (), None)


def unknown(variables, inputs):
    raise NotImplementedError("transposed convolution\nand more")


def test_a_model_is_its_original():
    made = adapted(forward, jnp.asarray(WEIGHTS), original, SHAPE, name="net")
    rows = np.random.default_rng(1).random((5, *SHAPE), np.float32)
    np.testing.assert_allclose(made.predict(rows), original(rows), rtol=1e-5, atol=1e-6)
    assert made.lacks("moments")
    assert made.lacks("features")


def test_what_cannot_be_followed_is_said_in_words():
    with pytest.raises(
        InputError, match=r"net cannot be followed in JAX: NotImplementedError: transposed convolution$"
    ):
        adapted(unknown, jnp.asarray(WEIGHTS), original, SHAPE, name="net")


@pytest.mark.parametrize(
    ("answers", "options", "said"),
    [
        (lambda x: original(x) + 1e-2, {}, "differs from the original by"),
        (lambda x: original(x)[:, :1], {}, r"must answer 2 rows with shape \(2, K\)"),
        (lambda x: original(x) * np.nan, {}, "answers NaN or infinity"),
        (original, {"gives": "probabilities"}, "no probabilities where probabilities were declared"),
        (lambda x: np.full((2, 4), 0.25), {}, "answers probabilities where logits were declared"),
        (original, {"layers": {"a": "dense"}}, "unknown layer of net 'dense'"),
    ],
)
def test_a_model_that_is_another_is_refused(answers, options, said):
    with pytest.raises((InputError, UnknownNameError), match=said):
        adapted(forward, jnp.asarray(WEIGHTS), answers, SHAPE, name="net", **options)
