"""A victim behind HTTP: batches, retries that are not paid twice, and answers that are checked before anybody learns from them."""

import contextlib
import email.utils
import hashlib
import json
import math
import random
import re
import threading
import time
import uuid
from typing import Any

import numpy as np

from dfke_jax.core.errors import EndpointError, InputError, RestartedError, UnknownNameError, UnknownOutcomeError
from dfke_jax.nn.classifier import check_images
from dfke_jax.oracle.codec import arrays_from_npy, from_npy, to_npy
from dfke_jax.oracle.explanations import Explained, Explanation, check_explained
from dfke_jax.oracle.metered import concurrently
from dfke_jax.oracle.reveal import Reveal, check_answers

_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_NEVER_ANSWERED = (425, 429, 503)
_NPY = "application/x-npy"
_SLACK = 65_536
_RESTARTS = 5


class RemoteVictim:
    """Rows (B, H, W, C) -> answers, from an endpoint like the one of `create_app`.

    ``/v1/describe`` is read first: shape, classes, what is revealed, limits. Rows are checked, split into batches, sent
    concurrently, and come back in order. Connections that fail, 429 and 5xx are repeated after
    U(0, min(`max_backoff`, `backoff`·2^n)) seconds, or what Retry-After asks for if that is longer. Where the endpoint names a
    rate, requests are spaced so as to keep it. Every request carries
    an idempotency key made from its content, so that an endpoint that knows them (``"idempotency": true``) charges a
    repeated one once; with one that does not, only requests that were certainly not answered are
    repeated. An endpoint that names its instance is asked for that one: started anew, it refuses
    what it cannot know, and nothing is paid twice.

    In a `Metered` it is asked through `request`, and whatever happened is in the ledger. The key of the session differs
    from run to run, as every run pays for its own questions.

    Args:
      url: of the endpoint, ``http(s)://host[:port][/path]``.
      key: API key.
      batch: rows in a request; no more than the endpoint takes, which is also the default.
      concurrency: requests under way at a time.
      timeout: seconds for one request as a whole.
      retries: attempts after the first; those that were told by Retry-After when to come back are not counted.
      backoff, max_backoff: seconds.
      max_wait: seconds that one request may spend on obeying Retry-After; beyond them it is given up.
      explain: whether explanations are asked as well: answers are then `Explained`, in the endpoint's kind of explanation
        (`explanation`), and requests as small as it demands of such.
      input_shape, num_classes: what the caller expects, checked against the endpoint.

    Raises:
      InputError: for settings that mean nothing, or an endpoint of another shape or number of classes, or one that explains
        nothing with `explain`.
      EndpointError: when it cannot be reached or does not describe itself.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        batch: int | None = None,
        concurrency: int = 4,
        timeout: float = 30.0,
        retries: int = 5,
        backoff: float = 0.5,
        max_backoff: float = 30.0,
        max_wait: float = 300.0,
        explain: bool = False,
        input_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
    ):
        try:
            import httpx
        except ImportError:
            raise InputError("a remote victim needs `pip install 'dfke-jax[serve]'`") from None
        if not url.startswith(("http://", "https://")):
            raise InputError(f"url must begin with http:// or https://, got {url!r}")
        if concurrency < 1 or retries < 0 or timeout <= 0 or min(backoff, max_backoff, max_wait) < 0:
            raise InputError("concurrency must be at least 1, timeout positive, retries and waiting times at least 0")
        if batch is not None and batch < 1:
            raise InputError(f"batch must be at least 1 row, got {batch}")
        self.endpoint = url.rstrip("/")
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.backoff, self.max_backoff, self.max_wait = backoff, max_backoff, max_wait
        self._session = uuid.uuid4().hex
        self._lock, self._renewing = threading.Lock(), threading.Lock()
        self._random = random.Random()
        self._free = 0.0  # when the next request may leave
        try:
            self._client = httpx.Client(
                base_url=self.endpoint,
                timeout=timeout,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise InputError(f"cannot use the url {url!r} with this key: {error}") from error
        try:
            self._describe(input_shape, num_classes, explain)
        except BaseException:
            self._client.close()
            raise
        self.batch = self.max_rows if batch is None else min(batch, self.max_rows)

    def __call__(self, rows: Any) -> Any:
        """Answers of rows (B, H, W, C), in their order; without a ledger nothing is counted.

        Raises:
          InputError: for rows that the endpoint would not take; nothing was sent.
          EndpointError: when rows were refused, or the endpoint could not be reached.
          UnknownOutcomeError: when rows were sent and no usable answer came back.
        """
        rows = self.check(rows)
        parts = [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        name = lambda part: hashlib.sha256(self._session.encode() + to_npy(part)).hexdigest()
        answers = concurrently(lambda part: self.request(part, name(part)), parts, self.concurrency)
        if self.explanation is None:
            return np.concatenate(answers)
        return Explained(*(np.concatenate(kind) for kind in zip(*answers, strict=True)))  # type: ignore[arg-type]

    def request(self, rows: Any, key: str, instance: str | None = None) -> Any:
        """One request and its repetitions.

        Args:
          rows: at most `max_rows`. key: its idempotency key.
          instance: of the endpoint that it is meant for; by default whichever runs. What another
            one has answered it does not know, unless it says so.

        Raises: as for a call, and
          RestartedError: where another instance runs than `instance`, which has not answered it;
            `self.instance` is that of the one that runs from then on.
        """
        for restarts in range(_RESTARTS + 1):
            meant = instance or self.instance
            try:
                return self._request(rows, key, meant)
            except RestartedError:
                self._renew()
                if instance is not None or restarts == _RESTARTS:
                    raise
        raise AssertionError

    def _request(self, rows: Any, key: str, instance: str | None) -> Any:
        rows = self.check(rows)
        body = to_npy(rows)
        if len(rows) > self.max_rows or len(body) > self.max_bytes:
            raise EndpointError(
                f"{len(rows)} rows in {len(body)} bytes asked at once, and {self.endpoint} takes {self.max_rows} rows and "
                f"{self.max_bytes} bytes; set a smaller batch"
            )
        headers = {"Content-Type": _NPY, "Idempotency-Key": key}
        if instance is not None:
            headers["Endpoint-Instance"] = instance
        explanation = self.explanation
        maps = 0 if explanation is None else self.num_classes if explanation.classes == "all" else 1
        limit = _SLACK + 8 * len(rows) * (self.num_classes + maps * math.prod(self.input_shape))
        self._pace(len(rows))
        said = self._exchange("POST", "/v1/explain" if explanation else "/v1/predict", limit, headers, body)
        try:
            if explanation is None:
                answers = from_npy(said)
                check_answers(answers, len(rows), self.num_classes, self.reveal)
            else:
                answers = Explained(*arrays_from_npy(said, 2))  # type: ignore[arg-type]
                check_explained(answers, len(rows), self.num_classes, self.input_shape, self.reveal, explanation)
        except InputError as error:
            raise UnknownOutcomeError(
                f"{self.endpoint} answered {len(rows)} rows with what is no answer: {error}"
            ) from error
        return answers

    def check(self, rows: Any) -> np.ndarray:
        """The rows, if the endpoint takes such.

        Raises:
          InputError: for another type, shape or range.
        """
        rows = np.asarray(rows)
        if rows.dtype != np.uint8 and rows.dtype.name != self.dtype:
            raise InputError(f"{self.endpoint} takes rows in {self.dtype} or uint8, got {rows.dtype}")
        if len(self.input_shape) == 3:
            check_images(rows, self.input_shape, self.box or (-math.inf, math.inf), "rows")
            return rows
        if rows.ndim != 1 + len(self.input_shape) or rows.shape[1:] != self.input_shape or not len(rows):
            raise InputError(f"rows must be (B, {', '.join(map(str, self.input_shape))}), got shape {rows.shape}")
        if rows.dtype != np.uint8 and not np.isfinite(rows).all():
            raise InputError("rows contain NaN or infinity")
        low, high = self.box or (-math.inf, math.inf)
        if rows.dtype != np.uint8 and (rows.min() < low - 1e-6 or rows.max() > high + 1e-6):
            raise InputError(f"rows must lie in [{low}, {high}], got values from {rows.min():.4g} to {rows.max():.4g}")
        return rows

    def usage(self) -> dict[str, Any]:
        """What the endpoint says that this key was charged."""
        return self._json("/v1/usage")

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def __enter__(self) -> "RemoteVictim":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ---- what the endpoint is

    def _describe(self, shape: tuple[int, ...] | None, classes: int | None, explain: bool) -> None:
        said = self._json("/v1/describe")
        try:
            self.input_shape = tuple(int(size) for size in said["input_shape"])
            self.num_classes = int(said["num_classes"])
            self.reveal = Reveal(**said["reveal"])
            self.box = None if said.get("box") is None else (float(said["box"][0]), float(said["box"][1]))
            self.dtype = str(said.get("dtype", "float32"))
            limits = said.get("limits") or {}
            self.max_rows = int(limits.get("max_rows") or 1024)
            kind = said.get("explanation")
            self.explanation = Explanation(**kind) if explain and kind is not None else None
            if self.explanation is not None:
                self.max_rows = min(self.max_rows, int(limits.get("max_explained") or self.max_rows))
            self.max_bytes = int(limits.get("max_bytes") or 2**62)
            self.rate = None if limits.get("rate") is None else float(limits["rate"])
            self.repeatable = said.get("idempotency") is True
            self.instance = None if said.get("instance") is None else str(said["instance"])
            if self.instance is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", self.instance):
                raise ValueError("an instance has up to 64 letters, digits, dots and dashes")
            if self.rate is not None and not self.rate > 0:
                raise ValueError("a rate must be positive")
            if min(*self.input_shape, self.num_classes, self.max_rows) < 1 or self.dtype not in ("float32", "float64"):
                raise ValueError("sizes must be positive and the type float32 or float64")
        except (KeyError, TypeError, ValueError, IndexError, UnknownNameError, InputError) as error:
            raise EndpointError(f"{self.endpoint}/v1/describe is not the description of a victim: {error!r}") from error
        if explain and self.explanation is None:
            raise InputError(f"{self.endpoint} explains nothing; ask it without explain=True")
        for what, wanted, found in (
            ("input_shape", shape and tuple(shape), self.input_shape),
            ("num_classes", classes, self.num_classes),
        ):
            if wanted is not None and wanted != found:
                raise InputError(f"{what} {wanted} was expected and {self.endpoint} has {found}")

    def _renew(self) -> None:
        """Reads again what the endpoint is, which must be what it was but for its instance."""
        with self._renewing:
            before = (self.input_shape, self.num_classes, self.reveal, self.box, self.dtype, self.explanation)
            self._describe(None, None, self.explanation is not None)
            after = (self.input_shape, self.num_classes, self.reveal, self.box, self.dtype, self.explanation)
        if before != after:
            raise EndpointError(f"{self.endpoint} was started anew and is another one: {after}, after {before}")

    def _json(self, path: str) -> dict[str, Any]:
        said = self._exchange("GET", path, _SLACK, {}, None)
        try:
            value = json.loads(said)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise EndpointError(f"{self.endpoint}{path} answered with something other than a JSON object")
        return value

    # ---- one exchange, with its repetitions

    def _pace(self, rows: int) -> None:
        """Waits for this request's place in a row of requests that keeps the endpoint's rate."""
        if self.rate is None:
            return
        with self._lock:
            now = time.monotonic()
            leaves = max(now, self._free)
            self._free = leaves + rows / self.rate
        if leaves > now:
            time.sleep(leaves - now)

    def _exchange(self, method: str, path: str, limit: int, headers: dict[str, str], body: bytes | None) -> bytes:
        sent = False  # whether an attempt may have been answered without our knowing
        attempts = failures = 0
        obeyed = 0.0
        while True:
            attempts += 1
            pause, reason = 0.0, ""
            try:
                status, told, said = self._attempt(method, path, limit, headers, body)
            except EndpointError as error:
                maybe = isinstance(error, UnknownOutcomeError)
                sent, reason = sent or maybe, str(error)
                again = not maybe or method == "GET" or self.repeatable
            else:
                if status == 200:
                    return said
                reason = f"status {status}: {_message(said)}"
                if status == 412 and "Endpoint-Instance" in headers:
                    raise self._restarted(path, sent, said)
                sent = sent or status < 300 or status == 408 or (status >= 500 and status not in _NEVER_ANSWERED)
                pause = _seconds(told.get("retry-after"))
                again = status in _RETRIED and (not sent or method == "GET" or self.repeatable)
            obeyed += pause
            failures += pause == 0
            if not again or failures > self.retries or obeyed > self.max_wait:
                break
            with self._lock:
                jitter = self._random.uniform(0, min(self.max_backoff, self.backoff * 2.0 ** min(attempts - 1, 60)))
            time.sleep(max(jitter, pause))
        tried = f"{attempts} attempt{'s' if attempts > 1 else ''} at {self.endpoint}{path}; the last: {reason}"
        if obeyed > self.max_wait:
            tried += f" (it asks to wait {obeyed:.0f} s in all, more than max_wait={self.max_wait:.0f})"
        if sent and method == "POST":
            raise UnknownOutcomeError(f"rows were sent and it is not known whether they count: {tried}")
        raise EndpointError(f"nothing was answered and nothing counts: {tried}")

    def _restarted(self, path: str, sent: bool, said: bytes) -> EndpointError:
        """Of an endpoint that says it is another instance: whether an earlier attempt may have been answered."""
        forgotten = _code(said) != "not_answered"
        reason = f"{self.endpoint}{path} was started anew: {_message(said)}"
        if sent and forgotten:
            return UnknownOutcomeError(f"rows were sent and it is not known whether they count: {reason}")
        return RestartedError(f"nothing was answered: {reason}", forgotten)

    def _attempt(
        self, method: str, path: str, limit: int, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, Any, bytes]:
        """(status, headers, body) of one attempt; what went wrong on the way, as an `EndpointError`."""
        import httpx

        deadline = time.monotonic() + self.timeout
        said = bytearray()
        try:
            with self._client.stream(method, path, headers=headers, content=body) as response:
                for chunk in response.iter_bytes(65_536):
                    said += chunk
                    if len(said) > limit:
                        raise UnknownOutcomeError(f"the answer is longer than {limit} bytes")
                    if time.monotonic() > deadline:
                        raise UnknownOutcomeError(f"no whole answer within {self.timeout:g} s")
                return response.status_code, response.headers, bytes(said)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise EndpointError(f"no connection ({type(error).__name__}: {error})") from error
        except httpx.HTTPError as error:
            raise UnknownOutcomeError(f"the connection failed ({type(error).__name__}: {error})") from error


def _seconds(header: str | None) -> float:
    """Retry-After, in seconds or as a date; 0 when it says nothing."""
    if not header:
        return 0.0
    if header.strip().isdigit():
        return float(header)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0


def _code(body: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(body)["error"]["code"])
    return ""


def _message(body: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(body)["error"]["message"])[:300]
    return body[:200].decode("utf-8", "replace")


__all__ = ["RemoteVictim"]
