"""A process as the graph and the capture know it, and the fates it can end in.

Identity is (tgid, start time): ``Task.id`` holds the tgid in its upper 32 bits and the start time in clock ticks
(10 ms, as /proc/PID/stat gives it), modulo 2**32, in its lower 32 bits.  The kernel's side computes the same number.
"""

from __future__ import annotations

from enum import Enum

from tracer import trace

pid_of = trace.pid_of
NS_PER_TICK = 10_000_000  # USER_HZ is 100 wherever Linux runs
PRE_EXISTING = -1  # in place of a stack id: the fork came before the trace


class Fate(str, Enum):
    """Docs: docs/lifecycle.md.  Each child of a traced process ends in exactly one."""

    WAITED = "waited"
    ZOMBIE = "zombie"
    ORPHANED = "orphaned"
    AUTOREAPED = "autoreaped"
    RUNNING = "running"
    UNKNOWN = "unknown"


def task_id(tgid: int, start_ticks: int) -> int:
    return tgid << 32 | (start_ticks & 0xFFFFFFFF)


class Task:
    """One process.  Times are nanoseconds of CLOCK_BOOTTIME; 0 means "not seen".

    parent: identity of the process that had to wait for it when it was forked (CLONE_PARENT makes that another one
    than the forker).  forker: the process that called clone; 0 when the fork was not seen.
    stack: id of the forker's user stack; 0 when none came with the fork, PRE_EXISTING when it was there before the
    trace.  ns_pid: pid in its innermost namespace; forker_ns_pid: as the forker's namespace sees it.
    fork_comm: the forker's name when it forked.  exit_parent: its real parent when it died.
    exit_code: as wait() reports it (status << 8 | signal | 0x80 for a core), None while it lives.
    reaper: identity of the process under which it was released; reaped_by_call: "wait4", "waitid", or "" when no call
    was seen (io_uring, --light), and then reaped_ns is some milliseconds late.
    exit_signal: what its death sends to the parent, SIGCHLD unless clone was told another.
    threads: living ones.  root: a target, nobody's traced child.
    """

    __slots__ = (
        "comm",
        "execs",
        "exit_code",
        "exit_parent",
        "exit_signal",
        "exited_ns",
        "fate",
        "fork_comm",
        "forked_ns",
        "forker",
        "forker_ns_pid",
        "id",
        "ns_pid",
        "parent",
        "reaped_by_call",
        "reaped_ns",
        "reaper",
        "root",
        "stack",
        "threads",
    )

    def __init__(
        self, identity: int, parent: int = 0, forker: int = 0, forked_ns: int = 0, stack: int = 0
    ) -> None:
        self.id = identity
        self.parent = parent
        self.forker = forker
        self.forked_ns = forked_ns
        self.stack = stack
        self.ns_pid = self.forker_ns_pid = identity >> 32
        self.comm = self.fork_comm = ""
        self.execs = 0
        self.threads = 1
        self.exit_signal = 17
        self.exited_ns = self.reaped_ns = 0
        self.exit_code: int | None = None
        self.exit_parent = self.reaper = 0
        self.reaped_by_call = ""
        self.fate = Fate.RUNNING
        self.root = False

    @property
    def pid(self) -> int:
        return self.id >> 32

    @property
    def standing(self) -> bool:
        """It is a zombie now: dead, and released by nobody."""
        return bool(self.exited_ns) and not self.reaped_ns

    def __repr__(self) -> str:
        return f"Task({self.pid}, parent={self.parent >> 32}, {self.comm!r}, {self.fate.value})"
