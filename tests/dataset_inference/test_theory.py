"""The linear setting: simulation, exact integrals and normal approximation say the same."""

import math

import jax
import pytest

from dfke_jax.core import InputError
from dfke_jax.dataset_inference import LinearSetting, approximate_rates, exact_rates, simulate

TRIALS = 4000


@pytest.fixture(scope="module")
def found():
    return {d: simulate(jax.random.key(d), LinearSetting(d), TRIALS) for d in (4, 16, 64)}


def four_errors(rate, n=TRIALS):
    return 4 * math.sqrt(rate * (1 - rate) / n)


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
