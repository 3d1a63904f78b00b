"""Densities of representations against closed forms, and what cannot be fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import nn
from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.dataset_inference import DensitySettings, fit_density, representations
from dfke_jax.dataset_inference.density import _scaled
from dfke_jax.nn.mlp import MLP

RNG = np.random.default_rng(0)
MIXED = RNG.normal(size=(6, 6))
ROWS = RNG.normal(size=(300, 6)) @ MIXED + 3
PLAIN = {"normalise": False, "regularisation": 1e-9}


def test_one_gaussian_has_its_closed_form():
    from scipy.stats import multivariate_normal

    density = fit_density(ROWS, DensitySettings(components=1, covariance="full", dimensions=None, **PLAIN))
    assert density.dimensions == 6
    assert density.converged
    tested = RNG.normal(size=(50, 6)) @ MIXED + 3
    covariance = np.cov(ROWS.T, bias=True)
    log_density = multivariate_normal(ROWS.mean(0), covariance).logpdf(tested)
    constant = np.linalg.slogdet(covariance)[1] / 2  # of the whitening
    np.testing.assert_allclose(6 * density(tested), log_density + constant, rtol=1e-6, atol=1e-6)
    # whitened rows have mean 0 and covariance 1
    white = (ROWS - density.mean) @ density.axes
    np.testing.assert_allclose(white.T @ white / 300, np.eye(6), atol=1e-9)


def test_a_mixture_is_the_log_of_its_sum():
    two = np.concatenate([ROWS, ROWS + 40])
    density = fit_density(two, DensitySettings(components=2, dimensions=3, **PLAIN))
    mixture, white = density.mixture, (two[:7] - density.mean) @ density.axes
    terms = [
        weight * np.prod(np.exp(-((white - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance), axis=1)
        for weight, mean, variance in zip(mixture.weights_, mixture.means_, mixture.covariances_, strict=True)
    ]
    np.testing.assert_allclose(density(two[:7]), np.log(np.sum(terms, axis=0)) / 3, rtol=1e-9)
    assert density.dimensions == 3
    assert density.mixture.means_.dtype == np.float64


def test_only_the_fitting_rows_count_and_scale_drops_out():
    settings = DensitySettings(components=3, dimensions=4)
    density = fit_density(ROWS, settings)
    np.testing.assert_allclose(density(ROWS[:9]), fit_density(7 * ROWS, settings)(7 * ROWS[:9]), rtol=1e-6)
    np.testing.assert_allclose(density(ROWS)[:9], density(ROWS[:9]), rtol=1e-9)
    again = fit_density(ROWS, settings)
    np.testing.assert_array_equal(density(ROWS), again(ROWS))
    # two columns that say the same, and one that says nothing, add no direction
    wider = np.concatenate([ROWS, ROWS[:, :2], np.ones((300, 1))], 1)
    assert fit_density(wider, DensitySettings(dimensions=None, **PLAIN)).dimensions == 6


def test_a_fit_that_does_not_converge_says_so_without_a_warning():
    assert not fit_density(ROWS, DensitySettings(components=8, iterations=1)).converged
    repeated = np.repeat(ROWS[:5], 10, axis=0)
    assert np.isfinite(fit_density(repeated, DensitySettings(components=10))(ROWS)).all()


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (ROWS[:30], {"components": 31}, "30 rows cannot fit a mixture of 31 Gaussians: at least 31"),
        (ROWS[:9], {"components": 2}, "9 rows cannot fit .* at least 10"),
        (np.ones((40, 3)), {}, "are the same: the encoder has collapsed"),
        (np.zeros((40, 3)), {}, "are the same"),
        (np.linspace(1, 2, 40)[:, None] * [[1.0, 2.0]], {}, "are the same"),  # one direction, once lengths are gone
        (np.where(np.arange(300)[:, None] == 4, np.nan, ROWS), {}, "NaN or infinity in 1 of 300 rows"),
        (ROWS[:, 0], {}, r"must be \(N, D\)"),
    ],
)
def test_what_has_no_density(rows, settings, message):
    with pytest.raises(InputError, match=message):
        fit_density(rows, DensitySettings(**settings))


def test_tested_rows_must_be_of_the_same_width():
    density = fit_density(ROWS)
    with pytest.raises(InputError, match="fitted on 6 dimensions, got 5"):
        density(ROWS[:, :5])
    with pytest.raises(InputError, match="NaN"):
        density(np.full((2, 6), np.inf))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"components": 0}, "components must be at least 1"),
        ({"dimensions": 0}, "dimensions must be at least 1"),
        ({"regularisation": 0.0}, "regularisation must be positive"),
        ({"fit": 1.0}, r"fit must lie in \(0, 1\)"),
        ({"alpha": 0.0}, "alpha must lie"),
        ({"minimum": 1}, "minimum must be at least 2"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(InputError, match=message):
        DensitySettings(**changes)


def test_names_are_checked():
    with pytest.raises(UnknownNameError, match="nearest: diag"):
        DensitySettings(covariance="diagonal")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="nearest: either"):
        DensitySettings(alternative="eihter")  # type: ignore[arg-type]


def test_encoders_of_every_kind_give_their_representations():
    images = np.asarray(jax.random.uniform(jax.random.key(1), (7, 3, 3, 1)))
    classifier = nn.Classifier.create(MLP(3, (5, 4)), jax.random.key(2), (3, 3, 1))
    found = representations(classifier, images)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, classifier.features(images), rtol=1e-6)
    flat = images.reshape(7, 9)
    np.testing.assert_allclose(representations(lambda x: 2 * x.reshape(len(x), -1), images), 2 * flat, rtol=1e-6)
    np.testing.assert_array_equal(
        representations(lambda x: np.sort(x.reshape(len(x), -1)), images, host=True), np.sort(flat)
    )
    with pytest.raises(InputError, match=r"must be \(N, D\), a vector for each image"):
        representations(lambda x: x, images)
    with pytest.raises(InputError, match="3 representations for 7 images"):
        representations(lambda x: x.reshape(len(x), -1)[:3], images, host=True)
    with pytest.raises(InputError, match="NaN"):
        representations(lambda x: jnp.log(-x.reshape(len(x), -1)), images)


def test_the_smallest_settings_are_allowed():
    DensitySettings(components=1, restarts=1, iterations=1, dimensions=1, minimum=2, regularisation=0.5)
    settings = DensitySettings(components=1, dimensions=1, minimum=3)
    assert fit_density(ROWS[:3], settings).rows == 3, "as many rows as are needed"
    with pytest.raises(InputError, match="2 rows cannot fit"):
        fit_density(ROWS[:2], settings)
    for name in ("fit", "alpha"):
        for value in (0.0, 1.0):
            with pytest.raises(InputError, match=rf"{name} must lie in \(0, 1\)"):
                DensitySettings(**{name: value})


def test_settings_reach_the_mixture():
    settings = DensitySettings(components=2, covariance="tied", regularisation=0.25, restarts=3, iterations=7, seed=5)
    mixture = fit_density(ROWS, settings).mixture
    assert (mixture.n_components, mixture.covariance_type, mixture.reg_covar) == (2, "tied", 0.25)
    assert (mixture.n_init, mixture.max_iter, mixture.random_state) == (3, 7, 5)


def test_directions_below_a_ten_thousandth_of_the_largest_are_left_out():
    rng = np.random.default_rng(1)
    white = np.linalg.qr(rng.normal(size=(50, 4)) - 0.0)[0]
    white = np.linalg.qr(white - white.mean(0))[0]  # columns of mean 0 and equal length
    for share, kept in ((1.5e-4, 3), (0.7e-4, 2)):
        rows = white[:, :3] * [10.0, 1.0, 10 * share] + 100
        settings = DensitySettings(components=1, dimensions=None, **PLAIN)
        assert fit_density(rows, settings).dimensions == kept


def test_the_same_representations_but_for_rounding_have_no_density():
    rows = 1000 + 1e-4 * np.random.default_rng(2).normal(size=(40, 3))
    settings = DensitySettings(components=1, **PLAIN)
    with pytest.raises(InputError, match="are the same"):
        fit_density(rows, settings)
    assert fit_density(1000 + 100 * (rows - 1000), settings).dimensions == 3
    assert fit_density(1e-3 * ROWS, settings).dimensions == 6, "it goes by the size of the rows"


def test_lengths_are_taken_off_row_by_row():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [0.3, -0.4]])
    np.testing.assert_allclose(_scaled(rows, True), [[0.6, 0.8], [0, 0], [0.6, -0.8]])
    np.testing.assert_array_equal(_scaled(rows, False), rows)


def test_rows_with_nan_are_counted():
    rows = ROWS.copy()
    rows[[3, 8], 2] = np.nan
    rows[8, 1] = np.inf
    with pytest.raises(InputError, match="NaN or infinity in 2 of 300 rows"):
        fit_density(rows)
    with pytest.raises(InputError, match=r"must be \(N, D\)"):
        fit_density(np.zeros((0, 6)))
