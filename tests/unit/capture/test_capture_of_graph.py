"""A capture that is flushed while the family graph runs gives the graph's own snapshot back."""

from __future__ import annotations

import random

import pytest
from graphs import SECOND, STACK, START, meta, plain
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.capture.reader import load
from tracer.capture.writer import CaptureWriter
from tracer.lifecycle.graph import Graph, Seen
from tracer.lifecycle.task import task_id
from tracer.records import EXIT_AUTOREAP, EventType, RawEvent


def event(
    kind: EventType,
    ts: int,
    task: int,
    parent: int = 0,
    value: int = 0,
    stack: int = 0,
    flags: int = 0,
    comm: bytes = b"sh",
) -> RawEvent:
    pid = task >> 32
    return 0, 0, ts, task, parent, parent, stack, int(kind), flags, value, pid, pid, pid, comm


def life(rng: random.Random, roots: list[int]) -> list[RawEvent]:
    """Children that are forked, die, are waited for or not, and parents that die before and after them."""
    events = []
    now = START
    living, dead = list(roots), []
    parent_of: dict[int, int] = {}
    for pid in range(1000, 1000 + rng.randrange(250)):
        now += rng.randrange(1, SECOND // 10)
        choice = rng.random()
        if choice < 0.5 or not dead:
            child, parent = task_id(pid, now // 10_000_000), rng.choice(living)
            parent_of[child] = parent
            living.append(child)
            events.append(event(EventType.FORK, now, child, parent, stack=rng.randrange(4)))
        elif choice < 0.7:
            child = dead.pop(rng.randrange(len(dead)))
            events.append(event(EventType.WAIT4, now, parent_of[child], value=child >> 32))
        mortal = [each for each in living if each not in roots]
        if mortal and rng.random() < 0.6:
            child = rng.choice(mortal)
            living.remove(child)
            parent = parent_of[child] if parent_of[child] in living else task_id(1, 1)
            flags = EXIT_AUTOREAP if rng.random() < 0.1 else 0
            comm = b"child-%d" % rng.randrange(60)  # more names than a group keeps
            events.append(
                event(
                    EventType.EXIT,
                    now + 1,
                    child,
                    parent,
                    rng.choice([0, 256, 9, 139]),
                    flags=flags,
                    comm=comm,
                )
            )
            if flags or parent != parent_of[child]:
                events.append(event(EventType.RELEASE, now + rng.randrange(2, 1000), child, parent))
            else:
                dead.append(child)
    return sorted(events, key=lambda each: each[2])


@given(seed=st.integers(0, 2**32), min_age_ns=st.sampled_from([0, SECOND, 10 * SECOND]))
@settings(max_examples=60, deadline=None)
def test_equal_to_the_live_snapshot(
    tmp_path_factory: pytest.TempPathFactory, seed: int, min_age_ns: int
) -> None:
    rng = random.Random(seed)
    roots = [task_id(pid, 5) for pid in (100, 101, 102)]
    graph = Graph(START, min_age_ns, record_changes=True)
    for root in roots:
        graph.add_existing(Seen(root, 0, "leaky", 7, zombie=False), root=True)
    graph.add_existing(Seen(task_id(200, 9), roots[0], "old", 200, zombie=False))
    events = life(rng, roots)
    events.append(event(EventType.EXIT, START + 60 * SECOND, task_id(200, 9), roots[0]))
    path = tmp_path_factory.mktemp("graph") / "a.forktrace"
    with CaptureWriter(path, meta()) as writer:
        size = rng.randrange(1, 80)
        for first in range(0, len(events), size):
            graph.apply(events[first : first + size], {})
            snapshot = graph.snapshot(events[: first + size][-1][2] + 1)
            writer.flush(snapshot, graph.take_changed(), [STACK] if not first else [], final=False)
        live = graph.snapshot(START + 100 * SECOND)
        writer.flush(live, graph.take_changed(), [], final=True)
    assert plain(load(path).snapshot) == plain(live)
