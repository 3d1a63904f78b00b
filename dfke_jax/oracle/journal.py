"""What an endpoint must not forget when it is started anew: answered requests, and charges."""

import os
import sqlite3
import threading
import weakref
from collections.abc import Sequence

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.oracle.codec import arrays_from_npy, to_npy

_APPLICATION = 0x64666B6A
_VERSION = 1
_SCHEMA = (
    "CREATE TABLE instances (id TEXT PRIMARY KEY)",
    "CREATE TABLE charges (account TEXT PRIMARY KEY, rows INTEGER NOT NULL, requests INTEGER NOT "
    "NULL, explained INTEGER NOT NULL)",
    "CREATE TABLE answers (account TEXT NOT NULL, name TEXT NOT NULL, mark BLOB NOT NULL, parts "
    "INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (account, name)) WITHOUT ROWID",
)


class Journal:
    """Charges and answers of an endpoint in an SQLite file, written before an answer leaves.

    A request that was killed before it was entered was neither answered nor charged; one that was
    entered is answered from here, for nothing, by whatever instance of the endpoint comes next.
    Nothing is ever taken out.

    Args:
      path: of the file, on a local disk, created if absent. One process at a time uses it.
      timeout: seconds to wait for another one to end.

    Raises:
      InputError: when the file cannot be written, is no journal, or is in use.
    """

    def __init__(self, path: str | os.PathLike, *, timeout: float = 5.0):
        self.path = os.fspath(path)
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(
                self.path, timeout=timeout, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise InputError(f"cannot open the journal {self.path}: {error}") from error
        self._shut = weakref.finalize(self, self._database.close)
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._shut()
            raise InputError(
                f"cannot use {self.path} as a journal: {error}; it may be in use, or choose "
                "another path"
            ) from error
        except InputError:
            self._shut()
            raise

    def _prepare(self) -> None:
        known = tuple(
            self._database.execute(f"PRAGMA {what}").fetchone()[0]
            for what in ("application_id", "user_version")
        )
        empty = not self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if known != (_APPLICATION, _VERSION) and not (known == (0, 0) and empty):
            raise InputError(
                f"{self.path} is an SQLite file but no journal of this version; choose another path"
            )
        # a second endpoint would answer what this one has
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("BEGIN IMMEDIATE")
        if empty:
            for statement in _SCHEMA:
                self._database.execute(statement)
            self._database.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
        self._database.execute("COMMIT")

    def start(self, instance: str) -> None:
        """Enters an instance of the endpoint whose requests it will hold."""
        with self._lock:
            self._database.execute("INSERT INTO instances VALUES (?)", (instance,))

    def knows(self, instance: str) -> bool:
        """Whether everything that an instance answered is here."""
        with self._lock:
            return (
                self._database.execute(
                    "SELECT 1 FROM instances WHERE id = ?", (instance,)
                ).fetchone()
                is not None
            )

    def charges(self) -> dict[str, tuple[int, int, int]]:
        """Account -> (rows, requests, explained rows)."""
        with self._lock:
            found = self._database.execute(
                "SELECT account, rows, requests, explained FROM charges"
            ).fetchall()
        return {
            account: (rows, requests, explained) for account, rows, requests, explained in found
        }

    def find(self, account: str, name: str) -> tuple[bytes, tuple[np.ndarray, ...]] | None:
        """(mark of the request, answers) of a request that was answered; None for one that was not."""
        with self._lock:
            found = self._database.execute(
                "SELECT mark, parts, data FROM answers WHERE account = ? AND name = ?",
                (account, name),
            ).fetchone()
        return None if found is None else (found[0], tuple(arrays_from_npy(found[2], found[1])))

    def enter(
        self,
        account: str,
        rows: int,
        explained: bool,
        name: str | None,
        mark: bytes,
        answers: Sequence[np.ndarray],
    ) -> None:
        """Enters a charge and, for a request with a name, its answers; both or neither."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute(
                    "INSERT INTO charges VALUES (?, ?, 1, ?) ON CONFLICT (account) DO UPDATE SET "
                    "rows = rows + excluded.rows, requests = requests + 1, explained = explained + "
                    "excluded.explained",
                    (account, rows, rows * explained),
                )
                if name is not None:
                    data = b"".join(to_npy(part) for part in answers)
                    self._database.execute(
                        "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
                        (account, name, mark, len(answers), data),
                    )
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._shut()


__all__ = ["Journal"]
