"""Which limit refused a clone: asked of /proc and the cgroups within some 50 ms of the failure.

A limit is named only if it is full now, or if its own counter says that it refused somebody since the trace began; a
failure that neither explains has no limit (memory, a dead namespace init, or a count that fell meanwhile).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any

from tracer.limits import Limit, limits

MAX_TRIES = 5  # looks a kind of failure: the process may be gone, or the count have fallen


class Refusals:
    """One look-up a kind of failure (errno, stack, thread), remembered by the caller's key."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], int] = {}
        self._tries: dict[object, int] = {}
        self.found: dict[Any, Mapping[str, Any]] = {}

    def begin(self, pids: Iterable[int]) -> None:
        """Remember how often each cgroup on the way up has refused so far."""
        for pid in pids:
            for limit in limits(pid, {}):
                if limit.refusals is not None:
                    self._before[limit.name, limit.where] = limit.refusals

    def explain(self, key: object, pid: int, number: int) -> None:
        """Look for the limit that made a clone of ``pid`` fail with ``number``, unless it is known for this key."""
        if number not in (errno.EAGAIN, errno.ENOMEM) or key in self.found:
            return
        self._tries[key] = self._tries.get(key, 0) + 1
        if self._tries[key] > MAX_TRIES:
            return
        found = limits(pid)
        refused = [limit for limit in found if self._has_refused(limit)]
        full = [limit for limit in found if limit.current is not None and limit.current >= limit.value]
        hit = next((limit for limit in full if limit in refused), None) or next(iter(refused or full), None)
        if hit is not None and number == errno.EAGAIN:
            self.found[key] = {
                "name": hit.name,
                "where": hit.where,
                "value": hit.value,
                "current": hit.current,
            }

    def _has_refused(self, limit: Limit) -> bool:
        before = self._before.get((limit.name, limit.where), 0)
        return limit.refusals is not None and limit.refusals > before
