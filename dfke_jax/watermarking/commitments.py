"""Commitments to trigger images and their labels, over bytes that depend on nothing but the values.

A commitment is SHA-256 of a framed message that ends in 32 random bytes. Hiding and binding rest on
SHA-256: nobody can find a second opening, and without the random bytes nothing can be tested
against a commitment. A commitment proves what was fixed when it was published. It is not
zero-knowledge: to show anything about a committed pair, the pair is opened.
"""

import dataclasses
import hashlib
import hmac
import operator
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dfke_jax.core.errors import InputError

DOMAIN = b"dfke_jax/backdoor-watermark/commitment/v1"
_BEACON = b"dfke_jax/backdoor-watermark/beacon/v1"
_MARK = b"dfke_jax/watermark/mark/v1"
NONCE_BYTES = 32
HASH_BYTES = 32


def canonical_bytes(array: Any) -> bytes:
    """The bytes of an array: framed type, shape and values, the same on every machine.

    Little-endian, row-major whatever the memory layout, zeros of either sign as one number. Arrays
    that differ in type, shape, order or one value have other bytes.

    Args:
      array: booleans, integers or floats of at most 64 bits.

    Raises:
      InputError: for another type (objects, complex, bfloat16), or values that are not finite.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise InputError(
            "only booleans, integers and floats of at most 64 bits have canonical bytes, not "
            f"{array.dtype}"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise InputError("an array with NaN or infinity has no canonical bytes")
        array = array + np.zeros((), array.dtype)  # -0 + 0 = 0
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)
    return framed(
        array.dtype.str.encode(), np.asarray(array.shape, "<u8").tobytes(), array.tobytes()
    )


def framed(*fields: bytes) -> bytes:
    """Each field after its length in eight bytes: two different lists of fields never give the same
    message.
    """
    return b"".join(len(field).to_bytes(8, "little") + field for field in fields)


def new_nonce() -> bytes:
    """32 bytes from the operating system, never from a seed."""
    return secrets.token_bytes(NONCE_BYTES)


class Opening(NamedTuple):
    """A trigger pair with what opens its two commitments.

    Attributes:
      index: its place in the key.
      image: (H, W, C) uint8, what is asked. label: what a marked network answers.
      image_nonce, label_nonce: 32 bytes each.
    """

    index: int
    image: np.ndarray
    label: int
    image_nonce: bytes
    label_nonce: bytes


class PairCommitment(NamedTuple):
    """The two commitments of a pair, 32 bytes each."""

    image: bytes
    label: bytes


def commit_pair(opening: Opening, count: int, num_classes: int) -> PairCommitment:
    """The commitments to a pair.

    SHA-256(frame(domain and version, kind, index, count, value, nonce)), where the value is the
    image's `canonical_bytes`, or label and number of classes as eight bytes each. The kind keeps an
    image's commitment from passing for a label's, index and count keep pairs in their place.

    Args:
      opening: the pair.
      count: N, pairs of the key. num_classes: K.

    Raises:
      InputError: an index outside [0, N), a label outside [0, K), or nonces that are not 32 bytes.
    """
    index, label = operator.index(opening.index), operator.index(opening.label)
    if not 0 <= index < count:
        raise InputError(
            f"pair {index} of a key of {count} pairs; indices run from 0 to {count - 1}"
        )
    if not 0 <= label < num_classes:
        raise InputError(f"label {label} of pair {index}; classes are 0 to {num_classes - 1}")
    for nonce in (opening.image_nonce, opening.label_nonce):
        if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
            raise InputError(f"pair {index}: a nonce is {NONCE_BYTES} bytes")

    def commitment(kind: bytes, value: bytes, nonce: bytes) -> bytes:
        return hashlib.sha256(
            framed(DOMAIN, kind, _number(index), _number(count), value, nonce)
        ).digest()

    return PairCommitment(
        commitment(b"image", canonical_bytes(opening.image), opening.image_nonce),
        commitment(b"label", _number(label) + _number(num_classes), opening.label_nonce),
    )


def opens(commitment: PairCommitment, opening: Opening, count: int, num_classes: int) -> bool:
    """Whether an opening belongs to both commitments of a pair; False too for one that can belong
    to none.
    """
    try:
        found = commit_pair(opening, count, num_classes)
    except (InputError, TypeError, ValueError, OverflowError):
        return False
    same_image = hmac.compare_digest(found.image, commitment.image)
    return hmac.compare_digest(found.label, commitment.label) and same_image


def beacon_label(root: bytes, beacon: bytes, index: int, num_classes: int) -> int:
    """SHA-256(frame(domain, root, beacon, index)) mod K: uniform but for K/2²⁵⁶.

    Args:
      root: of the committed images. beacon: public random bytes. index: of the pair. num_classes:
        K.
    """
    digest = hashlib.sha256(framed(_BEACON, root, beacon, _number(index))).digest()
    return int.from_bytes(digest, "big") % num_classes


# ---- marks that are no list of pairs


class MarkCommitment(NamedTuple):
    """A commitment to a whole mark: 32 bytes to publish, and 32 random bytes that open it, to keep
    with the mark.
    """

    digest: bytes
    nonce: bytes


def commit_mark(mark: Any, nonce: bytes | None = None) -> MarkCommitment:
    """Commits to everything that a mark consists of: SHA-256(frame(domain, kind, places and leaves,
    texts, nonce)).

    Args:
      mark: a `UchidaMark`, `MarginMark`, `FrontierKeys`, `TriggerSet`, `RegisteredMarks`,
        directions of radioactive data, or any pytree of arrays and numbers; names that are part of
        it, as of a layer, are bound too.
      nonce: 32 bytes; from the operating system by default.

    Raises:
      InputError: a nonce of another length, or a mark that holds something without canonical bytes.
    """
    nonce = new_nonce() if nonce is None else nonce
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise InputError(f"a nonce is {NONCE_BYTES} bytes")
    # leaves with their paths; a structure's own text may hold addresses, which change from run to
    # run
    parts = [type(mark).__name__.encode()]
    for path, leaf in jax.tree_util.tree_leaves_with_path(mark):
        parts += [jax.tree_util.keystr(path).encode(), canonical_bytes(leaf)]
    fields = dataclasses.fields(mark) if dataclasses.is_dataclass(mark) else ()
    named = {field.name: getattr(mark, field.name) for field in fields}
    parts += [f"{name}={value}".encode() for name, value in named.items() if isinstance(value, str)]
    return MarkCommitment(hashlib.sha256(framed(_MARK, *parts, nonce)).digest(), nonce)


NOT_COMMITTED = (
    "the mark was fixed before the suspect was; nothing shows that here, no commitment was opened"
)
DRAWN = "labels were drawn at random and chosen by nobody"
COMMITTED = "the commitment that the mark opens was published before the suspect was"


def mark_assumptions(mark: Any, commitment: MarkCommitment | None) -> tuple[str, ...]:
    """What a verdict on a mark presumes about when it was fixed.

    Raises:
      InputError: for a mark that does not open the commitment.
    """
    if commitment is None:
        return (NOT_COMMITTED,)
    if not hmac.compare_digest(commit_mark(mark, commitment.nonce).digest, commitment.digest):
        raise InputError(
            "the mark does not open the commitment; it is not the one that was committed to"
        )
    return (COMMITTED,)


def _number(value: int) -> bytes:
    return int(value).to_bytes(8, "little")


# ---- one value for all commitments, and short proofs that a pair is among them


def pair_leaf(commitment: PairCommitment) -> bytes:
    """A pair's leaf of the Merkle tree: both commitments, 64 bytes."""
    return commitment.image + commitment.label


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root of the Merkle tree over leaves in their order.

    SHA-256(0 ‖ leaf) for leaves, SHA-256(1 ‖ left ‖ right) for nodes, and the left part holds the
    largest power of two of leaves that is smaller than their number.

    Raises:
      InputError: for no leaves.

    Source: RFC 9162, section 2.1.1.
    """
    if not leaves:
        raise InputError("a tree without leaves has no root")
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    middle = _split(len(leaves))
    return _node(merkle_root(leaves[:middle]), merkle_root(leaves[middle:]))


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The hashes beside the way from a leaf to the root, from below: at most ⌈log₂ N⌉ of them.

    Raises:
      InputError: for an index outside [0, N).
    """
    if not 0 <= index < len(leaves):
        raise InputError(f"leaf {index} of {len(leaves)}")
    if len(leaves) == 1:
        return ()
    middle = _split(len(leaves))
    if index < middle:
        return (*inclusion_proof(leaves[:middle], index), merkle_root(leaves[middle:]))
    return (*inclusion_proof(leaves[middle:], index - middle), merkle_root(leaves[:middle]))


def included(root: bytes, leaf: bytes, index: int, count: int, proof: Sequence[bytes]) -> bool:
    """Whether a leaf stands at an index of a tree of `count` leaves with this root."""
    if not 0 <= index < count:
        return False
    found, place, last = hashlib.sha256(b"\0" + leaf).digest(), index, count - 1
    for beside in proof:
        if last == 0 or len(beside) != HASH_BYTES:
            return False
        if place % 2 or place == last:
            found = _node(beside, found)
            # the way goes up along the right edge, where levels may be missing
            while place and not place % 2:
                place, last = place // 2, last // 2
        else:
            found = _node(found, beside)
        place, last = place // 2, last // 2
    return last == 0 and hmac.compare_digest(found, root)


def _split(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


__all__ = [
    "COMMITTED",
    "DRAWN",
    "NOT_COMMITTED",
    "MarkCommitment",
    "Opening",
    "PairCommitment",
    "beacon_label",
    "canonical_bytes",
    "commit_mark",
    "commit_pair",
    "included",
    "inclusion_proof",
    "mark_assumptions",
    "merkle_root",
    "new_nonce",
    "opens",
    "pair_leaf",
]
