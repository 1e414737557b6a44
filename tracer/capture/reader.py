"""Reads a capture back into the snapshot, stacks and meta that the live trace had at its last flush.

The file may come from anybody: it is opened read-only, its tables must be ours to the letter (so no view,
trigger or generated column runs), every value's type is checked, and nothing in it is executed or unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from tracer.capture.errors import CaptureError
from tracer.capture.meta import Meta, from_rows
from tracer.capture.schema import APPLICATION_ID, TABLES, TASK_FIELDS, UPGRADES, VERSION
from tracer.lifecycle.facts import NamedWait, ParentFacts, Waits
from tracer.lifecycle.snapshot import (
    FailedKey,
    Group,
    LatencyHistogram,
    Process,
    Snapshot,
    StackCounts,
    WaitPlace,
)
from tracer.lifecycle.task import Fate, Task
from tracer.trace import Frame, Library, Stack

MAX_VALUE = 1 << 24  # bytes of one value; longer ones are an error
MAX_FRAMES = 10_000  # of one stack
BUSY_S = 5.0

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class LoadedCapture:
    snapshot: Snapshot
    stacks: dict[int, Stack]
    meta: Meta


def load(path: str | os.PathLike[str], min_age_s: float | None = None) -> LoadedCapture:
    """The last flush of the capture.

    min_age_s: judge zombies by this age in seconds instead of the trace's own.
    A capture that was never finished gets a sentence in ``meta.incomplete_because``.  Raises CaptureError.
    """
    with _opened(path) as db:
        return _load(db, min_age_s)


def tasks(path: str | os.PathLike[str]) -> Iterator[Task]:
    """Every process of the capture, one after the other, in the order of their forks.  Raises CaptureError.

    As the file is now: while its trace goes on that is later than what ``load`` gave.
    """
    with _opened(path) as db:
        _check_tables(db)
        columns = ", ".join(_TASK_COLUMNS)
        for row in _rows(db, f"SELECT {columns} FROM tasks ORDER BY forked_ns, id", *_TASK_TYPES):  # noqa: S608
            yield _task(row)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """A transaction on the capture in today's layout.  What goes wrong in it becomes a CaptureError."""
    name = os.fspath(path)
    try:
        version = _check_header(Path(path))
        with _open(Path(path)) as file:
            db = _upgraded(file, version)
            db.execute("BEGIN")  # all of it from one flush
            yield db
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "run it as the file's owner" if isinstance(error, PermissionError) else "check the path"
        raise CaptureError(f"cannot read {name}: {reason}", remedy) from None
    except _NotACapture as error:
        raise CaptureError(f"{name} {error.args[0]}", error.args[1]) from None
    except (sqlite3.Error, _Damaged, ValueError, OverflowError) as error:
        if "locked" in str(error):
            raise CaptureError(f"{name} is being written just now", "try again") from None
        raise CaptureError(
            f"the capture {name} is damaged: {error}", "copy it again, or trace again"
        ) from None


class _NotACapture(Exception):
    """Arguments: what the file is, and what to do."""


class _Damaged(Exception):
    pass


def _check_header(path: Path) -> int:
    """The schema version, from the first 100 bytes and before SQLite sees the file (https://sqlite.org/fileformat.html)."""
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise _NotACapture("is a directory", "name a capture file (.forktrace)")
    if not stat.S_ISREG(found.st_mode):
        raise _NotACapture("is no regular file", "name a capture file (.forktrace)")
    if not found.st_size:
        raise _NotACapture("is empty: the tracer ended before its first flush", "trace again")
    with path.open("rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise _NotACapture("is not a forktrace capture", "forktrace -p PID -o FILE writes one")
    version: int
    application: int
    version, application = struct.unpack(">I4xI", header[60:72])
    if application != APPLICATION_ID:
        raise _NotACapture("is an SQLite file, but no capture", "forktrace -p PID -o FILE writes one")
    if version > VERSION:
        raise _NotACapture(f"has format {version}, this forktrace reads up to {VERSION}", "update forktrace")
    if header[18:20] != b"\1\1":  # a WAL database would make SQLite write beside it
        raise _NotACapture(
            "was turned into a WAL database", "sqlite3 FILE 'PRAGMA journal_mode=DELETE' undoes it"
        )
    return version


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """Read-only, and without a trace in the file's directory.

    A tracer that was killed in the middle of a commit has left a journal that must be rolled back, which
    takes write access; that is done on a private copy.
    """
    db = _connect(path, "ro")
    with closing(db):
        try:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
        else:
            yield db
            return
    journal = path.with_name(path.name + "-journal")
    with TemporaryDirectory(prefix="forktrace-") as directory:
        copy = Path(directory) / "capture"
        shutil.copyfile(path, copy)
        shutil.copyfile(journal, copy.with_name("capture-journal"))
        _check_journal(copy.with_name("capture-journal"))
        with closing(_connect(copy, "rw")) as db:
            yield db


def _check_journal(journal: Path) -> None:
    """Refuse one that names a super-journal: SQLite would open, and perhaps delete, the file of that name.

    A capture is never part of a transaction over several files, so no tracer writes such a journal.
    """
    with journal.open("rb") as file:
        file.seek(max(journal.stat().st_size - 8, 0))
        if file.read(8) == bytes.fromhex("d9d505f920a163d7"):
            raise _Damaged("its journal belongs to another program")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"file:{quote(os.fsencode(path.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=BUSY_S,
    )
    _harden(db)
    return db


def _harden(db: sqlite3.Connection) -> None:
    db.text_factory = lambda text: text.decode("utf-8", "replace")
    if sys.version_info >= (3, 11):
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
    for setting in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "temp_store=MEMORY"):
        db.execute(f"PRAGMA {setting}")


def _upgraded(db: sqlite3.Connection, version: int) -> sqlite3.Connection:
    """``db`` itself when it has today's layout, else a copy in memory, brought up step by step."""
    if version < VERSION:
        memory = sqlite3.connect(":memory:", isolation_level=None)
        _harden(memory)
        db.backup(memory)
        for step in range(version, VERSION):
            if step not in UPGRADES:
                raise _Damaged(f"there was never a format {step}")
            UPGRADES[step](memory)
        db = memory
    return db


def _check_tables(db: sqlite3.Connection) -> None:
    stored = dict(db.execute("SELECT name, sql FROM sqlite_schema WHERE type='table'"))
    for name, statement in TABLES.items():
        if stored.get(name) != statement:
            raise _Damaged(f"table {name} is not as forktrace makes it")


def _load(db: sqlite3.Connection, min_age_s: float | None) -> LoadedCapture:
    _check_tables(db)
    meta = from_rows(dict(_rows(db, "SELECT key, value FROM meta", str, str)))
    if min_age_s is not None:
        meta = replace(meta, min_age_s=min_age_s)
    snapshot = Snapshot(
        start_ns=meta.start_ns,
        end_ns=meta.end_ns,
        min_age_ns=round(meta.min_age_s * 1e9),
        totals=dict(_rows(db, "SELECT name, count FROM totals", str, int)),
        stacks={row[0]: StackCounts(*row[1:]) for row in _rows(db, "SELECT * FROM stack_counts", *[int] * 8)},
        groups=_groups(db, meta),
        processes={
            row[0]: Process(row[0], row[1], row[2], bool(row[3]), row[4])
            for row in _rows(db, "SELECT * FROM processes", int, str, int, int, int)
        },
        failed={
            FailedKey(stack, errno, bool(thread)): count for stack, errno, thread, count, _ in _failed(db)
        },
        failed_limits={
            FailedKey(stack, errno, bool(thread)): _limit(limit)
            for stack, errno, thread, _, limit in _failed(db)
            if limit is not None
        },
        latency=_latency(db),
        late=_late(db, round(meta.min_age_s * 1e9)),
        facts={row[0]: _facts(row[1]) for row in _rows(db, "SELECT * FROM facts", int, str)},
        wait_places=_wait_places(db),
    )
    if not meta.finished:
        meta = replace(meta, incomplete_because=(*meta.incomplete_because, _unfinished(meta)))
    return LoadedCapture(snapshot, _stacks(db), meta)


def _late(db: sqlite3.Connection, min_age_ns: int) -> dict[int, LatencyHistogram]:
    late: dict[int, LatencyHistogram] = {}
    query = (
        "SELECT stack, reaped_ns - exited_ns FROM tasks "
        "WHERE fate = 'waited' AND NOT root AND exited_ns ORDER BY reaped_ns, id"
    )
    for stack, stood in _rows(db, query, int, int):
        if stood >= min_age_ns:
            late.setdefault(stack, LatencyHistogram()).add(stood)
    return late


def _failed(db: sqlite3.Connection) -> Iterator[Row]:
    return _rows(db, "SELECT * FROM failed_forks", int, int, int, int, str | None)


def _limit(text: str) -> dict[str, Any]:
    limit = _json(text)
    kinds = {"name": str, "where": str, "value": int, "current": int}
    if not isinstance(limit, dict) or {name: type(value) for name, value in limit.items()} != kinds:
        raise _Damaged(f"limit {text[:80]!r}")
    return limit


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise _Damaged("a value is nested too deep") from None


def _facts(text: str) -> ParentFacts:
    """Every field's type is checked."""
    fields = _json(text)
    if not isinstance(fields, dict):
        raise _Damaged(f"facts {text[:80]!r}")
    waits, named, targets = (fields.pop(name, None) for name in ("waits", "named", "waiting_for"))
    if (
        not isinstance(named, list)
        or not isinstance(targets, list)
        or any(type(n) is not int for n in targets)
    ):
        raise _Damaged(f"facts {text[:80]!r}")
    return ParentFacts(
        **_typed(ParentFacts(), fields, ("state", "handler")),
        waits=None if waits is None else Waits(**_typed(Waits(), waits, ("some_target",))),
        named=tuple(NamedWait(**_typed(NamedWait(), each, ())) for each in named),
        waiting_for=tuple(targets),
    )


def _typed(example: Any, values: Any, optional: tuple[str, ...]) -> dict[str, Any]:
    """Some fields of a dataclass, each of its example's type.  optional: those that may be None."""
    if not isinstance(values, dict):
        raise _Damaged(f"facts: {str(values)[:80]!r}")
    for name, value in values.items():
        if name not in type(example).__dataclass_fields__:
            raise _Damaged(f"facts: {name[:40]} is unknown")
        kind = type(getattr(example, name))
        if name in optional:
            kind = type(None) if value is None else int if name == "some_target" else str
        if type(value) is not kind or kind not in (int, str, bool, type(None)):
            raise _Damaged(f"facts: {name[:40]} is {str(value)[:40]!r}")
    return values


def _wait_places(db: sqlite3.Connection) -> dict[int, tuple[WaitPlace, ...]]:
    places: dict[int, tuple[WaitPlace, ...]] = {}
    for process, *place in _rows(db, "SELECT * FROM wait_places", *[int] * 4):
        places[process] = (*places.get(process, ()), WaitPlace(*place))
    return places


def _unfinished(meta: Meta) -> str:
    end = meta.started_at + max(meta.end_ns - meta.start_ns, 0) / 1e9
    moment = datetime.fromtimestamp(end, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"the tracer was killed or is still running: data ends at {moment}"


def _groups(db: sqlite3.Connection, meta: Meta) -> dict[tuple[int, str], Group]:
    """Never-waited children in the order in which the graph folds them: as they were released, then the standing."""
    groups: dict[tuple[int, str], Group] = {}
    columns = ", ".join(_TASK_COLUMNS)
    query = (
        f"SELECT {columns} FROM tasks WHERE fate IN ('zombie', 'orphaned') AND NOT root "  # noqa: S608
        "ORDER BY reaped_ns = 0, reaped_ns, forked_ns, id"
    )
    for row in _rows(db, query, *_TASK_TYPES):
        task = _task(row)
        groups.setdefault((task.stack, task.fate.value), Group()).add(
            task, meta.end_ns, round(meta.min_age_s * 1e9)
        )
    return groups


_TASK_COLUMNS = tuple(name.split(".")[0] for name in TASK_FIELDS)
_TASK_TEXTS = ("fork_comm", "comm", "reaped_by_call", "fate.value")
_TASK_TYPES: tuple[Any, ...] = tuple(
    int | None if name == "exit_code" else str if name in _TASK_TEXTS else int for name in TASK_FIELDS
)


def _task(row: Row) -> Task:
    task = Task(row[0])
    for name, value in zip(TASK_FIELDS, row, strict=True):
        if name == "fate.value":
            task.fate = Fate(value)
        elif name.endswith(".real"):
            setattr(task, name[:-5], bool(value))
        else:
            setattr(task, name, value)
    return task


def _latency(db: sqlite3.Connection) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for bucket, count in _rows(db, "SELECT bucket, count FROM latency", int, int):
        if bucket == -1:
            histogram.max_ns = count
        elif 0 <= bucket < 64 << 5:
            histogram.counts[bucket] = count
            histogram.total += count
        else:
            raise _Damaged(f"latency bucket {bucket}")
    return histogram


def _stacks(db: sqlite3.Connection) -> dict[int, Stack]:
    text, number = str | None, int | None
    libraries = {
        row[0]: Library(*row[1:])
        for row in _rows(db, "SELECT * FROM libraries", int, str, str, text, text, number, text, text)
    }
    frames = {
        row[0]: _frame(row, libraries)
        for row in _rows(db, "SELECT * FROM frames", int, text, text, number, text, str, number, number)
    }
    frames_of = _members(db, "SELECT stack, frame FROM stack_frames ORDER BY stack, position", frames)
    chain_of = _members(db, "SELECT stack, library FROM stack_libraries ORDER BY stack, position", libraries)
    return {
        stack: Stack(
            id=stack,
            frames=frames_of.get(stack, ()),
            cut=cut,
            forked_by=_at(libraries, forked_by),
            responsible=_at(libraries, responsible),
            chain=chain_of.get(stack, ()),
            read_late=bool(late),
        )
        for stack, cut, forked_by, responsible, late in _rows(
            db, "SELECT * FROM stacks", int, text, number, number, int
        )
    }


def _frame(row: Row, libraries: Mapping[int, Library]) -> Frame:
    _, function, file, line, module, language, library, offset = row
    return Frame(function, file, line, module, language, _at(libraries, library), _unsigned(offset))


def _members(db: sqlite3.Connection, query: str, known: Mapping[int, Any]) -> dict[int, tuple[Any, ...]]:
    members = {}
    for stack, rows in groupby(_rows(db, query, int, int), key=itemgetter(0)):
        members[stack] = tuple(_at(known, row[1]) for row in rows)
        if len(members[stack]) > MAX_FRAMES:
            raise _Damaged(f"stack {stack} has more than {MAX_FRAMES} entries")
    return members


def _at(known: Mapping[int, Any], number: int | None) -> Any:
    if number is None:
        return None
    if number not in known:
        raise _Damaged(f"entry {number} is missing")
    return known[number]


def _unsigned(offset: int | None) -> int | None:
    return offset + (1 << 64) if offset is not None and offset < 0 else offset


def _rows(db: sqlite3.Connection, query: str, *types: Any) -> Iterator[Row]:
    """The rows of a query, every value checked against its type: SQLite's columns hold anything."""
    checks = [_CHECKS[kind] for kind in types]
    for row in db.execute(query):
        yield tuple(check(value) for check, value in zip(checks, row, strict=True))


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise _Damaged(f"an integer was expected, not {str(value)[:40]!r}")
    return value


def _text(value: Any) -> str:
    if type(value) is bytes:  # a name that is no Unicode: see writer._storable
        return value.decode("utf-8", "surrogatepass")
    if type(value) is not str:
        raise _Damaged(f"a text was expected, not {str(value)[:40]!r}")
    return value


_CHECKS: Mapping[Any, Callable[[Any], Any]] = {
    int: _integer,
    str: _text,
    int | None: lambda value: None if value is None else _integer(value),
    str | None: lambda value: None if value is None else _text(value),
}
