"""Copycat: labels alone, and augmentation that keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.data.augment import affine, compose, flip, gaussian_noise, identity
from dfke_jax.extraction import CloneTraining, PoolAttackSettings, copycat, heavy_augmentation
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Reveal

KEY = jax.random.key(71)
POOL = jax.random.uniform(KEY, (12, 6, 6, 1))
NET = Classifier.create(MLP(3, (8,)), jax.random.key(0), (6, 6, 1))
SETTINGS = PoolAttackSettings(12, 4, 0.0, CloneTraining(steps=6, batch_size=4, decay_at=()))


def probabilities(victim, rows):
    return jax.nn.softmax(victim(rows))


def labels(victim, rows):
    return jnp.argmax(victim(rows), -1).astype(jnp.int32)


@pytest.mark.slow
def test_probabilities_are_worth_no_more_than_their_labels():
    victim = Classifier.create(MLP(3, (8,)), jax.random.key(1), (6, 6, 1))
    soft, hard = (
        core.run(core.against(copycat(NET, POOL, reveal, SETTINGS), Partial(answer, victim)), KEY, 3).state
        for reveal, answer in ((Reveal(), probabilities), (Reveal("label"), labels))
    )
    for a, b in zip(jax.tree.leaves(soft), jax.tree.leaves(hard), strict=True):
        np.testing.assert_array_equal(a, b)
    truth = np.asarray(victim(POOL)).argmax(-1)[np.asarray(soft.labelled.learnt.indices)]
    np.testing.assert_array_equal(soft.labelled.learnt.targets, np.eye(3)[truth])


@pytest.mark.slow
def test_augmentation_is_used_and_can_be_left_out():
    method = lambda augment: core.against(
        copycat(NET, POOL, Reveal(), SETTINGS, augment=augment), Partial(probabilities, NET)
    )
    with_it, without = (core.run(method(augment), KEY, 3).state.clone.variables for augment in (None, identity()))
    differ = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(with_it), jax.tree.leaves(without), strict=True)]
    assert any(differ)


def test_a_bare_function_as_augmentation_is_refused_in_words():
    with pytest.raises(core.InputError, match=r"augment: identity is a bare function.*identity\(\), not identity"):
        copycat(NET, POOL, Reveal(), SETTINGS, augment=identity)
    with pytest.raises(core.InputError, match="transforms: flip is a bare function"):
        compose(identity(), flip)
    held = core.method(lambda f, key: key, lambda f, key, state: (f(key), {"x": 0.0}), lambda key: key)
    with pytest.raises(core.InputError, match=r"method: .*<lambda> is a bare function"):
        core.run(held, KEY, 1)


def test_heavy_augmentation_stays_in_the_box_and_near_the_image():
    image = np.zeros((200, 28, 28, 1), np.float32)
    image[:, 12:16, 12:16] = 1
    made = np.asarray(heavy_augmentation(28)(KEY, jnp.asarray(image)))
    assert made.min() >= 0
    assert made.max() <= 1
    place = np.arange(28)
    for axis in (1, 2):
        mass = np.maximum(made - 0.2, 0).sum((3 - axis, 3))
        centre = (mass * place[None]).sum(1) / mass.sum(1)
        assert (np.abs(centre - 13.5) < 2.3).all()
        assert centre.std() > 0.5


def test_the_augmentation_is_what_its_description_says():
    """15 degrees, 0.85 to 1.15, a fourteenth of the width (not of the height), noise of up to 0.05."""
    net = Classifier.create(MLP(3, (8,)), jax.random.key(0), (6, 28, 1))
    images = jax.random.uniform(KEY, (12, 6, 28, 1))
    used = copycat(net, images, Reveal(), SETTINGS).tell.args[0].augment
    said = compose(affine(np.pi / 12, (0.85, 1.15), 2.0), gaussian_noise(0.05))
    np.testing.assert_allclose(used(KEY, images), said(KEY, images), atol=1e-6)


@pytest.mark.slow
def test_training_after_every_step_is_handed_on():
    method = core.against(copycat(NET, POOL, Reveal(), SETTINGS, train_every=1), Partial(probabilities, NET))
    start = method.init(KEY)
    after, _ = method.step(KEY, start)
    old, new = (jax.tree.leaves(state.clone.variables) for state in (start, after))
    assert any(not np.array_equal(a, b) for a, b in zip(old, new, strict=True))
