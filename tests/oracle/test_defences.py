"""Every defence against plain NumPy, one sample at a time."""

import doctest
import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy import stats

from dfke_jax import core
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import trained, training
from dfke_jax.oracle import (
    DEFENCES,
    AdaptiveMisinformation,
    ConfidenceMask,
    GaussianNoise,
    PredictionPoisoning,
    ReverseSigmoid,
    Rounding,
    Temperature,
    TopK,
    defence,
    hellinger,
    oracle_for,
    reverse_cross_entropy,
)

RNG = np.random.default_rng(4)
PROBABILITIES = np.concatenate(
    [RNG.dirichlet(np.full(5, a), 12) for a in (0.1, 1.0, 10.0)] + [np.eye(5)[:2], np.full((1, 5), 0.2)]
).astype(np.float32)
ROWS = RNG.uniform(size=(len(PROBABILITIES), 3, 3, 1)).astype(np.float32)


def rounding(p, decimals, renormalise):
    rounded = [round(float(v) * 10**decimals) / 10**decimals for v in p]
    return [v / sum(rounded) for v in rounded] if renormalise else rounded


def temperature(p, t):
    powers = [float(v) ** (1 / t) for v in p]
    return [v / sum(powers) for v in powers]


def top_k(p, k, renormalise):
    kept = sorted(range(len(p)), key=lambda i: (-p[i], i))[:k]
    values = [float(p[i]) if i in kept else 0.0 for i in range(len(p))]
    return [v / sum(values) for v in values] if renormalise else values


def mask(p, cutoff, renormalise):
    values = [float(v) if v >= cutoff or v == max(p) else 0.0 for v in p]
    return [v / sum(values) for v in values] if renormalise else values


def reverse_sigmoid(p, beta, gamma):
    out = []
    for i, v in enumerate(p.astype(float)):
        odds = max(v, 1e-9) / max(sum(np.delete(p.astype(float), i)), 1e-9)
        inner = 1 / (1 + math.exp(-gamma * math.log(odds)))
        out.append(min(max(v - beta * (inner - 0.5), 0), 1))
    return [v / sum(out) for v in out]


@pytest.mark.parametrize(
    ("made", "naive"),
    [
        (Rounding(2), lambda p: rounding(p, 2, True)),
        (Rounding(1, renormalise=False), lambda p: rounding(p, 1, False)),
        (Temperature(3.0), lambda p: temperature(p, 3.0)),
        (Temperature(0.5), lambda p: temperature(p, 0.5)),
        (TopK(2), lambda p: top_k(p, 2, True)),
        (TopK(3, renormalise=False), lambda p: top_k(p, 3, False)),
        (ConfidenceMask(0.3), lambda p: mask(p, 0.3, True)),
        (ConfidenceMask(0.9, renormalise=False), lambda p: mask(p, 0.9, False)),
        (ReverseSigmoid(), lambda p: reverse_sigmoid(p, 1.0, 0.1)),
        (ReverseSigmoid(0.7, 0.4), lambda p: reverse_sigmoid(p, 0.7, 0.4)),
    ],
)
def test_against_a_sample_at_a_time(made, naive):
    found = np.asarray(made(ROWS, jnp.asarray(PROBABILITIES)))
    np.testing.assert_allclose(found, [naive(p) for p in PROBABILITIES], atol=2e-5)
    assert made.keeps_total == np.allclose(found.sum(1), 1, atol=1e-4)


def test_rounding_to_nothing_is_uniform():
    p = jnp.full((2, 40), 1 / 40)
    np.testing.assert_allclose(Rounding(1)(ROWS[:2], p), p)
    assert Rounding(1, renormalise=False)(ROWS[:2], p).max() == 0


def test_reverse_sigmoid_gives_one_answer_for_several_probabilities():
    """What the defence is for: the answer as a function of the true p is not monotone."""
    p = 1 - np.geomspace(0.5, 1e-5, 60, dtype=np.float32)
    answers = ReverseSigmoid()(ROWS[:1], jnp.stack([p, 1 - p], 1))[:, 0]
    assert answers.min() >= 0.5
    steps = np.sign(np.diff(np.asarray(answers)))
    assert {-1.0, 1.0} <= set(steps)
    np.testing.assert_allclose(ReverseSigmoid(0.0)(ROWS, PROBABILITIES), PROBABILITIES, atol=1e-6)


def test_noise_has_the_stated_distribution_and_no_second_draw():
    rows = RNG.uniform(size=(4000, 2, 2, 1)).astype(np.float32)
    p = jnp.full((4000, 4), 0.25)
    made = GaussianNoise(0.01, seed=3)
    found = np.asarray(made(rows, p))
    np.testing.assert_array_equal(found, made(rows, p))
    np.testing.assert_allclose(found[::-1], made(rows[::-1], p), atol=1e-7)
    np.testing.assert_allclose(found[7:8], made(rows[7:8], p[:1]), atol=1e-7)
    # Dividing by the sum takes out the mean of the noise: N(0, s²·(1 − 1/K)) to first order in s.
    noise = (found - 0.25).ravel()
    assert abs(noise.std() / (0.01 * math.sqrt(0.75)) - 1) < 0.04
    assert stats.kstest(noise[::7] / noise.std(), "norm").pvalue > 1e-3
    assert np.abs(found - np.asarray(GaussianNoise(0.01, seed=4)(rows, p))).max() > 0.01
    assert np.asarray(GaussianNoise(2.0)(rows, p)).min() >= 0
    np.testing.assert_allclose(np.asarray(GaussianNoise(2.0)(rows, p)).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(GaussianNoise(0.0)(ROWS, PROBABILITIES), PROBABILITIES, atol=1e-6)


def test_adaptive_misinformation_mixes_by_confidence(victim, other, rows):
    p = np.asarray(oracle_for(victim)(rows))
    wrong = np.asarray(oracle_for(other)(rows))
    for tau, nu in ((0.45, 20.0), (0.45, 10_000.0), (0.0, 10_000.0), (1.0, 10_000.0)):
        made = AdaptiveMisinformation(other, tau, nu)
        naive = []
        for row, (truth, lie) in enumerate(zip(p, wrong, strict=True)):
            share = 1 / (1 + math.exp(min(-nu * (tau - float(truth.max())), 700)))
            np.testing.assert_allclose(made.share(p)[row], share, rtol=1e-3, atol=1e-6)
            naive.append((1 - share) * truth + share * lie)
        found = np.asarray(oracle_for(victim, defences=(made,))(rows))
        np.testing.assert_allclose(found, naive, atol=1e-4)
    ratio = float(AdaptiveMisinformation(other, 0.45).share(p).mean())
    assert ratio == pytest.approx(np.mean(p.max(1) < 0.45))
    assert 0 < ratio < 1


def test_hellinger_distance():
    p, q = PROBABILITIES[:20].astype(np.float64), PROBABILITIES[15:35].astype(np.float64)
    affinity = np.sqrt(p * q).sum(1)
    np.testing.assert_allclose(hellinger(p, q), np.sqrt(np.maximum(1 - affinity, 0)), atol=1e-4)
    np.testing.assert_allclose(hellinger(np.eye(2), np.eye(2)[::-1]), 1, rtol=1e-6)


def test_reverse_cross_entropy_and_its_gradient():
    z = RNG.normal(size=(6, 4)).astype(np.float32) * 3
    y = np.array([0, 1, 2, 3, 0, 1])
    p = np.exp(z.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    own = p[np.arange(6), y]
    np.testing.assert_allclose(reverse_cross_entropy(z, y), -np.log(1 - own), rtol=1e-5)
    # d/dz_j = p_j − p_j [j ≠ y]/(1 − p_y): p_y for the own class.
    expected = p - np.where(np.arange(4) == y[:, None], 0, p / (1 - own)[:, None])
    np.testing.assert_allclose(jax.grad(lambda z: reverse_cross_entropy(z, y).sum())(z), expected, atol=1e-5)
    certain = jnp.array([[100.0, 0, 0], [-200, 0, 0]])
    found, slope = jax.value_and_grad(lambda z: reverse_cross_entropy(z, jnp.zeros(2, int)).sum())(certain)
    assert found == pytest.approx(100 - math.log(2), rel=1e-5)
    assert np.isfinite(slope).all()
    with pytest.raises(core.InputError, match="integer labels"):
        reverse_cross_entropy(z, y[:3])


def test_a_misinformation_model_learns_to_avoid_the_label():
    images = RNG.uniform(size=(60, 3, 3, 1)).astype(np.float32)
    labels = (images.sum((1, 2, 3)) > 4.5).astype(np.int32)
    network = Classifier.create(MLP(2, (16,)), jax.random.key(0), (3, 3, 1))
    method = training(
        network, images, labels, loss=Partial(reverse_cross_entropy), optimizer=optax.adam(0.02), batch_size=30
    )
    liar = trained(network, core.run(method, jax.random.key(1), 150).state)
    assert (liar.predict(images).argmax(1) == labels).mean() < 0.15


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rounding(-1), "decimals"),
        (lambda: Temperature(0.0), "temperature"),
        (lambda: GaussianNoise(-0.1), "scale"),
        (lambda: TopK(0), "k of top_k"),
        (lambda: TopK(6)(ROWS, PROBABILITIES), "top 6 of 5"),
        (lambda: ConfidenceMask(1.5), "cutoff"),
        (lambda: ReverseSigmoid(beta=-1), "beta"),
        (lambda: ReverseSigmoid(gamma=0), "gamma"),
        (lambda: AdaptiveMisinformation(abs, tau=2), "tau"),
        (lambda: AdaptiveMisinformation(abs, nu=0), "nu"),
        (lambda: PredictionPoisoning(abs, 2.5), "epsilon"),
        (lambda: PredictionPoisoning(abs, objective="l2"), "objective"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(core.InputError, match=message):
        make()


@pytest.mark.parametrize("name", DEFENCES)
def test_names_and_descriptions_go_round(name, victim):
    made = defence(name, {"misinformation": victim, "proxy": victim})
    shown = made.describe()
    assert shown.pop("name") == name
    values = {key: value for key, value in shown.items() if value != "MLP"}
    text = f"{name}:" + ",".join(f"{key}={value}" for key, value in values.items())
    again = defence(text, {"misinformation": victim, "proxy": victim})
    assert again.describe() == made.describe()
    p = jnp.asarray(PROBABILITIES[:, :4] / PROBABILITIES[:, :4].sum(1, keepdims=True))
    rows = np.zeros((len(p), 5, 4, 2), np.float32)
    answers = np.asarray(made(rows, p))
    assert answers.shape == p.shape
    assert np.isfinite(answers).all()


def test_the_examples_in_the_documentation_run():
    found = doctest.testmod(importlib.import_module("dfke_jax.oracle.registry"))
    assert (found.failed, found.attempted) == (0, 2)


def test_numbers_are_read_from_text():
    assert defence("reverse_sigmoid: beta = 1, gamma=0.25").describe() == {
        "name": "reverse_sigmoid", "beta": 1.0, "gamma": 0.25,
    }  # fmt: skip
    assert defence("top_k:k=2,renormalise=False").describe() == {"name": "top_k", "k": 2, "renormalise": False}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("reverse_sigmod", core.UnknownNameError, "nearest: reverse_sigmoid"),
        ("rounding:decimal=2", core.UnknownNameError, "nearest: decimals"),
        ("rounding:decimals=two", core.InputError, "whole number"),
        ("rounding:decimals=1.5", core.InputError, "whole number"),
        ("rounding:renormalise=1", core.InputError, "true or false"),
        ("rounding:decimals", core.InputError, "key=value"),
        ("rounding:decimals=1,decimals=2", core.InputError, "once"),
        ("temperature:temperature=-1", core.InputError, "positive"),
        ("adaptive_misinformation", core.InputError, "misinformation"),
        ("prediction_poisoning:epsilon=1", core.InputError, "proxy"),
        ("prediction_poisoning:proxy=1", core.InputError, "needs a model"),
    ],
)
def test_text_that_cannot_be_read_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        defence(text)
