"""The two keys of a backdoor watermark, and their files.

The secret marking key holds trigger images, their labels and the random bytes that open the
commitments. The public verification key holds the commitments and a date. Both files are JSON text
in UTF-8: numbers and hexadecimal strings, images as base64 of their bytes; nothing is ever
unpickled. Every file names its format and version and carries a SHA-256 of its content, which finds
damage and careless editing. It does not keep out a forger, who can compute it as well; commitments
and a published `fingerprint` do.
"""

import base64
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.nn.classifier import as_float
from dfke_jax.watermarking.commitments import (
    HASH_BYTES,
    NONCE_BYTES,
    Opening,
    PairCommitment,
    beacon_label,
    commit_pair,
    inclusion_proof,
    merkle_root,
    new_nonce,
    opens,
    pair_leaf,
)
from dfke_jax.watermarking.triggers import TriggerSet

VERSION = 1
PathLike = str | os.PathLike
MAX_FILE_BYTES = 64 << 20
"""Larger files are neither written nor read. What is parsed of one takes a few times its size."""
MAX_PARTS = 1 << 20
"""Most numbers, texts and lists in a file: JSON of brackets alone takes twenty times its size when
it is parsed.
"""
MAX_CLASSES = 2**31 - 1
"""Labels are 32-bit integers."""
_DATE = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
    r"(Z|[+-][0-9]{2}:[0-9]{2})"
)


@dataclasses.dataclass(frozen=True, eq=False)
class MarkingKey:
    """The secret of a mark (mk): trigger pairs and what opens their commitments.

    Attributes:
      images: (N, H, W, C) uint8; what is learnt and asked is images/255.
      labels: (N,) int32 in [0, K).
      num_classes: K.
      image_nonces, label_nonces: N times 32 bytes.

    Raises:
      InputError: for other types or shapes, labels out of range, equal images (a network can give
        one answer only), or nonces of another length.
    """

    images: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    num_classes: int
    image_nonces: tuple[bytes, ...] = dataclasses.field(repr=False)
    label_nonces: tuple[bytes, ...] = dataclasses.field(repr=False)

    def __post_init__(self):
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            raise InputError(
                f"images of a key are (N, H, W, C) uint8, got {images.dtype} of shape "
                f"{images.shape}"
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(
                f"{len(images)} images need as many integer labels, got {labels.dtype} of shape "
                f"{labels.shape}"
            )
        if (
            not 2 <= self.num_classes <= MAX_CLASSES
            or labels.min() < 0
            or labels.max() >= self.num_classes
        ):
            raise InputError(
                f"labels from {labels.min()} to {labels.max()} of {_shown(self.num_classes)} "
                "classes; they lie in [0, K), 2 <= K < 2³¹"
            )
        seen: dict[bytes, int] = {}
        for index, image in enumerate(images):
            if seen.setdefault(image.tobytes(), index) != index:
                raise InputError(
                    f"images {seen[image.tobytes()]} and {index} of the key are the same"
                )
        for name in ("image_nonces", "label_nonces"):
            nonces = tuple(getattr(self, name))
            if len(nonces) != len(images) or any(len(nonce) != NONCE_BYTES for nonce in nonces):
                raise InputError(f"{name} must be {len(images)} times {NONCE_BYTES} bytes")
            object.__setattr__(self, name, nonces)
        object.__setattr__(self, "images", np.ascontiguousarray(images))
        object.__setattr__(self, "labels", labels.astype(np.int32))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def triggers(self) -> TriggerSet:
        """What a network is taught and asked."""
        return TriggerSet(as_float(jnp.asarray(self.images)), jnp.asarray(self.labels))

    def opening(self, index: int) -> Opening:
        """What opens pair `index`."""
        if not 0 <= index < len(self):
            raise InputError(
                f"pair {index} of a key of {len(self)} pairs; indices run from 0 to {len(self) - 1}"
            )
        return Opening(
            index,
            self.images[index],
            int(self.labels[index]),
            self.image_nonces[index],
            self.label_nonces[index],
        )

    def save(self, path: PathLike) -> None:
        """Writes the key to a new file that its owner alone may read; see `load`."""
        content = {
            "num_classes": self.num_classes,
            "shape": list(self.images.shape),
            "images": base64.b64encode(self.images.tobytes()).decode(),
            "labels": self.labels.tolist(),
            "image_nonces": [nonce.hex() for nonce in self.image_nonces],
            "label_nonces": [nonce.hex() for nonce in self.label_nonces],
        }
        _write(path, "marking key", content, 0o600)

    @classmethod
    def load(cls, path: PathLike) -> "MarkingKey":
        """Reads what `save` wrote.

        Raises:
          InputError: no such file, another kind of file or version, one that is cut off or changed,
            or a key that is none.
        """
        fields = ("num_classes", "shape", "images", "labels", "image_nonces", "label_nonces")
        content = _read(path, "marking key", fields)
        with _blaming(path):
            shape = tuple(_whole(size) for size in content["shape"])
            pixels = base64.b64decode(content["images"], validate=True)
            return cls(
                np.frombuffer(pixels, np.uint8).reshape(shape),
                np.asarray([_whole(label) for label in content["labels"]], np.int32),
                _whole(content["num_classes"]),
                tuple(_hex(nonce, NONCE_BYTES) for nonce in content["image_nonces"]),
                tuple(_hex(nonce, NONCE_BYTES) for nonce in content["label_nonces"]),
            )


_OPTIONAL = ("owner", "beacon")  # fields that stand in a file where they are given


@dataclasses.dataclass(frozen=True)
class VerificationKey:
    """What an owner publishes (vk): 2N commitments, when, and whose.

    `created`, `previous` and `owner` are the owner's word, and no commitment holds them. What gives
    them weight is a `fingerprint` published where others put a date to it, and compared when a
    claim is judged (`verify(fingerprint=...)`); of two marks in one network the earlier published
    one counts.

    Attributes:
      commitments: of the N pairs.
      num_classes: K, at most 2³¹ − 1.
      created: date and time in ISO 8601, YYYY-MM-DDTHH:MM:SS, with its offset from UTC.
      previous: `fingerprint` of the key that this one follows, or None.
      owner: who claims the mark: one printable line of at most 200 characters, or None.
      beacon: public random bytes in hexadecimal that labels were drawn by (`labels_by_beacon`), or
        None.

    Raises:
      InputError: no commitments, one that is not 32 bytes, a date that is none, or another owner or
        beacon.
    """

    commitments: tuple[PairCommitment, ...]
    num_classes: int
    created: str
    previous: str | None = None
    owner: str | None = None
    beacon: str | None = None

    def __post_init__(self):
        object.__setattr__(
            self, "commitments", tuple(PairCommitment(*pair) for pair in self.commitments)
        )
        if not self.commitments or any(
            len(part) != HASH_BYTES for pair in self.commitments for part in pair
        ):
            raise InputError(
                f"a verification key holds at least one pair of commitments, each of {HASH_BYTES} "
                "bytes"
            )
        if not 2 <= self.num_classes <= MAX_CLASSES:
            raise InputError(
                "a classifier has at least 2 classes and fewer than 2³¹, not "
                f"{_shown(self.num_classes)}"
            )
        # one way of writing it alone: between date and time Python takes any character, a
        # terminal's escape too
        try:
            dated = _DATE.fullmatch(self.created) and datetime.datetime.fromisoformat(self.created)
        except (ValueError, TypeError):
            dated = None
        if not dated:
            raise InputError(
                "created must be a date and time with its offset from UTC, got "
                f"{_shown(self.created)}"
            )
        if self.previous is not None:
            _hex(self.previous, HASH_BYTES)
        owner = self.owner
        if owner is not None and not (
            isinstance(owner, str) and owner.isprintable() and 1 <= len(owner) <= 200
        ):
            raise InputError(
                f"owner must be one printable line of 1 to 200 characters, got {_shown(owner)}"
            )
        if self.beacon is not None:
            size = len(self.beacon) // 2 if isinstance(self.beacon, str) else 0
            if not 16 <= size <= 1024:
                raise InputError(
                    f"a beacon is 16 to 1024 bytes in hexadecimal, got {_shown(self.beacon)}"
                )
            _hex(self.beacon, size)

    def __len__(self) -> int:
        return len(self.commitments)

    @functools.cached_property
    def root(self) -> bytes:
        """Root of the Merkle tree over the pairs: 32 bytes that stand for all commitments."""
        return merkle_root([pair_leaf(pair) for pair in self.commitments])

    @functools.cached_property
    def image_root(self) -> bytes:
        """Root of the Merkle tree over the images' commitments alone: what has to be public before
        a beacon is.
        """
        return merkle_root([pair.image for pair in self.commitments])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole key, date, owner and beacon included, in hexadecimal: what to
        publish.
        """
        return _digest("verification key", self._content())

    def opens(self, opening: Opening) -> bool:
        """Whether an opening belongs to the commitments at its index."""
        if not 0 <= opening.index < len(self):
            return False
        return opens(self.commitments[opening.index], opening, len(self), self.num_classes)

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Shows with `included` that the pair at `index` belongs to `root`, to somebody who has
        nothing but the root.
        """
        return inclusion_proof([pair_leaf(pair) for pair in self.commitments], index)

    def _content(self) -> dict[str, Any]:
        return {
            "created": self.created,
            "previous": self.previous,
            "num_classes": self.num_classes,
            "root": self.root.hex(),
            "image_commitments": [pair.image.hex() for pair in self.commitments],
            "label_commitments": [pair.label.hex() for pair in self.commitments],
            **{name: getattr(self, name) for name in _OPTIONAL if getattr(self, name) is not None},
        }

    def save(self, path: PathLike) -> None:
        """Writes the key to a new file; see `load`."""
        _write(path, "verification key", self._content(), 0o644)

    @classmethod
    def load(cls, path: PathLike) -> "VerificationKey":
        """Reads what `save` wrote.

        Raises:
          InputError: no such file, another kind of file or version, one that is cut off or changed,
            or a key that is none.
        """
        fields = (
            "created",
            "previous",
            "num_classes",
            "root",
            "image_commitments",
            "label_commitments",
        )
        content = _read(path, "verification key", fields, _OPTIONAL)
        with _blaming(path):
            parts = (
                [_hex(text, HASH_BYTES) for text in content[name]]
                for name in ("image_commitments", "label_commitments")
            )
            pairs = tuple(PairCommitment(*pair) for pair in zip(*parts, strict=True))
            said = {
                name: content[name]
                for name in ("created", "previous", *_OPTIONAL)
                if name in content
            }
            key = cls(pairs, _whole(content["num_classes"]), **said)
            if key.root != _hex(content["root"], HASH_BYTES):
                raise InputError("its root is not that of its commitments")
            return key


def make_keys(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    created: str | None = None,
    previous: str | None = None,
    owner: str | None = None,
) -> tuple[MarkingKey, VerificationKey]:
    """A key pair over given trigger pairs, with fresh random bytes; `backdoor.keygen` draws the
    pairs too.

    Args:
      images: (N, H, W, C) uint8, all different.
      labels: (N,) integers in [0, K).
      num_classes: K.
      created: as in `VerificationKey`; now by default.
      previous, owner: as in `VerificationKey`.

    Raises:
      InputError: for what no key can be made of.
    """
    nonces = [tuple(new_nonce() for _ in range(len(images))) for _ in range(2)]
    marking = MarkingKey(images, labels, num_classes, *nonces)
    return marking, _published(marking, created, previous, owner)


def _published(
    marking: MarkingKey,
    created: str | None,
    previous: str | None,
    owner: str | None,
    beacon: str | None = None,
) -> VerificationKey:
    if created is None:
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    classes = marking.num_classes
    pairs = (
        commit_pair(marking.opening(index), len(marking), classes) for index in range(len(marking))
    )
    return VerificationKey(tuple(pairs), classes, created, previous, owner, beacon)


def labels_by_beacon(
    marking_key: MarkingKey,
    verification_key: VerificationKey,
    beacon: bytes,
    *,
    created: str | None = None,
) -> tuple[MarkingKey, VerificationKey]:
    """The same images with labels that nobody chose: drawn by their commitments and by a public
    beacon.

    Label i is SHA-256(domain, `VerificationKey.image_root`, beacon, i) mod K, uniform over all K
    whatever the images show, so that no true labels are asked for and the binomial test with 1/K is
    exact for every innocent suspect: images moved to where other networks answer a chosen label
    gain nothing. The first key, or its `image_root`, has to be public before the beacon is known;
    who makes several first keys and shows one may choose among as many draws.

    Args:
      marking_key, verification_key: of the images, of any labels; the images keep their random
        bytes and commitments.
      beacon: 16 to 1024 public random bytes, younger than the published first key.
      created: of the new key; now by default.

    Returns:
      A key pair; its `previous` is the fingerprint of the first key, its owner the same.

    Raises:
      InputError: keys that do not belong together, or a beacon of another size.
    """
    if rejected_pairs(marking_key, verification_key):
        raise InputError("the marking key does not open the commitments of this verification key")
    root, classes = verification_key.image_root, marking_key.num_classes
    labels = np.array(
        [beacon_label(root, beacon, index, classes) for index in range(len(marking_key))]
    )
    nonces = tuple(new_nonce() for _ in range(len(marking_key)))
    marking = MarkingKey(marking_key.images, labels, classes, marking_key.image_nonces, nonces)
    key = verification_key
    return marking, _published(marking, created, key.fingerprint, key.owner, bytes(beacon).hex())


def rejected_pairs(marking_key: MarkingKey, verification_key: VerificationKey) -> tuple[int, ...]:
    """Indices of the pairs that do not open their commitments, or whose label is not the one that a
    beacon drew.

    All of them where the keys differ in size or classes.
    """
    count = max(len(marking_key), len(verification_key))
    if (
        len(marking_key) != len(verification_key)
        or marking_key.num_classes != verification_key.num_classes
    ):
        return tuple(range(count))
    beacon, classes = verification_key.beacon, marking_key.num_classes

    def drawn(index: int) -> bool:
        if beacon is None:
            return True
        label = beacon_label(verification_key.image_root, bytes.fromhex(beacon), index, classes)
        return label == marking_key.labels[index]

    return tuple(
        i for i in range(count) if not (verification_key.opens(marking_key.opening(i)) and drawn(i))
    )


# ---- files


def _rendered(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _digest(kind: str, content: dict[str, Any]) -> str:
    return hashlib.sha256(
        _rendered({**content, "format": f"dfke_jax {kind}", "version": VERSION})
    ).hexdigest()


def _write(path: PathLike, kind: str, content: dict[str, Any], mode: int) -> None:
    path = Path(path)
    text = {
        "format": f"dfke_jax {kind}",
        "version": VERSION,
        **content,
        "sha256": _digest(kind, content),
    }
    body = json.dumps(text, indent=1).encode() + b"\n"
    if _too_large(body):
        raise InputError(
            f"a {kind} of {len(body):,} bytes is not written, as it could not be read; take fewer "
            "triggers"
        )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise InputError(
            f"{path} exists, and a key is never overwritten; choose another name"
        ) from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _too_large(text: bytes) -> bool:
    return len(text) > MAX_FILE_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > MAX_PARTS


def _read(
    path: PathLike, kind: str, fields: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of a file, if it is whole and of this kind and version."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the {kind} {path}: {error.strerror}") from error
    if _too_large(text):
        raise InputError(
            f"{path} is larger than any {kind}: at most {MAX_FILE_BYTES:,} bytes and {MAX_PARTS:,} "
            "parts are read"
        )
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if not text.rstrip().endswith(b"}"):
            raise InputError(
                f"{path} is cut off, or no {kind}: it does not end as one does"
            ) from error
        raise InputError(f"{path} is damaged, or no {kind}: {error}") from error
    named = found.get("format") if isinstance(found, dict) else None
    if named != f"dfke_jax {kind}":
        known = {
            f"dfke_jax {other}": f", it is a {other}"
            for other in ("marking key", "verification key")
        }
        other = known.get(named, "") if isinstance(named, str) else ""
        raise InputError(f"{path} is no {kind}{other}")
    if found.get("version") != VERSION or isinstance(found["version"], bool):
        raise InputError(
            f"{path} is of version {_shown(found.get('version'))}, this program reads version "
            f"{VERSION}; read it with the release that wrote it"
        )
    wanted = {"format", "version", "sha256", *fields}
    wrong = sorted((wanted - set(found)) | (set(found) - wanted - set(optional)))
    if wrong:
        raise InputError(
            f"{path}: fields {_shown(wrong)} are missing or do not belong into a {kind}"
        )
    content = {name: found[name] for name in (*fields, *optional) if name in found}
    stated = found["sha256"]
    if not isinstance(stated, str) or not hmac.compare_digest(
        stated.encode(errors="replace"), _digest(kind, content).encode()
    ):
        raise InputError(
            f"{path} has been changed or damaged: its content is not what its SHA-256 says"
        )
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a field stands twice")
    return dict(pairs)


@contextlib.contextmanager
def _blaming(path: PathLike) -> Iterator[None]:
    """Turns what parsing a field can raise into an `InputError` that names the file."""
    try:
        yield
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} holds no valid key: {error}") from error


def _shown(value: Any) -> str:
    """A value from a file as a terminal may see it: escaped, and its beginning alone."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise InputError(f"a whole number of at least 0 was expected, not {_shown(value)}")
    return value


def _hex(text: Any, size: int) -> bytes:
    if (
        not isinstance(text, str)
        or len(text) != 2 * size
        or any(c not in "0123456789abcdef" for c in text)
    ):
        raise InputError(f"{size} bytes in lower-case hexadecimal were expected")
    return bytes.fromhex(text)


__all__ = ["MarkingKey", "VerificationKey", "labels_by_beacon", "make_keys", "rejected_pairs"]
