"""What is known of the parents whose children stand as zombies: facts for ``lifecycle.verdict``.

A session asks it each second, and at the end: a parent that dies with its zombies is gone from /proc by then, so what
was last seen of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from tracer import procfs
from tracer.lifecycle.snapshot import Snapshot, WaitPlace
from tracer.lifecycle.task import pid_of
from tracer.lifecycle.verdict import SIGCHLD, ParentFacts, Waits
from tracer.trace import Stack

MAX_SUSPECTS = 1000  # processes looked at; those that come first
SIGNAL_RETURN = "__restore_rt"  # what libc has a signal handler return to


class Suspects:
    """waits_of: a process's wait calls, by identity.  stack_of: a finished stack, by id."""

    def __init__(
        self,
        waits_of: Callable[[int], Waits | None],
        stack_of: Callable[[int], Stack],
        suspect: Callable[[int], None],
    ) -> None:
        self._waits_of, self._stack_of, self._suspect = waits_of, stack_of, suspect
        self._seen: dict[int, ParentFacts] = {}

    def look(self, identities: Iterable[int]) -> None:
        """Watch the wait calls of these from now on, and remember how they are."""
        for identity in identities:
            if identity not in self._seen:
                if len(self._seen) >= MAX_SUSPECTS:
                    continue
                self._suspect(identity)
            facts = _now(identity)
            if facts is not None:
                self._seen[identity] = facts

    def facts(self, snapshot: Snapshot) -> dict[int, ParentFacts]:
        """Of the parents and adopters in the snapshot's groups."""
        wanted: dict[int, list[int]] = {}  # process -> pids of some of its zombies
        for group in snapshot.groups.values():
            for identity in (*group.parents, *group.adopters):
                if identity:
                    wanted.setdefault(identity, []).extend(group.examples)
        return {identity: self._facts(identity, pids, snapshot) for identity, pids in wanted.items()}

    def _facts(self, identity: int, zombies: list[int], snapshot: Snapshot) -> ParentFacts:
        now = _now(identity)
        # Of one that is gone: as it was when it was last looked at, but without a state.
        facts = now if now is not None else replace(self._seen.get(identity, ParentFacts()), state=None)
        return replace(
            facts,
            waits=self._waits_of(identity),
            held=_tracer_of(zombies, pid_of(identity)) if now is not None else 0,
            handler_waits=any(map(self._is_in_handler, snapshot.wait_places.get(identity, ()))),
        )

    def _is_in_handler(self, place: WaitPlace) -> bool:
        return any(frame.function == SIGNAL_RETURN for frame in self._stack_of(place.stack).frames)


def _now(identity: int) -> ParentFacts | None:
    pid = pid_of(identity)
    stat, status = procfs.read_stat(pid), procfs.status(pid)
    if stat is None or status is None or procfs.identity(stat) != identity or stat.state in ("Z", "X"):
        return None
    bit = 1 << (SIGCHLD - 1)
    return ParentFacts(
        state=stat.state,
        sigchld_blocked=bool(status.sig_blocked & bit),
        sigchld_caught=bool(status.sig_caught & bit),
        waiting_for=procfs.waiting_for(pid),
        namespace_init=status.ns_tgids[-1] == 1,
    )


def _tracer_of(zombies: list[int], parent: int) -> int:
    """A process other than the parent that ptraces one of its zombies."""
    for pid in zombies:
        status = procfs.status(pid)
        if status is not None and status.tracer not in (0, parent):
            return status.tracer
    return 0
