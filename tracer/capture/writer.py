"""Writes a capture while the trace runs: one transaction a flush, so a killed tracer loses one at most.

A rollback journal, not a WAL: between two flushes the capture is one file that anybody may copy or read, also
from a directory he cannot write.  A tracer killed in the middle of a commit leaves a journal beside it, which
the reader knows how to undo.  ``synchronous`` is off until the last flush: the tracer's death loses nothing
by it, and fsync on a failing host can stall a tracer for seconds.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from operator import attrgetter
from pathlib import Path
from tempfile import mktemp
from types import TracebackType
from typing import Any
from urllib.parse import quote

from tracer.capture.errors import CaptureError, CaptureExists
from tracer.capture.meta import Meta, to_rows
from tracer.capture.schema import APPLICATION_ID, TABLES, TASK_FIELDS, VERSION
from tracer.invoker import give_to_invoking_user
from tracer.lifecycle.snapshot import Snapshot
from tracer.lifecycle.task import Task
from tracer.trace import Frame, Library, Stack

BUSY_S = 0.1  # a reader may hold the file for so long before a flush is put off to the next
BUSY_LAST_S = 10.0  # and so long before the last one is given up

Row = tuple[Any, ...]
_task_row: Callable[[Task], Row] = attrgetter(*TASK_FIELDS)


class CaptureWriter:
    """One open capture file.  Raises CaptureExists for a file that is there, CaptureError for all else.

    After a CaptureError the writer is closed, the file holds the last flush that succeeded, and the trace can
    go on.
    Not thread-safe; may be handed from one thread to another.
    """

    def __init__(self, path: str | os.PathLike[str], meta: Meta, force: bool = False) -> None:
        self.path = Path(path)
        self.meta = meta
        self._unwritten: dict[int, Row] = {}
        self._new_stacks: dict[int, Stack] = {}
        self._libraries = _Numbering("libraries", 8)
        self._frames = _Numbering("frames", 8)
        self._mirrors = {
            "meta": _Mirror("meta", ("key",), 2),
            "totals": _Mirror("totals", ("name",), 2),
            "stack_counts": _Mirror("stack_counts", ("stack",), 8),
            "processes": _Mirror("processes", ("id",), 5),
            "facts": _Mirror("facts", ("process",), 2),
            "wait_places": _Mirror("wait_places", ("process", "stack"), 4),
            "failed_forks": _Mirror("failed_forks", ("stack", "errno", "thread"), 5),
            "latency": _Mirror("latency", ("bucket",), 2),
        }
        try:
            self._created = created = _create(self.path, force)
            self._db: sqlite3.Connection | None = _connect(self.path)
            if not os.path.samestat(created, self.path.lstat()):
                raise CaptureError(
                    f"{path} was replaced while it was opened", "name a file elsewhere with -o"
                )
            with _transaction(self._db):
                self._mirrors["meta"].write(
                    self._db, {(key,): (value,) for key, value in to_rows(meta).items()}
                )
        except (OSError, sqlite3.Error) as error:
            raise _failure(self.path, error) from None
        self._mirrors["meta"].accept()

    def flush(
        self,
        snapshot: Snapshot,
        changed: Iterable[Task],
        stacks: Iterable[Stack],
        final: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> bool:
        """Bring the file to ``snapshot`` in one transaction.

        changed: the tasks that were made or changed since the last flush.  stacks: those not given before (a
        known id replaces the stack).  extra: fields of Meta that have changed (lost_events, notes, limits,
        reconciliation...).
        False: a reader holds the file; nothing was written, all of it is kept for the next flush.
        """
        if self._db is None:
            raise CaptureError(
                f"the capture {self.path} is closed", "name a file that can be written with -o"
            )
        self._unwritten.update((task.id, _task_row(task)) for task in changed)
        self._new_stacks.update((stack.id, stack) for stack in stacks)
        self.meta = replace(
            self.meta,
            **(extra or {}),
            start_ns=snapshot.start_ns,
            end_ns=snapshot.end_ns,
            min_age_s=snapshot.min_age_ns / 1e9,
            finished=final,
        )
        try:
            if final:
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute(f"PRAGMA busy_timeout={int(BUSY_LAST_S * 1000)}")
            with _transaction(self._db):
                self._write(self._db, snapshot)
        except (sqlite3.Error, OverflowError) as error:
            self._libraries.forget()
            self._frames.forget()
            if not final and "locked" in str(error):
                return False
            self.close()
            raise _failure(self.path, error) from None
        self._unwritten.clear()
        self._new_stacks.clear()
        self._libraries.accept()
        self._frames.accept()
        for mirror in self._mirrors.values():
            mirror.accept()
        return True

    def close(self) -> None:
        """Idempotent.  Without a final flush the file says that the trace was not finished."""
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def discard(self) -> None:
        """The trace does not take place: the file goes, unless somebody has put another one in its place."""
        self.close()
        with suppress(OSError):
            if os.path.samestat(self._created, self.path.lstat()):
                self.path.unlink()

    def __enter__(self) -> CaptureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, db: sqlite3.Connection, snapshot: Snapshot) -> None:
        _write_tasks(db, self._unwritten)
        for stack in self._new_stacks.values():
            self._write_stack(db, stack)
        self._libraries.write(db)
        self._frames.write(db)
        latency = {(bucket,): (count,) for bucket, count in snapshot.latency.counts.items()}
        if snapshot.latency.total:
            latency[(-1,)] = (snapshot.latency.max_ns,)
        tables: Mapping[str, dict[Row, Row]] = {
            "meta": {(key,): (value,) for key, value in to_rows(self.meta).items()},
            "totals": {(name,): (count,) for name, count in snapshot.totals.items()},
            "stack_counts": {(stack,): astuple(counts) for stack, counts in snapshot.stacks.items()},
            "processes": {
                (p.id,): (_storable(p.comm), p.ns_pid, int(p.alive), p.reaped_others)
                for p in snapshot.processes.values()
            },
            "facts": {(each,): (json.dumps(asdict(facts)),) for each, facts in snapshot.facts.items()},
            "wait_places": {
                (each, place.stack): (place.target, place.options)
                for each, places in snapshot.wait_places.items()
                for place in places
            },
            "failed_forks": {
                (key.stack, key.errno, int(key.thread)): (count, _limit(snapshot.failed_limits.get(key)))
                for key, count in snapshot.failed.items()
            },
            "latency": latency,
        }
        for name, rows in tables.items():
            self._mirrors[name].write(db, rows)

    def _write_stack(self, db: sqlite3.Connection, stack: Stack) -> None:
        library = self._library
        blamed = library(stack.forked_by), library(stack.responsible)
        row = (stack.id, _storable(stack.cut), *blamed, int(stack.read_late))
        db.execute("INSERT OR REPLACE INTO stacks VALUES (?,?,?,?,?)", row)
        for table, numbers in (
            ("stack_frames", [self._frame(frame) for frame in stack.frames]),
            ("stack_libraries", [library(each) for each in stack.chain]),
        ):
            db.execute(f"DELETE FROM {table} WHERE stack=?", (stack.id,))  # noqa: S608 (the names above)
            rows = [(stack.id, position, number) for position, number in enumerate(numbers)]
            db.executemany(f"INSERT INTO {table} VALUES (?,?,?)", rows)  # noqa: S608

    def _library(self, library: Library | None) -> int | None:
        if library is None:
            return None
        texts = (library.kind, library.name, library.version, library.file)
        row = (*map(_storable, texts), library.line, _storable(library.function), _storable(library.build_id))
        return self._libraries.number(row)

    def _frame(self, frame: Frame) -> int:
        offset = frame.offset
        if (
            offset is not None and offset >= 1 << 63
        ):  # a pc in the vsyscall page: SQLite's integers are signed
            offset -= 1 << 64
        row = (
            _storable(frame.function),
            _storable(frame.file),
            frame.line,
            _storable(frame.module),
            _storable(frame.language),
            self._library(frame.library),
            offset,
        )
        return self._frames.number(row)


class _Numbering:
    """Rows that are written once and then known by a number."""

    def __init__(self, table: str, width: int) -> None:
        self._sql = f"INSERT INTO {table} VALUES ({','.join('?' * width)})"  # noqa: S608 (names of this file)
        self._numbers: dict[Row, int] = {}
        self._new: dict[Row, int] = {}

    def number(self, row: Row) -> int:
        known = self._numbers.get(row) or self._new.get(row)
        return known or self._new.setdefault(row, len(self._numbers) + len(self._new) + 1)

    def write(self, db: sqlite3.Connection) -> None:
        db.executemany(self._sql, [(number, *row) for row, number in self._new.items()])

    def accept(self) -> None:
        self._numbers.update(self._new)
        self._new = {}

    def forget(self) -> None:
        self._new = {}


class _Mirror:
    """A table that is kept equal to a dictionary; only the differences are written."""

    def __init__(self, table: str, keys: tuple[str, ...], width: int) -> None:
        where = " AND ".join(f"{key}=?" for key in keys)
        self._put = f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * width)})"  # noqa: S608 (names of this file)
        self._drop = f"DELETE FROM {table} WHERE {where}"  # noqa: S608
        self._written: dict[Row, Row] = {}
        self._latest: dict[Row, Row] = {}

    def write(self, db: sqlite3.Connection, rows: dict[Row, Row]) -> None:
        written = self._written
        db.executemany(self._put, [key + row for key, row in rows.items() if written.get(key) != row])
        db.executemany(self._drop, [key for key in written if key not in rows])
        self._latest = rows

    def accept(self) -> None:
        """The transaction was committed."""
        self._written = self._latest


class _transaction:  # noqa: N801 (reads as the statement it is)
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # SQLite has rolled back by itself after some errors
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")


def _write_tasks(db: sqlite3.Connection, rows: Mapping[int, Row]) -> None:
    sql = f"INSERT OR REPLACE INTO tasks VALUES ({','.join('?' * len(TASK_FIELDS))})"  # noqa: S608
    try:
        db.executemany(sql, rows.values())
    except UnicodeEncodeError:  # a comm that is no UTF-8; rare, so that the others pay nothing for it
        db.executemany(sql, [tuple(map(_storable, row)) for row in rows.values()])


def _storable(value: Any) -> Any:
    """A str that is no Unicode (stray bytes, as surrogates) becomes a blob, which the reader turns back."""
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-8", "surrogatepass")
    return value


def _create(path: Path, force: bool) -> os.stat_result:
    """Make the file with its empty tables.  What --force replaces stays until the new one is complete."""
    try:
        there: os.stat_result | None = path.lstat()
    except FileNotFoundError:
        there = None
    if there is not None and not stat.S_ISREG(there.st_mode):
        raise CaptureExists(f"{path} is there, and is no regular file", "name another file with -o")
    if there is not None and not force:
        raise CaptureExists(
            f"{path} is there already", "name another file with -o, or give --force to replace it"
        )
    # SQLite names the journal after the path, hence: make, close, rename, and only then open to stay.
    new = path if there is None else Path(mktemp(prefix=f".{path.name}.", dir=path.parent))  # noqa: S306 (opened O_EXCL)
    try:
        handle = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CaptureExists(
            f"{path} was made by somebody else just now", "name another file with -o"
        ) from None
    try:
        give_to_invoking_user(handle)
        created = os.fstat(handle)
    finally:
        os.close(handle)  # before SQLite opens it: closing it later would drop SQLite's locks
    try:
        _lay_out(new)
        if new != path:
            # A killed tracer's journal would be rolled back into the new file.
            with suppress(FileNotFoundError):
                path.with_name(path.name + "-journal").unlink()
            new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    return created


def _lay_out(path: Path) -> None:
    db = _connect(path)
    try:
        with _transaction(db):
            for statement in TABLES.values():
                db.execute(statement)
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={VERSION}")
    finally:
        db.close()


def _connect(path: Path) -> sqlite3.Connection:
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=rw"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
    for setting in (
        "journal_mode=DELETE",
        "synchronous=OFF",
        "cache_spill=OFF",  # the file is touched at COMMIT only
        "temp_store=MEMORY",
    ):
        db.execute(f"PRAGMA {setting}")
    return db


def _failure(path: Path, error: Exception) -> CaptureError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if "full" in reason or "space" in reason:
        remedy = "free some space, or name a file on another filesystem with -o"
    else:
        remedy = "name a file that can be written with -o"
    return CaptureError(f"cannot write the capture {path}: {reason}", remedy)


def _limit(limit: Mapping[str, Any] | None) -> str | None:
    return None if limit is None else json.dumps(dict(limit))
