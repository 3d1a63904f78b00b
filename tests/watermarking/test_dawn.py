"""DAWN: which inputs are marked, what they are answered, and what is kept of them."""

import hashlib
import hmac
import json

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax import core
from dfke_jax.core import InputError
from dfke_jax.oracle import (  # fmt: skip
    HostOracle,
    Ledger,
    Metered,
    RemoteVictim,
    Reveal,
    background,
    create_app,
    from_function,
    from_jax,
    oracle_for,
)
from dfke_jax.watermarking import DawnOracle, MarkedQueries, RegisteredMarks, commit_mark, dawn_key, verify_dawn
from dfke_jax.watermarking.commitments import COMMITTED, NOT_COMMITTED
from dfke_jax.watermarking.dawn import quantised

KEY = bytes(range(32))
SHAPE = (4, 3, 1)
WEIGHTS = np.random.default_rng(5).normal(size=(12, 5)).astype(np.float32)
OPTIONS = {"input_shape": SHAPE, "num_classes": 5}


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype(np.uint8)


def rows(count, seed=0):
    return pixels(count, seed).astype(np.float32) / 255


def linear(weights, x):
    return x.reshape(x.shape[0], -1) @ weights


def truth(x):
    return linear(WEIGHTS, x).argmax(1)


def labels_dawn(**options):
    return DawnOracle(truth, KEY, reveal=Reveal("label"), **OPTIONS, **{"rate": 0.3, **options})


def test_decision_and_label_are_the_hmac_of_all_pixels():
    x, dawn = rows(40), labels_dawn()
    for row, decided, digest, said, true in zip(
        pixels(40), dawn.marked(x), dawn.digests(x), dawn(x), truth(x), strict=True
    ):
        head = b"dfke_jax/dawn/1\x00" + b"".join(n.to_bytes(8, "little") for n in (3, *SHAPE))
        expected = hmac.new(KEY, head + row.tobytes(), hashlib.sha256).digest()
        assert digest == expected
        assert decided == (int.from_bytes(expected[:8], "big") / 2**64 < 0.3)
        turn = int.from_bytes(expected[8:16], "big") % 4
        assert said == ((true + 1 + turn) % 5 if decided else true)


def test_every_pixel_counts():
    x, dawn = pixels(1)[0], labels_dawn()
    changed = np.repeat(x[None], x.size, 0)
    for i in range(x.size):
        changed[i].flat[i] ^= 1
    assert len({*dawn.digests(changed), *dawn.digests(x[None])}) == x.size + 1


def test_rate_and_labels_are_as_drawn():
    x = np.random.default_rng(2).random((6000, *SHAPE)).astype(np.float32)
    dawn = labels_dawn(rate=0.1)
    marked, said, true = dawn.marked(x), dawn(x), truth(x)
    assert abs(marked.mean() - 0.1) < 4 * np.sqrt(0.09 / 6000)
    np.testing.assert_array_equal(said[~marked], true[~marked])
    turned = (said - true)[marked] % 5
    assert set(turned) == {1, 2, 3, 4}
    assert np.bincount(turned)[1:].min() > marked.sum() / 4 - 5 * np.sqrt(marked.sum() / 4)


def test_float_noise_below_half_a_level_asks_the_same():
    x, dawn = rows(200), labels_dawn()
    noise = np.random.default_rng(1).uniform(-0.49, 0.49, x.shape).astype(np.float32) / 255
    assert dawn.digests(x) == dawn.digests(x + noise) == dawn.digests(pixels(200))
    np.testing.assert_array_equal(dawn(x), dawn(x))
    assert len(dawn.registry) == dawn.marked(x).sum()
    shifted = x.copy()
    shifted[:, 0, 0, 0] += np.where(shifted[:, 0, 0, 0] < 0.5, 1, -1) / 255
    assert not set(dawn.digests(x)) & set(dawn.digests(shifted)), "one grey level is another input"
    coarse = labels_dawn(levels=4)
    assert np.mean([a == b for a, b in zip(coarse.digests(x), coarse.digests(shifted), strict=True)]) > 0.9
    mean = labels_dawn(levels=8, mapping=lambda x: x.mean((1, 2, 3)))
    assert np.mean([a == b for a, b in zip(mean.digests(x), mean.digests(shifted), strict=True)]) > 0.9


@pytest.mark.parametrize("levels", [2, 3, 16, 52, 128, 255, 256])
def test_stored_pixels_quantise_alike_as_bytes_and_as_floats(levels):
    every = np.arange(256, dtype=np.uint8)
    exact = [(2 * int(n) * (levels - 1) + 255) // 510 for n in every]
    np.testing.assert_array_equal(quantised(every, levels), exact)
    np.testing.assert_array_equal(quantised(every.astype(np.float32) / 255, levels), exact)
    np.testing.assert_array_equal(quantised(every.astype(np.float32) / 255 * 2 - 1, levels, (-1, 1)), exact)


def test_two_numbers_of_an_answer_change_places():
    inner = oracle_for(from_jax(linear, WEIGHTS, input_shape=SHAPE), input_shape=SHAPE)
    dawn, x = DawnOracle(inner, KEY, rate=0.5), rows(30)
    plain, said, marked = np.asarray(jax.jit(lambda o, x: o(x))(inner, x)), dawn(x), dawn.marked(x)
    assert 0 < marked.sum() < 30
    np.testing.assert_array_equal(said[~marked], plain[~marked])
    np.testing.assert_array_equal(np.sort(said, 1), np.sort(plain, 1))
    np.testing.assert_array_equal((said != plain).sum(1), np.where(marked, 2, 0))
    assert (said.argmax(1) != plain.argmax(1))[marked].all()
    np.testing.assert_array_equal(said.argmax(1), labels_dawn(rate=0.5)(x))
    assert dawn.describe()["defences"] == [{"name": "dawn", "rate": 0.5, "levels": 256, "mapping": False}]
    assert KEY.hex() not in json.dumps(dawn.describe())


def test_registry_appends_and_survives_a_crash(tmp_path):
    path = tmp_path / "marks" / "registry.jsonl"
    dawn = labels_dawn(registry=MarkedQueries(path))
    said = dawn(rows(20))
    first = path.read_bytes()
    dawn(rows(20))
    assert path.read_bytes() == first, "a query is entered once"
    with path.open("ab") as file:
        file.write(b'{"name": "00ff", "pix')
    again = labels_dawn(registry=MarkedQueries(path))
    assert len(again.registry) == len(dawn.registry) == dawn.marked(rows(20)).sum()
    again(rows(20, seed=1))
    assert path.read_bytes().startswith(first)
    kept = MarkedQueries(path)
    assert len(kept) == dawn.marked(rows(20)).sum() + dawn.marked(rows(20, 1)).sum()
    marks, chosen = kept.marks(), dawn.marked(rows(20))
    np.testing.assert_allclose(marks.images[: chosen.sum()], rows(20)[chosen], atol=1e-7)
    np.testing.assert_array_equal(marks.labels[: chosen.sum()], said[chosen])
    np.testing.assert_array_equal(marks.truth, truth(marks.images))


def test_registry_refuses_what_is_none(tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("something else\n")
    with pytest.raises(InputError, match="no registry"):
        MarkedQueries(other)
    path = tmp_path / "registry.jsonl"
    labels_dawn(registry=MarkedQueries(path))(rows(20))
    path.write_bytes(path.read_bytes().replace(b'"label"', b'"lebal"', 1))
    with pytest.raises(InputError, match="line 2 of the registry"):
        MarkedQueries(path)
    with pytest.raises(InputError, match="nothing to verify with"):
        MarkedQueries().marks()
    with pytest.raises(InputError, match="cannot use"):
        MarkedQueries(other / "below")


def test_who_learnt_the_answers_is_found_and_who_did_not_is_not():
    dawn, x = labels_dawn(rate=0.1), rows(1500)
    said = dawn(x)
    table = {row.tobytes(): label for row, label in zip(pixels(1500), said, strict=True)}
    thief = lambda images: np.array([table[quantised(one).tobytes()] for one in images])
    marks = dawn.registry.marks()
    found = verify_dawn(thief, marks, 5)
    assert found.stolen
    assert found.mismatch_rate == 0
    assert found.evidence.p_value < 1e-30
    assert found.false_claim_probability < 1e-10
    assert not verify_dawn(truth, marks, 5).stolen
    assert verify_dawn(truth, marks, 5).evidence.p_value == 1
    weak = lambda images: np.where(np.arange(len(images)) % 4 == 0, thief(images), truth(images))
    assert not verify_dawn(weak, marks, 5).stolen, "the paper's rule wants half of them"
    assert verify_dawn(weak, marks, 5).evidence.p_value < 1e-10


def test_entries_are_recomputed_from_key_and_victim():
    """Who writes a registry afterwards can give every image the label that a suspect answers, with a truth to match."""
    innocent = lambda x: linear(np.random.default_rng(9).normal(size=(12, 5)).astype(np.float32), x).argmax(1)
    dawn, x = labels_dawn(rate=0.1), rows(1500)
    dawn(x)
    honest = dawn.registry.marks()
    chosen = rows(1500, seed=3)[dawn.marked(rows(1500, seed=3))]
    turns = np.array([int.from_bytes(digest[8:16], "big") % 4 for digest in dawn.digests(chosen)])
    said = innocent(chosen)
    forged = RegisteredMarks(chosen, said, (said - 1 - turns) % 5)
    believed = verify_dawn(innocent, forged, 5)
    assert believed.stolen, "an innocent network is accused"
    assert believed.evidence.p_value < 1e-30
    assert any("not recomputed" in text for text in believed.assumes)
    assert believed.assumes[0] == NOT_COMMITTED

    mixed = RegisteredMarks(*(np.concatenate(both) for both in zip(honest, forged, strict=True)))
    right = np.concatenate([np.ones(len(honest.labels), bool), forged.truth == truth(chosen)])
    np.testing.assert_array_equal(dawn.follows(mixed), right)
    size = len(dawn.registry)
    found = verify_dawn(innocent, mixed, 5, dawn=dawn)
    assert found.refused == (~right).sum() > 50
    assert not found.stolen
    assert found.mismatch_rate > believed.mismatch_rate == 0
    assert any("none was picked" in text for text in found.assumes), (
        "what key and victim do give can still be chosen from"
    )
    assert len(dawn.registry) == size, "nothing is entered by verification"
    alone = verify_dawn(innocent, honest, 5, dawn=dawn)
    assert (alone.refused, alone.mismatch_rate) == (0, verify_dawn(innocent, honest, 5).mismatch_rate)
    turned = honest._replace(labels=(honest.labels + 1) % 5)
    with pytest.raises(InputError, match=r"none of the .* registered queries"):
        verify_dawn(innocent, turned, 5, dawn=dawn)

    published = commit_mark(honest)
    bound = verify_dawn(innocent, honest, 5, dawn=dawn, commitment=published)
    assert bound.assumes[0] == COMMITTED
    assert not any("picked" in text for text in bound.assumes)
    assert bound.evidence.p_value > 0.01
    hit = innocent(honest.images) == honest.labels
    picked = RegisteredMarks(*(part[hit] for part in honest))
    assert verify_dawn(innocent, picked, 5, dawn=dawn).evidence.p_value < 1e-6, "chosen for what it answers"
    with pytest.raises(InputError, match="does not open the commitment"):
        verify_dawn(innocent, picked, 5, dawn=dawn, commitment=published)


def test_keyed_labels_give_uniform_p_values_for_an_innocent_network():
    other = np.random.default_rng(9).normal(size=(12, 5)).astype(np.float32)
    x = rows(300)
    p_values = []
    for i in range(300):
        dawn = DawnOracle(truth, hashlib.sha256(bytes([i % 256, i // 256])).digest(), rate=0.3, reveal=Reveal("label"), **OPTIONS)  # fmt: skip
        dawn(x)
        p_values.append(verify_dawn(lambda x: linear(other, x), dawn.registry.marks(), 5).evidence.p_value)
    p_values = np.array(p_values)
    for level in (0.05, 0.2, 0.5):
        assert (p_values <= level).mean() <= level + 3 * np.sqrt(level / 300)
    assert (p_values <= 0.5).mean() > 0.25


def begin(key):
    return {"sum": np.zeros(5, np.float32)}


def ask(key, state):
    return state, jax.random.uniform(key, (40, *SHAPE))


def tell(key, state, x, answers):
    return {"sum": state["sum"] + answers.sum(0)}, {"total": answers.sum()}


def test_it_goes_where_a_host_oracle_goes():
    """Against an attack, behind a ledger, and served over HTTP: the same answers."""
    host = HostOracle(from_function(lambda x: linear(WEIGHTS, x), SHAPE, 5, gives="logits"))
    dawn = DawnOracle(host, KEY, rate=0.3)
    attack = core.Attack(Partial(begin), Partial(ask), Partial(tell))
    core.run(core.against(attack, dawn, host=True), jax.random.key(0), 2)
    assert len(dawn.registry) > 5
    x = rows(30)
    with Ledger() as ledger:
        np.testing.assert_array_equal(Metered(dawn, ledger)(x), dawn(x))
    app = create_app(dawn, input_shape=SHAPE, reveal=dawn.reveal, num_classes=5)
    with background(app) as url, RemoteVictim(url) as victim:
        np.testing.assert_array_equal(victim(x), dawn(x))
        twice = DawnOracle(victim, dawn_key(), rate=0.3)  # somebody else's endpoint, marked once more
        assert twice(x).shape == (30, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": b"short"}, "at least 16 secret bytes"),
        ({"rate": 0.0}, "rate must lie in"),
        ({"levels": 1}, "levels must lie in"),
        ({"reveal": None}, "does not say its reveal"),
        ({"num_classes": 1}, "at least 2 classes"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    options = {"key": KEY, "reveal": Reveal("label"), **OPTIONS, **changes}
    with pytest.raises(InputError, match=message):
        DawnOracle(truth, options.pop("key"), **options)


def test_bad_rows_are_refused():
    with pytest.raises(InputError, match="rows must be"):
        labels_dawn()(np.zeros((2, 3, 4, 1)))
    with pytest.raises(InputError, match="NaN"):
        labels_dawn()(np.full((2, *SHAPE), np.nan))
