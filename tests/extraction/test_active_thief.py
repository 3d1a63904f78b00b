"""ActiveThief: the selectors against naive loops and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.extraction import ActiveThiefSettings, CloneTraining, active_thief, deepfool_norm
from dfke_jax.extraction.active_thief import ActiveThiefState, distance_to_centres, entropies, k_center, select
from dfke_jax.extraction.pool import empty_table, label, new_clone
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.lenet import LeNet5
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Reveal

SHAPE = (5, 5, 1)
KEY = jax.random.key(51)
POOL = jax.random.uniform(jax.random.key(52), (40, *SHAPE))
TINY = CloneTraining(steps=4, batch_size=4, optimizer="adam", decay_at=(), checks=2)
SETTINGS = ActiveThiefSettings(20, 5, 0.2, TINY, scoring_batch=16)


@pytest.fixture(scope="module")
def net():
    return Classifier.create(MLP(4, (12,)), jax.random.key(0), SHAPE)


def linear(weights, bias):
    return lambda images: images.reshape(images.shape[0], -1) @ weights + bias[None]


def test_deepfool_of_a_linear_classifier_is_the_closed_form():
    """min over k of |f_k − f_k₀| / ‖w_k − w_k₀‖, in one step."""
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(25, 6)), rng.normal(size=6)
    classifier = linear(jnp.asarray(weights, jnp.float32), jnp.asarray(bias, jnp.float32))
    norms = deepfool_norm(classifier, POOL)
    for image, norm in zip(np.asarray(POOL, np.float64), norms, strict=True):
        scores = image.ravel() @ weights + bias
        own = scores.argmax()
        expected = min(
            (scores[own] - scores[k]) / np.linalg.norm(weights[:, k] - weights[:, own]) for k in range(6) if k != own
        )
        assert float(norm) == pytest.approx(expected, rel=2e-4)


def naive_deepfool(classifier, image, steps, overshoot=0.02):
    """One image, one class at a time, the perturbation in float64."""
    answer_of = jax.jit(lambda x: classifier(x[None])[0])
    scores_of = lambda x: np.asarray(answer_of(jnp.asarray(x, jnp.float32)), np.float64)
    slope = jax.jit(jax.grad(lambda x, k: classifier(x[None])[0, k]))
    own, moved = int(scores_of(image).argmax()), np.zeros(image.shape)
    for step in range(steps):
        x = jnp.asarray(image + (1 + overshoot) * moved, jnp.float32)
        scores, base = scores_of(x), np.asarray(slope(x, own), np.float64)
        best = (np.inf, None, None)
        for k in range(len(scores)):
            if k == own:
                continue
            normal = np.asarray(slope(x, k), np.float64) - base
            ratio = abs(scores[k] - scores[own]) / np.linalg.norm(normal)
            best = min(best, (ratio, k, normal), key=lambda entry: entry[0])
        ratio, _, normal = best
        moved = moved + (ratio + (1e-4 if step else 0)) * normal / np.linalg.norm(normal)
        if scores_of(image + (1 + overshoot) * moved).argmax() != own:
            break
    return np.linalg.norm(moved)


@pytest.mark.slow
def test_deepfool_of_a_network_is_the_loop_over_images():
    net = Classifier.create(MLP(4, (16, 16)), jax.random.key(3), SHAPE)
    images = POOL[:8]
    expected = [naive_deepfool(net, np.asarray(image), 50) for image in images]
    norms = jax.jit(lambda net, images: deepfool_norm(net, images))(net, images)
    np.testing.assert_allclose(norms, expected, rtol=1e-3)
    capped = jax.jit(lambda net, images: deepfool_norm(net, images, steps=1))(net, images)
    np.testing.assert_allclose(capped, [naive_deepfool(net, np.asarray(image), 1) for image in images], rtol=1e-3)


@pytest.mark.slow
def test_deepfool_of_a_convolutional_network_is_the_loop_over_images():
    net = Classifier.create(LeNet5(3), jax.random.key(4), (32, 32, 1))
    images = jax.random.uniform(KEY, (2, 32, 32, 1))
    norms = jax.jit(lambda net, images: deepfool_norm(net, images, steps=3))(net, images)
    np.testing.assert_allclose(norms, [naive_deepfool(net, np.asarray(image), 3) for image in images], rtol=2e-3)


def test_greedy_k_center_is_the_naive_one():
    rng = np.random.default_rng(2)
    points = rng.dirichlet(np.ones(4), 60).astype(np.float32)
    centres, counts = points[:9], np.arange(9) < 6
    allowed = rng.random(60) < 0.7
    distances = distance_to_centres(jnp.asarray(points), jnp.asarray(centres), jnp.asarray(counts), 16)
    wide = points.astype(np.float64)
    naive = np.square(wide[:, None] - wide[None, :6]).sum(-1).min(1)
    np.testing.assert_allclose(distances, naive, atol=1e-6)
    chosen, taken = [], [wide[i] for i in range(6)]
    for _ in range(12):
        gaps = [
            min(np.square(point - centre).sum() for centre in taken) if allowed[i] and i not in chosen else -1
            for i, point in enumerate(wide)
        ]
        chosen.append(int(np.argmax(gaps)))
        taken.append(wide[chosen[-1]])
    np.testing.assert_array_equal(k_center(jnp.asarray(points), distances, jnp.asarray(allowed), 12), chosen)


def test_no_centre_is_infinitely_far():
    far = distance_to_centres(jnp.ones((3, 2)), jnp.zeros((4, 2)), jnp.zeros(4, bool))
    assert np.isinf(far).all()


def test_entropies():
    np.testing.assert_allclose(
        entropies(jnp.asarray([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]])),
        [0, np.log(2), -0.9 * np.log(0.9) - 0.1 * np.log(0.1)], rtol=1e-5, atol=1e-7,
    )  # fmt: skip


@pytest.fixture(scope="module")
def midway(net):
    """After ten rows asked."""
    asked = jnp.asarray(np.random.default_rng(3).choice(40, 10, replace=False))
    labelled = empty_table(SETTINGS, 4)
    labelled = label(KEY, labelled, asked, jnp.ones((10, 4)) / 4, 2)
    mask = jnp.zeros(40, bool).at[asked].set(True)
    return ActiveThiefState(mask, jnp.zeros(5, jnp.int32), labelled, new_clone(net, TINY, KEY))


def test_each_selector_takes_the_rows_it_names(net, midway):
    free = np.flatnonzero(~np.asarray(midway.asked))
    probabilities = np.asarray(jax.nn.softmax(net(POOL)), np.float64)
    norms = np.asarray(deepfool_norm(net, POOL))
    chosen = {
        name: np.asarray(select(KEY, net, POOL, midway, dataclasses.replace(SETTINGS, selector=name)))
        for name in ("random", "entropy", "k_center", "dfal", "dfal_k_center")
    }
    for rows in chosen.values():
        assert rows.shape == (5,)
        assert len(set(rows)) == 5
        assert set(rows) <= set(free)
    doubt = -(probabilities * np.log(probabilities)).sum(1)
    np.testing.assert_array_equal(chosen["entropy"], free[np.argsort(-doubt[free])][:5])
    nearest = free[np.argsort(norms[free])]
    np.testing.assert_array_equal(chosen["dfal"], nearest[:5])
    centres = probabilities[np.asarray(midway.asked)]
    gaps = np.square(probabilities[:, None] - centres[None]).sum(-1).min(1)
    assert chosen["k_center"][0] == free[np.argmax(gaps[free])]
    assert set(chosen["dfal_k_center"]) <= set(nearest[:20])
    assert chosen["dfal_k_center"][0] == nearest[:20][np.argmax(gaps[nearest[:20]])]


def answer(victim, rows):
    return jax.nn.softmax(victim(rows))


@pytest.mark.slow
def test_rounds_ask_new_rows_and_hold_a_fifth_out(net):
    attack = active_thief(net, POOL, Reveal(), dataclasses.replace(SETTINGS, selector="entropy"))
    victim = Classifier.create(MLP(4, (12,)), jax.random.key(9), SHAPE)
    method = core.against(attack, Partial(answer, victim))
    run = core.run(method, KEY, 4, chunk=1)
    learnt, held = run.state.labelled
    assert (int(learnt.filled), int(held.filled)) == (16, 4)
    rows = np.concatenate([learnt.indices, held.indices])
    np.testing.assert_array_equal(np.sort(rows), np.flatnonzero(run.state.asked))
    assert len(rows) == len(set(rows)) == 20
    first = core.run(method, KEY, 1, chunk=1).state
    other = active_thief(net, POOL, Reveal(), dataclasses.replace(SETTINGS, selector="k_center"))
    same = core.run(core.against(other, Partial(answer, victim)), KEY, 1).state
    np.testing.assert_array_equal(first.chosen, same.chosen)  # the seed is random, whatever the selector


def test_settings_that_mean_nothing():
    with pytest.raises(UnknownNameError, match="entropy"):
        ActiveThiefSettings(selector="entropi")
    with pytest.raises(InputError, match="deepfool_classes"):
        ActiveThiefSettings(deepfool_classes=1)


def test_the_ends_of_what_is_accepted():
    one = CloneTraining(steps=2, checks=1)
    ActiveThiefSettings(deepfool_steps=1, deepfool_classes=2, scoring_batch=1, round_steps=1, clone=one)
    for changes in ({"deepfool_steps": 0}, {"scoring_batch": 0}, {"deepfool_classes": 1}):
        with pytest.raises(InputError, match="must be at least 1 and deepfool_classes at least 2"):
            ActiveThiefSettings(**changes)
    with pytest.raises(InputError, match="round_steps must be a positive multiple"):
        ActiveThiefSettings(round_steps=0)
