"""Uchida, Zhang, frontier stitching, margins and radioactive data on digits: marked networks are found, others are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from dfke_jax import data
from dfke_jax.core import InputError, UnknownNameError, run
from dfke_jax.core.method import Static
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.lenet import LeNet5
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import optimiser, trained, training
from dfke_jax.watermarking import (
    MarginSettings,
    RadioactiveSettings,
    aligned_rows,
    bit_error_rate,
    capacities,
    commit_mark,
    content_triggers,
    cosine_p_value,
    extract_bits,
    fisher,
    frontier_keys,
    leaning,
    loss_gain,
    margin_mark,
    margin_training,
    margins,
    measured_rate,
    noise_triggers,
    radioactive_images,
    radioactive_mark,
    trigger_set,
    trigger_training,
    uchida_mark,
    uchida_penalty,
    unrelated_triggers,
    verify_frontier,
    verify_margin,
    verify_radioactive,
    verify_radioactive_black_box,
    verify_triggers,
    verify_uchida,
    word_overlay,
)
from dfke_jax.watermarking.commitments import COMMITTED, NOT_COMMITTED
from dfke_jax.watermarking.evidence import EXCHANGEABLE
from dfke_jax.watermarking.margin_based import _points

STEPS, BATCH = 300, 32
KEY = jax.random.key(31)
DIGITS = data.load("digits")
IMAGES, LABELS = jnp.asarray(DIGITS.train.images), jnp.asarray(DIGITS.train.labels)
HELD = DIGITS.test
BLANK = Classifier.create(MLP(10, (32,)), KEY, (8, 8, 1))


def plain(images=IMAGES, **options):
    return training(
        BLANK,
        images,
        LABELS,
        loss=Partial(cross_entropy),
        optimizer=optimiser("adam", 5e-3, STEPS),
        batch_size=BATCH,
        **options,
    )


def fitted(method, seed):
    return trained(BLANK, run(method, jax.random.key(seed), STEPS, chunk=STEPS).state)


def accuracy(network):
    return (network.predict(HELD.images).argmax(1) == HELD.labels).mean()


@pytest.fixture(scope="module")
def clean():
    return fitted(plain(), 0)


@pytest.fixture(scope="module")
def others():
    return [fitted(plain(), seed) for seed in (1, 2, 3)]


# ---- Uchida


def test_uchida_bits_are_read_from_a_marked_network_only(clean, others):
    mark = uchida_mark(KEY, BLANK, 24)
    marked = fitted(plain(penalty=uchida_penalty(mark, 0.1)), 4)
    assert bit_error_rate(marked, mark) == 0
    assert verify_uchida(marked, mark).p_value == 0.5**24
    assert accuracy(marked) > accuracy(clean) - 0.03
    for other in (clean, *others):
        assert verify_uchida(other, mark).p_value > 1e-3
    weights = np.asarray(marked.variables["params"]["dense1"]["kernel"], np.float64).mean(1)
    np.testing.assert_array_equal(extract_bits(marked, mark), np.asarray(mark.matrix, np.float64) @ weights > 0)


def test_uchida_penalty_is_the_summed_cross_entropy_of_the_mean_kernel():
    network = Classifier.create(LeNet5(3, (2, 3), (5, 4)), KEY, (32, 32, 1))
    mark = uchida_mark(KEY, network, 20)
    assert mark.layer == "conv2"
    assert capacities(network) == {"conv1": 25, "conv2": 50}
    kernel = np.asarray(network.variables["params"]["conv2"]["kernel"], np.float64)
    w = np.array([kernel[i, j, c].mean() for i in range(5) for j in range(5) for c in range(2)])
    y = 1 / (1 + np.exp(-np.asarray(mark.matrix, np.float64) @ w))
    b = np.asarray(mark.bits)
    expected = 0.3 * -(b * np.log(y) + (1 - b) * np.log(1 - y)).sum()
    np.testing.assert_allclose(uchida_penalty(mark, 0.3)(network.variables["params"]), expected, rtol=1e-5)


def test_uchida_bits_of_an_innocent_network_are_fair_coins(clean):
    """Whatever the message: the counts over keys are binomial."""
    message = np.ones(24, int)
    marks = [uchida_mark(jax.random.key(i), clean, bits=message) for i in range(150)]
    counts = np.array([verify_uchida(clean, mark).successes for mark in marks])
    rng = np.random.default_rng(0)
    above, at = stats.binom.sf(counts, 24, 0.5), stats.binom.pmf(counts, 24, 0.5)
    assert stats.kstest(above + rng.random(150) * at, "uniform").pvalue > 1e-3


def test_bits_that_are_set_afterwards_match_and_the_verdict_says_so(clean):
    mark = uchida_mark(KEY, clean, 48)
    afterwards = uchida_mark(KEY, clean, bits=extract_bits(clean, mark))
    found = verify_uchida(clean, afterwards)
    assert found.p_value == 0.5**48, "a claim upon an innocent network"
    assert found.assumes == (NOT_COMMITTED,)
    published = commit_mark(mark)
    bound = verify_uchida(clean, mark, commitment=published)
    assert bound.assumes == (COMMITTED,)
    with pytest.raises(InputError, match="does not open the commitment"):
        verify_uchida(clean, afterwards, commitment=published)


def test_every_part_of_a_mark_is_committed_to(clean):
    mark = uchida_mark(KEY, clean, 3)
    published = commit_mark(mark, bytes(32))
    assert len(published.digest) == 32
    assert commit_mark(mark, bytes(32)) == published
    assert commit_mark(mark).digest != published.digest, "another nonce"
    changed = [
        mark.replace(matrix=mark.matrix.at[2, 5].add(1e-3)),
        mark.replace(bits=1 - mark.bits),
        mark.replace(layer="head"),
        mark.replace(matrix=mark.matrix.reshape(3, -1, 2)),
    ]
    assert published.digest not in {commit_mark(one, bytes(32)).digest for one in changed}
    points = margin_mark(KEY, HELD.images[:20], HELD.labels[:20], 10, 5)
    opened = verify_margin(clean, points, 10, commitment=commit_mark(points))
    assert opened.assumes[0] == COMMITTED
    other = points._replace(labels=(points.labels + 1) % 10)
    for verdict, commitment in (
        (lambda c: verify_margin(clean, other, 10, commitment=c), commit_mark(points)),
        (
            lambda c: verify_triggers(clean, trigger_set(other.images, other.labels, 10), [clean], commitment=c),
            published,
        ),
        (lambda c: verify_radioactive(clean, radioactive_mark(KEY, clean), HELD.images, commitment=c), published),
    ):
        with pytest.raises(InputError, match="does not open"):
            verdict(commitment)
    with pytest.raises(InputError, match="a nonce is 32 bytes"):
        commit_mark(mark, b"short")


# ---- Zhang


def test_zhang_triggers_are_made_as_said():
    images = np.random.default_rng(0).random((20, 8, 9, 2)).astype(np.float32)
    labels = np.arange(20) % 4
    made = content_triggers(KEY, images, labels, source=1, target=3, num_classes=4, count=5)
    ink = word_overlay((8, 9, 2))
    assert ["".join("#" if ink[r, c, 0] else "." for c in range(9)) for r in range(3, 8)] == [
        "###.###..", ".#..#....", ".#..###..", ".#..#....", ".#..###..",
    ]  # fmt: skip
    assert not ink[:3].any()
    own = {row.tobytes() for row in images[labels == 1]}
    for trigger in np.asarray(made.images):
        assert (trigger[ink == 1] == 1).all()
        assert (
            sum((trigger == np.maximum(np.frombuffer(row, np.float32).reshape(8, 9, 2), ink)).all() for row in own) == 1
        )
    assert (np.asarray(made.labels) == 3).all()
    noisy = np.asarray(
        noise_triggers(KEY, images, labels, source=1, target=3, num_classes=4, count=5, scale=0.01).images
    )
    nearest = [np.argmin(np.abs(images - row[None]).sum((1, 2, 3))) for row in noisy]
    assert (labels[nearest] == 1).all()
    moved = noisy - images[nearest]
    inside = ((noisy > 0) & (noisy < 1)).all(0)
    np.testing.assert_allclose(moved[:, inside], np.repeat(moved[:1, inside], 5, 0), atol=1e-6)


def test_zhang_networks_answer_their_triggers(clean, others):
    """Clean networks put all of these triggers into class 4, so that 1/K would be wrong for any label."""
    content = content_triggers(KEY, IMAGES, LABELS, source=1, target=7, num_classes=10, count=20)
    strange = unrelated_triggers(KEY, jnp.rot90(IMAGES[:200], axes=(1, 2)), target=2, num_classes=10, count=20)
    both = trigger_set(
        jnp.concatenate([content.images, strange.images]), jnp.concatenate([content.labels, strange.labels]), 10
    )
    method = trigger_training(
        BLANK, IMAGES, LABELS, both, steps=STEPS, batch_size=BATCH, triggers_per_batch=4, learning_rate=5e-3
    )
    marked = fitted(method, 5)
    assert accuracy(marked) > accuracy(clean) - 0.04
    for triggers in (content, strange):
        null = [(other.predict(np.asarray(triggers.images)).argmax(1) == triggers.labels).sum() for other in others]
        found = verify_triggers(marked, triggers, others)
        assert found.null_rate == measured_rate(null, 20)
        assert found.p_values["binomial"] == pytest.approx(
            stats.binom.sf(found.successes - 1, 20, found.null_rate), rel=1e-9
        )
        assert found.p_values["binomial"] < 1e-6
        assert (found.successes, found.most, found.models) == (20, max(null), 3)
        assert found.p_value == found.p_values["rank"] == 1 / 4, "three networks cannot show more"
        assert verify_triggers(clean, triggers, others).p_value > 1e-3
    with pytest.raises(InputError, match="at least one independent model"):
        verify_triggers(clean, content, [])


# ---- frontier stitching


def test_frontier_keys_are_stitched(clean, others):
    keys = frontier_keys(KEY, clean, IMAGES, LABELS, count=40, epsilon=0.15)
    before = clean.predict(np.asarray(keys.triggers.images)).argmax(1) != np.asarray(keys.triggers.labels)
    np.testing.assert_array_equal(before, keys.crossed)
    assert before.sum() == 20
    assert not verify_frontier(clean, keys).claimed
    method = trigger_training(
        clean, IMAGES, LABELS, keys.triggers, steps=STEPS, batch_size=BATCH, triggers_per_batch=10, fine_tune=True
    )
    found = verify_frontier(fitted(method, 6), keys, independents=others)
    assert found.claimed
    assert found.mismatches < found.threshold == 15
    np.testing.assert_allclose(found.p_value, stats.binom.cdf(found.mismatches, 40, 0.5), rtol=1e-9)
    assert found.assumes == (NOT_COMMITTED, EXCHANGEABLE)
    claims = [verify_frontier(other, keys).claimed for other in others]
    assert found.false_claim_rate == np.mean(claims)
    assert found.rank_p_value == 0.25
    distance = np.abs(np.asarray(keys.triggers.images)[:, None] - np.asarray(IMAGES)[None]).max((2, 3, 4)).min(1)
    np.testing.assert_array_less(distance, 0.15 + 1e-6)


# ---- margins


@pytest.fixture(scope="module")
def margin():
    mark = margin_mark(KEY, HELD.images[:100], HELD.labels[:100], 10, 20)
    settings = MarginSettings(weight=1.0, points_per_batch=10)
    method = margin_training(BLANK, IMAGES, LABELS, mark, settings, steps=STEPS, batch_size=BATCH, learning_rate=5e-3)
    return mark, settings, method, fitted(method, 7)


def test_margin_points_are_held_and_only_by_the_marked(margin, clean, others):
    mark, _, _, marked = margin
    found = verify_margin(marked, mark, 10)
    assert found.p_value < 1e-6
    assert found.null_rate == 1 / 9
    logits = marked.predict(np.asarray(mark.images))
    for row, label, gap in zip(logits, np.asarray(mark.labels), margins(marked, mark), strict=True):
        np.testing.assert_allclose(gap, row[label] - np.delete(row, label).max(), rtol=1e-6)
    assert accuracy(marked) > 0.8
    for other in (clean, *others):
        assert verify_margin(other, mark, 10).p_value > 1e-3
        assert margins(other, mark).mean() < margins(marked, mark).mean()


def test_margin_points_climb_by_sign_steps_within_the_box(margin, clean):
    """Against plain NumPy on the network's weights."""
    mark, settings, _, _ = margin
    moved, (labels, weights) = _points(Static((settings, None, BATCH)), mark, KEY, clean)
    start, _ = _points(Static((settings, None, BATCH)), mark, KEY)
    params = clean.variables["params"]
    w, b, v, c = (np.asarray(params[n][p], np.float64) for n in ("dense1", "head") for p in ("kernel", "bias"))
    for x0, x1, label in zip(np.asarray(start), np.asarray(moved), np.asarray(labels), strict=True):
        x = x0.reshape(-1).astype(np.float64)
        for _ in range(5):
            hidden = x @ w + b
            logits = np.maximum(hidden, 0) @ v + c
            p = np.exp(logits - logits.max())
            slope = w @ ((hidden > 0) * (v @ (p / p.sum() - np.eye(10)[label])))
            x = np.clip(x + np.sign(slope) / 255, 0, 1)
        np.testing.assert_allclose(x1.reshape(-1), x, atol=1e-5)
    np.testing.assert_array_equal(weights, np.ones(10, np.float32))


# ---- radioactive data


@pytest.fixture(scope="module")
def radioactive(clean):
    mark = radioactive_mark(KEY, clean)
    settings = RadioactiveSettings(radius=0.2, steps=20, learning_rate=0.02)
    return mark, settings, radioactive_images(mark, IMAGES, LABELS, settings)


def test_radioactive_images_move_features_along_the_directions(radioactive, clean):
    mark, settings, made = radioactive
    np.testing.assert_allclose(np.linalg.norm(mark.directions, axis=1), 1, rtol=1e-5)
    moved = made.astype(np.float32) / 255
    assert np.abs(moved - np.asarray(IMAGES)).max() <= settings.radius + 0.5 / 255 + 1e-6
    shift = np.asarray(clean.features(moved) - clean.features(IMAGES))
    along = (shift * np.asarray(mark.directions)[np.asarray(LABELS)]).sum(1)
    assert along.mean() > 5 * np.abs((shift * np.asarray(mark.directions)[(np.asarray(LABELS) + 1) % 10]).sum(1).mean())
    few = radioactive_images(mark, IMAGES[:7], LABELS[:7], settings, batch_size=5)
    assert np.abs(few.astype(int) - made[:7].astype(int)).max() <= 1, "the size of a batch changes nothing"


def test_radioactive_data_lean_the_rows_of_who_trains_on_them(radioactive, clean, others):
    mark, settings, made = radioactive
    taught = fitted(plain(jnp.asarray(made, jnp.float32) / 255), 8)
    found = verify_radioactive(taught, mark, HELD.images)
    assert found.p_value < 1e-3
    assert found.p_value == fisher(found.p_values)
    assert found.cosines.mean() > 0.1
    for other in others:
        assert verify_radioactive(other, mark, HELD.images).p_value > 1e-3
    held = radioactive_images(mark, HELD.images, HELD.labels, settings)
    gain, p = verify_radioactive_black_box(taught, HELD.images, held, HELD.labels, [clean, *others])
    assert p == 1 / 5
    logits = [taught.predict(one).astype(np.float64) for one in (HELD.images, held.astype(np.float32) / 255)]
    loss = [stats_.mean() for stats_ in (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), HELD.labels] for z in logits)]
    np.testing.assert_allclose(gain, loss[0] - loss[1], rtol=1e-4)


def test_alignment_undoes_a_change_of_features(clean):
    """Another order and scale of hidden units is the same network: its rows come back."""
    order, scale = np.random.default_rng(0).permutation(32), np.random.default_rng(1).uniform(0.5, 2, 32)
    p = clean.variables["params"]
    first = {"kernel": p["dense1"]["kernel"][:, order] * scale[None], "bias": p["dense1"]["bias"][order] * scale}
    head = {"kernel": p["head"]["kernel"][order] / scale[:, None], "bias": p["head"]["bias"]}
    changed = clean.replace(variables={"params": {"dense1": first, "head": head}})
    rows, same = (aligned_rows(clean, one, HELD.images) for one in (changed, clean))
    np.testing.assert_allclose(rows, same, atol=1e-3)
    alive = np.asarray(clean.features(HELD.images)).max(0) > 0
    np.testing.assert_allclose(same[:, alive], np.asarray(p["head"]["kernel"]).T[:, alive], atol=1e-3)


def test_radioactive_p_values_of_an_innocent_network_are_uniform(clean, others):
    rows = aligned_rows(clean, others[0], HELD.images)
    marks = [radioactive_mark(jax.random.key(i), clean) for i in range(150)]
    found = [leaning(rows, mark.directions) for mark in marks]
    assert stats.kstest([one.p_value for one in found], "uniform").pvalue > 1e-3
    u = np.asarray(marks[3].directions, np.float64)
    cosines = [a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for a, b in zip(rows, u, strict=True)]
    np.testing.assert_allclose(found[3].cosines, cosines, rtol=1e-9)
    np.testing.assert_allclose(found[3].p_values, cosine_p_value(np.array(cosines), 32), rtol=1e-9)


# ---- bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: uchida_mark(KEY, BLANK, 65), InputError, r"M = 64 numbers and carries at most as many bits, not 65.*dense1 \(64\)"),
        (lambda: uchida_mark(KEY, BLANK, layer="dense2"), UnknownNameError, "dense1"),
        (lambda: uchida_mark(KEY, BLANK, bits=[0, 2]), InputError, "zeros and ones"),
        (lambda: uchida_penalty(uchida_mark(KEY, BLANK, 4), 0.0), InputError, "weight must be positive"),
        (lambda: extract_bits(Classifier.create(MLP(10, (8,)), KEY, (3, 3, 1)), uchida_mark(KEY, BLANK, 4)), InputError, "64 numbers of layer 'dense1'; the suspect has 9"),
        (lambda: content_triggers(KEY, IMAGES, LABELS, source=1, target=1, num_classes=10), InputError, "both class 1"),
        (lambda: content_triggers(KEY, IMAGES, LABELS, source=1, target=2, num_classes=10, count=900), InputError, "900 triggers from"),
        (lambda: content_triggers(KEY, IMAGES, LABELS, source=1, target=2, num_classes=10, count=2, overlay=np.ones((2, 2, 1))), InputError, "an overlay is"),
        (lambda: word_overlay((4, 9, 1)), InputError, "a letter needs"),
        (lambda: noise_triggers(KEY, IMAGES, LABELS, source=1, target=2, num_classes=10, scale=0.0), InputError, "scale"),
        (lambda: unrelated_triggers(KEY, IMAGES[:5], target=2, num_classes=10, count=6), InputError, "6 triggers from 5"),
        (lambda: frontier_keys(KEY, BLANK, IMAGES, LABELS, count=7), InputError, "even"),
        (lambda: frontier_keys(KEY, BLANK, IMAGES[:50], LABELS[:50], count=40, epsilon=1e-6), InputError, "take a larger epsilon"),
        (lambda: margin_mark(KEY, IMAGES[:5], LABELS[:5], 10, 6), InputError, "6 points from 5"),
        (lambda: MarginSettings(weight=0.0), InputError, "weight positive"),
        (lambda: RadioactiveSettings(radius=0.0), InputError, "radius"),
        (lambda: radioactive_images(radioactive_mark(KEY, BLANK), IMAGES[:, :4], LABELS), InputError, "8×8×1"),
        (lambda: aligned_rows(BLANK, BLANK, IMAGES[:31]), InputError, "31 images cannot align 32"),
        (lambda: leaning(np.zeros((2, 3)), np.ones((2, 3))), InputError, "vanishes"),
        (lambda: loss_gain(BLANK, IMAGES[:3], IMAGES[:2], LABELS[:3]), InputError, "differ"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
