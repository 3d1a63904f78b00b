"""The query ledger: what was asked of a victim, what it answered, and how much of the budget that
took.

One row sent and answered is one query, whatever the batching. The budget is checked before anything
is sent. A file holds every answer, so that a run that was killed goes through the same questions
again without paying for one of them. What it holds carries checksums: a bit that flipped is an
error and never an answer or a count.
"""

import contextlib
import hashlib
import os
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from dfke_jax.core.errors import BudgetError, InputError, LedgerError

_APPLICATION = 0x64666B65
_VERSION = 3
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
    "CREATE TABLE answers (key BLOB PRIMARY KEY, layout INTEGER NOT NULL, data BLOB NOT NULL, "
    "checksum BLOB NOT NULL DEFAULT x'')",
    "CREATE TABLE requests (id INTEGER PRIMARY KEY, state TEXT NOT NULL, count INTEGER NOT NULL, "
    "explained INTEGER NOT NULL, keys BLOB NOT NULL, instance TEXT NOT NULL DEFAULT '', "
    "checksum BLOB NOT NULL DEFAULT x'')",
    "CREATE INDEX open_requests ON requests (id) WHERE state = 'sent'",
    "CREATE TABLE blocks (name TEXT PRIMARY KEY, count INTEGER NOT NULL)",
)
_SAMPLES = (
    "CREATE TABLE samples (key BLOB PRIMARY KEY, kind TEXT NOT NULL, layout TEXT NOT NULL, data "
    "BLOB NOT NULL)"
)
_PHASES = (
    "CREATE TABLE phases (name TEXT PRIMARY KEY, count INTEGER NOT NULL, hits INTEGER NOT NULL)"
)
_GUARDS = (
    "CREATE TRIGGER answers_stay BEFORE UPDATE ON answers BEGIN SELECT RAISE(ABORT, 'answers are "
    "only added'); END",
    "CREATE TRIGGER answers_last BEFORE DELETE ON answers BEGIN SELECT RAISE(ABORT, 'answers are "
    "only added'); END",
)
_ADDED_IN_2 = (
    "DROP TRIGGER answers_stay",
    "ALTER TABLE answers ADD COLUMN checksum BLOB NOT NULL DEFAULT x''",
    "ALTER TABLE requests ADD COLUMN instance TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE requests ADD COLUMN checksum BLOB NOT NULL DEFAULT x''",
    "UPDATE answers SET checksum = checksum_of(key, (SELECT layout FROM layouts WHERE id = "
    "answers.layout), data)",
    "UPDATE requests SET checksum = checksum_of(count, explained, keys, instance) WHERE state = "
    "'sent'",
    _SAMPLES,
    _GUARDS[0],
)
# sqlite3 decodes what a damaged file says in its messages, too
_BROKEN = (sqlite3.Error, UnicodeDecodeError)
_SEALED = (
    "SELECT name, value FROM meters ORDER BY name",
    "SELECT name, count FROM blocks ORDER BY name",
    "SELECT name, value FROM facts WHERE name != 'seal' ORDER BY name",
    "SELECT name, count, hits FROM phases ORDER BY name",  # since version 3
)
_KEY_BYTES = 32
_LOOKUP = 500


class LedgerWarning(UserWarning):
    """Something about the endpoint behind a ledger could not be made sure of, or will be paid
    again.
    """


class Ledger:
    """Counts, budget and answers of one run against one endpoint; in memory, or in an SQLite file.

    Every request is entered before it is sent, as of unknown outcome, and counts against the budget
    from then on. Its answers turn it into rows; a certain failure takes it out again. A process
    that is killed in between leaves it as it is: the budget is never exceeded, at the price of rows
    that may not have been charged.

    Rows that are asked in a phase of an attack (see `Metered.phase`) are counted by its name as
    well, and stay part of all the other counts.

    A victim that is fused into a compiled program cannot be looked up row by row. There the caller
    checks before and records after::

        rows = rows_per_step("dfme", batch=256, generator_steps=1, directions=1, clone_steps=5)
        ledger.reserve(steps * rows, block="dfme/seed0")  # BudgetError before anything runs
        state = run(...)
        ledger.charge(steps * rows, block="dfme/seed0")  # or after every chunk: steps so far * rows

    A block's number is its total so far, so a run that is resumed from a checkpoint, and computes
    the same rows again, says the same numbers again and is charged once. Without a block every call
    counts anew.

    Every stored answer, open request and count carries a checksum (BLAKE2b, keyed with the ledger's
    id). The counts are checked against a recount of the requests on opening, and the structure of
    the file by SQLite; an answer is checked whenever it is looked up. A file of an earlier version
    is brought to this one when it is opened; where it has no checksums yet, it gets them.

    Threads may share it, and processes its file, under one budget; of two processes that ask the
    same row at the same moment, both pay. `turn` is held by whoever asks, so that threads of one
    process do not.

    Args:
      path: of the file, on a local disk, created if absent; None keeps everything in memory.
      budget: rows that may be spent; None for no limit. It is no part of the file, so that a run
        may go on with more.
      config: fingerprint of the run; a file that was written under another one is refused.

    Raises:
      InputError: for a negative budget.
      LedgerError: when the file cannot be written, is none of these, is damaged, or belongs to
        another configuration.
    """

    def __init__(
        self, path: str | os.PathLike | None = None, *, budget: int | None = None, config: str = ""
    ):
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
        # for ledgers that nobody closes, too
        self._shut = weakref.finalize(self, self._database.close)
        try:
            self._prepare()
            self._fix("config", config, "this run's configuration")
            with self._locked():
                self.inherited = self._one("SELECT count(*) FROM answers") > 0
        except BaseException:
            self._shut()
            raise

    def _prepare(self) -> None:
        try:
            known = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
            if known == (0, 0) and not self._one("SELECT count(*) FROM sqlite_master"):
                self._database.execute("PRAGMA journal_mode = WAL")
            elif known not in [(_APPLICATION, version) for version in range(1, _VERSION + 1)]:
                raise LedgerError(
                    f"{self.path} is an SQLite file but no ledger of this version; choose another "
                    "path for the ledger"
                )
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.create_function("checksum_of", -1, self._checksum, deterministic=True)
            with self._transaction(seal=False):
                version = self._one("PRAGMA user_version")  # another process may have been first
                if version == 0:
                    for statement in (*_SCHEMA, _SAMPLES, _PHASES, *_GUARDS):
                        self._database.execute(statement)
                    self._database.executemany(
                        "INSERT INTO meters VALUES (?, 0)", [(name,) for name in _METERS]
                    )
                    self._database.execute(
                        "INSERT INTO facts VALUES ('id', ?)", (uuid.uuid4().hex,)
                    )
                self.id = self._fact("id") or ""
                if version == 1:
                    for statement in _ADDED_IN_2:
                        self._database.execute(statement)
                if version == 2:
                    self._check_seal(_SEALED[:-1])  # before it is sealed anew
                if version in (1, 2):
                    self._database.execute(_PHASES)
                if version < _VERSION:
                    self._database.execute(f"PRAGMA application_id = {_APPLICATION}")
                    self._database.execute(f"PRAGMA user_version = {_VERSION}")
                    self._write_seal()
                self._audit()
        except _BROKEN as error:
            raise LedgerError(
                f"cannot use {self.path} as a ledger: {error}; choose another path"
            ) from error

    def _audit(self) -> None:
        """Whether the file is whole, its counts are those that were written, and agree with its
        requests.
        """
        state = self._one("PRAGMA integrity_check(1)")
        if state != "ok":
            raise self._damaged(f"SQLite says {state!r}")
        self._check_seal(_SEALED)
        meters = self._meters()
        totals = {
            state: (requests, rows)
            for state, requests, rows in self._database.execute(
                "SELECT state, count(*), sum(count) FROM requests GROUP BY state"
            )
        }
        answered, sent = totals.get("answered", (0, 0)), totals.get("sent", (0, 0))
        for name, counted in (
            ("rows", answered[1] + meters["fused_rows"]),
            ("unknown_rows", sent[1]),
            ("requests", answered[0] + sent[0]),
            ("unique_rows", self._one("SELECT count(*) FROM answers")),
        ):
            if meters[name] != counted:
                raise self._damaged(
                    f"it counts {meters[name]} {name}, and its requests and answers make {counted}"
                )

        for name, most in (("count", "rows"), ("hits", "cache_hits")):
            counted = self._one(f"SELECT coalesce(sum({name}), 0) FROM phases")
            if counted > meters[most]:
                raise self._damaged(f"its phases have {counted} {most} of {meters[most]}")

    def _check_seal(self, tables: Sequence[str]) -> None:
        if self._fact("seal") != self._seal(tables):
            raise self._damaged("its counts do not match their checksum")

    def _damaged(self, how: str) -> LedgerError:
        return LedgerError(
            f"the ledger {self.path or 'in memory'} is damaged: {how}; restore it from a copy"
        )

    def _checksum(self, *parts: str | int | bytes) -> bytes:
        """16 bytes of BLAKE2b over the parts and their lengths; of this ledger alone."""
        digest = hashlib.blake2b(digest_size=16, key=self.id.encode()[:64])
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.digest()

    def _seal(self, tables: Sequence[str]) -> str:
        """The checksum of everything that is counted."""
        return self._checksum(
            *(str(self._database.execute(table).fetchall()) for table in tables)
        ).hex()

    def _write_seal(self) -> None:
        self._database.execute(
            "INSERT INTO facts VALUES ('seal', ?) ON CONFLICT (name) DO UPDATE SET value = "
            "excluded.value",
            (self._seal(_SEALED),),
        )

    # ---- what it holds

    def counts(self) -> dict[str, int | None]:
        """The meters, for ``result.json``.

        ``budget``; ``rows`` sent and answered; ``unique_rows``, how many of them differ (None when
        a fused victim was charged, whose rows nobody looked at); ``unknown_rows``, sent with
        unknown outcome; ``requests``; ``explanation_rows``, those of `rows` that were answered with
        an explanation; ``cache_hits``, rows answered from the ledger; ``evaluation_rows``, asked to
        measure and never to learn, outside the budget.
        """
        with self._locked():
            meters = self._meters()
        counts: dict[str, int | None] = {
            name: meters[name] for name in _METERS if name != "fused_rows"
        }
        if meters["fused_rows"]:
            counts["unique_rows"] = None
        return {"budget": self.budget, **counts}

    def phases(self) -> dict[str, dict[str, int]]:
        """Phase -> ``rows`` sent and answered in it, and ``cache_hits``; see `Metered.phase`."""
        with self._locked():
            found = self._database.execute(
                "SELECT name, count, hits FROM phases ORDER BY name"
            ).fetchall()
        return {name: {"rows": rows, "cache_hits": hits} for name, rows, hits in found}

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
                    for count, what in (
                        (meters["unknown_rows"], "of unknown outcome"),
                        (self._held, "reserved"),
                    )
                    if count
                ]
                raise BudgetError(
                    rows, spent, self.budget, f" ({', '.join(parts)})" if parts else ""
                )

    def bind(self, endpoint: str, reveal: str) -> None:
        """Ties the ledger to one endpoint and what it reveals; the first call decides.

        Raises:
          LedgerError: when it is tied to another.
        """
        self._fix("endpoint", endpoint, "this endpoint")
        self._fix("reveal", reveal, "this kind of answer")

    # ---- victims in a compiled program

    def reserve(self, rows: int, *, block: str | None = None) -> None:
        """Checks that so many rows fit, and holds them for this process until they are charged or
        released.

        Args:
          rows: how many; with `block`, how many that block may come to, those already charged to it
            included.

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
          rows: how many; with `block`, how many that block has come to: what was charged to it
            before is not again.
          explained: whether they were answered with an explanation.

        Raises:
          BudgetError: when they were neither reserved nor fit; they are recorded nevertheless,
            since they were asked.
        """
        _count(rows)
        with self._transaction():
            rows = max(rows - self._charged(block), 0)
            if block is not None:
                self._database.execute(
                    "INSERT INTO blocks VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET count = "
                    "count + excluded.count",
                    (block, rows),
                )
            self._add(rows=rows, fused_rows=rows, explanation_rows=rows * explained)
        self._held -= min(rows, self._held)
        self.check(0)

    @contextlib.contextmanager
    def paying(self, rows: int, *, explained: bool = False) -> Iterator[None]:
        """Reserves rows before a block that has a fused victim answer them, and charges them when
        it is through.

        Where the block fails they stay reserved: nobody knows how many of them were answered.

        Args:
          rows: how many the block asks. explained: whether they are answered with an explanation.

        Raises:
          BudgetError: before the block is entered, when they do not fit.
        """
        self.reserve(rows)
        yield
        self.charge(rows, explained=explained)

    def _charged(self, block: str | None) -> int:
        found = self._database.execute(
            "SELECT count FROM blocks WHERE name = ?", (block,)
        ).fetchone()
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
        """Key -> (layout, bytes) of those rows that were answered; see `codec.encode_answers`.

        Raises:
          LedgerError: when one of them is not what was stored.
        """
        found = {}
        with self._locked():
            for start in range(0, len(keys), _LOOKUP):
                part = list(keys[start : start + _LOOKUP])
                marks = ",".join("?" * len(part))
                query = (
                    "SELECT a.key, l.layout, a.data, a.checksum FROM answers a "
                    f"LEFT JOIN layouts l ON l.id = a.layout WHERE a.key IN ({marks})"
                )
                for key, layout, data, checksum in self._database.execute(query, part).fetchall():
                    if checksum != self._checksum(key, layout or "", data):
                        raise self._damaged(
                            f"the stored answer to row {key.hex()[:16]} does not match its checksum"
                        )
                    found[key] = layout, data
        return found

    def hit(self, rows: int, *, phase: str | None = None) -> None:
        """Records rows that were answered from the ledger, in a phase of the attack."""
        if rows:
            with self._transaction():
                self._add(cache_hits=rows)
                self._add_to(phase, hits=rows)

    def open_requests(self) -> list[tuple[int, tuple[bytes, ...]]]:
        """(number, keys of the rows) of the requests whose outcome is unknown and that may be sent
        again.

        Raises:
          LedgerError: when one of them is not what was entered.
        """
        with self._locked():
            found = self._database.execute(
                "SELECT id, count, explained, keys, instance, checksum FROM requests "
                "WHERE state = 'sent' AND keys != x'' ORDER BY id"
            ).fetchall()
        for number, *parts, checksum in found:
            if checksum != self._checksum(*parts):
                raise self._damaged(f"the open request {number} does not match its checksum")
        return [
            (number, tuple(keys[i : i + _KEY_BYTES] for i in range(0, len(keys), _KEY_BYTES)))
            for number, _, _, keys, _, _ in found
        ]

    def instance_of(self, number: int) -> str:
        """The instance of the endpoint that a request was sent to; empty where the endpoint names
        none.
        """
        with self._locked():
            found = self._database.execute(
                "SELECT instance FROM requests WHERE id = ?", (number,)
            ).fetchone()
        if found is None:
            raise LedgerError(f"the ledger {self.path or 'in memory'} has no request {number}")
        return found[0]

    def begin(
        self,
        keys: Sequence[bytes],
        *,
        explained: bool = False,
        single: bool = False,
        instance: str | None = None,
    ) -> int:
        """Enters a request that is about to be sent, as of unknown outcome.

        Args:
          keys: of its rows. explained: whether they are answered with an explanation.
          single: whether it must not be sent again should its outcome stay unknown: `open_requests`
            leaves it out.
          instance: of the endpoint that it goes to. What one has answered another does not know.

        Returns:
          Its number, for `settle`, `withdraw` or `give_up`.

        Raises:
          BudgetError: when its rows do not fit; nothing is entered, and nothing may be sent.
        """
        with self._transaction():
            self.check(len(keys))
            self._add(unknown_rows=len(keys), requests=1)
            entry = (len(keys), int(explained), b"" if single else b"".join(keys), instance or "")
            made = self._database.execute(
                "INSERT INTO requests (state, count, explained, keys, instance, checksum) "
                "VALUES ('sent', ?, ?, ?, ?, ?)",
                (*entry, self._checksum(*entry)),
            ).lastrowid
            assert made is not None
            return made

    def settle(
        self,
        number: int,
        keys: Sequence[bytes],
        layout: str,
        rows: Sequence[bytes],
        *,
        phase: str | None = None,
    ) -> None:
        """Enters the answers of a request, all of them or none.

        Args:
          number: of `begin`. keys: of its rows. layout, rows: see `codec.encode_answers`; `rows`
            may be empty when they are not to be kept.
          phase: of the attack, in which its rows are counted.
        """
        with self._transaction():
            count, explained = self._close(number, "answered")
            self._add(rows=count, explanation_rows=count * explained)
            self._add_to(phase, rows=count)
            if not rows:
                return
            self._database.execute("INSERT OR IGNORE INTO layouts (layout) VALUES (?)", (layout,))
            (place,) = self._database.execute(
                "SELECT id FROM layouts WHERE layout = ?", (layout,)
            ).fetchone()
            entries = [
                (key, place, row, self._checksum(key, layout, row))
                for key, row in zip(keys, rows, strict=True)
            ]
            # the cursor must not outlive the lock: freed, it resets the statement that it shares
            # with whoever holds the lock by then
            added = self._database.executemany(
                "INSERT OR IGNORE INTO answers (key, layout, data, checksum) VALUES (?, ?, ?, ?)",
                entries,
            ).rowcount
            self._add(unique_rows=added)

    def withdraw(self, number: int) -> None:
        """Takes a request out that was certainly not answered: it costs nothing."""
        with self._transaction():
            if self._close(number, "withdrawn")[0]:
                self._add(requests=-1)

    def give_up(self, number: int) -> None:
        """Leaves a request of unknown outcome for good: it goes on counting and is not sent again."""
        with self._transaction():
            self._database.execute(
                "UPDATE requests SET keys = x'' WHERE id = ? AND state = 'sent'", (number,)
            )

    # ---- whether the endpoint is still the same

    @property
    def instance(self) -> str | None:
        """The instance of the endpoint that was last found to answer as before; None where it names
        none.
        """
        with self._locked():
            return self._fact("instance")

    def meet(self, instance: str) -> None:
        """Records the instance of the endpoint that answers from now on."""
        with self._transaction():
            self._database.execute(
                "INSERT INTO facts VALUES ('instance', ?) ON CONFLICT (name) DO UPDATE SET value = "
                "excluded.value",
                (instance,),
            )

    def samples(self, kind: str) -> dict[bytes, tuple[str, bytes]]:
        """Key -> (layout, bytes) of rows that were kept with their answers to be asked again; of
        one kind of answer.
        """
        with self._locked():
            found = self._database.execute(
                "SELECT key, layout, data FROM samples WHERE kind = ?", (kind,)
            ).fetchall()
        return {key: (layout, data) for key, layout, data in found}

    def keep_samples(self, kind: str, rows: dict[bytes, tuple[str, bytes]]) -> None:
        """Keeps rows, as of `samples`."""
        with self._transaction():
            self._database.executemany(
                "INSERT OR IGNORE INTO samples (key, kind, layout, data) VALUES (?, ?, ?, ?)",
                [(key, kind, layout, data) for key, (layout, data) in rows.items()],
            )

    # ---- plumbing

    def _close(self, number: int, state: str) -> tuple[int, int]:
        """Marks a request; what another process closed before is not counted again, unless it now
        has its answers.
        """
        found = self._database.execute(
            "SELECT state, count, explained FROM requests WHERE id = ?", (number,)
        ).fetchone()
        if found is None:
            raise LedgerError(f"the ledger {self.path or 'in memory'} has no request {number}")
        was, count, explained = found
        if was in ("answered", state):
            return 0, 0
        self._database.execute(
            "UPDATE requests SET state = ?, keys = x'' WHERE id = ?", (state, number)
        )
        self._add(**({"unknown_rows": -count} if was == "sent" else {"requests": 1}))
        return count, explained

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
            except _BROKEN as error:
                raise LedgerError(
                    f"the ledger {self.path or 'in memory'} failed: {error}"
                ) from error

    @contextlib.contextmanager
    def _transaction(self, *, seal: bool = True) -> Iterator[None]:
        with self._locked():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                if seal:
                    self._write_seal()
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
            "UPDATE meters SET value = value + ? WHERE name = ?",
            [(n, name) for name, n in amounts.items() if n],
        )

    def _add_to(self, phase: str | None, *, rows: int = 0, hits: int = 0) -> None:
        if phase is not None and (rows or hits):
            self._database.execute(
                "INSERT INTO phases VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
                "count = count + excluded.count, hits = hits + excluded.hits",
                (phase, rows, hits),
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
                    f"the ledger {self.path or 'in memory'} was written for the {name} {known!r} "
                    f"and {what} is {value!r}; use another ledger, or the old settings"
                )


def _count(rows: int) -> int:
    if rows < 0:
        raise InputError(f"a number of rows must be at least 0, got {rows}")
    return rows


__all__ = ["Ledger", "LedgerWarning"]
