"""Making keys and marking networks, and what non-trivial ownership means."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy import stats

from dfke_jax.core import InputError, UnknownNameError, run
from dfke_jax.nn import Classifier, trained
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import training
from dfke_jax.watermarking import MarkingSettings, abstract_images, keygen, mark, null_matches, rejected_pairs, verify

SHAPE, CLASSES = (8, 8, 1), 10
SETTINGS = MarkingSettings(steps=300, batch_size=50, triggers_per_batch=10, learning_rate=0.05, decay_every=200)


def task(key, count):
    """Ten noisy prototypes."""
    label_key, noise_key = jax.random.split(key)
    centres = jax.random.uniform(jax.random.key(9), (CLASSES, *SHAPE))
    labels = jax.random.randint(label_key, (count,), 0, CLASSES)
    noisy = centres[labels] + 0.15 * jax.random.normal(noise_key, (count, *SHAPE))
    return jnp.rint(255 * jnp.clip(noisy, 0, 1)).astype(jnp.uint8), labels


IMAGES, LABELS = task(jax.random.key(1), 1000)
TEST_IMAGES, TEST_LABELS = task(jax.random.key(2), 500)


@pytest.fixture(scope="module")
def network():
    return Classifier.create(MLP(CLASSES, (64,)), jax.random.key(0), SHAPE)


@pytest.fixture(scope="module")
def keys():
    return keygen(CLASSES, shape=SHAPE, count=40, kind="noise", key=jax.random.key(5))


@pytest.fixture(scope="module")
def clean(network):
    method = training(
        network, IMAGES, LABELS, loss=Partial(cross_entropy), optimizer=SETTINGS.optimizer, batch_size=50
    )  # fmt: skip
    return trained(network, run(method, jax.random.key(3), 300, chunk=300).state)


@pytest.fixture(scope="module")
def marked(network, clean, keys):
    """From scratch and pre-trained."""
    scratch = mark(network, IMAGES, LABELS, keys[0], SETTINGS)
    continued = mark(clean, IMAGES, LABELS, keys[0], SETTINGS, pretrained=True)
    return [
        trained(network, run(method, jax.random.key(4), 300, chunk=300).state) for method in (scratch, continued)
    ]  # fmt: skip


def accuracy(network):
    return float((network.predict(TEST_IMAGES).argmax(1) == TEST_LABELS).mean())


def test_marked_networks_are_recognised_and_as_good(clean, marked, keys):
    assert accuracy(clean) > 0.95
    before = verify(*keys, clean, alpha=1e-3)
    assert not before.marked
    assert not before.accepted
    for network in marked:
        verdict = verify(*keys, network, alpha=1e-3)
        assert verdict.accepted
        assert verdict.marked
        assert verdict.matches >= 38
        assert accuracy(network) > accuracy(clean) - 0.02


def test_keys_that_were_there_before_the_model_say_nothing(marked):
    """Non-trivial ownership: of keys that a network was not marked with, matches are those of chance."""
    images = abstract_images(jax.random.key(6), 50, SHAPE, "noise")
    found = []
    for seed in range(40):
        marking, verification = keygen(CLASSES, images=images, key=jax.random.key(1000 + seed))
        verdict = verify(marking, verification, marked[0], alpha=1e-4)
        assert not verdict.accepted
        assert not verdict.marked
        found.append(verdict.matches)
    # labels are independent draws, so that the matches of all keys are Bin(2000, 1/10) together
    assert stats.binomtest(sum(found), 50 * 40, 0.1).pvalue > 1e-4


def test_labels_of_real_images_are_wrong_and_match_rarely(clean):
    images, truth = TEST_IMAGES[:200], np.asarray(TEST_LABELS[:200])
    marking, verification = keygen(CLASSES, images=images, truth=truth, key=jax.random.key(7))
    assert (marking.labels != truth).all()
    assert (verification.num_classes, len(verification)) == (CLASSES, 200)
    np.testing.assert_array_equal(marking.images, images)
    verdict = verify(marking, verification, clean, truth=truth)
    assert verdict.chance == pytest.approx(1 / 9)
    assert verdict.matches < 10, "it answers truly"
    assert verdict.p_value > 0.99


def test_keys_are_drawn_from_the_key_or_the_system():
    first, _ = keygen(CLASSES, shape=SHAPE, count=5, kind="noise", key=jax.random.key(1))
    again, _ = keygen(CLASSES, shape=SHAPE, count=5, kind="noise", key=jax.random.key(1))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.image_nonces != again.image_nonces, "random bytes never come from a seed"
    one, two = (keygen(CLASSES, shape=SHAPE, count=5, kind="noise") for _ in range(2))
    assert (one[0].images != two[0].images).any()
    for marking, verification in (one, two):
        assert rejected_pairs(marking, verification) == ()
    assert rejected_pairs(one[0], two[1]) == tuple(range(5))


def test_abstract_images_differ_and_fill_the_range():
    for kind, shape in (("shapes", (8, 8, 3)), ("noise", (8, 6, 2))):
        images = abstract_images(jax.random.key(2), 20, shape, kind)
        assert images.shape == (20, *shape)
        assert images.dtype == np.uint8
        assert len({image.tobytes() for image in images}) == 20
        assert images.std((1, 2, 3)).min() > 5
        np.testing.assert_array_equal(images, abstract_images(jax.random.key(2), 20, shape, kind))
    with pytest.raises(UnknownNameError, match="nearest: shapes"):
        abstract_images(jax.random.key(0), 1, SHAPE, "shape")
    with pytest.raises(InputError, match="count must be"):
        abstract_images(jax.random.key(0), 0, SHAPE)


def test_floats_are_rounded_to_what_is_committed_to():
    images = np.array([[0.0, 0.5], [1.0, 0.2]], np.float32).reshape(2, 2, 1, 1)
    marking, _ = keygen(3, images=images)
    np.testing.assert_array_equal(marking.images.ravel(), [0, 128, 255, 51])


def test_a_step_is_sgd_with_momentum_and_decay():
    """Five updates against NumPy: rate dropping tenfold after three, decay added to the gradient, no Nesterov."""
    settings = MarkingSettings(learning_rate=0.2, decay_every=3, momentum=0.8, weight_decay=0.1)
    weight, state = jnp.asarray(1.0), settings.optimizer.init(jnp.asarray(1.0))
    expected, velocity = 1.0, 0.0
    for step in range(5):
        gradient = 0.3 + step
        update, state = settings.optimizer.update(jnp.asarray(gradient), state, weight)
        weight = optax.apply_updates(weight, update)
        velocity = 0.8 * velocity + gradient + 0.1 * expected
        expected -= 0.2 * 0.1 ** (step // 3) * velocity
        assert float(weight) == pytest.approx(expected, rel=1e-5)
    assert settings.optimizer is MarkingSettings(
        learning_rate=0.2, decay_every=3, momentum=0.8, weight_decay=0.1
    ).optimizer  # fmt: skip


def test_the_loss_is_one_mean_over_task_and_triggers(network, keys):
    method = mark(network, IMAGES, LABELS, keys[0], MarkingSettings(batch_size=6, triggers_per_batch=3))
    state = jax.jit(lambda method, key: method.init(key))(method, jax.random.key(0))
    key = jax.random.key(1)
    _, metrics = jax.jit(lambda method, *arguments: method.step(*arguments))(method, key, state)
    rows = np.asarray(jax.random.randint(jax.random.split(key, 3)[0], (6,), 0, len(IMAGES)))
    chosen = np.asarray(jax.random.choice(jax.random.fold_in(key, 3), 40, (3,), replace=False))
    pixels = np.concatenate([np.asarray(IMAGES)[rows], keys[0].images[chosen]]) / np.float32(255)
    labels = np.concatenate([np.asarray(LABELS)[rows], keys[0].labels[chosen]])
    logits = np.asarray(trained(network, state).logits(jnp.asarray(pixels)), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(9), labels]
    assert float(metrics["loss"]) == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "at least 2 classes"),
        ({"shape": None}, "either the shape"),
        ({"images": np.zeros((1, *SHAPE), np.uint8)}, "either the shape"),
        ({"truth": [1]}, "no true labels"),
        ({"shape": None, "images": np.zeros((2, *SHAPE), np.uint8)}, "are the same"),
        ({"shape": None, "images": np.full((1, *SHAPE), 2.0)}, "must lie in"),
        ({"shape": None, "images": np.ones((1, *SHAPE)), "truth": [10]}, r"integers in \[-1, 10\)"),
        ({"shape": None, "images": np.ones((1, *SHAPE)), "truth": [1, 2]}, "1 integers"),
    ],
)
def test_keys_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        keygen(**{"num_classes": CLASSES, "shape": SHAPE, "kind": "noise"} | changes)


def test_marks_that_cannot_be(network, keys):
    with pytest.raises(InputError, match="the key has images of"):
        mark(network, IMAGES, LABELS, keygen(3, shape=SHAPE, count=2, kind="noise")[0])
    with pytest.raises(InputError, match="41 companions per batch of 40"):
        mark(network, IMAGES, LABELS, keys[0], MarkingSettings(triggers_per_batch=41))
    with pytest.raises(InputError, match="labels must have shape"):
        mark(network, IMAGES, LABELS[:5], keys[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0}, {"batch_size": 0}, {"triggers_per_batch": 0}, {"learning_rate": 0.0}, {"decay": 0.0},
        {"decay_every": -1}, {"momentum": 1.0}, {"weight_decay": -0.1},
    ],
)  # fmt: skip
def test_settings_out_of_range(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        MarkingSettings(**changes)


def test_null_models_do_not_know_the_key(clean, marked, keys):
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), clean, *marked)
    found = null_matches(keys[0].triggers, stack)
    assert found.tolist() == [verify(*keys, network).matches for network in (clean, *marked)]
