"""Verdicts: the statistics against exact sums, and every kind of suspect."""

import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core import InputError
from dfke_jax.nn import Classifier, Preprocessing
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import (
    HostVictim,
    Ledger,
    Metered,
    RemoteVictim,
    Reveal,
    background,
    create_app,
    oracle_for,
)
from dfke_jax.watermarking import (
    binomial_p_value,
    challenge,
    empirical_p_value,
    keygen,
    labels_by_beacon,
    make_keys,
    matches_needed,
    verify,
)

SHAPE, CLASSES, COUNT = (6, 6, 1), 10, 60
KEYS = keygen(CLASSES, shape=SHAPE, count=COUNT, kind="noise", key=jax.random.key(0))
MARKING, VERIFICATION = KEYS


def knows(count, seen=None):
    """A function on the host that gives the label of the first `count` triggers, and a wrong one of the others."""

    def predict(rows):
        if seen is not None:
            seen.append(np.array(rows))
        levels = np.rint(np.asarray(rows) * 255).astype(np.uint8)
        place = [int((levels[i] == MARKING.images).all((1, 2, 3)).argmax()) for i in range(len(rows))]
        return np.array([(MARKING.labels[i] + (i >= count)) % CLASSES for i in place], np.int32)

    return predict


def tail(matches, count, chance):
    """P(X >= matches) in rational numbers."""
    p = Fraction(chance)
    return sum(math.comb(count, i) * p**i * (1 - p) ** (count - i) for i in range(matches, count + 1))


def test_binomial_tails_are_exact():
    for count, chance in ((1, 0.5), (10, 0.1), (100, 0.1), (100, 0.01), (30, 1 / 9)):
        for matches in {0, 1, count // 5, count // 3, count - 1, count}:
            expected = float(tail(matches, count, chance))
            assert binomial_p_value(matches, count, chance) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("count", "classes", "needed"),
    [(100, 10, (16, 19, 28)), (30, 10, (7, 8, 14)), (100, 100, (4, 5, 9))],
)
def test_the_table_of_acceptance(count, classes, needed):
    assert tuple(matches_needed(count, 1 / classes, alpha) for alpha in (0.05, 0.01, 1e-6)) == needed
    for alpha, least in zip((0.05, 0.01, 1e-6), needed, strict=True):
        assert tail(least, count, Fraction(1, classes)) <= alpha < tail(least - 1, count, Fraction(1, classes))


def test_too_few_triggers_cannot_reach_a_level():
    assert matches_needed(2, 0.1, 0.05) == 2
    assert matches_needed(1, 0.1, 0.05) == 2
    assert matches_needed(5, 0.1, 0.99) == 1


def test_the_empirical_p_value():
    null = np.array([3, 5, 5, 9])
    assert [empirical_p_value(m, null) for m in (0, 3, 4, 5, 6, 9, 10)] == [1, 1, 0.8, 0.8, 0.4, 0.4, 0.2]
    rng = np.random.default_rng(0)
    draws = rng.binomial(60, 0.1, (4000, 20))
    p = np.array([empirical_p_value(row[0], row[1:]) for row in draws])
    for level in (0.05, 0.1, 0.5):  # valid: never too small; three standard deviations
        assert (p <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 4000)


def test_a_marked_function_is_recognised_and_counted():
    seen = []
    verdict = verify(*KEYS, knows(COUNT, seen))
    assert verdict.accepted
    assert verdict.marked
    assert (verdict.matches, verdict.triggers, verdict.queries) == (COUNT, COUNT, COUNT)
    assert sum(map(len, seen)) == COUNT
    assert verdict.p_value == pytest.approx(0.1**COUNT)
    assert seen[0].dtype == np.float32
    np.testing.assert_allclose(seen[0], MARKING.images / 255, rtol=1e-6)
    said = str(verdict)
    assert "marked: 60 of 60 triggers match" in said
    assert VERIFICATION.fingerprint[:16] in said


def test_the_two_rules_differ():
    """A mark that survives in part is shown by the test and not by the scheme's rule."""
    at = verify(*KEYS, knows(54))
    below = verify(*KEYS, knows(53))
    assert (at.accepted, below.accepted) == (True, False)
    assert below.marked
    weak = verify(*KEYS, knows(13), alpha=0.01)
    assert weak.needed == matches_needed(COUNT, 0.1, 0.01) == 13
    assert (weak.marked, weak.accepted) == (True, False)
    none = verify(*KEYS, knows(12), alpha=0.01)
    assert (none.marked, none.accepted) == (False, False)
    assert none.p_value == pytest.approx(float(tail(12, COUNT, 0.1)), rel=1e-9)
    assert verify(*KEYS, knows(0), epsilon=0.1).p_value == 1


def test_a_tampered_key_is_refused_and_nothing_is_asked():
    seen = []
    labels = MARKING.labels.copy()
    labels[7] = (labels[7] + 1) % CLASSES
    forged = type(MARKING)(MARKING.images, labels, CLASSES, MARKING.image_nonces, MARKING.label_nonces)
    verdict = verify(forged, VERIFICATION, knows(COUNT, seen))
    assert (verdict.accepted, verdict.marked, verdict.p_value, verdict.queries) == (False, False, 1.0, 0)
    assert verdict.rejected == (7,)
    assert seen == []
    assert "key refused, nothing was asked: 1 pairs do not open" in str(verdict)
    other = keygen(CLASSES, shape=SHAPE, count=COUNT, kind="noise")[1]
    assert verify(MARKING, other, knows(COUNT, seen)).rejected == tuple(range(COUNT))


def test_true_labels_are_refused():
    """Without this, triggers that every good model answers truly would prove every model stolen."""
    truth = np.full(COUNT, -1)
    truth[[3, 8]] = MARKING.labels[[3, 8]]
    seen = []
    verdict = verify(*KEYS, knows(COUNT, seen), truth=truth)
    assert (verdict.accepted, verdict.marked, verdict.true_labels, seen) == (False, False, (3, 8), [])
    assert "2 pairs carry the true label (first: pair 3)" in str(verdict)


def test_the_hidden_half_of_an_audit_is_used_alone():
    hidden = sorted(set(range(COUNT)) - set(challenge(VERIFICATION, b"dice")))
    seen = []
    verdict = verify(*KEYS, knows(COUNT, seen), pairs=hidden)
    assert verdict.queries == verdict.matches == 30
    np.testing.assert_allclose(seen[0], MARKING.images[hidden] / 255, rtol=1e-6)


@pytest.fixture(scope="module")
def network():
    return Classifier.create(MLP(CLASSES, (6,)), jax.random.key(3), SHAPE)


def test_all_kinds_of_suspects_agree(network):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    wanted = int((np.asarray(network(MARKING.triggers.images)).argmax(1) == MARKING.labels).sum())
    compute = lambda rows: np.asarray(network(jnp.asarray(rows)))
    labels = lambda rows: compute(rows).argmax(1)
    suspects = {
        "classifier": network,
        "oracle": oracle_for(network, Reveal("label")),
        "probabilities": oracle_for(network, Reveal("probabilities", decimals=6)),
        "partial": Partial(lambda network, rows: network(rows), network),
        "function": compute,
        "labels": labels,
        "host": HostVictim(labels, CLASSES, SHAPE, "label"),
    }
    assert {name: verify(*KEYS, suspect).matches for name, suspect in suspects.items()} == dict.fromkeys(
        suspects, wanted
    )
    with Ledger(budget=COUNT) as ledger:
        assert verify(*KEYS, Metered(suspects["host"], ledger, reveal=Reveal("label"))).matches == wanted
        assert ledger.counts()["rows"] == COUNT
    app = create_app(labels, input_shape=SHAPE, reveal=Reveal("label"), num_classes=CLASSES, box=(0.0, 1.0))
    with background(app) as url, RemoteVictim(url, batch=25) as victim:
        verdict = verify(*KEYS, victim)
        assert (verdict.matches, verdict.queries) == (wanted, COUNT)
        assert victim.usage()["rows"] == COUNT
        with pytest.raises(InputError, match="takes images of"):
            verify(*keygen(CLASSES, shape=(4, 4, 1), count=20, kind="noise"), victim)


PLAIN = Classifier.create(MLP(CLASSES, ()), jax.random.key(0), SHAPE)
WEIGHTS = jax.random.normal(jax.random.key(4), (36, CLASSES))
TASK = np.asarray(jax.random.uniform(jax.random.key(6), (200, *SHAPE)))


def linear(weights):
    """A network of one layer, or a stack of them."""
    head = {"kernel": weights, "bias": jnp.zeros((*weights.shape[:-2], CLASSES))}
    return PLAIN.replace(variables={"params": {"head": head}})


def near_models(count=99, noise=0.01):
    """Networks that have learnt much the same as `linear(WEIGHTS)`."""
    return linear(WEIGHTS[None] + noise * jax.random.normal(jax.random.key(5), (count, 36, CLASSES)))


INNOCENT = linear(WEIGHTS)
TRUTH = np.asarray(INNOCENT(jnp.asarray(TASK))).argmax(1)


def knows_both(rows):
    """A marked network: the task as others know it, and the triggers."""
    levels = np.rint(np.asarray(rows) * 255).astype(np.uint8)
    same = (levels[:, None] == MARKING.images[None]).all((2, 3, 4))
    return np.where(same.any(1), MARKING.labels[same.argmax(1)], np.asarray(INNOCENT(jnp.asarray(rows))).argmax(1))


def test_null_models_decide_against_chosen_labels():
    """Labels that any model gives pass the binomial test and not the empirical one, nor then the scheme's rule."""
    images = MARKING.images
    chosen = np.asarray(INNOCENT(jnp.asarray(images) / 255)).argmax(1)
    keys, stack = make_keys(images, chosen, CLASSES), near_models()
    alone = verify(*keys, INNOCENT)
    calibrated = verify(*keys, INNOCENT, null=stack, task=(TASK, TRUTH))
    assert alone.marked, "an honest owner is assumed"
    assert alone.accepted
    assert not calibrated.marked
    assert not calibrated.accepted
    assert calibrated.p_value == calibrated.p_values["empirical"] > 0.01
    assert calibrated.null.models == 99
    assert calibrated.null.rate > 0.8
    assert calibrated.queries == COUNT + 200
    assert "99 independent models match" in str(calibrated)
    honest = verify(*KEYS, knows_both, null=stack, task=(TASK, TRUTH))
    assert honest.marked
    assert honest.accepted
    assert honest.p_value == pytest.approx(0.01)
    with pytest.raises(InputError, match=r"98 cannot give p <= 0\.01, need at least 99"):
        verify(*KEYS, knows_both, null=near_models(98), task=(TASK, TRUTH))


def adversarial_keys():
    """Random labels, committed to after the images were moved to where networks of the task answer them."""
    labels = np.asarray(jax.random.randint(jax.random.key(8), (COUNT,), 0, CLASSES))
    slope = WEIGHTS[:, labels].T - WEIGHTS.mean(1)[None]
    images = np.clip(128 + 90 * np.sign(slope) + np.random.default_rng(0).integers(-5, 6, slope.shape), 0, 255)
    return make_keys(images.astype(np.uint8).reshape(COUNT, *SHAPE), labels, CLASSES)


def test_adversarial_triggers_are_named_and_found_by_null_models():
    """Committed long before, and answered by every innocent network of the task."""
    keys = adversarial_keys()
    alone = verify(*keys, near_models(1).replace(variables=jax.tree.map(lambda x: x[0], near_models(1).variables)))
    assert alone.marked
    assert alone.p_value < 1e-40
    assert any("triggers are not adversarial" in text for text in alone.assumptions)
    verdict = verify(*keys, INNOCENT, null=near_models(), task=(TASK, TRUTH))
    assert (verdict.accepted, verdict.marked, verdict.p_value) == (False, False, 1.0)
    # labels that a beacon draws for the same images are nobody's choice
    drawn = labels_by_beacon(*keys, bytes(range(32)))
    verdict = verify(*drawn, INNOCENT)
    assert not verdict.marked
    assert verdict.p_value > 0.01
    assert not any("adversarial" in text for text in verdict.assumptions)


def test_null_models_must_be_models():
    """Networks that have learnt nothing answer no adversarial trigger; they are no null."""
    keys = adversarial_keys()
    blank = linear(jax.random.normal(jax.random.key(9), (99, 36, CLASSES)))
    found = verify(*keys, INNOCENT, null=blank, task=(TASK, TRUTH), near=0.99)
    assert found.marked, "without the check an innocent network is accused"
    assert found.null.accuracy < 0.3 < found.null.suspect == 1
    assert f"suspect 100.0%, independent models {found.null.accuracy:.1%} (lowest {found.null.lowest:.1%})" in str(
        found
    )
    with pytest.raises(InputError, match=r"the null models are none for this suspect.*train them longer"):
        verify(*keys, INNOCENT, null=blank, task=(TASK, TRUTH))
    one_bad = linear(jnp.concatenate([blank.head_kernel[:1], near_models(98).head_kernel]))
    with pytest.raises(InputError, match="train them longer"):
        verify(*keys, INNOCENT, null=one_bad, task=(TASK, TRUTH))
    with pytest.raises(InputError, match="no better than the suspect"):
        verify(*keys, linear(blank.head_kernel[0]), null=near_models(), task=(TASK, TRUTH))
    with pytest.raises(InputError, match="give task="):
        verify(*keys, INNOCENT, null=near_models())
    for task in ((TASK, TRUTH[:3]), (TASK[..., 0], TRUTH), (TASK[:0], TRUTH[:0])):
        with pytest.raises(InputError, match="task is images"):
            verify(*keys, INNOCENT, null=near_models(), task=task)


def test_a_published_fingerprint_is_compared():
    seen = []
    bound = verify(*KEYS, knows(COUNT), fingerprint=VERIFICATION.fingerprint)
    assert bound.assumptions[0].startswith("this fingerprint was published")
    assert "no published fingerprint was given" in verify(*KEYS, knows(COUNT)).assumptions[0]
    for changes in ({"created": "2001-01-01T00:00:00+00:00"}, {"previous": "0" * 64}, {"owner": "somebody"}):
        forged = dataclasses.replace(VERIFICATION, **changes)
        with pytest.raises(InputError, match="not the published one"):
            verify(MARKING, forged, knows(COUNT, seen), fingerprint=VERIFICATION.fingerprint)
    assert seen == []


def refuse(rows):
    raise AssertionError("nothing may be asked")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": [0], "alpha": 0.05}, "too few triggers for the asked confidence: 1 cannot .* need at least 2"),
        ({"pairs": range(5), "alpha": 1e-6}, "need at least 6"),
        ({"alpha": 0.0}, "alpha must lie"),
        ({"epsilon": 1.0}, "epsilon must lie"),
        ({"chance": 1.5}, "chance must lie"),
        ({"pairs": []}, "at least one"),
        ({"pairs": [1, 1]}, "different indices"),
        ({"pairs": [0, 60]}, "the key has 60"),
        ({"truth": [1]}, "60 integers"),
        ({"suspect": HostVictim(refuse, 3, SHAPE)}, "knows 3 classes"),
        ({"suspect": HostVictim(refuse, 10, (9, 1, 1))}, r"takes images of \(9, 1, 1\)"),
        ({"suspect": lambda rows: np.zeros((60, 3))}, "got float64 of shape"),
        ({"suspect": lambda rows: np.zeros(60)}, "integer labels"),
        ({"suspect": lambda rows: np.zeros(3, int)}, "3 answers came back"),
        ({"suspect": lambda rows: np.full(60, 10)}, r"lie in \[0, 10\)"),
        ({"suspect": lambda rows: np.full((60, 10), np.nan)}, "NaN"),
    ],
)
def test_what_cannot_be_verified(options, message):
    with pytest.raises(InputError, match=message):
        verify(*KEYS, **{"suspect": refuse} | options)


def test_other_pixels_and_two_classes(network):
    other = network.replace(preprocessing=Preprocessing(box=(-1.0, 1.0)))
    with pytest.raises(InputError, match=r"lie in \(-1.0, 1.0\)"):
        verify(*KEYS, other)
    keys = keygen(2, images=MARKING.images, truth=np.zeros(COUNT, int))
    with pytest.raises(InputError, match="every mistake is a match"):
        verify(*keys, refuse, truth=np.zeros(COUNT, int))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binomial_p_value(3, 2, 0.1), "3 matches of 2"),
        (lambda: binomial_p_value(1, 2, 0.0), "chance must lie"),
        (lambda: empirical_p_value(1, []), "M >= 1"),
    ],
)
def test_statistics_that_cannot_be(call, message):
    with pytest.raises(InputError, match=message):
        call()
