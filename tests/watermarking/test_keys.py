"""Keys and their files: exact, strict, and bound to each other."""

import dataclasses
import hashlib
import json
import stat
import tracemalloc

import numpy as np
import pytest

from dfke_jax.core import InputError
from dfke_jax.watermarking import MarkingKey, VerificationKey, included, labels_by_beacon, make_keys, rejected_pairs
from dfke_jax.watermarking.commitments import commit_pair, merkle_root, pair_leaf

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1), np.uint8)
LABELS = np.array([2, 0, 1])
NOW = "2024-05-01T12:00:00+00:00"
MARKING, VERIFICATION = make_keys(IMAGES, LABELS, 4, created=NOW)


@pytest.fixture
def files(tmp_path):
    MARKING.save(tmp_path / "secret.json")
    VERIFICATION.save(tmp_path / "public.json")
    return tmp_path / "secret.json", tmp_path / "public.json"


def test_files_give_back_the_same_keys(files):
    secret, public = files
    marking, verification = MarkingKey.load(secret), VerificationKey.load(public)
    for field in dataclasses.fields(MarkingKey):
        np.testing.assert_array_equal(getattr(marking, field.name), getattr(MARKING, field.name))
    assert marking.images.dtype == np.uint8
    assert marking.labels.dtype == np.int32
    assert verification == VERIFICATION
    assert (verification.fingerprint, verification.root) == (VERIFICATION.fingerprint, VERIFICATION.root)
    assert rejected_pairs(marking, verification) == ()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_the_public_file_says_nothing_of_the_secret(files):
    text = files[1].read_text()
    for nonce in (*MARKING.image_nonces, *MARKING.label_nonces):
        assert nonce.hex() not in text
    assert set(json.loads(text)) == {
        "format", "version", "sha256", "created", "previous", "num_classes", "root", "image_commitments",
        "label_commitments",
    }  # fmt: skip


@pytest.mark.parametrize("which", [0, 1])
def test_a_bit_changed_in_any_byte_and_every_cut_of_a_file_is_refused(tmp_path, which):
    path, damaged, kind = tmp_path / "whole.json", tmp_path / "damaged.json", (MarkingKey, VerificationKey)[which]
    make_keys(IMAGES[:1, :1, :1], LABELS[:1], 4)[which].save(path)
    whole = path.read_bytes()
    for place in range(len(whole) - 1):  # the last one ends the line
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        damaged.write_bytes(changed)
        with pytest.raises(InputError, match=r"damaged\.json"):
            kind.load(damaged)
    for length in range(0, len(whole) - 2, 11):
        damaged.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut off"):
            kind.load(damaged)


def rewritten(path, **changes):
    """A file that somebody edited without caring for its SHA-256."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "of version 2, this program reads version 1"),
        ({"version": True}, "of version True"),
        ({"format": "dfke_jax marking key"}, "is no verification key, it is a marking key"),
        ({"format": 3}, "is no verification key"),
        ({"extra": 1}, r"\['extra'\] are missing or do not belong"),
        ({"created": ...}, r"\['created'\] are missing"),
        ({"created": "2020-01-01T00:00:00+00:00"}, "changed or damaged"),
        ({"sha256": "\ud800"}, "changed or damaged"),
    ],
)
def test_another_version_or_content_is_refused(files, changes, message):
    rewritten(files[1], **changes)
    with pytest.raises(InputError, match=message):
        VerificationKey.load(files[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "0" * 64}, "root is not that"),
        ({"root": "zz"}, "lower-case hexadecimal"),
        ({"num_classes": 4.0}, "whole number"),
        ({"label_commitments": []}, "no valid key"),
        ({"label_commitments": None}, "no valid key"),
        ({"created": "yesterday"}, "date and time"),
        ({"created": "2024-05-01T12:00:00"}, "offset from UTC"),
        ({"previous": "abc"}, "lower-case hexadecimal"),
    ],
)
def test_a_forged_digest_does_not_make_nonsense_valid(files, monkeypatch, changes, message):
    monkeypatch.setattr("dfke_jax.watermarking.keys.hmac.compare_digest", lambda a, b: True)
    rewritten(files[1], **changes)
    with pytest.raises(InputError, match=message):
        VerificationKey.load(files[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "AAAA"}, "no valid key"),
        ({"images": "?"}, "no valid key"),
        ({"shape": [3, 2, 2]}, "N, H, W, C"),
        ({"shape": [-1, 2, 2, 1]}, "whole number"),  # a size that NumPy would guess
        ({"labels": [2, 0, 4]}, r"lie in \[0, K\)"),
        ({"labels": [2, 0, 1.0]}, "whole number"),
        ({"labels": [2, 0, 2**40]}, "no valid key"),
        ({"labels": [2, 0, -1]}, "whole number"),
        ({"label_nonces": []}, "3 times 32 bytes"),
    ],
)
def test_a_forged_secret_is_no_key_either(files, monkeypatch, changes, message):
    monkeypatch.setattr("dfke_jax.watermarking.keys.hmac.compare_digest", lambda a, b: True)
    rewritten(files[0], **changes)
    with pytest.raises(InputError, match=message):
        MarkingKey.load(files[0])


def test_fields_that_stand_twice_and_other_files(tmp_path, files):
    path = tmp_path / "twice.json"
    path.write_text(files[1].read_text().replace("{", '{"version": 1, ', 1))
    with pytest.raises(InputError, match="stands twice"):
        VerificationKey.load(path)
    path.write_text("[1]")
    with pytest.raises(InputError, match="is no verification key"):
        VerificationKey.load(path)
    path.write_text('{"format": "something"}')
    with pytest.raises(InputError, match="is no marking key"):
        MarkingKey.load(path)
    with pytest.raises(InputError, match="No such file"):
        MarkingKey.load(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="never overwritten"):
        MARKING.save(files[0])
    with pytest.raises(InputError, match="cannot write"):
        MARKING.save(tmp_path / "no" / "directory.json")


def changed_key(**changes):
    return dataclasses.replace(MARKING, **changes)


def test_every_changed_bit_of_a_key_is_rejected():
    assert rejected_pairs(MARKING, VERIFICATION) == ()
    for bit in range(8 * IMAGES.size):
        images = IMAGES.copy()
        images.reshape(-1)[bit // 8] ^= 1 << bit % 8
        assert rejected_pairs(changed_key(images=images), VERIFICATION) == (bit // 32,)
    for index in range(3):
        for label in set(range(4)) - {LABELS[index]}:
            labels = LABELS.copy()
            labels[index] = label
            assert rejected_pairs(changed_key(labels=labels), VERIFICATION) == (index,)
        for name in ("image_nonces", "label_nonces"):
            for bit in range(256):
                nonces = list(getattr(MARKING, name))
                nonce = bytearray(nonces[index])
                nonce[bit // 8] ^= 1 << bit % 8
                nonces[index] = bytes(nonce)
                assert rejected_pairs(changed_key(**{name: tuple(nonces)}), VERIFICATION) == (index,)


def test_order_shape_size_and_classes_are_bound():
    order = [1, 0, 2]
    swapped = MarkingKey(
        IMAGES[order], LABELS[order], 4, *(tuple(n[i] for i in order) for n in (MARKING.image_nonces, MARKING.label_nonces))
    )  # fmt: skip
    assert rejected_pairs(swapped, VERIFICATION) == (0, 1)
    assert rejected_pairs(changed_key(images=IMAGES.reshape(3, 4, 1, 1)), VERIFICATION) == (0, 1, 2)
    assert rejected_pairs(changed_key(num_classes=5), VERIFICATION) == (0, 1, 2)
    fewer = MarkingKey(IMAGES[:2], LABELS[:2], 4, MARKING.image_nonces[:2], MARKING.label_nonces[:2])
    assert rejected_pairs(fewer, VERIFICATION) == (0, 1, 2)
    # the same first pairs under a key that claims to have no third
    shorter = dataclasses.replace(VERIFICATION, commitments=VERIFICATION.commitments[:2])
    assert rejected_pairs(fewer, shorter) == (0, 1)


def test_a_single_pair_is_shown_to_belong_to_the_root():
    opening = MARKING.opening(2)
    leaf = pair_leaf(commit_pair(opening, 3, 4))
    proof = VERIFICATION.proof(2)
    assert included(VERIFICATION.root, leaf, 2, 3, proof)
    assert not included(VERIFICATION.root, leaf, 1, 3, proof)
    assert VERIFICATION.opens(opening)
    assert not VERIFICATION.opens(opening._replace(index=1))
    assert not VERIFICATION.opens(opening._replace(index=3))
    with pytest.raises(InputError, match="pair 3 of a key of 3"):
        MARKING.opening(3)


def test_the_fingerprint_covers_the_date_and_the_chain():
    prints = {
        VERIFICATION.fingerprint,
        dataclasses.replace(VERIFICATION, created="2024-05-01T12:00:01+00:00").fingerprint,
        dataclasses.replace(VERIFICATION, previous="0" * 64).fingerprint,
        make_keys(IMAGES, LABELS, 4, created=NOW)[1].fingerprint,  # other random bytes
    }
    assert len(prints) == 4


def test_what_is_learnt_is_what_is_committed_to():
    triggers = MARKING.triggers
    np.testing.assert_allclose(triggers.images, IMAGES / 255, rtol=1e-6)
    np.testing.assert_array_equal(triggers.labels, LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES / 255}, "uint8, got float64"),
        ({"images": IMAGES[..., 0]}, "N, H, W, C"),
        ({"labels": LABELS * 1.0}, "integer labels"),
        ({"labels": LABELS[:2]}, "as many integer labels"),
        ({"num_classes": 2}, r"lie in \[0, K\)"),
        ({"images": IMAGES[[0, 1, 0]]}, "images 0 and 2 of the key are the same"),
        ({"image_nonces": (b"",) * 3}, "3 times 32 bytes"),
    ],
)
def test_what_is_no_key(changes, message):
    with pytest.raises(InputError, match=message):
        changed_key(**changes)


def test_what_is_no_verification_key():
    with pytest.raises(InputError, match="at least one pair"):
        dataclasses.replace(VERIFICATION, commitments=())
    with pytest.raises(InputError, match="at least 2 classes"):
        dataclasses.replace(VERIFICATION, num_classes=1)


@pytest.mark.parametrize("changes", [{"created": "2024-05-01\x1b12:00:00+00:00"}, {"owner": "a\x1b]0;b\x07"}, {"owner": "a\u202eb"}, {"owner": ""}, {"owner": "a" * 201}, {"owner": 3}, {"beacon": "00"}, {"beacon": "zz" * 16}])  # fmt: skip
def test_what_a_terminal_would_obey_is_no_part_of_a_key(changes):
    with pytest.raises(InputError, match=r"created must be|owner must be|beacon is|hexadecimal") as caught:
        dataclasses.replace(VERIFICATION, **changes)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        '{"format": "dfke_jax \\u001b[2J"}',
        '{"format": "dfke_jax verification key", "version": "\\u001b[2J"}',
        '{"format": "dfke_jax verification key", "version": 1, "\\u001b[2J": 0}',
        '{"format": "dfke_jax verification key", "version": [[' + "[" * 50 + "]" * 50 + "]]}",
    ],
)
def test_nothing_of_a_file_reaches_a_terminal_as_it_is(tmp_path, text):
    path = tmp_path / "key.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        VerificationKey.load(path)
    said = str(caught.value).replace(str(path), "")
    assert said.isprintable()
    assert len(said) < 300


def test_an_owner_and_a_beacon_stand_in_the_file(tmp_path):
    key = dataclasses.replace(VERIFICATION, owner="Zoë", beacon="0f" * 16)
    key.save(tmp_path / "key.json")
    assert VerificationKey.load(tmp_path / "key.json") == key
    assert len({key.fingerprint, VERIFICATION.fingerprint, dataclasses.replace(key, owner=None).fingerprint}) == 3
    plain = hashlib.sha256(
        json.dumps({**VERIFICATION._content(), "format": "dfke_jax verification key", "version": 1}, sort_keys=True, separators=(",", ":")).encode()
    )  # fmt: skip
    assert "owner" not in VERIFICATION._content()
    assert VERIFICATION.fingerprint == plain.hexdigest(), "keys without them keep their fingerprints"


def test_labels_that_a_beacon_draws():
    beacon = bytes(range(32))
    marking, public = labels_by_beacon(MARKING, VERIFICATION, beacon, created=NOW)
    root = merkle_root([pair.image for pair in VERIFICATION.commitments])
    frame = lambda *fields: b"".join(len(field).to_bytes(8, "little") + field for field in fields)
    head = frame(b"dfke_jax/backdoor-watermark/beacon/v1", root, beacon)
    drawn = [
        int.from_bytes(hashlib.sha256(head + frame(i.to_bytes(8, "little"))).digest(), "big") % 4 for i in range(3)
    ]
    assert marking.labels.tolist() == drawn
    assert public.image_root == VERIFICATION.image_root == root
    assert (public.previous, public.beacon) == (VERIFICATION.fingerprint, beacon.hex())
    assert [pair.image for pair in public.commitments] == [pair.image for pair in VERIFICATION.commitments]
    assert rejected_pairs(marking, public) == ()
    chosen = dataclasses.replace(VERIFICATION, beacon=beacon.hex())  # the labels are the owner's, the beacon a pretence
    assert rejected_pairs(MARKING, chosen) == tuple(np.flatnonzero(marking.labels != MARKING.labels)) != ()
    with pytest.raises(InputError, match="does not open the commitments"):
        labels_by_beacon(marking, VERIFICATION, beacon)
    with pytest.raises(InputError, match="16 to 1024 bytes"):
        labels_by_beacon(MARKING, VERIFICATION, b"few")


def test_large_files_are_not_parsed(tmp_path, monkeypatch):
    """Brackets alone would take twenty times the size of the file; nothing is built of them."""
    path = tmp_path / "key.json"
    path.write_bytes(b"[" + b"[]," * (4 << 20) + b"[]]")
    tracemalloc.start()
    with pytest.raises(InputError, match="is larger than any verification key: at most 67,108,864 bytes and 1,048,576"):
        VerificationKey.load(path)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20, "parsed it would be 300 MB"
    tracemalloc.stop()
    monkeypatch.setattr("dfke_jax.watermarking.keys.MAX_FILE_BYTES", 100)
    with pytest.raises(InputError, match="at most 100 bytes"):
        VerificationKey.load("/dev/zero")  # it has no end
    with pytest.raises(InputError, match="is not written, as it could not be read"):
        VERIFICATION.save(tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("classes", [2**31, 2**70, 1, -1])
def test_classes_are_counted_in_32_bits(classes):
    for make in (
        lambda: make_keys(IMAGES, LABELS, classes),
        lambda: dataclasses.replace(VERIFICATION, num_classes=classes),
    ):
        with pytest.raises(InputError, match=r"2³¹|at least 2 classes"):
            make()
