"""What is known of the processes that have to wait for zombies: facts for ``lifecycle.verdict``.

A session looks at them each second, and at the end: a parent that dies with its zombies is gone from /proc by then, so
what was last seen of it is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Protocol

from tracer import procfs
from tracer.lifecycle.facts import NamedWait, ParentFacts, Waits
from tracer.lifecycle.snapshot import Death, Snapshot, WaitPlace
from tracer.lifecycle.task import pid_of
from tracer.lifecycle.verdict import SIGCHLD
from tracer.records import WAIT_ANY

MAX_SUSPECTS = 1000  # processes kept; the one that was in order for longest goes first
MAX_LOOKS = 200  # at a time: some 0.1 ms each
STUCK = ("T", "t", "D")


class Kernel(Protocol):
    """What the probe knows of wait calls."""

    def suspect(self, identity: int) -> None: ...
    def clear(self, identity: int) -> None: ...
    def waits(self, identity: int) -> Waits | None: ...
    def named_wait(self, identity: int, pid: int, ns_pid: int) -> NamedWait: ...


class Stacks(Protocol):
    def in_signal_handler(self, ident: int) -> bool: ...
    def function_at(self, pid: int, address: int) -> str | None: ...


class Suspects:
    """By identity; at most ``MAX_SUSPECTS``."""

    def __init__(self, kernel: Kernel, stacks: Stacks) -> None:
        self._kernel, self._stacks = kernel, stacks
        self._seen: OrderedDict[int, ParentFacts] = OrderedDict()
        self._handlers: dict[int, tuple[int, str | None]] = {}  # address, and what is there

    def watch(self, identities: Iterable[int]) -> None:
        """Take the stacks of their wait calls from now on, wherever they are followed."""
        for identity in identities:
            if identity not in self._seen:
                self._kernel.suspect(identity)
                self._seen[identity] = ParentFacts()
            self._seen.move_to_end(identity)
        while len(self._seen) > MAX_SUSPECTS:
            identity, _ = self._seen.popitem(last=False)
            self._handlers.pop(identity, None)
            self._kernel.clear(identity)

    def look(self, handlers: Mapping[int, int]) -> None:
        """At those that have zombies now, and remember how they are.

        handlers: addresses of their SIGCHLD handlers; the first ``MAX_LOOKS`` are looked at.
        """
        some = dict(islice(handlers.items(), MAX_LOOKS))
        self.watch(some)
        for identity, address in some.items():
            facts = _now(identity, self._seen[identity])
            if facts is not None:
                self._seen[identity] = replace(facts, handler=self._handler(identity, address))

    def facts(self, snapshot: Snapshot) -> dict[int, ParentFacts]:
        """Of those who had to wait for the children of the snapshot's groups."""
        wanted: dict[int, list[Death]] = {}
        for group in snapshot.groups.values():
            for identity, deaths in group.deaths.items():
                if identity in self._seen:
                    wanted.setdefault(identity, []).extend(deaths.examples)
        return {identity: self._facts(identity, deaths, snapshot) for identity, deaths in wanted.items()}

    def _facts(self, identity: int, deaths: list[Death], snapshot: Snapshot) -> ParentFacts:
        facts = self._seen[identity]
        stat = procfs.read_stat(pid_of(identity))
        if stat is None or procfs.identity(stat) != identity or procfs.is_zombie(stat):
            facts = replace(facts, state=None, stuck_since_ns=0)
        waits = self._kernel.waits(identity)
        places = [place for place in snapshot.wait_places.get(identity, ()) if place.target == WAIT_ANY]
        tracers = _tracers([death.pid for death in deaths if death.standing], pid_of(identity))
        return replace(
            facts,
            waits=waits,
            named=()
            if waits is None
            else tuple(self._kernel.named_wait(identity, each.pid, each.ns_pid) for each in deaths),
            held_by=next(filter(None, tracers), 0),
            held=sum(map(bool, tracers)),
            asked=len(tracers),
            handler_waits=bool(places) and all(map(self._is_in_handler, places)),
        )

    def _is_in_handler(self, place: WaitPlace) -> bool:
        return self._stacks.in_signal_handler(place.stack)

    def _handler(self, identity: int, address: int) -> str | None:
        if not address:
            return None
        known = self._handlers.get(identity)
        if known is None or known[0] != address:
            known = self._handlers[identity] = (address, self._stacks.function_at(pid_of(identity), address))
        return known[1]


def _now(identity: int, before: ParentFacts) -> ParentFacts | None:
    """before: of the last look.  None when it is gone, or dead itself."""
    pid = pid_of(identity)
    stat, status = procfs.read_stat(pid), procfs.status(pid)
    if stat is None or status is None or procfs.identity(stat) != identity or stat.state in ("Z", "X"):
        return None
    now = procfs.boottime_ns()
    states = {each.state for tid in procfs.threads(pid) if (each := procfs.read_stat(tid)) is not None}
    stuck = stat.state if states == {stat.state} and stat.state in STUCK else ""
    blocked = _is_blocked(pid, status)
    by_signalfd = blocked and procfs.reads_by_signalfd(pid, SIGCHLD)
    return ParentFacts(
        seen=True,
        comm=stat.comm,
        state=stat.state,
        stuck_since_ns=(before.stuck_since_ns if stuck == before.state else 0) or now if stuck else 0,
        blocked_since_ns=0 if not blocked or by_signalfd else before.blocked_since_ns or now,
        caught=_has(status.sig_caught),
        by_signalfd=by_signalfd,
        waiting_for=procfs.waiting_for(pid),
        init="" if status.ns_tgids[-1] != 1 else "host" if len(status.ns_tgids) == 1 else "namespace",
    )


def _is_blocked(pid: int, leader: procfs.Status) -> bool:
    """SIGCHLD waits to be delivered, for no thread takes it."""
    if not _has(leader.sig_pending):
        return False
    every = [status for tid in procfs.threads(pid) if (status := procfs.status(tid)) is not None]
    return bool(every) and all(_has(status.sig_blocked) for status in every)


def _has(signals: int) -> bool:
    return bool(signals >> (SIGCHLD - 1) & 1)


def _tracers(zombies: list[int], parent: int) -> list[int]:
    """Of each zombie that stands: the process other than the parent that ptraces it, or 0."""
    found = []
    for pid in zombies:
        status = procfs.status(pid)
        if status is not None:
            found.append(status.tracer if status.tracer != parent else 0)
    return found
