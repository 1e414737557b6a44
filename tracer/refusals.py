"""Which limit refused a clone: asked of /proc and the cgroups within some 50 ms of the failure.

A limit is named only if it is full now, or if it is the only one that its cgroups' counters can mean; what no limit
explains has none (memory, or a count that fell meanwhile).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any

from tracer import procfs
from tracer.lifecycle.graph import Failure, PidNamespace
from tracer.lifecycle.snapshot import FailedKey
from tracer.lifecycle.task import pid_of
from tracer.limits import Limit, limits
from tracer.records import PIDNS_ADDING

MAX_TRIES = 5  # looks a kind of failure: the process may be gone, or the count have fallen
ORDER = ("RLIMIT_NPROC", "threads-max", "pid_max", "pids.max")  # in which the kernel asks (copy_process)
RESERVED_PIDS = 300  # below it no pid is given a second time (include/linux/threads.h, alloc_pid)
NEAR = 0.9  # so full, a limit may have been it
NO_INIT = {"name": "pid namespace", "where": "its init has ended", "value": 0, "current": 0}


class Refusals:
    """One answer a kind of failure, once there is one.  found: by kind."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}  # cgroup -> clones that it had refused, when it was first looked at
        self._tries: dict[FailedKey, int] = {}
        self.found: dict[FailedKey, Mapping[str, Any]] = {}

    def begin(self, pids: Iterable[int]) -> None:
        """Remember how often each cgroup on the way up has refused so far."""
        for pid in pids:
            self._remember(limits(pid, {}))

    def explain(self, failure: Failure) -> None:
        """Look for what made a clone fail, unless that is known for its kind."""
        key = failure.key
        if key in self.found or self._tries.get(key, 0) >= MAX_TRIES:
            return
        if key.errno == errno.ENOMEM and not failure.namespace.taken & PIDNS_ADDING:
            self.found[key] = NO_INIT
        elif key.errno == errno.EAGAIN:
            self._tries[key] = self._tries.get(key, 0) + 1
            hit = self._hit(limits(pid_of(failure.caller)), failure.namespace)
            if hit is not None:
                self.found[key] = {
                    "name": hit.name,
                    "where": hit.where,
                    "value": hit.value,
                    "current": hit.current,
                }

    def _hit(self, found: tuple[Limit, ...], namespace: PidNamespace) -> Limit | None:
        of_cgroups = [limit for limit in found if limit.name == "pids.max"]
        full = [limit for limit in found if limit.current is not None and limit.current >= limit.value]
        # The inner one is charged first.
        full.sort(key=lambda limit: (ORDER.index(limit.name), -len(limit.where)))
        refused = any(
            limit.refusals > self._before.get(limit.where, limit.refusals)
            for limit in of_cgroups
            if limit.refusals
        )
        self._remember(found)
        if refused:
            # A counter tells that a cgroup refused, but before Linux 6.11, and in version 1, not which ancestor did.
            full = [limit for limit in full if limit in of_cgroups]
            if not full and len(of_cgroups) == 1:
                return of_cgroups[0]
        if full or refused:
            return next(iter(full), None)
        is_near = any(limit.current is not None and limit.current >= NEAR * limit.value for limit in found)
        return None if is_near else _of_namespace(namespace)

    def _remember(self, found: Iterable[Limit]) -> None:
        for limit in found:
            if limit.refusals is not None:
                self._before.setdefault(limit.where, limit.refusals)


def _of_namespace(namespace: PidNamespace) -> Limit | None:
    """The pid_max of a nested pid namespace, if so many pids are taken that there may be no other left."""
    taken = namespace.taken & ~PIDNS_ADDING
    if not namespace.pid_max or namespace.id == procfs.INITIAL_PID_NAMESPACE:
        return None
    if taken < namespace.pid_max - RESERVED_PIDS:
        return None
    return Limit("pid_max", f"pid namespace {namespace.id}", namespace.pid_max, taken)
