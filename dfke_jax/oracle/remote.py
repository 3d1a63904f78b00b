"""A victim behind HTTP: batches, retries that are not paid twice, and answers that are checked
before anybody learns from them.
"""

import asyncio
import atexit
import contextlib
import email.utils
import hashlib
import http.cookiejar
import json
import math
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Coroutine
from typing import Any

import numpy as np

from dfke_jax.core.errors import EndpointError, InputError, RestartedError, UnknownOutcomeError
from dfke_jax.nn.classifier import check_images
from dfke_jax.oracle.codec import arrays_from_npy, from_npy, to_npy
from dfke_jax.oracle.explanations import Explained, Explanation, check_explained
from dfke_jax.oracle.metered import concurrently
from dfke_jax.oracle.proxies import proxy_for
from dfke_jax.oracle.reveal import Reveal, check_answers

_RETRIED = (408, 425, 429, 500, 502, 503, 504)
_NEVER_ANSWERED = (425, 429, 503)
_NPY = "application/x-npy"
_SLACK = 65_536
_RESTARTS = 5
_SHOWN = 300
"""Characters of what a stranger says that stand in a message."""


class RemoteVictim:
    """Rows (B, ...) -> answers, from an endpoint like the one of `create_app`.

    ``/v1/describe`` is read first: shape, classes, what is revealed, limits. Rows are checked,
    split into batches, sent concurrently, and come back in order. Connections that fail, 429 and
    5xx are repeated after U(0, min(`max_backoff`, `backoff`·2^n)) seconds after n failures, or what
    Retry-After asks for if that is longer. Where the endpoint names a rate, requests are spaced so
    as to keep it, if that takes no longer than `max_wait`. Every request carries an idempotency key
    made from its content, so that an endpoint that knows them (``"idempotency": true``) charges a
    repeated one once; with one that does not, only requests that were certainly not answered are
    repeated. An endpoint that names its instance is asked for that one: started anew, it refuses
    what it cannot know, and nothing is paid twice.

    The endpoint is taken for a stranger: answers are read as they are (none is unpacked), no
    further than an answer can be long, within one deadline from the connection to the last byte;
    cookies are not kept, and what it says in words is shown without control characters. Requests
    run in an event loop that all victims of a process share.

    In a `Metered` it is asked through `request`, and whatever happened is in the ledger. The key of
    the session differs from run to run, as every run pays for its own questions.

    Args:
      url: of the endpoint, ``http(s)://host[:port][/path]``.
      key: API key.
      batch: rows in a request; no more than the endpoint takes, which is also the default.
      concurrency: requests under way at a time.
      timeout: seconds for one attempt as a whole.
      retries: attempts after the first; those that were told by Retry-After when to come back are
        not counted.
      backoff, max_backoff: seconds.
      max_wait: seconds that one request may wait on the endpoint's word, for Retry-After in all and
        for the place that its rate leaves; beyond them it is given up.
      max_answer: bytes of an answer that are taken; requests are kept as small as that demands.
      explain: whether explanations are asked as well: answers are then `Explained`, in the
        endpoint's kind of explanation (`explanation`), and requests as small as it demands of such.
      input_shape, num_classes: what the caller expects, checked against the endpoint.

    Raises:
      InputError: for settings that mean nothing, or an endpoint of another shape or number of
        classes, or one that explains nothing with `explain`.
      EndpointError: when it cannot be reached or does not describe itself, or one row's answer is
        longer than `max_answer`.
    """

    on_host = True

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
        max_answer: int = 128 * 2**20,
        explain: bool = False,
        input_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
    ):
        try:
            import httpx
            import tenacity  # noqa: F401
        except ImportError:
            raise InputError(
                'a remote victim needs `pip install -e ".[serve]"` in a clone of the repository'
            ) from None
        if not re.match(r"https?://[^/?#]", url):
            raise InputError(
                f"url must begin with http:// or https:// and name a host, got {url!r}"
            )
        if (
            concurrency < 1
            or retries < 0
            or timeout <= 0
            or min(backoff, max_backoff, max_wait) < 0
        ):
            raise InputError(
                "concurrency must be at least 1, timeout positive, retries and waiting times at "
                "least 0"
            )
        if max_answer <= _SLACK:
            raise InputError(f"max_answer must be more than {_SLACK} bytes, got {max_answer}")
        if batch is not None and batch < 1:
            raise InputError(f"batch must be at least 1 row, got {batch}")
        self.endpoint = url.rstrip("/")
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.backoff, self.max_backoff, self.max_wait = backoff, max_backoff, max_wait
        self.max_answer = max_answer
        self._session = uuid.uuid4().hex
        self._lock, self._renewing = threading.Lock(), threading.Lock()
        self._random = random.Random()
        self._free = 0.0  # when the next request may leave
        self._process = os.getpid()
        authorized = {"Authorization": f"Bearer {key}"} if key else {}
        self._proxy = proxy_for(self.endpoint)
        try:
            self._client = httpx.AsyncClient(
                base_url=self.endpoint,
                # of the environment: the proxy that was just found, and certificates
                trust_env=False,
                verify=httpx.create_ssl_context(),
                proxy=self._proxy and self._proxy.address,
                timeout=None,  # one deadline stands over every attempt, see `_ask`
                headers={"Accept-Encoding": "identity", **authorized},
                cookies=_NoCookies(),
                limits=httpx.Limits(
                    max_connections=concurrency, max_keepalive_connections=concurrency
                ),
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise InputError(f"cannot use the url {url!r} with this key: {error}") from error
        except ImportError as error:
            raise InputError(f"the {self._proxy} needs `pip install httpx[socks]`") from error
        try:
            self._describe(input_shape, num_classes, explain)
        except BaseException:
            self.close()
            raise
        self.batch = self.max_rows if batch is None else min(batch, self.max_rows)

    def __call__(self, rows: Any) -> Any:
        """Answers of rows (B, ...), in their order; without a ledger nothing is counted.

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
                f"{len(rows)} rows in {len(body)} bytes asked at once, and {self.endpoint} takes "
                f"{self.max_rows} rows and {self.max_bytes} bytes; set a smaller batch"
            )
        headers = {"Content-Type": _NPY, "Idempotency-Key": key}
        if instance is not None:
            headers["Endpoint-Instance"] = instance
        explanation = self.explanation
        limit = _SLACK + len(rows) * self._answer_bytes
        self._pace(len(rows))
        said = self._exchange(
            "POST", "/v1/explain" if explanation else "/v1/predict", limit, headers, body
        )
        try:
            with np.errstate(all="ignore"):  # sums of huge numbers; what comes of them is refused
                if explanation is None:
                    answers = from_npy(said)
                    check_answers(answers, len(rows), self.num_classes, self.reveal)
                else:
                    answers = Explained(*arrays_from_npy(said, 2))  # type: ignore[arg-type]
                    known = (self.num_classes, self.input_shape, self.reveal, explanation)
                    check_explained(answers, len(rows), *known)
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
            raise InputError(
                f"{self.endpoint} takes rows in {self.dtype} or uint8, got {rows.dtype}"
            )
        if len(self.input_shape) == 3:
            check_images(rows, self.input_shape, self.box or (-math.inf, math.inf), "rows")
            return rows
        if (
            rows.ndim != 1 + len(self.input_shape)
            or rows.shape[1:] != self.input_shape
            or not len(rows)
        ):
            raise InputError(
                f"rows must be (B, {', '.join(map(str, self.input_shape))}), got shape {rows.shape}"
            )
        if rows.dtype != np.uint8 and not np.isfinite(rows).all():
            raise InputError("rows contain NaN or infinity")
        low, high = self.box or (-math.inf, math.inf)
        if rows.dtype != np.uint8 and (rows.min() < low - 1e-6 or rows.max() > high + 1e-6):
            raise InputError(
                f"rows must lie in [{low}, {high}], got values from {rows.min():.4g} to "
                f"{rows.max():.4g}"
            )
        return rows

    def usage(self) -> dict[str, Any]:
        """What the endpoint says that this key was charged."""
        return self._json("/v1/usage")

    def close(self) -> None:
        """Closes its connections."""
        self._run(self._client.aclose())

    def __enter__(self) -> "RemoteVictim":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # ---- what the endpoint is

    def _describe(self, shape: tuple[int, ...] | None, classes: int | None, explain: bool) -> None:
        said = self._json("/v1/describe")
        try:
            self.input_shape = tuple(_whole(size) for size in _listed(said["input_shape"]))
            self.num_classes = _whole(said["num_classes"])
            self.reveal = _setting(Reveal, said["reveal"])
            self.box = None if said.get("box") is None else _interval(said["box"])
            self.dtype = str(said.get("dtype", "float32"))
            limits = _mapping(_given(said.get("limits"), {}))
            self.max_rows = _whole(_given(limits.get("max_rows"), 1024))
            kind = said.get("explanation")
            self.explanation = _setting(Explanation, kind) if explain and kind is not None else None
            if self.explanation is not None:
                self.max_rows = min(
                    self.max_rows, _whole(_given(limits.get("max_explained"), self.max_rows))
                )
            self.max_bytes = _whole(_given(limits.get("max_bytes"), 2**62), most=2**62)
            self.rate = None if limits.get("rate") is None else _number(limits["rate"])
            self.repeatable = said.get("idempotency") is True
            self.instance = None if said.get("instance") is None else str(said["instance"])
            if self.instance is not None and not re.fullmatch(
                r"[A-Za-z0-9._-]{1,64}", self.instance
            ):
                raise ValueError("an instance has up to 64 letters, digits, dots and dashes")
            if self.rate is not None and not self.rate > 0:
                raise ValueError("a rate must be positive")
            if not self.input_shape or self.dtype not in ("float32", "float64"):
                raise ValueError("a row has at least one axis, and the type is float32 or float64")
        except (KeyError, TypeError, ValueError) as error:  # the package's own are ValueErrors too
            raise EndpointError(
                f"{self.endpoint}/v1/describe is not the description of a victim: "
                f"{_plain(repr(error))}"
            ) from None
        fit = (self.max_answer - _SLACK) // self._answer_bytes
        if fit < 1:
            raise EndpointError(
                f"{self.endpoint} answers a row with up to {self._answer_bytes} bytes, more than "
                f"max_answer={self.max_answer}"
            )
        self.max_rows = min(self.max_rows, fit)
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
            before = (
                self.input_shape,
                self.num_classes,
                self.reveal,
                self.box,
                self.dtype,
                self.explanation,
            )
            self._describe(None, None, self.explanation is not None)
            after = (
                self.input_shape,
                self.num_classes,
                self.reveal,
                self.box,
                self.dtype,
                self.explanation,
            )
        if before != after:
            raise EndpointError(
                f"{self.endpoint} was started anew and is another one: {after}, after {before}"
            )

    @property
    def _answer_bytes(self) -> int:
        """Of a row's answer, and its explanation, in the widest type."""
        explanation = self.explanation
        maps = 0 if explanation is None else self.num_classes if explanation.classes == "all" else 1
        return 8 * (self.num_classes + maps * math.prod(self.input_shape))

    def _json(self, path: str) -> dict[str, Any]:
        said = self._exchange("GET", path, _SLACK, {}, None)
        try:
            value = json.loads(said)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise EndpointError(
                f"{self.endpoint}{path} answered with something other than a JSON object"
            )
        return value

    # ---- one exchange, with its repetitions

    def _pace(self, rows: int) -> None:
        """Waits for this request's place in a row of requests that keeps the endpoint's rate."""
        if self.rate is None:
            return
        with self._lock:
            now = time.monotonic()
            leaves = max(now, self._free)
            if leaves - now > self.max_wait:
                raise EndpointError(
                    f"nothing was sent and nothing counts: at {self.rate:g} rows a second, which "
                    f"{self.endpoint} names as its rate, this request must wait {leaves - now:.0f} "
                    f"s, more than max_wait={self.max_wait:.0f}"
                )
            self._free = leaves + rows / self.rate
        if leaves > now:
            time.sleep(leaves - now)

    def _exchange(
        self, method: str, path: str, limit: int, headers: dict[str, str], body: bytes | None
    ) -> bytes | bytearray:
        """An answer with status 200, after as many attempts as that takes and the settings allow."""
        import tenacity

        sent = False  # whether an attempt may have been answered without our knowing
        attempts = failures = 0
        obeyed = 0.0
        repeatable = method == "GET" or self.repeatable

        def attempt() -> bytes | bytearray:
            nonlocal sent, attempts
            attempts += 1
            try:
                status, told, said = self._run(self._ask(method, path, limit, headers, body))
            except EndpointError as error:
                maybe = isinstance(error, UnknownOutcomeError)
                sent = sent or maybe
                raise _Failed(str(error), again=not maybe or repeatable) from error
            if status == 200:
                return said
            if status == 412 and "Endpoint-Instance" in headers:
                raise self._restarted(path, sent, said)
            sent = (
                sent
                or status < 300
                or status == 408
                or (status >= 500 and status not in _NEVER_ANSWERED)
            )
            raise _Failed(
                f"status {status}: {_message(said)}",
                again=status in _RETRIED and (not sent or repeatable),
                pause=_seconds(told.get("retry-after")),
            )

        def wait(state: tenacity.RetryCallState) -> float:
            nonlocal failures, obeyed
            most = min(self.max_backoff, self.backoff * 2.0 ** min(failures, 60))
            with self._lock:  # a generator of its own: tenacity's would draw from everybody's
                jitter = self._random.uniform(0, most)
            pause = _failure(state).pause
            if pause == 0:
                failures += 1
                return jitter
            seconds = max(pause, min(jitter, self.max_wait - obeyed))
            obeyed += seconds
            return seconds

        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception(
                    lambda error: isinstance(error, _Failed) and error.again
                ),
                wait=wait,  # tenacity asks how long, and then whether to stop
                stop=lambda state: failures > self.retries or obeyed > self.max_wait,
                sleep=lambda seconds: time.sleep(seconds),
                reraise=True,
            )(attempt)
        except _Failed as error:
            last = error
        tried = (
            f"{attempts} attempt{'s' if attempts > 1 else ''} at {self.endpoint}{path}; the last: "
            f"{last}"
        )
        if obeyed > self.max_wait:
            tried += (
                f" (it asks to wait {obeyed:.0f} s in all, more than max_wait={self.max_wait:.0f})"
            )
        if sent and method == "POST":
            raise UnknownOutcomeError(
                f"rows were sent and it is not known whether they count: {tried}"
            ) from last
        raise EndpointError(f"nothing was answered and nothing counts: {tried}") from last

    def _restarted(self, path: str, sent: bool, said: bytes | bytearray) -> EndpointError:
        """Of an endpoint that says it is another instance: whether an earlier attempt may have been
        answered.
        """
        forgotten = _code(said) != "not_answered"
        reason = f"{self.endpoint}{path} was started anew: {_message(said)}"
        if sent and forgotten:
            return UnknownOutcomeError(
                f"rows were sent and it is not known whether they count: {reason}"
            )
        return RestartedError(f"nothing was answered: {reason}", forgotten)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of what is to be done in the event loop."""
        if os.getpid() != self._process:
            work.close()
            raise InputError(
                "a remote victim cannot be used in a fork of its process; make one there"
            )
        future = asyncio.run_coroutine_threadsafe(work, _loop())
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def _through(self) -> str:
        """The proxy, for messages."""
        return f" through the {self._proxy}" if self._proxy else ""

    async def _ask(
        self, method: str, path: str, limit: int, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, Any, bytearray]:
        """(status, headers, body) of one attempt; what went wrong on the way, as an
        `EndpointError`.
        """
        import httpx

        sent, said = False, bytearray()

        async def trace(event: str, info: Any) -> None:
            nonlocal sent
            sent = sent or event.endswith("send_request_headers.started")

        try:
            async with (
                asyncio.timeout(self.timeout),
                self._client.stream(
                    method, path, headers=headers, content=body, extensions={"trace": trace}
                ) as response,
            ):
                async for chunk in response.aiter_raw():
                    said += chunk
                    if len(said) > limit:
                        raise UnknownOutcomeError(f"the answer is longer than {limit} bytes")
                encoding = response.headers.get("content-encoding", "identity").strip().lower()
                if encoding != "identity":
                    if response.status_code == 200:
                        raise UnknownOutcomeError("the answer is packed, which was not asked for")
                    said = bytearray(b"(packed)")
                return response.status_code, response.headers, said
        except EndpointError:
            raise
        except (
            httpx.ConnectError,
            httpx.ConnectTimeout,
            httpx.PoolTimeout,
            httpx.ProxyError,
        ) as error:
            raise EndpointError(f"no connection{self._through} ({_named(error)})") from error
        except TimeoutError as error:
            if sent:
                raise UnknownOutcomeError(f"no whole answer within {self.timeout:g} s") from error
            raise EndpointError(
                f"no connection{self._through} within {self.timeout:g} s"
            ) from error
        except Exception as error:
            # a stranger's bytes go through the parsers of four packages: whatever one of them
            # raises, the connection is of no more use, and nothing is known of the rows
            raise UnknownOutcomeError(f"the connection failed ({_named(error)})") from error


class _Failed(Exception):  # noqa: N818 - between two attempts
    """An attempt that brought no answer: whether to repeat it, and when it was told to come back."""

    def __init__(self, reason: str, again: bool, pause: float = 0.0):
        super().__init__(reason)
        self.again, self.pause = again, pause


def _failure(state: Any) -> _Failed:
    error = state.outcome.exception()
    assert isinstance(error, _Failed)
    return error


class _NoCookies(http.cookiejar.CookieJar):
    """Keeps nothing that an endpoint would have sent back."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


_loops: dict[int, asyncio.AbstractEventLoop] = {}
_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all victims of this process, in a thread of its own.

    Only in an event loop can whatever a request is waiting for be given up at one deadline.
    """
    with _starting:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            thread = threading.Thread(
                target=loop.run_forever, name="dfke remote victims", daemon=True
            )
            thread.start()
            atexit.register(_end, loop, thread)
        return loop


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if thread.is_alive():  # in a fork it is not
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
    if not loop.is_running():
        loop.close()


# ---- what a stranger says of itself


def _given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _whole(value: Any, least: int = 1, most: int = 2**31) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r:.99} is no whole number from {least} to {most}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not -1e300 < value < 1e300:
        raise ValueError(f"{value!r:.99} is no finite number")
    return float(value)


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > 32:
        raise ValueError(f"{value!r:.99} is no short list")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.99} is no object")
    return value


def _interval(value: Any) -> tuple[float, float]:
    low, high = (_number(end) for end in _listed(value))
    if not low < high:
        raise ValueError(f"({low}, {high}) is no interval")
    return low, high


def _setting(kind: Any, said: Any) -> Any:
    """A `Reveal` or an `Explanation` from its fields, each of the type that it has there."""
    for name, value in _mapping(said).items():
        if name in ("k", "decimals") and value is None:
            continue
        if name in ("k", "decimals", "samples", "steps", "seed"):
            _whole(value, 0, 30 if name == "decimals" else 2**62)
        elif name in ("deviation", "baseline"):
            _number(value)
        elif type(value) is not (bool if name == "renormalise" else str) or len(str(value)) > 99:
            raise ValueError(f"{name:.99} cannot be {value!r:.99}")
    return kind(**said)


def _seconds(header: str | None) -> float:
    """Retry-After, in seconds or as a date; 0 when it says nothing."""
    if not header:
        return 0.0
    if header.isascii() and header.strip().isdigit():
        return float(header)
    with contextlib.suppress(Exception):  # dates of strangers: no list of what they raise is whole
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return 0.0


def _code(body: bytes | bytearray) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(body)["error"]["code"])
    return ""


def _message(body: bytes | bytearray) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        return _plain(str(json.loads(body)["error"]["message"]))
    return _plain(body[:_SHOWN].decode("utf-8", "replace"))


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {_plain(str(error))}"


def _plain(text: str) -> str:
    """A stranger's text for a terminal: its beginning, with escapes for what cannot be printed."""
    shown = text[:_SHOWN]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


__all__ = ["RemoteVictim"]
