"""``forktrace ps`` on the real /proc, beside programs that leave a known number of zombies."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PS = [sys.executable, "-c", "from tracer.cli.ps import ps; ps(prog_name='forktrace ps')"]
NOBODY = 65534
DEADLINE_S = 10.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")


@contextmanager
def parent_of(
    zombies: int, comm: str = "", living: int = 0, threads: int = 1, uid: int | None = None
) -> Iterator[int]:
    """The pid of a program that has so many dead and living children."""
    source = f"""
import ctypes, os, signal, sys, threading
if {comm!r}:
    ctypes.CDLL(None).prctl(15, {os.fsencode(comm)!r}, 0, 0, 0)
ends = os.pipe()
for _ in range({zombies}):
    if not os.fork():
        os._exit(3)
for _ in range({living}):
    if not os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(ends[1])
        os.read(ends[0], 1)  # until the parent is gone
        os._exit(0)
for _ in range({threads} - 1):
    threading.Thread(target=sys.stdin.read).start()
for _ in range({zombies}):
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
"""
    with subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=uid
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            wait_for_zombies(process.pid, zombies)
            yield process.pid
        finally:
            process.kill()


def wait_for_zombies(pid: int, count: int) -> None:
    """By procps: WNOWAIT shows the same child again and again."""
    end = time.monotonic() + DEADLINE_S
    while True:
        out = subprocess.run(
            ["ps", "--ppid", str(pid), "-o", "stat="], check=False, capture_output=True, text=True
        )
        if out.stdout.count("Z") == count:
            return
        assert time.monotonic() < end, "the zombies did not appear"


def wait_for_state(pid: int, state: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not subprocess.check_output(["ps", "-o", "stat=", "-p", str(pid)], text=True).startswith(state):
        assert time.monotonic() < end, f"{pid} did not come to state {state}"


def forktrace_ps(*arguments: str, uid: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PS, *arguments], check=False, capture_output=True, text=True, user=uid)


def brood(pid: int, uid: int | None = None) -> dict[str, Any]:
    answer = forktrace_ps("--json", uid=uid)
    assert (answer.returncode, answer.stderr) == (0, "")
    data = json.loads(answer.stdout)
    assert data["schema"] == "forktrace.ps/1"
    assert data["zombies"] == sum(parent["zombies"] for parent in data["parents"])
    (found,) = [parent for parent in data["parents"] if parent["pid"] == pid]
    return dict(found)


def masked(text: str) -> str:
    return re.sub(r"\b\d+(\.\d)?s ago", "SOON ago", text)


def line_of(pid: int, text: str) -> str:
    """The lines on one parent, joined."""
    entry = re.search(rf"^[\d,]+ zombies? of pid {pid} \(.*(\n    .*)*", text, re.MULTILINE)
    assert entry is not None, text
    return masked(" ".join(line.strip() for line in entry[0].split("\n")))


def test_zombies_by_parent() -> None:
    with parent_of(26, "unicorn") as pid, parent_of(1, "puma") as other:
        answer = forktrace_ps()
        assert (answer.returncode, answer.stderr) == (0, "")
        assert line_of(pid, answer.stdout) == (
            f"26 zombies of pid {pid} (unicorn): unicorn x26; oldest started SOON ago"
        )
        assert line_of(other, answer.stdout) == f"1 zombie of pid {other} (puma): puma x1; started SOON ago"
        counts = [
            int(n.replace(",", "")) for n in re.findall(r"^([\d,]+) zombies? of pid .*:", answer.stdout, re.M)
        ]
        assert counts == sorted(counts, reverse=True)
        first = answer.stdout.split("\n")[0]
        assert re.match(r"[\d,]+ zombies of \d+ parents, [\d,]+ of them of pid \d+ \(", first)
        assert "Which code forks them: sudo forktrace -p " in answer.stdout
        assert max(map(len, answer.stdout.split("\n"))) <= 80


def test_json() -> None:
    with parent_of(5, "unicorn") as pid:
        found = brood(pid)
        assert (found["comm"], found["zombies"], found["comms"]) == ("unicorn", 5, {"unicorn": 5})
        assert [child["wait_status"] for child in found["children"]] == [3 << 8] * 5
        assert 0 <= found["oldest_start_age_s"] < DEADLINE_S + 60
        by_ps = subprocess.check_output(["ps", "--ppid", str(pid), "-o", "pid="], text=True).split()
        assert [child["pid"] for child in found["children"]] == sorted(map(int, by_ps))


@needs_root
def test_as_nobody() -> None:
    with parent_of(4, "unicorn") as pid, parent_of(3, "puma", uid=NOBODY) as own:
        for parent, count in ((pid, 4), (own, 3)):
            assert brood(parent, uid=NOBODY)["zombies"] == count
            answer = forktrace_ps("-p", str(parent), uid=NOBODY)
            assert (answer.returncode, answer.stderr) == (0, "")
            assert f"children  {count}: 0 living, {count} zombies" in answer.stdout


def test_one_process() -> None:
    with parent_of(3, "unicorn", living=2, threads=4) as pid:
        answer = forktrace_ps("-p", str(pid))
        assert (answer.returncode, answer.stderr) == (0, "")
        head, limits = masked(answer.stdout).split("  limits    ")
        assert head.split("\n") == [
            f"pid {pid} (unicorn): sleeping, uid {os.getuid()}, started SOON ago",
            "  children  5: 2 living, 3 zombies",
            "  zombies   unicorn x3; oldest started SOON ago",
            "  living    unicorn x2; oldest started SOON ago",
            "  threads   4",
            "",
        ]
        assert re.search(r"threads-max [\d,]+ of [\d,]+, the host\n", limits)
        assert re.search(r"pid_max [\d,]+ of [\d,]+, the host\n", limits)

        (data,) = json.loads(forktrace_ps("--json", "-p", str(pid)).stdout)["processes"]
        assert data["children"] == {"living": 2, "zombies": 3}
        assert (data["threads"], data["living"], data["zombie"]) == (4, {"unicorn": 2}, False)
        assert data["parent"]["pid"] == os.getpid()
        assert [zombie["wait_status"] for zombie in data["zombies"]] == [768] * 3
        assert {limit["name"] for limit in data["limits"]} >= {"threads-max", "pid_max"}


def test_a_zombie_asked_for() -> None:
    with parent_of(1, "unicorn") as pid:
        (child,) = brood(pid)["children"]
        answer = forktrace_ps("-p", str(child["pid"]))
        assert answer.returncode == 0
        words = " ".join(answer.stdout.split())
        assert f"pid {child['pid']} (unicorn): a zombie that pid {pid} (unicorn) has to reap, uid" in words


def test_a_dead_leader_is_no_zombie() -> None:
    exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    source = f"""
import ctypes, sys, threading
threading.Thread(target=lambda: (print("ready", flush=True), sys.stdin.read())).start()
ctypes.CDLL(None).syscall({exit_thread}, 0)
"""
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            wait_for_state(process.pid, "Z")
            answer = forktrace_ps("-p", str(process.pid))
            words = " ".join(answer.stdout.split())
            assert f"pid {process.pid} (python" in words
            assert "): its leader is dead, 1 thread lives on, uid" in words
            assert f" of pid {os.getpid()} (" not in forktrace_ps().stdout
        finally:
            process.kill()


def test_several_pids_one_of_them_missing() -> None:
    with parent_of(1) as one, parent_of(0) as two, parent_of(0) as three:
        pass
    gone = three
    with parent_of(1) as one, parent_of(0) as two:
        answer = forktrace_ps("-p", f"{two},{gone}", "--pid", f"{one}", "-p", str(two))
        heads = [line.split(" ")[1] for line in answer.stdout.split("\n") if line.startswith("pid ")]
        assert heads == [str(two), str(one)]
        assert (answer.returncode, answer.stderr) == (1, f"Error: there is no process {gone}\n")


def test_a_thread() -> None:
    with parent_of(0, threads=2) as pid:
        (tid,) = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid)]
        answer = forktrace_ps("-p", str(tid))
        assert answer.stdout == ""
        assert answer.stderr == f"Error: {tid} is a thread of process {pid}: use -p {pid}\n"
        assert answer.returncode == 1


@pytest.mark.parametrize("value", ["x", "0", "-1", "1,", "1;2", "٣", "1.5", "4194305", "9" * 30, ""])
def test_what_is_no_pid(value: str) -> None:
    answer = forktrace_ps("-p", value)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "is not a pid" in answer.stderr


def test_hostile_names() -> None:
    with parent_of(2, "a) Z\n\x1b[2Jb") as pid:
        text = forktrace_ps().stdout
        assert line_of(pid, text).startswith(rf"2 zombies of pid {pid} (a) Z\n\x1b[2Jb): a) Z\n\x1b[2Jb x2;")
        assert "\x1b" not in text
        assert r"(a) Z\n\x1b[2Jb)" in forktrace_ps("-p", str(pid)).stdout
        assert brood(pid)["comm"] == "a) Z\n\x1b[2Jb"


def test_no_zombies() -> None:
    """A pid namespace with its own /proc, in which nobody is dead."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", *PS]
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "No zombies among 1 process.\n", "")


@needs_root
def test_hidepid_is_said() -> None:
    """/proc of a mount namespace that shows nobody his own processes only."""
    shell = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    nobody = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]

    def hidden(*arguments: str, as_nobody: bool = True) -> subprocess.CompletedProcess[str]:
        command = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            shell,
            "sh",
            *(nobody if as_nobody else []),
            *PS,
            *arguments,
        ]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    with parent_of(3, "unicorn") as pid:
        answer = hidden()
        assert answer.stdout.startswith("No zombies among ")
        assert (
            answer.stderr
            == "note: /proc hides other users' processes from you (hidepid); root sees them all\n"
        )
        assert answer.returncode == 0
        answer = hidden("-p", str(pid))
        assert answer.returncode == 1
        assert (
            answer.stderr
            == f"Error: there is no process {pid}, or it is hidden from you (hidepid): try as root\n"
        )
        answer = hidden(as_nobody=False)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert line_of(pid, answer.stdout).startswith("3 zombies")
