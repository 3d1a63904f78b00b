"""Rows and answers as bytes: keys of a ledger, what it stores, and what travels to an endpoint.
Nothing is ever pickled.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError, LedgerError

_ROW_TYPES = ("float16", "float32", "float64", "uint8")


def row_keys(rows: np.ndarray, endpoint: str, reveal: str) -> list[bytes]:
    """SHA-256(endpoint ‖ reveal ‖ type ‖ shape ‖ bytes) of every row of (B, ...).

    Bytes are little-endian and otherwise as they are: rows that differ in one bit, in shape or in
    type have other keys.

    Raises:
      InputError: for rows that are empty, not finite, or of a type that no endpoint takes.
    """
    if rows.ndim < 2 or len(rows) == 0:
        raise InputError(f"rows must be (B, ...) with B >= 1, got shape {rows.shape}")
    if rows.dtype.name not in _ROW_TYPES:
        raise InputError(f"rows must be one of {', '.join(_ROW_TYPES)}, got {rows.dtype}")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).reshape(len(rows), -1).any(1).sum())
        raise InputError(f"{bad} of {len(rows)} rows contain NaN or infinity; they were not sent")
    rows = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("<"), copy=False))
    start = hashlib.sha256(json.dumps([endpoint, reveal, rows.dtype.name, rows.shape[1:]]).encode())
    keys = []
    for row in rows:
        digest = start.copy()
        digest.update(row.tobytes())
        keys.append(digest.digest())
    return keys


def encode_answers(answers: Any, count: int) -> tuple[str, list[bytes]]:
    """Answers with leading axis B -> (layout of one row, bytes of every row).

    Args:
      answers: an array, or a tuple or dictionary of arrays. count: B.

    Raises:
      InputError: for another structure, type of number, or leading axis.
    """
    if isinstance(answers, dict):
        kind, leaves = sorted(answers), [answers[name] for name in sorted(answers)]
    elif type(answers) is tuple:
        kind, leaves = "tuple", list(answers)
    else:
        kind, leaves = "array", [answers]
    leaves = [np.asarray(leaf) for leaf in leaves]
    for leaf in leaves:
        if leaf.dtype.kind not in "biuf":
            raise InputError(
                "answers must be arrays of numbers, or a tuple or dictionary of them, got "
                f"{leaf.dtype}"
            )
        if leaf.ndim == 0 or len(leaf) != count:
            raise InputError(f"{count} rows were asked and answers of shape {leaf.shape} came back")
    leaves = [
        np.ascontiguousarray(leaf.astype(leaf.dtype.newbyteorder("<"), copy=False))
        for leaf in leaves
    ]
    layout = json.dumps([kind, [[leaf.dtype.str, leaf.shape[1:]] for leaf in leaves]])
    return layout, [b"".join(leaf[i].tobytes() for leaf in leaves) for i in range(count)]


def decode_answers(rows: Sequence[tuple[str, bytes]]) -> Any:
    """(layout, bytes) of B rows -> what `encode_answers` was given.

    Raises:
      LedgerError: when rows were answered in different layouts.
    """
    layouts = {layout for layout, _ in rows}
    if len(layouts) != 1:
        raise LedgerError(f"the endpoint answered in different forms: {'; '.join(sorted(layouts))}")
    kind, described = json.loads(layouts.pop())
    data = np.frombuffer(b"".join(row for _, row in rows), np.uint8).reshape(len(rows), -1)
    leaves, start = [], 0
    for name, shape in described:
        dtype = np.dtype(name)
        stop = start + dtype.itemsize * int(np.prod(shape))
        leaf = np.ascontiguousarray(data[:, start:stop]).view(dtype).reshape(len(rows), *shape)
        leaves.append(leaf.astype(dtype.newbyteorder("="), copy=False))
        start = stop
    if kind == "array":
        return leaves[0]
    return tuple(leaves) if kind == "tuple" else dict(zip(kind, leaves, strict=True))


def to_npy(array: Any) -> bytes:
    """An array in NumPy's own file format."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def from_npy(body: bytes | bytearray) -> np.ndarray:
    """Reads `to_npy` from a stranger: the size that the header claims must be the size that is
    there.

    Raises:
      InputError: for anything but a whole array of numbers.
    """
    return arrays_from_npy(body, 1)[0]


def arrays_from_npy(body: bytes | bytearray, count: int) -> list[np.ndarray]:
    """Reads so many arrays that `to_npy` wrote, one behind another, from a stranger.

    Raises:
      InputError: for anything but that many whole arrays of numbers and nothing behind them.
    """
    buffer, arrays = io.BytesIO(body), []
    for place in range(count):
        shape, fortran, dtype = _npy_header(buffer)
        wanted, there = dtype.itemsize * math.prod(shape), len(body) - buffer.tell()
        if wanted > there or (wanted < there and place == count - 1):
            raise InputError(
                f"the body announces an array {shape} of {dtype}, {wanted} bytes, and holds {there}"
            )
        array = np.frombuffer(body, dtype, math.prod(shape), buffer.tell())
        buffer.seek(wanted, io.SEEK_CUR)
        try:
            array = array.reshape(shape, order="F" if fortran else "C")
        except ValueError as error:  # more axes than NumPy has, or (0, 2**30, 2**30, 2**30)
            raise InputError("the body announces an array of no possible shape") from error
        arrays.append(array.astype(dtype.newbyteorder("="), copy=False))
    return arrays


_ITEM = re.compile(
    r"""\s*(['"])(descr|fortran_order|shape)\1\s*:\s*"""
    r"""(?:(['"])([<>|=]?[A-Za-z]\d{0,4})\3|(True|False)|\(([\d\s,]*)\))\s*(,|$)"""
)
_LONGEST_HEADER = 10_000


def _npy_header(buffer: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array, and the buffer behind its header.

    Read by a pattern and not by NumPy, which hands the text of a stranger to Python's own parser.
    """
    wrong = InputError("the body is no array in npy format (numpy.save with allow_pickle=False)")
    magic, version = buffer.read(6), buffer.read(2)
    size = {b"\x01\x00": 2, b"\x02\x00": 4}.get(version)
    if magic != b"\x93NUMPY" or size is None:
        raise wrong
    length = int.from_bytes(buffer.read(size), "little")
    if length > _LONGEST_HEADER:
        raise wrong
    text = buffer.read(length)
    found: dict[str, re.Match] = {}
    try:
        header = text.decode("latin-1").strip()
        if len(text) != length or header[:1] != "{" or header[-1:] != "}":
            raise wrong
        header, place = header[1:-1].strip(), 0
        while place < len(header):
            item = _ITEM.match(header, place)
            if item is None or item[2] in found:
                raise wrong
            found[item[2]], place = item, item.end()
        kind, order, sizes = (found[name] for name in ("descr", "fortran_order", "shape"))
        if kind[4] is None or order[5] is None or sizes[6] is None:
            raise wrong
        dtype = np.dtype(kind[4])
        parts = [part.strip() for part in sizes[6].split(",")]
        shape = tuple(int(part) for part in (parts[:-1] if parts[-1] == "" else parts))
    except (KeyError, ValueError, TypeError) as error:
        raise wrong from error
    if dtype.kind not in "biuf":
        raise InputError(f"an array of numbers was expected, the body holds {dtype.kind!r}")
    if len(shape) == 1 and parts[-1] != "":
        raise wrong  # (3) is a number, not a shape
    if not all(size < 2**31 for size in shape):
        raise InputError("the body announces an array of no possible shape")
    return shape, order[5] == "True", dtype


__all__ = ["arrays_from_npy", "decode_answers", "encode_answers", "from_npy", "row_keys", "to_npy"]
