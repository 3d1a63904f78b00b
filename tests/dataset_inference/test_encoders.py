"""Verdicts on encoders whose history is known: those that remember images, innocent ones; and what is refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core import InputError
from dfke_jax.dataset_inference import (
    DensitySettings,
    EncoderVerdict,
    encoder_inference,
    fit_density,
    judge_encoder,
    prepare_encoders,
    two_sided,
    welch_test,
)
from dfke_jax.dataset_inference.statistics import WelchTest

SETTINGS = DensitySettings(components=2, dimensions=6, permutations=499, normalise=False)


def draw(seed, count):
    rng = np.random.default_rng(seed)
    return np.clip(0.5 + 0.12 * rng.normal(size=(count, 3, 3, 1)), 0, 1).astype(np.float32)


def remember(known, strength, rows):
    """The pixels, drawn towards their mean (or with a negative strength away from it) near images that are known."""
    flat = rows.reshape(len(rows), -1)
    nearest = jnp.square(flat[:, None] - known[None]).sum(-1).min(1)
    return 0.5 + (flat - 0.5) * (1 - strength * jnp.exp(-nearest / 0.005))[:, None]


def learned(images, strength=0.5):
    return Partial(remember, jnp.asarray(images.reshape(len(images), -1)), strength)


PRIVATE, PUBLIC = draw(1, 120), draw(2, 60)
VICTIM, PUSHED = learned(PRIVATE), learned(PRIVATE, -0.5)
INDEPENDENTS = [learned(draw(100 + i, 120)) for i in range(20)]
THIEF = learned(np.concatenate([PRIVATE, draw(3, 30)]), 0.4)
INNOCENT = learned(draw(4, 120))


@pytest.fixture(scope="module")
def case():
    return prepare_encoders(PRIVATE, PUBLIC, victim=VICTIM, independents=INDEPENDENTS, settings=SETTINGS)


def test_a_thief_is_found_and_an_innocent_encoder_is_not(case):
    for suspect in (VICTIM, THIEF):
        verdict = judge_encoder(case, suspect)
        assert verdict.stolen
        assert verdict.decided_by == "conformal"
        assert verdict.p_value == verdict.p_values["conformal"] == 1 / 21
        assert verdict.p_values["welch"] < 1e-3
        assert verdict.p_values["permutation"] == 1 / 500
        assert verdict.test.effect > 0
        assert str(verdict).startswith("stolen: p = 0.0476 (conformal)")
    innocent = judge_encoder(case, INNOCENT)
    assert not innocent.stolen
    assert innocent.p_values["conformal"] > 0.05
    assert innocent.accused_independents[1] == 20
    assert verdict.control == case.control.p_value < 1e-3
    assert (verdict.fitted, verdict.tested, verdict.queries) == (60, (60, 60), 180)
    assert verdict.dimensions == 6
    assert verdict.curve.median[-1] == pytest.approx(verdict.p_values["welch"])
    content = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert set(content) == {field.name for field in dataclasses.fields(EncoderVerdict)}


def test_the_score_is_minus_the_log_likelihood_of_rows_that_did_not_fit(case):
    order = np.random.default_rng(0).permutation(120)
    np.testing.assert_array_equal(case.images.fitting, PRIVATE[order[:60]])
    np.testing.assert_array_equal(case.images.private, PRIVATE[order[60:]])
    np.testing.assert_array_equal(case.images.public, PUBLIC)


def test_private_images_that_are_less_likely_are_found_in_either_direction_alone():
    """What drives its images apart is no thief to the published test."""
    arguments = {"victim": PUSHED, "independents": [learned(draw(100 + i, 120), -0.5) for i in range(20)]}
    published = encoder_inference(PRIVATE, PUBLIC, PUSHED, **arguments, settings=SETTINGS)
    either = encoder_inference(
        PRIVATE, PUBLIC, PUSHED, **arguments, settings=dataclasses.replace(SETTINGS, alternative="either")
    )
    assert published.test.effect < 0
    assert not published.stolen
    assert published.p_values["conformal"] > 0.9
    assert any("the victim itself is not recognised" in note for note in published.notes)
    assert any("less likely than public ones" in note for note in published.notes)
    assert not any("less likely" in note for note in either.notes)
    assert either.stolen
    assert either.p_values["conformal"] == 1 / 21
    assert either.p_values["welch"] == either.control < 1e-3
    assert either.p_values["permutation"] == 2 / 500


def test_two_sided_is_scipys():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(5)
    first, second = rng.normal(size=30), rng.normal(0.5, 2, 20)
    for pair in ((first, second), (second, first)):
        assert two_sided(welch_test(*pair)) == pytest.approx(ttest_ind(*pair, equal_var=False).pvalue)
    # far out, where one minus a p-value would be zero
    assert 0 < two_sided(WelchTest(1.0, -20.0, 300.0, -1.0, (-2.0, 0.0), -1.0, (9, 9))) < 1e-50


def test_without_independent_encoders_and_on_the_host():
    charged = []

    def endpoint(rows):
        charged.append(len(rows))
        return np.asarray(THIEF(rows))

    verdict = encoder_inference(PRIVATE, PUBLIC, endpoint, victim=VICTIM, settings=SETTINGS, host=True)
    assert verdict.queries == sum(charged)
    assert verdict.decided_by == "welch"
    assert verdict.false_alarm_rate == 0.05
    assert verdict.accused_independents is None
    assert any("no independent encoders" in note for note in verdict.notes)
    fused = encoder_inference(PRIVATE, PUBLIC, THIEF, victim=VICTIM, settings=SETTINGS)
    looks = dataclasses.replace(SETTINGS, looks=4)
    several = encoder_inference(PRIVATE, PUBLIC, THIEF, victim=VICTIM, settings=looks)
    assert (several.p_value, several.false_alarm_rate, several.looks) == (fused.p_value, 0.0125, 4)
    assert any("no more than 4 verdicts" in text for text in several.assumptions)
    assert verdict.test.statistic == pytest.approx(fused.test.statistic, rel=1e-3)


@pytest.mark.slow
def test_welch_accuses_innocent_encoders_as_often_as_it_says():
    """Gaussian images under an encoder that learnt nothing: of 100 tests at 0.1 about 10 accuse."""
    accused = 0
    for seed in range(100):
        rows = np.random.default_rng(1000 + seed).normal(size=(90, 4))
        density = fit_density(rows[:30], DensitySettings(components=1, normalise=False))
        accused += welch_test(-density(rows[30:60]), -density(rows[60:])).p_value < 0.1
    assert 1 <= accused <= 20  # within 3.5 standard deviations


TWICE = np.concatenate([PRIVATE, PRIVATE[:60]])


@pytest.mark.parametrize(
    ("private", "public", "changes", "message"),
    [
        (
            PRIVATE,
            np.concatenate([PUBLIC, PRIVATE[5:6]]),
            {},
            r"1 public images are private ones too \(first: private 5",
        ),
        (TWICE, PUBLIC, {}, "private images occur more than once"),
        (PRIVATE, draw(2, 60)[:, :2], {}, "differ in shape"),
        (PRIVATE[:18], PUBLIC, {}, "18 private images leave 9 to fit"),
        (PRIVATE, PUBLIC[:9], {}, "against 9 public ones"),
        (PRIVATE, PUBLIC, {"components": 61}, "60 to fit a density of 61 components"),
        (PRIVATE * np.nan, PUBLIC, {}, "private images contain NaN"),
        (PRIVATE, PUBLIC * 300, {}, r"public images must lie in \[0.0, 1.0\]"),
    ],
)
def test_images_that_are_refused(private, public, changes, message):
    with pytest.raises(InputError, match=message):
        prepare_encoders(private, public, victim=VICTIM, settings=dataclasses.replace(SETTINGS, **changes))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda x: jnp.ones((len(x), 3)), "the encoder has collapsed"),
        (lambda x: x.reshape(len(x), -1) / 0.0, "NaN or infinity in"),
        (lambda x: x, r"must be \(N, D\)"),
    ],
)
def test_encoders_that_are_refused(encoder, message, case):
    with pytest.raises(InputError, match=message):
        judge_encoder(case, encoder)


def test_too_few_independent_encoders():
    with pytest.raises(InputError, match="5 independent models cannot give a p-value below"):
        prepare_encoders(PRIVATE, PUBLIC, victim=VICTIM, independents=INDEPENDENTS[:5], settings=SETTINGS)
