"""MixMatch and the rotation loss: formulas and whole steps against NumPy, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.extraction import (
    ActiveThiefSettings,
    CloneTraining,
    MixMatchSettings,
    PoolAttackSettings,
    RotationSettings,
    active_thief,
    mixmatch,
    random_attack,
    rotation,
)
from dfke_jax.extraction.mixmatch import guessed, mixed, mixmatch_loss, sharpened
from dfke_jax.extraction.pool import Answered, Labelled, new_clone
from dfke_jax.extraction.rotation import rotation_loss, turned
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Reveal

SHAPE = (4, 4, 1)
KEY = jax.random.key(5)
POOL = jax.random.uniform(jax.random.key(6), (24, *SHAPE))
# plain gradient descent, so that a step can be written out
RULE = CloneTraining(steps=2, batch_size=4, learning_rate=0.1, momentum=0.0, weight_decay=0.0, decay_at=())


@pytest.fixture(scope="module")
def linear():
    """Logits are linear in the pixels."""
    return Classifier.create(MLP(3, ()), jax.random.key(0), SHAPE)


def labelled(rows=6, classes=3):
    targets = np.random.default_rng(1).dirichlet(np.ones(classes), rows).astype(np.float32)
    empty = Answered(jnp.zeros(0, jnp.int32), jnp.zeros((0, classes)), jnp.zeros((), jnp.int32))
    answered = Answered(jnp.arange(rows, dtype=jnp.int32) * 2, jnp.asarray(targets), jnp.asarray(rows))
    return Labelled(answered, empty)


def softmax(logits):
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def test_guesses_are_sharpened_means():
    logits = np.random.default_rng(0).normal(size=(3, 5, 4))
    expected = np.empty((5, 4))
    for image in range(5):
        mean = sum(softmax(logits[k, image]) for k in range(3)) / 3
        powers = [value ** (1 / 0.4) for value in mean]
        expected[image] = np.array(powers) / sum(powers)
    np.testing.assert_allclose(guessed(jnp.asarray(logits, jnp.float32), 0.4), expected, rtol=2e-5)
    np.testing.assert_allclose(sharpened(jnp.array([[0.25, 0.75]]), 0.5), [[0.1, 0.9]], rtol=1e-6)
    assert not np.any(jax.grad(lambda x: guessed(x, 0.5)[0, 0])(jnp.ones((1, 1, 3))))


def test_mixing_and_the_loss_are_the_loops_over_images():
    rng = np.random.default_rng(2)
    images, targets = rng.random((7, *SHAPE)), rng.dirichlet(np.ones(3), 7)
    shares, order = rng.uniform(0.5, 1, 7), rng.permutation(7)
    got = mixed(*(jnp.asarray(x, jnp.float32) for x in (images, targets, shares)), jnp.asarray(order))
    for n in range(7):
        for side, whole in zip(got, (images, targets), strict=True):
            expected = shares[n] * whole[n] + (1 - shares[n]) * whole[order[n]]
            np.testing.assert_allclose(side[n], expected, rtol=1e-5)
    logits = rng.normal(size=(7, 3))
    entropy = np.mean([-(targets[n] * np.log(softmax(logits[n]))).sum() for n in range(3)])
    squares = np.mean([(softmax(logits[n])[c] - targets[n, c]) ** 2 for n in range(3, 7) for c in range(3)])
    ours = mixmatch_loss(
        *(jnp.asarray(x, jnp.float32) for x in (logits[:3], targets[:3], logits[3:], targets[3:])), 9.0
    )
    np.testing.assert_allclose(ours, entropy + 9.0 * squares, rtol=1e-5)


def naive_mixmatch(weights, bias, how, table, key, steps):
    """The whole training of a linear classifier, in float64; its draws are the attack's."""
    averages = [np.zeros_like(weights), np.zeros_like(bias)]
    pool = np.asarray(POOL, np.float64).reshape(len(POOL), -1)
    _, step_key = jax.random.split(key)
    for i in range(steps):
        keys = jax.random.split(jax.random.fold_in(step_key, i), 5 + how.augmentations)
        rows = np.asarray(jax.random.randint(keys[0], (4,), 0, 6))
        others = np.asarray(jax.random.randint(keys[1], (4,), 0, len(POOL)))
        own, free = pool[np.asarray(table.indices)[rows]], pool[others]
        mean = np.mean([softmax(free @ weights + bias)] * how.augmentations, 0)
        powers = mean ** (1 / how.temperature)
        guess = powers / powers.sum(-1, keepdims=True)
        images = np.concatenate([own] + [free] * how.augmentations)
        targets = np.concatenate([np.asarray(table.targets, np.float64)[rows]] + [guess] * how.augmentations)
        share_key, order_key = jax.random.split(keys[-2])
        share = np.asarray(jax.random.beta(share_key, how.mixing, how.mixing, (len(images),)), np.float64)[:, None]
        share, order = np.maximum(share, 1 - share), np.asarray(jax.random.permutation(order_key, len(images)))
        images = share * images + (1 - share) * images[order]
        targets = share * targets + (1 - share) * targets[order]
        p = softmax(images @ weights + bias)
        slope = (p - targets) / 4  # of the cross-entropy
        apart = 2 * (p - targets) / p[4:].size
        slope[4:] = (
            how.weight * min(1, i / max(1, how.ramp * steps)) * (p * (apart - (apart * p).sum(-1, keepdims=True)))[4:]
        )
        weights, bias = weights - 0.1 * images.T @ slope, bias - 0.1 * slope.sum(0)
        averages = [
            how.average * old + (1 - how.average) * new for old, new in zip(averages, (weights, bias), strict=True)
        ]
    return [part / (1 - how.average**steps) for part in averages]


def test_mixmatch_is_the_loop_written_out(linear):
    steps, how, table, key = 5, MixMatchSettings(ramp=0.5, average=0.9, weight=20.0), labelled(), jax.random.key(9)
    rule = dataclasses.replace(RULE, steps=steps)
    start = new_clone(linear, rule, jax.random.key(3))
    found = jax.jit(lambda key: mixmatch(how)(key, linear, POOL, table, rule, start))(key)
    begun = new_clone(linear, rule, jax.random.split(key)[0]).variables["params"]["head"]
    expected = naive_mixmatch(
        *(np.asarray(begun[n], np.float64) for n in ("kernel", "bias")), how, table.learnt, key, steps
    )
    got = found.variables["params"]["head"]
    np.testing.assert_allclose(got["kernel"], expected[0], rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(got["bias"], expected[1], rtol=2e-4, atol=1e-6)
    assert np.abs(np.asarray(got["kernel"]) - np.asarray(begun["kernel"])).max() > 1e-4


def test_turns_are_those_of_numpy_and_the_loss_a_sum():
    images = np.asarray(POOL[:3])
    expected = np.concatenate([[np.rot90(image, turn) for image in images] for turn in range(4)])
    np.testing.assert_array_equal(turned(POOL[:3]), expected)
    rng = np.random.default_rng(3)
    logits, targets, turns = rng.normal(size=(5, 3)), rng.dirichlet(np.ones(3), 5), rng.normal(size=(12, 4))
    supervised = -np.mean([(targets[n] * np.log(softmax(logits[n]))).sum() for n in range(5)])
    turning = -np.mean([np.log(softmax(turns[3 * r + n])[r]) for r in range(4) for n in range(3)])
    ours = rotation_loss(*(jnp.asarray(x, jnp.float32) for x in (logits, targets, turns)), 0.7)
    np.testing.assert_allclose(ours, supervised + 0.7 * turning, rtol=1e-5)


@pytest.mark.slow
def test_rotation_learns_turns_that_no_answer_names():
    """The features of a network that learnt turns tell them; those of one that did not, less so."""
    net = Classifier.create(MLP(3, (16,)), jax.random.key(0), SHAPE)
    ramp = jnp.linspace(0, 1, 4)[None, None, :, None] * jnp.ones((24, 4, 1, 1))  # brighter to the right
    rule = CloneTraining(steps=150, batch_size=4, optimizer="adam", learning_rate=1e-2, weight_decay=0.0, decay_at=())
    start = new_clone(net, rule, jax.random.key(3))
    table = labelled()
    learn = jax.jit(
        lambda how: rotation(RotationSettings(how, 8))(KEY, net, ramp, table, rule, start), static_argnums=0
    )
    seen = {}
    for weight in (0.0, 4.0):
        found = learn(weight).variables["params"]
        features = np.maximum(np.asarray(turned(ramp[:1])).reshape(4, -1) @ np.asarray(found["dense1"]["kernel"]), 0)
        seen[weight] = min(np.abs(features[i] - features[j]).max() for i in range(4) for j in range(i))
    assert seen[4.0] > 2 * seen[0.0]
    begun = new_clone(net, rule, jax.random.split(KEY, 3)[0]).variables["params"]
    assert jax.tree.structure(found) == jax.tree.structure(begun)


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(mixmatch(), id="mixmatch"),
        pytest.param(rotation(RotationSettings(images=2)), id="rotation", marks=pytest.mark.slow),
    ],
)
def test_attacks_learn_by_them_and_held_out_rows_are_refused(way):
    victim = Classifier.create(MLP(3, ()), jax.random.key(7), SHAPE)
    clone = Classifier.create(MLP(3, (8,)), jax.random.key(8), SHAPE)
    rule = CloneTraining(steps=3, batch_size=4, optimizer="adam", decay_at=())
    attack = random_attack(clone, POOL, Reveal(), PoolAttackSettings(10, 5, 0.0, rule), learning=way)
    oracle = jax.tree_util.Partial(lambda victim, rows: jax.nn.softmax(victim(rows)), victim)
    state = core.run(core.against(attack, oracle), KEY, 2).state
    plain = random_attack(clone, POOL, Reveal(), PoolAttackSettings(10, 5, 0.0, rule))
    other = core.run(core.against(plain, oracle), KEY, 2).state
    np.testing.assert_array_equal(state.labelled.learnt.indices, other.labelled.learnt.indices)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.clone.variables, other.clone.variables)
    assert max(jax.tree.leaves(apart)) > 1e-4
    held = random_attack(clone, POOL, Reveal(), PoolAttackSettings(10, 5, 0.2, rule), learning=way)
    with pytest.raises(InputError, match="validation=0"):
        core.run(core.against(held, oracle), KEY, 2)


@pytest.mark.slow
def test_active_learning_combines_with_mixmatch():
    victim = Classifier.create(MLP(3, ()), jax.random.key(7), SHAPE)
    clone = Classifier.create(MLP(3, (8,)), jax.random.key(8), SHAPE)
    rule = CloneTraining(steps=3, batch_size=4, optimizer="adam", decay_at=())
    settings = ActiveThiefSettings(12, 4, 0.0, rule, selector="entropy", round_steps=2)
    attack = active_thief(clone, POOL, Reveal(), settings, learning=mixmatch())
    oracle = jax.tree_util.Partial(lambda victim, rows: jax.nn.softmax(victim(rows)), victim)
    state = core.run(core.against(attack, oracle), KEY, 3).state
    assert len(set(np.asarray(state.labelled.learnt.indices).tolist())) == 12


def test_numbers_outside_their_range_are_refused():
    for wrong in ({"temperature": 0.0}, {"temperature": 1.5}, {"mixing": 0.0}, {"augmentations": 0}):
        with pytest.raises(InputError, match="augmentations must be at least 1"):
            MixMatchSettings(**wrong)
    for wrong in ({"weight": -1.0}, {"ramp": 2.0}, {"average": 1.0}):
        with pytest.raises(InputError, match="weight must not be negative"):
            MixMatchSettings(**wrong)
    with pytest.raises(InputError, match="images at least 1"):
        RotationSettings(images=0)
    with pytest.raises(InputError, match="square"):
        turned(jnp.zeros((1, 4, 5, 1)))
    with pytest.raises(InputError, match="bare function"):
        random_attack(
            Classifier.create(MLP(3, ()), KEY, SHAPE),
            POOL,
            Reveal(),
            PoolAttackSettings(10, 5),
            learning=lambda *a: None,
        )
