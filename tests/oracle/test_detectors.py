"""PRADA against the published algorithm, a query at a time, and on streams of both kinds."""

import numpy as np
import pytest
from scipy import stats

from dfke_jax import core
from dfke_jax.oracle import Alarm, Prada


def naive(rows, labels, delta, every, least, per_class):
    """Algorithm 3 as it is written, with Python lists."""
    sets, entered, thresholds, minima, history, raised = {}, {}, {}, {}, [], None
    for count, (row, label) in enumerate(zip(rows, labels, strict=True), 1):
        row = np.asarray(row, float).ravel()
        if label not in sets:
            sets[label], entered[label], thresholds[label], minima[label] = [row], [0.0], 0.0, []
        else:
            distance = min(np.sqrt(np.sum((row - member) ** 2)) for member in sets[label])
            minima[label].append(distance)
            if distance > thresholds[label]:
                sets[label].append(row)
                entered[label].append(distance)
                thresholds[label] = max(thresholds[label], np.mean(entered[label]) - np.std(entered[label]))
        if count % every:
            continue
        pooled = np.array([d for of in minima.values() if len(of) >= per_class for d in of])
        if len(pooled) <= least:
            continue
        kept = pooled[np.abs(pooled - pooled.mean()) <= 3 * pooled.std()]
        if len(kept) > least:
            history.append((count, stats.shapiro(kept).statistic))
            if history[-1][1] < delta and raised is None:
                raised = count
    return history, raised, {label: (len(sets[label]), thresholds[label]) for label in sets}


def stream(count, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    rows = np.clip(labels[:, None] * 0.3 + 0.3 * rng.normal(size=(count, 12)), 0, 1).astype(np.float32)
    again = np.arange(count // 2, count, 2)  # near copies: some stay outside the sets
    rows[again], labels[again] = rows[again - count // 2] + np.float32(0.01), labels[again - count // 2]
    return rows, labels


@pytest.mark.parametrize("batch", [1, 37, 1000])
@pytest.mark.parametrize(("every", "per_class"), [(10, 0), (7, 40)])
def test_batches_give_what_single_queries_give(batch, every, per_class):
    rows, labels = stream(400)
    labels[5] = 9  # a class that is met once
    history, raised, sets = naive(rows, labels, 0.97, every, 50, per_class)
    detector = Prada(0.97, every=every, least=50, per_class=per_class)
    for start in range(0, 400, batch):
        alarm = detector.observe(rows[start : start + batch].reshape(-1, 2, 2, 3), labels[start : start + batch])
    assert [count for count, _ in detector.history] == [count for count, _ in history]
    np.testing.assert_allclose([w for _, w in detector.history], [w for _, w in history], rtol=1e-9)
    assert len(history) > 20
    assert raised is not None
    assert alarm == Alarm(True, raised, detector.history[-1][1])
    assert {label: len(group.distances) for label, group in detector._classes.items()} == {
        label: (labels == label).sum() - 1 for label in sets
    }
    for label, (size, threshold) in sets.items():
        group = detector._classes[label]
        assert group.size == size
        assert group.threshold == pytest.approx(threshold, rel=1e-9)
        assert label == 9 or size < (labels == label).sum(), "some queries stayed outside"


def test_blocks_of_a_large_set_change_nothing(monkeypatch):
    rows, labels = stream(300)
    whole, blocks = Prada(), Prada()
    whole.observe(rows, labels)
    monkeypatch.setattr("dfke_jax.oracle.detectors._BLOCK", 7)
    for start in range(0, 300, 50):
        blocks.observe(rows[start : start + 50], labels[start : start + 50])
    assert whole.history == blocks.history
    assert whole.alarm == blocks.alarm


def test_natural_queries_pass_and_steps_from_seeds_are_caught():
    """Independent samples in many dimensions have nearly normal distances; an attacker who walks from seeds by a
    fixed step (Jacobian augmentation) adds a cluster of small ones."""
    rng = np.random.default_rng(1)
    caught = {"natural": [], "walk": []}
    for _ in range(5):
        natural = rng.normal(size=(600, 80))
        walk = natural.copy()
        for row in range(100, 600):
            walk[row] = walk[row - 100] + 0.1 * np.sign(rng.normal(size=80))
        for kind, rows in (("natural", natural), ("walk", walk)):
            caught[kind].append(Prada(0.95).observe(rows, np.arange(600) % 2).query)
    assert caught["natural"] == [None] * 5
    assert all(query is not None and 100 < query <= 300 for query in caught["walk"])


def test_an_alarm_stays_and_there_is_none_before_enough_queries():
    rng = np.random.default_rng(2)
    detector = Prada(0.95)
    assert detector.alarm == Alarm(False, None, None)
    seeds = rng.normal(size=(60, 20))
    alarm = detector.observe(np.concatenate([seeds, seeds + 0.01]), np.zeros(120, int))
    assert alarm.raised
    assert alarm.query == 110, "100 distances are not enough and tests are every 10"
    later = detector.observe(rng.normal(size=(900, 20)), np.zeros(900, int))
    assert later.query == alarm.query
    assert detector.queries == 1020


def test_the_same_query_again_and_again_is_no_error():
    assert Prada().observe(np.ones((250, 4)), np.zeros(250, int)) == Alarm(False, None, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prada(1.0), "delta"),
        (lambda: Prada(every=0), "every"),
        (lambda: Prada(least=2), "least"),
        (lambda: Prada().observe(np.ones((3, 4)), np.zeros(2, int)), "3 rows"),
        (lambda: Prada().observe(np.ones((3, 4)), np.zeros(3)), "integer labels"),
        (lambda: Prada().observe(np.full((3, 4), np.nan), np.zeros(3, int)), "3 of 3 rows"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(core.InputError, match=message):
        make()
    detector = Prada()
    detector.observe(np.ones((2, 4)), np.zeros(2, int))
    with pytest.raises(core.InputError, match="5 numbers, those before had 4"):
        detector.observe(np.ones((2, 5)), np.zeros(2, int))
