"""What is traced besides one process: the whole host, a cgroup; and with what, --light and --no-stacks."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import DEADLINE_S, Tracer, tracing
from support import Program, wait_until

from tracer.limits import cgroup_mounts

pytestmark = pytest.mark.kernel

LEAKS = 3
START = Callable[..., Program]
OPTIONS = ("--min-age", 0, "--json")


def leak(program: Program) -> None:
    program.go()
    program.truth()


def report_of(running: Tracer) -> dict[str, Any]:
    answer = running.interrupt()
    assert answer.status == 0
    found = json.loads(answer.out)
    assert isinstance(found, dict)
    return found


def leaks_of(program: Program, report: dict[str, Any]) -> list[dict[str, Any]]:
    pids = [{parent["pid"] for parent in leak["parents"]} for leak in report["leaks"]]
    return [leak for leak, parents in zip(report["leaks"], pids, strict=True) if program.pid in parents]


# --- the host -------------------------------------------------------------------------------------------------


def test_everything(start: START) -> None:
    """A program that nobody named is found, and what was started after the trace began, too."""
    before = start("leaky_main", LEAKS, 1, wait=True)
    with tracing("--all", *OPTIONS) as running:
        after = start("leaky_main", LEAKS, 1, wait=True)
        leak(before)
        leak(after)
        report = report_of(running)
    for program in (before, after):
        ours = leaks_of(program, report)
        assert [leak["kind"] for leak in ours] == ["zombie"]
        assert ours[0]["responsible"]["name"] == "libleaky"
        (count,) = (parent["count"] for parent in ours[0]["parents"] if parent["pid"] == program.pid)
        assert count == LEAKS
    assert report["trace"]["targets"] == []


def test_everything_counts_no_old_zombie_as_a_leak(start: START) -> None:
    program = start("leaky_main", LEAKS, 1)
    program.truth()
    with tracing("--all", *OPTIONS) as running:
        report = report_of(running)
    assert leaks_of(program, report) == []
    assert report["totals"]["pre_existing_zombies"] >= LEAKS
    assert report["reconciliation"]["unexplained"] == 0


# --- cgroups --------------------------------------------------------------------------------------------------


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup directory of our own: of version 2 where that has the processes' home, else of some version 1."""
    mounts = [*cgroup_mounts(unified=True), *cgroup_mounts(unified=False)]
    assert mounts, "no cgroup hierarchy is mounted"
    directory = mounts[0][0] / f"forktrace-test-{os.getpid()}-{time.monotonic_ns()}"
    (directory / "below").mkdir(parents=True)
    yield directory
    for each in (directory / "below", directory):
        with contextlib.suppress(FileNotFoundError):
            wait_until(lambda each=each: not (each / "cgroup.procs").read_text(), DEADLINE_S)
            each.rmdir()


def join(program: Program, cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(program.pid))


def test_a_cgroup(start: START, cgroup: Path) -> None:
    """Its processes and those below it, and no other."""
    inside, below, outside = (start("leaky_main", LEAKS, 1, wait=True) for _ in range(3))
    join(inside, cgroup)
    join(below, cgroup / "below")
    with tracing("--cgroup", cgroup, *OPTIONS, begun=f"forktrace: tracing cgroup {cgroup}") as running:
        for program in (inside, below, outside):
            leak(program)
        report = report_of(running)
    assert {target["pid"] for target in report["trace"]["targets"]} == {inside.pid, below.pid}
    (found,) = report["leaks"]
    assert {parent["pid"]: parent["count"] for parent in found["parents"]} == {
        inside.pid: LEAKS,
        below.pid: LEAKS,
    }
    for program in (inside, below):
        program.close()


def test_a_process_that_joins_later(start: START, cgroup: Path) -> None:
    first, second = (start("leaky_main", LEAKS, 1, wait=True) for _ in range(2))
    join(first, cgroup)
    with tracing("--cgroup", cgroup, "-v", *OPTIONS) as running:
        join(second, cgroup)
        time.sleep(1.5)  # the cgroup is looked at each second, and nothing tells from outside that it was
        leak(second)
        report = report_of(running)
    assert sum(leak["count"] for leak in leaks_of(second, report)) == LEAKS
    for program in (first, second):
        program.close()


def test_a_container_that_ends_ends_the_trace(start: START, cgroup: Path) -> None:
    """Its directory goes with it."""
    program = start("leaky_main", LEAKS, 1, wait=True)
    join(program, cgroup)
    with tracing("--cgroup", cgroup, *OPTIONS) as running:
        leak(program)
        program.close()
        for each in (cgroup / "below", cgroup):
            wait_until(lambda each=each: not (each / "cgroup.procs").read_text(), DEADLINE_S)
            each.rmdir()
        answer = running.end()
    assert answer.status == 0
    assert json.loads(answer.out)["leaks"][0]["count"] == LEAKS


def test_an_empty_cgroup(cgroup: Path) -> None:
    with tracing("--cgroup", cgroup, begun="") as running:
        answer = running.end()
    assert (answer.status, answer.out) == (1, "")
    assert answer.err == f"forktrace: no process is in the cgroup {cgroup}\n  start it first\n"


# --- with less ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--light", "--no-stacks"])
def test_with_less(option: str, start: START) -> None:
    program = start("leaky_main", LEAKS, 1, wait=True)
    with tracing("-p", program.pid, option, *OPTIONS) as running:
        leak(program)
        report = report_of(running)
    (found,) = report["leaks"]
    assert (found["kind"], found["count"]) == ("zombie", LEAKS)
    assert report["totals"]["waited"] == LEAKS
    assert report["trace"]["complete"]
    if option == "--light":
        assert found["responsible"]["function"] == "leaky_spawn_helper"
        assert any("--light" in note for note in report["notes"])
    else:
        assert found["responsible"] is None
        assert found["stack"] == []
