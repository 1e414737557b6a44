"""The queries of docs/capture.md run, and answer."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from graphs import SECOND, STACK, START, meta, snapshot, task

from tracer.capture.schema import APPLICATION_ID, TABLES, VERSION
from tracer.capture.writer import CaptureWriter
from tracer.lifecycle.task import Fate, Task, task_id

DOCS = (Path(__file__).parents[3] / "docs" / "capture.md").read_text()


def test_queries(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    root = Task(task_id(100, 5))
    root.root = True
    tasks = [
        root,
        task(200, Fate.ZOMBIE, exited_ns=START + 10 * SECOND),
        task(201, Fate.ZOMBIE, exited_ns=START + 70 * SECOND),
        task(202, Fate.ZOMBIE, exited_ns=START + 80 * SECOND),
        task(203, Fate.WAITED, exited_ns=START, reaped_ns=START + 3_000_000),
        task(204, Fate.ORPHANED, stack=0),
        task(205),
    ]
    with CaptureWriter(path, meta()) as writer:
        writer.flush(snapshot(tasks), tasks, [STACK], final=True)
    queries = re.findall(r"```sql\n(.*?)```", DOCS, re.DOTALL)
    with closing(sqlite3.connect(path)) as db:
        answers = [db.execute(query).fetchall() for query in queries]
    assert answers == [
        [(3, "libfoo", "1.2", "foo.c", 42, "spawn_helper"), (1, None, None, None, None, None)],
        [(203, "sh", 3.0, 100, "wait4")],
        [(0, 1), (1, 2)],
    ]


def test_the_format_is_described() -> None:
    assert f"{APPLICATION_ID:#X}".replace("0X", "0x") in DOCS
    assert f"`PRAGMA user_version` the version of the format: {VERSION}." in DOCS
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `[^|]*", DOCS, re.MULTILINE)))) == set(TABLES)
    fields = re.search(r"^\| `meta` \|(.*)$", DOCS, re.MULTILINE)
    assert fields
    assert set(re.findall(r"`(\w+)`", fields[1])) - {"key", "value"} == set(meta().__dataclass_fields__)
