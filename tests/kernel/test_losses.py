"""What does not fit into the kernel's rings and tables: it is counted, said, and made up for with /proc."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support import Program, proc_state
from tracing import Traced, options_for, trace_program, while_stepping

from tracer.lifecycle.task import Fate
from tracer.session import Session

pytestmark = pytest.mark.kernel

Start = Callable[..., Program]
PAGE = 4096


def trace_stalled(program: Program, **probe: int) -> Traced:
    """Nobody drains the rings from the first fork until the program has said all."""
    with Session(options_for(program.pid, **probe), record_changes=True) as session:
        session.start()
        program.go()
        said = program.truth()
        trace = session.finish()
        return Traced(program.pid, said, session.graph.take_changed(), trace)


def zombies_below(pid: int) -> set[int]:
    """By /proc alone."""
    found = set()
    todo = [pid]
    while todo:
        parent = todo.pop()
        for task in Path(f"/proc/{parent}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if proc_state(child) == "Z":
                    found.add(child)
                else:
                    todo.append(child)
    return found


def check_leaks(traced: Traced, standing: set[int]) -> None:
    """The leaks are exactly the zombies that stand in /proc, however much was lost."""
    called_zombie = {task.pid for task in traced.children if task.fate is Fate.ZOMBIE}
    assert called_zombie == standing
    assert not [task for task in traced.children if task.fate is Fate.ORPHANED]
    assert sum(leak.count for leak in traced.trace.leaks) == traced.trace.totals.zombies_now == len(standing)
    there = traced.trace.reconciliation
    assert there is not None
    assert there.standing == there.explained + there.unexplained == len(standing)
    assert there.unexplained > 0, "those that only /proc shows are told apart from those whose records came"


def test_a_full_event_ring(start: Start) -> None:
    program = start("storm", 6, 60, 1, wait=True)
    traced = trace_stalled(program, event_ring=PAGE)
    (truth,) = traced.said
    trace, totals = traced.trace, traced.trace.totals
    assert trace.lost_events > 500
    assert not trace.complete
    (reason,) = trace.incomplete_because
    assert reason.startswith(f"{trace.lost_events} records were lost: the kernel's ring was full")
    standing = zombies_below(program.pid)
    assert len(standing) == truth["zombie"] > 0
    check_leaks(traced, standing)
    assert totals.running == truth["running"], "the parents, most of whose forks were lost, are in /proc"
    assert totals.forks < truth["forks"]
    assert totals.forks == (
        totals.waited + totals.zombies + totals.orphaned + totals.autoreaped + totals.running + totals.unknown
    )


def test_a_ring_that_was_full_and_is_drained_again(start: Start) -> None:
    """What was lost is made up for while the trace goes on, and nothing is kept of what is gone."""
    program = start("fates", "burst", wait=True)
    with Session(options_for(program.pid, event_ring=16 * PAGE), record_changes=True) as session:
        session.start()
        program.go()
        burst = program.truth()
        while_stepping(session, program.release)
        trace = session.finish()
        tasks = [task for task in session.graph.take_changed() if not task.root]
    assert len(burst) == 1000
    assert trace.lost_events > 0
    assert not trace.complete
    assert trace.leaks == ()
    assert {task.fate for task in tasks} <= {Fate.WAITED, Fate.UNKNOWN}
    assert session.graph.tasks == {}


def test_a_full_table_of_traced_processes(start: Start) -> None:
    program = start("storm", 40, 10, 5, wait=True)
    traced = trace_program(program, max_traced=16)
    (truth,) = traced.said
    assert not traced.trace.complete
    assert any(
        "the table of traced processes was full" in reason for reason in traced.trace.incomplete_because
    )
    standing = zombies_below(program.pid)
    assert len(standing) == truth["zombie"] > 0
    check_leaks(traced, standing)
    assert traced.trace.totals.running == truth["running"]


@pytest.mark.parametrize("size", [2 * PAGE, 16 * PAGE], ids=["for no stack", "for a few stacks"])
def test_a_full_stack_ring(start: Start, size: int) -> None:
    """The forks are counted all the same, without a stack; nothing else is lost with it."""
    program = start("spawners", "deep", 100, wait=True)
    traced = trace_stalled(program, sample_ring=size)
    trace = traced.trace
    without = Counter[bool]()
    for stack, tally in trace.stacks:
        without[not stack.frames] += tally.forks
    assert (trace.totals.forks, trace.totals.waited, trace.totals.unknown) == (100, 100, 0)
    assert without[True] > 50
    assert (without[False] == 0) == (size == 2 * PAGE)
    assert trace.lost_events == 0
    assert not trace.complete
    assert trace.incomplete_because == (
        f"{without[True]} stacks were lost: the stack ring was full. Their forks are counted without a stack",
    )


def test_without_stacks_nothing_is_missing_but_the_stacks(start: Start) -> None:
    traced = trace_program(start("spawners", "fork", 20, wait=True), stacks=False)
    assert traced.trace.complete
    ((stack, tally),) = traced.trace.stacks
    assert (stack.id, stack.frames, tally.forks, tally.waited) == (0, (), 20, 20)
