"""A process that looks like CPython, and has anything at all where frames should be (programs/hostile_python.c)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest
from support import Program
from tracing import options_for, while_stepping

from tracer.probe import build
from tracer.records import MAX_FRAMES
from tracer.session import Session
from tracer.trace import Stack, Trace

pytestmark = pytest.mark.kernel

UNREADABLE = (
    "python could not be read at the fork: its memory was not there, "
    "and soon after it the process had gone on"
)
BROKEN = "python has something else where a frame should be"
TOO_DEEP = "python is deeper than the frames that are taken"
NO_THREAD = "python does not know the thread that forked"
HONEST = ("name", "file.py", 7)
Place = tuple[str | None, str | None, int | None]
# Why the walk ends, and the frames that it took by then.
SCENARIOS: dict[str, tuple[str | None, list[Place]]] = {
    "honest": (None, [HONEST] * 2),
    "cyclic_interpreters": (NO_THREAD, []),
    "cyclic_threads": (NO_THREAD, []),
    "cyclic_frames": (TOO_DEEP, [HONEST] * MAX_FRAMES),
    "many_frames": (TOO_DEEP, [HONEST] * MAX_FRAMES),
    "no_interpreter": (NO_THREAD, []),
    "kernel_interpreter": (UNREADABLE, []),
    "kernel_thread": (UNREADABLE, []),
    "kernel_frame": (UNREADABLE, []),
    "kernel_code": (UNREADABLE, [HONEST]),
    "kernel_strings": (None, [(None, "", None)] * 2),
    "non_canonical": (UNREADABLE, [HONEST]),
    "misaligned": (UNREADABLE, [HONEST]),
    "end_of_memory": (UNREADABLE, [HONEST]),
    "unmapped_frame": (UNREADABLE, [HONEST]),
    "no_code": (BROKEN, [HONEST]),
    "huge_lengths": (None, []),
    "length_that_wraps": (None, []),
    "no_text": (None, []),
    "random_table": (None, []),
    "random_frames": (UNREADABLE, [HONEST]),
}
# Whose names are noise.
ANY_FRAMES = {"huge_lengths", "length_that_wraps", "no_text", "random_table"}

Start = Callable[..., Program]


def trace_hostile(program: Program) -> tuple[dict[str, list[Stack]], Trace]:
    """The stacks of each scenario's forks."""
    build.build_walker("python", build.Options())  # into the cache: loading it takes no time then
    with Session(options_for(program.pid), record_changes=True) as session:
        session.start()
        session.step()
        program.go()
        said = while_stepping(session, program.truth)
        trace = session.finish()
        tasks = {task.pid: task for task in session.graph.take_changed()}
        stacks: dict[str, list[Stack]] = defaultdict(list)
        for line in said:
            stacks[line["scenario"]].append(session._stacks.stack(tasks[line["pid"]].stack))
        return stacks, trace


def test_each_walk_ends_with_a_reason(start: Start) -> None:
    found, trace = trace_hostile(start("hostile_python", wait=True))
    assert list(found) == list(SCENARIOS)
    for scenario, stacks in found.items():
        cut, frames = SCENARIOS[scenario]
        assert [stack.cut for stack in stacks] == [cut] * 3, scenario
        for stack in stacks:
            check_frames(scenario, stack, frames)
    assert trace.complete
    assert trace.notes == ()


def check_frames(scenario: str, stack: Stack, frames: list[Place]) -> None:
    seen = [(f.function, f.file, f.line) for f in stack.frames if f.language == "python"]
    assert seen == frames or (scenario in ANY_FRAMES and len(seen) == 2), scenario
    native = [frame.function for frame in stack.frames if frame.language == "native"]
    assert "fork" in native
    assert native[-3:-1] == ["__libc_start_call_main", "__libc_start_main"]
    assert not stack.read_late


def test_an_unknown_version_costs_one_note(start: Start) -> None:
    found, trace = trace_hostile(start("unknown_python", wait=True))
    for stack in (stack for stacks in found.values() for stack in stacks):
        assert stack.cut is None
        assert [frame.function for frame in stack.frames if frame.function][2] == "_PyEval_EvalFrameDefault"
    assert trace.notes == (
        "no Python frames of libpython3.99.so.1.0: it is version 3.99.0, CPython 3.8 to 3.14 are supported",
    )
