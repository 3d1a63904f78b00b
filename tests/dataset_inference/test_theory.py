"""The linear setting: simulation, exact integrals and normal approximation say the same."""

import math

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from dfke_jax.core import InputError
from dfke_jax.dataset_inference import LinearSetting, approximate_rates, exact_rates, simulate
from dfke_jax.dataset_inference.theory import _simulated

TRIALS = 4000


@pytest.fixture(scope="module")
def found():
    return {d: simulate(jax.random.key(d), LinearSetting(d), TRIALS) for d in (4, 16, 64)}


def four_errors(rate, n=TRIALS):
    return 4 * math.sqrt(rate * (1 - rate) / n)


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [4, 16, 64])
def test_simulation_agrees_with_the_exact_rates(found, dimensions):
    simulated, exact = found[dimensions], exact_rates(LinearSetting(dimensions))
    assert simulated.gap == pytest.approx(dimensions, abs=4 * math.sqrt(3 * dimensions / TRIALS))
    assert simulated.stolen == pytest.approx(exact.stolen, abs=four_errors(exact.stolen))
    assert simulated.independent == pytest.approx(exact.independent, abs=four_errors(exact.independent))
    assert simulated.membership == pytest.approx(exact.membership, abs=four_errors(exact.membership))


@pytest.mark.parametrize(("dimensions", "tolerance"), [(4, 0.04), (16, 0.025), (64, 0.01)])
def test_the_normal_approximation_closes_in_as_noise_dimensions_grow(found, dimensions, tolerance):
    simulated, normal = found[dimensions], approximate_rates(LinearSetting(dimensions))
    assert simulated.gap == pytest.approx(normal.gap, rel=0.03)
    for name in ("stolen", "independent", "membership"):
        # simulation error on top of what the approximation leaves out
        slack = tolerance + four_errors(getattr(normal, name))
        assert getattr(simulated, name) == pytest.approx(getattr(normal, name), abs=slack)


def test_published_constants():
    rates = [approximate_rates(LinearSetting(d)) for d in (4, 16, 64)]
    assert [round(r.independent, 3) for r in rates] == [0.760, 0.921, 0.998]
    assert [round(r.stolen, 3) for r in rates] == [0.718, 0.876, 0.990]
    assert [round(r.membership, 3) for r in rates] == [0.556, 0.611, 0.714]


def test_one_point_tells_nothing_when_points_are_many_and_a_set_tells_all():
    many = exact_rates(LinearSetting(64, samples=100_000))
    assert many.membership == pytest.approx(0.5, abs=0.01)
    assert many.stolen == pytest.approx(exact_rates(LinearSetting(64, samples=5)).stolen)


def test_neither_signal_nor_scale_of_the_noise_change_the_rates():
    plain = simulate(jax.random.key(1), LinearSetting(16, 20), 1000)
    scaled = simulate(jax.random.key(1), LinearSetting(16, 20, sigma=2.0, signal=(0.0,)), 1000)
    assert scaled.gap == pytest.approx(4 * plain.gap, rel=1e-4)
    assert scaled.stolen == pytest.approx(plain.stolen, abs=0.002)


def test_a_single_sample_is_a_setting_too():
    setting = LinearSetting(8, samples=1)
    assert simulate(jax.random.key(2), setting, TRIALS).membership == pytest.approx(
        exact_rates(setting).membership, abs=0.03
    )


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("must be at least 1, got 0 and 50", {"noise_dimensions": 0}),
        ("must be at least 1, got 4 and 0", {"samples": 0}),
        ("sigma must be positive, got 0", {"sigma": 0.0}),
        ("sigma must be positive, got nan", {"sigma": float("nan")}),
        ("at least one coordinate", {"signal": ()}),
    ],
)
def test_settings_are_checked(message, changes):
    with pytest.raises(InputError, match=message):
        LinearSetting(**{"noise_dimensions": 4, **changes})


def test_trials_are_checked():
    with pytest.raises(InputError, match="trials must be at least 1, got 0"):
        simulate(jax.random.key(0), LinearSetting(4), 0)


ODD = LinearSetting(3, samples=4, sigma=0.7, signal=(1.5, -0.5))


def test_trials_against_the_algebra():
    """w₁ = m·u and w₂ = Σ yᵢ x₂ᵢ from the same draws, in NumPy: no gradient, no model."""
    keys = jax.random.split(jax.random.key(6), 40)
    found = np.asarray(_simulated(keys, ODD))
    signal, threshold = np.array(ODD.signal), 3 * 0.7**2 / 2
    for row, key in zip(found, keys, strict=True):
        drawn = []
        for part in jax.random.split(key, 3):
            label_key, noise_key = jax.random.split(part)
            labels = np.asarray(jax.random.rademacher(label_key, (4,), np.float32))
            drawn.append((labels, 0.7 * np.asarray(jax.random.normal(noise_key, (4, 3)), np.float64)))
        private, public, other = drawn
        margins = lambda model, data: 4 * signal @ signal + data[0] * (data[1] @ (model[0] @ model[1]))
        gap, other_gap = (margins(model, private).mean() - margins(model, public).mean() for model in (private, other))
        above = [margins(private, data)[0] - 4 * signal @ signal > threshold for data in (private, public)]
        expected = [gap, gap > threshold, other_gap <= threshold, (float(above[0]) + float(not above[1])) / 2]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)
    assert 0 < found[:, 1].mean() < 1
    assert 0 < found[:, 2].mean() < 1
    assert set(found[:, 3]) == {0, 0.5, 1}


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_exact_rates_against_adaptive_integration(samples):
    d, m = 3, samples
    setting = LinearSetting(d, samples=m, sigma=0.7)
    mean = lambda f: scipy.integrate.quad(
        lambda q: f(q) * scipy.stats.chi2.pdf(q, d), 0, 80, limit=400, points=[d / 2]
    )[0]
    cdf = scipy.stats.norm.cdf
    member = (lambda q: cdf((q - d / 2) / np.sqrt((m - 1) * q))) if m > 1 else (lambda q: float(q > d / 2))
    found = exact_rates(setting)
    assert found.gap == pytest.approx(3 * 0.49)
    assert found.stolen == pytest.approx(mean(lambda q: cdf((q - d / 2) / np.sqrt(q))), abs=1e-4)
    assert found.independent == pytest.approx(mean(lambda q: cdf(d / np.sqrt(8 * q))), abs=1e-4)
    expected = (mean(member) + mean(lambda q: cdf(d / (2 * np.sqrt(m * q))))) / 2
    assert found.membership == pytest.approx(expected, abs=1e-4 if m > 1 else 2e-3)


def test_the_gap_grows_with_the_variance():
    assert approximate_rates(ODD).gap == pytest.approx(3 * 0.49)
    assert exact_rates(ODD).gap == pytest.approx(3 * 0.49)


def test_the_smallest_setting_is_one():
    setting = LinearSetting(1, samples=1, sigma=0.5)
    found = simulate(jax.random.key(0), setting, 1)
    assert set(found[1:]) <= {0.0, 0.5, 1.0}
