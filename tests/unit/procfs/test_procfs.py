"""/proc read against programs that know the truth, and against procps."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tracer import procfs
from tracer.lifecycle.task import task_id

DEADLINE_S = 10.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.005)


@contextmanager
def program(source: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Run Python source that prints one line of numbers and then waits for its stdin to close."""
    command = [sys.executable, "-c", source + "\nimport sys\nsys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, [int(word) for word in process.stdout.readline().split()]
        finally:
            process.kill()


def zombie(pid: int) -> bool:
    stat = procfs.read_stat(pid)
    return stat is not None and procfs.is_zombie(stat)


FORK_THREE = """
import os, signal
def child(end):
    pid = os.fork()
    if not pid:
        end()
    return pid
print(child(lambda: os._exit(0)), child(lambda: os._exit(7)),
      child(lambda: os.kill(os.getpid(), signal.SIGKILL)), flush=True)
"""


def test_zombies_their_parent_and_exit_codes() -> None:
    with program(FORK_THREE) as (parent, pids):
        until(lambda: all(zombie(pid) for pid in pids))
        stats = procfs.scan()
        assert sorted(procfs.children_of(stats)[parent.pid]) == sorted(pids)
        assert procfs.descendants(stats, [parent.pid]) == set(pids)
        assert parent.pid in procfs.descendants(stats, [os.getpid()])
        zeros = (
            0 if os.geteuid() == 0 else None
        )  # a 0 may not be told from "not allowed" without the capability
        assert [stats[pid].exit_code for pid in pids] == [zeros, 7 << 8, signal.SIGKILL]
        assert [procfs.read_stat(pid) for pid in pids] == [stats[pid] for pid in pids]
        assert stats[parent.pid].exit_code is None
        assert not procfs.is_zombie(stats[parent.pid])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_an_exit_code_of_zero_is_unknown_to_others() -> None:
    look = (
        "import os, sys; os.setuid(65534); from tracer import procfs; pids = list(map(int, sys.argv[1:])); "
        "scan = procfs.scan(); print([s.exit_code for p in pids for s in (scan[p], procfs.read_stat(p))])"
    )
    with program(FORK_THREE) as (_, pids):
        until(lambda: all(zombie(pid) for pid in pids))
        command = [sys.executable, "-c", look, *map(str, pids)]
        assert subprocess.check_output(command, text=True).strip() == str([None] * 6)


@pytest.mark.parametrize("comm", [b"a) Z 1 (b", b"))) ((", b"two\nlines", b"\xff\xfe", b"", b" ", b"x" * 15])
def test_a_comm_that_lies(comm: bytes) -> None:
    set_name = (
        f"import ctypes, os; ctypes.CDLL(None).prctl(15, {comm!r}, 0, 0, 0); print(os.getppid(), flush=True)"
    )
    with program(set_name) as (process, (ppid,)):
        stat = procfs.read_stat(process.pid)
        assert stat is not None
        assert (stat.pid, stat.ppid, stat.comm) == (
            process.pid,
            ppid,
            comm.decode("utf-8", "backslashreplace"),
        )
        assert stat.state in "RS"
        assert procfs.status(process.pid) is not None


def test_a_dead_leader_with_living_threads_is_no_zombie() -> None:
    exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    source = f"""
import ctypes, os, sys, threading
threading.Thread(target=sys.stdin.read).start()
print(os.getpid(), flush=True)
ctypes.CDLL(None).syscall({exit_thread}, 0)
"""
    with program(source) as (process, _):
        until(lambda: (procfs.read_stat(process.pid) or pytest.fail("it is gone")).state == "Z")
        stat = procfs.read_stat(process.pid)
        assert stat is not None
        assert stat.num_threads == 2
        assert not procfs.is_zombie(stat)
        process.kill()
        until(lambda: zombie(process.pid))


@pytest.mark.parametrize(
    ("state", "flags", "threads", "ending"),
    [
        ("S", 0x400000, 1, False),
        ("R", 0x400004, 1, True),  # PF_EXITING
        ("R", 0x400004, 2, False),  # its leader is on its way out, another thread goes on
        ("Z", 0x40000C, 2, False),
        ("Z", 0x40000C, 1, True),
    ],
)
def test_a_process_in_its_exit_is_ending(state: str, flags: int, threads: int, ending: bool) -> None:
    numbers = [1, 1, 1, 0, -1, flags, *[0] * 10, threads, 0, 5, *[0] * 30]
    stat = procfs.parse_stat(f"7 (x) {state} {' '.join(map(str, numbers))}\n".encode())
    assert procfs.is_ending(stat) == ending


def test_a_thread_tells_its_leader() -> None:
    source = """
import sys, threading
threading.Thread(target=lambda: (print(threading.get_native_id(), flush=True), sys.stdin.read())).start()
"""
    with program(source) as (process, (tid,)):
        status = procfs.status(tid)
        assert status is not None
        assert (status.is_thread, status.pid, status.tgid, status.threads) == (True, tid, process.pid, 2)
        leader = procfs.status(process.pid)
        assert leader is not None
        assert not leader.is_thread
        assert leader.ns_pids[0] == leader.ns_tgids[0] == process.pid
        assert leader.uid == os.getuid()


def test_signal_masks() -> None:
    source = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
print(os.getpid(), flush=True)
"""
    with program(source) as (process, _):
        status = procfs.status(process.pid)
        assert status is not None
        assert status.ignores_sigchld
        assert status.sig_caught & 1 << signal.SIGUSR1 - 1
        assert status.sig_blocked & 1 << signal.SIGUSR2 - 1
    own = procfs.status(os.getpid())
    assert own is not None
    assert not own.ignores_sigchld


def test_gone() -> None:
    with program("print(0)") as (process, _):
        pid = process.pid
    assert procfs.read_stat(pid) is None
    assert procfs.status(pid) is None


def test_scan_agrees_with_procps() -> None:
    def by_ps() -> dict[int, tuple[int, int, int, int]]:
        out = subprocess.check_output(["ps", "-e", "-o", "pid=,ppid=,pgid=,sid=,nlwp="], text=True)
        return {int(row[0]): tuple(map(int, row[1:])) for row in map(str.split, out.splitlines())}  # type: ignore[misc]

    before, stats, after = by_ps(), procfs.scan(), by_ps()
    steady = {pid: row for pid, row in before.items() if after.get(pid) == row}
    assert len(steady) > 10
    for pid, row in steady.items():
        stat = stats[pid]
        assert (stat.ppid, stat.pgrp, stat.session, stat.num_threads) == row
    assert all(stats[pid].is_kernel_thread == (pid == 2 or stats[pid].ppid == 2) for pid in steady)


def test_age_and_identity() -> None:
    before = procfs.boottime_ns()
    with program("print(0)") as (process, _):
        after = procfs.boottime_ns()
        stat = procfs.read_stat(process.pid)
        assert stat is not None
        started = procfs.ticks_to_ns(stat.start_ticks)
        assert before - 10_000_000 <= started <= after
        assert procfs.age_ns(stat, after) == after - started
        assert procfs.age_ns(stat, 0) == 0
        assert procfs.identity(stat) == task_id(process.pid, stat.start_ticks)


def test_descendants_survive_a_circle() -> None:
    def stat(pid: int, ppid: int) -> procfs.Stat:
        return procfs.Stat(pid, "x", "S", ppid, 0, 0, 0, 1, 0, None)

    stats = {10: stat(10, 12), 11: stat(11, 10), 12: stat(12, 11), 20: stat(20, 1)}
    assert procfs.descendants(stats, [10]) == {10, 11, 12}
    assert procfs.descendants(stats, [1]) == {20}
    assert procfs.descendants(stats, [99]) == set()


@pytest.mark.parametrize("line", [b"", b"1 (x", b"1 (x) S 1 2", b"x) " + b"S " * 30])
def test_a_line_that_is_none(line: bytes) -> None:
    with pytest.raises(ValueError):
        procfs.parse_stat(line)


def test_host_facts() -> None:
    facts = procfs.host_facts()
    assert facts["kernel"] == subprocess.check_output(["uname", "-r"], text=True).strip()
    assert facts["machine"] == subprocess.check_output(["uname", "-m"], text=True).strip()
    assert facts["cpus"] == int(subprocess.check_output(["nproc", "--all"], text=True))
    assert len(str(facts["boot_id"])) == 36
