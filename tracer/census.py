"""Who has dead children right now: zombies by parent, and the children of one process, counted from a scan of /proc.

It stands between ``procfs`` and ``forktrace ps``.  Pure: a scan in, counts out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tracer.procfs import Stat, children_of, is_zombie


@dataclass(frozen=True, slots=True)
class Brood:
    """The children of one process that are in one state, oldest first.

    parent: None when it is gone, or outside of this pid namespace (``ppid`` is 0).
    """

    ppid: int
    parent: Stat | None
    children: tuple[Stat, ...]

    @property
    def comms(self) -> dict[str, int]:
        """Commands to how many, most first."""
        return dict(Counter(child.comm for child in self.children).most_common())


@dataclass(frozen=True, slots=True)
class Family:
    """One process, its children that live and those that are dead and not reaped."""

    stat: Stat
    living: Brood
    zombies: Brood


def zombies_by_parent(stats: Mapping[int, Stat]) -> list[Brood]:
    """Every zombie of a scan, under whoever has to reap it; the largest brood first."""
    dead = {pid: stat for pid, stat in stats.items() if is_zombie(stat)}
    broods = [_brood(stats, ppid, [dead[pid] for pid in pids]) for ppid, pids in children_of(dead).items()]
    return sorted(broods, key=lambda brood: (-len(brood.children), brood.ppid))


def family(stats: Mapping[int, Stat], pid: int) -> Family:
    """Raises KeyError for a pid that is not in the scan."""
    children = [stats[child] for child in children_of(stats).get(pid, ())]
    dead = [child for child in children if is_zombie(child)]
    living = [child for child in children if not is_zombie(child)]
    return Family(stats[pid], _brood(stats, pid, living), _brood(stats, pid, dead))


def _brood(stats: Mapping[int, Stat], ppid: int, children: list[Stat]) -> Brood:
    return Brood(
        ppid, stats.get(ppid), tuple(sorted(children, key=lambda child: (child.start_ticks, child.pid)))
    )
