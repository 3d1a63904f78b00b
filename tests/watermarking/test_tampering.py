"""A forger who knows the format changes one thing in a key or its commitments, and computes the digest of the file anew."""

import base64
import copy
import json

import numpy as np
import pytest

from dfke_jax.core import InputError
from dfke_jax.watermarking import MarkingKey, VerificationKey, make_keys, verify
from dfke_jax.watermarking.keys import _digest

COUNT, CLASSES = 6, 4
SAID = ("created", "previous", "owner")  # what the owner says of the key: bound by its published fingerprint alone


def written(path, kind, content):
    """A file whose SHA-256 is right."""
    content = {name: value for name, value in content.items() if name not in ("format", "version", "sha256")}
    text = {"format": f"dfke_jax {kind}", "version": 1, **content, "sha256": _digest(kind, content)}
    path.write_text(json.dumps(text))


def turned(rng, text):
    """A hexadecimal text with one bit changed."""
    data = bytearray(bytes.fromhex(text))
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return data.hex()


def tampered(rng, secret, public):
    """(what was changed, secret, public): copies of both contents, one thing changed."""
    secret, public = copy.deepcopy(secret), copy.deepcopy(public)
    one, other = rng.choice(COUNT, 2, replace=False)
    lists = ("image_nonces", "label_nonces", "image_commitments", "label_commitments")
    kinds = [
        *lists,
        "images",
        "labels",
        "shape",
        "num_classes",
        "root",
        "order",
        "fewer",
        "more",
        "beacon",
        *SAID,
        "bits",
    ]
    kind = str(rng.choice(kinds))
    if kind in lists:
        of = secret if kind in secret else public
        change = rng.integers(3)
        if change == 0:
            of[kind][one] = turned(rng, of[kind][one])
        elif change == 1:
            of[kind][one], of[kind][other] = of[kind][other], of[kind][one]
        else:
            of[kind][one] = of[kind][other]
    elif kind == "images":
        pixels = bytearray(base64.b64decode(secret["images"]))
        pixels[rng.integers(len(pixels))] ^= 1 << rng.integers(8)
        secret["images"] = base64.b64encode(pixels).decode()
    elif kind == "labels":
        secret["labels"][one] = int((secret["labels"][one] + rng.integers(1, CLASSES)) % CLASSES)
    elif kind == "shape":
        secret["shape"] = [COUNT, *([[2, 1, 2], [1, 4, 1], [4, 1, 1], [1, 2, 2]][rng.integers(4)])]
    elif kind == "num_classes":
        change = int(rng.choice([2, 3, 5, 10, 2**31 - 1, 2**31, 2**70, -1]))
        for of in [[secret], [public], [secret, public]][rng.integers(3)]:
            of["num_classes"] = change
    elif kind == "root":
        public["root"] = turned(rng, public["root"])
    elif kind == "order":
        pixels = np.frombuffer(base64.b64decode(secret["images"]), np.uint8).reshape(secret["shape"]).copy()
        pixels[[one, other]] = pixels[[other, one]]
        secret["images"] = base64.b64encode(pixels.tobytes()).decode()
        for name in ("labels", "image_nonces", "label_nonces"):
            secret[name][one], secret[name][other] = secret[name][other], secret[name][one]
    elif kind in ("fewer", "more"):
        size = len(base64.b64decode(secret["images"])) // COUNT
        keep = COUNT - 1 if kind == "fewer" else COUNT
        of = [[secret], [public], [secret, public]][rng.integers(3)]
        for content in of:
            for name in ("labels", *lists):
                if name in content:
                    content[name] = content[name][:keep] + ([] if kind == "fewer" else content[name][:1])
        if secret in of:
            pixels = base64.b64decode(secret["images"])
            pixels = pixels[: keep * size] + (b"" if kind == "fewer" else rng.bytes(size))
            secret["images"], secret["shape"][0] = base64.b64encode(pixels).decode(), len(pixels) // size
    elif kind == "beacon":
        public["beacon"] = rng.bytes(32).hex()
    elif kind == "created":
        public["created"] = f"20{rng.integers(10, 24)}-0{rng.integers(1, 10)}-1{rng.integers(10)}T08:00:00+00:00"
    elif kind == "previous":
        public["previous"] = None if rng.random() < 0.2 else rng.bytes(32).hex()
    elif kind == "owner":
        public["owner"] = None if rng.random() < 0.2 else f"Number {rng.integers(10**6)}"
        public = {name: value for name, value in public.items() if value is not None or name == "previous"}
    return kind, secret, public


def never(rows):
    raise AssertionError("a key that was tampered with is refused before anything is asked")


def refused(files, fingerprint=None, suspect=never):
    """Whether a claim with these files fails because of them."""
    try:
        verdict = verify(*(kind.load(path) for kind, path in zip((MarkingKey, VerificationKey), files, strict=True)),
                         suspect, alpha=0.05, fingerprint=fingerprint)  # fmt: skip
    except InputError:
        return True
    return bool(verdict.rejected)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("keys"), np.random.default_rng(0)
    images = rng.integers(0, 256, (COUNT, 2, 2, 1), np.uint8)
    options = {"created": "2024-05-01T12:00:00+00:00", "previous": "ab" * 32, "owner": "Somebody"}
    secret, public = make_keys(images, rng.integers(0, CLASSES, COUNT), CLASSES, **options)
    secret.save(path / "s.json")
    public.save(path / "p.json")
    return path, public.fingerprint, *(json.loads((path / name).read_text()) for name in ("s.json", "p.json"))


def check(sound, tmp_path, seeds):
    """Every forgery is refused: by the commitments, or, where it is of what the owner says, by the fingerprint."""
    _, fingerprint, secret, public = sound
    files, kinds = (tmp_path / "s.json", tmp_path / "p.json"), {}
    for seed in seeds:
        rng = np.random.default_rng([7, seed])
        kind, *both = tampered(rng, secret, public)
        for path, name, content in zip(files, ("marking key", "verification key"), both, strict=True):
            written(path, name, content)
        if kind == "bits":  # of a file as it lies there
            path = files[rng.integers(2)]
            changed = bytearray(path.read_bytes())
            changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
            path.write_bytes(changed)
        kinds[kind] = kinds.get(kind, 0) + 1
        assert refused(files, fingerprint), (seed, kind)
        answers = lambda rows: np.zeros(len(rows), int)
        assert refused(files, None, answers) == (kind not in SAID), (seed, kind)
    return kinds


def test_the_keys_as_they_were_made_are_taken(sound, tmp_path):
    path, fingerprint, secret, public = sound
    answers = lambda rows: np.zeros(len(rows), int)
    assert not refused((path / "s.json", path / "p.json"), fingerprint, answers)
    written(tmp_path / "s.json", "marking key", secret)
    written(tmp_path / "p.json", "verification key", public)
    assert not refused((tmp_path / "s.json", tmp_path / "p.json"), fingerprint, answers), (
        "forgeries differ in nothing else"
    )


def test_a_sample_of_tampered_keys(sound, tmp_path):
    assert len(check(sound, tmp_path, range(80))) > 12


@pytest.mark.slow
def test_tampered_keys(sound, tmp_path):
    kinds = check(sound, tmp_path, range(1060))
    assert sum(kinds.values()) == 1060
    assert min(kinds.values()) > 30
