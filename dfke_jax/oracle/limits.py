"""What an endpoint takes and whom it lets ask: shapes and sizes, API keys, quotas, rates."""

import array
import dataclasses
import hashlib
import hmac
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.oracle.codec import from_npy
from dfke_jax.oracle.explanations import Explanation
from dfke_jax.oracle.reveal import Reveal

JSON = "application/json"
_SLACK = 65_536
_JSON_NUMBER = 64
"""Bytes of a body that a number in JSON may take, brackets and spaces included."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """What an endpoint says of itself, and holds its callers to.

    Attributes:
      input_shape: of a row: (H, W, C) of images, (D,) of feature vectors. num_classes: K. reveal:
        what it answers.
      box: lowest and highest value of a row; None for any finite numbers.
      dtype: ``float32`` or ``float64``, what rows are sent in. uint8 rows are taken as 0 to 255
        across the box.
      quota: rows of a key, ever. rate: rows a second of a key, on average. burst: rows that it may
        have at once after a rest; `rate` by default.
      max_rows: in a request. max_bytes: of a body; less is taken where fewer bytes hold the rows
        of any request.
      max_pending: bytes of all bodies that are received or answered at a time; four times
        `max_bytes` by default.
      body_seconds: in which a body must have arrived.
      max_recorded: bytes of answers that are kept for repeated requests; the oldest are forgotten.
      explanation: what it explains; None where it explains nothing.
      explanation_quota: rows of a key that are explained, ever; they count against `quota` as well.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    reveal: Reveal
    box: tuple[float, float] | None = (0.0, 1.0)
    dtype: str = "float32"
    quota: int | None = None
    rate: float | None = None
    burst: int | None = None
    max_rows: int = 1024
    max_bytes: int = 64 * 2**20
    max_pending: int | None = None
    body_seconds: float = 60.0
    max_recorded: int = 256 * 2**20
    explanation: Explanation | None = None
    explanation_quota: int | None = None

    def __post_init__(self):
        if (
            not self.input_shape
            or any(size < 1 for size in self.input_shape)
            or self.num_classes < 1
        ):
            raise InputError(
                f"input_shape and num_classes must be positive, got {self.input_shape}, "
                f"{self.num_classes}"
            )
        if self.reveal.k is not None and self.reveal.k > self.num_classes:
            raise InputError(
                f"the top {self.reveal.k} of {self.num_classes} classes cannot be revealed"
            )
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, got {self.dtype!r}")
        if self.box is not None and not -math.inf < self.box[0] < self.box[1] < math.inf:
            raise InputError(f"box must be (low, high) with low < high, got {self.box}")
        if min(self.max_rows, self.max_bytes) < 1 or self.max_recorded < 0 or (self.quota or 0) < 0:
            raise InputError(
                "max_rows and max_bytes must be at least 1, quota and max_recorded at least 0"
            )
        if self.pending_at_once < self.max_bytes or not 0 < self.body_seconds < math.inf:
            raise InputError("max_pending must be at least max_bytes, and body_seconds positive")
        if (self.rate is not None and not 0 < self.rate < math.inf) or (
            self.burst is not None and self.burst < 1
        ):
            raise InputError(
                f"rate must be positive and burst at least 1, got {self.rate} and {self.burst}"
            )
        if self.explanation_quota is not None and (
            self.explanation is None or self.explanation_quota < 0
        ):
            raise InputError(
                "explanation_quota must be at least 0 and belongs to an endpoint that explains"
            )
        if self.explanation is not None and self.reveal.kind not in ("probabilities", "top_k"):
            raise InputError(
                f"an endpoint that reveals {self.reveal.kind!r} has no probabilities to explain"
            )

    @property
    def bucket(self) -> int | None:
        """Rows that fit a key's token bucket; None without a rate."""
        if self.rate is None:
            return None
        return self.burst or max(1, int(self.rate))

    @property
    def rows_at_once(self) -> int:
        """The largest request: no more than the bucket can ever hold."""
        return self.max_rows if self.bucket is None else min(self.max_rows, self.bucket)

    @property
    def explained_at_once(self) -> int:
        """The largest request for explanations: what answers it must fit `max_bytes`, as what asks
        must.
        """
        size = np.dtype(self.dtype).itemsize * self._explained_values
        return max(1, min(self.rows_at_once, self.max_bytes // size))

    @property
    def pending_at_once(self) -> int:
        """Bytes of all bodies that are received or answered at a time."""
        return 4 * self.max_bytes if self.max_pending is None else self.max_pending

    @property
    def _explained_values(self) -> int:
        """Numbers that answer and explain a row."""
        classes = (
            self.num_classes if self.explanation is None or self.explanation.classes == "all" else 1
        )
        return self.num_classes + classes * math.prod(self.input_shape)

    def most_rows(self, content_type: str, *, explained: bool = False) -> int:
        """The largest request of a kind of body; in JSON the answer must fit `max_bytes` as well."""
        most = self.explained_at_once if explained else self.rows_at_once
        if content_type != JSON:
            return most
        values = self._explained_values if explained else self.num_classes
        return max(1, min(most, self.max_bytes // (_JSON_NUMBER * values)))

    def most_bytes(self, content_type: str) -> int:
        """The longest body that is read: twice the largest request, so that one too large is told
        so.
        """
        size = _JSON_NUMBER if content_type == JSON else np.dtype(self.dtype).itemsize
        return min(
            self.max_bytes, _SLACK + 2 * self.rows_at_once * math.prod(self.input_shape) * size
        )

    def describe(self) -> dict[str, Any]:
        """The body of ``/v1/describe``."""
        explained = (
            {}
            if self.explanation is None
            else {
                "max_explained": self.explained_at_once,
                "explanation_quota": self.explanation_quota,
            }
        )
        return {
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "reveal": dataclasses.asdict(self.reveal),
            "box": None if self.box is None else list(self.box),
            "dtype": self.dtype,
            "limits": {
                "max_rows": self.rows_at_once,
                "max_bytes": self.max_bytes,
                "quota": self.quota,
                "rate": self.rate,
                **explained,
            },
            "explanation": None
            if self.explanation is None
            else dataclasses.asdict(self.explanation),
            "idempotency": True,
        }

    def rows(self, body: bytes, content_type: str, most: int | None = None) -> np.ndarray:
        """The rows of a body, checked and as `predict` takes them.

        Shape, type and number of rows are known before an array of them is made.

        Args:
          most: rows; by default the most of any request.

        Raises:
          InputError: naming what is wrong with them.
          Refusal: for more than `most`.
        """
        most = self.rows_at_once if most is None else most
        json = content_type == JSON
        array = _from_json(body, self.input_shape, most, self.dtype) if json else from_npy(body)
        if (
            array.ndim != 1 + len(self.input_shape)
            or array.shape[1:] != tuple(self.input_shape)
            or not len(array)
        ):
            wanted = ", ".join(["B", *map(str, self.input_shape)])
            raise InputError(f"rows must have shape ({wanted}) with B >= 1, got {array.shape}")
        if len(array) > most:
            raise _too_many(most, len(array))
        low, high = self.box or (0.0, 1.0)
        if array.dtype == np.uint8:
            scaled = array.astype(self.dtype)
            scaled /= 255
            scaled *= high - low
            scaled += low
            return scaled
        if array.dtype.name != self.dtype:
            raise InputError(f"rows must be {self.dtype} or uint8, got {array.dtype}")
        if not np.isfinite(array).all():
            raise InputError("rows contain NaN or infinity")
        if self.box is not None and (array.min() < low - 1e-6 or array.max() > high + 1e-6):
            raise InputError(
                f"rows must lie in [{low}, {high}], got values from {array.min():.4g} to "
                f"{array.max():.4g}"
            )
        return array


def _from_json(body: bytes, shape: tuple[int, ...], most: int, dtype: str) -> np.ndarray:
    """``{"rows": [...]}`` or ``[...]``, B nested lists of numbers of this shape -> (B, ...).

    The text is read piece by piece and given up at the first piece that does not belong: nothing is
    kept of it but the numbers, so that no text of a stranger decides how much memory is taken.
    """
    import ijson

    pieces = ijson.basic_parse(io.BytesIO(body), use_float=True)
    sizes, numbers = (most, *shape), array.array("d")
    try:
        piece = next(pieces)
        if piece == ("start_map", None):
            if next(pieces) != ("map_key", "rows"):
                raise ValueError
            piece = next(pieces)
        if piece != ("start_array", None):
            raise ValueError
        rows, counts = 0, [0]  # of what the open lists hold so far, outermost first
        while counts:
            kind, value = next(pieces)
            depth = len(counts)
            if kind == "end_array":
                if depth > 1 and counts[-1] != sizes[depth - 1]:
                    raise ValueError
                rows = counts.pop()
                continue
            counts[-1] += 1
            if counts[-1] > sizes[depth - 1]:
                raise _too_many(most) if depth == 1 else ValueError
            if kind == "start_array" and depth < len(sizes):
                counts.append(0)
            elif kind == "number" and depth == len(sizes):
                numbers.append(value)
            else:
                raise ValueError
        if any(piece != ("end_map", None) for piece in pieces):
            raise ValueError
    except (ijson.JSONError, ValueError, OverflowError, StopIteration) as error:
        raise InputError(
            'JSON must be {"rows": [...]} with nested lists of numbers, every row of shape '
            f"({', '.join(map(str, shape))})"
        ) from error
    with np.errstate(over="ignore"):  # infinity is named by whoever checks the rows
        return np.array(numbers, np.float64).astype(dtype).reshape(rows, *shape)


def _too_many(most: int, got: int | None = None) -> "Refusal":
    found = "more" if got is None else got
    return Refusal(413, "too_many_rows", f"at most {most} rows in a request, got {found}")


class Refusal(Exception):  # noqa: N818 - an answer, and nobody's error
    """A request that is turned down: status, a word for programs, a sentence for people, headers."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Accounts:
    """Who may ask, and how much each has asked: keys, quotas and token buckets.

    Args:
      endpoint: the limits. keys: those that may ask; None lets anybody. clock: seconds, never going
        back.
    """

    def __init__(self, endpoint: Endpoint, keys: Sequence[str] | None, clock: Callable[[], float]):
        if keys is not None and (isinstance(keys, str) or not keys or not all(keys)):
            raise InputError(
                "keys must be a sequence of texts that are not empty, or None for no keys"
            )
        self.endpoint, self.clock = endpoint, clock
        self._keys = (
            None if keys is None else {_digest(key): f"key {i}" for i, key in enumerate(keys)}
        )
        self.charged: dict[str, int] = {}
        self.requests: dict[str, int] = {}
        self.explained: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}

    @property
    def open(self) -> bool:
        """Whether anybody may ask."""
        return self._keys is None

    def who(self, offered: str | None) -> str:
        """The account of a key, found in a time that does not depend on it."""
        if self._keys is None:
            return "anybody"
        digest, found = _digest(offered or ""), None
        for known, name in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            raise Refusal(
                401, "unauthorized", "a valid API key is required", WWW_Authenticate="Bearer"
            )
        return found

    def admit(self, account: str, rows: int, *, explained: bool = False) -> None:
        """Charges rows before they are answered, or refuses them and charges nothing."""
        limits, charged = self.endpoint, self.charged.get(account, 0)
        told, most = self.explained.get(account, 0), limits.explanation_quota
        if explained and most is not None and told + rows > most:
            raise Refusal(
                403,
                "explanation_quota_exceeded",
                f"{rows} explanations asked, {told} of {most} used; nothing was charged",
            )
        if limits.quota is not None and charged + rows > limits.quota:
            raise Refusal(
                403,
                "quota_exceeded",
                f"{rows} rows asked, {charged} of {limits.quota} used; nothing was charged",
            )
        if limits.rate is not None and limits.bucket is not None:
            now = self.clock()
            tokens, then = self._buckets.get(account, (float(limits.bucket), now))
            tokens = min(float(limits.bucket), tokens + (now - then) * limits.rate)
            self._buckets[account] = (tokens, now)
            if tokens < rows:
                seconds = max(1, math.ceil((rows - tokens) / limits.rate))
                raise Refusal(
                    429,
                    "rate_limited",
                    f"at most {limits.rate:g} rows a second",
                    Retry_After=str(seconds),
                )
            self._buckets[account] = (tokens - rows, now)
        self.charged[account] = charged + rows
        self.requests[account] = self.requests.get(account, 0) + 1
        self.explained[account] = told + rows * explained

    def refund(self, account: str, rows: int, *, explained: bool = False) -> None:
        """Takes a charge back: the rows could not be answered."""
        self.charged[account] -= rows
        self.requests[account] -= 1
        self.explained[account] -= rows * explained

    def usage(self, account: str) -> dict[str, int | None]:
        """The body of ``/v1/usage``."""
        used: dict[str, int | None] = {
            "rows": self.charged.get(account, 0),
            "requests": self.requests.get(account, 0),
            "quota": self.endpoint.quota,
        }
        if self.endpoint.explanation is not None:
            used |= {
                "explanation_rows": self.explained.get(account, 0),
                "explanation_quota": self.endpoint.explanation_quota,
            }
        return used


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


__all__ = ["Accounts", "Endpoint", "Refusal"]
