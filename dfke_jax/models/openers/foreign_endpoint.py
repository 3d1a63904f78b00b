"""Endpoints of another make, by a small mapping: what is sent, and where the answer stands.

request   where rows go in the JSON that is posted: ``instances``, ``data.images``
encoding  how: ``list`` (nested lists; default), ``npy`` (one base64 text of numpy.save),
          ``png`` (a base64 text for each image, 8 bits)
answer    where scores are in the JSON that comes back: ``predictions``,
          ``outputs.*.scores``; ``*`` stands for every row
"""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from dfke_jax.core.errors import EndpointError, InputError, UnknownNameError, UnknownOutcomeError
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.models.openers.images import PREPARED, prepared
from dfke_jax.oracle.codec import to_npy
from dfke_jax.oracle.proxies import proxy_for

_LARGEST = 64 << 20
"""Bytes of an answer that are read."""
_SECONDS = 60.0


def open(where: str, said: Declared) -> Found:
    """A host victim that posts rows to an address, 32 at a time; opening it asks two.

    Nothing is sent again by itself: whether a question that failed was counted is not known. Put it
    in a `Metered` to have every answer in a ledger.

    Raises:
      InputError: the mapping is not whole.
      EndpointError: it cannot be reached, or refuses. UnknownOutcomeError: it sent what is no
        answer, or nothing at the place of one.
    """
    import httpx

    said.only(*PREPARED, "key", "request", "encoding", "answer", kind="a foreign endpoint")
    if not (said.request and said.answer):
        raise InputError(
            "a foreign endpoint needs request=FIELD and answer=PATH, for instance "
            "request=instances answer=predictions"
        )
    encoding = said.encoding or "list"
    if encoding not in ENCODINGS:
        raise UnknownNameError("encoding", encoding, ENCODINGS)
    shape = said.shape(None, where)
    low, high = said.box or (0.0, 1.0)
    ready = prepared(said, shape, "NHWC")
    headers = {"Authorization": f"Bearer {said.key}"} if said.key else {}
    proxy = proxy_for(where)
    client = httpx.Client(
        headers=headers, timeout=_SECONDS, trust_env=False, proxy=proxy and proxy.address
    )
    field, path = said.request.split("."), said.answer.split(".")

    def ask(rows: np.ndarray) -> np.ndarray:
        given = ready(rows, np)
        body: Any = ENCODINGS[encoding](
            given if encoding != "png" else (given - low) / (high - low)
        )
        for name in reversed(field):
            body = {name: body}
        return _numbers(found_at(_posted(client, where, body), path, where), where)

    return Found(
        "a foreign endpoint",
        where,
        shape,
        ask=ask,
        batch_size=said.batch_size or 32,
        repeatable=False,
        close=client.close,
        notes=("opening it asked two rows",),
    )


def found_at(content: Any, path: list[str], where: str) -> Any:
    """What stands at a path of names and places in JSON; ``*`` is every entry of a list.

    >>> found_at({"rows": [{"p": [0.1, 0.9]}, {"p": [0.8, 0.2]}]}, ["rows", "*", "p"], "")
    [[0.1, 0.9], [0.8, 0.2]]

    Raises:
      UnknownOutcomeError: there is nothing.
    """
    for place, name in enumerate(path):
        if name == "*" and isinstance(content, list):
            return [found_at(entry, path[place + 1 :], where) for entry in content]
        try:
            content = content[int(name)] if isinstance(content, list) else content[name]
        except (KeyError, IndexError, ValueError, TypeError):
            there = (
                ", ".join(map(repr, content))
                if isinstance(content, dict)
                else type(content).__name__
            )
            raise UnknownOutcomeError(
                f"the answer of {where} has nothing at {'.'.join(path[: place + 1])}; there is "
                f"{ascii(there)[:200]}"
            ) from None
    return content


def _posted(client: Any, where: str, body: Any) -> Any:
    import httpx

    try:
        with client.stream("POST", where, json=body) as answer:
            content = bytearray()
            for part in answer.iter_bytes():
                content += part
                if len(content) > _LARGEST:
                    raise UnknownOutcomeError(f"{where} answers more than {_LARGEST} bytes")
            if answer.status_code != 200:
                said = ascii(bytes(content[:200]).decode(errors="replace"))
                raise EndpointError(f"{where} refused with status {answer.status_code}: {said}")
            return json.loads(content)
    except httpx.ConnectError as error:
        raise EndpointError(f"{where} cannot be reached: {error}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnknownOutcomeError(
            f"{where} gave no whole answer: {type(error).__name__}: {error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UnknownOutcomeError(f"{where} answers what is no JSON: {error}") from error


def _numbers(values: Any, where: str) -> np.ndarray:
    try:
        found = np.asarray(values)
        if found.dtype.kind not in "iuf":
            raise ValueError(f"type {found.dtype}")
    except ValueError as error:
        raise UnknownOutcomeError(f"{where} answers what are no numbers: {error}") from None
    return found.astype(np.float32) if found.dtype.kind == "f" else found


def _png(rows: np.ndarray) -> list[str]:
    from PIL import Image

    if rows.ndim != 4 or rows.shape[-1] not in (1, 3):
        raise InputError(f"encoding=png sends images of 1 or 3 channels, not rows {rows.shape[1:]}")
    texts = []
    for row in np.rint(np.clip(rows, 0, 1) * 255).astype(np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row).save(buffer, "PNG")
        texts.append(base64.b64encode(buffer.getvalue()).decode())
    return texts


ENCODINGS: dict[str, Callable[[np.ndarray], Any]] = {
    "list": lambda rows: np.asarray(rows, np.float64).tolist(),
    "npy": lambda rows: base64.b64encode(to_npy(np.asarray(rows, np.float32))).decode(),
    "png": _png,
}
"""How rows are written into JSON."""

__all__ = ["ENCODINGS", "found_at", "open"]
