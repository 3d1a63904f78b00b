"""What the attacks share: losses of answers, schedules, rows behind the normalisation, and the replay ring."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.extraction.common import Game, GenerativeSettings, batches
from dfke_jax.nn.classifier import Preprocessing
from dfke_jax.nn.generators import DFMEGenerator
from dfke_jax.nn.players import scheduled
from dfke_jax.oracle import Reveal, answered_logits
from dfke_jax.synthesis.replay import empty_replay, recall, remember

KEY = jax.random.key(71)
SETTINGS = GenerativeSettings(schedule="constant", width=2, latent=4)


def game(clone, reveal=None, **settings):
    generator = DFMEGenerator(clone.input_shape, 2, 4)
    return Game.between(clone, generator, dataclasses.replace(SETTINGS, **settings), reveal or Reveal())


def test_losses_of_answers_against_numpy(classifier):
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3), 5).astype(np.float32)
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    clone = classifier(1)
    log_q = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    recovered = np.log(p) - np.log(p).mean(1, keepdims=True)
    expected = {
        "l1": np.abs(logits - recovered).mean(1),
        "kl": (p * (np.log(p) - log_q)).sum(1),
        "cross_entropy": -log_q[np.arange(5), p.argmax(1)],
    }
    for name, value in expected.items():
        played = game(clone, loss=name)
        np.testing.assert_allclose(played.loss(logits, played.targets(p)), value, rtol=2e-5, atol=1e-6)
    assert game(clone).loss_name == "l1"
    assert game(clone, Reveal("label")).loss_name == "cross_entropy"
    hard = game(clone, Reveal("label"))
    np.testing.assert_allclose(hard.loss(logits, hard.targets(p.argmax(1))), expected["cross_entropy"], rtol=1e-5)
    one_hot = game(clone, loss="kl")
    assert np.isfinite(one_hot.loss(logits, np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]])).all()


def test_learning_rates_fall_where_they_should():
    rule = scheduled("sgd", 1.0, 20, "multistep", (0.1, 0.3, 0.5), 0.5, momentum=0.0)
    params = jnp.ones(())
    state, moves = rule.init(params), []
    for _ in range(20):
        update, state = rule.update(jnp.ones(()), state, params)
        moves.append(-float(update))
    np.testing.assert_allclose(moves, [1] * 2 + [0.5] * 4 + [0.25] * 4 + [0.125] * 10)
    assert rule is scheduled("sgd", 1.0, 20, "multistep", (0.1, 0.3, 0.5), 0.5, momentum=0.0)
    decayed = scheduled("sgd", 0.1, 0, "constant", momentum=0.5, weight_decay=0.2)
    state = decayed.init(params)
    first, state = decayed.update(jnp.ones(()), state, params)
    second, _ = decayed.update(jnp.ones(()), state, params)
    np.testing.assert_allclose([first, second], [-0.1 * 1.2, -0.1 * 1.2 * 1.5], rtol=1e-6)


def test_rows_are_pictures_unless_they_stand_behind_the_normalisation(classifier):
    x = jnp.asarray([-50.0, 0.0, 50.0]).reshape(3, 1, 1, 1) * jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(game(classifier(1)).rows(x)[:, 0, 0, 0], [0, 0.5, 1])
    clone = classifier(1).replace(preprocessing=Preprocessing(mean=(0.4,), std=(0.2,)))
    np.testing.assert_allclose(game(clone, post_transform=True).rows(x)[:, 0, 0, 0], [0.2, 0.4, 0.6], atol=1e-6)
    seen = clone.preprocessing(game(clone, post_transform=True).rows(x))
    np.testing.assert_allclose(seen, np.tanh(x), atol=1e-5)


def test_batches():
    rows = np.arange(14).reshape(7, 2)
    np.testing.assert_array_equal(batches(rows, 2, 3, 1), rows[1:].reshape(2, 3, 2))


def test_settings_that_mean_nothing(classifier):
    for options, message in (
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"clone_rate": 0.0}, "clone_rate must be positive"),
        ({"momentum": 1.0}, "momentum must lie in"),
        ({"drops": (0.5, 0.1)}, "drops must be increasing"),
    ):
        with pytest.raises(InputError, match=message):
            GenerativeSettings(**options)
    with pytest.raises(UnknownNameError, match="unknown loss 'l3'; nearest: l1"):
        GenerativeSettings(loss="l3")
    with pytest.raises(InputError, match="cannot be recovered from labels"):
        game(classifier(1), Reveal("label"), loss="l1")
    with pytest.raises(InputError, match="the generator makes"):
        Game.between(classifier(1), DFMEGenerator((12, 12, 1), 2, 4), SETTINGS, Reveal())


def test_the_ring_keeps_the_newest_rows():
    replay = empty_replay(7, (2, 2, 1), 3)
    assert (replay.images.dtype, replay.targets.dtype) == (jnp.uint8, jnp.float16)
    add = jax.jit(lambda replay, images, targets: remember(replay, images, targets))
    kept = {}
    for step in range(9):
        values = (np.arange(3) + 3 * step) / 255
        images = np.broadcast_to(values.reshape(3, 1, 1, 1), (3, 2, 2, 1)).astype(np.float32)
        replay = add(replay, images, np.broadcast_to(values[:, None] * 100, (3, 3)).astype(np.float32))
        kept[step] = set(np.asarray(replay.images[:, 0, 0, 0]).tolist())
    assert kept[1] == {0, 1, 2, 3, 4, 5}
    assert kept[8] == set(range(20, 27))
    images, targets = recall(KEY, replay, (2, 50))
    assert (images.shape, targets.shape) == ((2, 50, 2, 2, 1), (2, 50, 3))
    assert set(np.round(np.asarray(images) * 255).ravel().astype(int)) == set(range(20, 27))
    np.testing.assert_allclose(targets[..., 0], 100 * images[..., 0, 0, 0], rtol=1e-3)


def test_only_rows_that_were_written_are_drawn():
    replay = remember(empty_replay(50, (2, 2, 1), None), np.full((2, 2, 2, 1), 0.5, np.float32), np.array([1, 2]))
    images, labels = recall(KEY, replay, (64,))
    assert labels.dtype == jnp.int32
    assert set(np.asarray(labels)) == {1, 2}
    np.testing.assert_allclose(images, 0.5, atol=0.5 / 255 + 1e-6)
    with pytest.raises(InputError, match="ring of 2 cannot take 3 rows"):
        remember(empty_replay(2, (2, 2, 1), None), np.zeros((3, 2, 2, 1)), np.zeros(3))
    with pytest.raises(InputError, match="capacity of at least 1"):
        empty_replay(0, (2, 2, 1), None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_come_back_from_unrounded_probabilities(dtype):
    """Gaps of 60 and the confident answers of real victims: nothing is cut off that was answered."""
    logits = np.array([[25, 0, -5], [60, 0, -20], [0, 60, 59.5], [-3, 2, 1]], dtype)
    with jax.enable_x64(dtype is np.float64):
        answers = Reveal().of_logits(jnp.asarray(logits))
        found = np.asarray(answered_logits(answers, Reveal()))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, logits - logits.mean(1, keepdims=True), rtol=2e-6, atol=2e-6)


def test_answers_that_say_nothing_end_where_knowledge_ends():
    """Zeros are guesses, below everything of their row; rounded answers end at half a unit."""
    answers = jnp.array([[0.75, 0.25, 0.0], [1 - 1e-6, 1e-6, 0.0], [1.0, 1e-20, 0.0], [1.0, 0.0, 0.0]])
    found = np.asarray(answered_logits(answers, Reveal("top_k", k=2)))
    np.testing.assert_allclose(np.diff(found, axis=1)[:, 1], [np.log(4e-7), np.log(0.1), 0, 0], rtol=1e-4)
    np.testing.assert_allclose(found[3, 0] - found[3, 1], -np.log(1e-7), rtol=1e-5)
    rounded = np.asarray(answered_logits(jnp.array([[0.97, 0.03, 0.0]]), Reveal(decimals=2)))
    np.testing.assert_allclose(np.diff(rounded), [np.log([3 / 97, 1 / 6])], rtol=1e-5)
