"""An endpoint that stands in for a prediction API: what a defender sets up to be attacked by
`RemoteVictim`.

    GET  /v1/describe   what goes in, what comes out, and the limits
    POST /v1/predict    rows in, answers out: npy bodies, or JSON for humans
    POST /v1/explain    rows in, answers and their explanations out, where the endpoint explains
    GET  /v1/usage      what this key has been charged

Keys are sent as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``. A request with an
``Idempotency-Key`` that was answered before gets the same bytes again and is not charged. Charges
and recorded answers live in this process, and where it has a journal in a file as well. Every start
is another instance, which `describe` names: a request that says by ``Endpoint-Instance`` which one
it is meant for is answered by no other, unless it was answered before.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import ipaddress
import logging
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.oracle.codec import to_npy
from dfke_jax.oracle.explanations import Explanation, check_explained
from dfke_jax.oracle.journal import Journal
from dfke_jax.oracle.limits import JSON, Accounts, Endpoint, Refusal
from dfke_jax.oracle.reveal import Reveal, check_answers

NPY = "application/x-npy"
_NO_ROOM = ("no_room", "the endpoint has no memory for this now; nothing was charged")
_log = logging.getLogger(__name__)

Answers = tuple[np.ndarray, ...]
"""One array, or probabilities and their explanations."""


@dataclasses.dataclass(slots=True)
class _Recorded:
    """A request with an idempotency key: what it said, and its answer once that is there."""

    body: bytes
    done: asyncio.Event | None
    answers: Answers | None = None


class Service:
    """An endpoint at work: predicts one request at a time, charges it, remembers it.

    Args:
      predict: rows (B, ...) in the endpoint's dtype -> answers as its `reveal` says; called in a
        thread.
      explain: rows -> like `Explained`, where the endpoint explains.
      endpoint, accounts: what is allowed.
      journal: where charges and answers are kept for the next instance; None forgets them with the
        process.

    Attributes:
      instance: name of this start of the endpoint.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], Any],
        endpoint: Endpoint,
        accounts: Accounts,
        explain: Callable[[np.ndarray], Any] | None = None,
        journal: Journal | None = None,
    ):
        self.instance, self.journal = uuid.uuid4().hex, journal
        if journal is not None:
            journal.start(self.instance)
            for account, (rows, requests, explained) in journal.charges().items():
                accounts.charged[account], accounts.requests[account] = rows, requests
                accounts.explained[account] = explained
        self.predict, self.explain, self.endpoint, self.accounts = (
            predict,
            explain,
            endpoint,
            accounts,
        )
        self._recorded: dict[tuple[str, str], _Recorded] = {}
        self._answered: deque[tuple[str, str]] = deque()  # records in the order of their answers
        self._bytes = 0
        self._pending = 0  # bytes of bodies that are received or answered
        self._turn = threading.Lock()

    async def answer(
        self,
        account: str,
        rows: np.ndarray,
        name: str | None,
        body: bytes,
        explained: bool = False,
        instance: str | None = None,
    ) -> tuple[Answers, bool]:
        """Answers, and whether they were recorded before; charged once for every `name`.

        One that was not is answered only if it is meant for this `instance` or for any (None).
        """
        if name is None:
            self._check_instance(instance)
            return await self._fresh(account, rows, explained), False
        place, mark = (account, name), hashlib.sha256(bytes([explained]) + body).digest()
        while (found := self._recorded.get(place)) is not None:
            if found.body != mark:
                raise Refusal(
                    422, "idempotency_mismatch", "this Idempotency-Key was used with another body"
                )
            if found.done is not None:
                await found.done.wait()
            if found.answers is not None:
                return found.answers, True
        kept = self.journal.find(account, name) if self.journal is not None else None
        if kept is not None:
            if kept[0] != mark:
                raise Refusal(
                    422, "idempotency_mismatch", "this Idempotency-Key was used with another body"
                )
            return kept[1], True
        self._check_instance(instance)
        done = asyncio.Event()
        entry = self._recorded[place] = _Recorded(mark, done)
        try:
            entry.answers = await self._fresh(account, rows, explained, name, mark)
        except BaseException:
            del self._recorded[place]
            raise
        finally:
            done.set()
        answers, entry.done = entry.answers, None
        self._answered.append(place)
        self._bytes += _size(answers)
        while self._bytes > self.endpoint.max_recorded:
            oldest = self._recorded.pop(self._answered.popleft())
            assert oldest.answers is not None
            self._bytes -= _size(oldest.answers)
        return answers, False

    def _check_instance(self, instance: str | None) -> None:
        """Refuses what is meant for another instance, and says whether that one can have answered
        it.
        """
        if instance in (None, self.instance):
            return
        if self.journal is not None and self.journal.knows(instance):
            raise Refusal(
                412,
                "not_answered",
                "this request was not answered before; send it to the instance that runs now",
            )
        raise Refusal(
            412,
            "other_instance",
            "this endpoint was started anew, and does not know what was asked before",
        )

    @contextlib.asynccontextmanager
    async def received(self, request: Any, content_type: str) -> AsyncIterator[bytes]:
        """A request's whole body, or a refusal once it is known to be too large, too slow or too
        many.

        Its bytes count as pending to the end of the block, in which they are answered.
        """
        known, body = self.endpoint, bytearray()
        limit = known.most_bytes(content_type)
        too_large = Refusal(
            413, "too_large", f"a body of rows, as {content_type}, may have {limit} bytes"
        )
        announced = request.headers.get("content-length", "")
        if (
            announced.isascii()
            and announced.isdecimal()
            and (len(announced) > 18 or int(announced) > limit)
        ):
            raise too_large
        try:
            try:
                async with asyncio.timeout(known.body_seconds):
                    async for chunk in request.stream():
                        body += chunk
                        self._pending += len(chunk)
                        if len(body) > limit:
                            raise too_large
                        if self._pending > known.pending_at_once:
                            raise Refusal(
                                503, "busy", "too much is being asked at a time", Retry_After="1"
                            )
            except TimeoutError:
                raise Refusal(
                    408, "too_slow", f"a body must arrive within {known.body_seconds:g} s"
                ) from None
            yield bytes(body)
        finally:
            self._pending -= len(body)

    async def _fresh(
        self,
        account: str,
        rows: np.ndarray,
        explained: bool,
        name: str | None = None,
        mark: bytes = b"",
    ) -> Answers:
        self.accounts.admit(account, len(rows), explained=explained)
        try:
            answers = await asyncio.to_thread(
                self._explained if explained else self._predicted, rows
            )
            # before the answer leaves: what is not in it was not answered
            if self.journal is not None:
                await asyncio.to_thread(
                    self.journal.enter, account, len(rows), explained, name, mark, answers
                )
        except BaseException as error:
            self.accounts.refund(account, len(rows), explained=explained)
            if not isinstance(error, Exception):
                raise
            if isinstance(error, MemoryError):
                raise Refusal(503, *_NO_ROOM, Retry_After="1") from None
            _log.exception("the model failed on %d rows", len(rows))
            raise Refusal(
                500, "failed", "the model failed to answer; nothing was charged"
            ) from None
        return answers

    def _predicted(self, rows: np.ndarray) -> Answers:
        with self._turn:
            answers = np.asarray(self.predict(rows))
        check_answers(answers, len(rows), self.endpoint.num_classes, self.endpoint.reveal)
        return (answers,)

    def _explained(self, rows: np.ndarray) -> Answers:
        known = self.endpoint
        assert self.explain is not None
        assert known.explanation is not None
        with self._turn:
            answers = tuple(np.asarray(part) for part in self.explain(rows))
        check_explained(
            answers,
            len(rows),
            known.num_classes,
            known.input_shape,
            known.reveal,
            known.explanation,
        )
        return answers


def _size(answers: Answers) -> int:
    """Bytes of a record: its answers, and what Python keeps around them."""
    return sum(part.nbytes for part in answers) + 1024


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
    explain: Callable[[np.ndarray], Any] | None = None,
    explanation: Explanation | None = None,
    journal: Journal | None = None,
    **limits: Any,
):
    """A Starlette application that answers rows over HTTP; run it with `serve`, `background` or any
    ASGI server.

    Bodies are npy arrays (``numpy.save``; never pickled) or, as ``application/json``,
    ``{"rows": [...]}``; the answer has the form of the question; explanations follow the answers,
    as a second npy array or as ``"explanations"``. Refusals are ``{"error": {"code", "message"}}``
    with status 401 (key), 403 (quota), 404 (no explanations), 408 (the body came too slowly), 412
    (meant for another instance), 413 (too many rows or bytes), 415
    (another type or encoding), 422 (rows that cannot be right), 429 (rate, with Retry-After), 503
    (too much at a time, with Retry-After) or 500 (the victim failed; not charged).

    Args:
      predict: rows (B, ...) -> answers of the kind that `reveal` names, (B, K) or (B,) integers.
      input_shape, reveal, num_classes, quota, rate: see `Endpoint`.
      keys: API keys; None for an open endpoint.
      clock: seconds, for the rate.
      explain: rows -> like `Explained`, of the kind that `explanation` names: probabilities as
        revealed, and maps; both or neither. A row that is explained is charged as one row, and
        counted apart as well.
      journal: remembers charges and answers for the next start; accounts go by their places in
        `keys`.
      **limits: `box`, `dtype`, `burst`, `max_rows`, `max_bytes`, `max_pending`, `body_seconds`,
        `max_recorded`, `explanation_quota` of `Endpoint`.

    Returns:
      The application; ``app.state.service`` is its `Service`, and ``app.state.service.accounts``
      knows the charges.

    Raises:
      InputError: for settings that mean nothing.
    """
    try:
        import ijson  # noqa: F401
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise InputError(
            'an endpoint needs `pip install -e ".[serve]"` in a clone of the repository'
        ) from None

    if (explain is None) != (explanation is None):
        raise InputError("explain and explanation, which says of what kind it is, belong together")
    endpoint = Endpoint(
        tuple(input_shape),
        num_classes,
        reveal,
        quota=quota,
        rate=rate,
        explanation=explanation,
        **limits,
    )
    service = Service(predict, endpoint, Accounts(endpoint, keys, clock), explain, journal)

    def account(request: Request) -> str:
        bearer = request.headers.get("authorization", "")
        offered = (
            bearer[7:].strip()
            if bearer[:7].lower() == "bearer "
            else request.headers.get("x-api-key")
        )
        return service.accounts.who(offered)

    async def describe(request: Request) -> Response:
        account(request)
        return JSONResponse({**endpoint.describe(), "instance": service.instance})

    async def usage(request: Request) -> Response:
        return JSONResponse(service.accounts.usage(account(request)))

    async def predict_rows(request: Request) -> Response:
        return await answer_rows(request, account(request))

    async def explain_rows(request: Request) -> Response:
        who = account(request)
        if explanation is None:
            raise Refusal(404, "no_explanations", "this endpoint explains nothing; ask /v1/predict")
        return await answer_rows(request, who, explained=True)

    async def answer_rows(request: Request, who: str, explained: bool = False) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in (JSON, NPY, "application/octet-stream"):
            raise Refusal(415, "unsupported_type", f"send {NPY} or {JSON}, not {kind or 'nothing'}")
        if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refusal(
                415,
                "unsupported_encoding",
                "send the body as it is: no Content-Encoding is undone here",
            )
        name = request.headers.get("idempotency-key")
        if name is not None and not 0 < len(name) <= 256:
            raise Refusal(422, "bad_input", "an Idempotency-Key has 1 to 256 characters")
        async with service.received(request, kind) as body:
            try:
                most = endpoint.most_rows(kind, explained=explained)
                rows = await asyncio.to_thread(endpoint.rows, body, kind, most)
            except InputError as error:
                raise Refusal(422, "bad_input", str(error)) from error
            instance = request.headers.get("endpoint-instance")
            answers, again = await service.answer(who, rows, name, body, explained, instance)
            return await asyncio.to_thread(answered, kind, answers, again)

    def answered(kind: str, answers: Answers, again: bool) -> Response:
        headers = {"Idempotent-Replayed": "true"} if again else {}
        if kind == JSON:
            parts = zip(("answers", "explanations"), answers, strict=False)
            return JSONResponse({what: part.tolist() for what, part in parts}, headers=headers)
        return Response(b"".join(to_npy(part) for part in answers), media_type=NPY, headers=headers)

    def said(status: int, code: str, message: str, headers: Any = None) -> Response:
        return JSONResponse({"error": {"code": code, "message": message}}, status, headers=headers)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return said(error.status, error.code, error.message, error.headers)

    async def http(_: Request, error: Any) -> Response:
        return said(error.status_code, "http_error", str(error.detail), error.headers)

    async def gone(_: Request, error: Exception) -> Response:
        return said(400, "disconnected", "the body did not arrive")

    async def no_room(_: Request, error: Exception) -> Response:
        return said(503, *_NO_ROOM, headers={"Retry-After": "1"})

    async def failed(_: Request, error: Exception) -> Response:
        return said(500, "failed", "the endpoint failed")

    app = Starlette(
        routes=[
            Route("/v1/describe", describe),
            Route("/v1/usage", usage),
            Route("/v1/predict", predict_rows, methods=["POST"]),
            Route("/v1/explain", explain_rows, methods=["POST"]),
        ],
        exception_handlers={
            Refusal: refused,
            HTTPException: http,
            ClientDisconnect: gone,
            MemoryError: no_room,
            Exception: failed,
        },
    )
    app.state.service = service
    return app


def serve(
    app: Any,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    ready: Callable[[str], None] = lambda url: None,
    max_connections: int = 256,
    header_seconds: float = 10.0,
) -> None:
    """Serves an application until it is interrupted.

    Args:
      app: of `create_app`. host: the address to listen on; by default this machine alone can reach
        it. port: 0 for any.
      ready: called with the URL as soon as connections are taken.
      max_connections: from which on a request is answered with 503; beyond twice as many a
        connection is closed unanswered.
      header_seconds: in which the headers of a request must have arrived, from the connection or
        the last answer on.

    Where others can reach it and it asks for no key, a warning is logged.

    Raises:
      InputError: when nothing can listen there.
    """
    opened = _listening(app, host, port, max_connections, header_seconds)
    with opened as (server, listener, url), contextlib.suppress(KeyboardInterrupt):
        ready(url)
        server.run(sockets=[listener])


@contextlib.contextmanager
def background(
    app: Any,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    max_connections: int = 256,
    header_seconds: float = 10.0,
) -> Iterator[str]:
    """Serves an application in a thread for the length of a ``with`` block, and gives its URL.

    Args:
      app, host, port, max_connections, header_seconds: as of `serve`.

    Raises:
      InputError: when nothing can listen there.
    """
    with _listening(app, host, port, max_connections, header_seconds) as (server, listener, url):
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
def _listening(
    app: Any, host: str, port: int, max_connections: int, header_seconds: float
) -> Iterator[tuple[Any, socket.socket, str]]:
    """(uvicorn server, its socket, URL)."""
    try:
        import uvicorn

        from dfke_jax.oracle.connections import connection
    except ImportError:
        raise InputError(
            'serving needs `pip install -e ".[serve]"` in a clone of the repository'
        ) from None
    if max_connections < 1 or header_seconds <= 0:
        raise InputError("max_connections must be at least 1 and header_seconds positive")
    version6 = ":" in host
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if version6 else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error}; choose another host or port"
        ) from error
    with listener:
        address, number = listener.getsockname()[:2]
        if _open(app) and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            _log.warning(
                "%s:%d can be reached from other machines and asks for no key: anybody may use it",
                host,
                number,
            )
        quiet = {
            "log_level": "critical",
            "server_header": False,
            "lifespan": "off",
            "timeout_graceful_shutdown": 1,
        }
        # the default one shuts down every handler of the process, whoever it belongs to
        quiet["log_config"] = None
        guarded = {
            "http": connection(header_seconds=header_seconds, most=2 * max_connections),
            "ws": "none",
            "limit_concurrency": max_connections,
        }
        url = f"http://{f'[{host}]' if version6 else host}:{number}"
        yield uvicorn.Server(uvicorn.Config(app, **quiet, **guarded)), listener, url


def _open(app: Any) -> bool:
    """Whether an application of `create_app` answers without a key; of others nothing is known."""
    service = getattr(getattr(app, "state", None), "service", None)
    return service is not None and service.accounts.open


__all__ = ["Service", "background", "create_app", "serve"]
