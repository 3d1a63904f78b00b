"""Labels, class similarities and Dirichlet targets against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core import InputError
from dfke_jax.synthesis import balanced_labels, class_similarity, concentrations, dirichlet_targets
from dfke_jax.synthesis.targets import per_row

KERNEL = np.random.default_rng(2).normal(size=(7, 4)).astype(np.float32)


def test_labels_go_round():
    np.testing.assert_array_equal(balanced_labels(jnp.arange(7), 3), [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(balanced_labels(jnp.arange(5, 8), 3), [2, 0, 1])


def test_class_similarity():
    found = np.asarray(class_similarity(jnp.asarray(KERNEL)))
    for i in range(4):
        for j in range(4):
            a, b = KERNEL[:, i].astype(float), KERNEL[:, j].astype(float)
            assert found[i, j] == pytest.approx(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)), abs=1e-6)


def test_a_class_without_weights_is_like_no_other():
    kernel = np.array(KERNEL)
    kernel[:, 2] = 0
    found = np.asarray(class_similarity(jnp.asarray(kernel)))
    np.testing.assert_array_equal(found[2], 0)
    np.testing.assert_array_equal(found[:, 2], 0)
    rest = [0, 1, 3]
    np.testing.assert_allclose(found[np.ix_(rest, rest)], class_similarity(jnp.asarray(kernel[:, rest])), rtol=1e-6)
    targets = dirichlet_targets(jax.random.key(0), concentrations(jnp.asarray(found)), jnp.array([2, 2]))
    assert np.isfinite(targets).all()


def test_concentrations_are_normalised_row_by_row():
    similarity = class_similarity(jnp.asarray(KERNEL))
    found = np.asarray(concentrations(similarity, 1e-3))
    np.testing.assert_allclose(found.min(1), 1e-3, rtol=1e-5)
    np.testing.assert_allclose(found.max(1), 1.001, rtol=1e-5)
    np.testing.assert_array_equal(found.argmax(1), np.arange(4))
    for k in range(4):
        row = np.asarray(similarity)[k].astype(float)
        np.testing.assert_allclose(found[k], (row - row.min()) / (row.max() - row.min()) + 1e-3, rtol=1e-4)
    assert np.isfinite(concentrations(jnp.ones((3, 3)))).all(), "classes that are all alike"


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_moments_of_the_draws(scale):
    alpha = np.array([[1.0, 0.4, 0.05, 1e-4], [0.3, 1.0, 0.6, 0.2]])
    draws = 20_000
    labels = np.repeat([0, 1], draws)
    found = dirichlet_targets(jax.random.key(3), jnp.asarray(alpha, jnp.float32), jnp.asarray(labels), scale)
    found = np.asarray(found, np.float64)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    for k in (0, 1):
        mine, a = found[labels == k], scale * alpha[k]
        mean = a / a.sum()
        variance = mean * (1 - mean) / (a.sum() + 1)
        # Five standard errors; the squared deviation of a variable in [0, 1] varies by at most its mean.
        assert (np.abs(mine.mean(0) - mean) <= 5 * np.sqrt(variance / draws) + 1e-6).all()
        assert (np.abs(((mine - mean) ** 2).mean(0) - variance) <= 5 * np.sqrt(variance / draws) + 1e-6).all()


def test_tiny_concentrations_stay_finite():
    alpha = jnp.full((3, 3), 1e-5)
    found = np.asarray(dirichlet_targets(jax.random.key(4), alpha, jnp.arange(900) % 3, 0.1))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert (found.max(1) > 0.999).mean() > 0.99, "nearly one-hot"
    shares = np.bincount(found.argmax(1), minlength=3) / 900
    np.testing.assert_allclose(shares, 1 / 3, atol=5 * np.sqrt(2 / 9 / 900))


def entropy(p):
    return -(p * np.log(np.maximum(p, 1e-30))).sum(1).mean()


def test_every_sample_has_its_own_scale():
    alpha, labels = concentrations(class_similarity(jnp.asarray(KERNEL))), jnp.arange(4000) % 4
    scale = per_row((1.0, 0.1), jnp.arange(4000), 4)
    found = np.asarray(dirichlet_targets(jax.random.key(5), alpha, labels, scale))
    wide, narrow = found[np.asarray(scale) == 1.0], found[np.asarray(scale) == np.float32(0.1)]
    assert len(wide) == len(narrow) == 2000
    assert entropy(narrow) < 0.5 * entropy(wide)


def test_values_per_row():
    np.testing.assert_allclose(per_row((1.0, 0.1), jnp.arange(8), 3), [1, 1, 1, 0.1, 0.1, 0.1, 1, 1])
    with pytest.raises(InputError, match="at least one value"):
        per_row((), jnp.arange(3), 1)
