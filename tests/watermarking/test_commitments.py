"""Commitments open for what was committed to, and for nothing else."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfke_jax.core import InputError
from dfke_jax.watermarking import Opening, PairCommitment, canonical_bytes, included
from dfke_jax.watermarking.commitments import commit_pair, inclusion_proof, merkle_root, new_nonce, opens

PAIRS, CLASSES = 3, 4
NONCES = bytes(range(32)), bytes(range(100, 132))
IMAGE = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
PAIR = Opening(1, IMAGE, 2, *NONCES)
COMMITTED = commit_pair(PAIR, PAIRS, CLASSES)


def flipped(data, bit):
    """The same bytes with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def accepts(opening, count=PAIRS, classes=CLASSES, commitment=COMMITTED):
    return opens(commitment, opening, count, classes)


def test_a_commitment_is_the_hash_that_is_documented():
    def frame(*fields):
        return b"".join(len(field).to_bytes(8, "little") + field for field in fields)

    def number(value):
        return value.to_bytes(8, "little")

    domain = b"dfke_jax/backdoor-watermark/commitment/v1"
    image = frame(b"|u1", number(2) + number(3) + number(2), bytes(range(12)))
    label = number(2) + number(4)
    for kind, value, nonce, found in (
        (b"image", image, NONCES[0], COMMITTED.image),
        (b"label", label, NONCES[1], COMMITTED.label),
    ):
        message = frame(domain, kind, number(1), number(3), value, nonce)
        assert found == hashlib.sha256(message).digest()


def test_every_changed_bit_is_found():
    assert accepts(PAIR)
    for bit in range(8 * IMAGE.size):
        image = np.frombuffer(flipped(IMAGE.tobytes(), bit), np.uint8).reshape(IMAGE.shape)
        assert not accepts(PAIR._replace(image=image))
    for bit in range(256):
        assert not accepts(PAIR._replace(image_nonce=flipped(NONCES[0], bit)))
        assert not accepts(PAIR._replace(label_nonce=flipped(NONCES[1], bit)))
        for part in ("image", "label"):
            changed = COMMITTED._replace(**{part: flipped(getattr(COMMITTED, part), bit)})
            assert not accepts(PAIR, commitment=changed)
    for label in (-1, 0, 1, 3, 4, 2 + 2**32, 2**64 + 2):
        assert not accepts(PAIR._replace(label=label))
    for index in (-1, 0, 2, 3, 1 + 2**32):
        assert not accepts(PAIR._replace(index=index))
    for bit in range(63):
        assert not accepts(PAIR, count=PAIRS ^ 1 << bit)
        assert not accepts(PAIR, classes=CLASSES ^ 1 << bit)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": IMAGE.astype(np.int8)},
        {"image": IMAGE.astype(np.float32)},
        {"image": IMAGE.astype(np.uint16)},
        {"image": IMAGE.view(np.uint16)},
        {"image": IMAGE.reshape(3, 2, 2)},
        {"image": IMAGE[None]},
        {"image": IMAGE.ravel()},
        {"image": IMAGE[::-1]},
        {"image": IMAGE.swapaxes(0, 2).reshape(2, 3, 2)},
        {"image": IMAGE[:1]},
        {"image": None},
        {"image": [[object()]]},
        {"image_nonce": NONCES[1]},
        {"label_nonce": NONCES[0]},
        {"image_nonce": NONCES[0][:-1]},
        {"label_nonce": NONCES[1] + b"\0"},
        {"label_nonce": NONCES[1].hex()},
        {"label": 2.5},
        {"label": "2"},
    ],
)
def test_another_type_shape_order_or_nonce_is_found(changes):
    assert not accepts(PAIR._replace(**changes))


def test_image_and_label_commitments_are_not_exchangeable():
    assert not accepts(PAIR, commitment=PairCommitment(COMMITTED.label, COMMITTED.image))


images = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from((1, 3))).flatmap(
    lambda shape: st.binary(min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
        lambda data: np.frombuffer(data, np.uint8).reshape(shape)
    )
)
pairs = st.builds(Opening, st.integers(0, 5), images, st.integers(0, 9), *[st.binary(min_size=32, max_size=32)] * 2)


@settings(max_examples=150, deadline=None)
@given(pairs, pairs)
def test_commitments_agree_where_pairs_do(first, second):
    same_image = (
        first.index == second.index
        and first.image.shape == second.image.shape
        and (first.image == second.image).all()
        and first.image_nonce == second.image_nonce
    )
    same_label = (first.index, first.label, first.label_nonce) == (second.index, second.label, second.label_nonce)
    one, other = commit_pair(first, 6, 10), commit_pair(second, 6, 10)
    assert (one.image == other.image) == same_image
    assert (one.label == other.label) == same_label
    assert opens(one, first, 6, 10)
    assert opens(one, second, 6, 10) == (same_image and same_label)


@settings(max_examples=150, deadline=None)
@given(pairs, st.data())
def test_one_changed_bit_anywhere(pair, data):
    committed = commit_pair(pair, 6, 10)
    field = data.draw(st.sampled_from(("image", "image_nonce", "label_nonce")))
    old = pair.image.tobytes() if field == "image" else getattr(pair, field)
    new = flipped(old, data.draw(st.integers(0, 8 * len(old) - 1)))
    if field == "image":
        new = np.frombuffer(new, np.uint8).reshape(pair.image.shape)
    assert not opens(committed, pair._replace(**{field: new}), 6, 10)


def test_bytes_depend_on_values_alone():
    big = np.asfortranarray(IMAGE).astype(">i4")
    assert canonical_bytes(big) == canonical_bytes(IMAGE.astype("<i4"))
    assert canonical_bytes(IMAGE[:, ::-1][:, ::-1]) == canonical_bytes(IMAGE)
    assert canonical_bytes(jnp.asarray(IMAGE)) == canonical_bytes(IMAGE)
    assert canonical_bytes(np.float32([0.0, -0.0])) == canonical_bytes(np.float32([-0.0, 0.0]))
    assert canonical_bytes(np.float32(1)) != canonical_bytes(np.float64(1))
    assert canonical_bytes(np.float32(1)) != canonical_bytes(np.float32([1]))
    one, many = np.uint8([1]), np.uint8([1, 0])
    assert canonical_bytes(one) != canonical_bytes(many)


@pytest.mark.parametrize(
    "bad",
    [
        np.array([object()]), np.array(["a"]), np.array([1j]), np.array([np.nan]), np.array([np.inf], np.float16),
        jnp.zeros(2, jnp.bfloat16),
    ],
)  # fmt: skip
def test_what_has_no_canonical_bytes(bad):
    with pytest.raises(InputError, match="canonical bytes"):
        canonical_bytes(bad)


def test_nonces_are_long_and_different():
    drawn = {new_nonce() for _ in range(100)}
    assert len(drawn) == 100
    assert {len(nonce) for nonce in drawn} == {32}


# The test vectors of Certificate Transparency's implementations for the tree of RFC 6962 and RFC 9162.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def test_the_tree_is_that_of_the_standard():
    assert [merkle_root(LEAVES[:count]).hex() for count in range(1, 9)] == list(ROOTS)


def test_a_proof_shows_one_leaf_at_one_place():
    for count in range(1, 18):
        leaves = [bytes([i + 1]) * 64 for i in range(count)]
        root = merkle_root(leaves)
        for index in range(count):
            proof = inclusion_proof(leaves, index)
            assert len(proof) <= (count - 1).bit_length()
            assert [i for i in range(-1, count + 1) if included(root, leaves[index], i, count, proof)] == [index]
            assert not included(root, bytes(64), index, count, proof)
            assert not included(root, leaves[index], index, count, (*proof, bytes(32)))
            assert not included(bytes(32), leaves[index], index, count, proof)
            for place in range(len(proof)):
                wrong = (*proof[:place], flipped(proof[place], 3), *proof[place + 1 :])
                assert not included(root, leaves[index], index, count, wrong)
                assert not included(root, leaves[index], index, count, (*proof[:place], *proof[place + 1 :]))


def test_a_node_is_no_leaf():
    leaves = [b"a", b"b"]
    node = b"".join(hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves)
    assert merkle_root([node]) != merkle_root(leaves)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: merkle_root([]), "without leaves"),
        (lambda: inclusion_proof([b"a"], 1), "leaf 1 of 1"),
        (lambda: commit_pair(PAIR, 1, CLASSES), "indices run from 0 to 0"),
        (lambda: commit_pair(PAIR, PAIRS, 2), "label 2 of pair 1"),
        (lambda: commit_pair(PAIR._replace(label_nonce=b""), PAIRS, CLASSES), "nonce is 32 bytes"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
