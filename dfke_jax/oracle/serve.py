"""An endpoint that stands in for a prediction API: what a defender sets up to be attacked by `RemoteVictim`.

    GET  /v1/describe   what goes in, what comes out, and the limits
    POST /v1/predict    rows in, answers out: npy bodies, or JSON for humans
    GET  /v1/usage      what this key has been charged

Keys are sent as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``. A request with an ``Idempotency-Key`` that was answered
before gets the same bytes again and is not charged. Charges and recorded answers live in this process.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import hmac
import json
import logging
import math
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.oracle.codec import from_npy, to_npy
from dfke_jax.oracle.reveal import Reveal, check_answers

NPY = "application/x-npy"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """What an endpoint says of itself, and holds its callers to.

    Attributes:
      input_shape: (H, W, C) of a row. num_classes: K. reveal: what it answers.
      box: lowest and highest value of a row; None for any finite numbers.
      dtype: ``float32`` or ``float64``, what rows are sent in. uint8 rows are taken as 0 to 255 across the box.
      quota: rows of a key, ever. rate: rows a second of a key, on average. burst: rows that it may have at once after
        a rest; `rate` by default.
      max_rows: in a request. max_bytes: of a body.
      max_recorded: bytes of answers that are kept for repeated requests; the oldest are forgotten.
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
    max_recorded: int = 256 * 2**20

    def __post_init__(self):
        if not self.input_shape or any(size < 1 for size in self.input_shape) or self.num_classes < 1:
            raise InputError(
                f"input_shape and num_classes must be positive, got {self.input_shape}, {self.num_classes}"
            )
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, got {self.dtype!r}")
        if self.box is not None and not self.box[0] < self.box[1]:
            raise InputError(f"box must be (low, high) with low < high, got {self.box}")
        if min(self.max_rows, self.max_bytes) < 1 or self.max_recorded < 0 or (self.quota or 0) < 0:
            raise InputError("max_rows and max_bytes must be at least 1, quota and max_recorded at least 0")
        if (self.rate is not None and not 0 < self.rate < math.inf) or (self.burst is not None and self.burst < 1):
            raise InputError(f"rate must be positive and burst at least 1, got {self.rate} and {self.burst}")

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

    def describe(self) -> dict[str, Any]:
        """The body of ``/v1/describe``."""
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
            },
            "idempotency": True,
        }

    def rows(self, body: bytes, content_type: str) -> np.ndarray:
        """The rows of a body, checked and as `predict` takes them.

        Raises:
          InputError: naming what is wrong with them.
        """
        array = _from_json(body, self.dtype) if content_type == "application/json" else from_npy(body)
        if array.ndim != 1 + len(self.input_shape) or array.shape[1:] != tuple(self.input_shape) or not len(array):
            wanted = ", ".join(["B", *map(str, self.input_shape)])
            raise InputError(f"rows must have shape ({wanted}) with B >= 1, got {array.shape}")
        low, high = self.box or (0.0, 1.0)
        if array.dtype == np.uint8:
            return (low + array.astype(self.dtype) / 255 * (high - low)).astype(self.dtype)
        if array.dtype.name != self.dtype:
            raise InputError(f"rows must be {self.dtype} or uint8, got {array.dtype}")
        if not np.isfinite(array).all():
            raise InputError("rows contain NaN or infinity")
        if self.box is not None and (array.min() < low - 1e-6 or array.max() > high + 1e-6):
            raise InputError(
                f"rows must lie in [{low}, {high}], got values from {array.min():.4g} to {array.max():.4g}"
            )
        return array


def _from_json(body: bytes, dtype: str) -> np.ndarray:
    try:
        value = json.loads(body)
        array = np.asarray(value["rows"] if isinstance(value, dict) else value)
        if array.dtype.kind not in "iuf":
            raise ValueError
        return array.astype(dtype)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, UnicodeDecodeError) as error:
        raise InputError('JSON must be {"rows": [...]} with nested lists of numbers of equal length') from error


class Refusal(Exception):  # noqa: N818 - an answer, and nobody's error
    """A request that is turned down: status, a word for programs, a sentence for people, headers."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Accounts:
    """Who may ask, and how much each has asked: keys, quotas and token buckets.

    Args:
      endpoint: the limits. keys: those that may ask; None lets anybody. clock: seconds, never going back.
    """

    def __init__(self, endpoint: Endpoint, keys: Sequence[str] | None, clock: Callable[[], float]):
        if keys is not None and (isinstance(keys, str) or not keys or not all(keys)):
            raise InputError("keys must be a sequence of texts that are not empty, or None for no keys")
        self.endpoint, self.clock = endpoint, clock
        self._keys = None if keys is None else {_digest(key): f"key {i}" for i, key in enumerate(keys)}
        self.charged: dict[str, int] = {}
        self.requests: dict[str, int] = {}
        self._buckets: dict[str, tuple[float, float]] = {}

    def who(self, offered: str | None) -> str:
        """The account of a key, found in a time that does not depend on it."""
        if self._keys is None:
            return "anybody"
        digest, found = _digest(offered or ""), None
        for known, name in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            raise Refusal(401, "unauthorized", "a valid API key is required", WWW_Authenticate="Bearer")
        return found

    def admit(self, account: str, rows: int) -> None:
        """Charges rows before they are answered, or refuses them and charges nothing."""
        limits, charged = self.endpoint, self.charged.get(account, 0)
        if limits.quota is not None and charged + rows > limits.quota:
            raise Refusal(
                403, "quota_exceeded", f"{rows} rows asked, {charged} of {limits.quota} used; nothing was charged"
            )
        if limits.rate is not None and limits.bucket is not None:
            now = self.clock()
            tokens, then = self._buckets.get(account, (float(limits.bucket), now))
            tokens = min(float(limits.bucket), tokens + (now - then) * limits.rate)
            self._buckets[account] = (tokens, now)
            if tokens < rows:
                seconds = max(1, math.ceil((rows - tokens) / limits.rate))
                raise Refusal(429, "rate_limited", f"at most {limits.rate:g} rows a second", Retry_After=str(seconds))
            self._buckets[account] = (tokens - rows, now)
        self.charged[account] = charged + rows
        self.requests[account] = self.requests.get(account, 0) + 1

    def refund(self, account: str, rows: int) -> None:
        """Takes a charge back: the rows could not be answered."""
        self.charged[account] -= rows
        self.requests[account] -= 1

    def usage(self, account: str) -> dict[str, int | None]:
        """The body of ``/v1/usage``."""
        return {
            "rows": self.charged.get(account, 0),
            "requests": self.requests.get(account, 0),
            "quota": self.endpoint.quota,
        }


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


@dataclasses.dataclass
class _Recorded:
    """A request with an idempotency key: what it said, and its answer once that is there."""

    body: bytes
    done: asyncio.Event
    answers: np.ndarray | None = None


class Service:
    """An endpoint at work: predicts one request at a time, charges it, remembers it.

    Args:
      predict: rows (B, H, W, C) in the endpoint's dtype -> answers as its `reveal` says; called in a thread.
      endpoint, accounts: what is allowed.
    """

    def __init__(self, predict: Callable[[np.ndarray], Any], endpoint: Endpoint, accounts: Accounts):
        self.predict, self.endpoint, self.accounts = predict, endpoint, accounts
        self._recorded: OrderedDict[tuple[str, str], _Recorded] = OrderedDict()
        self._bytes = 0
        self._turn = threading.Lock()

    async def answer(self, account: str, rows: np.ndarray, name: str | None, body: bytes) -> tuple[np.ndarray, bool]:
        """Answers, and whether they were recorded before; charged once for every `name`."""
        if name is None:
            return await self._fresh(account, rows), False
        place, mark = (account, name), hashlib.sha256(body).digest()
        while (found := self._recorded.get(place)) is not None:
            if found.body != mark:
                raise Refusal(422, "idempotency_mismatch", "this Idempotency-Key was used with another body")
            await found.done.wait()
            if found.answers is not None:
                return found.answers, True
        entry = self._recorded[place] = _Recorded(mark, asyncio.Event())
        try:
            entry.answers = await self._fresh(account, rows)
        except BaseException:
            del self._recorded[place]
            raise
        finally:
            entry.done.set()
        self._bytes += entry.answers.nbytes + 256
        self._forget()
        return entry.answers, False

    def _forget(self) -> None:
        for place in list(self._recorded):
            if self._bytes <= self.endpoint.max_recorded:
                return
            answers = self._recorded[place].answers
            if answers is not None:
                self._bytes -= answers.nbytes + 256
                del self._recorded[place]

    async def _fresh(self, account: str, rows: np.ndarray) -> np.ndarray:
        self.accounts.admit(account, len(rows))
        try:
            answers = await asyncio.to_thread(self._predicted, rows)
            check_answers(answers, len(rows), self.endpoint.num_classes, self.endpoint.reveal)
        except BaseException as error:
            self.accounts.refund(account, len(rows))
            if not isinstance(error, Exception):
                raise
            _log.exception("the model failed on %d rows", len(rows))
            raise Refusal(500, "failed", "the model failed to answer; nothing was charged") from None
        return answers

    def _predicted(self, rows: np.ndarray) -> np.ndarray:
        with self._turn:
            return np.asarray(self.predict(rows))


def create_app(
    predict: Callable[[np.ndarray], Any],
    *,
    input_shape: Sequence[int],
    reveal: Reveal,
    num_classes: int,
    keys: Sequence[str] | None = None,
    quota: int | None = None,
    rate: float | None = None,
    clock: Callable[[], float] = time.monotonic,
    **limits: Any,
):
    """A Starlette application that answers rows over HTTP; run it with `serve`, `background` or any ASGI server.

    Bodies are npy arrays (``numpy.save``; never pickled) or, as ``application/json``, ``{"rows": [...]}``; the answer has
    the form of the question. Refusals are ``{"error": {"code", "message"}}`` with status 401 (key), 403 (quota), 413
    (too many rows or bytes), 422 (rows that cannot be right), 429 (rate, with Retry-After) or 500 (the victim failed;
    not charged).

    Args:
      predict: rows (B, H, W, C) -> answers of the kind that `reveal` names, (B, K) or (B,) integers.
      input_shape, reveal, num_classes, quota, rate: see `Endpoint`.
      keys: API keys; None for an open endpoint.
      clock: seconds, for the rate.
      **limits: `box`, `dtype`, `burst`, `max_rows`, `max_bytes`, `max_recorded` of `Endpoint`.

    Returns:
      The application; ``app.state.service`` is its `Service`, and ``app.state.service.accounts`` knows the charges.

    Raises:
      InputError: for settings that mean nothing.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    endpoint = Endpoint(tuple(input_shape), num_classes, reveal, quota=quota, rate=rate, **limits)
    service = Service(predict, endpoint, Accounts(endpoint, keys, clock))

    def account(request: Request) -> str:
        bearer = request.headers.get("authorization", "")
        offered = bearer[7:].strip() if bearer[:7].lower() == "bearer " else request.headers.get("x-api-key")
        return service.accounts.who(offered)

    async def describe(request: Request) -> Response:
        account(request)
        return JSONResponse(endpoint.describe())

    async def usage(request: Request) -> Response:
        return JSONResponse(service.accounts.usage(account(request)))

    async def predict_rows(request: Request) -> Response:
        who = account(request)
        body = await _body(request, endpoint.max_bytes)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/json", NPY, "application/octet-stream"):
            raise Refusal(415, "unsupported_type", f"send {NPY} or application/json, not {kind or 'nothing'}")
        try:
            rows = await asyncio.to_thread(endpoint.rows, body, kind)
        except InputError as error:
            raise Refusal(422, "bad_input", str(error)) from error
        if len(rows) > endpoint.rows_at_once:
            raise Refusal(413, "too_many_rows", f"at most {endpoint.rows_at_once} rows in a request, got {len(rows)}")
        name = request.headers.get("idempotency-key")
        if name is not None and not 0 < len(name) <= 256:
            raise Refusal(422, "bad_input", "an Idempotency-Key has 1 to 256 characters")
        answers, again = await service.answer(who, rows, name, body)
        headers = {"Idempotent-Replayed": "true"} if again else {}
        if kind == "application/json":
            return JSONResponse({"answers": answers.tolist()}, headers=headers)
        return Response(to_npy(answers), media_type=NPY, headers=headers)

    def said(status: int, code: str, message: str, headers: Any = None) -> Response:
        return JSONResponse({"error": {"code": code, "message": message}}, status, headers=headers)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return said(error.status, error.code, error.message, error.headers)

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return said(error.status_code, "http_error", str(error.detail), error.headers)

    async def gone(_: Request, error: Exception) -> Response:
        return said(400, "disconnected", "the body did not arrive")

    async def failed(_: Request, error: Exception) -> Response:
        return said(500, "failed", "the endpoint failed")

    app = Starlette(
        routes=[
            Route("/v1/describe", describe),
            Route("/v1/usage", usage),
            Route("/v1/predict", predict_rows, methods=["POST"]),
        ],
        exception_handlers={Refusal: refused, HTTPException: http, ClientDisconnect: gone, Exception: failed},
    )
    app.state.service = service
    return app


async def _body(request: Any, limit: int) -> bytes:
    """The whole body, or a refusal as soon as it is known to be too large."""
    too_large = Refusal(413, "too_large", f"a body may have {limit} bytes")
    announced = request.headers.get("content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def serve(
    app: Any, host: str = "127.0.0.1", port: int = 8000, *, ready: Callable[[str], None] = lambda url: None
) -> None:
    """Serves an application until it is interrupted.

    Args:
      app: of `create_app`. host: the address to listen on; by default this machine alone can reach it. port: 0 for any.
      ready: called with the URL as soon as connections are taken.

    Raises:
      InputError: when nothing can listen there.
    """
    with _listening(app, host, port) as (server, listener, url), contextlib.suppress(KeyboardInterrupt):
        ready(url)
        server.run(sockets=[listener])


@contextlib.contextmanager
def background(app: Any, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves an application in a thread for the length of a ``with`` block, and gives its URL.

    Raises:
      InputError: when nothing can listen there.
    """
    with _listening(app, host, port) as (server, listener, url):
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise InputError(f"the server at {url} did not start")
                time.sleep(0.005)
            yield url
        finally:
            server.should_exit = True
            thread.join(10)


@contextlib.contextmanager
def _listening(app: Any, host: str, port: int) -> Iterator[tuple[Any, socket.socket, str]]:
    """(uvicorn server, its socket, URL)."""
    import uvicorn

    version6 = ":" in host
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if version6 else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; choose another host or port") from error
    with listener:
        quiet = {"log_level": "critical", "server_header": False, "lifespan": "off", "timeout_graceful_shutdown": 1}
        url = f"http://{f'[{host}]' if version6 else host}:{listener.getsockname()[1]}"
        yield uvicorn.Server(uvicorn.Config(app, **quiet)), listener, url


__all__ = ["Accounts", "Endpoint", "Refusal", "Service", "background", "create_app", "serve"]
