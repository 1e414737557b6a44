"""What /proc shows of single threads: their names, and how much memory is mapped for the stacks of some."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress

from tracer import procfs

MAX_NAMES = 20_000  # threads of one process whose names are read


def names(pid: int) -> dict[int, str]:
    """Of the living threads, by tid.  Empty when the process is gone."""
    found: dict[int, str] = {}
    with suppress(OSError), os.scandir(f"/proc/{pid}/task") as entries:
        for entry in entries:
            comm = procfs.read_file(f"{entry.path}/comm") if len(found) < MAX_NAMES else b""
            if comm is not None and entry.name.isdecimal():
                found[int(entry.name)] = comm.rstrip(b"\n").decode("utf-8", "backslashreplace")
    return found


def sizes(pid: int, handles: Iterable[int]) -> dict[int, int]:
    """Bytes mapped for the stacks of threads, guard pages included, by pthread_t: the C libraries keep a thread's
    descriptor at the upper end of its stack.  Without those that are not in anonymous memory (any more).
    """
    text = procfs.read_file(f"/proc/{pid}/maps")
    regions = [region for region in map(_region, (text or b"").splitlines()) if region]
    starts = [start for start, _, _ in regions]
    found: dict[int, int] = {}
    below = -1  # the region of the handle before
    last = 0
    for handle in sorted(handles):
        at = bisect_right(starts, handle) - 1
        if at < 0 or handle >= regions[at][1] or not regions[at][2]:
            continue
        start, end, _ = regions[at]
        if at == below:  # without guard pages of their own several stacks are one mapping
            found[last] -= end - last
            found[handle] = end - last
        else:
            guard = regions[at - 1] if at else None
            found[handle] = end - (guard[0] if guard and guard[1] == start and not guard[2] else start)
        below, last = at, handle
    return found


def _region(line: bytes) -> tuple[int, int, bool] | None:
    """start, end, writable; anonymous memory alone."""
    fields = line.split(None, 5)
    if len(fields) != 5:
        return None
    start, _, end = fields[0].partition(b"-")
    try:
        return int(start, 16), int(end, 16), b"w" in fields[1]
    except ValueError:
        return None
