"""The journal: which runs are under way and which steps are done, so that a crash loses nothing.

SQLite in WAL mode with synchronous=NORMAL: a commit survives the death of the process, and a power
cut can lose the last commits but never damage the file (sqlite.org/wal.html). A run's content is
erased when the run ends; its result is kept for a while. Without a state directory the journal is
in memory: everything works, but nothing is resumed after a crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from assistant.errors import AssistantError

_SCHEMA = """
CREATE TABLE runs (
  peer TEXT, client TEXT, run TEXT, request TEXT, workflow TEXT, digest TEXT,
  content TEXT, content_sha256 TEXT, state TEXT, outcome BLOB, attempts INTEGER, updated REAL,
  PRIMARY KEY (peer, client, run)
) WITHOUT ROWID;
CREATE TABLE steps (
  peer TEXT, client TEXT, run TEXT, name TEXT, output BLOB,
  PRIMARY KEY (peer, client, run, name),
  FOREIGN KEY (peer, client, run) REFERENCES runs ON DELETE CASCADE
) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
_PAGE = 4096


class Key(NamedTuple):
    """Names one run: the workload that brought it, its client, and the client's own name for it."""

    peer: str
    client: str
    run: str


class Order(msgspec.Struct, frozen=True):
    """What a run works on."""

    request: str
    workflow: str
    digest: str
    content: str


class Record(msgspec.Struct):
    """What is known of a run that begins: its final outcome, or the outputs of finished steps."""

    outcome: bytes | None
    outputs: dict[str, object]


class JournalError(AssistantError):
    """The journal cannot be written or read."""


class Journal:
    """Runs and steps in one SQLite file, used from one thread."""

    def __init__(
        self,
        path: str = ":memory:",
        *,
        size_max: int = 64 << 20,
        keep: int = 256,
        keep_seconds: float = 86400.0,
        attempts: int = 3,
    ) -> None:
        """`size_max` in bytes bounds the file; at most `keep` results stay, `keep_seconds` long.

        Raises JournalError.
        """
        self._keep, self._keep_seconds, self._attempts = keep, keep_seconds, attempts
        self._stale: set[Key] = set()
        try:
            self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None)
            for pragma in (
                f"page_size = {_PAGE}",
                "journal_mode = WAL",
                "synchronous = NORMAL",
                "secure_delete = ON",
                "foreign_keys = ON",
                "cache_size = -512",
                f"max_page_count = {size_max // _PAGE}",
                f"journal_size_limit = {1 << 20}",
            ):
                self._db.execute(f"PRAGMA {pragma}")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")
            elif version != 1:
                raise JournalError(
                    "journal_version", f"{path} has version {version}, not 1", status=500
                )
        except sqlite3.Error as error:
            raise _failed(error) from error

    def begin(self, key: Key, order: Order) -> Record:
        """Record that a run starts, or find what is known of it.

        Asked again with other content or another workflow it raises `run_conflict` (409). A run
        that failed before starts again at its first unfinished step. Raises JournalError.
        """
        digest = hashlib.sha256(order.content.encode()).hexdigest()
        with self._transaction() as db:
            for stale in list(self._stale):
                db.execute("DELETE FROM runs WHERE peer=? AND client=? AND run=?", stale)
            self._expire(db)
            query = (
                "SELECT workflow, digest, content_sha256, state, outcome FROM runs"
                " WHERE peer=? AND client=? AND run=?"
            )
            found = db.execute(query, key).fetchone()
            if found is None:
                db.execute(
                    "INSERT INTO runs VALUES (?,?,?,?,?,?,?,?,'running',NULL,1,?)",
                    (
                        *key,
                        order.request,
                        order.workflow,
                        order.digest,
                        order.content,
                        digest,
                        _now(),
                    ),
                )
            elif found[0] != order.workflow or found[2] != digest:
                raise AssistantError(
                    "run_conflict",
                    "this `run` is another message's",
                    "choose another name",
                    status=409,
                )
            elif found[3] == "done":
                return Record(found[4], {})
            else:
                if found[1] != order.digest:  # an edited workflow cannot use its old outputs
                    db.execute("DELETE FROM steps WHERE peer=? AND client=? AND run=?", key)
                db.execute(
                    "UPDATE runs SET state = 'running', content = ?, digest = ?, updated = ?,"
                    " attempts = attempts + 1 WHERE peer=? AND client=? AND run=?",
                    (order.content, order.digest, _now(), *key),
                )
            rows = db.execute(
                "SELECT name, output FROM steps WHERE peer=? AND client=? AND run=?", key
            ).fetchall()
        self._stale.clear()
        return Record(None, {name: msgspec.json.decode(output) for name, output in rows})

    def step(self, key: Key, name: str, output: object) -> None:
        """Record a finished step. Raises JournalError."""
        with self._transaction() as db:
            row = (*key, name, msgspec.json.encode(output))
            db.execute("INSERT OR REPLACE INTO steps VALUES (?,?,?,?,?)", row)

    def finish(self, key: Key, outcome: bytes | None) -> None:
        """Record the result (None: it failed and may be tried again) and erase the content.

        Never raises: a run that could not be closed is forgotten at the next chance.
        """
        state = "failed" if outcome is None else "done"
        try:
            with self._transaction() as db:
                db.execute(
                    "UPDATE runs SET state = ?, outcome = ?, content = '', updated = ?"
                    " WHERE peer=? AND client=? AND run=?",
                    (state, outcome, _now(), *key),
                )
                if outcome is not None:
                    db.execute("DELETE FROM steps WHERE peer=? AND client=? AND run=?", key)
        except JournalError:
            self._stale.add(key)
        self._truncate()

    def forget(self, key: Key) -> None:
        """Erase a run that nobody wants any more. Never raises."""
        try:
            with self._transaction() as db:
                db.execute("DELETE FROM runs WHERE peer=? AND client=? AND run=?", key)
        except JournalError:
            self._stale.add(key)
        self._truncate()

    def release(self, key: Key) -> None:
        """Leave a run to be resumed after an orderly stop, which does not count as an attempt."""
        with contextlib.suppress(JournalError), self._transaction() as db:
            db.execute(
                "UPDATE runs SET attempts = attempts - 1 WHERE peer=? AND client=? AND run=?", key
            )

    def unfinished(self) -> list[tuple[Key, Order]]:
        """The runs that a crash interrupted; one that was tried too often is closed instead.

        Raises JournalError.
        """
        with self._transaction() as db:
            db.execute(
                "UPDATE runs SET state = 'failed', content = '' WHERE state = 'running'"
                " AND attempts >= ?",
                (self._attempts,),
            )
            rows = db.execute(
                "SELECT peer, client, run, request, workflow, digest, content FROM runs"
                " WHERE state = 'running' ORDER BY updated"
            ).fetchall()
        return [(Key(*row[:3]), Order(*row[3:])) for row in rows]

    def close(self) -> None:
        """Close the file; what is unfinished stays in it."""
        self._db.close()

    def _expire(self, db: sqlite3.Connection) -> None:
        db.execute(
            "DELETE FROM runs WHERE state <> 'running' AND updated < ?",
            (_now() - self._keep_seconds,),
        )
        db.execute(
            "DELETE FROM runs WHERE (peer, client, run) IN (SELECT peer, client, run FROM runs"
            " WHERE state <> 'running' ORDER BY updated DESC LIMIT -1 OFFSET ?)",
            (self._keep,),
        )

    def _truncate(self) -> None:
        """Empty the write-ahead log once nothing is running: it still holds erased content."""
        with contextlib.suppress(sqlite3.Error):
            if not self._db.execute(
                "SELECT 1 FROM runs WHERE state = 'running' LIMIT 1"
            ).fetchone():
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing of it."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _failed(error) from error


def _failed(error: sqlite3.Error) -> JournalError:
    if getattr(error, "sqlite_errorname", "").startswith("SQLITE_FULL"):
        return JournalError(
            "state_full",
            "the executor's state directory is full",
            "free space and send again",
            status=507,
        )
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return JournalError(
        "journal_failed",
        f"the executor's journal failed ({name})",
        "see its state directory",
        status=500,
    )


def _now() -> float:
    return time.time()
