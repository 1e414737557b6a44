"""The programs of tests/programs, against two witnesses of their own: /proc, and strace.

A test that compares the tracer with a program is worth what the program's word is worth.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Program, proc_state, wait_until

FATES_C = [path.read_text() for path in sorted((Path(__file__).parents[2] / "programs").glob("fates_*.c"))]
SCENARIOS = [
    name for source in FATES_C for name in re.findall(r'^\t\{"(\w+)", \w+\},$', source, re.MULTILINE)
]
NEEDS_ROOT = {"pidns", "pidns_init_exits", "pid_reuse", "pid_reuse_in_namespace"}
Start = Callable[..., Program]


def scenarios() -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.kernel) if name in NEEDS_ROOT else name for name in SCENARIOS
    ]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])


def descendants(root: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and proc_state(int(entry.name)) is not None:
            try:
                parents[int(entry.name)] = parent_of(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in {root, *found}} - found:
        found |= more
    return found


def test_every_scenario_is_listed(programs: Path) -> None:
    listed = subprocess.run([programs / "fates", "--list"], capture_output=True, text=True, check=True).stdout
    assert listed.split() != []
    assert sorted(listed.split()) == sorted(SCENARIOS)


@pytest.mark.parametrize("scenario", scenarios())
def test_proc_agrees(start: Start, scenario: str) -> None:
    program = start("fates", scenario)
    truth = [line for line in program.truth() if "pid" in line]
    standing = {
        child["pid"]: child for child in truth if child["reaper"] is None and child["fate"] != "autoreaped"
    }
    for pid, child in standing.items():
        state = proc_state(pid)
        if child["fate"] == "running":
            assert state is not None
            alive = [Path(task, "stat").read_text().rpartition(")")[2][1] for task in tasks(pid)]
            assert set(alive) - {"Z", "X"}, "no thread of it is alive"
            assert child["exec"] is None or Path(f"/proc/{pid}/comm").read_text().strip() == child["exec"]
        elif child["note"] and (child["note"].endswith(("its namespace", "ignores SIGCHLD"))):
            assert state is None
        else:
            assert state == "Z"
            if child["fate"] == "zombie":
                assert parent_of(pid) == child["parent"]
    for child in truth:
        if child["pid"] not in standing:
            assert proc_state(child["pid"]) is None, "reaped, and yet there"
    assert descendants(program.pid) <= {child["pid"] for child in truth}, "children that it did not tell of"
    assert program.release() == 0
    for child in truth:
        pid = child["pid"]
        wait_until(lambda pid=pid: proc_state(pid) in {None, "Z"}, what=f"{pid} ends with the program")  # type: ignore[misc]


def tasks(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def processes_made(strace_log: str) -> Counter[int]:
    """Pids of the processes (not the threads) that successful clones made, and how often each."""
    made: Counter[int] = Counter()
    unfinished: dict[str, str] = {}  # a caller's clone that strace shows in two lines, among those of others
    for line in strace_log.splitlines():
        caller, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            unfinished[caller] = call
            continue
        if call.startswith("<... "):
            call = unfinished.pop(caller, "") + call  # an execve may begin in a thread and end in the leader
        # in a pid namespace strace writes "= 5 /* 7688 in strace's PID NS */"
        clone = re.match(r"(?:clone3?|v?fork)\(.* = (\d+)(?: /\* (\d+) in strace's PID NS \*/)?$", call)
        if clone and "CLONE_THREAD" not in call:
            made[int(clone[2] or clone[1])] += 1
    return made


@pytest.mark.parametrize("scenario", [name for name in scenarios() if name != "burst"])
def test_strace_saw_the_same_children(programs: Path, tmp_path: Path, scenario: str) -> None:
    """Every successful clone that made a process, and every exit status, as strace decodes them."""
    log = tmp_path / "strace"
    command = ["strace", "-f", "-q", "--decode-pids=pidns", "-o", log, "-e", "trace=process"]
    run = subprocess.run(
        [*command, programs / "fates", scenario],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    if "skip" in lines[1]:
        pytest.skip(lines[1]["skip"])
    assert lines[-1] == {"ready": True}, run.stderr
    truth = [line for line in lines[1:-1] if "pid" in line]
    text = log.read_text()
    assert processes_made(text) == Counter(child["pid"] for child in truth)
    for child in truth:
        if child["exit"] is not None:
            assert re.search(
                rf"^{child['pid']} +\+\+\+ exited with {child['exit']} \+\+\+$", text, re.MULTILINE
            )
        if child["signal"] is not None:
            name = signal.Signals(child["signal"]).name
            core = r" \(core dumped\)" if child["core"] else ""
            assert re.search(rf"^{child['pid']} +\+\+\+ killed by {name}{core} \+\+\+$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["leaky_main", "leaky.py"])
def test_leaky_programs(start: Start, name: str) -> None:
    program = start(name, 6, 1, wait=True)
    assert program.hello["waiting"]
    assert descendants(program.pid) == set()
    program.go()
    (truth,) = program.truth()
    assert (truth["leaked"], truth["waited"]) == (6, 6)
    assert descendants(program.pid) == set(truth["leaked_pids"])
    assert {proc_state(pid) for pid in truth["leaked_pids"]} == {"Z"}
    assert program.release() == 0


@pytest.mark.parametrize("name", ["leaky_main", "leaky.py"])
def test_leaky_programs_obey_signals(start: Start, name: str) -> None:
    program = start(name, 2, 0, wait=True)
    os.kill(program.pid, signal.SIGUSR1)
    program.truth()
    os.kill(program.pid, signal.SIGTERM)
    assert program.release() == 0


def test_storm_counts_what_stands(start: Start) -> None:
    program = start("storm", 20, 50, 7)
    (truth,) = program.truth()
    states = Counter(proc_state(pid) for pid in descendants(program.pid))
    assert truth["forks"] == 20 + 20 * 50
    assert truth["waited"] + truth["zombie"] + truth["autoreaped"] + truth["running"] == truth["forks"]
    assert states["Z"] == truth["zombie"] == sum(truth["zombie_exits"].values())
    assert states.total() - states["Z"] == truth["running"] == 20
    assert sum(truth["exits"].values()) == 20 * 50
    assert sum(truth["calls"].values()) == truth["waited"]


def test_storm_is_the_same_for_a_seed(start: Start) -> None:
    first, second, other = (start("storm", 10, 20, seed).truth() for seed in (3, 3, 4))
    assert first == second != other


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("way", "failures", "threads", "children"),
    [
        ("nproc", [("EAGAIN", False), ("EAGAIN", True)], 0, 1),
        ("clone3_enosys", [], 3, 4),
        ("clone3_eperm", [("EPERM", True)], 0, 4),
        ("clone_eperm", [("EPERM", False)], 3, 1),
        ("dead_init", [("ENOMEM", False)], 0, 2),
        ("pid_max", [("EAGAIN", False), ("EAGAIN", True)], 0, 2),
    ],
)
def test_forks_fail(
    start: Start, way: str, failures: list[tuple[str, bool]], threads: int, children: int
) -> None:
    truth = start("fork_fail", way).truth()
    failed = [line for line in truth if "failed" in line]
    assert [(line["failed"], line["thread"]) for line in failed] == failures
    assert {line["count"] for line in failed} <= {3}
    assert truth[-1] == {"threads": threads}
    assert len([line for line in truth if "fate" in line]) == children


@pytest.mark.parametrize("how", [[], ["--vfork"], ["--threads"]])
def test_forkloop(start: Start, how: list[str]) -> None:
    (figures,) = start("forkloop", 50, *how).truth()
    assert figures["rounds"] == 50
    assert figures["ns_per_round"] > 0


SILENT = """
import pytest
def test_silent():
    pytest.skip("no reason that anyone allowed")
def test_allowed():
    pytest.skip("io_uring is disabled")
def test_passes():
    pass
"""


@pytest.mark.parametrize(
    ("ci", "summary"), [("true", "1 failed, 1 passed, 1 skipped"), ("", "1 passed, 2 skipped")]
)
def test_no_skip_is_silent_in_ci(tmp_path: Path, ci: str, summary: str) -> None:
    tests = Path(__file__).parents[2]
    for name in ("conftest.py", "support.py", "allowed_skips.txt"):
        (tmp_path / name).write_bytes((tests / name).read_bytes())
    (tmp_path / "test_skips.py").write_text(SILENT)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = kernel\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(tmp_path / "test_skips.py"),
    ]
    environment = {**os.environ, "CI": ci}
    run = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert summary in run.stdout
    assert run.returncode == (1 if ci else 0)
    command[-1] = str(tmp_path / "test_module.py")
    run = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ("no_such_module" in run.stdout and run.returncode not in {0, 5}) == bool(ci)
