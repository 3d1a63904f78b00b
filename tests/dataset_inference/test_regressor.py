"""The regressor against PyTorch at equal weights, its layouts, and what the released layout does to false positives."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from scipy.stats import binom, kstest

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.dataset_inference import (
    RELEASED,
    RegressorSettings,
    all_held_out_scores,
    features,
    fit_regressor,
    held_out_scores,
    saturation,
    welch_test,
)
from dfke_jax.dataset_inference.regressor import _forward, _gradient

RNG = np.random.default_rng(2)
DISTANCES = RNG.lognormal(size=(40, 5, 3))


def test_a_row_is_one_image():
    rows = features(DISTANCES)
    assert rows.shape == (40, 15)
    np.testing.assert_array_equal(rows[7], DISTANCES[7].ravel())
    order = RNG.permutation(40)
    np.testing.assert_array_equal(features(DISTANCES[order]), rows[order])


def test_the_released_layout_mixes_images():
    rows = features(DISTANCES, "released")
    assert rows.shape == (40, 15)
    np.testing.assert_array_equal(rows[0], DISTANCES[:15, 0, 0])  # 15 images, one target, one norm
    order = RNG.permutation(40)
    assert not np.array_equal(features(DISTANCES[order], "released"), rows[order])
    assert sorted(rows.ravel()) == sorted(DISTANCES.ravel())


def test_ordered_features_do_not_depend_on_the_order_of_starts():
    shuffled = DISTANCES[:, RNG.permutation(5)]
    np.testing.assert_array_equal(features(shuffled, ordered=True), features(DISTANCES, ordered=True))
    assert not np.array_equal(features(shuffled), features(DISTANCES))


def test_scores_are_per_image_and_directed():
    private, public = 1.5 * RNG.lognormal(size=(60, 5, 3)), RNG.lognormal(size=(60, 5, 3))
    regressor = fit_regressor(private[:40], public[:40])
    held = regressor(private[40:]), regressor(public[40:])
    assert held[1].mean() > held[0].mean() + 0.2, "larger scores look more public"
    order = RNG.permutation(20)
    np.testing.assert_allclose(regressor(private[40:][order]), held[0][order])
    np.testing.assert_allclose(regressor.mean, private[:40].mean((0, 1)))
    assert np.abs(held[0]).max() <= 1
    assert 0 <= regressor.steps <= 1000
    again = fit_regressor(private[:40], public[:40])
    np.testing.assert_array_equal(again(public), regressor(public))


def test_gradient_by_differences():
    rows, signs = RNG.normal(size=(8, 4)), np.repeat([1.0, -1.0], 4)
    weights = (RNG.normal(size=(4, 6)), RNG.normal(size=6), RNG.normal(size=6), np.array(0.3))

    def loss(weights):
        return np.mean(signs * _forward(weights, rows)[0]) + 0.01 / 2 * sum((weights[i] ** 2).sum() for i in (0, 2))

    gradient = _gradient(weights, rows, signs, 0.01)
    for i, part in enumerate(weights):
        for place in np.ndindex(part.shape):
            moved = []
            for sign in (1, -1):
                changed = [np.array(w) for w in weights]
                changed[i][place] += sign * 1e-6
                moved.append(loss(tuple(changed)))
            assert gradient[i][place] == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=1e-7)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_released_training_equals_pytorch():
    import torch

    private, public = RNG.lognormal(size=(2, 30, 5, 3))
    one = dataclasses.replace(RELEASED, steps=1, learning_rate=1e-12)
    start = fit_regressor(private, public, one)
    w1, b1, w2, b2 = (torch.tensor(w, dtype=torch.float64) for w in start.weights)
    net = torch.nn.Sequential(
        torch.nn.Linear(15, 100), torch.nn.ReLU(), torch.nn.Linear(100, 1), torch.nn.Tanh()
    ).double()
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (w1.T, b1, w2[None], b2[None]), strict=True):
            parameter.copy_(value)
    scale = private.mean((0, 1)), private.std((0, 1))
    rows = torch.tensor(np.concatenate([(part - scale[0]) / scale[1] for part in (private, public)]).reshape(60, 15))
    signs = torch.tensor([1.0] * 30 + [-1.0] * 30, dtype=torch.float64)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(100):
        optimiser.zero_grad()
        (signs * net(rows)[:, 0]).mean().backward()
        optimiser.step()
    trained = fit_regressor(private, public, dataclasses.replace(RELEASED, steps=100))
    np.testing.assert_allclose(trained(public), net(rows[30:]).detach().numpy()[:, 0], atol=1e-8)


def model(rng, difficulty, shift=0.0):
    """Distances under one model: a difficulty of each image that all models share, and noise of the model's own."""
    own = difficulty + shift + 0.2 * rng.normal(size=len(difficulty))
    return np.exp(own)[:, None, None] * np.exp(0.5 * rng.normal(size=(len(own), 10, 3)))


@pytest.mark.slow
def test_false_positives_of_both_layouts():
    """80 innocent suspects, new images each time. Correct layout: 5%. Released layout: nearly all are accused."""
    trials, settings = 80, dataclasses.replace(RELEASED, steps=50)
    found = {"per_image": [], "released": []}
    victim_found = []
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        private, public = 0.7 * rng.normal(size=(2, 240))
        victim = model(rng, private, shift=0.4), model(rng, public)
        suspect = model(rng, private), model(rng, public)
        for layout, p_values in found.items():
            scores = held_out_scores(victim, suspect, 120, settings, layout=layout)
            p_values.append(welch_test(*scores).p_value)
        victim_found.append(welch_test(*held_out_scores(victim, victim, 120, settings)).p_value)
    rate = {layout: np.mean(np.array(p) < 0.05) for layout, p in found.items()}
    low, high = binom.ppf((0.001, 0.999), trials, 0.05) / trials
    assert low <= rate["per_image"] <= high
    assert kstest(found["per_image"], "uniform").pvalue > 0.001
    assert rate["released"] > 0.8
    assert np.mean(np.array(victim_found) < 0.05) > 0.8


def test_saturation():
    assert saturation([1, -1, 0.5, 0.9995]) == 0.75


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("at least 1, got 0 and 1000", {"hidden": 0}),
        ("learning_rate must be positive", {"learning_rate": 0}),
        ("ridge must not be negative", {"ridge": -1}),
        (r"held_out must lie in \[0, 1\), got 1", {"held_out": 1}),
    ],
)
def test_settings_are_checked(message, changes):
    with pytest.raises(InputError, match=message):
        RegressorSettings(**changes)


def test_inputs_are_checked():
    regressor = fit_regressor(DISTANCES[:20], DISTANCES[20:])
    bad = DISTANCES.copy()
    bad[3, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN or infinity in 1 samples"):
        regressor(bad)
    with pytest.raises(InputError, match="trained on 5 targets in 3 norms"):
        regressor(DISTANCES[:, :4])
    with pytest.raises(InputError, match="must have one shape"):
        fit_regressor(DISTANCES[:20], DISTANCES[21:])
    with pytest.raises(InputError, match="at least 2 are needed"):
        fit_regressor(DISTANCES[:1], DISTANCES[1:2])
    with pytest.raises(UnknownNameError, match="unknown layout 'paper'"):
        features(DISTANCES, "paper")
    with pytest.raises(InputError, match=r"must be \(N, T, P\)"):
        features(DISTANCES[0])
    pair = (DISTANCES, DISTANCES)
    with pytest.raises(InputError, match="must have one shape"):
        all_held_out_scores(pair, [pair, (DISTANCES[:20], DISTANCES[:20])], 10)
    with pytest.raises(InputError, match=r"train must lie in \[2, 38\]"):
        held_out_scores(pair, pair, 39)


@pytest.mark.parametrize("layout", ["per_image", "released"])
def test_one_regressor_scores_many_suspects_as_it_scores_each(layout):
    rng = np.random.default_rng(3)
    victim, *suspects = [tuple(rng.random((2, 60, 3, 3)) + shift) for shift in (0.0, 0.1, 0.4)]
    settings = RegressorSettings(steps=20)
    together = all_held_out_scores(victim, suspects, 30, settings, layout=layout)
    for suspect, found in zip(suspects, together, strict=True):
        np.testing.assert_array_equal(found, held_out_scores(victim, suspect, 30, settings, layout=layout))
    assert not np.allclose(together[0][0], together[1][0])


def test_early_stopping_written_out():
    """The weights of the lowest held-out loss among all steps, the start included."""
    rng = np.random.default_rng(11)
    private, public = 1.3 * rng.lognormal(size=(16, 2, 2)), rng.lognormal(size=(16, 2, 2))
    settings = RegressorSettings(
        hidden=5, steps=60, learning_rate=2.0, ridge=0.02, held_out=0.25, ordered=False, seed=4
    )
    mean, std = private.mean((0, 1)), private.std((0, 1))
    draw = np.random.default_rng(4)
    first, second = (((part - mean) / std).reshape(16, 4)[draw.permutation(16)] for part in (private, public))
    weights = [draw.uniform(-0.5, 0.5, (4, 5)), draw.uniform(-0.5, 0.5, 5)]
    weights += [draw.uniform(-(5**-0.5), 5**-0.5, 5), draw.uniform(-(5**-0.5), 5**-0.5, ())]
    score = lambda w, rows: np.tanh(np.maximum(rows @ w[0] + w[1], 0) @ w[2] + w[3])
    losses, kept = [], []
    for _ in range(61):
        kept.append(weights)
        losses.append(score(weights, first[:4]).mean() - score(weights, second[:4]).mean())
        rows, signs = np.concatenate([first[4:], second[4:]]), np.repeat([1, -1], 12)
        hidden = np.maximum(rows @ weights[0] + weights[1], 0)
        back = signs * (1 - score(weights, rows) ** 2) / 24
        inner = np.outer(back, weights[2]) * (hidden > 0)
        slopes = [rows.T @ inner + 0.02 * weights[0], inner.sum(0), hidden.T @ back + 0.02 * weights[2], back.sum()]
        weights = [w - 2.0 * g for w, g in zip(weights, slopes, strict=True)]
    found = fit_regressor(private, public, settings)
    assert 0 < found.steps < 60, "it stops in between"
    assert found.steps == np.argmin(losses)
    for mine, wanted in zip(found.weights, kept[found.steps], strict=True):
        np.testing.assert_allclose(mine, wanted, atol=1e-9)
    assert found.samples == 16
    last = fit_regressor(private, public, dataclasses.replace(settings, held_out=0.0, steps=3))
    assert last.steps == 3


def test_a_norm_that_never_varies_is_left_in_its_units():
    still = DISTANCES.copy()
    still[:, :, 1] = 2.0
    regressor = fit_regressor(still[:20], still[20:], RegressorSettings(steps=5))
    assert regressor.std[1] == 1
    assert np.isfinite(regressor(still)).all()


def test_the_ends_of_what_is_accepted():
    RegressorSettings(hidden=1, steps=1, learning_rate=0.5, ridge=0.0, held_out=0.0)
    RegressorSettings(held_out=0.99)
    for changes, message in (({"steps": 0}, "at least 1, got 100 and 0"), ({"held_out": -0.1}, "held_out must lie")):
        with pytest.raises(InputError, match=message):
            RegressorSettings(**changes)
    quick = RegressorSettings(steps=2, held_out=0.0)
    fit_regressor(DISTANCES[:2], DISTANCES[2:4], quick)
    pair = (DISTANCES, DISTANCES[::-1])
    for train in (2, 38):
        assert len(held_out_scores(pair, pair, train, quick)[0]) == 40 - train
    with pytest.raises(InputError, match="train must lie in"):
        held_out_scores(pair, pair, 1, quick)
    with pytest.raises(InputError, match="trained on 5 targets in 3 norms"):
        fit_regressor(*pair, quick)(DISTANCES[:, :, :2])
    assert saturation([0.999, -0.9991]) == 0.5
