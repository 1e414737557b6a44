"""What was seen of a process whose children stand as zombies: the ground that ``verdict`` stands on.

Plain values.  ``suspects`` collects them while the trace runs, a ``Snapshot`` carries them, a capture keeps them.
All times are nanoseconds of CLOCK_BOOTTIME, 0 for never.
"""

from __future__ import annotations

from dataclasses import dataclass

ECHILD = 10


@dataclass(frozen=True, slots=True)
class Waits:
    """The wait calls of a process that returned since its last exec, for any child and for named ones.

    empty: the last that found nothing (WNOHANG, ECHILD).  reaped: calls of both kinds that took a child away.
    options: of all calls, or-ed.  some_target: of the last one, a pid, a negated process group, or None for a pidfd or
    the caller's own group.  by_group: some named a process group.  by_pidfd: some by a pidfd took nobody away.
    looked: some for any child found one and left it (WNOWAIT).
    """

    any_calls: int = 0
    any_last_ns: int = 0
    any_empty_ns: int = 0
    some_calls: int = 0
    some_last_ns: int = 0
    some_empty_ns: int = 0
    reaped: int = 0
    any_options: int = 0
    some_options: int = 0
    some_target: int | None = None
    by_group: bool = False
    by_pidfd: bool = False
    looked: bool = False

    @property
    def calls(self) -> int:
        return self.any_calls + self.some_calls

    @property
    def options(self) -> int:
        return self.any_options | self.some_options


@dataclass(frozen=True, slots=True)
class NamedWait:
    """The wait calls for one child by its pid that did not reap it; ``calls`` is 0 when there was none.

    result: of the last one: 0 it had not ended, 1 it had and was left, -ECHILD no child that the call could see.
    """

    pid: int = 0
    last_ns: int = 0
    calls: int = 0
    result: int = 0


@dataclass(frozen=True, slots=True)
class ParentFacts:
    """A process that has to wait for zombies.

    seen: it was looked at while it had some.  comm: its name then.
    state: its letter in /proc, None when it is gone.
    stuck_since_ns: since that look all its threads are in that state, which is T, t or D: stopped, or hanging.
    blocked_since_ns: since that look SIGCHLD is pending, blocked in all threads, and read by no signalfd.
    caught: SIGCHLD has a handler; handler: its function and library.  by_signalfd: SIGCHLD is pending for a signalfd.
    waits: None where wait calls are not seen.  waiting_for: what its threads wait for at this moment: -1 for any child,
    a pid, a negated process group, ``records.WAIT_OTHER``.
    named: of the children that were asked about.
    held_by: the process that traces its zombies, held: how many of those that were ``asked``.
    handler_waits: all its wait calls for any child come from signal handlers, and there are some.
    init: it is PID 1 of a pid namespace: "host", "namespace" or "".
    """

    seen: bool = False
    comm: str = ""
    state: str | None = None
    stuck_since_ns: int = 0
    blocked_since_ns: int = 0
    caught: bool = False
    handler: str | None = None
    by_signalfd: bool = False
    waits: Waits | None = None
    waiting_for: tuple[int, ...] = ()
    named: tuple[NamedWait, ...] = ()
    held_by: int = 0
    held: int = 0
    asked: int = 0
    handler_waits: bool = False
    init: str = ""
