"""Verdicts on models whose history is known: thieves, independent ones, weak ones; and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.dataset_inference import (
    BlindWalkSettings,
    InferenceSettings,
    MinGDSettings,
    RegressorSettings,
    Verdict,
    dataset_inference,
    judge,
    overlap,
    prepare,
)
from dfke_jax.dataset_inference.case import embed
from dfke_jax.dataset_inference.verdict import judge_embedded

KEY = jax.random.key(40)
SETTINGS = InferenceSettings(
    walk=BlindWalkSettings(starts=4, max_steps=40, noise=3.0), regressor=RegressorSettings(steps=300), permutations=999
)
CENTRES = np.random.default_rng(1).normal(size=(3, 9))


def draw(seed, count):
    """Images (N, 3, 3, 1) of three classes that overlap, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = 0.5 + 0.06 * CENTRES[labels] + 0.1 * rng.normal(size=(count, 9))
    return np.clip(images, 0, 1).astype(np.float32).reshape(count, 3, 3, 1), labels


def kernel_logits(points, weights, rows):
    """log Σ_i exp(−‖x − x_i‖² / h) over the training points of each class: margins are wide around those points."""
    flat = rows.reshape(len(rows), -1)
    squares = jnp.sum(jnp.square(flat[:, None] - points[None]), -1)
    return jnp.log(jnp.exp(-squares / 0.02) @ weights + 1e-12)


def learned(data):
    """A model that remembers its training data."""
    images, labels = data
    weights = np.eye(3, dtype=np.float32)[labels]
    return Partial(kernel_logits, jnp.asarray(images.reshape(len(images), -1)), jnp.asarray(weights))


PRIVATE, PUBLIC = draw(10, 160), draw(11, 160)
VICTIM = learned(PRIVATE)
INDEPENDENTS = [learned(draw(100 + i, 160)) for i in range(20)]
FINE_TUNED = learned(tuple(np.concatenate(parts) for parts in zip(PRIVATE, draw(12, 40), strict=True)))
INNOCENT = learned(draw(13, 160))


@pytest.fixture(scope="module")
def case():
    return prepare(PRIVATE, PUBLIC, victim=VICTIM, key=KEY, independents=INDEPENDENTS, settings=SETTINGS)


def test_a_thief_is_found_and_an_innocent_model_is_not(case):
    victim, thief, innocent = (judge(case, model) for model in (VICTIM, FINE_TUNED, INNOCENT))
    for verdict in (victim, thief):
        assert verdict.stolen
        assert verdict.p_value == verdict.p_values["conformal"] == 1 / 21
        assert verdict.p_values["welch"] < 0.01
        assert verdict.test.effect > 0
        assert verdict.test.interval[0] > 0
        assert str(verdict).startswith("stolen: p = 0.0476 (conformal), false-alarm rate 0.0476")
    assert victim.control == victim.p_values["welch"]
    assert not innocent.stolen
    assert innocent.p_values["welch"] > 0.01
    assert innocent.accused_independents[1] == 20
    assert innocent.accused_independents[0] <= 4
    assert str(innocent).startswith("inconclusive")
    assert victim.samples_revealed == 80
    assert victim.tested == (80, 80)
    assert victim.curve.samples[-1] == 80
    assert victim.curve.median[-1] == pytest.approx(victim.p_values["welch"])
    assert any("independent models are what an innocent" in text for text in victim.assumptions)


def test_one_call_says_the_same_on_the_host_and_counts_what_was_sent(case):
    counted = 0

    def endpoint(rows):
        nonlocal counted
        counted += len(rows)
        points, weights = map(np.asarray, FINE_TUNED.args)
        squares = np.square(rows.reshape(len(rows), 1, 9) - points[None]).sum(-1)
        return np.log(np.exp(-squares / 0.02) @ weights + 1e-12).argmax(1)

    settings = dataclasses.replace(SETTINGS, walk=dataclasses.replace(SETTINGS.walk, block=1))
    verdict = dataset_inference(PRIVATE, PUBLIC, endpoint, victim=VICTIM, key=KEY, settings=settings, host=True)
    fused = judge(case, FINE_TUNED)
    assert verdict.p_values["welch"] == pytest.approx(fused.p_values["welch"], rel=1e-3)
    assert verdict.queries == verdict.rows_sent == counted
    assert verdict.queries == pytest.approx(fused.queries, rel=1e-3)  # two roundings of one function
    assert fused.rows_sent > fused.queries
    assert verdict.decided_by == "welch"
    assert verdict.false_alarm_rate == 0.05
    assert verdict.accused_independents is None
    assert any("no independent models" in note for note in verdict.notes)


@pytest.mark.slow
def test_what_an_endpoint_is_charged_is_what_the_verdict_prints():
    """Steps asked in blocks are rows that nobody needed and the endpoint charges all the same."""
    charged = 0

    def endpoint(rows):
        nonlocal charged
        charged += len(rows)
        return np.asarray(FINE_TUNED(rows)).argmax(1)

    settings = dataclasses.replace(SETTINGS, walk=dataclasses.replace(SETTINGS.walk, block=7))
    verdict = dataset_inference(PRIVATE, PUBLIC, endpoint, victim=VICTIM, key=KEY, settings=settings, host=True)
    assert verdict.rows_sent == charged > verdict.queries
    assert f"{charged} rows sent ({verdict.queries} step by step)" in str(verdict)


def test_several_looks_share_the_level(case):
    settings = dataclasses.replace(SETTINGS, looks=10)
    assert settings.level == 0.005
    with pytest.raises(InputError, match=r"20 independent models cannot .* below 0.005: at least 200"):
        prepare(PRIVATE, PUBLIC, victim=VICTIM, key=KEY, independents=INDEPENDENTS, settings=settings)
    found = embed(FINE_TUNED, case.samples, case.key, case.settings, case.box)
    once = judge_embedded(case._replace(null=()), found)
    p = once.p_value
    assert once.stolen
    assert any("this is the only verdict that is looked at" in text for text in once.assumptions)
    for looks, stolen in ((int(0.05 / p) - 1, True), (int(0.05 / p) + 1, False)):
        shared = dataclasses.replace(SETTINGS, looks=looks)
        verdict = judge_embedded(case._replace(null=(), settings=shared), found)
        assert (verdict.p_value, verdict.looks, verdict.stolen) == (p, looks, stolen)
        assert verdict.false_alarm_rate == 0.05 / looks
        assert any(f"no more than {looks} verdicts are looked at" in text for text in verdict.assumptions)


def test_mingd_embeds_too():
    settings = InferenceSettings(embedding="mingd", descent=MinGDSettings(max_steps=60, linf_step=0.005), revealed=40)
    verdict = dataset_inference(PRIVATE, PUBLIC, FINE_TUNED, victim=VICTIM, key=KEY, settings=settings)
    assert verdict.stolen
    assert verdict.gradients > 0
    assert verdict.samples_revealed == 40
    assert verdict.queries == 80
    with pytest.raises(InputError, match="MinGD needs the suspect's gradients"):
        dataset_inference(PRIVATE, PUBLIC, FINE_TUNED, victim=VICTIM, key=KEY, settings=settings, host=True)


def test_known_distances_give_the_same_verdict_and_json_takes_it(case):
    found = embed(INNOCENT, case.samples, case.key, case.settings, case.box)
    verdict = judge_embedded(case, found)
    content = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert content == judge(case, INNOCENT).to_json()
    assert set(content) == {field.name for field in dataclasses.fields(Verdict)}
    assert content["test"]["effect"] == verdict.test.effect
    assert content["curve"]["samples"] == verdict.curve.samples.tolist()
    saturated = dataclasses.replace(verdict, test=verdict.test._replace(interval=(-np.inf, np.inf)))
    assert saturated.to_json()["test"]["interval"] == [None, None]


def test_references_calibrate():
    verdict = dataset_inference(
        PRIVATE, PUBLIC, FINE_TUNED, victim=VICTIM, key=KEY, references=INDEPENDENTS[:3], settings=SETTINGS
    )
    assert verdict.stolen
    assert any("after calibration by the reference models" in text for text in verdict.assumptions)


def test_a_weak_suspect_is_reported_as_a_confound(case):
    images, labels = draw(14, 160)
    weak = learned((images, np.where(np.arange(160) % 3 < 2, (labels + 1) % 3, labels)))
    verdict = judge(case, weak)
    assert verdict.accuracy["suspect"]["public"] < verdict.accuracy["victim"]["public"] - 0.05
    assert any("distances of a weaker model are not comparable; both_correct=True" in note for note in verdict.notes)
    settings = dataclasses.replace(SETTINGS, both_correct=True)
    filtered = dataset_inference(PRIVATE, PUBLIC, weak, victim=VICTIM, key=KEY, settings=settings)
    assert max(filtered.tested) < 80
    with pytest.raises(InputError, match="classified correctly by both models; the test needs 10"):
        dataset_inference(PRIVATE, PUBLIC, Partial(never), victim=VICTIM, key=KEY, settings=settings)


def never(rows):
    """No class that exists."""
    return jnp.full(len(rows), 3, jnp.int32)


def test_walks_that_never_flip_and_a_test_without_power_are_reported():
    tiny = dataclasses.replace(SETTINGS, walk=BlindWalkSettings(starts=2, max_steps=3, noise=1e-3))
    verdict = dataset_inference(PRIVATE, PUBLIC, VICTIM, victim=VICTIM, key=KEY, settings=tiny)
    assert verdict.never > 0.8
    assert any("ended at the cap: raise the noise" in note for note in verdict.notes)
    same = learned(draw(15, 320))  # a victim trained on neither set
    verdict = dataset_inference(PRIVATE, PUBLIC, same, victim=same, key=KEY, settings=SETTINGS)
    assert verdict.control > 0.05
    assert not verdict.stolen
    assert any("the victim itself is not recognised" in note for note in verdict.notes)


def test_overlap_is_found_by_hash():
    images, others = PRIVATE[0][:5], PUBLIC[0][:4].copy()
    assert overlap(images, others) == []
    others[2] = images[3]
    assert overlap(images, others) == [(3, 2)]
    assert overlap(np.round(images * 255).astype(np.uint8), others) == [(3, 2)]
    public = PUBLIC[0].copy(), PUBLIC[1]
    public[0][7] = PRIVATE[0][0]
    with pytest.raises(InputError, match=r"1 public images are private ones too \(first: private 0 = public 7\)"):
        prepare(PRIVATE, public, victim=VICTIM, key=KEY)


def part(samples, rows):
    return samples[0][:rows], samples[1][:rows]


@pytest.mark.parametrize(
    ("private", "public", "options", "message"),
    [
        (PRIVATE, part(PUBLIC, 150), {}, "160 private and 150 public samples: give equally many"),
        (part(PRIVATE, 16), part(PUBLIC, 16), {}, "leave 8 to train on and 8 to test with; at least 10 and 10"),
        (PRIVATE, PUBLIC, {"settings": InferenceSettings(revealed=90)}, "80 to test with; at least 10 and 90"),
        (PRIVATE, PUBLIC, {"independents": INDEPENDENTS[:5]}, "5 independent models cannot .* at least 20 are needed"),
        (PRIVATE, PUBLIC, {"independents": INDEPENDENTS, "settings": InferenceSettings(alpha=0.01)}, "at least 100"),
        (PRIVATE, (PUBLIC[0][:, :2], PUBLIC[1]), {}, "differ in shape"),
        (PRIVATE, (2 * PUBLIC[0], PUBLIC[1]), {}, r"public images must lie in \[0.0, 1.0\]"),
        (PRIVATE, (PUBLIC[0] * np.nan, PUBLIC[1]), {}, "public images contain NaN"),
        (PRIVATE, (PUBLIC[0], PUBLIC[1][:9]), {}, r"public labels must have shape \(160,\), got \(9,\)"),
        (PRIVATE, PUBLIC[0], {}, r"public samples must be a pair \(images, labels\)"),
    ],
)
def test_refusals(private, public, options, message):
    with pytest.raises(InputError, match=message):
        dataset_inference(private, public, VICTIM, **{"victim": VICTIM, "key": KEY, **options})


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"alpha must lie in \(0, 1\), got 0", {"alpha": 0}),
        (r"train must lie in \(0, 1\), got 1", {"train": 1}),
        ("minimum must be at least 2, got 1", {"minimum": 1}),
        ("looks must be a whole number, at least 1, got 0", {"looks": 0}),
        ("looks must be a whole number, at least 1, got 1.5", {"looks": 1.5}),
        ("revealed must be at least 10, got 9", {"revealed": 9}),
        ("accuracy_margin must not be negative", {"accuracy_margin": -0.1}),
    ],
)
def test_settings_are_checked(message, changes):
    with pytest.raises(InputError, match=message):
        InferenceSettings(**changes)


def test_other_names():
    with pytest.raises(UnknownNameError, match="unknown embedding 'mindg'; nearest: mingd"):
        InferenceSettings(embedding="mindg")  # type: ignore[arg-type]
    assert dataclasses.is_dataclass(Verdict)
