"""Distillation of representations: the losses, that a student learns them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core, nn
from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.distillation import representation_distillation
from dfke_jax.nn.mlp import MLP

SHAPE = (4, 4, 1)
IMAGES = jax.random.uniform(jax.random.key(1), (32, *SHAPE))
TEACHER = nn.Classifier.create(MLP(3, (16, 8)), jax.random.key(2), SHAPE)
STUDENT = nn.Classifier.create(MLP(2, (12, 8)), jax.random.key(3), SHAPE)
ANSWERS = TEACHER.features(IMAGES)


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
