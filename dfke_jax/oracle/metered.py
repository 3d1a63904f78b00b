"""A victim behind a ledger: every row is paid once, and what was answered before is not asked
again.
"""

import contextlib
import dataclasses
import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax
import numpy as np

from dfke_jax.core.errors import (
    EndpointError,
    InputError,
    LedgerError,
    RestartedError,
    UnknownOutcomeError,
)
from dfke_jax.oracle.codec import decode_answers, encode_answers, row_keys
from dfke_jax.oracle.explanations import Explained, ExplanationOracle, check_explained
from dfke_jax.oracle.ledger import Ledger, LedgerWarning
from dfke_jax.oracle.oracle import Oracle
from dfke_jax.oracle.reveal import Reveal, check_answers
from dfke_jax.oracle.victims import as_numbers

Item = TypeVar("Item")
_RESTARTS, _SAMPLES = 5, 4


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

    Rows with an answer in the ledger are not sent; of several equal rows one is. The missing ones
    go out in requests, each entered in the ledger before it is sent and again, with its answers, as
    soon as they are there. The whole call is held against the budget before its first request
    leaves.

    A victim is any callable, rows -> answers (an array, a tuple or dictionary of arrays, or
    `Explained`, with leading axis B). An `Oracle` or `ExplanationOracle` is compiled. One with a
    method ``request(rows, key)`` (`RemoteVictim`) is asked through it, in requests of its `batch`,
    `concurrency` at a time; one with a method ``check(rows)`` may object to rows before they are
    entered. An exception leaves the rows of its request as of unknown outcome, which counts against
    the budget, unless it is an `EndpointError` that says that they were certainly not answered.

    An endpoint that is started anew may have forgotten what it answered, and may have another
    model. One that names its `instance` is told with every request which one that is meant for, and
    an open request is sent again to those alone that can know it: where nobody can, its rows count
    for good, a `LedgerWarning` says so, and they are asked as new ones.

    Before new rows are sent to an endpoint that answered others earlier (another instance; or,
    where none is named, a ledger that was opened with answers in it), a few of the stored rows are
    asked again. They count against the budget, so that a run with a budget to the row needs
    `samples` more for every such time; where a call leaves no room for them they are left out, with
    a `LedgerWarning`. An oracle in this process that is repeatable is asked again uncounted.

    Args:
      oracle: the victim.
      ledger: counts and remembers. It is bound to this endpoint and kind of answer.
      endpoint: name of the victim, part of every key; by default the oracle's `endpoint`, or
        ``local``.
      reveal: what it answers; by default the oracle's `reveal`. A `Reveal`, or any text for other
        kinds of answer.
      num_classes: K; with it and a `Reveal` every answer is checked before it is stored. By default
        the oracle's.
      batch: rows in a request; by default the oracle's `batch`, or all.
      repeatable: whether a request of unknown outcome may be sent again as the same, at no cost:
        true of an endpoint with idempotency keys, and of a victim in this process, whose answer
        cannot have got lost elsewhere. By default the oracle's `repeatable`: oracles of this
        package know it of their victims. Of a bare function nothing is known: False, and such rows
        are paid a second time.
      explanations: whether the rows of this oracle are answered with an explanation (a column of
        its own); by default, whether it has an `explanation`.
      samples: rows that are kept and asked again, as above: by default 4, and 0 of a bare function,
        of which nobody knows whether asking costs anything. 0 also for endpoints that answer the
        same row differently from time to time.

    Raises:
      LedgerError: when the ledger belongs to another endpoint or kind of answer.
    """

    on_host = True

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
        samples: int | None = None,
    ):
        self.oracle, self.ledger = oracle, ledger
        self.endpoint = str(_first(endpoint, getattr(oracle, "endpoint", None), "local"))
        found = _first(reveal, getattr(oracle, "reveal", None))
        if found is None:
            raise InputError(
                "say what the victim reveals: reveal=Reveal(...) or a text that names its answers"
            )
        self.reveal = found
        self.num_classes = _first(num_classes, getattr(oracle, "num_classes", None))
        self.batch = _first(batch, getattr(oracle, "batch", None))
        if self.batch is not None and self.batch < 1:
            raise InputError(f"batch must be at least 1 row, got {self.batch}")
        if samples is not None and samples < 0:
            raise InputError(f"samples must be at least 0 rows, got {samples}")
        self._phase: str | None = None
        self._kept: int | None = None  # samples in the ledger, once they were looked for
        self._waiting = 0  # rows of the call under way that are not in the ledger yet
        self._compared: tuple[str | None] | None = (
            None  # the instance that was compared, or for which there was no room
        )
        self._changed: tuple[str | None, str] | None = None
        self._comparing = threading.RLock()
        self.concurrency = getattr(oracle, "concurrency", 1)
        self.repeatable = bool(_first(repeatable, getattr(oracle, "repeatable", None), False))
        self.samples = _first(
            samples, _SAMPLES if self.repeatable or hasattr(oracle, "request") else 0
        )
        self.explanation = getattr(oracle, "explanation", None)
        self.explanations = bool(_first(explanations, self.explanation is not None))
        kind = (
            json.dumps(dataclasses.asdict(self.explanation), sort_keys=True)
            if self.explanation
            else ""
        )
        self._described = describe_reveal(found) + (
            f" with explanations {kind}".rstrip() if self.explanations else ""
        )
        ledger.bind(self.endpoint, describe_reveal(found))

    def __call__(self, rows: Any) -> Any:
        """Answers of rows (B, ...), in their order.

        Raises:
          BudgetError: before anything is sent, when the rows that must be sent do not fit.
          InputError: for rows that cannot be sent, or answers that cannot be right.
          EndpointError: from a remote victim. What was answered before is in the ledger.
          LedgerError: when the endpoint answers stored rows otherwise than it did.
        """
        rows, keys = self._keyed(rows)
        place = {key: i for i, key in reversed(list(enumerate(keys)))}  # of the first of equal rows
        with self.ledger.turn:
            known = self.ledger.lookup(list(place))
            self._keep(rows, place, known)
            missing = [key for key in dict.fromkeys(keys) if key not in known]

            def send(request: tuple[int | None, Sequence[bytes]]) -> None:
                part = request[1]
                answers = self._send(rows[[place[key] for key in part]], *request)
                known.update(zip(part, answers, strict=bool(answers)))

            opened = self._opened(missing)
            self.ledger.check(len(missing) - sum(len(part) for _, part in opened))
            concurrently(send, opened, self.concurrency)
            left = [key for key in missing if key not in known]
            if left:
                self._waiting = len(left)
                self._compare(len(left))
                self.ledger.check(len(left))
            size = self.batch or max(len(left), 1)
            concurrently(
                send,
                [(None, left[start : start + size]) for start in range(0, len(left), size)],
                self.concurrency,
            )
            self._keep(rows, place, known)
            self.ledger.hit(len(keys) - len(missing), phase=self._phase)
        return self._read([known[key] for key in keys])

    def again(self, rows: Any) -> Any:
        """Asks rows a second time, counted and not remembered: whether the victim answers the same
        twice.

        Raises: as for a call.
        """
        rows, keys = self._keyed(rows)
        self.ledger.check(len(keys))
        self._compare(len(keys))
        size = self.batch or len(keys)
        answered: list[tuple[str, bytes]] = []
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            answered += self._send(rows[start : start + size], None, part, keep=False)
        return self._read(answered)

    def evaluate(self, rows: Any) -> Any:
        """Asks rows in order to measure a clone: on the other meter, outside the budget, neither
        from nor into the cache.
        """
        rows, keys = self._keyed(rows)
        size = self.batch or len(rows)
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]

        def send(part: slice) -> list[tuple[str, bytes]]:
            answers = self._checked(
                self._asked(rows[part], self._name("evaluation", keys[part])), len(keys[part])
            )
            self.ledger.evaluated(len(keys[part]))
            layout, data = answers
            return [(layout, row) for row in data]

        return self._read(
            [row for part in concurrently(send, parts, self.concurrency) for row in part]
        )

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what is asked in a ``with`` block under a name as well: what each part of an
        attack costs.

        ::

            with metered.phase("kinks"):
                answers = metered(rows)
            metered.ledger.phases()  # {"kinks": {"rows": ..., "cache_hits": ...}}

        Inside another phase the inner one alone counts. A phase belongs to this object, whichever
        thread asks. Rows of an evaluation are in none.

        Raises:
          InputError: for an empty name.
        """
        if not name:
            raise InputError("a phase has a name")
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def counts(self) -> dict[str, int | None]:
        """The ledger's meters."""
        return self.ledger.counts()

    def _opened(self, missing: list[bytes]) -> list[tuple[int | None, Sequence[bytes]]]:
        """(number in the ledger, keys) of those requests of a killed run that ask nothing but
        missing rows.
        """
        requests: list[tuple[int | None, Sequence[bytes]]] = []
        left = set(missing)
        if self.repeatable and left:
            most = getattr(self.oracle, "max_rows", None) or len(missing)
            for number, part in self.ledger.open_requests():
                if len(part) <= most and left.issuperset(part):
                    requests.append((number, part))
                    left.difference_update(part)
        return requests

    def _send(
        self, rows: np.ndarray, number: int | None, keys: Sequence[bytes], *, keep: bool = True
    ) -> list[tuple[str, bytes]]:
        """One request and its entries in the ledger; (layout, bytes) of every row, or nothing for
        an open request that is now closed without an answer."""
        if number is not None:
            return self._send_again(rows, number, keys)
        for restarts in range(_RESTARTS + 1):
            if keep:  # another thread may just have met another instance
                self._compare(max(self._waiting, len(keys)))
            instance = self._instance()
            entry = self.ledger.begin(
                keys, explained=self.explanations, single=not keep, instance=instance
            )
            self._entered(len(keys) * keep)
            try:
                answers = self._asked(
                    rows, self._name("attack" if keep else f"again {entry}", keys), instance
                )
            except UnknownOutcomeError:
                raise
            except EndpointError as error:
                self.ledger.withdraw(entry)
                self._entered(-len(keys) * keep)
                if not isinstance(error, RestartedError) or restarts == _RESTARTS:
                    raise
            else:
                return self._settled(entry, keys, answers, keep)
        raise AssertionError

    def _send_again(
        self, rows: np.ndarray, number: int, keys: Sequence[bytes]
    ) -> list[tuple[str, bytes]]:
        """As `_send`, of a request that is open in the ledger and may have been answered then."""
        instance = self.ledger.instance_of(number) or None
        try:
            answers = self._asked(rows, self._name("attack", keys), instance)
        except RestartedError as error:
            if error.forgotten:
                self.ledger.give_up(number)
                warnings.warn(
                    f"{self.endpoint} was started anew and does not know what was asked before: "
                    f"{len(keys)} rows that were under way count as asked for good, and are asked "
                    "as new ones",
                    LedgerWarning,
                    stacklevel=4,
                )
            else:
                self.ledger.withdraw(number)
            return []
        return self._settled(number, keys, answers, True)

    def _settled(
        self, number: int, keys: Sequence[bytes], answers: Any, keep: bool
    ) -> list[tuple[str, bytes]]:
        layout, data = self._checked(answers, len(keys))
        self.ledger.settle(number, keys, layout, data if keep else (), phase=self._phase)
        return [(layout, row) for row in data]

    # ---- whether the endpoint is still the same

    def _instance(self) -> str | None:
        return getattr(self.oracle, "instance", None)

    def _entered(self, rows: int) -> None:
        with self._comparing:
            self._waiting -= rows

    def _keep(
        self, rows: np.ndarray, place: dict[bytes, int], known: dict[bytes, tuple[str, bytes]]
    ) -> None:
        """Keeps the first rows that have answers, so that they can be asked again."""
        if self._kept is None:
            self._kept = len(self.ledger.samples(self._described)) if self.samples else 0
        chosen = [key for key in known if key in place][: max(self.samples - self._kept, 0)]
        if chosen:
            layout, data = encode_answers(rows[[place[key] for key in chosen]], len(chosen))
            self.ledger.keep_samples(
                self._described, {k: (layout, row) for k, row in zip(chosen, data, strict=True)}
            )
            self._kept += len(chosen)

    def _compare(self, rows: int) -> None:
        """Asks the samples again where the endpoint may have changed; `rows` are those that the
        call needs besides.
        """
        with self._comparing:
            current = self._instance()
            if not rows or self._compared == (current,):
                return
            if self._changed is not None and self._changed[0] == current:
                raise LedgerError(self._changed[1])
            due = self.ledger.inherited if current is None else self.ledger.instance != current
            samples = self.ledger.samples(self._described) if self.samples and due else {}
            samples = dict(list(samples.items())[: self.samples])
            asked = not samples or self._ask_samples(samples, rows)
            self._compared = (current,)
            if due and asked and current is not None:
                self.ledger.meet(current)

    def _ask_samples(self, samples: dict[bytes, tuple[str, bytes]], rows: int) -> bool:
        """Whether they were asked; an error if they are answered otherwise than before."""
        keys = list(samples)
        asked = decode_answers([samples[key] for key in keys])
        stored = self.ledger.lookup(keys)
        if row_keys(asked, self.endpoint, self._described) != keys or len(stored) != len(keys):
            raise LedgerError(
                f"the ledger {self.ledger.path or 'in memory'} is damaged: rows kept for "
                "comparison differ"
            )
        if self.repeatable and not hasattr(self.oracle, "request"):
            layout, data = self._checked(self._asked(asked, ""), len(keys))
            found = [(layout, row) for row in data]
        elif self.ledger.remaining is not None and self.ledger.remaining < rows + len(keys):
            warnings.warn(
                f"{self.ledger.remaining} rows of the budget are left and {rows} are asked: "
                f"{len(keys)} more, to see whether {self.endpoint} still answers as it did, do not "
                "fit and were left out",
                LedgerWarning,
                stacklevel=4,
            )
            return False
        else:
            size = self.batch or len(keys)
            parts = range(0, len(keys), size)
            found = [
                row
                for start in parts
                for row in self._send(
                    asked[start : start + size], None, keys[start : start + size], keep=False
                )
            ]
        before, now = self._read([stored[key] for key in keys]), self._read(found)
        decimals = self.reveal.decimals if isinstance(self.reveal, Reveal) else None
        differing = _differing(before, now, 0.0 if decimals is None else 10.0**-decimals)
        if differing:
            text = (
                f"{self.endpoint} answers {differing} of {len(keys)} rows otherwise than it did "
                "when they were stored: another model answers there now, and its answers must not "
                "be mixed with those. Use another ledger; or samples=0 for an endpoint that never "
                "answers a row twice in the same way"
            )
            self._changed = self._instance(), text
            raise LedgerError(text)
        return True

    def _keyed(self, rows: Any) -> tuple[np.ndarray, list[bytes]]:
        rows = np.asarray(rows)
        keys = row_keys(rows, self.endpoint, self._described)
        check = getattr(self.oracle, "check", None)
        if check:
            check(rows)
        return rows, keys

    def _asked(self, rows: np.ndarray, key: str, instance: str | None = None) -> Any:
        request = getattr(self.oracle, "request", None)
        if request:
            return request(rows, key) if instance is None else request(rows, key, instance)
        if isinstance(self.oracle, Oracle | ExplanationOracle):
            return jax.device_get(_traced(self.oracle, rows))
        return self.oracle(rows)

    def _read(self, rows: Sequence[tuple[str, bytes]]) -> Any:
        answers = decode_answers(rows)
        return Explained(*answers) if self.explanation is not None else answers

    def _checked(self, answers: Any, count: int) -> tuple[str, list[bytes]]:
        if isinstance(answers, dict):
            answers = {name: as_numbers(leaf, self.endpoint) for name, leaf in answers.items()}
        elif isinstance(answers, tuple):
            answers = tuple(as_numbers(leaf, self.endpoint) for leaf in answers)
        else:
            answers = as_numbers(answers, self.endpoint)
        if (
            self.explanation is not None
            and isinstance(self.reveal, Reveal)
            and self.num_classes is not None
        ):
            shape = tuple(self.oracle.input_shape)  # type: ignore[attr-defined]
            check_explained(answers, count, self.num_classes, shape, self.reveal, self.explanation)
        elif (
            isinstance(self.reveal, Reveal)
            and self.num_classes is not None
            and not isinstance(answers, tuple | dict)
        ):
            check_answers(answers, count, self.num_classes, self.reveal)
        return encode_answers(answers, count)

    def _name(self, purpose: str, keys: Sequence[bytes]) -> str:
        """The same for the same rows asked for the same purpose on behalf of the same ledger, and
        for nothing else.
        """
        return hashlib.sha256(f"{self.ledger.id} {purpose} ".encode() + b"".join(keys)).hexdigest()


def _differing(before: Any, now: Any, unit: float) -> int:
    """Rows of two sets of answers that differ by more than rounding.

    Numbers may differ by 1e-4 of the largest (at least of 1), for sums that are taken in another
    order, and by a unit of the last decimal; labels not at all.
    """
    if jax.tree.structure(before) != jax.tree.structure(now):
        return len(jax.tree.leaves(before)[0])
    rows: Any = False
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(now), strict=True):
        if old.shape != new.shape:
            return len(old)
        if old.dtype.kind in "iub":
            apart = old != new
        else:
            old, new = np.asarray(old, np.float64), np.asarray(new, np.float64)
            apart = (
                np.abs(old - new) > 1e-4 * max(1.0, float(np.abs(old).max(initial=0))) + 1.01 * unit
            )
        rows = rows | apart.reshape(len(old), -1).any(1)
    return int(np.sum(rows))


@jax.jit
def _traced(oracle: Oracle | ExplanationOracle, rows: Any) -> Any:
    return oracle(rows)


def describe_reveal(reveal: Reveal | str) -> str:
    """One text for one kind of answer, as it stands in a ledger."""
    return (
        json.dumps(dataclasses.asdict(reveal), sort_keys=True)
        if isinstance(reveal, Reveal)
        else reveal
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


__all__ = ["Metered", "concurrently", "describe_reveal"]
