"""Clones that fail for real (tests/programs/fork_fail.c): each is counted, and the limit that refused it is named."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console
from support import Program, wait_until
from tracing import Traced, trace_program

from tracer.report.text import render
from tracer.trace import FailedFork

pytestmark = pytest.mark.kernel

Start = Callable[..., Program]
FILTERED: Final = "refused by a filter (seccomp) or a rule, not by a limit"
CALLERS: Final = {False: "fork", True: "pthread_create"}


def failures(traced: Traced) -> list[FailedFork]:
    """Checked against what the program counted: errno, how many, process or thread, and where."""
    said = [(line["failed"], line["thread"], line["count"]) for line in traced.said if line.get("failed")]
    found = traced.trace.failed_forks
    assert sorted((each.errno, each.thread, each.count) for each in found) == sorted(said)
    assert traced.trace.totals.failed_forks == sum(count for _, _, count in said)
    for each in found:
        names = [frame.function or "" for frame in each.stack.frames]
        assert any(CALLERS[each.thread] in name for name in names), names
        assert "try_all" in names or "main" in names
        assert each.stack.responsible is not None
        assert each.stack.responsible.name == "fork_fail"
        assert (each.limit is None) == (each.reason is not None)
    return list(found)


def text_of(traced: Traced) -> str:
    out = io.StringIO()
    render(traced.trace, Console(file=out, width=200))
    return out.getvalue()


def of_the_program(start: Start, way: str, **probe: Any) -> Traced:
    return trace_program(start("fork_fail", way, wait=True), **probe)


def test_rlimit_nproc_of_another_user(start: Start) -> None:
    found = failures(of_the_program(start, "nproc"))
    assert {each.thread for each in found} == {False, True}
    for each in found:
        assert each.limit is not None
        assert (each.limit["name"], each.limit["where"], each.limit["value"]) == (
            "RLIMIT_NPROC",
            "uid 65534",
            1,
        )
        assert each.limit["current"] >= 1


def test_clone3_that_falls_back_to_clone_is_no_failure(start: Start) -> None:
    traced = of_the_program(start, "clone3_enosys")
    assert failures(traced) == []
    assert traced.trace.totals.threads == 3


@pytest.mark.parametrize(("way", "thread"), [("clone3_eperm", True), ("clone_eperm", False)])
def test_seccomp_is_no_limit(start: Start, way: str, thread: bool) -> None:
    traced = of_the_program(start, way)
    (failed,) = failures(traced)
    assert (failed.errno, failed.thread, failed.limit, failed.reason) == ("EPERM", thread, None, FILTERED)
    assert FILTERED in text_of(traced)


def test_a_namespace_whose_init_has_ended(start: Start) -> None:
    traced = of_the_program(start, "dead_init")
    (failed,) = failures(traced)
    assert failed.errno == "ENOMEM"
    assert failed.limit == {"name": "pid namespace", "where": "its init has ended", "value": 0, "current": 0}
    assert "pid namespace: its init has ended" in text_of(traced)


def test_the_pid_max_of_a_namespace(start: Start) -> None:
    found = failures(of_the_program(start, "pid_max"))
    assert {each.thread for each in found} == {False, True}
    for each in found:
        assert each.limit is not None
        assert (each.errno, each.limit["name"], each.limit["value"]) == ("EAGAIN", "pid_max", 301)
        assert re.fullmatch(r"pid namespace \d+", each.limit["where"])


def test_without_the_tracepoints_failures_are_not_seen_and_that_is_said(start: Start) -> None:
    trace = of_the_program(start, "nproc", light=True).trace
    assert trace.failed_forks == ()
    assert any("failed forks not at all" in note for note in trace.notes)


# --- cgroups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A new cgroup with the pids controller, and one inside, of whichever version."""
    version_1, version_2 = Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")
    base = version_1 if version_1.is_dir() else version_2
    outer = base / f"forktrace-failed-{os.getpid()}"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    if base is version_2:
        for directory in (base, outer):
            (directory / "cgroup.subtree_control").write_text("+pids")
    try:
        yield inner
    finally:
        wait_until(lambda: not (inner / "cgroup.procs").read_text(), what="the cgroup is empty")
        inner.rmdir()
        outer.rmdir()


@pytest.mark.parametrize(
    ("inner", "outer", "hit"),
    [
        ("2", "max", "inner"),
        ("max", "2", "outer"),
        ("100", "2", "outer"),
        ("2", "2", "inner"),  # the inner one is charged first
    ],
)
def test_a_full_cgroup(cgroup: Path, programs: Path, inner: str, outer: str, hit: str) -> None:
    (cgroup / "pids.max").write_text(inner)
    (cgroup.parent / "pids.max").write_text(outer)
    with Program.start(programs / "fork_fail", "as_it_is", wait=True) as program:
        (cgroup / "cgroup.procs").write_text(str(program.pid))
        traced = trace_program(program)
    found = failures(traced)
    assert {(each.errno, each.thread) for each in found} == {("EAGAIN", False), ("EAGAIN", True)}
    where = cgroup if hit == "inner" else cgroup.parent
    for each in found:
        assert each.limit is not None
        assert each.limit == {"name": "pids.max", "where": in_hierarchy(where), "value": 2, "current": 2}
    assert f"pids.max 2 of 2 ({in_hierarchy(where)})" in text_of(traced)


def test_a_cgroup_that_is_not_full_any_more(cgroup: Path, programs: Path) -> None:
    """It had refused before the trace: that proves nothing of failures that have another cause."""
    (cgroup / "pids.max").write_text("2")
    with Program.start(programs / "fork_fail", "as_it_is") as program:  # in no cgroup: all succeeds
        program.truth()
    with Program.start(programs / "fork_fail", "as_it_is", wait=True) as program:
        (cgroup / "cgroup.procs").write_text(str(program.pid))
        program.go()
        program.truth()
    (cgroup / "pids.max").write_text("100")
    with Program.start(programs / "fork_fail", "nproc", wait=True) as program:
        (cgroup / "cgroup.procs").write_text(str(program.pid))
        found = failures(trace_program(program))
    assert {each.limit["name"] for each in found if each.limit} == {"RLIMIT_NPROC"}


def in_hierarchy(directory: Path) -> str:
    return f"/{directory.relative_to(directory.parents[0] if directory.name != 'inner' else directory.parents[1])}"
