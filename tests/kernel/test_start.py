"""Attaching to processes that are in the middle of it (trap 15 of docs/lifecycle.md)."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Program, proc_state, wait_until
from tracing import options_for, step_until_ready

from tracer import procfs
from tracer.lifecycle.task import PRE_EXISTING, Fate, Task, pid_of
from tracer.session import Session

pytestmark = pytest.mark.kernel

Start = Callable[..., Program]
WORKERS = 3


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("attempt", range(10))
@pytest.mark.parametrize("light", [False, True], ids=["full", "light"])
def test_attaching_while_descendants_fork_at_full_speed(start: Start, light: bool, attempt: int) -> None:
    program = start("churn", WORKERS)
    wait_until(lambda: len(children_of(program.pid)) == WORKERS, what="the workers")
    with Session(options_for(program.pid, light=light), record_changes=True) as session:
        session.start()
        started_ns = procfs.boottime_ns()
        while procfs.boottime_ns() < started_ns + 200_000_000:
            session.step()
        os.kill(program.pid, signal.SIGUSR1)
        said = step_until_ready(session, program)
        trace = session.finish()
        tasks = [task for task in session.graph.take_changed() if not task.root]
    unknown = [task for task in tasks if task.fate is Fate.UNKNOWN]
    if light:
        # Only the release tells here, and it is not seen where it happens to run in the context of a process that the
        # kernel keeps from BPF (the init of some microVMs): then the report says so.
        assert trace.complete == (not unknown)
    else:
        assert trace.incomplete_because == ()
        assert not unknown

    since = [fork for fork in said if fork["before_ns"] >= started_ns]
    before = [fork for fork in said if fork["after_ns"] <= session.start_ns]
    assert len(since) > 20, "it did not fork: nothing was tested"
    assert len(before) > WORKERS, "it did not fork before: nothing was tested"
    found = pair(said, [task for task in tasks if task.stack != PRE_EXISTING])
    for fork in since:
        (task,) = found[id(fork)]
        assert pid_of(task.parent) == pid_of(task.forker) == fork["parent"]
        assert task.fate in (Fate.WAITED, Fate.UNKNOWN), f"{task} {fork}"
    for fork in said:
        assert len(found.get(id(fork), [])) <= 1, "counted twice"
    assert not [fork for fork in before if id(fork) in found], (
        "what was forked before the trace is no fork of it"
    )

    # The totals say the same: every fork of the trace, and those waited for that were forked before.
    assert trace.totals.forks == sum(map(len, found.values())) >= len(since)
    older = [task for task in tasks if task.stack == PRE_EXISTING]
    assert {task.id for task in older}.isdisjoint(task.id for each in found.values() for task in each)
    fates = Counter(task.fate for task in tasks)
    assert (trace.totals.waited, trace.totals.running) == (fates[Fate.WAITED], fates[Fate.RUNNING])
    assert set(fates) - {Fate.UNKNOWN} == {Fate.WAITED}, "the workers, too, were waited for"


def pair(said: list[dict[str, Any]], tasks: list[Task]) -> dict[int, list[Task]]:
    """Tasks by the fork (its id()) that they must be of: the pid is the same, and so is the time."""
    by_pid: dict[int, list[dict[str, Any]]] = {}
    for fork in said:
        by_pid.setdefault(fork["pid"], []).append(fork)
    found: dict[int, list[Task]] = {}
    for task in tasks:
        matching = [f for f in by_pid.get(task.pid, []) if f["before_ns"] <= task.forked_ns <= f["after_ns"]]
        assert len(matching) == 1, f"{task}, forked at {task.forked_ns}, is {matching}"
        found.setdefault(id(matching[0]), []).append(task)
    return found


def test_a_child_from_before_that_dies_now_is_told_apart(start: Start) -> None:
    program = start("fates", "running")
    (child,) = program.truth()
    with Session(options_for(program.pid), record_changes=True) as session:
        session.start()
        os.kill(child["pid"], signal.SIGKILL)
        wait_until(lambda: proc_state(child["pid"]) == "Z")
        trace = session.finish()
        (task,) = (task for task in session.graph.take_changed() if not task.root)
    assert (task.pid, task.fate, task.exit_code, task.stack) == (child["pid"], Fate.ZOMBIE, 9, PRE_EXISTING)
    (leak,) = trace.leaks
    assert (leak.count, leak.pre_existing, leak.stack.frames) == (1, True, ())
    assert (trace.totals.forks, trace.totals.zombies, trace.totals.pre_existing_zombies) == (0, 1, 0)
    assert trace.complete


def test_zombies_from_before_are_counted_and_are_no_leaks_of_the_trace(start: Start) -> None:
    program = start("fates", "zombie")
    assert len(program.truth()) == 2
    with Session(options_for(program.pid), record_changes=True) as session:
        session.start()
        trace = session.finish()
    assert (trace.totals.pre_existing_zombies, trace.totals.forks, trace.leaks) == (2, 0, ())
    assert trace.reconciliation is not None
    assert (trace.reconciliation.standing, trace.reconciliation.pre_existing, trace.reconciliation.unexplained) == (
        2, 2, 0,
    )  # fmt: skip
    assert trace.complete


def test_orphans_and_grandchildren_from_before_belong_to_the_target(start: Start) -> None:
    program = start("fates", "pidns")
    truth = program.truth()
    with Session(options_for(program.pid), record_changes=True) as session:
        session.start()
        trace = session.finish()
        tasks = {task.pid: task for task in session.graph.take_changed() if not task.root}
    standing = {child["pid"] for child in truth if proc_state(child["pid"]) == "Z"}
    living = {child["pid"] for child in truth if child["fate"] == "running"}
    assert set(tasks) == living
    assert {task.ns_pid for task in tasks.values()} == {
        child["ns_pid"] for child in truth if child["pid"] in living
    }
    assert trace.totals.pre_existing_zombies == len(standing) == 2
