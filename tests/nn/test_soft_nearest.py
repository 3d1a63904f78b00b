"""The soft nearest neighbour loss against naive sums in float64, the released formula step by step, and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.nn import neighbour_mixing, pairwise_distances, soft_nearest_neighbour_loss

RNG = np.random.default_rng(3)
FEATURES = np.maximum(RNG.normal(size=(9, 2, 2, 3)), 0).astype(np.float32)
LABELS = np.array([0, 1, 1, 0, 0, 1, 2, 2, 5])  # the last row has no partner

loss_and_gradient = jax.jit(
    jax.value_and_grad(soft_nearest_neighbour_loss, argnums=(0, 2)), static_argnames=("distance", "form")
)


def distance(x, y, kind):
    x, y = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
    if kind == "euclidean":
        return ((x - y) ** 2).sum()
    return 1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def naive(features, labels, temperature, kind):
    rows = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        weights = {j: np.exp(-distance(features[i], features[j], kind) / temperature) for j in others}
        same = sum(weights[j] for j in others if labels[j] == labels[i])
        if same:
            rows.append(-np.log(same / sum(weights.values())))
    return np.mean(rows)


def released(features, labels, inverse_temperature, kind):
    """The released formula, operation by operation, in float64."""
    rows = features.reshape(len(features), -1).astype(np.float64)
    if kind == "euclidean":
        squared = (rows**2).sum(1)
        distances = np.tile(squared, (len(rows), 1)) + np.tile(squared[:, None], (1, len(rows))) - 2 * rows @ rows.T
    else:
        unit = rows / np.sqrt(np.maximum((rows**2).sum(1, keepdims=True), 1e-12))
        distances = 1 - unit @ unit.T
    near = np.clip(np.exp(-distances / (100 / inverse_temperature)) - np.eye(len(rows)), 0, 1)
    shares = near / (0.00001 + near.sum(1)[:, None]) * (labels[:, None] == labels[None])
    return -np.log(0.00001 + shares.sum(1)).mean()


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
def test_against_naive_sums_and_differences(kind):
    for temperature in (0.3, 2.0, 50.0):
        value, (slope, warmth) = loss_and_gradient(FEATURES, LABELS, temperature, distance=kind)
        assert float(value) == pytest.approx(naive(FEATURES, LABELS, temperature, kind), rel=2e-5)
        step = 1e-5
        direction = RNG.normal(size=FEATURES.shape)
        at = lambda s, d=direction, t=temperature: naive(FEATURES.astype(np.float64) + s * d, LABELS, t, kind)
        difference = (at(step) - at(-step)) / (2 * step)
        assert float((slope * direction).sum()) == pytest.approx(difference, rel=2e-3, abs=1e-5)
        hotter, colder = (naive(FEATURES, LABELS, temperature * (1 + s), kind) for s in (1e-5, -1e-5))
        assert float(warmth) == pytest.approx((hotter - colder) / (2e-5 * temperature), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
def test_the_released_form_is_the_released_formula(kind):
    zero = FEATURES.copy()
    zero[4] = 0
    for inverse_temperature in (0.01, 1.0, 30.0, 400.0):
        for features in (FEATURES, zero):
            value, gradients = loss_and_gradient(features, LABELS, inverse_temperature, distance=kind, form="released")
            expected = released(features, LABELS, inverse_temperature, kind)
            assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradients))


def test_the_forms_agree_where_epsilon_is_small():
    paired = LABELS[:8]
    value = soft_nearest_neighbour_loss(FEATURES[:8], paired, 50.0)
    same = soft_nearest_neighbour_loss(FEATURES[:8], paired, 2.0, form="released")
    assert float(value) == pytest.approx(float(same), abs=1e-4)


def test_coinciding_zero_distant_and_lonely_rows_are_sound():
    rows = np.zeros((6, 5), np.float32)
    rows[3:] = [[1, 2, 3, 0, 0], [1, 2, 3, 0, 0], [1e4, -1e4, 1e4, 0, 0]]
    labels = np.array([True, False, True, True, False, False])
    for kind in ("euclidean", "cosine"):
        value, gradients = loss_and_gradient(rows, labels, 1.0, distance=kind)
        assert np.isfinite(value)
        assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradients))
    # distances of 10⁴: every exponential underflows, their ratio does not
    value, _ = loss_and_gradient(np.array([[0.0], [100.0], [200.0]], np.float32), np.array([0, 0, 1]), 1.0)
    assert float(value) == pytest.approx(
        np.log(2) / 2, rel=1e-4
    )  # of row 1, between two equally near; of row 0 nothing
    lonely, (slope, _) = loss_and_gradient(FEATURES, np.arange(9), 1.0)
    assert float(lonely) == 0
    assert not np.asarray(slope).any()


def test_entangled_classes_have_the_larger_loss():
    labels = np.arange(40) % 2
    mixed = RNG.normal(size=(40, 3)).astype(np.float32)
    apart = mixed + 10 * labels[:, None].astype(np.float32)
    assert float(soft_nearest_neighbour_loss(apart, labels, 1.0)) < 1e-3
    assert float(soft_nearest_neighbour_loss(mixed, labels, 1e6)) == pytest.approx(np.log(39 / 19), rel=1e-4)


def test_distances_of_far_clouds_keep_their_digits():
    cloud = RNG.normal(size=(6, 50)).astype(np.float32)
    shifted = (cloud + np.float32(1000)).astype(np.float32)
    exact = ((shifted[:, None].astype(np.float64) - shifted[None]) ** 2).sum(-1)
    np.testing.assert_allclose(pairwise_distances(jnp.asarray(shifted)), exact, atol=2e-3)


def test_memory_is_quadratic_in_the_batch_and_not_times_the_width():
    shape = jax.ShapeDtypeStruct((64, 4096), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x: soft_nearest_neighbour_loss(x, jnp.arange(64) < 32, 1.0)))
    found = gradient.lower(shape).compile().memory_analysis()
    assert found.temp_size_in_bytes < 6 * 64 * 4096 * 4  # (B, B, D) alone were 64 of these


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((FEATURES, LABELS[:3], 1.0), InputError),
        ((FEATURES[:1], LABELS[:1], 1.0), InputError),
        ((FEATURES[:, 0, 0, 0], LABELS, 1.0), InputError),
        ((FEATURES, LABELS, 0.0), InputError),
    ],
)
def test_bad_input(arguments, error):
    with pytest.raises(error):
        soft_nearest_neighbour_loss(*(a if isinstance(a, float) else jnp.asarray(a) for a in arguments))


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="euclidean"):
        soft_nearest_neighbour_loss(jnp.asarray(FEATURES), jnp.asarray(LABELS), 1.0, distance="euclid")
    with pytest.raises(UnknownNameError, match="released"):
        soft_nearest_neighbour_loss(jnp.asarray(FEATURES), jnp.asarray(LABELS), 1.0, form="code")


def test_mixing_counts_neighbours_of_another_label():
    for count in (1, 3, 8):
        others = 0
        for i in range(9):
            order = sorted(
                (j for j in range(9) if j != i), key=lambda j, i=i: distance(FEATURES[i], FEATURES[j], "euclidean")
            )
            others += sum(LABELS[j] != LABELS[i] for j in order[:count])
        assert float(neighbour_mixing(FEATURES, LABELS, count)) == pytest.approx(others / (9 * count))
    with pytest.raises(InputError, match="neighbours"):
        neighbour_mixing(FEATURES, LABELS, 9)
