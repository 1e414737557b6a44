"""How full the targets' limits are, how fast they fill, and when they will be full.

It stands between ``limits`` (/proc, one moment) and the model's ``limits``: a session samples it while it runs.
Growth is what the limit's own count did between the first sample and the last, whoever caused it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tracer.limits import Limit, limits
from tracer.procfs import Stat

MAX_TARGETS = 8  # looked at: most share all their limits
NO_TASKS: Mapping[str, int] = MappingProxyType({"processes": 0, "zombies": 0, "threads": 0})
MIN_SPAN_S = 5.0  # over less, a count that moves by one is no growth


@dataclass(slots=True)
class _Course:
    """One limit's first and last sample.  Times: seconds."""

    first_at: float
    first: int
    last_at: float
    last: Limit
    first_tasks: Mapping[str, int]
    last_tasks: Mapping[str, int]


class Headroom:
    """The limits of some processes over time."""

    def __init__(self) -> None:
        self._courses: dict[tuple[str, str, int], _Course] = {}

    def sample(
        self,
        pids: Iterable[int],
        now_s: float,
        stats: Mapping[int, Stat] | None = None,
        tasks: Mapping[str, int] = NO_TASKS,
    ) -> None:
        """Look at the limits that hold for ``pids`` now; those that are gone are left out.

        now_s: on a clock that does not jump.  stats: a scan of /proc, where there is one already.
        tasks: the traced ones by kind ("processes", "zombies", "threads"), which fill these limits.
        """
        for pid in list(pids)[:MAX_TARGETS]:
            for limit in limits(pid, stats):
                if limit.current is None:
                    continue
                key = limit.name, limit.where, limit.value
                course = self._courses.get(key)
                if course is None:
                    self._courses[key] = _Course(now_s, limit.current, now_s, limit, tasks, tasks)
                elif course.last_at != now_s:
                    course.last_at, course.last, course.last_tasks = now_s, limit, tasks

    def report(self) -> tuple[Mapping[str, Any], ...]:
        """As the JSON report has it, the fullest first.

        growth_per_min, full_in_s: None over less than ``MIN_SPAN_S``; full_in_s also where nothing grows.
        growth_by_kind: a minute, of the traced processes alone.
        """
        found = [_entry(course) for course in self._courses.values()]
        return tuple(sorted(found, key=lambda each: -each["current"] / max(each["value"], 1)))


def _entry(course: _Course) -> dict[str, Any]:
    limit = course.last
    assert limit.current is not None
    span = course.last_at - course.first_at
    growth = (limit.current - course.first) / span if span >= MIN_SPAN_S else None
    full = (limit.value - limit.current) / growth if growth is not None and growth > 0 else None
    return {
        "name": limit.name,
        "where": limit.where,
        "value": limit.value,
        "current": limit.current,
        "growth_per_min": None if growth is None else round(growth * 60, 3),
        "growth_by_kind": {
            kind: round((count - course.first_tasks.get(kind, 0)) * 60 / span, 3)
            if span >= MIN_SPAN_S
            else None
            for kind, count in course.last_tasks.items()
        },
        "full_in_s": None if full is None else round(max(full, 0.0), 1),
    }
