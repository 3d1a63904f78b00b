"""The two keys of a backdoor watermark, and their files.

The secret marking key holds trigger images, their labels and the random bytes that open the commitments. The public
verification key holds the commitments and a date. Both files are JSON text in UTF-8: numbers and hexadecimal strings, images
as base64 of their bytes; nothing is ever unpickled. Every file names its format and version and carries a SHA-256 of its
content, which finds damage and careless editing. It does not keep out a forger, who can compute it as well; commitments
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


@dataclasses.dataclass(frozen=True, eq=False)
class MarkingKey:
    """The secret of a mark (mk): trigger pairs and what opens their commitments.

    Attributes:
      images: (N, H, W, C) uint8; what is learnt and asked is images/255.
      labels: (N,) int32 in [0, K).
      num_classes: K.
      image_nonces, label_nonces: N times 32 bytes.

    Raises:
      InputError: for other types or shapes, labels out of range, equal images (a network can give one answer only), or
        nonces of another length.
    """

    images: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    num_classes: int
    image_nonces: tuple[bytes, ...] = dataclasses.field(repr=False)
    label_nonces: tuple[bytes, ...] = dataclasses.field(repr=False)

    def __post_init__(self):
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            raise InputError(f"images of a key are (N, H, W, C) uint8, got {images.dtype} of shape {images.shape}")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise InputError(
                f"{len(images)} images need as many integer labels, got {labels.dtype} of shape {labels.shape}"
            )
        if self.num_classes < 2 or labels.min() < 0 or labels.max() >= self.num_classes:
            raise InputError(
                f"labels from {labels.min()} to {labels.max()} of {self.num_classes} classes; they lie in [0, K), K >= 2"
            )
        seen: dict[bytes, int] = {}
        for index, image in enumerate(images):
            if seen.setdefault(image.tobytes(), index) != index:
                raise InputError(f"images {seen[image.tobytes()]} and {index} of the key are the same")
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
            raise InputError(f"pair {index} of a key of {len(self)} pairs; indices run from 0 to {len(self) - 1}")
        return Opening(
            index, self.images[index], int(self.labels[index]), self.image_nonces[index], self.label_nonces[index]
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
          InputError: no such file, another kind of file or version, one that is cut off or changed, or a key that is none.
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


@dataclasses.dataclass(frozen=True)
class VerificationKey:
    """What an owner publishes (vk): 2N commitments, and when.

    `created` is the owner's word. What gives it weight is a `fingerprint` published where others put a date to it; of two
    marks in one network the earlier published one counts.

    Attributes:
      commitments: of the N pairs.
      num_classes: K.
      created: date and time in ISO 8601, with its offset from UTC.
      previous: `fingerprint` of the key that this one follows, or None.

    Raises:
      InputError: no commitments, one that is not 32 bytes, or a date that is none.
    """

    commitments: tuple[PairCommitment, ...]
    num_classes: int
    created: str
    previous: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "commitments", tuple(PairCommitment(*pair) for pair in self.commitments))
        if not self.commitments or any(len(part) != HASH_BYTES for pair in self.commitments for part in pair):
            raise InputError(f"a verification key holds at least one pair of commitments, each of {HASH_BYTES} bytes")
        if self.num_classes < 2:
            raise InputError(f"a classifier has at least 2 classes, not {self.num_classes}")
        try:
            date = datetime.datetime.fromisoformat(self.created)
        except (ValueError, TypeError):
            date = None
        if date is None or date.tzinfo is None:
            raise InputError(f"created must be a date and time with its offset from UTC, got {self.created!r}")
        if self.previous is not None:
            _hex(self.previous, HASH_BYTES)

    def __len__(self) -> int:
        return len(self.commitments)

    @functools.cached_property
    def root(self) -> bytes:
        """Root of the Merkle tree over the pairs: 32 bytes that stand for all commitments."""
        return merkle_root([pair_leaf(pair) for pair in self.commitments])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole key, date included, in hexadecimal: what to publish."""
        return _digest("verification key", self._content())

    def opens(self, opening: Opening) -> bool:
        """Whether an opening belongs to the commitments at its index."""
        if not 0 <= opening.index < len(self):
            return False
        return opens(self.commitments[opening.index], opening, len(self), self.num_classes)

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Shows with `included` that the pair at `index` belongs to `root`, to somebody who has nothing but the root."""
        return inclusion_proof([pair_leaf(pair) for pair in self.commitments], index)

    def _content(self) -> dict[str, Any]:
        return {
            "created": self.created,
            "previous": self.previous,
            "num_classes": self.num_classes,
            "root": self.root.hex(),
            "image_commitments": [pair.image.hex() for pair in self.commitments],
            "label_commitments": [pair.label.hex() for pair in self.commitments],
        }

    def save(self, path: PathLike) -> None:
        """Writes the key to a new file; see `load`."""
        _write(path, "verification key", self._content(), 0o644)

    @classmethod
    def load(cls, path: PathLike) -> "VerificationKey":
        """Reads what `save` wrote.

        Raises:
          InputError: no such file, another kind of file or version, one that is cut off or changed, or a key that is none.
        """
        fields = ("created", "previous", "num_classes", "root", "image_commitments", "label_commitments")
        content = _read(path, "verification key", fields)
        with _blaming(path):
            parts = (
                [_hex(text, HASH_BYTES) for text in content[name]]
                for name in ("image_commitments", "label_commitments")
            )
            pairs = tuple(PairCommitment(*pair) for pair in zip(*parts, strict=True))
            key = cls(pairs, _whole(content["num_classes"]), content["created"], content["previous"])
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
) -> tuple[MarkingKey, VerificationKey]:
    """A key pair over given trigger pairs, with fresh random bytes; `backdoor.keygen` draws the pairs too.

    Args:
      images: (N, H, W, C) uint8, all different.
      labels: (N,) integers in [0, K).
      num_classes: K.
      created: as in `VerificationKey`; now by default.
      previous: as in `VerificationKey`.

    Raises:
      InputError: for what no key can be made of.
    """
    nonces = [tuple(new_nonce() for _ in range(len(images))) for _ in range(2)]
    marking = MarkingKey(images, labels, num_classes, *nonces)
    if created is None:
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    pairs = (commit_pair(marking.opening(index), len(marking), num_classes) for index in range(len(marking)))
    return marking, VerificationKey(tuple(pairs), num_classes, created, previous)


def rejected_pairs(marking_key: MarkingKey, verification_key: VerificationKey) -> tuple[int, ...]:
    """Indices of the pairs that do not open their commitments; all of them where the keys differ in size or classes."""
    count = max(len(marking_key), len(verification_key))
    if len(marking_key) != len(verification_key) or marking_key.num_classes != verification_key.num_classes:
        return tuple(range(count))
    return tuple(index for index in range(count) if not verification_key.opens(marking_key.opening(index)))


# ---- files


def _rendered(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _digest(kind: str, content: dict[str, Any]) -> str:
    return hashlib.sha256(_rendered({**content, "format": f"dfke_jax {kind}", "version": VERSION})).hexdigest()


def _write(path: PathLike, kind: str, content: dict[str, Any], mode: int) -> None:
    path = Path(path)
    text = {"format": f"dfke_jax {kind}", "version": VERSION, **content, "sha256": _digest(kind, content)}
    body = json.dumps(text, indent=1).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise InputError(f"{path} exists, and a key is never overwritten; choose another name") from None
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


def _read(path: PathLike, kind: str, fields: Sequence[str]) -> dict[str, Any]:
    """The fields of a file, if it is whole and of this kind and version."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the {kind} {path}: {error.strerror}") from error
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if not text.rstrip().endswith(b"}"):
            raise InputError(f"{path} is cut off, or no {kind}: it does not end as one does") from error
        raise InputError(f"{path} is damaged, or no {kind}: {error}") from error
    named = found.get("format") if isinstance(found, dict) else None
    if named != f"dfke_jax {kind}":
        other = f", it is a {named.removeprefix('dfke_jax ')}" if isinstance(named, str) else ""
        raise InputError(f"{path} is no {kind}{other}")
    if found.get("version") != VERSION or isinstance(found["version"], bool):
        raise InputError(
            f"{path} is of version {found.get('version')!r}, this program reads version {VERSION}; read it with the "
            "release that wrote it"
        )
    wanted = {"format", "version", "sha256", *fields}
    if set(found) != wanted:
        raise InputError(f"{path}: fields {sorted(set(found) ^ wanted)} are missing or do not belong into a {kind}")
    content = {name: found[name] for name in fields}
    stated = found["sha256"]
    if not isinstance(stated, str) or not hmac.compare_digest(
        stated.encode(errors="replace"), _digest(kind, content).encode()
    ):
        raise InputError(f"{path} has been changed or damaged: its content is not what its SHA-256 says")
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


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise InputError(f"a whole number of at least 0 was expected, not {value!r}")
    return value


def _hex(text: Any, size: int) -> bytes:
    if not isinstance(text, str) or len(text) != 2 * size or any(c not in "0123456789abcdef" for c in text):
        raise InputError(f"{size} bytes in lower-case hexadecimal were expected")
    return bytes.fromhex(text)


__all__ = ["MarkingKey", "VerificationKey", "make_keys", "rejected_pairs"]
