"""The generator's gradient from explanations, against automatic differentiation through the victim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.extraction import MEGEXSettings, megex
from dfke_jax.extraction.megex import explained_gradient
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Explanation, explanation_oracle

KEY = jax.random.key(91)
ROWS = jax.random.uniform(KEY, (6, 8, 8, 1))


@jax.jit
def answered(oracle, rows):
    return oracle(rows)


@jax.jit
def exactly(victim, clone, images):
    """∂L/∂x by differentiating through a victim that gives probabilities."""

    def loss(images):
        logs = jnp.log(victim(images))
        return jnp.mean(jnp.abs(logs - logs.mean(-1, keepdims=True) - clone(images)), -1).sum()

    return jax.grad(loss)(images)


def sharp(victim, rows):
    return jax.nn.softmax(4 * victim(rows))


def linear(weights, rows):
    """Probabilities that are linear in the pixels: any mean of their gradient is the gradient."""
    moved = (rows - 0.5).reshape(len(rows), -1) @ (weights - weights.mean(-1, keepdims=True))
    return 1 / 3 + 0.002 * moved


def together(weights, rows):
    """The logit of one class moves and those of the others stand still."""
    first = 1 + (rows.reshape(len(rows), -1) @ weights)[:, None]
    return jax.nn.softmax(jnp.concatenate([jnp.broadcast_to(jnp.asarray([[0.3, -1.0]]), (len(rows), 2)), first], 1))


def found_and_exact(victim, clone, **setting):
    setting = Explanation(**setting)
    oracle = explanation_oracle(victim, setting, input_shape=(8, 8, 1), gives="probabilities")
    answers = answered(oracle, ROWS)
    gradient, _ = explained_gradient(answers.probabilities, answers.explanation, clone, ROWS, setting)
    return np.asarray(gradient), np.asarray(exactly(victim, clone, ROWS))


def test_the_gradient_is_exact(classifier, oracles):
    victim, clone = classifier(0), classifier(1)
    images = jax.random.uniform(KEY, (6, 8, 8, 1))
    answers = oracles["explained"](victim)(images)

    def loss(images):
        logs = jax.nn.log_softmax(4 * victim(images))
        return jnp.mean(jnp.abs(logs - logs.mean(-1, keepdims=True) - clone(images)), -1)

    exact = jax.grad(lambda images: loss(images).sum())(images)
    gradient, value = explained_gradient(answers.probabilities, answers.explanation, clone, images)
    np.testing.assert_allclose(gradient, exact, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(value, loss(images), rtol=1e-4)


@pytest.mark.parametrize("classes", ["all", "top"])
def test_the_gradient_of_bounded_disagreement_and_balance_is_exact(classifier, classes):
    """Against differentiation through the victim; of the top class alone where the others' logits stand still."""
    settings = MEGEXSettings(objective="probabilities", diversity=0.3)
    victim, clone = Partial(together, 0.3 * jax.random.normal(KEY, (64,))), classifier(1)
    kept = ROWS[victim(ROWS).argmax(-1) == 2]
    assert len(kept) > 2

    def gain(images):
        p, q = victim(images), jax.nn.softmax(clone(images))
        balance = jnp.sum(p.mean(0) * jnp.log(p.mean(0)))
        return jnp.mean(jnp.abs(p - q), -1).sum() - 0.3 * len(images) * balance

    setting = Explanation(classes=classes)
    oracle = explanation_oracle(victim, setting, input_shape=(8, 8, 1), gives="probabilities")
    answers = oracle(kept)
    found, value = explained_gradient(answers.probabilities, answers.explanation, clone, kept, setting, settings)
    np.testing.assert_allclose(found, jax.grad(gain)(kept), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        value, jnp.mean(jnp.abs(victim(kept) - jax.nn.softmax(clone(kept))), -1), rtol=1e-4, atol=1e-7
    )


def test_kinds_that_are_exact(classifier):
    victim, clone = Partial(sharp, classifier(0)), classifier(1)
    found, exact = found_and_exact(victim, clone, kind="gradient_times_input")
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-5)
    two = Partial(sharp, Classifier.create(MLP(2, (12,)), jax.random.key(0), (8, 8, 1)))
    other = Classifier.create(MLP(2, (12,)), jax.random.key(1), (8, 8, 1))
    found, exact = found_and_exact(two, other, classes="top")
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-5)
    weights = 0.3 * jax.random.normal(KEY, (64,))
    found, exact = found_and_exact(Partial(together, weights), clone, classes="top")
    top = np.asarray(together(weights, ROWS)).argmax(1) == 2
    assert top.sum() > 2
    np.testing.assert_allclose(found[top], exact[top], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["smooth_grad", "integrated_gradients"])
def test_means_of_a_gradient_are_exact_where_it_does_not_change(classifier, kind):
    victim, clone = Partial(linear, jax.random.normal(KEY, (64, 3))), classifier(1)
    found, exact = found_and_exact(victim, clone, kind=kind, samples=3, steps=3)
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["smooth_grad", "integrated_gradients", "sign"])
def test_approximations_point_the_right_way(classifier, kind):
    """The victim's part alone; the cosine of a random direction has a standard deviation of 1/8 in 64 dimensions."""
    victim, clone = Partial(sharp, classifier(0)), classifier(1)
    found, exact = found_and_exact(victim, clone, kind=kind)
    own, _ = explained_gradient(victim(ROWS), jnp.zeros((6, 3, 8, 8, 1)), clone, ROWS)
    found, exact = (np.reshape(part - own, (6, 64)) for part in (found, exact))
    cosine = np.sum(found * exact, 1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1))
    assert cosine.mean() > 0.5


def test_signs_take_the_clones_sizes(classifier):
    """Against a loop over samples and classes."""
    victim, clone = Partial(sharp, classifier(0)), classifier(1)
    p = np.asarray(victim(ROWS), np.float64)
    recovered = np.log(p) - np.log(p).mean(-1, keepdims=True)
    gap = np.sign(recovered - np.asarray(clone(ROWS))) / 3
    ours = np.asarray(jax.jacrev(lambda x: clone(x).sum(0))(ROWS)).transpose(1, 0, 2, 3, 4)  # (B, K, H, W, C) of s_k
    theirs = np.asarray(jax.jacrev(lambda x: victim(x).sum(0))(ROWS)).transpose(1, 0, 2, 3, 4)
    share = np.asarray(jax.nn.softmax(clone(ROWS)))
    every, top = np.zeros(ROWS.shape), np.zeros(ROWS.shape)
    for b in range(6):
        mean = np.einsum("k,khwc->hwc", share[b], ours[b])
        t = p[b].argmax()
        for k in range(3):
            weight = gap[b, k] - gap[b].mean()
            every[b] += weight * np.abs(ours[b, k] - mean).mean() * np.sign(theirs[b, k]) - gap[b, k] * ours[b, k]
            top[b] -= gap[b, k] * ours[b, k]
            if k == t:  # ∂ log odds = ∂ log p_t / (1 − p_t)
                size = np.abs((ours[b, t] - mean) / (1 - share[b, t])).mean()
                top[b] += weight * size * np.sign(theirs[b, t])
    np.testing.assert_allclose(found_and_exact(victim, clone, kind="sign")[0], every, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found_and_exact(victim, clone, kind="sign", classes="top")[0], top, rtol=1e-3, atol=1e-5)


def test_a_class_that_is_ruled_out_does_not_outweigh_the_others(classifier):
    """Only what is no exact gradient is held to the floor."""
    p = jnp.asarray([[0.5, 0.5 - 1e-6, 1e-6]])
    maps, image = jnp.full((1, 3, 8, 8, 1), 0.01), jnp.full((1, 8, 8, 1), 0.5)
    sizes = {}
    for kind, decimals in (("gradient", None), ("gradient", 2), ("smooth_grad", None)):
        found, _ = explained_gradient(
            p, maps, classifier(1), image, Explanation(kind, decimals=decimals), MEGEXSettings(floor=0.01)
        )
        sizes[kind, decimals] = float(jnp.abs(found).max())
    assert sizes["gradient", None] > 1e3
    assert max(sizes["gradient", 2], sizes["smooth_grad", None]) < 10


def test_probabilities_of_zero_do_no_harm(classifier):
    p = jnp.asarray([[1.0, 0.0, 0.0]])
    gradient, _ = explained_gradient(p, jnp.zeros((1, 3, 8, 8, 1)), classifier(1), jnp.full((1, 8, 8, 1), 0.5))
    assert np.isfinite(gradient).all()
    gradient, _ = explained_gradient(
        p, jnp.zeros((1, 8, 8, 1)), classifier(1), jnp.full((1, 8, 8, 1), 0.5), Explanation(classes="top")
    )
    assert np.isfinite(gradient).all()


@pytest.mark.slow
def test_the_clone_learns(classifier, oracles):
    settings = MEGEXSettings(
        batch_size=16, clone_batches=2, latent=6, width=2, schedule="constant", clone_optimizer="adam", clone_rate=1e-2
    )
    assert settings.rows_per_step == 48
    assert MEGEXSettings().rows_per_step == 6 * 256
    run = core.run(core.against(megex(classifier(1), settings), oracles["explained"](classifier(0))), KEY, 40, chunk=40)
    assert run.metrics["loss"][-5:].mean() < 0.4 * run.metrics["loss"][:2].mean()


def test_bad_input(classifier):
    with pytest.raises(InputError, match="one map for every class"):
        explained_gradient(jnp.ones((2, 3)) / 3, jnp.zeros((2, 8, 8, 1)), classifier(1), jnp.zeros((2, 8, 8, 1)))
    with pytest.raises(InputError, match="one map of the top class"):
        explained_gradient(
            jnp.ones((2, 3)) / 3, jnp.zeros((2, 3, 8, 8, 1)), classifier(1), jnp.zeros((2, 8, 8, 1)),
            Explanation(classes="top"),
        )  # fmt: skip
    with pytest.raises(InputError, match="'abs' explanations have lost it"):
        megex(classifier(1), MEGEXSettings(schedule="constant"), explanation=Explanation("abs"))
    with pytest.raises(InputError, match=r"floor must lie in \(0, 1\)"):
        MEGEXSettings(floor=0.0)
    with pytest.raises(UnknownNameError, match="probabilities"):
        MEGEXSettings(objective="probability")
    with pytest.raises(InputError, match="diversity must not be negative"):
        MEGEXSettings(diversity=-0.1)
    with pytest.raises(InputError, match="l1 loss on logits, not 'kl'"):
        megex(classifier(1), MEGEXSettings(loss="kl", schedule="constant"))


def test_the_ends_of_what_is_accepted():
    settings = MEGEXSettings(floor=0.5, diversity=0.0, batch_size=3, clone_batches=2)
    assert settings.rows_per_step == 9, "the clone's batches and the generator's"
    for floor in (0.0, 1.0):
        with pytest.raises(InputError, match=r"floor must lie in \(0, 1\)"):
            MEGEXSettings(floor=floor)
