"""Independent models: shares of the data, and many trainings in one program."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core import InputError, UnknownNameError, run
from dfke_jax.nn import Classifier, optimiser, trained
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.many import independent_training, member, separate_shares, shares
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import training

SHAPE = (4, 4, 1)
LABELS = jnp.arange(90) % 3
IMAGES = jax.random.uniform(jax.random.key(1), (90, *SHAPE))


@pytest.fixture(scope="module")
def network():
    return Classifier.create(MLP(3, (8,)), jax.random.key(0), SHAPE)


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


def test_separate_shares_are_disjoint_where_they_can_be():
    rows = separate_shares(100, 10, 10, 0)
    assert len(np.unique(rows)) == 100
    rows = separate_shares(100, 11, 10, 0)
    assert rows.shape == (11, 10)
    assert all(len(np.unique(row)) == 10 for row in rows)
    shared = [len(np.intersect1d(*pair)) / 50 for pair in itertools.combinations(separate_shares(100, 8, 50, 0), 2)]
    assert np.mean(shared) == pytest.approx(0.5, abs=0.05)
    for size, share in ((51, "51%"), (100, "100%"), (101, "100%")):
        with pytest.raises(InputError, match=f"any two would share {share} of their images; at least {2 * size}"):
            separate_shares(100, 2, size, 0)


@pytest.mark.slow
def test_a_member_is_a_model_trained_on_its_rows(network):
    """Against a single training on a copy of the rows."""
    table = shares(jax.random.key(5), 90, 2, "bootstrap", 20)
    rule = optimiser("sgd", 0.1)
    keys = jax.random.split(jax.random.key(6), 2)
    method = independent_training(network, IMAGES, LABELS, table, optimizer=rule, batch_size=8)
    together = trained(network, run(method, keys, 4, chunk=4).state)
    options = {"loss": Partial(cross_entropy), "optimizer": rule, "batch_size": 8}
    alone = training(network, IMAGES[table[1]], LABELS[table[1]], **options)
    state = run(alone, keys[1], 4, chunk=4).state
    one = member(network, run(method, keys, 4, chunk=4).state, 1)
    np.testing.assert_allclose(one(IMAGES), trained(network, state)(IMAGES), atol=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one[1], other, atol=1e-5), together.variables, state.variables
    )


def test_tables_and_labels_that_do_not_fit(network):
    with pytest.raises(InputError, match=r"table of shares is \(M, n\)"):
        independent_training(network, IMAGES, LABELS, jnp.arange(3), optimizer=optimiser())
    with pytest.raises(InputError, match="labels must have shape"):
        independent_training(network, IMAGES, LABELS[:4], jnp.zeros((2, 3), int), optimizer=optimiser())
