"""Threads in a capture: what was written is what is read, and nothing else is taken for it."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from graphs import STACK, START, meta, snapshot, task

from tracer.capture.errors import CaptureError
from tracer.capture.reader import load
from tracer.capture.thread_groups import group_from_json, group_to_json
from tracer.capture.writer import CaptureWriter
from tracer.lifecycle.snapshot import Snapshot, ThreadCounts, ThreadGroup
from tracer.lifecycle.summary import About, summarize
from tracer.lifecycle.task import task_id

PARENT = task_id(100, 5)
UNJOINED = ThreadGroup(
    3, 1, START, START + 7, Counter({PARENT: 2, 0: 1}), Counter({"a": 2, "b\udce9": 1}), [7, 8, 9], 8192
)
GROWING = ThreadGroup(1, parents=Counter({PARENT: 1}))


def with_threads() -> Snapshot:
    shot = snapshot([task(200)])
    shot.totals["threads_unjoined"] = 4
    return replace(
        shot,
        threads={1: ThreadCounts(9, 5, 4, START + 1, -2), 0: ThreadCounts(1)},
        thread_groups={(1, "unjoined_thread"): UNJOINED, (1, "thread"): GROWING},
    )


def written(path: Path) -> Path:
    with CaptureWriter(path, meta()) as writer:
        writer.flush(with_threads(), [], [STACK], final=True)
    return path


def test_round_trip(tmp_path: Path) -> None:
    loaded = load(written(tmp_path / "a.forktrace"))
    live = with_threads()
    assert (loaded.snapshot.threads, loaded.snapshot.thread_groups) == (live.threads, live.thread_groups)
    about = About("1", {}, 0.0, ())
    assert summarize(loaded.snapshot, loaded.stacks, about).leaks == summarize(live, {1: STACK}, about).leaks


def test_what_goes_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    with CaptureWriter(path, meta()) as writer:
        writer.flush(with_threads(), [], [STACK])
        writer.flush(snapshot([]), [], [], final=True)
    loaded = load(path).snapshot
    assert (loaded.threads, loaded.thread_groups) == ({}, {})
    assert "threads_unjoined" not in loaded.totals


@pytest.mark.parametrize(
    "change",
    [
        {"count": -1},
        {"count": "1"},
        {"count": True},
        {"parents": []},
        {"parents": {"x": 1}},
        {"parents": {"1": 1.5}},
        {"parents": {str(n): 1 for n in range(100)}},
        {"comms": {"a": None}},
        {"examples": list(range(100))},
        {"examples": ["1"]},
        {"held_bytes": -1},
        {"more": 1},
    ],
)
def test_a_group_that_is_none(change: dict[str, object], tmp_path: Path) -> None:
    text = json.dumps({**json.loads(group_to_json(UNJOINED)), **change})
    with pytest.raises(ValueError, match=r"thread group|invalid literal"):
        group_from_json(text)
    path = written(tmp_path / "a.forktrace")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE thread_groups SET details=? WHERE kind='unjoined_thread'", (text,))
    with pytest.raises(CaptureError, match="damaged"):
        load(path)


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", "null", "[" * 100_000])
def test_what_is_no_group_at_all(text: str) -> None:
    with pytest.raises(ValueError, match=r"thread group|Expecting|recursion"):
        group_from_json(text)


def test_a_kind_that_there_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "a.forktrace")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE thread_groups SET kind='fiber' WHERE kind='thread'")
    with pytest.raises(CaptureError, match="fiber"):
        load(path)
