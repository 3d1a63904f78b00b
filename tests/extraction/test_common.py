"""What the attacks share: losses of answers, schedules, rows behind the normalisation, and the replay ring."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.extraction.common import GenerativeAttack, GenerativeSettings, batches
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.generators import DFMEGenerator
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.players import scheduled
from dfke_jax.oracle import Reveal, answered_logits
from dfke_jax.synthesis.replay import empty_replay, recall, remember

KEY = jax.random.key(71)
SETTINGS = GenerativeSettings(schedule="constant", width=2, latent=4)


def attack_on(clone, reveal=None, **settings):
    generator = DFMEGenerator(clone.input_shape, 2, 4)
    changed = dataclasses.replace(SETTINGS, **settings)
    return GenerativeAttack.between(clone, changed, reveal or Reveal(), generator=generator)


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
        attack = attack_on(clone, loss=name)
        np.testing.assert_allclose(attack.loss(logits, attack.targets(p)), value, rtol=2e-5, atol=1e-6)
    assert attack_on(clone).loss_name == "l1"
    assert attack_on(clone, Reveal("label")).loss_name == "cross_entropy"
    hard = attack_on(clone, Reveal("label"))
    np.testing.assert_allclose(hard.loss(logits, hard.targets(p.argmax(1))), expected["cross_entropy"], rtol=1e-5)
    one_hot = attack_on(clone, loss="kl")
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
    np.testing.assert_allclose(attack_on(classifier(1)).maker.shown(x)[:, 0, 0, 0], [0, 0.5, 1])
    clone = classifier(1).replace(preprocessing=Preprocessing(mean=(0.4,), std=(0.2,)))
    np.testing.assert_allclose(
        attack_on(clone, post_transform=True).maker.shown(x)[:, 0, 0, 0], [0.2, 0.4, 0.6], atol=1e-6
    )
    seen = clone.preprocessing(attack_on(clone, post_transform=True).maker.shown(x))
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
        attack_on(classifier(1), Reveal("label"), loss="l1")
    with pytest.raises(InputError, match="the generator makes"):
        GenerativeAttack.between(classifier(1), SETTINGS, Reveal(), generator=DFMEGenerator((12, 12, 1), 2, 4))


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


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 3.0)])
def test_images_are_kept_in_256_levels_of_the_box(box):
    low, high = box
    levels = np.array([0, 1, 100, 254, 255])
    images = np.broadcast_to((low + (high - low) * levels / 255).reshape(5, 1, 1, 1), (5, 2, 2, 1)).astype(np.float32)
    outside = images.copy()
    outside[0], outside[-1] = low - 0.5, high + 0.5
    for given in (images, outside):
        replay = remember(empty_replay(5, (2, 2, 1), None), given, np.arange(5), box)  # as many rows as it takes
        np.testing.assert_array_equal(replay.images[:, 0, 0, 0], levels)
        recalled, labels = recall(KEY, replay, (100,), box)
        np.testing.assert_allclose(recalled, images[labels], atol=1e-6)
        assert set(np.asarray(labels)) == set(range(5)), "the first row and the last one are drawn too"


def test_the_count_of_a_ring_repeats():
    """Rows written are counted up to twice the capacity, where the ring's state is that of one capacity before."""
    replay, counts = empty_replay(4, (1, 1, 1), None), []
    for step in range(6):
        replay = remember(replay, np.zeros((2, 1, 1, 1), np.float32), np.array([2 * step, 2 * step + 1]))
        counts.append(int(replay.written))
        assert set(np.asarray(replay.targets)) >= {2 * step, 2 * step + 1}
    assert counts == [2, 4, 6, 4, 6, 4]
    np.testing.assert_array_equal(replay.targets, [8, 9, 10, 11])


def test_an_empty_ring_of_one_row_gives_zeros():
    images, labels = recall(KEY, empty_replay(1, (2, 2, 1), None), (3,))
    assert images.shape == (3, 2, 2, 1)
    assert (np.asarray(images) == 0).all()
    assert (np.asarray(labels) == 0).all()


SMALLEST = {
    "batch_size": 1, "clone_batches": 1, "latent": 1, "width": 1, "generator_rate": 0.0, "momentum": 0.0,
    "weight_decay": 0.0, "clone_rate": 1e-3, "drop_factor": 1e-3, "drops": (0.01, 0.99), "replay_batches": 1,
    "replay_capacity": 2,
}  # fmt: skip


def test_the_ends_of_every_setting():
    assert GenerativeSettings(**SMALLEST).rows_per_step == 1
    assert GenerativeSettings(steps=0, momentum=0.99).steps == 0
    for name, value, message in (
        ("batch_size", 0, "batch_size must be at least 1"),
        ("clone_batches", 0, "clone_batches must be at least 1"),
        ("latent", 0, "latent must be at least 1"),
        ("width", 0, "width must be at least 1"),
        ("clone_rate", 0.0, "clone_rate must be positive"),
        ("drop_factor", 0.0, "drop_factor must be positive"),
        ("generator_rate", -1e-9, "must not be negative"),
        ("replay_batches", -1, "must not be negative"),
        ("replay_capacity", 1, "must hold one iteration, 2 rows, got 1"),
        ("steps", -1, "must not be negative"),
        ("weight_decay", -1e-9, "must not be negative"),
        ("momentum", -1e-9, "momentum must lie"),
        ("momentum", 1.0, "momentum must lie"),
        ("drops", (0.0, 0.5), "drops must be"),
        ("drops", (0.5, 1.0), "drops must be"),
        ("drops", (0.5, 0.4), "drops must be"),
    ):
        with pytest.raises(InputError, match=message):
            GenerativeSettings(**{**SMALLEST, name: value})


def test_a_budget_pays_for_whole_iterations():
    settings = GenerativeSettings(batch_size=3, clone_batches=2)
    assert settings.rows_per_step == 6
    assert [settings.with_budget(budget).steps for budget in (6, 11, 12)] == [1, 1, 2]
    with pytest.raises(InputError, match="a budget of 5 rows does not pay for one iteration, which asks 6"):
        settings.with_budget(5)


def moves(rule, count):
    """The length of every update under a gradient of 1."""
    params = jnp.ones(())
    state, found = rule.init(params), []
    for _ in range(count):
        update, state = rule.update(jnp.ones(()), state, params)
        found.append(-float(update))
    return found


def test_schedules_of_their_own_rules():
    np.testing.assert_allclose(moves(scheduled("adam", 0.1, 0, "constant"), 3), 0.1, rtol=1e-4)
    halves = 0.1 * (1 + np.cos(np.pi * np.arange(5) / 4)) / 2
    np.testing.assert_allclose(moves(scheduled("sgd", 0.1, 4, "cosine", momentum=0.0), 5), halves, atol=1e-7)
    # two drops in one place multiply
    twice = moves(scheduled("sgd", 1.0, 10, "multistep", (0.41, 0.42), 0.5, momentum=0.0), 6)
    np.testing.assert_allclose(twice, [1] * 4 + [0.25] * 2)
    assert moves(scheduled("sgd", 0.5, 1, "cosine", momentum=0.0), 1) == [0.5]
    with pytest.raises(InputError, match="cosine schedule needs the number of steps"):
        scheduled("sgd", 0.5, 0, "cosine")


def test_every_update_of_the_clone_counts_in_its_schedule(classifier):
    attack = attack_on(classifier(1), steps=7, schedule="cosine", clone_batches=2, replay_batches=3)
    assert attack.clone_updates == 5
    rest = (SETTINGS.drops, SETTINGS.drop_factor, SETTINGS.momentum, SETTINGS.weight_decay)
    assert attack.learner.optimizer is scheduled("sgd", 0.1, 35, "cosine", *rest)
    assert attack.maker.optimizer is scheduled("adam", 5e-4, 7, "cosine", *rest)


def test_channels_behind_the_normalisation_and_where_they_leave_the_box():
    clone = Classifier.create(MLP(3, (4,)), jax.random.key(1), (8, 8, 3))
    values = Preprocessing(mean=(0.3, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    x = jax.random.normal(KEY, (2, 8, 8, 3))
    found = attack_on(clone.replace(preprocessing=values), post_transform=True).maker.shown(x)
    np.testing.assert_allclose(found, np.array(values.mean) + np.array(values.std) * np.tanh(x), atol=1e-6)
    for mean, std in ((0.5, 0.5), (0.25, 0.25), (0.75, 0.25)):
        attack_on(clone.replace(preprocessing=Preprocessing(mean=(mean,), std=(std,))), post_transform=True)
    for mean, std in ((0.25, 0.26), (0.75, 0.26)):
        with pytest.raises(InputError, match="leave the box"):
            attack_on(clone.replace(preprocessing=Preprocessing(mean=(mean,), std=(std,))), post_transform=True)
    # a channel's deviation belongs to its own mean
    paired = Preprocessing(mean=(0.5, 0.1, 0.9), std=(0.5, 0.1, 0.1))
    attack_on(clone.replace(preprocessing=paired), post_transform=True)
    crossed = Preprocessing(mean=(0.5, 0.1, 0.9), std=(0.1, 0.5, 0.1))
    with pytest.raises(InputError, match=r"0.1 ± 0.5, which leave the box"):
        attack_on(clone.replace(preprocessing=crossed), post_transform=True)


def test_classes_are_compared_where_they_are_known(classifier):
    generator = DFMEGenerator((8, 8, 1), 2, 4)
    assert GenerativeAttack.between(classifier(1), SETTINGS, Reveal(), 3, generator).num_classes == 3
    with pytest.raises(InputError, match="the victim answers 4 classes and the clone has 3"):
        GenerativeAttack.between(classifier(1), SETTINGS, Reveal(), 4, generator)


@pytest.mark.slow
def test_batches_are_normalised_by_themselves_and_statistics_move(classifier):
    attack = attack_on(classifier(1))
    made = attack.maker.new(KEY).variables
    z = jax.random.normal(KEY, (2, 5, 4))
    rows = attack.maker.batches(made, z)
    for batch in range(2):
        x, updated = attack.generator.apply(
            made, z[batch], train=True, mutable=["batch_stats"], method="pre_activation"
        )
        np.testing.assert_allclose(rows[batch], attack.maker.shown(x), atol=1e-5)
        found, kept = attack.maker.pre_activations(made, z[batch])
        np.testing.assert_allclose(found, x, atol=1e-5)
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(updated), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    other = attack.maker.batches(made, z.at[0, 1].add(1))
    assert np.abs(other[0, 0] - rows[0, 0]).max() > 1e-4, "the batch's own statistics"


def test_the_clone_learns_batch_after_batch_in_training_mode(classifier):
    attack = attack_on(classifier(1, batch_norm=True), loss="kl", clone_optimizer="sgd", momentum=0.0, weight_decay=0.0)
    clone = attack.learner.new(KEY)
    rows = jax.random.uniform(KEY, (2, 6, 8, 8, 1))
    targets = jax.nn.softmax(jax.random.normal(KEY, (2, 6, 3)))
    found, loss = attack.learn(KEY, clone, rows, targets)
    expected, losses = clone.variables, []
    for batch in range(2):

        def of_batch(params, expected=expected, batch=batch):
            logits, updated = attack.module.apply(
                {**expected, "params": params}, rows[batch], train=True, mutable=["batch_stats"]
            )
            p = targets[batch]
            return jnp.mean(jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(logits)), -1)), updated

        (value, updated), slope = jax.value_and_grad(of_batch, has_aux=True)(expected["params"])
        losses.append(value)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, expected["params"], slope)
        expected = {"params": params, **updated}
    assert loss == pytest.approx(float(np.mean(losses)), rel=1e-5)
    for a, b in zip(jax.tree.leaves(found.variables), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_ring_holds_what_the_loss_needs(classifier):
    assert attack_on(classifier(1)).new_replay() is None
    sizes = {"replay_batches": 2, "batch_size": 4, "clone_batches": 1, "replay_capacity": 8}
    soft, hard = (attack_on(classifier(1), loss=name, **sizes).new_replay() for name in ("kl", "cross_entropy"))
    assert soft.images.shape == (8, 8, 8, 1)
    assert (soft.targets.shape, hard.targets.shape) == ((8, 3), (8,))


@pytest.mark.slow
def test_old_answers_are_learnt_again(classifier):
    sizes = {"replay_batches": 2, "batch_size": 4, "clone_batches": 1, "replay_capacity": 8}
    attack = attack_on(classifier(1), loss="cross_entropy", **sizes)
    clone, rows, labels = attack.learner.new(KEY), jax.random.uniform(KEY, (4, 8, 8, 1)), jnp.array([0, 1, 2, 1])
    found, ring, metrics = attack.replay_steps(KEY, clone, attack.new_replay(), rows, labels)
    choose_key, learn_key = jax.random.split(KEY)
    written = remember(attack.new_replay(), rows, labels)
    expected, loss = attack.learn(learn_key, clone, *recall(choose_key, written, (2, 4)))
    np.testing.assert_array_equal(ring.targets, written.targets)
    assert metrics["replay_loss"] == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert attack.replay_steps(KEY, clone, None, rows, labels) == (clone, None, {})
