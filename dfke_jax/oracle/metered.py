"""A victim behind a ledger: every row is paid once, and what was answered before is not asked again."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax
import numpy as np

from dfke_jax.core.errors import EndpointError, InputError, UnknownOutcomeError
from dfke_jax.oracle.codec import decode_answers, encode_answers, row_keys
from dfke_jax.oracle.explanations import Explained, ExplanationOracle, check_explained
from dfke_jax.oracle.ledger import Ledger
from dfke_jax.oracle.oracle import Oracle
from dfke_jax.oracle.reveal import Reveal, check_answers

Item = TypeVar("Item")


def concurrently(function: Callable[[Item], Any], items: Iterable[Item], workers: int) -> list[Any]:
    """``[function(item) for item in items]``, up to `workers` at a time.

    After the first error nothing new is begun; what is under way is finished, and the error raised.
    """
    items = list(items)
    if workers <= 1 or len(items) <= 1:
        return [function(item) for item in items]
    stopped = threading.Event()

    def guarded(item: Item) -> Any:
        if stopped.is_set():
            return None
        try:
            return function(item)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(min(workers, len(items))) as pool:
        futures = [pool.submit(guarded, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
            for future in futures:
                future.cancel()
    for future in futures:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            raise error
    return [future.result() for future in futures]


class Metered:
    """A host oracle, rows (B, ...) -> answers, that asks a victim through a ledger.

    Rows with an answer in the ledger are not sent; of several equal rows one is. The missing ones go out in requests,
    each entered in the ledger before it is sent and again, with its answers, as soon as they are there. The whole call
    is held against the budget before its first request leaves.

    A victim is any callable, rows -> answers (an array, a tuple or dictionary of arrays, or `Explained`, with leading axis
    B). An `Oracle` or `ExplanationOracle` is compiled. One with a method ``request(rows, key)`` (`RemoteVictim`) is asked
    through it, in requests of its `batch`, `concurrency` at a time; one with a method ``check(rows)`` may object to rows
    before they are entered. An exception leaves the rows of its request as of unknown outcome, which counts against the
    budget, unless it is an `EndpointError` that says that they were certainly not answered.

    Args:
      oracle: the victim.
      ledger: counts and remembers. It is bound to this endpoint and kind of answer.
      endpoint: name of the victim, part of every key; by default the oracle's `endpoint`, or ``local``.
      reveal: what it answers; by default the oracle's `reveal`. A `Reveal`, or any text for other kinds of answer.
      num_classes: K; with it and a `Reveal` every answer is checked before it is stored. By default the oracle's.
      batch: rows in a request; by default the oracle's `batch`, or all.
      repeatable: whether a request of unknown outcome may be sent again as the same, at no cost: true of an endpoint
        with idempotency keys, and of a victim in this process, whose answer cannot have got lost elsewhere. By default
        the oracle's `repeatable`: oracles of this package know it of their victims. Of a bare function nothing is known:
        False, and such rows are paid a second time.
      explanations: whether the rows of this oracle are answered with an explanation (a column of its own); by default,
        whether it has an `explanation`.

    Raises:
      LedgerError: when the ledger belongs to another endpoint or kind of answer.
    """

    def __init__(
        self,
        oracle: Callable[[np.ndarray], Any],
        ledger: Ledger,
        endpoint: str | None = None,
        reveal: Reveal | str | None = None,
        *,
        num_classes: int | None = None,
        batch: int | None = None,
        repeatable: bool | None = None,
        explanations: bool | None = None,
    ):
        self.oracle, self.ledger = oracle, ledger
        self.endpoint = str(_first(endpoint, getattr(oracle, "endpoint", None), "local"))
        found = _first(reveal, getattr(oracle, "reveal", None))
        if found is None:
            raise InputError("say what the victim reveals: reveal=Reveal(...) or a text that names its answers")
        self.reveal = found
        self.num_classes = _first(num_classes, getattr(oracle, "num_classes", None))
        self.batch = _first(batch, getattr(oracle, "batch", None))
        if self.batch is not None and self.batch < 1:
            raise InputError(f"batch must be at least 1 row, got {self.batch}")
        self.concurrency = getattr(oracle, "concurrency", 1)
        self.repeatable = bool(_first(repeatable, getattr(oracle, "repeatable", None), False))
        self.explanation = getattr(oracle, "explanation", None)
        self.explanations = bool(_first(explanations, self.explanation is not None))
        kind = json.dumps(dataclasses.asdict(self.explanation), sort_keys=True) if self.explanation else ""
        self._described = describe_reveal(found) + (f" with explanations {kind}".rstrip() if self.explanations else "")
        ledger.bind(self.endpoint, describe_reveal(found))

    def __call__(self, rows: Any) -> Any:
        """Answers of rows (B, ...), in their order.

        Raises:
          BudgetError: before anything is sent, when the rows that must be sent do not fit.
          InputError: for rows that cannot be sent, or answers that cannot be right.
          EndpointError: from a remote victim. What was answered before is in the ledger.
        """
        rows, keys = self._keyed(rows)
        place = {key: i for i, key in reversed(list(enumerate(keys)))}  # of the first of equal rows
        with self.ledger.turn:
            known = self.ledger.lookup(list(place))
            missing = [key for key in dict.fromkeys(keys) if key not in known]
            requests = self._requests(missing)
            self.ledger.check(sum(len(part) for number, part in requests if number is None))

            def send(request: tuple[int | None, Sequence[bytes]]) -> None:
                part = request[1]
                known.update(zip(part, self._send(rows[[place[key] for key in part]], *request), strict=True))

            concurrently(send, requests, self.concurrency)
            self.ledger.hit(len(keys) - len(missing))
        return self._read([known[key] for key in keys])

    def again(self, rows: Any) -> Any:
        """Asks rows a second time, counted and not remembered: whether the victim answers the same twice.

        Raises: as for a call.
        """
        rows, keys = self._keyed(rows)
        self.ledger.check(len(keys))
        size = self.batch or len(keys)
        answered: list[tuple[str, bytes]] = []
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            answered += self._send(rows[start : start + size], None, part, keep=False)
        return self._read(answered)

    def evaluate(self, rows: Any) -> Any:
        """Asks rows in order to measure a clone: on the other meter, outside the budget, neither from nor into the cache."""
        rows, keys = self._keyed(rows)
        size = self.batch or len(rows)
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]

        def send(part: slice) -> list[tuple[str, bytes]]:
            answers = self._checked(self._asked(rows[part], self._name("evaluation", keys[part])), len(keys[part]))
            self.ledger.evaluated(len(keys[part]))
            layout, data = answers
            return [(layout, row) for row in data]

        return self._read([row for part in concurrently(send, parts, self.concurrency) for row in part])

    def counts(self) -> dict[str, int | None]:
        """The ledger's meters."""
        return self.ledger.counts()

    def _requests(self, missing: list[bytes]) -> list[tuple[int | None, Sequence[bytes]]]:
        """(number in the ledger, or None; keys) of the requests to send; those left open by a killed run come first."""
        requests: list[tuple[int | None, Sequence[bytes]]] = []
        left = dict.fromkeys(missing)
        if self.repeatable and left:
            most = getattr(self.oracle, "max_rows", None) or len(missing)
            for number, part in self.ledger.open_requests():
                if len(part) <= most and all(key in left for key in part):
                    requests.append((number, part))
                    for key in part:
                        del left[key]
        keys = list(left)
        size = self.batch or max(len(keys), 1)
        return requests + [(None, keys[start : start + size]) for start in range(0, len(keys), size)]

    def _send(
        self, rows: np.ndarray, number: int | None, keys: Sequence[bytes], *, keep: bool = True
    ) -> list[tuple[str, bytes]]:
        """One request and its entries in the ledger; (layout, bytes) of every row."""
        begun = number is None
        if number is None:
            number = self.ledger.begin(keys, explained=self.explanations, single=not keep)
        try:
            answers = self._asked(rows, self._name("attack" if keep else f"again {number}", keys))
        except UnknownOutcomeError:
            raise
        except EndpointError:
            if begun:  # one that was open before may have been answered then
                self.ledger.withdraw(number)
            raise
        layout, data = self._checked(answers, len(keys))
        self.ledger.settle(number, keys, layout, data if keep else ())
        return [(layout, row) for row in data]

    def _keyed(self, rows: Any) -> tuple[np.ndarray, list[bytes]]:
        rows = np.asarray(rows)
        keys = row_keys(rows, self.endpoint, self._described)
        check = getattr(self.oracle, "check", None)
        if check:
            check(rows)
        return rows, keys

    def _asked(self, rows: np.ndarray, key: str) -> Any:
        request = getattr(self.oracle, "request", None)
        if request:
            return request(rows, key)
        if isinstance(self.oracle, Oracle | ExplanationOracle):
            return jax.device_get(_traced(self.oracle, rows))
        return self.oracle(rows)

    def _read(self, rows: Sequence[tuple[str, bytes]]) -> Any:
        answers = decode_answers(rows)
        return Explained(*answers) if self.explanation is not None else answers

    def _checked(self, answers: Any, count: int) -> tuple[str, list[bytes]]:
        if self.explanation is not None and isinstance(self.reveal, Reveal) and self.num_classes is not None:
            shape = tuple(self.oracle.input_shape)  # type: ignore[attr-defined]
            check_explained(answers, count, self.num_classes, shape, self.reveal, self.explanation)
            answers = tuple(answers)
        elif isinstance(self.reveal, Reveal) and self.num_classes is not None and not isinstance(answers, tuple | dict):
            check_answers(answers, count, self.num_classes, self.reveal)
        return encode_answers(answers, count)

    def _name(self, purpose: str, keys: Sequence[bytes]) -> str:
        """The same for the same rows asked for the same purpose on behalf of the same ledger, and for nothing else."""
        return hashlib.sha256(f"{self.ledger.id} {purpose} ".encode() + b"".join(keys)).hexdigest()


@jax.jit
def _traced(oracle: Oracle | ExplanationOracle, rows: Any) -> Any:
    return oracle(rows)


def describe_reveal(reveal: Reveal | str) -> str:
    """One text for one kind of answer, as it stands in a ledger."""
    return json.dumps(dataclasses.asdict(reveal), sort_keys=True) if isinstance(reveal, Reveal) else reveal


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


__all__ = ["Metered", "concurrently", "describe_reveal"]
