"""Blind walks against an attacker who takes one step at a time, fused and on the host, and what they are charged."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core import InputError, device_mesh
from dfke_jax.dataset_inference import FAMILIES, BlindWalkSettings, blind_walk
from dfke_jax.dataset_inference.blind_walk import directions

module = importlib.import_module("dfke_jax.dataset_inference.blind_walk")
KEY = jax.random.key(31)
SETTINGS = BlindWalkSettings(starts=3, max_steps=23, noise=4.0, block=4, lanes=16)


class StepByStep:
    """A label-only endpoint that counts what it is asked, and the attacker who asks it one row at a time."""

    def __init__(self, forward):
        self.forward, self.count = forward, 0

    def label(self, row):
        self.count += 1
        return self.forward(row.astype(np.float64)[None])[0].argmax()

    def walk(self, image, way, label, max_steps, family):
        for k in range(1, max_steps + 1):
            there = np.clip(image + np.float32(k) * way, 0, 1)
            flipped = self.label(there) != label
            if flipped:
                break
        delta = (there - image).astype(np.float64)
        return k, flipped, [np.abs(delta).sum(), np.sqrt((delta**2).sum()), np.abs(delta).max()][family]


@pytest.fixture(scope="module")
def labels(network, images):
    """What the network says, except for two samples, which it gets wrong."""
    own = np.asarray(network(images)).argmax(1)
    own[:2] = (own[:2] + 1) % 4
    return own


@pytest.fixture(scope="module")
def step_by_step(by_hand, images, labels):
    """Distances, steps, flipped, and the queries of each sample."""
    ways = np.asarray(directions(KEY, jnp.arange(7, dtype=jnp.uint32), 16, SETTINGS))
    attacker, asked = StepByStep(by_hand[0]), []
    found = np.zeros((7, 3, 3, 3))
    for i, image in enumerate(images.reshape(7, 16)):
        before = attacker.count
        for start in range(3):
            for family in range(3):
                found[i, start, family] = attacker.walk(image, ways[i, start, family], labels[i], 23, family)
        asked.append(attacker.count - before)
    return found[..., 2], found[..., 0], found[..., 1].astype(bool), np.array(asked)


def agrees(walks, expected):
    distances, steps, flipped, asked = expected
    np.testing.assert_array_equal(walks.steps, steps)
    np.testing.assert_array_equal(walks.flipped, flipped)
    np.testing.assert_allclose(walks.distances, distances, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(walks.asked, asked)
    assert walks.queries == asked.sum()
    assert walks.never == pytest.approx(1 - flipped.mean())


def test_fused_equals_step_by_step(network, images, labels, step_by_step):
    walks = blind_walk(KEY, network, images, labels, SETTINGS)
    agrees(walks, step_by_step)
    assert 0.05 < walks.never < 0.95, "both ways to end occur"
    assert (np.asarray(walks.steps)[:2] == 1).all(), "a wrong answer flips at once"


@pytest.mark.parametrize(("block", "lanes"), [(1, 5), (10, 3), (23, 64), (40, 7), (4, None)])
def test_blocks_and_lanes_change_nothing(network, images, labels, step_by_step, block, lanes):
    agrees(
        blind_walk(KEY, network, images, labels, dataclasses.replace(SETTINGS, block=block, lanes=lanes)), step_by_step
    )


def test_rows_at_a_time_follow_the_size_of_the_images():
    settings = BlindWalkSettings()
    assert [5 * settings.lanes_for(size) for size in (16, 1024, 3072, 150_528)] == [2045, 125, 60, 60]
    assert [5 * settings.lanes_for(size, host=True) for size in (16, 150_528)] == [640, 640]
    assert BlindWalkSettings(lanes=7).lanes_for(1024) == BlindWalkSettings(lanes=7).lanes_for(9, host=True) == 7


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("block", [1, 4])
def test_a_host_answers_logits_or_labels_and_is_sent_what_is_reported(
    by_hand, images, labels, step_by_step, logits, block
):
    sent, largest = [], []

    def endpoint(rows):
        assert isinstance(rows, np.ndarray)
        assert rows.shape[1:] == (4, 4, 1)
        sent.append(len(rows))
        largest.append(np.abs(rows - 0.5).max())
        answers = by_hand[0](rows.reshape(len(rows), 16).astype(np.float64))
        return answers if logits else answers.argmax(1)

    settings = dataclasses.replace(SETTINGS, block=block)
    walks = blind_walk(KEY, endpoint, images, labels, settings, host=True)
    agrees(walks, step_by_step)
    assert sum(sent) == walks.rows_sent(settings)
    assert max(sent) <= block * SETTINGS.lanes
    assert max(largest) <= 0.5
    if block == 1:
        assert sum(sent) == walks.queries
    else:
        assert sum(sent) > walks.queries


@pytest.mark.parametrize("host", [False, True])
def test_without_labels_the_models_own_answer_is_asked_for(network, by_hand, images, host):
    own = np.asarray(network(images)).argmax(1)
    answers = (lambda rows: np.asarray(network(rows))) if host else network
    walks = blind_walk(KEY, answers, images, None, SETTINGS, host=host)
    given = blind_walk(KEY, network, images, own, SETTINGS)
    np.testing.assert_array_equal(walks.steps, given.steps)
    np.testing.assert_array_equal(walks.asked, np.asarray(given.asked) + 1)
    assert walks.rows_sent(SETTINGS) == given.rows_sent(SETTINGS) + 7


@pytest.mark.slow
def test_few_samples_at_a_time_and_several_devices(network, images, labels, monkeypatch, four):
    images, labels = np.concatenate([images, images[:1]]), np.append(labels, labels[0])
    reference = blind_walk(KEY, network, images, labels, SETTINGS)
    with jax.set_mesh(device_mesh(devices=four)):
        spread = blind_walk(KEY, network, images, labels, SETTINGS)
    assert len(spread.distances.sharding.device_set) == 4
    jax.clear_caches()
    monkeypatch.setattr(module, "_samples_at_a_time", lambda size, settings: 3)
    parts = blind_walk(KEY, network, images, labels, SETTINGS)
    host = blind_walk(KEY, lambda rows: np.asarray(network(rows)), images, labels, SETTINGS, host=True)
    jax.clear_caches()
    for found in (spread, parts, host):
        np.testing.assert_array_equal(found.steps, reference.steps)
        np.testing.assert_allclose(found.distances, reference.distances, rtol=1e-5, atol=1e-7)


def test_directions_come_from_their_families():
    settings = BlindWalkSettings(starts=40, noise=2.0)
    drawn = np.asarray(directions(KEY, jnp.arange(5, dtype=jnp.uint32), 500, settings), np.float64)
    assert drawn.shape == (5, 40, 3, 500)
    laplace, gaussian, uniform = (drawn[:, :, i].ravel() for i in range(3))
    n = laplace.size
    assert np.abs(laplace).mean() == pytest.approx(2 * 0.01, rel=6 / np.sqrt(n))  # its scale is its mean deviation
    assert laplace.std() == pytest.approx(2 * 0.01 * np.sqrt(2), rel=0.02)
    assert gaussian.std() == pytest.approx(2 * 0.005, rel=6 / np.sqrt(2 * n))
    assert np.abs(uniform).max() <= 2 * 0.005
    assert uniform.std() == pytest.approx(2 * 0.005 / np.sqrt(3), rel=0.02)
    assert FAMILIES == ("laplace", "gaussian", "uniform")
    for part in (laplace, gaussian, uniform):
        assert abs(part.mean()) < 5 * part.std() / np.sqrt(n)
    again = np.asarray(directions(KEY, jnp.array([3], jnp.uint32), 500, settings))
    np.testing.assert_array_equal(again[0], drawn[3].astype(np.float32))


def test_linear_boundary_in_closed_form():
    """One pixel, a threshold at 0.6: the first flip is at ⌈(0.6 − x)/δ₀⌉ steps where the direction points there."""
    settings = BlindWalkSettings(starts=20, max_steps=50, noise=4)
    walks = blind_walk(KEY, Partial(above), np.array([[0.5]]), np.array([0]), settings)
    ways = np.asarray(directions(KEY, jnp.zeros(1, jnp.uint32), 1, settings), np.float64)[..., 0]
    needed = np.where(ways > 0, np.ceil(0.1 / np.maximum(ways, 1e-9)), np.inf)
    np.testing.assert_array_equal(walks.flipped, needed <= 50)
    np.testing.assert_array_equal(walks.steps, np.minimum(needed, 50))


def above(rows):
    return (rows[:, 0] > 0.6).astype(jnp.int32)


def test_a_model_that_never_changes_its_mind(images):
    walks = blind_walk(KEY, Partial(always), images, np.zeros(7, int), SETTINGS)
    assert walks.never == 1
    assert walks.queries == 7 * 9 * 23
    assert not walks.flipped.any()


def always(rows):
    return jnp.zeros(len(rows), jnp.int32)


def test_ties_go_to_the_first_class():
    answers = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 2.0, 2.0]])
    for wanted in range(3):
        found = module._differs(answers, jnp.full(4, wanted))
        np.testing.assert_array_equal(found, np.asarray(answers).argmax(1) != wanted)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("starts must be at least 1, got 0", {"starts": 0}),
        ("max_steps must be at least 1, got 0", {"max_steps": 0}),
        ("block must be at least 1, got -1", {"block": -1}),
        ("noise must be positive, got 0", {"noise": 0}),
        ("laplace must be positive, got nan", {"laplace": float("nan")}),
    ],
)
def test_settings_are_checked(message, changes):
    with pytest.raises(InputError, match=message):
        BlindWalkSettings(**changes)


def test_inputs_and_answers_are_checked(network, images):
    with pytest.raises(InputError, match=r"labels must have shape \(7,\), got \(6,\)"):
        blind_walk(KEY, network, images, np.zeros(6, int))
    with pytest.raises(InputError, match="at least one sample"):
        blind_walk(KEY, network, images[:0], np.zeros(0, int))
    wanted = np.zeros(7, int)
    for answer, message in (
        (lambda rows: np.full((len(rows), 4), np.nan), "640 of 640 answers contain NaN"),
        (lambda rows: np.zeros(len(rows)), "expected integer labels .* got float64"),
        (lambda rows: np.zeros(3, int), r"got int64 of shape \(3,\)"),
    ):
        with pytest.raises(InputError, match=message):
            blind_walk(KEY, answer, np.repeat(images, 3, 0), np.repeat(wanted, 3), host=True)
