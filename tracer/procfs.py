"""/proc as data: who is there now, whose child it is, and whether it is a zombie.  No BPF, no root.

It stands beside the way of the data: the tracer scans here once its hooks are attached (trap 15: attach,
scan, merge) and again to reconcile after a loss, and ``forktrace ps`` has nothing else.  Layouts are those of
proc_pid_stat(5) and proc_pid_status(5).

A scan is no snapshot: processes come and go while it runs.  What is gone by the time it is read is left out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tracer.lifecycle.task import NS_PER_TICK, task_id
from tracer.records import WAIT_ANY, WAIT_OTHER

PF_EXITING = 0x00000004
PF_KTHREAD = 0x00200000  # include/linux/sched.h
INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h
_CAP_SYS_PTRACE = 19
_WAIT4, _WAITID = {"x86_64": (61, 247), "aarch64": (260, 95)}.get(platform.machine(), (-1, -1))
_WEXITED, _P_ALL, _P_PID, _P_PIDFD = 4, 0, 1, 3
MAX_THREADS = 64  # of one process, looked at
MAX_DESCRIPTORS = 1024
_SIGCHLD = 17
_MAX_STAT = 4096  # a comm of 64 bytes and 52 numbers of at most 20 digits stay far below
_READ = 1 << 16  # a sysctl allocates as much as it is asked for
_MAX_READS = 1 << 10  # seq_file gives at most a page a read: 4 MiB
_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EPERM, errno.EACCES)  # hidepid=1 hides by EPERM


@dataclass(frozen=True, slots=True)
class Stat:
    """One line of /proc/PID/stat, as far as the family graph wants it.

    comm: decoded with backslashreplace; the process wrote it itself, so escape it before a terminal sees it.
    state: one letter of proc_pid_stat(5).  start_ticks: 10 ms since boot, in the reader's time namespace.
    exit_code: of a zombie, as wait() reports it; None while it lives, or when the reader may not know.
    """

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    session: int
    flags: int
    num_threads: int
    start_ticks: int
    exit_code: int | None

    @property
    def is_kernel_thread(self) -> bool:
        return bool(self.flags & PF_KTHREAD)


@dataclass(frozen=True, slots=True)
class Status:
    """What /proc/PID/status tells beyond ``Stat``.

    tgid: the process that this id belongs to; another number than pid when pid is a thread.
    ns_tgids, ns_pids: the ids in each nested pid namespace, the reader's first, its own innermost one last.
    sig_pending (for the thread or its process), sig_ignored, sig_caught, sig_blocked: bit N - 1 stands for signal N.
    cap_effective: bit N for capability N.
    tracer: pid of the process that ptraces it, 0 for none.
    """

    pid: int
    tgid: int
    ppid: int
    threads: int
    uid: int
    ns_tgids: tuple[int, ...]
    ns_pids: tuple[int, ...]
    sig_pending: int
    sig_blocked: int
    sig_ignored: int
    sig_caught: int
    cap_effective: int
    tracer: int

    @property
    def is_thread(self) -> bool:
        """The id names a thread that is not the leader of its group."""
        return self.pid != self.tgid

    @property
    def ignores_sigchld(self) -> bool:
        """Its children are reaped by the kernel (SA_NOCLDWAIT does the same and shows nowhere in /proc)."""
        return bool(self.sig_ignored >> (_SIGCHLD - 1) & 1)


def parse_stat(line: bytes) -> Stat:
    """Decode one /proc/PID/stat.  Raises ValueError when it is none.

    A comm may hold blanks, parentheses and newlines, so fields are counted from the last parenthesis.  The
    exit code is taken as printed; ``read_stat`` and ``scan`` know when that may be trusted.
    """
    head, paren, tail = line.rpartition(b")")
    pid, _, comm = head.partition(b" (")
    fields = tail.split()
    if not paren or len(fields) < 20:
        raise ValueError("not a line of /proc/PID/stat")
    state = chr(fields[0][0])
    return Stat(
        int(pid),
        comm.decode("utf-8", "backslashreplace"),
        state,
        int(fields[1]),
        int(fields[2]),
        int(fields[3]),
        int(fields[6]),
        int(fields[17]),
        int(fields[19]),
        int(fields[49]) if state in "ZX" and len(fields) > 49 else None,
    )


def read_stat(pid: int) -> Stat | None:
    """One process (or thread); None when it is gone or hidden from us."""
    line = _read_line(f"/proc/{pid}/stat")
    if not line:
        return None
    stat = parse_stat(line)
    if stat.exit_code == 0 and not _may_trace_others():
        return replace(stat, exit_code=None)
    return stat


def scan() -> dict[int, Stat]:
    """Every process of the host that we may see, by pid.  About 7 us each (one open, read and close)."""
    stats: dict[int, Stat] = {}
    seen: list[int] = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - a third of the cost of pathlib's
        if not name.isdigit():
            continue
        line = _read_line(f"/proc/{name}/stat")
        if not line:
            continue
        stat = parse_stat(line)
        stats[stat.pid] = stat
        if stat.exit_code == 0:
            seen.append(stat.pid)
    if seen and not _may_trace_others():
        for pid in seen:
            stats[pid] = replace(stats[pid], exit_code=None)
    return stats


def status(pid: int) -> Status | None:
    """One process or thread; None when it is gone or hidden from us."""
    return _parse_status(read_file(f"/proc/{pid}/status") or b"")


def _parse_status(text: bytes) -> Status | None:
    fields: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):  # the kernel escapes newlines in Name
        key, _, value = line.partition(b":")
        fields.setdefault(key, value)
    if b"SigIgn" not in fields:  # gone, or released between open and read: then the signal lines are left out
        return None
    return Status(
        pid=int(fields[b"Pid"]),
        tgid=int(fields[b"Tgid"]),
        ppid=int(fields[b"PPid"]),
        threads=int(fields[b"Threads"]),
        uid=int(fields[b"Uid"].split()[0]),
        ns_tgids=_numbers(fields.get(b"NStgid", fields[b"Tgid"])),  # absent without CONFIG_PID_NS
        ns_pids=_numbers(fields.get(b"NSpid", fields[b"Pid"])),
        sig_pending=int(fields[b"SigPnd"], 16) | int(fields[b"ShdPnd"], 16),
        sig_blocked=int(fields[b"SigBlk"], 16),
        sig_ignored=int(fields[b"SigIgn"], 16),
        sig_caught=int(fields[b"SigCgt"], 16),
        cap_effective=int(fields[b"CapEff"], 16),
        tracer=int(fields.get(b"TracerPid", b"0")),
    )


def threads(pid: int) -> list[int]:
    """Ids of its threads, ``MAX_THREADS`` of them at most; empty when it is gone."""
    try:
        return [int(tid) for tid in os.listdir(f"/proc/{pid}/task")[:MAX_THREADS]]  # noqa: PTH208
    except OSError:
        return []


def waiting_for(pid: int) -> tuple[int, ...]:
    """What its threads wait for now, in wait4 or waitid: a pid, -1 for any child, else a process group.

    A pid is one of the waiter's namespace, by pidfd one of ours; a group is negated, the caller's own is
    ``records.WAIT_OTHER``, as is a pidfd that tells no pid.  Empty also for who may not ptrace it.
    """
    found = []
    for tid in threads(pid):
        words = (read_file(f"/proc/{pid}/task/{tid}/syscall") or b"").split()
        if len(words) < 5 or not words[0].isdigit():
            continue
        number, first, second, _, options = (int(words[0]), *(int(word, 16) for word in words[1:5]))
        if number == _WAIT4:
            found.append(_signed(first) or WAIT_OTHER)
        elif number == _WAITID and options & _WEXITED:
            found.append(_waitid_target(pid, first, _signed(second)))
    return tuple(dict.fromkeys(found))


def _waitid_target(pid: int, idtype: int, target: int) -> int:
    if idtype == _P_ALL:
        return WAIT_ANY
    if idtype == _P_PIDFD:
        return _pid_of_pidfd(pid, target) or WAIT_OTHER
    return target if idtype == _P_PID else -target or WAIT_OTHER


def _pid_of_pidfd(pid: int, descriptor: int) -> int:
    for line in (read_file(f"/proc/{pid}/fdinfo/{descriptor}") or b"").splitlines():
        if line.startswith(b"Pid:"):
            return max(int(line[4:]), 0)  # -1: it was reaped
    return 0


def reads_by_signalfd(pid: int, number: int) -> bool:
    """It has a signalfd for this signal among its first ``MAX_DESCRIPTORS`` descriptors."""
    bit = 1 << (number - 1)
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fdinfo")[:MAX_DESCRIPTORS]:  # noqa: PTH208
            for line in (read_file(f"/proc/{pid}/fdinfo/{name}") or b"").splitlines():
                if line.startswith(b"sigmask:") and int(line[8:], 16) & bit:
                    return True
    return False


def _signed(word: int) -> int:
    """A C int, from a register."""
    return (word & 0xFFFFFFFF) - ((word & 0x80000000) << 1)


def identity(stat: Stat) -> int:
    """The number that names this process in the graph; see ``tracer.lifecycle.task``."""
    return task_id(stat.pid, stat.start_ticks)


def is_zombie(stat: Stat) -> bool:
    """Dead and not reaped.

    Not so a dead leader whose threads live on (trap 4): it shows Z too, yet nobody can reap it.  The thread
    count is of unreleased threads, so the leader alone gives 1.  X is a task being released at this moment.
    """
    return stat.state == "Z" and stat.num_threads <= 1


def is_ending(stat: Stat) -> bool:
    """Dead, or in the middle of its exit: what the kernel has to say of it may have been said already."""
    return is_zombie(stat) or (bool(stat.flags & PF_EXITING) and stat.num_threads <= 1)


def children_of(stats: Mapping[int, Stat]) -> dict[int, list[int]]:
    """Parent pid to its children's pids; parents without children have no entry."""
    children: dict[int, list[int]] = {}
    for stat in stats.values():
        children.setdefault(stat.ppid, []).append(stat.pid)
    return children


def descendants(stats: Mapping[int, Stat], roots: Iterable[int]) -> set[int]:
    """Pids of all below the roots.  A root is in it only when it stands below another root."""
    children = children_of(stats)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        for pid in children.get(todo.pop(), ()):
            if pid not in found:  # a reused pid may close a circle in a scan
                found.add(pid)
                todo.append(pid)
    return found


def boottime_ns() -> int:
    """Now, on the clock that ``start_ticks`` counts."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def ticks_to_ns(ticks: int) -> int:
    return ticks * NS_PER_TICK


def age_ns(stat: Stat, now_ns: int) -> int:
    """Since the process was forked, at ``now_ns`` of ``boottime_ns``.  When a zombie died is not in /proc."""
    return max(now_ns - ticks_to_ns(stat.start_ticks), 0)


def hides_others() -> bool:
    """/proc is mounted with hidepid, and so a scan of ours sees our own user's processes only."""
    options: dict[bytes, bytes] = {}
    for line in (read_file("/proc/self/mountinfo") or b"").splitlines():
        fields, _, source = line.partition(b" - ")
        if fields.split()[4:5] == [b"/proc"]:  # the last one lies on top
            options = {
                name: value for name, _, value in (o.partition(b"=") for o in source.split()[-1].split(b","))
            }
    if options.get(b"hidepid", b"off") in (b"off", b"0"):
        return False
    exempt = int(options.get(b"gid", b"0"))
    return exempt not in (os.getegid(), *os.getgroups()) and not _may_trace_others()


def in_host_pid_namespace() -> bool:
    """Whether the pids of our /proc are those that the kernel's own records name."""
    return Path("/proc/self/ns/pid").stat().st_ino == INITIAL_PID_NAMESPACE


def host_facts() -> dict[str, str | int | None]:
    """The host as a report names it; None for what it does not tell."""
    name = os.uname()
    try:
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        distribution = None
    boot_id = read_file("/proc/sys/kernel/random/boot_id")
    return {
        "kernel": name.release,
        "machine": name.machine,
        "hostname": name.nodename,
        "distribution": distribution,
        "boot_id": boot_id.decode().strip() if boot_id else None,
        "cpus": os.cpu_count(),
    }


def _may_trace_others() -> bool:
    """/proc tells everything to who has this capability.  To others it prints 0 for an exit code that it hides."""
    own = _parse_status(read_file("/proc/self/status") or b"")
    return own is not None and bool(own.cap_effective >> _CAP_SYS_PTRACE & 1)


def _numbers(field: bytes) -> tuple[int, ...]:
    return tuple(map(int, field.split()))


def _read_line(path: str) -> bytes | None:
    """A file of /proc that one read gives whole: a third cheaper than ``read_file``."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _MAX_STAT)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def read_file(path: str) -> bytes | None:
    """A file of /proc or /sys, 4 MiB of it at most; None when it is gone or hidden."""
    parts: list[bytes] = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while len(parts) < _MAX_READS and (part := os.read(fd, _READ)):
                parts.append(part)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return b"".join(parts)
