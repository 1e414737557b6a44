"""What was written is what is read, whatever the tasks were and however they came."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from graphs import LIBFOO, SECOND, STACK, START, meta, plain, snapshot, task
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracer.capture.reader import load
from tracer.capture.writer import CaptureWriter
from tracer.lifecycle.facts import NamedWait, ParentFacts, Waits
from tracer.lifecycle.snapshot import FailedKey, WaitPlace
from tracer.lifecycle.task import Fate, Task, task_id
from tracer.trace import Reconciliation, Stack


def test_one_flush(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    tasks = [task(200, Fate.ZOMBIE), task(201, Fate.WAITED), task(202)]
    live = snapshot(tasks)
    with CaptureWriter(path, meta()) as writer:
        assert writer.flush(live, tasks, [STACK], final=True, extra={"lost_events": 0, "notes": ("a note",)})
    loaded = load(path)
    assert plain(loaded.snapshot) == plain(live)
    assert loaded.stacks == {1: STACK}
    assert loaded.meta == meta(notes=("a note",), finished=True, end_ns=live.end_ns)
    assert [each.name for each in tmp_path.iterdir()] == ["a.forktrace"]


def test_meta_comes_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    extra = {
        "lost_events": 3,
        "incomplete_because": ("3 records were lost",),
        "limits": ({"name": "pids.max", "where": "/sys/fs/cgroup/a", "value": 50, "current": 50},),
        "reconciliation": Reconciliation(5, 2, 2, 1, (77,)),
    }
    with CaptureWriter(path, meta()) as writer:
        writer.flush(snapshot([]), [], [], final=True, extra=extra)
    assert load(path).meta == meta(**extra, finished=True, end_ns=START + 60 * SECOND)


def test_later_flushes_change_and_remove(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    child = task(200)
    with CaptureWriter(path, meta()) as writer:
        writer.flush(snapshot([child, task(300, Fate.ZOMBIE)]), [child, task(300, Fate.ZOMBIE)], [STACK])
        reaped, child = task(300, Fate.WAITED), task(200, Fate.ZOMBIE)
        better = Stack(1, STACK.frames[:2], None, LIBFOO, LIBFOO, (LIBFOO,))
        last = snapshot([child, reaped], end_ns=START + 61 * SECOND)
        last.processes.clear()
        writer.flush(last, [child, reaped], [better, Stack(2, ())], final=True)
    loaded = load(path)
    assert plain(loaded.snapshot) == plain(last)
    assert loaded.stacks == {1: better, 2: Stack(2, ())}


def test_another_min_age(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    tasks = [task(pid, Fate.ZOMBIE, exited_ns=START + pid * SECOND // 10) for pid in range(1, 600)]
    with CaptureWriter(path, meta()) as writer:
        writer.flush(snapshot(tasks), tasks, [STACK], final=True)
    for age in (0.0, 0.5, 30.0, 1000.0):
        assert plain(load(path, min_age_s=age).snapshot) == plain(
            snapshot(tasks, min_age_ns=int(age * SECOND))
        )
    assert load(path, min_age_s=30.0).meta.min_age_s == 30.0


def test_unfinished_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    with CaptureWriter(path, meta()) as writer:
        writer.flush(snapshot([]), [], [])
    assert load(path).meta.incomplete_because == (
        "the tracer was killed or is still running: data ends at 2026-09-21 14:14:20 UTC",
    )


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    path = tmp_path / "a.forktrace"
    names = ["caf\udce9", "\ud800", "na\x00ul", "日本", "a;b\nc", ""]
    tasks = [task(200 + n, Fate.ZOMBIE, comm=name) for n, name in enumerate(names)]
    with CaptureWriter(path, meta()) as writer:
        writer.flush(snapshot(tasks), tasks, [STACK], final=True)
    loaded = load(path).snapshot
    assert plain(loaded) == plain(snapshot(tasks))
    assert set(loaded.groups[1, "zombie"].comms) == set(names)


ids = st.builds(task_id, st.integers(1, 4_194_304), st.integers(0, 2**32 - 1))
times = st.integers(0, 2**50)


@st.composite
def any_task(draw: st.DrawFn) -> Task:
    made = Task(draw(ids), draw(ids), draw(ids), draw(times), draw(st.integers(-1, 5)))
    made.comm, made.fork_comm = draw(st.text(max_size=15)), draw(st.text(max_size=15))
    made.fate = draw(st.sampled_from(Fate))
    made.exited_ns, made.reaped_ns = draw(times), draw(st.just(0) | times)
    made.exit_code = draw(st.none() | st.integers(0, 0xFFFF))
    made.root = draw(st.booleans())
    return made


@given(
    tasks=st.lists(any_task(), max_size=60, unique_by=lambda t: t.id),
    flushes=st.integers(1, 4),
    end_ns=times,
    min_age_ns=st.sampled_from([0, SECOND, 3600 * SECOND]),
    seed=st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_graph(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    tasks: list[Task],
    flushes: int,
    end_ns: int,
    min_age_ns: int,
    seed: random.Random,
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.forktrace"
    with CaptureWriter(path, meta()) as writer:
        for number in range(1, flushes + 1):
            changed = tasks if number == flushes else seed.sample(tasks, len(tasks) // 2)
            live = snapshot(changed, end_ns, min_age_ns)
            writer.flush(live, changed, [STACK] if number == 1 else [], final=number == flushes)
    assert plain(load(path).snapshot) == plain(live)


numbers = st.integers(-(2**63), 2**63 - 1)
texts = st.text(max_size=20)
flags = st.booleans()
waits = st.builds(
    Waits, *[numbers] * 9, some_target=st.none() | numbers, by_group=flags, by_pidfd=flags, looked=flags
)
parent_facts = st.builds(
    ParentFacts,
    seen=flags,
    comm=texts,
    state=st.none() | texts,
    stuck_since_ns=times,
    blocked_since_ns=times,
    caught=flags,
    handler=st.none() | texts,
    by_signalfd=flags,
    waits=st.none() | waits,
    waiting_for=st.lists(numbers, max_size=4).map(tuple),
    named=st.lists(st.builds(NamedWait, *[numbers] * 4), max_size=4).map(tuple),
    held_by=numbers,
    held=numbers,
    asked=numbers,
    handler_waits=flags,
    init=texts,
)
wait_places = st.lists(st.builds(WaitPlace, *[numbers] * 3), max_size=4, unique_by=lambda place: place.stack)
limits = st.fixed_dictionaries({"name": texts, "where": texts, "value": numbers, "current": numbers})


@given(
    facts=st.dictionaries(ids, parent_facts, max_size=4),
    places=st.dictionaries(ids, wait_places.filter(bool), max_size=4),
    limit=limits,
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_verdicts_rest_on(
    tmp_path_factory: pytest.TempPathFactory,
    facts: dict[int, ParentFacts],
    places: dict[int, list[WaitPlace]],
    limit: dict[str, object],
) -> None:
    path = tmp_path_factory.mktemp("facts") / "a.forktrace"
    ordered = {ident: tuple(sorted(each, key=lambda place: place.stack)) for ident, each in places.items()}
    live = replace(
        snapshot([]), facts=facts, wait_places=ordered, failed_limits={FailedKey(1, 11, False): limit}
    )
    with CaptureWriter(path, meta()) as writer:
        writer.flush(live, [], [STACK], final=True)
    assert plain(load(path).snapshot) == plain(live)


def test_bytes_a_task(tmp_path: Path) -> None:
    """100,000 tasks stay below 110 bytes each, so that a day at ten forks a second is less than 100 MB."""
    path = tmp_path / "a.forktrace"
    tasks = [task(pid, Fate.WAITED) for pid in range(1000, 101_000)]
    with CaptureWriter(path, meta()) as writer:
        writer.flush(snapshot(tasks), tasks, [STACK], final=True)
    assert path.stat().st_size / len(tasks) < 110
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM tasks").fetchone() == (100_000,)
