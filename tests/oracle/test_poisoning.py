"""Prediction poisoning against the definition: gradients by differentiation, vertices by enumeration, one sample at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.oracle import PredictionPoisoning, oracle_for

SHAPE = (5, 4, 2)


def gradients(proxy, row):
    """G (K, D·K): the gradient of −log p_k by the last layer's weights, by automatic differentiation."""
    features = proxy.features(row[None])[0]
    bias = proxy.variables["params"]["head"]["bias"]
    of = lambda weights: -jax.nn.log_softmax(features @ weights + bias)
    return np.asarray(jax.jacobian(of)(proxy.head_kernel), np.float64).reshape(len(bias), -1)


def turned(G, answer, truth):
    first, second = G.T @ answer, G.T @ truth
    return np.square(first / np.linalg.norm(first) - second / np.linalg.norm(second)).sum()


def subsets(classes, largest):
    for bits in itertools.product((0, 1), repeat=classes):
        if bits[largest]:
            yield np.array(bits) / sum(bits)


def candidates(truth, epsilon, keep_argmax):
    vertices = subsets(len(truth), truth.argmax()) if keep_argmax else np.eye(len(truth))
    for vertex in vertices:
        share = min(1 - 1e-3 if keep_argmax else 1, epsilon / np.abs(vertex - truth).sum())
        yield vertex, truth + share * (vertex - truth)


@pytest.mark.slow
@pytest.mark.parametrize("keep_argmax", [False, True])
@pytest.mark.parametrize("epsilon", [0.1, 0.7, 2.0])
def test_no_candidate_turns_the_gradient_further(victim, other, rows, keep_argmax, epsilon):
    truths = np.asarray(oracle_for(victim)(rows), np.float64)
    found = np.asarray(
        oracle_for(victim, defences=(PredictionPoisoning(other, epsilon, keep_argmax),))(rows), np.float64
    )
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert found.min() >= -1e-7
    assert np.abs(found - truths).sum(1).max() <= epsilon + 1e-5
    for row, truth, answer in zip(rows, truths, found, strict=True):
        G = gradients(other, row)
        worth = [turned(G, candidate, truth) for _, candidate in candidates(truth, epsilon, keep_argmax)]
        assert turned(G, answer, truth) == pytest.approx(max(worth), rel=2e-3)
    if keep_argmax:
        np.testing.assert_array_equal(found.argmax(1), truths.argmax(1))
    else:
        assert epsilon < 1 or (found.argmax(1) != truths.argmax(1)).any()


def test_the_closed_form_of_the_gradients(other, rows):
    """Row k of G is (q − e_k) ⊗ h."""
    q = np.asarray(oracle_for(other)(rows))
    features = np.asarray(other.features(jnp.asarray(rows)))
    for row, guess, h in zip(rows, q, features, strict=True):
        expected = np.stack([np.outer(h, guess - one).ravel() for one in np.eye(4)])
        np.testing.assert_allclose(gradients(other, row), expected, atol=2e-5)


@pytest.mark.parametrize("keep_argmax", [False, True])
def test_the_surrogate_takes_the_vertex_that_is_farthest(victim, other, rows, keep_argmax):
    truths = np.asarray(oracle_for(victim)(rows), np.float64)
    made = PredictionPoisoning(other, 0.5, keep_argmax, "surrogate")
    found = oracle_for(victim, defences=(made,))(rows)
    for truth, answer in zip(truths, np.asarray(found), strict=True):
        pairs = list(candidates(truth, 0.5, keep_argmax))
        best = max(pairs, key=lambda pair: np.square(pair[0] - truth).sum())[1]
        np.testing.assert_allclose(answer, best, atol=1e-5)


def test_without_a_radius_the_answer_stays(victim, other, rows):
    for keep_argmax in (False, True):
        made = PredictionPoisoning(other, 0.0, keep_argmax)
        np.testing.assert_allclose(oracle_for(victim, defences=(made,))(rows), oracle_for(victim)(rows), atol=1e-6)


def test_a_proxy_that_is_the_victim_has_no_direction_and_still_gives_an_answer(victim, rows):
    found = np.asarray(oracle_for(victim, defences=(PredictionPoisoning(victim, 0.5),))(rows))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_a_lead_of_one_bit_is_kept(rows):
    """The proxy stands halfway to the even mix of classes 0 and 2, which is then the best answer, and a tie in float32."""
    lead = np.nextafter(np.float32(0.4), np.float32(1))
    truth = np.array([[0.4, 0.1, lead, 0.1]], np.float32)
    proxy = lambda rows: jnp.log(jnp.array([[0.45, 0.05, 0.45, 0.05]]))
    made = PredictionPoisoning(proxy, 2.0, keep_argmax=True)
    np.testing.assert_array_equal(made(rows[:1], jnp.asarray(truth)), truth)
    clear = made(rows[:1], jnp.array([[0.38, 0.1, 0.42, 0.1]]))[0]
    assert clear.argmax() == 2
    np.testing.assert_allclose(clear, [0.5, 0, 0.5, 0], atol=1e-3)
    tied = PredictionPoisoning(logits_of(4), 1.0, keep_argmax=True)(rows[:2], jnp.full((2, 4), 0.25))
    np.testing.assert_array_equal(np.asarray(tied).argmax(1), [0, 0])


def logits_of(classes):
    weights = np.random.default_rng(classes).normal(size=(40, classes)).astype(np.float32)
    return lambda rows: jnp.asarray(rows).reshape(len(rows), -1) @ weights


def test_growing_a_set_finds_most_of_what_enumeration_finds(rows):
    """On 12 classes, where growing is what runs: never better than the best of all 2^11 sets, and close to it."""
    proxy, classes = logits_of(12), 12
    truths = np.random.default_rng(1).dirichlet(np.full(classes, 0.7), len(rows)).astype(np.float32)
    found = np.asarray(PredictionPoisoning(proxy, 0.8, keep_argmax=True)(rows, jnp.asarray(truths)), np.float64)
    np.testing.assert_array_equal(found.argmax(1), truths.argmax(1))
    assert np.abs(found - truths).sum(1).max() <= 0.8 + 1e-5
    q = np.asarray(jax.nn.softmax(proxy(rows)), np.float64)
    ratios = []
    for truth, guess, answer in zip(truths.astype(np.float64), q, found, strict=True):
        G = guess[None] - np.eye(classes)
        best = max(turned(G, candidate, truth) for _, candidate in candidates(truth, 0.8, True))
        ratios.append(turned(G, answer, truth) / best)
    assert max(ratios) <= 1 + 2e-3
    assert np.mean(ratios) > 0.9


def test_a_proxy_of_other_classes_is_refused(victim, rows):
    with pytest.raises(core.InputError, match="proxy answers 3 classes"):
        oracle_for(victim, defences=(PredictionPoisoning(logits_of(3)),))(rows)
