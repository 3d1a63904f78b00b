"""Jacobian augmentation: the new points, the order in which they are asked, and what is never asked twice."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.extraction import CloneTraining, JacobianSettings, jacobian_augmentation
from dfke_jax.extraction.jacobian_augmentation import jacobian_rows
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import trained
from dfke_jax.oracle import Reveal

SHAPE = (4, 4, 1)
KEY = jax.random.key(61)
SEEDS = jax.random.uniform(jax.random.key(62), (5, *SHAPE))
TINY = CloneTraining(steps=5, batch_size=4, learning_rate=0.1, decay_at=())


@pytest.fixture(scope="module")
def net():
    return Classifier.create(MLP(3, (8,)), jax.random.key(0), SHAPE)


def test_rows_of_a_linear_clone_are_the_closed_form():
    """∂ log p_y/∂x = W (e_y − p)."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(16, 3))
    classifier = lambda images: images.reshape(images.shape[0], -1) @ jnp.asarray(weights, jnp.float32)
    labels = np.array([0, 1, 2, 1, 0])
    made = jacobian_rows(classifier, SEEDS, jnp.asarray(labels), 0.1, (0.05, 0.9))
    for image, y, row in zip(np.asarray(SEEDS, np.float64).reshape(5, -1), labels, made, strict=True):
        scores = np.exp(image @ weights)
        slope = weights @ (np.eye(3)[y] - scores / scores.sum())
        np.testing.assert_allclose(row.ravel(), np.clip(image + 0.1 * np.sign(slope), 0.05, 0.9), atol=1e-6)


@pytest.fixture(scope="module")
def played(net):
    """ρ = 3: what was asked at every step, and the clone before it, from a victim on the host."""
    settings = JacobianSettings(5, 3, 0.1, True, TINY)
    attack = jacobian_augmentation(net, SEEDS, Reveal(), settings)
    assert (settings.rounds, settings.budget) == (8, 40)
    victim, asked, clones = Classifier.create(MLP(3, (8,)), jax.random.key(9), SHAPE), [], []

    def answers(rows):
        asked.append(rows)
        return np.asarray(jax.nn.softmax(victim(jnp.asarray(rows))))

    method = core.against(attack, answers, host=True)
    state = method.init(KEY)
    for step in range(8):
        clones.append(state.clone)
        state, _ = method.step(jax.random.fold_in(KEY, step), state)
    return asked, clones, state, victim


@pytest.mark.slow
def test_every_doubling_adds_one_child_to_every_row(net, played):
    asked, clones, state, victim = played
    everything = np.concatenate(asked)
    np.testing.assert_array_equal(asked[0], SEEDS)
    np.testing.assert_array_equal(state.images, everything)
    labels = np.asarray(victim(jnp.asarray(everything))).argmax(-1)
    np.testing.assert_array_equal(np.asarray(state.targets), np.eye(3)[labels])
    for doubling in range(3):
        size = 5 * 2**doubling
        clone = trained(net, clones[2**doubling])  # as it was when the doubling began
        made = jacobian_rows(clone, jnp.asarray(everything[:size]), jnp.asarray(labels[:size]), 0.1)
        np.testing.assert_allclose(everything[size : 2 * size], made, atol=1e-6)


def test_the_clone_changes_only_when_the_set_has_doubled(played):
    _, clones, state, _ = played
    kernels = [np.asarray(jax.tree.leaves(clone.variables)[-1]) for clone in [*clones, state.clone]]
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(kernels)]
    assert changed == [True, True, False, True, False, False, False, True]


def test_settings_that_mean_nothing(net):
    with pytest.raises(InputError, match="step_size"):
        JacobianSettings(step_size=0)
    with pytest.raises(InputError, match="got 4 and 5 seeds"):
        jacobian_augmentation(net, SEEDS, Reveal(), JacobianSettings(4, 2, clone=TINY))
    with pytest.raises(InputError, match="as many images"):
        jacobian_augmentation(net, SEEDS, Reveal(), JacobianSettings(6, 2, clone=TINY))


def test_the_ends_of_the_settings(net):
    assert JacobianSettings(1, 0, 1e-6).budget == 1
    for options in ({"rows_per_step": 0}, {"augmentations": -1}, {"step_size": 0.0}):
        with pytest.raises(InputError, match="rows_per_step must be at least 1, augmentations not negative"):
            JacobianSettings(**options)
    assert JacobianSettings(7, 3).budget == 56
    assert JacobianSettings(7, 3).with_budget(47).rows_per_step == 5
    jacobian_augmentation(net, SEEDS, Reveal(), JacobianSettings(5, 1, clone=TINY))


def test_nothing_is_written_beyond_the_budget(net, played):
    """A step too many leaves images, answers and counts as they were."""
    _, _, state, victim = played
    attack = jacobian_augmentation(net, SEEDS, Reveal(), JacobianSettings(5, 3, 0.1, True, TINY))
    rows = jnp.ones((5, *SHAPE))
    after, metrics = attack.tell(KEY, state, rows, jax.nn.softmax(victim(rows)))
    np.testing.assert_array_equal(after.images, state.images)
    np.testing.assert_array_equal(after.targets, state.targets)
    assert (after.filled, metrics["asked"]) == (40, 40)


def test_the_augmentation_is_that_of_the_training(net):
    learnt = []
    for augment in (None, Partial(lambda key, images: 1 - images)):
        attack = jacobian_augmentation(net, SEEDS, Reveal(), JacobianSettings(5, 0, 0.1, True, TINY), augment=augment)
        state = attack.init(KEY)
        state, rows = jax.jit(attack.ask)(KEY, state)
        state, _ = attack.tell(KEY, state, rows, jax.nn.softmax(net(rows)))
        learnt.append(jax.tree.leaves(state.clone.variables))
    assert any(not np.allclose(a, b) for a, b in zip(*learnt, strict=True))
