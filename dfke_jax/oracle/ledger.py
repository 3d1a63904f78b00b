"""The query ledger: what was asked of a victim, what it answered, and how much of the budget that took.

One row sent and answered is one query, whatever the batching. The budget is checked before anything is sent. A file
holds every answer, so that a run that was killed goes through the same questions again without paying for one of them.
"""

import contextlib
import os
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from dfke_jax.core.errors import BudgetError, InputError, LedgerError

_APPLICATION = 0x64666B65
_VERSION = 1
_METERS = (
    "rows",
    "unique_rows",
    "unknown_rows",
    "fused_rows",
    "requests",
    "explanation_rows",
    "cache_hits",
    "evaluation_rows",
)
_SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE meters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "CREATE TABLE layouts (id INTEGER PRIMARY KEY, layout TEXT UNIQUE NOT NULL)",
    "CREATE TABLE answers (key BLOB PRIMARY KEY, layout INTEGER NOT NULL, data BLOB NOT NULL)",
    "CREATE TABLE requests (id INTEGER PRIMARY KEY, state TEXT NOT NULL, count INTEGER NOT NULL, "
    "explained INTEGER NOT NULL, keys BLOB NOT NULL)",
    "CREATE INDEX open_requests ON requests (id) WHERE state = 'sent'",
    "CREATE TABLE blocks (name TEXT PRIMARY KEY, count INTEGER NOT NULL)",
    "CREATE TRIGGER answers_stay BEFORE UPDATE ON answers BEGIN SELECT RAISE(ABORT, 'answers are only added'); END",
    "CREATE TRIGGER answers_last BEFORE DELETE ON answers BEGIN SELECT RAISE(ABORT, 'answers are only added'); END",
)
_KEY_BYTES = 32
_LOOKUP = 500


class Ledger:
    """Counts, budget and answers of one run against one endpoint; in memory, or in an SQLite file.

    Every request is entered before it is sent, as of unknown outcome, and counts against the budget from then on. Its
    answers turn it into rows; a certain failure takes it out again. A process that is killed in between leaves it as it
    is: the budget is never exceeded, at the price of rows that may not have been charged.

    A victim that is fused into a compiled program cannot be looked up row by row. There the caller checks before and
    records after::

        rows = rows_per_step("dfme", batch=256, generator_steps=1, directions=1, clone_steps=5)
        ledger.reserve(steps * rows, block="dfme/seed0")  # BudgetError before anything runs
        state = run(...)
        ledger.charge(steps * rows, block="dfme/seed0")  # or after every chunk: steps so far * rows

    A block's number is its total so far, so a run that is resumed from a checkpoint, and computes the same rows again,
    says the same numbers again and is charged once. Without a block every call counts anew.

    Threads may share it, and processes its file, under one budget; of two processes that ask the same row at the same
    moment, both pay. `turn` is held by whoever asks, so that threads of one process do not.

    Args:
      path: of the file, on a local disk, created if absent; None keeps everything in memory.
      budget: rows that may be spent; None for no limit. It is no part of the file, so that a run may go on with more.
      config: fingerprint of the run; a file that was written under another one is refused.

    Raises:
      InputError: for a negative budget.
      LedgerError: when the file cannot be written, is none of these, or belongs to another configuration.
    """

    def __init__(self, path: str | os.PathLike | None = None, *, budget: int | None = None, config: str = ""):
        if budget is not None and budget < 0:
            raise InputError(f"budget must be at least 0 rows or None, got {budget}")
        self.path = None if path is None else os.fspath(path)
        self.budget = budget
        self._held = 0
        self._lock = threading.RLock()
        self.turn = threading.Lock()
        try:
            self._database = sqlite3.connect(
                self.path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise LedgerError(f"cannot open the ledger {self.path}: {error}") from error
        self._shut = weakref.finalize(self, self._database.close)  # for ledgers that nobody closes, too
        try:
            self._prepare()
            self._fix("config", config, "this run's configuration")
            self.id = self._fact("id")
        except BaseException:
            self._shut()
            raise

    def _prepare(self) -> None:
        try:
            known = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
            if known == (0, 0) and not self._one("SELECT count(*) FROM sqlite_master"):
                self._database.execute("PRAGMA journal_mode = WAL")
            elif known != (_APPLICATION, _VERSION):
                raise LedgerError(
                    f"{self.path} is an SQLite file but no ledger of this version; choose another path for the ledger"
                )
            self._database.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                if self._one("PRAGMA application_id"):
                    return
                for statement in _SCHEMA:
                    self._database.execute(statement)
                self._database.executemany("INSERT INTO meters VALUES (?, 0)", [(name,) for name in _METERS])
                self._database.execute("INSERT INTO facts VALUES ('id', ?)", (uuid.uuid4().hex,))
                self._database.execute(f"PRAGMA application_id = {_APPLICATION}")
                self._database.execute(f"PRAGMA user_version = {_VERSION}")
        except sqlite3.Error as error:
            raise LedgerError(f"cannot use {self.path} as a ledger: {error}; choose another path") from error

    # ---- what it holds

    def counts(self) -> dict[str, int | None]:
        """The meters, for ``result.json``.

        ``budget``; ``rows`` sent and answered; ``unique_rows``, how many of them differ (None when a fused victim was
        charged, whose rows nobody looked at); ``unknown_rows``, sent with unknown outcome; ``requests``;
        ``explanation_rows``, those of `rows` that were answered with an explanation; ``cache_hits``, rows answered from
        the ledger; ``evaluation_rows``, asked to measure and never to learn, outside the budget.
        """
        with self._locked():
            meters = self._meters()
        counts: dict[str, int | None] = {name: meters[name] for name in _METERS if name != "fused_rows"}
        if meters["fused_rows"]:
            counts["unique_rows"] = None
        return {"budget": self.budget, **counts}

    @property
    def spent(self) -> int:
        """Rows that count against the budget: answered, and of unknown outcome."""
        with self._locked():
            meters = self._meters()
        return meters["rows"] + meters["unknown_rows"]

    @property
    def remaining(self) -> int | None:
        """Rows that may still be asked, without those that are reserved; None without a budget."""
        return None if self.budget is None else max(self.budget - self.spent - self._held, 0)

    def check(self, rows: int) -> None:
        """Whether so many more rows may be asked.

        Raises:
          BudgetError: when they may not.
        """
        with self._locked():
            spent = self.spent + self._held
            if self.budget is not None and spent + rows > self.budget:
                meters = self._meters()
                parts = [
                    f"{count} {what}"
                    for count, what in ((meters["unknown_rows"], "of unknown outcome"), (self._held, "reserved"))
                    if count
                ]
                raise BudgetError(rows, spent, self.budget, f" ({', '.join(parts)})" if parts else "")

    def bind(self, endpoint: str, reveal: str) -> None:
        """Ties the ledger to one endpoint and what it reveals; the first call decides.

        Raises:
          LedgerError: when it is tied to another.
        """
        self._fix("endpoint", endpoint, "this endpoint")
        self._fix("reveal", reveal, "this kind of answer")

    # ---- victims in a compiled program

    def reserve(self, rows: int, *, block: str | None = None) -> None:
        """Checks that so many rows fit, and holds them for this process until they are charged or released.

        Args:
          rows: how many; with `block`, how many that block may come to, those already charged to it included.

        Raises:
          BudgetError: when they do not fit.
        """
        _count(rows)
        with self._locked():
            rows = max(rows - self._charged(block), 0)
            self.check(rows)
            self._held += rows

    def charge(self, rows: int, *, block: str | None = None, explained: bool = False) -> None:
        """Records rows that a fused victim has answered, out of those reserved.

        Args:
          rows: how many; with `block`, how many that block has come to: what was charged to it before is not again.
          explained: whether they were answered with an explanation.

        Raises:
          BudgetError: when they were neither reserved nor fit; they are recorded nevertheless, since they were asked.
        """
        _count(rows)
        with self._transaction():
            rows = max(rows - self._charged(block), 0)
            if block is not None:
                self._database.execute(
                    "INSERT INTO blocks VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET count = count + excluded.count",
                    (block, rows),
                )
            self._add(rows=rows, fused_rows=rows, explanation_rows=rows * explained)
        self._held -= min(rows, self._held)
        self.check(0)

    def _charged(self, block: str | None) -> int:
        found = self._database.execute("SELECT count FROM blocks WHERE name = ?", (block,)).fetchone()
        return found[0] if found else 0

    def release(self) -> None:
        """Gives back what is reserved and not charged: the run ended early."""
        with self._locked():
            self._held = 0

    def evaluated(self, rows: int) -> None:
        """Records rows that were asked to measure a clone; they are outside the budget."""
        with self._transaction():
            self._add(evaluation_rows=_count(rows))

    # ---- victims on the host or behind a network

    def lookup(self, keys: Sequence[bytes]) -> dict[bytes, tuple[str, bytes]]:
        """Key -> (layout, bytes) of those rows that were answered; see `codec.encode_answers`."""
        found = {}
        with self._locked():
            for start in range(0, len(keys), _LOOKUP):
                part = list(keys[start : start + _LOOKUP])
                marks = ",".join("?" * len(part))
                query = (
                    "SELECT a.key, l.layout, a.data FROM answers a JOIN layouts l ON l.id = a.layout "
                    f"WHERE a.key IN ({marks})"
                )
                found.update((key, (layout, data)) for key, layout, data in self._database.execute(query, part))
        return found

    def hit(self, rows: int) -> None:
        """Records rows that were answered from the ledger."""
        if rows:
            with self._transaction():
                self._add(cache_hits=rows)

    def open_requests(self) -> list[tuple[int, tuple[bytes, ...]]]:
        """(number, keys of the rows) of the requests whose outcome is unknown and that may be sent again."""
        with self._locked():
            found = self._database.execute(
                "SELECT id, keys FROM requests WHERE state = 'sent' AND keys != x'' ORDER BY id"
            ).fetchall()
        return [
            (number, tuple(keys[i : i + _KEY_BYTES] for i in range(0, len(keys), _KEY_BYTES))) for number, keys in found
        ]

    def begin(self, keys: Sequence[bytes], *, explained: bool = False, single: bool = False) -> int:
        """Enters a request that is about to be sent, as of unknown outcome.

        Args:
          keys: of its rows. explained: whether they are answered with an explanation.
          single: whether it must not be sent again should its outcome stay unknown: `open_requests` leaves it out.

        Returns:
          Its number, for `settle` or `withdraw`.

        Raises:
          BudgetError: when its rows do not fit; nothing is entered, and nothing may be sent.
        """
        with self._transaction():
            self.check(len(keys))
            self._add(unknown_rows=len(keys), requests=1)
            made = self._database.execute(
                "INSERT INTO requests (state, count, explained, keys) VALUES ('sent', ?, ?, ?)",
                (len(keys), int(explained), b"" if single else b"".join(keys)),
            )
            assert made.lastrowid is not None
            return made.lastrowid

    def settle(self, number: int, keys: Sequence[bytes], layout: str, rows: Sequence[bytes]) -> None:
        """Enters the answers of a request, all of them or none; `rows` may be empty when they are not to be kept."""
        with self._transaction():
            count, explained = self._close(number, "answered")
            self._add(rows=count, explanation_rows=count * explained)
            if not rows:
                return
            self._database.execute("INSERT OR IGNORE INTO layouts (layout) VALUES (?)", (layout,))
            (place,) = self._database.execute("SELECT id FROM layouts WHERE layout = ?", (layout,)).fetchone()
            added = self._database.executemany(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?)",
                [(key, place, row) for key, row in zip(keys, rows, strict=True)],
            )
            self._add(unique_rows=added.rowcount)

    def withdraw(self, number: int) -> None:
        """Takes a request out that was certainly not answered: it costs nothing."""
        with self._transaction():
            if self._close(number, "withdrawn")[0]:
                self._add(requests=-1)

    def _close(self, number: int, state: str) -> tuple[int, int]:
        """Marks a request; what another process closed before is not counted again, unless it now has its answers."""
        found = self._database.execute(
            "SELECT state, count, explained FROM requests WHERE id = ?", (number,)
        ).fetchone()
        if found is None:
            raise LedgerError(f"the ledger {self.path or 'in memory'} has no request {number}")
        was, count, explained = found
        if was in ("answered", state):
            return 0, 0
        self._database.execute("UPDATE requests SET state = ?, keys = x'' WHERE id = ?", (state, number))
        self._add(**({"unknown_rows": -count} if was == "sent" else {"requests": 1}))
        return count, explained

    # ---- plumbing

    def close(self) -> None:
        """Closes the file; a ledger in memory is gone."""
        with self._lock:
            self._shut()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise LedgerError(f"the ledger {self.path or 'in memory'} failed: {error}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._locked():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    def _one(self, query: str) -> Any:
        return self._database.execute(query).fetchone()[0]

    def _meters(self) -> dict[str, int]:
        return dict(self._database.execute("SELECT name, value FROM meters"))

    def _add(self, **amounts: int) -> None:
        self._database.executemany(
            "UPDATE meters SET value = value + ? WHERE name = ?", [(n, name) for name, n in amounts.items() if n]
        )

    def _fact(self, name: str) -> str | None:
        found = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return found[0] if found else None

    def _fix(self, name: str, value: str, what: str) -> None:
        with self._transaction():
            known = self._fact(name)
            if known is None:
                self._database.execute("INSERT INTO facts VALUES (?, ?)", (name, value))
            elif known != value:
                raise LedgerError(
                    f"the ledger {self.path or 'in memory'} was written for the {name} {known!r} and {what} is "
                    f"{value!r}; use another ledger, or the old settings"
                )


def _count(rows: int) -> int:
    if rows < 0:
        raise InputError(f"a number of rows must be at least 0, got {rows}")
    return rows


__all__ = ["Ledger"]
