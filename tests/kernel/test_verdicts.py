"""Why nobody reaped them: one fault a program (tests/programs/verdicts.c), and programs that nearly have it.

Also what real programs do: a debugger, strace, Python, a shell that execs over its children, an event loop.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from support import Program, proc_state, wait_until
from tracing import Traced, options_for, trace_program, while_stepping

from tracer.lifecycle.verdict import AN_INIT_WILL_NOT_HELP
from tracer.session import Session
from tracer.trace import Leak, Trace

pytestmark = pytest.mark.kernel

Start = Callable[..., Program]
Waits = tuple[tuple[str, bool, str], ...]  # for whom (a pattern), WNOHANG, function


@dataclass(frozen=True)
class Expected:
    """code: None where nothing is leaked.  evidence: a part of it.  advice: words that are in it."""

    code: str | None
    advice: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    waits: Waits = ()
    light: str = "unknown"


NONE: Final = Expected(None)
ALIVE: Final = AN_INIT_WILL_NOT_HELP
NAMED, ANY = r"pid \d+", "any child"
SCENARIOS: Final[dict[str, Expected]] = {
    "never_waits": Expected("never_waits", ALIVE, {"waits_for_any": 0, "waits_for_named": 0, "parent_alive": True}),
    "handler_does_not_wait": Expected("never_waits", ALIVE, {"sigchld_handler": "note_death (verdicts)"}),
    "blocked_without_handler": Expected("never_waits", ALIVE),
    "two_parents_one_reason": Expected("never_waits", ALIVE, {"parents_with_this_reason": 2}),
    "two_parents_two_reasons": Expected(
        "unknown", evidence={"reasons_by_parent": "never_waits: 1, waits_for_others: 1"}
    ),
    "waits_for_others": Expected(
        "waits_for_others", "its waits name other children", {"waits_for_named": 2, "children_it_did_reap": 2},
        ((NAMED, False, "reap_wait4"),),
    ),
    "polls_for_others": Expected("waits_for_others", waits=((NAMED, True, "polls_for_others"),)),
    "waits_for_others_by_pidfd": Expected("waits_for_others", waits=((".*pidfd", False, "waits_for_others_by_pidfd"),)),
    "thread_waits_for_another": Expected("waits_for_others", evidence={"waits_for_named": 0}),
    "before_thread_waits_for_another": Expected("waits_for_others", evidence={"waits_for_named": 0}),
    "before_thread_waits_by_pidfd": Expected("waits_for_others", evidence={"waits_for_named": 0}),
    "thread_waits_for_a_group": Expected("unknown"),
    "looks_with_wnowait": Expected(
        "unknown", evidence={"left_by_wnowait": True},
        waits=((NAMED, False, "looks_with_wnowait"), (NAMED, False, "reap_wait4")),
    ),
    "polled_too_early": Expected(
        "polled_too_early", "it asked before they died (WNOHANG), and never again", {"waits_for_named": 3},
        ((NAMED, True, "polled_too_early"),),
    ),
    "polled_any_too_early": Expected(
        "polled_too_early", ALIVE, {"waits_for_any": 1}, ((ANY, True, "polled_any_too_early"),)
    ),
    "polled_one_too_early": Expected("unknown", waits=((NAMED, True, "polled_one_too_early"),)),
    "polled_by_pidfd": Expected("unknown", waits=((".*pidfd", True, "polled_by_pidfd"),)),
    "polls_again": NONE,
    "handler_waits_once": Expected(
        "handler_waits_once", "its handler wait_once (verdicts) waits once a signal",
        {"sigchld_handler": "wait_once (verdicts)", "waits_for_any": 1}, ((ANY, True, "wait_once"),),
    ),
    "handler_in_another_thread": Expected("handler_waits_once", "in a loop", waits=((ANY, True, "wait_once"),)),
    "handler_loops": NONE,
    "handler_waits_once_for_each": NONE,
    "sigwait_waits_once": Expected("unknown", evidence={"waits_for_any": 1}, waits=((ANY, True, "wait_once"),)),
    "sigchld_blocked": Expected(
        "sigchld_blocked", "wait_in_loop (verdicts) does not run: unblock it", {"sigchld_blocked": True}
    ),
    "sigchld_blocked_later": Expected(
        "sigchld_blocked", "unblock it", {"waits_for_any": 2}, ((ANY, True, "wait_in_loop"),)
    ),
    "sigchld_blocked_in_one_thread": NONE,
    "signalfd_loop": NONE,
    "signalfd_unread": Expected("unknown", evidence={"sigchld_unread": True}),
    "signalfd_read_without_wait": Expected("never_waits"),
    "clone_signal": Expected(
        "clone_signal", "__WALL or __WCLONE", {"exit_signal": 0}, ((ANY, False, "clone_signal"),)
    ),
    "clone_signal_never_waited": Expected("never_waits", "with __WALL", {"exit_signal": 0}),
    "clone_signal_and_wall": Expected("unknown", evidence={"exit_signal": 0}, waits=((NAMED, False, "reap_wait4"),)),
    "stuck_stopped": Expected("parent_stuck", "is stopped", {"state": "T"}, light="parent_stuck"),
    "stuck_not": Expected("never_waits"),
    "stuck_in_vfork": Expected("parent_stuck", "hangs in the kernel", {"state": "D"}, light="parent_stuck"),
    "held_by_tracer": Expected(
        "held_by_tracer", "has not let go", {"held": 3}, light="held_by_tracer"
    ),
    "held_one_of_them": Expected("unknown", evidence={"held": 1}),
    "tracer_let_go": Expected("never_waits"),
    "pid1_not_reaping": Expected(
        "pid1_not_reaping", "PID 1 of the container (verdicts) does not reap what it adopts: run it with an init",
        {"standing": 1, "of": 1},
    ),
    "pid1_reaps_late": Expected("unknown", "double fork"),
    "pid1_looks_with_wnowait": Expected("unknown", "double fork", {"left_by_wnowait": True}),
    "subreaper_not_reaping": Expected("pid1_not_reaping", "a subreaper (PR_SET_CHILD_SUBREAPER)"),
    "before_never_waits": Expected("never_waits", light="pre_existing"),
    "before_waits_for_any": Expected("clone_signal", evidence={"waiting_now_for": "any child", "waits_for_any": 0}),
}  # fmt: skip


def test_every_scenario_is_judged(programs: Path) -> None:
    listed = subprocess.run([programs / "verdicts", "--list"], capture_output=True, text=True, check=True)
    assert sorted(SCENARIOS) == sorted(listed.stdout.split())


def traced(start: Start, scenario: str, light: bool = False) -> Traced:
    has_past = scenario.startswith("before_")
    program = start("verdicts", scenario, wait=not has_past)
    if has_past:
        program.truth()
    return trace_program(program, a_moment_later, light=light)


def a_moment_later(session: Session, seconds: float = 0.15) -> None:
    """For what a program does not do any more there is no event to wait for."""
    while_stepping(session, lambda: time.sleep(seconds))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_reason(start: Start, scenario: str) -> None:
    expected = SCENARIOS[scenario]
    trace = traced(start, scenario).trace
    assert trace.complete
    if expected.code is None:
        assert trace.leaks == ()
        return
    (leak,) = trace.leaks
    verdict = leak.verdict
    assert (verdict.code, expected.evidence.items() <= verdict.evidence.items()) == (expected.code, True), (
        verdict
    )
    assert expected.advice in verdict.advice
    assert_waits(leak, expected.waits)


def assert_waits(leak: Leak, expected: Waits) -> None:
    """The places of the calls, each once."""
    found = {(site.nohang, function_of(site.stack.responsible), site.target) for site in leak.waits}
    assert len(found) == len(leak.waits)
    assert {(nohang, function) for nohang, function, _ in found} == {
        (nohang, name) for _, nohang, name in expected
    }
    for target, nohang, function in expected:
        assert any(
            re.fullmatch(target, theirs) for also, name, theirs in found if (also, name) == (nohang, function)
        ), found


def function_of(library: Any) -> str:
    assert library is not None
    return str(library.function)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_without_the_wait_calls_no_reason_is_better_than_a_wrong_one(start: Start, scenario: str) -> None:
    expected = SCENARIOS[scenario]
    leaks = traced(start, scenario, light=True).trace.leaks
    assert [leak.verdict.code for leak in leaks] == ([] if expected.code is None else [expected.light])
    assert all(leak.waits == () for leak in leaks)


# --- real programs -------------------------------------------------------------------------------------------------


@contextmanager
def running(*command: str, **popen: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **popen
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def say(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{words}\n")
    process.stdin.flush()


def trace_while(pid: int, work: Callable[[], Any]) -> Trace:
    with Session(options_for(pid)) as session:
        session.start()
        while_stepping(session, work)
        a_moment_later(session)
        return session.finish()


PYTHON = """
import subprocess, sys
input()
kept = [subprocess.Popen(["true"]) for _ in range(3)]
{then}
print("spawned", flush=True)
input()
"""


@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("", "never_waits"),
        ("[each.wait() for each in kept]", None),
        ("subprocess.run(['true'])", "waits_for_others"),
    ],
)
def test_python(then: str, code: str | None) -> None:
    with running("/usr/bin/python3", "-c", PYTHON.format(then=then)) as process:

        def work() -> None:
            say(process, "go")
            assert line(process) == "spawned"  # by then it has done all

        leaks = trace_while(process.pid, work).leaks
    assert [leak.verdict.code for leak in leaks] == ([code] if code else [])
    for leak in leaks:
        assert leak.count == 3
        assert ALIVE in leak.verdict.advice


def test_a_shell_that_execs_over_its_children() -> None:
    """The well-known entry point: what dash waited for proves nothing of the program that it became."""
    with running("/bin/sh", "-c", "read go; true & /bin/true; wait; sleep 0.1 & exec cat") as process:

        def work() -> None:
            say(process, "go")
            wait_until(lambda: comm_of(process.pid) == "cat" and zombies_of(process.pid))

        (leak,) = trace_while(process.pid, work).leaks
    assert (leak.count, leak.verdict.code, leak.parents[0].comm) == (1, "never_waits", "cat")
    assert leak.verdict.evidence["children_it_did_reap"] == 0
    assert leak.waits == ()


def comm_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def zombies_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if proc_state(int(child)) == "Z"]


PARENT = """
import os, signal
for _ in range(2):
    if not os.fork():
        while True:
            signal.pause()
print(*open(f"/proc/self/task/{os.getpid()}/children").read().split(), flush=True)
input()
"""


def test_gdb_on_the_parent() -> None:
    with parent() as (pid, children), gdb(pid):
        (leak,) = trace_while(pid, lambda: kill(children)).leaks
    assert (leak.count, leak.verdict.code, leak.verdict.evidence["state"]) == (2, "parent_stuck", "t")
    assert "is stopped by a tracer" in leak.verdict.advice


def test_gdb_let_go_of_the_parent() -> None:
    with parent() as (pid, children):
        with gdb(pid):
            pass
        (leak,) = trace_while(pid, lambda: kill(children)).leaks
    assert (leak.count, leak.verdict.code) == (2, "never_waits")


def test_gdb_on_a_child() -> None:
    with parent() as (pid, children), gdb(children[0]) as tracer:
        (leak,) = trace_while(pid, lambda: kill(children[:1])).leaks
    assert (leak.count, leak.verdict.code) == (1, "held_by_tracer")
    assert leak.verdict.evidence["tracer_pid"] == tracer


def test_strace_on_the_children() -> None:
    """It takes the zombies at once, and then it is the parent that must wait."""
    with parent() as (pid, children):
        options = [word for child in children for word in ("-p", str(child))]
        with running("strace", "-o", "/dev/null", *options, stderr=subprocess.DEVNULL) as tracer:
            wait_until(lambda: all(tracer_of(child) == tracer.pid for child in children))
            (leak,) = trace_while(pid, lambda: kill(children)).leaks
    assert (leak.count, leak.verdict.code) == (2, "never_waits")


@contextmanager
def parent() -> Iterator[tuple[int, list[int]]]:
    """A process that forked two children, and never waits."""
    with running("/usr/bin/python3", "-c", PARENT) as process:
        children = list(map(int, line(process).split()))
        try:
            yield process.pid, children
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)


@contextmanager
def gdb(pid: int) -> Iterator[int]:
    """gdb is attached to it, and waits for its user.  Detached when the block ends."""
    command = ("gdb", "-q", "-nx", "-batch", "-p", str(pid), "-ex", "shell cat")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: tracer_of(pid) == process.pid and proc_state(pid) == "t")
        try:
            yield process.pid
        finally:
            process.communicate()


def kill(children: list[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)
    wait_until(lambda: all(proc_state(child) == "Z" for child in children))


def tracer_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"TracerPid:\t(\d+)", text)[1])  # type: ignore[index]
