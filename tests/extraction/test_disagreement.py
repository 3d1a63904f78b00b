"""Attacks whose generator needs no victim: disagreement, votes, adversaries, and pictures of shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.core.errors import InputError
from dfke_jax.extraction import (
    DUAL_STUDENTS,
    DFMSSettings,
    DisagreementSettings,
    adversarial_pretraining,
    dfms,
    disagreement,
    vote,
)
from dfke_jax.extraction.disagreement import negative_entropy, spread
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Reveal
from dfke_jax.synthesis import synthetic_shapes

KEY = jax.random.key(81)
SMALL = DisagreementSettings(
    batch_size=16, latent=6, width=2, clone_optimizer="adam", clone_rate=1e-2, schedule="constant", replay_capacity=64
)


def test_objectives_against_numpy():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(3, 5, 4)).astype(np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(spread(logits, "std"), p.std(0, ddof=1).mean(-1), rtol=1e-5)
    pairs = [np.abs(logits[i] - logits[j]).mean(-1) for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(spread(logits, "l1"), np.mean(pairs, 0), rtol=1e-5)
    mean = p.mean((0, 1))
    np.testing.assert_allclose(negative_entropy(p), (mean * np.log(mean)).sum(), rtol=1e-5)
    np.testing.assert_allclose(negative_entropy(np.full((2, 4), 0.25)), -np.log(4), rtol=1e-6)


@pytest.mark.parametrize("objective", ["std", "l1"])
def test_clones_that_agree_have_a_gradient_of_zero(objective):
    same = jnp.ones((2, 3, 4))
    slope = jax.grad(lambda logits: spread(logits, objective).sum())(same)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.slow
def test_without_a_rate_both_clones_learn_from_a_generator_that_stays(classifier, oracles):
    """The control of a recipe."""
    attack = disagreement(classifier(1), dataclasses.replace(SMALL, generator_rate=0.0))
    before = jax.jit(attack.init)(jax.random.fold_in(KEY, np.uint32(2**32 - 1)))
    after = core.run(core.against(attack, oracles["probabilities"](classifier(0))), KEY, 2, chunk=2).state
    jax.tree.map(
        np.testing.assert_array_equal, before.generator.variables["params"], after.generator.variables["params"]
    )
    moved = jax.tree.map(
        lambda a, b: (a != b).any(tuple(range(1, a.ndim))), before.clones.variables, after.clones.variables
    )
    assert all(leaf.all() for leaf in jax.tree.leaves(moved))


@pytest.mark.parametrize("answer", [pytest.param("probabilities", marks=pytest.mark.slow), "labels"])
def test_clones_learn_and_vote(classifier, oracles, answer):
    reveal = Reveal("label") if answer == "labels" else Reveal()
    base, victim = classifier(1), classifier(0)
    attack = disagreement(base, SMALL, reveal)
    run = core.run(core.against(attack, oracles[answer](victim)), KEY, 40, chunk=40)
    assert run.metrics["loss"][-5:].mean() < 0.6 * run.metrics["loss"][:2].mean()
    assert (run.metrics["entropy"] <= np.log(3) + 1e-6).all()
    stack = run.state.clones.variables["params"]["head"]["kernel"]
    assert np.abs(np.asarray(stack[0] - stack[1])).max() > 0.01, "two clones, not one twice"
    images = jax.random.uniform(KEY, (9, 8, 8, 1))
    members = [
        base.replace(variables=jax.tree.map(lambda leaf, m=m: leaf[m], run.state.clones.variables)) for m in range(2)
    ]
    mean = np.mean([jax.nn.softmax(member(images)) for member in members], 0)
    np.testing.assert_allclose(vote(base, run.state)(images), np.log(mean), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_generator_moves_to_where_clones_disagree(classifier, oracles):
    """With clones that do not learn, disagreement rises from step to step."""
    settings = dataclasses.replace(
        SMALL,
        clone_optimizer="sgd",
        clone_rate=1e-12,
        momentum=0.0,
        diversity=0.0,
        generator_rate=1e-2,
        replay_batches=0,
    )
    run = core.run(
        core.against(disagreement(classifier(1), settings), oracles["probabilities"](classifier(0))), KEY, 40, chunk=40
    )
    found = run.metrics["disagreement"]
    assert found[-5:].mean() > 1.5 * found[:3].mean()


@pytest.mark.slow
def test_every_eighth_row_is_grey():
    clone = Classifier.create(MLP(3, (4,)), jax.random.key(0), (8, 8, 3))
    attack = disagreement(clone, dataclasses.replace(SMALL, batch_size=17))
    rows = jax.jit(lambda key: attack.ask(key, attack.init(key))[1])(KEY)
    coloured = np.asarray(rows).std(-1).max((1, 2)) > 1e-3
    np.testing.assert_array_equal(~coloured, np.arange(17) % 8 == 0)


def test_rows_of_the_published_settings():
    assert DisagreementSettings().rows_per_step == 256
    assert DUAL_STUDENTS.rows_per_step == 5 * 256
    assert DFMSSettings().rows_per_step == 128


@pytest.mark.slow
def test_shapes_are_pictures():
    images = np.asarray(synthetic_shapes(KEY, 5, (28, 28, 3)))
    assert images.shape == (5, 28, 28, 3)
    assert 0 <= images.min() < images.max() <= 1
    assert images.std((1, 2)).min() > 0.05, "something is on each of them"
    steps = np.abs(np.diff(images, axis=2))
    assert np.median(steps) < 0.5 * np.abs(images - np.roll(images[:, ::-1], 9, 2)).mean(), "neighbours are alike"
    np.testing.assert_allclose(synthetic_shapes(KEY, 5, (28, 28, 1))[..., 0], images.mean(-1), atol=1e-6)
    np.testing.assert_allclose(synthetic_shapes(KEY, 5, (28, 28, 3), batch_size=2), images, atol=1e-6)
    with pytest.raises(InputError, match="one or three channels"):
        synthetic_shapes(KEY, 5, (28, 28, 2))


@pytest.mark.slow
def test_adversaries_are_trained_before_and_go_on(classifier, oracles):
    proxy = synthetic_shapes(KEY, 32, (8, 8, 1), shapes=5)
    settings = DFMSSettings(
        batch_size=16, latent=6, width=2, schedule="constant", clone_optimizer="adam", clone_rate=1e-2, diversity=2.0
    )
    before = core.run(adversarial_pretraining(proxy, settings), KEY, 60, chunk=60)
    judged = before.metrics["discriminator_loss"]
    assert judged[-5:].mean() < judged[0], "it tells given images from made ones better than at first"
    attack = dfms(classifier(1), proxy, settings, start=before.state)
    state = jax.jit(attack.init)(KEY)
    for found, expected in zip(
        jax.tree.leaves((state.generator, state.discriminator)), jax.tree.leaves(before.state), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    run = core.run(core.against(attack, oracles["labels"](classifier(0))), KEY, 60, chunk=60)
    assert run.metrics["loss"][-5:].mean() < 0.8 * run.metrics["loss"][:2].mean()
    assert run.state.generator.optimizer_state[0].count == 120


@pytest.mark.slow
def test_diversity_balances_the_classes(classifier, oracles):
    proxy = synthetic_shapes(KEY, 32, (8, 8, 1), shapes=5)
    base = DFMSSettings(batch_size=32, latent=6, width=2, schedule="constant", clone_rate=1e-6, generator_rate=5e-3)
    final = []
    for diversity in (0.0, 50.0):
        attack = dfms(classifier(1), proxy, dataclasses.replace(base, diversity=diversity))
        run = core.run(core.against(attack, oracles["labels"](classifier(0))), KEY, 40, chunk=40)
        final.append(run.metrics["entropy"][-5:].mean())
    assert final[1] > final[0]
    assert final[1] > 0.9 * np.log(3)


@pytest.mark.slow
@pytest.mark.parametrize("replay", [0, 3])
def test_dfms_learns_old_answers_again(classifier, oracles, replay):
    settings = DFMSSettings(
        batch_size=8, latent=4, width=2, schedule="constant", replay_batches=replay, replay_capacity=30
    )
    attack = dfms(classifier(1), jax.random.uniform(KEY, (10, 8, 8, 1)), settings)
    run = core.run(core.against(attack, oracles["labels"](classifier(0))), KEY, 2, chunk=2)
    counts = [leaf for leaf in jax.tree.leaves(run.state.clone.optimizer_state) if leaf.shape == ()]
    assert ("replay_loss" in run.metrics) == (replay > 0)
    assert (run.state.replay is None) == (replay == 0)
    if replay:
        assert int(run.state.replay.written) == 16
    assert all(int(count) == 2 * (1 + replay) for count in counts)


def test_bad_input(classifier):
    with pytest.raises(InputError, match="at least two, got 1"):
        DisagreementSettings(clones=1)
    with pytest.raises(InputError, match="must hold one iteration, 512 rows"):
        DisagreementSettings(replay_capacity=10)
    with pytest.raises(InputError, match="one batch an iteration"):
        DFMSSettings(clone_batches=2)
    with pytest.raises(InputError, match="trained by Adam"):
        DFMSSettings(generator_optimizer="sgd")
    with pytest.raises(InputError, match=r"proxy images are \(9, 9, 1\)"):
        dfms(classifier(1), jnp.zeros((3, 9, 9, 1)), DFMSSettings(schedule="constant"))


def test_the_ends_of_what_is_accepted():
    assert DisagreementSettings(clones=2, diversity=0.0, grey_every=0).clones == 2
    for changes in ({"diversity": -0.1}, {"grey_every": -1}):
        with pytest.raises(InputError, match="diversity and grey_every must not be negative"):
            DisagreementSettings(**changes)
