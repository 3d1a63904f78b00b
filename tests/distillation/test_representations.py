"""Distillation of representations: the losses, that a student learns them, and what is refused."""

import flax.linen as nn_linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core, nn
from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.distillation import representation_distillation
from dfke_jax.nn.layers import BatchNorm, flatten, record
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.observation import observe

SHAPE = (4, 4, 1)
IMAGES = jax.random.uniform(jax.random.key(1), (32, *SHAPE))
TEACHER = nn.Classifier.create(MLP(3, (16, 8)), jax.random.key(2), SHAPE)
STUDENT = nn.Classifier.create(MLP(2, (12, 8)), jax.random.key(3), SHAPE)
ANSWERS = TEACHER.features(IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mse", "nt_xent"])
def test_a_student_comes_closer(loss):
    method = representation_distillation(
        STUDENT, IMAGES, ANSWERS, loss=loss, temperature=0.2, steps=80, batch_size=16, learning_rate=1e-2
    )
    found = core.run(method, jax.random.key(4), 80, chunk=80)
    losses = found.metrics["loss"]
    assert losses[-5:].mean() < (0.5 if loss == "mse" else 0.9) * losses[:5].mean()
    state = method.init(jax.random.key(5))
    _, metrics = jax.jit(lambda m, k, s: m.step(k, s))(method, jax.random.key(6), state)
    rows = jax.random.choice(jax.random.split(jax.random.key(6))[0], 32, (16,), replace=False)
    given = nn.trained(STUDENT, state).features(IMAGES[rows])
    wanted = (
        np.mean(np.square(given - ANSWERS[rows])) if loss == "mse" else np.mean(nn.nt_xent(given, ANSWERS[rows], 0.2))
    )
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("answers", "changes", "error", "message"),
    [
        (ANSWERS[:, :5], {}, InputError, r"answers must be \(32, 8\)"),
        (ANSWERS[:31], {}, InputError, "a row for each image"),
        (ANSWERS.at[3, 2].set(jnp.nan), {}, InputError, "NaN or infinity"),
        (ANSWERS, {"batch_size": 33}, InputError, r"batch_size must lie in \[2, 32\]"),
        (ANSWERS, {"temperature": 0.0}, InputError, "temperature must be positive"),
        (ANSWERS, {"loss": "mae"}, UnknownNameError, "nearest: mse"),
    ],
)
def test_what_is_refused(answers, changes, error, message):
    with pytest.raises(error, match=message):
        representation_distillation(STUDENT, IMAGES, answers, **{"batch_size": 8, **changes})


class Noisy(nn_linen.Module):
    """Features behind batch normalisation and dropout."""

    @nn_linen.compact
    def __call__(self, x, *, train=False):
        x = BatchNorm(name="norm")(flatten(x), train=train)
        x = nn_linen.Dropout(0.5, deterministic=not train)(x)
        return nn_linen.Dense(2, name="head")(record(self, "features", x))


def test_a_step_is_in_training_mode():
    """Statistics of the batch, dropout by the step's key, running statistics that move, and the mean of the losses."""
    student = nn.Classifier.create(Noisy(), jax.random.key(7), SHAPE)
    answers = jax.random.normal(jax.random.key(8), (32, 16))
    method = representation_distillation(student, IMAGES, answers, steps=3, batch_size=32)
    start = method.init(jax.random.key(5))
    state, metrics = jax.jit(method.step)(jax.random.key(6), start)
    row_key, dropout_key = jax.random.split(jax.random.key(6))
    rows = jax.random.choice(row_key, 32, (32,), replace=False)
    x = np.asarray(IMAGES[rows], np.float64).reshape(32, 16)
    found = student.module.apply(
        start.variables, IMAGES[rows], train=True, mutable=["batch_stats", "intermediates"],
        rngs={"dropout": dropout_key},
    )[1]  # fmt: skip
    normal = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    # Dropout doubles or removes; which of the two is read from a pass with the same key.
    dropped = np.asarray(features_with(student, start.variables, IMAGES[rows], dropout_key)) == 0
    assert 0.3 < dropped.mean() < 0.7
    expected = np.square(np.where(dropped, 0, 2 * normal) - np.asarray(answers[rows])).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    for name in ("mean", "var"):
        moved = found["batch_stats"]["norm"][name]
        np.testing.assert_allclose(state.variables["batch_stats"]["norm"][name], moved, rtol=1e-5)
        assert np.abs(moved - start.variables["batch_stats"]["norm"][name]).max() > 1e-3


def features_with(student, variables, images, key):
    seen = observe(student.module, variables, images, train=True, activations=True, key=key)
    return seen.activations["features"]


@pytest.mark.parametrize("batch_size", [2, 32])
def test_the_smallest_and_the_largest_batch_are_allowed(batch_size):
    made = representation_distillation(STUDENT, IMAGES, ANSWERS, batch_size=batch_size)
    assert isinstance(made, core.Method)
