"""Zombies by parent, from scans that are made up."""

from __future__ import annotations

import pytest

from tracer.census import family, zombies_by_parent
from tracer.procfs import Stat


def stat(
    pid: int, ppid: int, comm: str = "sh", state: str = "Z", *, threads: int = 1, start: int = 0
) -> Stat:
    return Stat(pid, comm, state, ppid, 0, 0, 0, threads, start, None)


SCAN = {
    each.pid: each
    for each in (
        stat(1, 0, "init", "S"),
        stat(10, 1, "unicorn", "S"),
        stat(11, 10, "sh", start=9),
        stat(12, 10, "sh", start=5),
        stat(13, 10, "curl", start=7),
        stat(14, 10, "worker", "R", start=3),
        stat(15, 10, "leader", threads=3),  # dead, its threads live: no zombie
        stat(20, 1, "sh"),
        stat(30, 0, "sh"),  # its parent is outside of the pid namespace
        stat(40, 99, "sh"),  # its parent went during the scan
        stat(50, 1, "sh", "X"),
    )
}


def test_zombies_by_parent() -> None:
    broods = zombies_by_parent(SCAN)
    assert [(brood.ppid, [child.pid for child in brood.children]) for brood in broods] == [
        (10, [12, 13, 11]),
        (0, [30]),
        (1, [20]),
        (99, [40]),
    ]
    assert [brood.parent and brood.parent.comm for brood in broods] == ["unicorn", None, "init", None]
    assert list(broods[0].comms.items()) == [("sh", 2), ("curl", 1)]
    assert zombies_by_parent({}) == []


def test_family() -> None:
    one = family(SCAN, 10)
    assert one.stat.comm == "unicorn"
    assert [child.pid for child in one.zombies.children] == [12, 13, 11]
    assert [child.pid for child in one.living.children] == [15, 14]
    assert family(SCAN, 20).living.children == ()
    with pytest.raises(KeyError):
        family(SCAN, 99)
