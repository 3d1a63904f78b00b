"""Cut and choose: who is challenged, what is found, and how often cheating escapes."""

import collections

import numpy as np
import pytest

from dfke_jax.core import InputError
from dfke_jax.watermarking import audit, challenge, escape_probability, make_keys

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (12, 2, 2, 1), np.uint8)
LABELS = RNG.integers(0, 4, 12)
NOW = "2024-05-01T12:00:00+00:00"
MARKING, VERIFICATION = make_keys(IMAGES, LABELS, 4, created=NOW)
NOWHERE = np.full(12, -1)


def answer(public=b"dice", **options):
    asked = challenge(VERIFICATION, public, options.get("opened"))
    return [MARKING.opening(index) for index in asked]


def test_an_honest_owner_passes():
    truth = (LABELS + 1) % 4
    found = audit(VERIFICATION, answer(), b"dice", truth)
    asked = challenge(VERIFICATION, b"dice")
    assert found.passed
    assert (found.not_opening, found.true_labels) == ((), ())
    assert len(asked) == 6
    assert sorted((*found.hidden, *asked)) == list(range(12))
    by_function = audit(VERIFICATION, answer(), b"dice", lambda image: -1 if image.shape == (2, 2, 1) else 0)
    assert by_function == found


def test_cheating_is_found():
    asked = challenge(VERIFICATION, b"dice")
    truth = NOWHERE.copy()
    truth[asked[1]] = LABELS[asked[1]]
    found = audit(VERIFICATION, answer(), b"dice", truth)
    assert not found.passed
    assert found.true_labels == (asked[1],)

    def image_truth(image):
        return LABELS[asked[2]] if (image == IMAGES[asked[2]]).all() else -1

    assert audit(VERIFICATION, answer(), b"dice", image_truth).true_labels == (asked[2],)

    silent = audit(VERIFICATION, answer()[1:], b"dice", NOWHERE)
    assert not silent.passed
    assert silent.not_opening == (asked[0],)
    lying = answer()
    lying[3] = lying[3]._replace(label=(lying[3].label + 1) % 4)
    assert audit(VERIFICATION, lying, b"dice", NOWHERE).not_opening == (asked[3],)
    others = [MARKING.opening(index) for index in range(12) if index not in asked]
    assert audit(VERIFICATION, others, b"dice", NOWHERE).not_opening == asked


def test_the_choice_is_everybodys_and_fair():
    assert challenge(VERIFICATION, b"a") == challenge(VERIFICATION, b"a")
    again = make_keys(IMAGES, LABELS, 4, created=NOW)[1]
    assert challenge(again, b"a") != challenge(VERIFICATION, b"a"), "other commitments, another choice"
    draws = 2000
    counts = collections.Counter()
    together = 0
    for draw in range(draws):
        chosen = challenge(VERIFICATION, draw.to_bytes(2, "little"), 4)
        counts.update(chosen)
        together += {0, 1} <= set(chosen)
    assert len(chosen) == 4
    # each with probability 1/3, a given pair of them with 1/11; five standard deviations
    assert all(abs(counts[i] / draws - 1 / 3) < 5 * np.sqrt(2 / 9 / draws) for i in range(12))
    assert abs(together / draws - 1 / 11) < 5 * np.sqrt(10 / 121 / draws)


def test_how_often_cheating_escapes():
    assert escape_probability(12, 6, 0) == 1
    assert escape_probability(12, 6, 7) == 0
    # half of the pairs: at most 2^-bad
    assert all(escape_probability(200, 100, bad) <= 0.5**bad for bad in range(1, 20))
    draws, bad = 4000, {2, 5}
    escaped = sum(not bad & set(challenge(VERIFICATION, draw.to_bytes(2, "little"))) for draw in range(draws))
    expected = escape_probability(12, 6, 2)
    assert expected == pytest.approx(6 * 5 / (12 * 11))
    assert abs(escaped / draws - expected) < 5 * np.sqrt(expected * (1 - expected) / draws)
    found = audit(VERIFICATION, answer(), b"dice", NOWHERE, confidence=0.95)
    assert escape_probability(12, 6, found.undetected) >= 0.05 > escape_probability(12, 6, found.undetected + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: challenge(VERIFICATION, b"", 12), "12 of 12 pairs to be opened"),
        (lambda: challenge(VERIFICATION, b"", 0), "0 of 12"),
        (lambda: audit(VERIFICATION, [], b"", NOWHERE[:3]), "12 labels, one for each pair"),
        (lambda: audit(VERIFICATION, [], b"", NOWHERE, confidence=1.0), "confidence must lie"),
        (lambda: escape_probability(4, 5, 1), "5 opened"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
