"""Null models: shares of the data, many trainings in one program, and what they answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core import InputError, UnknownNameError, run
from dfke_jax.nn import Classifier, optimiser, trained
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import training
from dfke_jax.watermarking import TriggerSet, null_matches, null_population, null_training, shares, stacked_answers

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


def test_disjoint_shares_share_nothing():
    table = np.asarray(shares(jax.random.key(0), 50, 4, "disjoint"))
    assert table.shape == (4, 12)
    assert len(np.unique(table)) == 48
    assert shares(jax.random.key(0), 50, 4, "disjoint", 5).shape == (4, 5)
    assert np.unique(shares(jax.random.key(1), 50, 4, "disjoint")).tolist() != sorted(range(48)), "shuffled first"


def test_bootstrapped_shares_repeat_rows():
    table = np.asarray(shares(jax.random.key(0), 1000, 20, "bootstrap"))
    assert table.shape == (20, 1000)
    present = np.mean([len(np.unique(row)) for row in table]) / 1000
    assert present == pytest.approx(1 - 1 / np.e, abs=0.01)
    assert len({row.tobytes() for row in table}) == 20


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((10, 11, "disjoint"), InputError, "11 disjoint shares of 0 rows from 10"),
        ((10, 2, "disjoint", 6), InputError, "2 disjoint shares of 6"),
        ((10, 0, "disjoint"), InputError, "0 models"),
        ((10, 1, "bootstrap", 0), InputError, "at least one row"),
        ((10, 1, "disjunct"), UnknownNameError, "nearest: disjoint"),
    ],
)
def test_shares_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        shares(jax.random.key(0), *arguments)


def test_every_model_learns_the_task_and_is_its_own(stack):
    answers = np.asarray(stacked_answers(stack, IMAGES))
    assert answers.shape == (5, 90)
    assert ((answers == np.asarray(LABELS)).mean(1) > 0.95).all()
    kernels = np.asarray(stack.head_kernel)
    assert len({kernel.tobytes() for kernel in kernels}) == 5
    for i in range(5):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], stack)
        np.testing.assert_array_equal(answers[i], one.predict(IMAGES).argmax(1))


def test_a_member_is_a_model_trained_on_its_rows(network):
    """Against a single training on a copy of the rows."""
    table = shares(jax.random.key(5), 90, 2, "bootstrap", 20)
    rule = optimiser("sgd", 0.1)
    keys = jax.random.split(jax.random.key(6), 2)
    method = null_training(network, IMAGES, LABELS, table, optimizer=rule, batch_size=8)
    together = trained(network, run(method, keys, 4, chunk=4).state)
    options = {"loss": Partial(cross_entropy), "optimizer": rule, "batch_size": 8}
    alone = training(network, IMAGES[table[1]], LABELS[table[1]], **options)
    state = run(alone, keys[1], 4, chunk=4).state
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one[1], other, atol=1e-5), together.variables, state.variables
    )


def test_matches_are_counted_for_each_model(stack):
    images = jax.random.uniform(jax.random.key(7), (30, *SHAPE))
    labels = jax.random.randint(jax.random.key(8), (30,), 0, 3)
    found = null_matches(TriggerSet(images, labels), stack)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], stack).predict(images).argmax(1) for i in range(5)]
    np.testing.assert_array_equal(found, [(answers == np.asarray(labels)).sum() for answers in each])


def test_refusals(network):
    with pytest.raises(InputError, match="leading axis M"):
        stacked_answers(network, IMAGES)
    with pytest.raises(InputError, match=r"table of shares is \(M, n\)"):
        null_training(network, IMAGES, LABELS, jnp.arange(3), optimizer=optimiser())
    with pytest.raises(InputError, match="labels must have shape"):
        null_population(network, IMAGES, LABELS[:4], jax.random.key(0), models=2)
