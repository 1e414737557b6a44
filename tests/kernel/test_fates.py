"""Every way that children live and die (tests/programs/fates.c), traced on this kernel, child by child.

The program knows the truth of its own children and says it; the trace must come to the same account, with the syscall
tracepoints and without them (--light).
"""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from support import Program, proc_state
from tracing import Traced, trace_program

from tracer.lifecycle.task import Task, pid_of

pytestmark = pytest.mark.kernel

# Each scenario of `fates --list`, and the traps of docs/lifecycle.md that it covers.
SCENARIOS: Final[dict[str, tuple[int, ...]]] = {
    "wait4": (),
    "waitid": (2,),
    "waitid_wnowait_then_wait": (2,),
    "waitid_wnowait_only": (2,),
    "waitid_null_info": (1, 2),
    "waitid_pidfd": (2,),
    "wait4_efault": (1,),
    "wnohang_poll": (2,),
    "polled_too_early": (2,),
    "waits_for_others": (),
    "waited_by_other_thread": (7,),
    "zombie": (),
    "running": (),
    "signals": (),
    "stop_continue": (2,),
    "autoreap_ignore": (3,),
    "autoreap_nocldwait": (3,),
    "sigign_after_death": (3,),
    "sigchld_handler_waits_once": (17,),
    "burst": (6,),
    "posix_spawn_ok": (6,),
    "posix_spawn_missing": (16,),
    "system_call": (),
    "popen": (),
    "popen_never_closed": (),
    "orphan": (8,),
    "orphan_unreaped": (8,),
    "orphan_autoreaped": (3, 8),
    "orphan_running": (8,),
    "double_fork_daemon": (8,),
    "zombie_then_parent_exits": (8,),
    "subreaper_nested": (8,),
    "fork_by_thread_that_exits": (7, 8),
    "wall_clone": (3,),
    "clone_signal_leak": (3,),
    "clone_signal_ignored": (3,),
    "clone3_raw": (),
    "clone_parent": (7,),
    "clone_parent_leak": (7,),
    "vfork_exec": (6,),
    "vfork_exit": (6,),
    "leader_exits_first": (4,),
    "leader_exits_first_running": (4,),
    "leader_exits_first_zombie": (4,),
    "exec_by_thread": (5,),
    "pidns": (2, 11),
    "pidns_init_exits": (11,),
    "pid_reuse": (10,),
    "pid_reuse_in_namespace": (10, 11),
    "iouring_waitid": (1,),
    "iouring_workers": (20,),
    "vhost_worker": (20,),
}
COVERED_HERE: Final = {1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 16, 17, 20}  # 15: test_start.py

Start = Callable[..., Program]


def test_every_scenario_is_traced_and_every_trap_covered(programs: Path) -> None:
    listed = subprocess.run([programs / "fates", "--list"], capture_output=True, text=True, check=True)
    assert sorted(SCENARIOS) == sorted(listed.stdout.split())
    assert {trap for traps in SCENARIOS.values() for trap in traps} == COVERED_HERE


@pytest.mark.parametrize("light", [False, True], ids=["full", "light"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_trace_tells_what_the_program_knows(start: Start, scenario: str, light: bool) -> None:
    program = start("fates", scenario, wait=True)
    traced = trace_program(program, light=light)
    truth = [child for child in traced.said if "pid" in child]
    assert traced.trace.incomplete_because == ()
    assert traced.trace.complete
    assert traced.trace.lost_events == 0
    found = matched(truth, traced)
    differences = {
        child["pid"]: wrong for child, task in found if (wrong := differing(account(child, light), task))
    }
    assert differences == {}
    check_totals(truth, traced)


def matched(truth: list[dict[str, Any]], traced: Traced) -> list[tuple[dict[str, Any], Task]]:
    """Each child with its task; no child without a task, no task without a child, none of them twice."""
    left = list(traced.children)
    found = []
    for child in truth:
        same = [
            task
            for task in left
            if task.pid == child["pid"]
            and ("start_ticks" not in child or task.id & 0xFFFFFFFF == child["start_ticks"] & 0xFFFFFFFF)
        ]
        assert len(same) == 1, f"{child} is {same}"
        left.remove(same[0])
        found.append((child, same[0]))
    assert left == []
    return found


def account(child: dict[str, Any], light: bool) -> dict[str, Any]:
    """What the task must say of this child; what the program does not know is left out."""
    expected = {
        "fate": child["fate"],
        "exit_code": wait_status(child),
        "ns_pid": child["ns_pid"],
        "has_execed": child["exec"] is not None,
        "parent": child["parent"],
        "forker": child["forker"],
    }
    if child["exec"] is not None:
        expected["comm"] = child["exec"]
    if child["reaper"] is not None:
        expected["reaper"] = child["reaper"]
    if light or child["call"] in (None, "io_uring"):
        expected["call"] = ""
    else:
        expected["call"] = child["call"]
    return expected


def wait_status(child: dict[str, Any]) -> int | None:
    if child["signal"] is not None:
        return int(child["signal"]) | (0x80 if child["core"] else 0)
    return None if child["exit"] is None else int(child["exit"]) << 8


def differing(expected: dict[str, Any], task: Task) -> dict[str, tuple[Any, Any]]:
    got = {
        "fate": task.fate.value,
        "exit_code": task.exit_code,
        "ns_pid": task.ns_pid,
        "has_execed": task.execs > 0,
        "comm": task.comm,
        "parent": pid_of(task.parent),
        "forker": pid_of(task.forker),
        "reaper": pid_of(task.reaper),
        "call": task.reaped_by_call,
    }
    return {key: (got[key], value) for key, value in expected.items() if got[key] != value}


def check_totals(truth: list[dict[str, Any]], traced: Traced) -> None:
    totals, trace = traced.trace.totals, traced.trace
    fates = Counter(child["fate"] for child in truth)
    standing = [
        child["pid"]
        for child in truth
        if child["fate"] in ("zombie", "orphaned") and proc_state(child["pid"]) == "Z"
    ]
    assert (
        totals.forks, totals.waited, totals.zombies, totals.orphaned, totals.autoreaped, totals.running,
        totals.unknown, totals.failed_forks, totals.pre_existing_zombies,
    ) == (
        len(truth), fates["waited"], fates["zombie"], fates["orphaned"], fates["autoreaped"], fates["running"],
        0, 0, 0,
    )  # fmt: skip
    assert totals.exits == sum(wait_status(child) is not None for child in truth)
    assert totals.execs == sum(task.execs for task in traced.tasks)
    assert totals.zombies_now == len(standing)
    assert trace.reconciliation is not None
    assert (trace.reconciliation.standing, trace.reconciliation.explained) == (len(standing), len(standing))
    assert trace.reconciliation.unexplained == 0
    leaked = {
        fate: sum(leak.count for leak in trace.leaks if leak.kind == fate) for fate in ("zombie", "orphaned")
    }
    # An orphan that still runs is counted as running.
    assert leaked == {"zombie": fates["zombie"], "orphaned": fates["orphaned"]}
    assert sum(tally.forks for _, tally in trace.stacks) == len(truth)
    exits = Counter[str]()
    for leak in trace.leaks:
        exits.update(leak.exits)
    assert exits == Counter(exit_text(child) for child in truth if child["fate"] in ("zombie", "orphaned"))


def exit_text(child: dict[str, Any]) -> str:
    if child["signal"] is not None:
        return signal.Signals(child["signal"]).name + ("+core" if child["core"] else "")
    return str(child["exit"])


@pytest.mark.parametrize("scenario", ["iouring_workers", "vhost_worker"])
def test_workers_of_the_kernel_are_no_threads(start: Start, scenario: str) -> None:
    """Trap 20: the program's own threads come and go as well, and they alone are counted."""
    program = start("fates", scenario, wait=True)
    traced = trace_program(program)
    said = next(line for line in traced.said if "threads" in line)
    assert said["workers"], "the kernel made no worker: nothing was tested"
    assert traced.trace.totals.threads == said["threads"]
    assert traced.trace.totals.threads_running == said["threads_running"]
